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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Condition

import yaml
from filelock import FileLock, Timeout
from search import Point, Search, search

from harmonic_gpt.errors import InputError
from harmonic_gpt.files import read_jsonl
from harmonic_gpt.run_config import RunConfig, load_run_config
from harmonic_gpt.runs.metrics import read_metrics

QUEUE = Path(__file__).with_name("queue.yaml")
RISE_WINDOW = 20  # steps whose median loss a rise is measured against
MIN_SEEDS = 2  # of a certificate
# Under the names of version 0.2, by which finished runs are known: see `key_of`
HEADS = {
    "harmonic": {"model.similarity": "euclidean", "model.normalization": "harmax"},
    "standard": {"model.similarity": "dot", "model.normalization": "softmax"},
}
READS = (
    False,
    "reading",
    True,
)  # what a row gets beside its loss: nothing, the measures of reading.py, those of uses.py too
TIMES = "times "  # before the name of a setting: the value is a factor on the arm's own
_SOUND: set[str] = set()  # keys of runs whose settings were checked: a search builds the same ones again and again
BLOCK_KEYS = {
    *("question", "why", "sizes", "arms", "configs", "set", "each", "vary", "seeds", "keep"),
    *("search", "search_of", "most", "tuned", "read"),
}


def read_queue(path: Path, losses: dict[str, float] | None = None) -> list[dict]:
    """All runs of a queue file in its order, each once. Raises InputError for a mistake in any of them.

    A run: question, size, arm, head, set (its settings beyond base, size and head), trial, seed, settings (overrides of
    RunConfig, all of them), config (file that they override, or None), keep (its folder stays when it is done), read
    (its row gets the measures of reading.py and uses.py), and key, which identifies what is trained, whatever the
    question that asked for it: one run may answer several.

    Args:
        losses: final loss of the runs that are done, by key. What a search asks for next depends on them, and so do
            blocks that are `tuned` by a search: while it goes on, these have no runs.
    """
    return _read(path, losses or {})[0]


def read_searches(path: Path, losses: dict[str, float]) -> list["ArmSearch"]:
    """Where every search of a queue file stands, by question, size and arm. Raises InputError."""
    return _read(path, losses)[1]


def _read(path: Path, losses: dict[str, float]) -> tuple[list[dict], list["ArmSearch"]]:
    try:
        queue = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the queue {path}: {error}") from error
    if not isinstance(queue, dict) or not isinstance(queue.get("experiments"), list):
        raise InputError(f"{path}: expected a list `experiments:`")
    runs: dict[str, dict] = {}
    tuned: Tuned = {}
    searches: list[ArmSearch] = []
    for block in queue["experiments"]:
        try:
            if unknown := block.keys() - BLOCK_KEYS:
                raise InputError(f"unknown {sorted(unknown)}; expected some of {sorted(BLOCK_KEYS)}")
            if block.get("read", False) not in READS:
                raise InputError(f"read: expected one of {list(READS)}, got {block['read']!r}")
            if "search" in block:
                found, arms = _searched(block, queue, losses, tuned)
                searches += arms
            else:
                found = _runs_of(block, queue, tuned)
            for run in found:
                first = runs.setdefault(run["key"], run)
                first |= {
                    "keep": first["keep"] or run["keep"],
                    "read": max(first["read"], run["read"], key=READS.index),
                }
        except KeyError as error:
            raise InputError(f"{path}: experiment {block.get('question')!r}: {error} is missing") from error
        except InputError as error:
            raise InputError(f"{path}: experiment {block.get('question')!r}: {error}") from error
    return list(runs.values()), searches


@dataclass(frozen=True)
class ArmSearch:
    """Where the search of one arm at one size stands."""

    question: str
    size: str
    arm: str
    state: Search
    runs: list[dict]  # that it asked for, the last one perhaps not trained yet
    ladders: dict[str, list]
    loss: Callable[[Point, int], float | None]
    seeds: list[int]

    @property
    def found(self) -> dict:
        """The settings of its center."""
        return self.settings(self.state.center)

    def settings(self, point: Point) -> dict:
        return {name: self.ladders[name][i] for name, i in zip(self.ladders, point, strict=True)}


# question of a search -> arm -> size -> the settings that it found; None: it goes on
Tuned = dict[str, dict[str, dict[str, dict | None]]]


def _runs_of(block: dict, queue: dict, tuned: Tuned) -> list[dict]:
    """The runs of one experiment: sizes, then settings, then seeds, and the arms in turn."""
    if "configs" in block:
        groups = [[_start_from_config(name) for name in block["configs"]]]
    else:
        groups = [[_start_from_arm(queue, block, arm, size, tuned) for arm in block["arms"]] for size in block["sizes"]]
    axes = [[{name: value} for value in values] for name, values in block.get("vary", {}).items()]
    points = [block.get("set", {}) | each for each in block.get("each", [{}])]
    runs = []
    for starts in groups:
        for (point, *varied), seed in itertools.product(itertools.product(points, *axes), block.get("seeds", [0])):
            runs += [run for start in starts if (run := _run(block, start, [point, *varied], seed)) and start["ready"]]
    return runs


