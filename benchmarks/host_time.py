"""The main thread's time for one training step, and how long a GPU would wait for it. The device's work is faked.

    OMP_NUM_THREADS=1 python benchmarks/host_time.py                       # GPT-2 small on 8 GPUs: 60 sequences a rank
    OMP_NUM_THREADS=1 python benchmarks/host_time.py --against OTHER_TREE  # this checkout and another one, taking turns

The step is `loop.train_step` with the configured data, sampler, clipping, optimizer and checks. The model is one number
whose forward and backward pass queue some milliseconds of work on a device that is only a clock; `Tensor.tolist`, the
step's read, sleeps until the clock's queue is empty, as a read from a GPU does. So the numbers are of Python and of the
data path, not of kernel launches: those come on top, the same for every version.

device idle: time in a step during which the queue was empty (sleeping too long is in it, some tenths of a millisecond).
main thread: its processor time, which the threads of a prefetch are no part of.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from harmonic_gpt.run_config import load_run_config
from harmonic_gpt.training import loop


class Clock:
    """A device that does what it is given in order; `end` is when it will have done it."""

    def __init__(self) -> None:
        self.end, self.idle = time.perf_counter(), 0.0

    def queue(self, seconds: float) -> None:
        now = time.perf_counter()
        self.idle += max(0.0, now - self.end)
        self.end = max(now, self.end) + seconds

    def wait(self) -> None:
        while (left := self.end - time.perf_counter()) > 0:
            time.sleep(left)


class Model(nn.Module):
    """One parameter, whose passes cost the device time and the host next to none."""

    def __init__(self, clock: Clock, seconds: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.lm_head = SimpleNamespace(learned_numbers=dict)  # none
        self.clock, self.seconds = clock, seconds
        self.weight.register_hook(lambda _: clock.queue(2 / 3 * seconds))

    def forward(self, input_ids: Tensor, shift_labels: Tensor, num_items_in_batch: float) -> SimpleNamespace:
        self.clock.queue(self.seconds / 3)
        return SimpleNamespace(loss=self.weight * (input_ids[0, 0] + shift_labels[0, 0]) / num_items_in_batch)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Milliseconds of each step, by name."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 4_000_000), ("val", 10_000)):
        rng.integers(0, 50257, count).astype(np.uint16).tofile(folder / f"{name}.bin")
    settings = {
        "run_dir": folder / "run", "data.dir": folder, "data.vocab_size": 50257, "model.n_positions": 1024,
        "model.n_layer": 1, "model.n_head": 1, "model.n_embd": 8, "train.batch_tokens": args.sequences * 1024,
        "train.micro_batch_size": args.micro_batch, "train.steps": args.steps + 3, "optim.warmup_steps": 0,
    }  # fmt: skip
    run = loop.setup(load_run_config(None, [f"--{key}={value}" for key, value in settings.items()]), resume=False)
    clock, read = Clock(), Tensor.tolist

    def tolist(tensor: Tensor) -> list:
        clock.wait()
        return read(tensor)

    run.model = Model(clock, args.milliseconds / 1000)
    run.optimizer.optimizer.register_step_pre_hook(lambda *_: clock.queue(args.optimizer_milliseconds / 1000))
    times: dict[str, list[float]] = {"main thread": [], "device idle": [], "step": []}
    Tensor.tolist = tolist  # type: ignore[method-assign]
    try:
        for step in range(args.steps + 2):
            clock.idle, start, busy = 0.0, time.perf_counter(), time.thread_time()
            loop.train_step(run)
            wall, busy = time.perf_counter() - start, time.thread_time() - busy
            if step >= 2:  # the first ones warm up
                for name, seconds in zip(times, (busy, clock.idle, wall), strict=True):
                    times[name].append(1000 * seconds)
    finally:
        Tensor.tolist = read  # type: ignore[method-assign]
        run.tracker.close()
    return times


def compared(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians of this checkout and of the other, which take turns in processes of their own."""
    trees = {"this": Path(__file__).parents[1], "other": args.against}
    times: dict[str, dict[str, list[float]]] = {tree: {} for tree in trees}
    for _ in range(args.turns):
        for tree, path in trees.items():
            options = [option for option in sys.argv[1:] if option not in ("--against", str(args.against))]
            command = [sys.executable, __file__, *options]
            environment = os.environ | {"PYTHONPATH": str(path.resolve())}
            done = subprocess.run([*command, "--json"], env=environment, stdout=subprocess.PIPE, text=True, check=True)
            for name, values in json.loads(done.stdout.splitlines()[-1]).items():
                times[tree].setdefault(name, []).extend(values)
    return {tree: {name: median(values) for name, values in named.items()} for tree, named in times.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=60, help="of 1,024 tokens, in a step")
    parser.add_argument("--micro-batch", type=int, default=12, help="sequences of one forward pass")
    parser.add_argument("--milliseconds", type=float, default=30.0, help="of the device, for a micro-batch")
    parser.add_argument("--optimizer-milliseconds", type=float, default=5.0, help="of the device, for an update")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    parser.add_argument("--turns", type=int, default=3, help="of each checkout")
    parser.add_argument("--json", action="store_true", help="print all times as one line")
    args = parser.parse_args(arguments)
    if args.against:
        medians = compared(args)
        for name in medians["this"]:
            this, other = medians["this"][name], medians["other"][name]
            print(f"{name:<12} this {this:8.2f} ms   other {other:8.2f} ms   ratio {this / other:.3f}")
        return
    with tempfile.TemporaryDirectory() as folder:
        times = measure(args, Path(folder))
    if args.json:
        print(json.dumps(times))
    else:
        print(
            "\n".join(f"{name:<12}{median(values):8.2f} ms (median of {len(values)})" for name, values in times.items())
        )


if __name__ == "__main__":
    main()
