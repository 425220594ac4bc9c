"""Where documents come from: the embedded corpus, local files, a dataset on the Hugging Face Hub."""

import glob
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TextIO

from harmonic_gpt.data.pydocs import pydocs
from harmonic_gpt.data.text_files import open_text, utf8_problem
from harmonic_gpt.errors import InputError, is_out_of_memory, option, reason_of

HUB_ALIASES = {"openwebtext": "Skylion007/openwebtext"}
# The Hub's automatic parquet copy of a dataset whose main branch still is a loading script
PARQUET_REVISION = "refs/convert/parquet"
LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".zst")
FORMATS = ".txt, .jsonl or .parquet files (.txt and .jsonl also as .gz or .zst)"
# A .txt file has no documents of its own: it is cut near this many characters, where a paragraph ends
TXT_PIECE = 16_000
# A line of more characters is cut at white space
MAX_LINE = 2**20
TXT_DOCUMENTS = (
    f"cut near {TXT_PIECE:,} characters where a paragraph ends; a line of more than {MAX_LINE:,} at white space"
)
ARROW_ROWS = 256  # rows decoded at a time
PARQUET_BUFFER = 2**20  # bytes of a column read at a time
# Tokenized, counted and checkpointed together; small, because a shard ends with a batch and is to end near its size
BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 2**20

_BLANK = re.compile(r"\s")
_OPTIONS = ("name", "config", "split", "column", "revision")
_SPEC = re.compile(rf"(?P<place>.*?)(?P<options>(?:,(?:{'|'.join(_OPTIONS)})=[^,]*)*)", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """A corpus: an ordered list of parts (files), each an ordered stream of documents.

    `parts` names them with their sizes in bytes (None where unknown): what must be unchanged for a preparation to
    continue. `read(i)` streams the documents of part i. `rows` is their number over all parts where something vouches
    for it, else None.
    """

    spec: str
    name: str
    provenance: dict
    parts: list[tuple[str, int | None]]
    read: Callable[[int], Iterator[str]]
    rows: int | None = None

    def batches(self, part: int) -> Iterator[list[str]]:
        """The documents of a part in batches; where these end depends on the part alone."""
        batch: list[str] = []
        size = 0
        for text in self.read(part):
            batch.append(text)
            size += len(text)
            if len(batch) == BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def count_rows(self) -> int:
        """Documents of the source, duplicates and empty ones included; reads all of it if nothing else says."""
        if self.rows is not None:
            return self.rows
        return sum(1 for part in range(len(self.parts)) for _ in self.read(part))


def documents(source: str, text_column: str = "text") -> Iterator[str]:
    """Stream the documents of a source, in a fixed order; see `open_source`."""
    opened = open_source(source, text_column)
    for part in range(len(opened.parts)):
        yield from opened.read(part)


def open_source(spec: str, text_column: str = "text", revision: str | None = None) -> Source:
    """Find a source and name its parts; reads no documents yet.

    Args:
        spec: PLACE[,name=..][,config=..][,split=..][,column=..][,revision=..]. PLACE is "pydocs"; a file, folder or
            glob of .txt, .jsonl or .parquet (.txt and .jsonl also as .gz or .zst); or the name of a dataset on the
            Hugging Face Hub ("openwebtext" is short for "Skylion007/openwebtext"). `name` is what the token folder
            calls the source.
        text_column: the column that holds the text, where the spec does not say.
        revision: commit of a Hub dataset, where the spec does not say.
    Raises InputError for a source that does not exist or an option that does not apply.
    """
    place, options = parse_spec(spec)
    column = options.get("column", text_column)
    name = options.get("name") or _name_of(place)
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"{spec}: a source's name is letters, digits, '.', '_' and '-', got {name!r}")

    files, hidden = ([], 0) if place == "pydocs" else _local_files(place)
    if files or place == "pydocs" or _looks_local(place):
        wrong = [key for key in ("config", "split", "revision") if key in options]
        if wrong:
            raise InputError(f"{spec}: {wrong[0]}= is for datasets on the Hub")
    if place == "pydocs":
        texts = pydocs()
        return Source(spec, name, {"place": place}, [(place, None)], lambda _: iter(texts), len(texts))
    if files:
        if hidden:
            _say_once(f"{place}: {hidden} hidden files are left out")
        return _local_source(spec, name, place, files, column, hidden)
    if _looks_local(place):
        raise InputError(f"no {FORMATS} at {place!r}" + (f", but for {hidden} hidden ones" if hidden else ""))
    split, revision = options.get("split", "train"), options.get("revision") or revision
    return _hub_source(spec, name, place, options.get("config"), split, column, revision)


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """(PLACE, options). What is not an option belongs to the place, commas included."""
    match = _SPEC.fullmatch(spec)
    assert match is not None  # the expression matches every text
    options: dict[str, str] = {}
    for item in match["options"].split(",")[1:]:
        key, _, value = item.partition("=")
        options[key] = value
    return match["place"], options


