"""Train a queue of experiments, a few single-threaded runs side by side, and keep what each one measured.

    python experiments/run_queue.py --out docs/results/recipe.jsonl
    python experiments/report.py docs/results/recipe.jsonl

The form of a queue file: README.md. One JSON line per finished run goes to --out. Runs that are there already are
skipped, so the queue may be stopped and started again at any time; a run that was cut off is repeated. The file is read
anew before every run: edit it while the queue is working.
"""

import argparse
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
from filelock import FileLock, Timeout

from harmonic_gpt.errors import InputError
from harmonic_gpt.files import read_jsonl
from harmonic_gpt.run_config import RunConfig, load_run_config
from harmonic_gpt.runs.metrics import read_metrics

QUEUE = Path(__file__).with_name("queue.yaml")
RISE_WINDOW = 20  # steps whose median loss a rise is measured against
# Under the names of version 0.2, by which finished runs are known: see `key_of`
HEADS = {
    "harmonic": {"model.similarity": "euclidean", "model.normalization": "harmax"},
    "standard": {"model.similarity": "dot", "model.normalization": "softmax"},
}
BLOCK_KEYS = {"question", "why", "sizes", "arms", "configs", "set", "each", "vary", "seeds", "keep"}


def read_queue(path: Path) -> list[dict]:
    """All runs of a queue file in its order, each once. Raises InputError for a mistake in any of them.

    A run: question, size, head, set (its settings beyond base, size and head), trial, seed, settings (overrides of
    RunConfig, all of them), config (file that they override, or None), keep (its folder stays when it is done), and
    key, which identifies what is trained, whatever the question that asked for it: one run may answer several.
    """
    try:
        queue = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the queue {path}: {error}") from error
    if not isinstance(queue, dict) or not isinstance(queue.get("experiments"), list):
        raise InputError(f"{path}: expected a list `experiments:`")
    runs: dict[str, dict] = {}
    for block in queue["experiments"]:
        try:
            if unknown := block.keys() - BLOCK_KEYS:
                raise InputError(f"unknown {sorted(unknown)}; expected some of {sorted(BLOCK_KEYS)}")
            for run in _runs_of(block, queue):
                runs.setdefault(run["key"], run)
        except KeyError as error:
            raise InputError(f"{path}: experiment {block.get('question')!r}: {error} is missing") from error
        except InputError as error:
            raise InputError(f"{path}: experiment {block.get('question')!r}: {error}") from error
    return list(runs.values())


def _runs_of(block: dict, queue: dict) -> list[dict]:
    """The runs of one experiment: sizes, then settings, then seeds, and the heads in turn."""
    if "configs" in block:
        groups = [[_start_from_config(name) for name in block["configs"]]]
    else:
        groups = [[_start_from_arm(queue, arm, size) for arm in block["arms"]] for size in block["sizes"]]
    axes = [[{name: value} for value in values] for name, values in block.get("vary", {}).items()]
    points = [block.get("set", {}) | each for each in block.get("each", [{}])]
    runs = []
    for starts in groups:
        for (point, *varied), seed in itertools.product(itertools.product(points, *axes), block.get("seeds", [0])):
            for start in starts:
                chosen = start["set"] | point
                for one in varied:
                    chosen = chosen | one
                trial = {name.removeprefix("trial."): v for name, v in chosen.items() if name.startswith("trial.")}
                chosen = {name: v for name, v in chosen.items() if not name.startswith("trial.")}
                run = {key: start[key] for key in ("size", "head", "config")} | {"question": block["question"]}
                run |= {"set": chosen, "trial": trial, "seed": seed, "settings": start["settings"] | chosen}
                run_config(run)  # a wrong setting is found before the first run
                runs.append(run | {"key": key_of(run), "keep": block.get("keep", False)})
    return runs


def _start_from_arm(queue: dict, name: str, size: str) -> dict:
    """An arm at a size: its settings before the experiment's own."""
    arm = queue["arms"][name]
    settings = queue["base"] | queue["sizes"][size] | HEADS.get(arm["head"], {"model.head": arm["head"]})
    return {"size": size, "head": arm["head"], "config": None, "settings": settings, "set": arm["set"] | arm[size]}


