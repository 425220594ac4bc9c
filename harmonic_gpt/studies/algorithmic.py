"""Which cells the algorithmic study consists of, and running them: several processes, one file a cell, what is there is
not run again."""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from harmonic_gpt.errors import InputError
from harmonic_gpt.files import sync
from harmonic_gpt.progress import show_progress
from harmonic_gpt.studies.batched import Cell, Member, Result, run, seconds_per_step
from harmonic_gpt.studies.networks import ARCHITECTURES, HEAD_KINDS
from harmonic_gpt.studies.tasks import PROTOCOLS, TASKS

MAIN_FRACTION = 0.8
LEARNING_RATE = 2e-3
WEIGHT_DECAY = {"mlp": 1e-2, "transformer": 5e-3}
CODE_EXPONENT = 2.0  # n = 1 of the code, which raises d^2: 2 on the distance
MODELS = tuple(f"{head}_{architecture}" for head in HEAD_KINDS for architecture in ARCHITECTURES)


@dataclass(frozen=True)
class Budget:
    """How much of the study is run."""

    epochs: dict[str, int]  # by architecture
    permutation_epochs: int  # of the transformers on permutations
    seeds: int  # of the main setting
    sweep_seeds: int  # of the sweeps and side studies
    fractions: tuple[float, ...]  # of the examples, to train on
    exponents: tuple[float, ...]  # on the distance
    side_tasks: tuple[str, ...]  # where the ablation, the other losses and the exponents are run
    stop_when_converged: bool


BUDGETS = {
    "quick": Budget(
        epochs={"mlp": 1200, "transformer": 600},
        permutation_epochs=800,
        seeds=5,
        sweep_seeds=3,
        fractions=(0.2, 0.4, 0.6),
        exponents=(1, 2, 3, 4, 6, 8, 10, 14, 20),
        side_tasks=("in_context", "modular_addition"),
        stop_when_converged=True,
    ),
    "full": Budget(
        epochs={"mlp": 7000, "transformer": 7000},
        permutation_epochs=10000,
        seeds=20,
        sweep_seeds=3,
        fractions=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9),
        exponents=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20),
        side_tasks=TASKS,
        stop_when_converged=False,
    ),
}
# What tells a row of results.jsonl from another one, but for the case study, which has a learning rate of its own
SETTINGS = ("task", "model", "seed", "protocol", "fraction", "exponent", "weight_decay")
# (head, weight decay) of the case study, figure 4: modular addition, lr 1e-3, 2,000 epochs
CASES = (("standard", 0.0), ("standard", 0.5), ("harmonic", 0.0))


def cells(
    budget: Budget, tasks: list[str], models: list[str], protocols: list[str], seeds: int | None = None
) -> list[Cell]:
    """All cells of the study, those that take longest first."""
    seeds = seeds or budget.seeds
    sweep_seeds = min(seeds, budget.sweep_seeds)

    def members(count: int, protocols=("clean",), fraction=MAIN_FRACTION, exponent=CODE_EXPONENT) -> list[Member]:
        return [Member(seed, protocol, fraction, exponent) for protocol in protocols for seed in range(count)]

    def cell(kind: str, task: str, model: str, members: list[Member], **changes) -> Cell:
        head, architecture = model.rsplit("_", 1)
        slow = (task, architecture) == ("permutations", "transformer")
        base = Cell(
            name=f"{kind}.{task}.{model}",
            task=task,
            architecture=architecture,
            head=head,
            members=tuple(members),
            epochs=budget.permutation_epochs if slow else budget.epochs[architecture],
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY[architecture],
            stop_when_converged=budget.stop_when_converged,
        )
        return replace(base, **changes)

    def all_cells() -> Iterator[Cell]:
        for task in tasks:
            for model in models:
                head = model.rsplit("_", 1)[0]
                main = head in ("standard", "harmonic")
                if main:
                    sweep = [m for f in budget.fractions for m in members(sweep_seeds, protocols, f)]
                    yield cell("main", task, model, members(seeds, protocols) + sweep)
                if task in budget.side_tasks and not main:
                    yield cell("side", task, model, members(seeds))
                if task in budget.side_tasks and head == "harmonic":
                    # n = 1 is the paper's reading of its own exponent: as many runs as the main setting has
                    others = [m for n in budget.exponents if n != 1 for m in members(sweep_seeds, exponent=float(n))]
                    trained = members(seeds, protocols)  # by the main cell
                    sweep = [m for m in others if m not in trained]
                    yield cell("exponents", task, model, members(seeds, protocols, exponent=1.0) + sweep)
        if "modular_addition" in tasks:
            for head, decay in CASES:
                if f"{head}_mlp" in models:
                    changes = {
                        "name": f"case.{head}_{decay}",
                        "weight_decay": decay,
                        "learning_rate": 1e-3,
                        "epochs": 2000,
                        "stop_when_converged": False,
                    }
                    yield cell("case", "modular_addition", f"{head}_mlp", members(seeds, protocols), **changes)

    return sorted(all_cells(), key=lambda c: -sum(c.steps()) * (4 if c.architecture == "transformer" else 1))


