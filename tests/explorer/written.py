"""What the explorer wrote for its page, read back."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_gpt.explorer.format import DATA


def unpacked(value: dict) -> np.ndarray:
    """The array of what `packed` made."""
    dtype = np.dtype(value["dtype"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(value["base64"]), dtype).reshape(value["shape"])


def read_data(folder: Path, name: str) -> Any:
    """What `write_data` wrote, arrays still packed."""
    text = (folder / DATA / f"{name}.js").read_text(encoding="utf-8")
    return json.loads(text[text.index(",") + 1 : text.rindex(")")])