def _run(block: dict, start: dict, changes: list[dict], seed: int) -> dict:
    """One run: `start` with `changes` applied in order. Raises InputError for a wrong setting."""
    chosen = start["set"]
    for change in changes:
        chosen = _merged(chosen, change)
    trial = {name.removeprefix("trial."): v for name, v in chosen.items() if name.startswith("trial.")}
    chosen = {name: v for name, v in chosen.items() if not name.startswith("trial.")}
    run = {key: start[key] for key in ("size", "arm", "head", "config")} | {"question": block["question"]}
    run |= {"set": chosen, "trial": trial, "seed": seed, "settings": start["settings"] | chosen}
    key = key_of(run)
    if key not in _SOUND:
        run_config(run)  # a wrong setting is found before the first run
        _SOUND.add(key)
    return run | {"key": key, "keep": block.get("keep", False), "read": block.get("read", False)}


def _merged(chosen: dict, change: dict) -> dict:
    """`chosen` with the settings of `change`; "times NAME" multiplies what is there. Raises KeyError if nothing is."""
    merged = dict(chosen)
    for name, value in change.items():
        if name.startswith(TIMES):
            name = name.removeprefix(TIMES)
            value = float(f"{merged[name] * value:.4g}")  # equal text for equal settings: keys depend on it
        merged[name] = value
    return merged


def _searched(block: dict, queue: dict, losses: dict[str, float], tuned: Tuned) -> tuple[list[dict], list[ArmSearch]]:
    """The runs that a search has asked for so far and what is next, of all arms; PROTOCOL.md has the rule.

    At each size an arm with fewer runs comes first. What was found is noted in `tuned`.
    """
    runs, arms = [], []
    for size in block["sizes"]:
        starts = {arm: _start_from_arm(queue, block, arm, size, tuned) for arm in block["arms"]}
        searches = {arm: _search_arm(block, start, losses) for arm, start in starts.items()}
        certified = [one.state.certified for one in searches.values()]
        full = [len(one.runs) > block["most"] or one.state.certified == len(one.seeds) for one in searches.values()]
        ended = min(certified) >= MIN_SEEDS or all(full)
        pending = []
        for arm, one in searches.items():
            tuned.setdefault(block["question"], {}).setdefault(arm, {})[size] = one.found if ended else None
            if starts[arm]["ready"]:
                arms.append(one)
                runs += [run for run in one.runs if run["key"] in losses]
                if not ended and len(one.runs) <= block["most"] and one.runs[-1]["key"] not in losses:
                    pending.append((len(one.runs), one.runs[-1]))
        runs += [run for _, run in sorted(pending, key=lambda pair: pair[0])]
    return runs, arms


def _search_arm(block: dict, start: dict, losses: dict[str, float]) -> ArmSearch:
    ladders = block["search"] | block.get("search_of", {}).get(start["arm"], {})
    start = start | {"set": _merged(start["set"], block.get("set", {}))}
    try:
        first = [v.index(1 if name.startswith(TIMES) else start["set"][name]) for name, v in ladders.items()]
    except ValueError as error:
        raise InputError(f"the search starts beside a ladder: {error}, which {start['arm']} has") from error

    def run(point: Point, seed: int) -> dict:
        return _run(block, start, [{name: ladders[name][i] for name, i in zip(ladders, point, strict=True)}], seed)

    def loss(point: Point, seed: int) -> float | None:
        return losses.get(run(point, seed)["key"])

    state = search([*map(len, ladders.values())], tuple(first), block["seeds"], loss)
    runs = [run(point, seed) for point, seed in state.asked]
    return ArmSearch(block["question"], start["size"], start["arm"], state, runs, ladders, loss, block["seeds"])


def _start_from_arm(queue: dict, block: dict, name: str, size: str, tuned: Tuned) -> dict:
    """An arm at a size, before the experiment's own settings. ready: the searches that tune it have ended.

    A search at one size alone tunes every size.
    """
    arm = queue["arms"][name]
    chosen, ready = arm["set"] | arm[size], True
    for question in block.get("tuned", []):
        sizes = tuned[question][name]
        found = sizes[next(iter(sizes))] if len(sizes) == 1 else sizes.get(size, {})
        ready = ready and found is not None
        chosen = _merged(chosen, found or {})
    settings = queue["base"] | queue["sizes"][size] | HEADS.get(arm["head"], {"model.head": arm["head"]})
    own = {"size": size, "arm": name, "head": arm["head"], "config": None}
    return own | {"settings": settings, "set": chosen, "ready": ready}


def _start_from_config(path: str) -> dict:
    """A config file, before the experiment's settings. Its size and head are named like the others."""
    model = load_run_config(path).model
    own = {"size": f"{model.n_layer}x{model.n_embd}", "arm": model.head, "head": model.head, "config": path}
    return own | {"settings": {}, "set": {}, "ready": True}


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
        **({"uses": uses(*trained) if run["read"] is True else {}} if run["read"] else {}),
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


def losses_of(rows: list[dict]) -> dict[str, float]:
    """Final loss by key, of rows of results."""
    return {row["key"]: row["val_loss"] for row in rows}


def not_done(runs: list[dict], rows: list[dict]) -> list[dict]:
    """Runs without a row; also those whose row lacks the measures of reading that are asked for: trained again."""
    done = {row["key"] for row in rows}
    read = {row["key"] for row in rows if "reading" in row and "uses" in row}
    return [run for run in runs if run["key"] not in (read if run["read"] else done)]


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
