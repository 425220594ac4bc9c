"""Everything that is to be measured on a GPU, in stages of less than eight minutes:

    python -m benchmarks.gpu.run                    # all stages that this device and code have no rows of yet
    python -m benchmarks.gpu.run head step          # some of them
    python -m benchmarks.gpu.run --toy --out /tmp/toy.jsonl      # at the smallest size on the CPU: does it run at all?

A stage is a process of its own with a time limit. Its measurements are appended to --out as JSON lines, each as soon as
it is there; the same command goes on with what is missing. A failure is a row with an `error`, and the next stage runs.
Needs no network. Exit code: 0, 1 if something failed, 2 if there is no device.
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.gpu import head, pair, products, step, tests
from benchmarks.gpu.device import code_of, describe, facts
from benchmarks.gpu.goals import goals
from benchmarks.gpu.settings import ROOT, Settings
from harmonic_gpt.files import read_jsonl
from harmonic_gpt.model.harmonic_loss_cuda import WITHOUT_KERNEL

STAGE_SECONDS = 450  # then it is asked to stop, and half a minute later it is killed
GRACE_SECONDS = 25  # a run in training writes its checkpoint
OUT = ROOT / "docs" / "results" / "gpu.jsonl"
WORK = ROOT / "runs" / "gpu"

Measurements = dict[str, Callable[[], list[dict]]]


class Stage(NamedTuple):
    """measurements(settings, earlier rows): what there is to measure. columns: of its table, with their formats."""

    measurements: Callable[[Settings, list[dict]], Measurements]
    columns: dict[str, str]


def _alone(measurements: Callable[[Settings], Measurements]) -> Callable[[Settings, list[dict]], Measurements]:
    return lambda settings, _earlier: measurements(settings)


STAGES = {
    "tests": Stage(_alone(tests.measurements), tests.COLUMNS),
    "products": Stage(_alone(products.measurements), products.COLUMNS),
    "head": Stage(_alone(head.measurements), head.COLUMNS),
    "step": Stage(_alone(step.measurements), step.COLUMNS),
    "pair-harmonic": Stage(partial(pair.measurements, head="harmonic"), pair.COLUMNS),
    "pair-standard": Stage(partial(pair.measurements, head="standard"), pair.COLUMNS),
}


class Results:
    """The rows of --out that one device has for one state of the code. Others stay in the file and are not read."""

    def __init__(self, out: Path, settings: Settings):
        self.out, self.settings = out, settings
        for folder in (out.parent, settings.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.identity = {"device": facts(settings.device)["device"], "toy": settings.toy} | code_of(ROOT)

    def attempts(self) -> dict[tuple[str, str], list[dict]]:
        """Rows of the newest attempt at each (stage, measurement)."""
        newest: dict[tuple[str, str], list[dict]] = {}
        for row in read_jsonl(self.out):
            if all(row.get(key) == self.identity[key] for key in ("device", "code", "toy")):
                rows = newest.setdefault((row["stage"], row["measurement"]), [])
                if rows and rows[0]["date"] != row["date"]:
                    rows.clear()
                rows.append(row)
        return newest

    def rows(self) -> list[dict]:
        """Those of finished measurements."""
        return [row for rows in self.attempts().values() if not _failed(rows) for row in rows]

    def pending(self, stage: str) -> list[str]:
        """Names of a stage's measurements that are not finished; those that failed last time come last."""
        attempts = self.attempts()
        names = [name for name in self.measurements(stage) if _failed(attempts.get((stage, name), [{"error": ""}]))]
        return sorted(names, key=lambda name: (stage, name) in attempts)

    def measurements(self, stage: str) -> Measurements:
        return STAGES[stage].measurements(self.settings, self.rows())

    def append(self, rows: list[dict], **common: object) -> None:
        """All rows of one attempt, or none."""
        common = common | facts(self.settings.device) | self.identity
        with self.out.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(common | row) + "\n" for row in rows))


def _failed(rows: list[dict]) -> bool:
    return any("error" in row for row in rows)


def measure(stages: list[str], settings: Settings, out: Path, isolate: bool = True) -> int:
    """Every stage that is asked for and not finished, with `isolate` in a process of its own; then the table.

    Returns 0, or 1 if a measurement is not finished at the end.
    """
    results = Results(out, settings)
    print(", ".join(f"{key} {value}" for key, value in (facts(settings.device) | results.identity).items() if value))
    for stage in stages:
        pending = results.pending(stage)
        print(f"{stage:<14}{'; '.join(pending) or 'finished'}", flush=True)
    for stage in stages:
        if not results.pending(stage):
            continue
        print(f"\n== {stage}", flush=True)
        if not isolate:
            run_stage(stage, results)
        elif error := run_process(_command(stage, settings, out), STAGE_SECONDS):
            print(f"{stage}: {error}", file=sys.stderr)
            results.append([{"error": error}], stage=stage, measurement="the stage")
    print(summary(results))
    return 1 if any(results.pending(stage) for stage in stages) else 0


