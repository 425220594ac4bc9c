"""The configs that come with the program: configs/ of a checkout, a folder of the package in a wheel."""

import difflib
from pathlib import Path

from harmonic_gpt.errors import InputError

PACKAGE = Path(__file__).parents[1]


def shipped_configs() -> dict[str, Path]:
    """Files by name, without the ending."""
    folder = PACKAGE / "configs"
    if not folder.is_dir():
        folder = PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """The file of that path, or the shipped config of that name. Raises InputError if there is neither."""
    path, shipped = Path(name).expanduser(), shipped_configs()
    if path.exists():
        return path
    if name in shipped:
        return shipped[name]
    close = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"did you mean --config {close[0]}? " if close else ""
    raise InputError(
        f"--config {name}: no such file, nor a config that comes with the program; {hint}Those are {', '.join(shipped)}"
    )