def hub_name(place: str) -> str | None:
    """The full name of the dataset on the Hub that a place is; None for "pydocs", and for what is or looks local."""
    return None if place == "pydocs" or _looks_local(place) else HUB_ALIASES.get(place, place)


def _name_of(place: str) -> str:
    """The last part of a place, in the characters that a name may have."""
    last = re.sub(r"[*?\[\]]", "", place.rstrip("/")).rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "text"


# Local files


def _looks_local(place: str) -> bool:
    suffixes = {*LOADERS, *COMPRESSIONS, ".txt"}
    return (
        place.startswith((".", "/", "~"))
        or "*" in place
        or place.count("/") > 1
        or Path(place).suffix.lower() in suffixes
        or Path(place).exists()
    )


def _local_files(place: str) -> tuple[list[Path], int]:
    """The files of a place in their order, and how many others a folder has that are hidden, or in a hidden folder."""
    path = Path(place).expanduser()
    if path.is_file():
        return [path], 0
    candidates = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    files = sorted(p for p in candidates if p.is_file() and _kind(p) is not None)
    if not path.is_dir():
        return files, 0  # a pattern finds what is hidden only where it says so
    shown = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    return shown, len(files) - len(shown)


def _kind(path: Path) -> str | None:
    """text, json or parquet; None for a file of something else."""
    name = Path(path.name.lower())
    compressed = name.suffix in COMPRESSIONS
    suffix = Path(name.stem).suffix if compressed else name.suffix
    if suffix == ".txt":
        return "text"
    return None if compressed and suffix == ".parquet" else LOADERS.get(suffix)


def _local_source(spec: str, name: str, place: str, files: list[Path], column: str, hidden: int) -> Source:
    for path in files:
        if _kind(path) is None:
            raise InputError(f"{path}: expected {FORMATS}")

    def read(part: int) -> Iterator[str]:
        path = files[part]
        if path.stat().st_size == 0:  # datasets raises StopIteration on an empty file
            return iter(())
        return _txt_pieces(path) if _kind(path) == "text" else _local_rows(path, column)

    parts: list[tuple[str, int | None]] = [(str(path), path.stat().st_size) for path in files]
    provenance: dict = {"place": place, "column": column}
    if hidden:
        provenance["hidden_files_left_out"] = hidden
    if any(_kind(path) == "text" for path in files):
        provenance["txt_documents"] = TXT_DOCUMENTS
    return Source(spec, name, provenance, parts, read, _parquet_rows(files))


def _parquet_rows(files: list[Path]) -> int | None:
    """Rows of all files, if all are parquet: it says so itself."""
    if any(_kind(path) != "parquet" for path in files):
        return None
    import pyarrow.parquet

    total = 0
    for path in files:
        if path.stat().st_size:
            with _readable(path):
                total += pyarrow.parquet.read_metadata(path).num_rows
    return total


def _local_rows(path: Path, column: str) -> Iterator[str]:
    with _readable(path):
        if _kind(path) == "parquet":
            yield from _column(_parquet_tables(path, column), column, str(path))
        else:
            yield from _json_texts(path, column)


def _json_texts(path: Path, column: str) -> Iterator[str]:
    """The texts of a file of one object a line, or of one list of objects. Other columns may hold what they like."""
    with open_text(path) as lines:
        start = lines.readline()
        whole_list = start.lstrip().startswith("[")
        rows = json.loads(start + lines.read()) if whole_list else chain([start], lines)
        seen = False
        for number, row in enumerate(rows, start=1):
            place = f"{path}: {'entry' if whole_list else 'line'} {number:,}"
            if not whole_list:
                if not row.strip():
                    continue
                try:
                    row = json.loads(row)
                except ValueError as error:
                    problem = utf8_problem(path) or f"cannot be read: line {number:,} is no JSON ({error})"
                    raise InputError(f"{path}: {problem}") from error
            if not isinstance(row, dict):
                raise InputError(f"{place}: expected an object with a column {column!r}, got {type(row).__name__}")
            if not seen:
                _check_column(column, [*row], str(path))
                seen = True
            # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark
            yield _text(row.get(column), column, place).encode(errors="replace").decode()


def _parquet_tables(path: Path, column: str) -> Iterator:
    """A local file by pieces of some rows. The datasets library decodes a whole row group, which may be all of it."""
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER, pre_buffer=False) as file:
        columns = [column] if column in file.schema_arrow.names else []
        for batch in file.iter_batches(ARROW_ROWS, columns=columns or None):
            yield pyarrow.Table.from_batches([batch])


