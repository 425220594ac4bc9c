"""What a queue file says: runs, each known by a key, and searches whose next runs follow from the rows that there are.

The form of a queue file: README.md.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from search import Point, Search, search

from harmonic_gpt.errors import InputError
from harmonic_gpt.run_config import RunConfig, load_run_config

MIN_SEEDS = 2  # of a certificate
# Under the names of version 0.2, by which finished runs are known: see `key_of`
HEADS = {
    "harmonic": {"model.similarity": "euclidean", "model.normalization": "harmax"},
    "standard": {"model.similarity": "dot", "model.normalization": "softmax"},
}
# What a row gets beside its loss: nothing, the measures of reading.py, those of uses.py too
READS = (False, "reading", True)
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


def losses_of(rows: list[dict]) -> dict[str, float]:
    """Final loss by key, of rows of results."""
    return {row["key"]: row["val_loss"] for row in rows}
