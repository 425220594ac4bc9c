"""metrics.jsonl: one row a logged step of a run."""

from pathlib import Path

from harmonic_gpt.files import read_jsonl

METRICS = "metrics.jsonl"


def read_metrics(run_dir: str | Path) -> list[dict]:
    """Rows of a run; a last line cut short by a crash is left out."""
    return read_jsonl(Path(run_dir) / METRICS)
