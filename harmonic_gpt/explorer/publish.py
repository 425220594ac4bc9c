"""An explorer as a static Space on the Hugging Face Hub."""

import sys
from pathlib import Path

from harmonic_gpt.errors import InputError
from harmonic_gpt.explorer.build import is_explorer
from harmonic_gpt.runs.hub import MAIN, upload_checkpoint


def push_space(folder: str | Path, space: str, *, private: bool = False) -> str:
    """Publish a folder of `explore` in one commit. Returns the commit's address.

    Raises InputError for another folder, and as `upload_checkpoint`.
    """
    folder = Path(folder).expanduser()
    if not is_explorer(folder):
        raise InputError(f"{folder}: expected a folder of `eval.py explore`")
    return upload_checkpoint(folder, space, revision=MAIN, private=private, progress=sys.stderr.isatty(), space=True)
