"""Whether a long run stays as it began: memory, file handles and time of a step over thousands of tiny steps.

    OMP_NUM_THREADS=1 python benchmarks/long_run.py [--steps 4000]

Evaluates every 100 steps and writes a checkpoint every 200. Prints the state of the process at each tenth of the run.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from harmonic_gpt.run_config import load_run_config
from harmonic_gpt.training import loop


def resident_mib() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(steps: int) -> list[tuple[int, float, int, float]]:
    """At each tenth of the run: step, resident MiB, open files, median milliseconds of CPU per step since the last."""
    rows, times = [], []
    real = loop.train_step

    def timed(run):
        begin = time.process_time()
        result = real(run)
        times.append(time.process_time() - begin)
        if run.step % (steps // 10) == 0:
            rows.append((run.step, resident_mib(), len(os.listdir("/proc/self/fd")), 1000 * median(times)))
            times.clear()
        return result

    loop.train_step = timed
    with tempfile.TemporaryDirectory() as folder:
        for name in ("train", "val"):
            np.random.default_rng(0).integers(0, 300, 1_000_000).astype(np.uint16).tofile(Path(folder) / f"{name}.bin")
        settings = {
            "run_dir": f"{folder}/run", "data.dir": folder, "data.vocab_size": 300, "model.n_layer": 1,
            "model.n_head": 2, "model.n_embd": 32, "model.n_positions": 32, "train.batch_tokens": 256,
            "train.steps": steps, "train.log_every": 100, "eval.every": 100, "eval.tokens": 1024,
            "checkpoint.every": 200,
        }  # fmt: skip
        loop.train(load_run_config(None, [f"--{key}={value}" for key, value in settings.items()]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=4000)
    print("| step | resident, MiB | open files | CPU of a step, ms |\n|---|---|---|---|")
    for step, resident, files, milliseconds in measure(parser.parse_args().steps):
        print(f"| {step:,} | {resident:.0f} | {files} | {milliseconds:.2f} |")


if __name__ == "__main__":
    main()
