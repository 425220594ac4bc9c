"""The files that the page reads: scripts that hand it one JSON value each, since a page opened from the file system may
load scripts and nothing else."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA_VERSION = 1
DATA = "data"
MANIFEST = "manifest"
DTYPES = ("float32", "int32", "uint32", "uint16", "uint8")  # typed arrays of the same name in JavaScript


def packed(array: np.ndarray) -> dict:
    """{"dtype", "shape", "base64"}: an array as little-endian bytes. Raises ValueError for a dtype that the page does
    not read."""
    if array.dtype.name not in DTYPES:
        raise ValueError(f"expected one of {', '.join(DTYPES)}, got {array.dtype}")
    data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": base64.b64encode(data).decode()}


def token_ids(array: Any, vocab_size: int) -> np.ndarray:
    """Token ids in the smallest dtype that holds the vocabulary."""
    return np.asarray(array).astype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def to_json(value: Any) -> str:
    """JSON in which every array is `packed`. Raises ValueError for NaN or infinity outside of arrays."""

    def encode(inner: Any) -> Any:
        if isinstance(inner, np.ndarray):
            return packed(inner)
        if isinstance(inner, np.generic):
            return inner.item()
        raise TypeError(f"cannot be written as JSON: {type(inner).__name__}")

    return json.dumps(value, default=encode, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def write_data(folder: Path, name: str, value: Any) -> None:
    """`folder`/data/`name`.js: calls the page's `explorer.receive(name, value)`."""
    path = folder / DATA / f"{name}.js"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"explorer.receive({json.dumps(name)},{to_json(value)})\n", encoding="utf-8")