def _start_from_config(path: str) -> dict:
    """A config file, before the experiment's settings. Its size and head are named like the others."""
    model = load_run_config(path).model
    return {"size": f"{model.n_layer}x{model.n_embd}", "head": model.head, "config": path, "settings": {}, "set": {}}


def key_of(run: dict) -> str:
    """Identifies what is trained: settings, what the config file says, trial, seed.

    Where the corpus lies does not matter: of data.dir only the folder's own name counts.
    """
    settings = {name: Path(v).name if name == "data.dir" else v for name, v in run["settings"].items()}
    trial = dict(run["trial"])
    if "train.label_smoothing" in settings:  # was a trial when the first runs had it
        trial["label_smoothing"] = settings.pop("train.label_smoothing")
    identity = [settings, trial, run["seed"]]
    if run["config"]:
        content = yaml.safe_load(Path(run["config"]).read_text(encoding="utf-8"))
        if (head := content.get("model", {}).get("head")) in HEADS:
            del content["model"]["head"]
            content["model"] |= {name.removeprefix("model."): value for name, value in HEADS[head].items()}
        identity.append(content)
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def run_config(run: dict, folder: str | Path = "runs/run") -> RunConfig:
    """The configuration of a run in `folder`. Raises InputError."""
    overrides = [f"--{name}={json.dumps(value)}" for name, value in run["settings"].items()]
    return load_run_config(run["config"], [*overrides, f"--run_dir={folder}", f"--seed={run['seed']}"])


def train_one(run: dict, folder: Path) -> dict:
    """Train one run in `folder` (emptied first) by the product's own code; returns its row."""
    import torch  # slow to import, and the queue itself does without
    from trials import apply_trial

    from harmonic_gpt.training import loop

    shutil.rmtree(folder, ignore_errors=True)
    config = run_config(run, folder)
    started = time.perf_counter()
    state = loop.setup(config, resume=False)
    measured = apply_trial(state, run["trial"])
    if loop.fit(state) != 0:
        raise SystemExit("stopped by a signal: the run will be repeated")
    rows = read_metrics(folder)
    validation = [row for row in rows if "val_loss" in row]
    training = [row for row in rows if "grad_norm" in row]
    norms = [(row["step"], row["center_norm_mean"], row["center_norm_std"]) for row in validation]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=QUEUE.parent)
    return {key: value for key, value in run.items() if key != "keep"} | {
        "val_loss": validation[-1]["val_loss"],
        "val_tokens": validation[-1]["val_tokens"],
        "curve": [[row["step"] * config.train.batch_tokens, round(row["val_loss"], 5)] for row in validation],
        "training": stability(training, config.optim.warmup_steps, config.optim.grad_clip),
        "center_norms": [[step, round(mean, 4), round(std, 4)] for step, mean, std in norms],
        "measured": measured(),
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
    lock, taken, stopping = Lock(), set(), False
    runs = read_queue(queue)
    if out.exists() and not out.read_bytes().endswith(b"\n"):  # a line cut short: the next one is not appended to it
        with out.open("a", encoding="utf-8") as file:
            file.write("\n")

    def next_run() -> dict | None:
        nonlocal runs
        with lock:
            try:
                runs = read_queue(queue)
            except InputError as error:  # saved half-way, or a mistake: hours of other runs need not wait for it
                print(f"warning: {error}; going on with the queue as it was", flush=True)
            done = {row["key"] for row in read_jsonl(out)} | taken
            left = [run for run in runs if run["key"] not in done]
            if stopping or not left:
                return None
            taken.add(left[0]["key"])
            print(f"{datetime.now(UTC):%H:%M:%S} starts, {len(left)} left: {describe(left[0])}", flush=True)
            return left[0]

    def worker(_: int) -> None:
        while (run := next_run()) is not None:
            command = [sys.executable, __file__, "--one", json.dumps(run), "--runs", folder]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            with lock:
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


def describe(run: dict) -> str:
    """A run in one line: size, head, its own settings, seed."""
    settings = [f"{name.split('.')[-1]}={value}" for name, value in (run["set"] | run["trial"]).items()]
    return " ".join([run["size"], run["head"], *settings, f"seed={run['seed']}"])


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
            done = {row["key"] for row in read_jsonl(args.out)}
            left = [describe(run) for run in read_queue(args.queue) if run["key"] not in done]
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