def _txt_pieces(path: Path) -> Iterator[str]:
    """A text cut into documents, none of its characters left out."""
    piece: list[str] = []
    size = line_number = 0
    with _readable(path), open_text(path) as lines:
        while line := lines.readline(MAX_LINE + 1):
            line_number += 1
            if len(line) > MAX_LINE and not line.endswith("\n"):
                _say_once(f"{path}: line {line_number:,} is longer than {MAX_LINE:,} characters: cut at white space")
                if piece:
                    yield "".join(piece)
                piece, size = [], 0
                yield from _long_line_pieces(line, lines)
                continue
            piece.append(line)
            size += len(line)
            if (size >= TXT_PIECE and not line.strip()) or size >= 2 * TXT_PIECE:
                yield "".join(piece)
                piece, size = [], 0
        if piece:
            yield "".join(piece)


def _long_line_pieces(begun: str, lines: TextIO) -> Iterator[str]:
    """The line whose first characters are `begun`, to its end: each piece ends with the first white space from
    TXT_PIECE characters on, or, where there is none, at twice as many."""
    rest, more = begun, True
    while more:
        more = not rest.endswith("\n") and bool(addition := lines.readline(MAX_LINE))
        rest += addition if more else ""
        start = 0
        # So much that where a piece ends does not depend on where reading stopped
        while len(rest) - start >= 2 * TXT_PIECE:
            blank = _BLANK.search(rest, start + TXT_PIECE - 1, start + 2 * TXT_PIECE)
            end = blank.end() if blank else start + 2 * TXT_PIECE
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


# The datasets library


def _datasets():
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "reading .parquet and hub datasets needs the datasets library: pip install 'harmonic-gpt[data]'"
        ) from error
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs what it then raises
    return datasets


def _builder(path: str, **options):
    """A dataset builder that streams in small pieces: by default a whole row group of parquet is decoded at once."""
    builder = _datasets().load_dataset_builder(path, **options)
    if hasattr(builder.config, "batch_size"):
        builder.config.batch_size = ARROW_ROWS
    return builder


def _hub_source(
    spec: str, name: str, place: str, config: str | None, split: str, column: str, revision: str | None
) -> Source:
    repository = HUB_ALIASES.get(place, place)
    try:
        try:
            builder = _builder(repository, name=config, revision=revision)
        except RuntimeError as error:
            if "script" not in str(error).lower() or revision is not None:
                raise
            builder = _builder(repository, name=config, revision=PARQUET_REVISION)
        stream = builder.as_streaming_dataset(split=split)
    except InputError:
        raise
    except Exception as error:  # the hub client raises many kinds; each means that there are no documents
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"cannot read {repository!r} from the Hugging Face Hub: {_innermost_reason(error)}. "
            f"Offline, give local {FORMATS}, or the embedded corpus: {option('source')} pydocs"
        ) from error
    urls = [str(url) for url in (builder.config.data_files or {}).get(split, [])]
    # The commit that the branch pointed to: a preparation that continues reads the same one
    commits = {match[1] for url in urls if (match := re.search(r"@([0-9a-f]{40})/", url))}
    provenance = {
        "place": repository,
        "config": builder.config.name,
        "split": split,
        "column": column,
        "revision": commits.pop() if len(commits) == 1 else revision,
    }
    known = (builder.info.splits or {}).get(split)
    shards = stream.num_shards
    parts = urls if len(urls) == shards else [f"{repository}/{split}[{i}]" for i in range(shards)]

    def read(part: int) -> Iterator[str]:
        with _readable(parts[part]):
            yield from _column(_tables(stream.shard(shards, part)), column, parts[part])

    return Source(spec, name, provenance, [(part, None) for part in parts], read, known.num_examples if known else None)


def _tables(stream) -> Iterator:
    """The arrow tables of a streaming dataset."""
    return stream.with_format("arrow").iter(ARROW_ROWS)


def _column(tables: Iterator, column: str, place: str) -> Iterator[str]:
    """The texts of a column of arrow tables."""
    for table in tables:
        _check_column(column, table.column_names, place)
        for text in table[column].to_pylist():
            yield _text(text, column, place)


def _check_column(column: str, columns: list[str], place: str) -> None:
    if column not in columns:
        raise InputError(
            f"{place}: no column {column!r}; it has {', '.join(map(repr, columns))}. Set {option('text_column')}, or "
            "column= in the source"
        )


def _text(value: object, column: str, place: str) -> str:
    """A document; null is an empty one, which is counted and left out."""
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: column {column!r} holds {type(value).__name__}, expected text")
    return value or ""


@contextmanager
def _readable(place: str | Path) -> Iterator[None]:
    """Whatever goes wrong while reading becomes an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # arrow, gzip, zstandard and the hub client raise many kinds
        if is_out_of_memory(error):
            raise
        problem = f"cannot be read: {_innermost_reason(error)}"
        if isinstance(place, Path) and _kind(place) != "parquet":
            with suppress(Exception):  # it cannot be read, perhaps: that is the problem then
                problem = utf8_problem(place) or problem
        raise InputError(f"{place}: {problem}") from error


@cache
def _say_once(text: str) -> None:
    """Sources are opened and read more than once."""
    print(text, file=sys.stderr)


def _innermost_reason(error: BaseException) -> str:
    """datasets wraps what happened in 'An error occurred while generating the dataset'."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error)