def check_names(what: str, names: list[str] | None, known: tuple[str, ...]) -> list[str]:
    """The names asked for, all known ones if none were."""
    unknown = sorted(set(names or []) - set(known))
    if unknown:
        raise InputError(f"--{what}: unknown {', '.join(unknown)}; expected some of {', '.join(known)}")
    return list(names or known)


def study(
    out: str,
    tasks: list[str] | None,
    models: list[str] | None,
    protocols: list[str] | None,
    budget: str,
    seeds: int | None,
    workers: int,
) -> None:
    """Run what is missing in `out`/cells, and say before how long that may take. None: all of them."""
    tasks, models = check_names("tasks", tasks, TASKS), check_names("models", models, MODELS)
    plan = cells(BUDGETS[budget], tasks, models, check_names("protocol", protocols, PROTOCOLS), seeds)
    folder = Path(out) / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in plan if not _is_done(folder, cell)]
    print(f"{len(plan)} cells of {sum(len(c.members) for c in plan)} models, {len(plan) - len(missing)} done before")
    if missing:
        estimate = f"{_estimate(missing, workers)}; {workers} processes, one thread each"
        print(f"{estimate}. Ctrl-C is safe: finished cells are kept.", flush=True)
        _run_all(folder, missing, workers)
    print(f"report: harmonic-gpt study report {out}")


def path_of(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}.safetensors"


def _is_done(folder: Path, cell: Cell) -> bool:
    path = path_of(folder, cell)
    if not path.exists():
        return False
    if _as_planned(load(path)[0], cell) != cell:
        raise InputError(f"{path} was made with other settings than these: choose another --out, or move it away")
    return True


def _as_planned(stored: Cell, cell: Cell) -> Cell:
    """`stored` without the members at CODE_EXPONENT that `cell` leaves to the main setting: in versions up to 0.2 a
    sweep of exponents trained them again."""
    if not cell.name.startswith("exponents."):
        return stored
    members = (m for m in stored.members if m.exponent != CODE_EXPONENT or m in cell.members)
    return replace(stored, members=tuple(members))


def distinct(rows: list[dict]) -> list[dict]:
    """Rows of results.jsonl without those of the sweep of exponents that the main setting has already."""
    of_main = {_setting(row) for row in rows if row["kind"] == "main"}
    return [row for row in rows if row["kind"] != "exponents" or _setting(row) not in of_main]


def _setting(row: dict) -> tuple:
    return tuple(row[key] for key in SETTINGS)


def _estimate(missing: list[Cell], workers: int) -> str:
    """Measured steps of one program of each kind, times the steps to do. Early stops make it less."""
    torch.set_num_threads(1)
    speed: dict[tuple, float] = {}
    seconds = 0.0
    for cell in missing:
        kind = (cell.architecture, cell.task)
        if kind not in speed:
            speed[kind] = seconds_per_step(cell)
        seconds += speed[kind] * sum(cell.steps())
    hours = seconds / workers / 3600
    stops = ", less where models stop early" if any(c.stop_when_converged for c in missing) else ""
    return f"estimate: {hours:.1f} hours{stops}" if hours > 2 else f"estimate: {60 * hours:.0f} minutes{stops}"


def _run_all(folder: Path, missing: list[Cell], workers: int) -> None:
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        futures = [pool.submit(_run_and_save, folder, cell) for cell in missing]
        for done in show_progress(as_completed(futures), desc="training", unit=" cells", total=len(missing)):
            done.result()
    except BaseException:
        for process in multiprocessing.active_children():  # cells in progress are lost, not waited for
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_and_save(folder: Path, cell: Cell) -> None:
    wall, cpu = perf_counter(), process_time()
    result = run(cell)
    seconds = {"wall_seconds": perf_counter() - wall, "cpu_seconds": process_time() - cpu}
    # safetensors writes the memory of a slice as it lies, without its strides
    tensors = {k: np.ascontiguousarray(v) for k, v in vars(result).items() if k != "reason"}
    path = path_of(folder, cell)
    part = path.with_suffix(".part")
    notes = {"cell": asdict(cell), "reason": result.reason, "time": seconds}
    save_file(tensors, part, metadata={key: json.dumps(value) for key, value in notes.items()})
    sync(part)
    part.replace(path)
    sync(folder)


def load(path: Path) -> tuple[Cell, Result, dict[str, float]]:
    """A finished cell, its result and the seconds it took."""
    try:
        with safe_open(path, "numpy") as file:
            metadata = {k: json.loads(v) for k, v in file.metadata().items()}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
        fields = metadata["cell"]
        cell = Cell(**{**fields, "members": tuple(Member(*m) for m in fields["members"])})
        return cell, Result(**tensors, reason=metadata["reason"]), metadata["time"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a finished cell of this study ({error}): move it away and run the study again"
        ) from error
