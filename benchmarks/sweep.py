"""Train a grid of settings, a few single-threaded runs side by side, and keep every final loss.

    python benchmarks/sweep.py --config configs/quickstart_harmonic.yaml --config configs/quickstart_standard.yaml \
        --set optim.lr=2e-3,4e-3 --seeds 0,1,2 --out docs/results/quickstart.jsonl

Every combination of --config, --set values and --seeds is one run of train.py; one JSON line a run goes to --out. Runs that are
there already are skipped, so an interrupted sweep continues. Ends with a table: mean and spread over seeds.
"""

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

from harmonic_gpt.run_config import load_run_config
from harmonic_gpt.training.tracking import read_metrics

ROOT = Path(__file__).parents[1]


def run(key: dict, overrides: list[str], threads: int) -> dict:
    """One training run in a temporary folder; its key and final numbers."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, ROOT / "train.py", "--config", key["config"], f"--run_dir={run_dir}", f"--seed={key['seed']}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        done = subprocess.run([*command, *overrides], env=environment, capture_output=True, text=True)
        rows = read_metrics(run_dir)
        curve = [[row["step"], row["val_loss"]] for row in rows if "val_loss" in row]
        if done.returncode:
            return key | {"failed": done.stderr.strip().splitlines()[-1]}
        speed = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
        last = [row for row in rows if "val_loss" in row][-1]
        return key | {
            "val_loss": last["val_loss"],
            "val_tokens": last["val_tokens"],
            "curve": curve,
            "tokens_per_second": mean(speed),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=V1,V2", help="values of one setting to try")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    axes = [[(name, value) for value in values.split(",")] for name, _, values in (item.partition("=") for item in args.set)]
    grid = [
        {"config": config, "config_sha256": hashlib.sha256(Path(config).read_bytes()).hexdigest()[:12], "seed": int(seed), **dict(point)}
        for config, point, seed in itertools.product(args.config, itertools.product(*axes), args.seeds.split(","))
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    results = [result for result in results if "val_loss" in result]  # what failed is tried again
    known = [{k: result.get(k) for k in grid[0]} for result in results]
    todo = [key for key in grid if key not in known]
    print(f"{len(grid)} runs, {len(grid) - len(todo)} done already", file=sys.stderr)
    jobs = []
    for key in todo:
        overrides = [f"--{name}={value}" for name, value in key.items() if name not in ("config", "config_sha256", "seed")]
        load_run_config(key["config"], overrides)  # a wrong setting fails before the first run
        jobs.append((key, overrides, args.threads))
    with ThreadPoolExecutor(args.jobs) as pool, args.out.open("a") as out:
        for result in pool.map(lambda job: run(*job), jobs):
            results.append(result)
            out.write(json.dumps(result) + "\n")
            out.flush()
            shown = {k: v for k, v in result.items() if k != "curve"}
            print(json.dumps(shown), file=sys.stderr)

    groups: dict[str, list[float]] = {}
    for result in results:
        label = "  ".join(f"{k}={v}" for k, v in result.items() if k in grid[0] and k != "seed")
        groups.setdefault(label, []).extend([result["val_loss"]] if "val_loss" in result else [])
    for label, losses in sorted(groups.items()):
        if not losses:
            print(f"{label}  every run failed")
            continue
        spread = f"+- {stdev(losses):.4f}" if len(losses) > 1 else ""
        print(f"{label}  seeds {len(losses)}  validation {mean(losses):.4f} {spread}")


if __name__ == "__main__":
    main()