def _command(stage: str, settings: Settings, out: Path) -> list[str]:
    options = {"--out": out, "--work": settings.work, "--data": settings.data, "--nanogpt": settings.nanogpt}
    given = [text for name, value in options.items() if value is not None for text in (name, str(value))]
    return [sys.executable, "-m", "benchmarks.gpu.run", stage, "--child", *given, *(["--toy"] if settings.toy else [])]


def run_process(command: list[str], limit: float) -> str | None:
    """Run a stage's process to its end, at most `limit` seconds and the time to stop; None, or what went wrong."""
    environment = os.environ | {"PYTHONWARNINGS": f"error:{WITHOUT_KERNEL}:RuntimeWarning"}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = child.wait(limit)
        return None if code in (0, 1) else f"its process ended with exit code {code}"
    except subprocess.TimeoutExpired:
        _signal_all(child, signal.SIGTERM)
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            print("it does not stop: killed", file=sys.stderr)
        return f"stopped after {limit:g} s; the same command goes on with what is missing"
    finally:  # also after Ctrl-C: what the stage started goes with it
        _signal_all(child, signal.SIGKILL)
        child.wait()


def _signal_all(child: subprocess.Popen, number: signal.Signals) -> None:
    """To a process and to all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def run_stage(stage: str, results: Results) -> bool:
    """The pending measurements of a stage, in this process. False if one failed."""
    good = True
    for name in results.pending(stage):
        print(f"-- {name}", flush=True)
        call, started = results.measurements(stage)[name], time.perf_counter()
        with torch.compiler.set_stance("force_eager") if results.settings.toy else nullcontext():
            try:
                rows = call()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is recorded, and the next one runs
                traceback.print_exc()
                rows = [{"error": describe(error)}]
        good = good and not _failed(rows)
        results.append(rows, stage=stage, measurement=name, seconds=round(time.perf_counter() - started, 1))
        if any(WITHOUT_KERNEL in row.get("error", "") for row in rows):
            break  # what this process measures from here on would be the fallback
        gc.collect()
        if not results.settings.toy:
            torch.cuda.synchronize()  # after an error from which the device does not recover it raises: the stage ends
            torch.cuda.empty_cache()
    return good


def summary(results: Results) -> str:
    """A table of each stage, what failed, and the goals."""
    attempts, lines = results.attempts(), []
    for stage, (_, columns) in STAGES.items():
        rows = [row for (its_stage, _), rows in attempts.items() if its_stage == stage for row in rows]
        unfinished = {measurement for (_, measurement), rows in attempts.items() if _failed(rows)}
        good = [row | {"unfinished": row["measurement"] in unfinished or None} for row in rows if "error" not in row]
        if table := _table(good, columns | {"unfinished": ""}):
            lines += ["", stage, *table]
        if results.pending(stage):
            lines += [f"{stage}: {row['measurement']}: {row['error']}" for row in rows if "error" in row]
    lines += ["", *map(str, goals(results.rows()))]
    if "H100" not in results.identity["device"]:
        lines.append(f"The goals are for one H100; this is {results.identity['device']}.")
    return "\n".join(lines)


def _table(rows: list[dict], columns: dict[str, str]) -> list[str]:
    """Lines of the columns that some row has."""
    names = [name for name in columns if any(row.get(name) is not None for row in rows)]
    cells = [names, *([_cell(row.get(name), columns[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return lines if names else []


def _cell(value: object, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list | dict):
        return ", ".join(map(str, value))[:60]
    return format(value, form) if form else str(value)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"default: all. {', '.join(STAGES)}")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON lines, appended")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for runs and token files")
    parser.add_argument("--data", type=Path, help="token folder of the pair; default: the embedded corpus")
    parser.add_argument("--nanogpt", type=Path, help="nanoGPT's model.py, to measure it instead of a model like it")
    parser.add_argument("--toy", action="store_true", help="the smallest sizes, on the CPU")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if unknown := [stage for stage in args.stages if stage not in STAGES]:
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if args.toy:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the stages' processes too: where it sees a GPU our code takes it
    elif not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is false; --toy runs on the CPU", file=sys.stderr)
        return 2
    data, nanogpt = (path and path.resolve() for path in (args.data, args.nanogpt))
    settings = Settings(args.work.resolve(), args.toy, data, nanogpt)
    out = args.out.resolve()
    if args.child:
        return 0 if run_stage(args.stages[0], Results(out, settings)) else 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of run_process's end
    return measure(args.stages or list(STAGES), settings, out)


if __name__ == "__main__":
    sys.exit(main())
