"""Where documents come from: the embedded corpus, local files, a dataset on the Hugging Face Hub."""

import ast
import glob
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from harmonic_gpt.errors import InputError

HUB_ALIASES = {"openwebtext": "Skylion007/openwebtext"}
# The Hub's automatic parquet copy of a dataset whose main branch still is a loading script
PARQUET_REVISION = "refs/convert/parquet"
LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# A .txt file has no documents of its own: it is cut near this many characters, where a paragraph ends
TXT_PIECE = 16_000


def documents(source: str, text_column: str = "text") -> Iterator[str]:
    """Stream the documents of a source, in a fixed order.

    Args:
        source: "pydocs"; a file, folder or glob of .txt, .jsonl or .parquet (.jsonl.gz too); or the name of a
            dataset on the Hugging Face Hub ("openwebtext" is short for "Skylion007/openwebtext").
        text_column: the column of .jsonl, .parquet and Hub datasets that holds the text.
    Raises InputError for a source that does not exist or has no such column.
    """
    if source == "pydocs":
        yield from _pydocs()
        return
    files = _local_files(source)
    if files:
        yield from _read_files(files, text_column)
        return
    looks_local = source.startswith((".", "/", "~")) or "*" in source or source.count("/") > 1 or Path(source).suffix in {*LOADERS, ".txt"}
    if looks_local or Path(source).exists():
        raise InputError(f"no .txt, .jsonl or .parquet files at {source!r}")
    yield from _column(_hub_rows(HUB_ALIASES.get(source, source)), text_column, source)


@cache  # parsing takes seconds, and preparing reads a source twice
def _pydocs() -> tuple[str, ...]:
    """English prose that every Python carries: the language reference's topics and the standard library's docstrings.

    Modules are parsed, not imported. A module's docstrings, in source order, make one document. Tests are left out: their
    docstrings are mostly labels.
    """
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(path.relative_to(library).parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # lib2to3 carries files that are wrong on purpose
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [(node, ast.get_docstring(node)) for node in ast.walk(tree) if isinstance(node, documented)]
        found.sort(key=lambda pair: getattr(pair[0], "lineno", 0))
        text = "\n\n".join(doc for _, doc in found if doc)
        if text:
            texts.append(text)
    return tuple(texts)


def _local_files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    return sorted(p for p in found if p.is_file() and _kind(p) is not None)


def _kind(path: Path) -> str | None:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return "text" if suffix == ".txt" else LOADERS.get(suffix)


def _read_files(files: list[Path], text_column: str) -> Iterator[str]:
    for path in files:
        kind = _kind(path)
        if kind is None:
            raise InputError(f"{path}: expected a .txt, .jsonl, .jsonl.gz or .parquet file")
        if path.stat().st_size == 0:  # datasets raises StopIteration on an empty file
            continue
        if kind == "text":
            yield from _txt_pieces(path)
            continue
        yield from _column(_local_rows(kind, path), text_column, str(path))


def _local_rows(kind: str, path: Path) -> Iterator[dict]:
    # A glob character in the path itself would be read as a pattern
    yield from _datasets().load_dataset(kind, data_files=[glob.escape(str(path.resolve()))], split="train", streaming=True)


def _txt_pieces(path: Path) -> Iterator[str]:
    if path.suffix != ".txt":
        raise InputError(f"{path}: compressed .txt files are not read; decompress it, or use .jsonl.gz")
    piece: list[str] = []
    size = 0
    with path.open(encoding="utf-8") as lines:
        try:
            for line in lines:
                piece.append(line)
                size += len(line)
                if (size >= TXT_PIECE and not line.strip()) or size >= 2 * TXT_PIECE:
                    yield "".join(piece)
                    piece, size = [], 0
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: expected UTF-8 text, {error.reason} at byte {error.start} of a line") from None
    if piece:
        yield "".join(piece)


def _datasets():
    try:
        import datasets
    except ImportError:
        raise InputError("reading .jsonl, .parquet and hub datasets needs the datasets library: pip install 'harmonic-gpt[data]'") from None
    return datasets


def _hub_rows(name: str):
    datasets = _datasets()
    try:
        try:
            return datasets.load_dataset(name, split="train", streaming=True)
        except RuntimeError as error:
            if "script" not in str(error).lower():
                raise
            return datasets.load_dataset(name, split="train", streaming=True, revision=PARQUET_REVISION)
    except Exception as error:  # the hub client raises many kinds; each means that there are no documents
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot read {name!r} from the Hugging Face Hub: {reason}. "
            "Offline, give local .txt, .jsonl or .parquet files, or the embedded corpus: --source pydocs"
        ) from None


def _column(rows, text_column: str, source: str) -> Iterator[str]:
    try:
        for row in rows:
            if text_column not in row:
                raise InputError(f"{source}: no column {text_column!r}; it has {', '.join(map(repr, row))}. Set --text-column")
            if not isinstance(row[text_column], str):
                raise InputError(f"{source}: column {text_column!r} holds {type(row[text_column]).__name__}, expected text")
            yield row[text_column]
    except InputError:
        raise
    except Exception as error:  # arrow, gzip and the hub client raise many kinds; each means that the text cannot be read
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{source}: cannot be read: {reason}") from None
