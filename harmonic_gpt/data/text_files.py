"""Text files as they lie on disk: plain, .gz or .zst, and where one is not UTF-8."""

import codecs
import gzip
import io
from pathlib import Path
from typing import IO, Any, TextIO

from harmonic_gpt.errors import InputError

COMPRESSED_BUFFER = 2**17  # bytes read at a time


def open_text(path: Path) -> TextIO:
    """UTF-8; a byte order mark at the start is no part of the text."""
    return io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig")


def _open_bytes(path: Path) -> IO[bytes] | gzip.GzipFile:
    """A file's contents, unpacked."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise InputError("reading .zst needs the zstandard library: pip install 'harmonic-gpt[data]'") from error
        return io.BufferedReader(_Zstandard(path, zstandard.ZstdDecompressor()), COMPRESSED_BUFFER)
    return path.open("rb")


class _Zstandard(io.RawIOBase):
    """The contents of all frames of a file. zstandard's own reader takes a file that was cut short for its end."""

    def __init__(self, path: Path, decompressor):
        self._file, self._decompressor = path.open("rb"), decompressor
        self._frame: Any = None
        self._packed, self._contents = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._contents:
            self._packed = self._packed or self._file.read(COMPRESSED_BUFFER)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the compressed file ends before its last frame does")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._contents = memoryview(self._frame.decompress(self._packed))
            self._packed = self._frame.unused_data
            self._frame = None if self._frame.eof else self._frame
        size = min(len(buffer), len(self._contents))
        buffer[:size], self._contents = self._contents[:size], self._contents[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def utf8_problem(path: Path) -> str | None:
    """Where a file is not UTF-8; None if it is. Places are counted in the unpacked file."""
    place, line, line_start = 0, 1, 0  # bytes of whole characters so far; lines, and where this one starts
    rest = b""
    with _open_bytes(path) as file:
        while True:
            block = file.read(2**20)
            data = rest + block
            try:
                length, reason = codecs.utf_8_decode(data, "strict", not block)[1], None
            except UnicodeDecodeError as error:
                length, reason = error.start, error.reason
            if newlines := data.count(b"\n", 0, length):
                line, line_start = line + newlines, place + data.rindex(b"\n", 0, length) + 1
            place += length
            if reason:
                value, utf16 = data[length], data.startswith((b"\xff\xfe", b"\xfe\xff")) and place == 0
                hint = "; it looks like UTF-16: iconv -f UTF-16 -t UTF-8 turns it into UTF-8" if utf16 else ""
                where = f"line {line:,}, byte {place - line_start + 1:,} of the line, offset {place:,} in the file"
                return f"expected UTF-8 text, got byte 0x{value:02x} at {where} ({reason}){hint}"
            if not block:
                return None
            rest = data[length:]
