"""Short names that tell things of the same name apart."""

from collections.abc import Sequence
from pathlib import Path

from harmonic_gpt.errors import InputError


def distinct_names(names: Sequence[str], paths: Sequence[str | Path]) -> list[str]:
    """`names`; where several have one, the end of each one's path instead, with as many folders as tell them apart.

    Raises InputError if not even the whole paths do.
    """
    parts = [Path(path).parts for path in paths]
    distinct = list(names)
    for depth in range(2, max(map(len, parts), default=0) + 1):
        distinct = [
            str(Path(*part[-depth:])) if distinct.count(name) > 1 else name
            for name, part in zip(distinct, parts, strict=True)
        ]
    if repeated := sorted({name for name in distinct if distinct.count(name) > 1}):
        raise InputError(f"expected different names, got {', '.join(repeated)} more than once; name each one once")
    return distinct
