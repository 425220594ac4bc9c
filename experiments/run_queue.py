"""Train a queue of experiments, a few single-threaded runs side by side, and keep what each one measured.

    python experiments/run_queue.py --out docs/results/recipe.jsonl
    python experiments/report.py docs/results/recipe.jsonl

The form of a queue file: README.md. One JSON line per finished run goes to --out. Runs that are there already are
skipped, so the queue may be stopped and started again at any time; a run that was cut off is repeated. The file is read
anew before every run: edit it while the queue is working.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Condition

from filelock import FileLock, Timeout
from queue_file import losses_of, read_queue, run_config

from harmonic_gpt.errors import InputError
from harmonic_gpt.files import read_jsonl
from harmonic_gpt.runs.metrics import read_metrics

QUEUE = Path(__file__).with_name("queue.yaml")
RISE_WINDOW = 20  # steps whose median loss a rise is measured against


def train_one(run: dict, folder: Path) -> dict:
    """Train one run in `folder` (emptied first) by the product's own code; returns its row."""
    import torch  # slow to import, and the queue itself does without
    from reading import reading
    from trials import apply_trial
    from uses import uses

    from harmonic_gpt.training import loop

    shutil.rmtree(folder, ignore_errors=True)
    config = run_config(run, folder)
    started = time.perf_counter()
    state = loop.setup(config, resume=False)
    measured = apply_trial(state, run["trial"])
    if loop.fit(state) != 0:
        raise SystemExit("stopped by a signal: the run will be repeated")
    trained = state.bare_model, state.data.tokens("val")
    rows = read_metrics(folder)
    validation = [row for row in rows if "val_loss" in row]
    training = [row for row in rows if "grad_norm" in row]
    norms = [(row["step"], row["center_norm_mean"], row["center_norm_std"]) for row in validation]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=QUEUE.parent)
    return {key: value for key, value in run.items() if key not in ("keep", "read")} | {
        "val_loss": validation[-1]["val_loss"],
        "val_tokens": validation[-1]["val_tokens"],
        "curve": [[row["step"] * config.train.batch_tokens, round(row["val_loss"], 5)] for row in validation],
        "training": stability(training, config.optim.warmup_steps, config.optim.grad_clip),
        "center_norms": [[step, round(mean, 4), round(std, 4)] for step, mean, std in norms],
        "measured": measured(),
        **({"reading": reading(*trained)} if run["read"] else {}),
        **({"uses": uses(*trained)} if run["read"] is True else {}),
        "seconds": round(time.perf_counter() - started, 1),
        "tokens_per_second": round(statistics.median(row["tokens_per_second"] for row in training)),
        "parameters": sum(p.numel() for p in state.bare_model.parameters()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
    }


def stability(rows: list[dict], warmup: int, clip: float) -> dict:
    """How calmly a run trained, from its rows of metrics (one per logged step), warmup left out.

    largest_rise: training loss above the median of the RISE_WINDOW rows before, in nats per token. spikes: as many as
    training warns of. Norms are of the whole gradient, before clipping.
    """
    from harmonic_gpt.training.tracking import SpikeDetector

    losses = [row["loss"] for row in rows]
    calm = next((i for i, row in enumerate(rows) if row["step"] > warmup), len(rows))
    norms = [row["grad_norm"] for row in rows[calm:]]
    rises = [
        losses[i] - statistics.median(losses[i - RISE_WINDOW : i]) for i in range(max(calm, RISE_WINDOW), len(rows))
    ]
    return {
        "grad_norm_median": round(statistics.median(norms), 4),
        "grad_norm_max": round(max(norms), 4),
        "clipped_share": round(sum(norm > clip for norm in norms) / len(norms), 4),
        "largest_rise": round(max(rises, default=0.0), 4),
        "spikes": sum(map(SpikeDetector().is_spike, losses[calm:])),
    }


def work(queue: Path, out: Path, folder: Path, jobs: int) -> None:
    """Run the queue to its end, `jobs` runs at a time, in folders under `folder`."""
    changed, taken, running, stopping = Condition(), set(), set(), False
    runs = read_queue(queue)
    if out.exists() and not out.read_bytes().endswith(b"\n"):  # a line cut short: the next one is not appended to it
        with out.open("a", encoding="utf-8") as file:
            file.write("\n")

    def left() -> list[dict]:
        nonlocal runs
        rows = read_jsonl(out)
        try:
            runs = read_queue(queue, losses_of(rows))
        except InputError as error:  # saved half-way, or a mistake: hours of other runs need not wait for it
            print(f"warning: {error}; going on with the queue as it was", flush=True)
        return [run for run in not_done(runs, rows) if run["key"] not in taken]

    def next_run() -> dict | None:
        with changed:
            while not (runs_left := left()) and running and not stopping:
                changed.wait()  # a search may ask for more once it knows what is being trained now
            if stopping or not runs_left:
                return None
            run = runs_left[0]
            taken.add(run["key"])
            running.add(run["key"])
            print(f"{datetime.now(UTC):%H:%M:%S} starts, {len(runs_left)} left: {describe(run)}", flush=True)
            return run

    def worker(_: int) -> None:
        while (run := next_run()) is not None:
            command = [sys.executable, __file__, "--one", json.dumps(run), "--runs", folder]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            with changed:
                running.discard(run["key"])
                changed.notify_all()
                if done.returncode:  # not tried again before the next start of the queue
                    print(f"FAILED {describe(run)}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
                    continue
                row = json.loads(done.stdout.splitlines()[-1])
                if not run["keep"]:
                    shutil.rmtree(folder / run["key"], ignore_errors=True)
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{row['val_loss']:.4f} in {row['seconds']:.0f} s  {describe(run)}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(worker, range(jobs)))
        finally:  # Ctrl-C reaches the runs as well; no further one is started
            stopping = True


def not_done(runs: list[dict], rows: list[dict]) -> list[dict]:
    """Runs without a row; also those whose row lacks the measures of reading that are asked for: trained again."""
    asked = {False: set(), "reading": {"reading"}, True: {"reading", "uses"}}
    has = {}
    for row in rows:
        has[row["key"]] = has.get(row["key"], set()) | row.keys()
    return [run for run in runs if run["key"] not in has or not asked[run["read"]] <= has[run["key"]]]


def describe(run: dict) -> str:
    """A run in one line: size, arm, its own settings, seed."""
    settings = [f"{name.split('.')[-1]}={value}" for name, value in (run["set"] | run["trial"]).items()]
    return " ".join([run["size"], run["arm"], *settings, f"seed={run['seed']}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queue", type=Path, default=QUEUE)
    parser.add_argument("--out", type=Path, help="file of JSON lines")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="folder for run folders")
    parser.add_argument("--list", action="store_true", help="print what is left to train, and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # how the queue starts a run
    args = parser.parse_args()
    if args.one:
        run = json.loads(args.one)
        print(json.dumps(train_one(run, args.runs / run["key"])))
        return
    if args.out is None:
        parser.error("--out is missing")
    try:
        if args.list:
            rows = read_jsonl(args.out)
            left = [describe(run) for run in not_done(read_queue(args.queue, losses_of(rows)), rows)]
            print(f"{len(left)} runs left", *left, sep="\n")
            return
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(args.out.with_suffix(".lock"), blocking=False):
            work(args.queue, args.out, args.runs, args.jobs)
    except InputError as error:
        parser.error(str(error))
    except Timeout:
        parser.error(f"another queue is writing {args.out}")


if __name__ == "__main__":
    main()
