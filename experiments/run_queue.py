"""Train the queue of experiments in recipe_grid.yaml, a few single-threaded runs side by side, and keep what each one measured.

    python benchmarks/recipe.py --out docs/results/recipe.jsonl
    python benchmarks/recipe_report.py docs/results/recipe.jsonl

One JSON line a finished run goes to --out. Runs that are there already are skipped, so the queue may be killed and started again at any
time; a run that was cut off is repeated. The grid is read anew before every run: edit it while the queue is working.
"""

import argparse
import fcntl
import hashlib
import itertools
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
from threading import Lock

import yaml

GRID = Path(__file__).with_name("recipe_grid.yaml")
RISE_WINDOW = 20  # steps whose median loss a rise is measured against


def read_grid(path: Path) -> list[dict]:
    """All runs of a grid file, in the order of the queue. Each: question, size, head, set, trial, seed, keep, key.

    `set` are the overrides of RunConfig that this experiment makes beyond base, size and head; `settings` are all of them together.
    `keep`: the run folder stays when the run is done, for eval.py. `key` identifies what is trained, whatever the question that
    asked for it: one run may answer several.
    """
    grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    runs, seen = [], set()
    for entry in grid["experiments"]:
        axes = [[(name, value) for value in values] for name, values in entry.get("vary", {}).items()]
        for point, seed in itertools.product(itertools.product(*axes), entry.get("seeds", [0])):
            chosen = entry.get("set", {}) | dict(point)
            trial = entry.get("trial", {}) | {k.removeprefix("trial."): v for k, v in chosen.items() if k.startswith("trial.")}
            chosen = {k: v for k, v in chosen.items() if not k.startswith("trial.")}
            settings = grid["base"] | grid["sizes"][entry["size"]] | grid["heads"][entry["head"]] | chosen
            identity = json.dumps([settings, trial, seed], sort_keys=True)
            key = hashlib.sha256(identity.encode()).hexdigest()[:12]
            if key not in seen:
                seen.add(key)
                runs.append(
                    {"key": key, "question": entry["question"], "size": entry["size"], "head": entry["head"]}
                    | {"set": chosen, "trial": trial, "seed": seed, "settings": settings, "keep": entry.get("keep", False)}
                )
    return runs


def train_one(item: dict, folder: Path) -> dict:
    """Train one run in `folder` (emptied first) by the product's own code; returns its row."""
    import torch  # slow to import, and the queue itself does without

    from harmonic_gpt.run_config import load_run_config
    from harmonic_gpt.training import loop
    from harmonic_gpt.training.tracking import read_metrics

    sys.path.insert(0, str(Path(__file__).parent))
    from recipe_trials import apply_trial

    shutil.rmtree(folder, ignore_errors=True)
    overrides = [f"--{name}={json.dumps(value)}" for name, value in item["settings"].items()]
    config = load_run_config(None, [f"--run_dir={folder}", f"--seed={item['seed']}", *overrides])
    started = time.perf_counter()
    run = loop.setup(config, resume=False)
    measured = apply_trial(run, item["trial"])
    if loop.fit(run) != 0:
        raise SystemExit("stopped by a signal: the run will be repeated")
    rows = read_metrics(folder)
    validation = [row for row in rows if "val_loss" in row]
    training = [row for row in rows if "grad_norm" in row]
    return {k: v for k, v in item.items() if k not in ("settings", "keep")} | {
        "val_loss": validation[-1]["val_loss"],
        "val_tokens": validation[-1]["val_tokens"],
        "curve": [[row["step"] * config.train.batch_tokens, round(row["val_loss"], 5)] for row in validation],
        "training": stability(training, config.optim.warmup_steps, config.optim.grad_clip),
        "center_norms": [[row["step"], round(row["center_norm_mean"], 4), round(row["center_norm_std"], 4)] for row in validation],
        "measured": measured(),
        "seconds": round(time.perf_counter() - started, 1),
        "tokens_per_second": round(statistics.median(row["tokens_per_second"] for row in training)),
        "parameters": sum(p.numel() for p in run.bare_model.parameters()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
        ).stdout.strip(),
        "torch": torch.__version__,
    }


def stability(rows: list[dict], warmup: int, clip: float) -> dict:
    """How calmly a run trained, from its rows of metrics (one a step, warmup left out).

    rise: training loss above the median of the RISE_WINDOW steps before, in nats. Spikes are those that training warns of.
    """
    from harmonic_gpt.training.spikes import SpikeDetector

    losses = [row["loss"] for row in rows]
    norms = [row["grad_norm"] for row in rows if row["step"] > warmup]
    rises = [losses[i] - statistics.median(losses[i - RISE_WINDOW : i]) for i in range(max(warmup, RISE_WINDOW), len(losses))]
    return {
        "grad_norm_median": round(statistics.median(norms), 4),
        "grad_norm_max": round(max(norms), 4),
        "clipped_share": round(sum(norm > clip for norm in norms) / len(norms), 4),
        "largest_rise": round(max(rises, default=0.0), 4),
        "spikes": sum(map(SpikeDetector().is_spike, losses[warmup:])),
    }


def read_results(path: Path) -> list[dict]:
    """Rows of finished runs; a line cut short by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def work(args: argparse.Namespace) -> None:
    """Run the queue to its end, `args.jobs` at a time."""
    lock, busy, failed = Lock(), set(), set()

    def next_run() -> dict | None:
        with lock:
            done = {row["key"] for row in read_results(args.out)} | busy | failed
            left = [item for item in read_grid(args.grid) if item["key"] not in done]
            if left:
                busy.add(left[0]["key"])
                print(f"{datetime.now(UTC):%H:%M:%S} starts, {len(left)} left: {describe(left[0])}", flush=True)
            return left[0] if left else None

    def worker(_: int) -> None:
        while (item := next_run()) is not None:
            command = [sys.executable, __file__, "--one", json.dumps(item), "--runs", args.runs]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            with lock:
                busy.discard(item["key"])
                if done.returncode:
                    failed.add(item["key"])  # not tried again before the next start of the queue
                    print(f"FAILED {describe(item)}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
                    continue
                row = json.loads(done.stdout.splitlines()[-1])
                if not item["keep"]:
                    shutil.rmtree(Path(args.runs) / item["key"], ignore_errors=True)
                with args.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
                print(f"{row['val_loss']:.4f} in {row['seconds']:.0f} s  {describe(item)}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(worker, range(args.jobs)))


def describe(item: dict) -> str:
    """A run in one line: size, head, its own settings, seed."""
    settings = [f"{name.split('.')[-1]}={value}" for name, value in (item["set"] | item["trial"]).items()]
    return " ".join([item["size"], item["head"], *settings, f"seed={item['seed']}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, default=GRID)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--runs", default="runs/recipe", help="folder for run folders")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # how the queue starts a run
    args = parser.parse_args()
    if args.one:
        item = json.loads(args.one)
        print(json.dumps(train_one(item, Path(args.runs) / item["key"])))
        return
    if args.out is None:
        parser.error("--out is missing")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another queue is writing {args.out}") from None
        work(args)


if __name__ == "__main__":
    main()
