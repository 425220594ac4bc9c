"""How long a checkpoint holds up training: written in the background from a snapshot, and written while training waits.

    OMP_NUM_THREADS=2 python benchmarks/checkpoint.py [--layers 12 --embd 768 --vocab-size 50257]

The two take turns within one run, on a model whose batch is tiny: what is measured is the copy, the files and the
hashing. "blocked" is the time until `save` returns, "complete" until the files are on the disk and read back.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from harmonic_gpt.run_config import load_run_config
from harmonic_gpt.runs.checkpoint import find_corruption
from harmonic_gpt.training import loop


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--embd", type=int, default=768)
    parser.add_argument("--vocab-size", type=int, default=50257)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="on the disk to be measured; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        data = Path(folder) / "tokens"
        data.mkdir()
        for name in ("train", "val"):
            np.random.default_rng(0).integers(0, arguments.vocab_size, 4096).astype(np.uint16).tofile(
                data / f"{name}.bin"
            )
        settings = {
            "run_dir": Path(folder) / "run", "data.dir": data, "data.vocab_size": arguments.vocab_size,
            "model.n_layer": arguments.layers, "model.n_head": arguments.embd // 64, "model.n_embd": arguments.embd,
            "model.n_positions": 16, "train.batch_tokens": 16, "optim.warmup_steps": 0, "checkpoint.keep": 1,
        }  # fmt: skip
        run = loop.setup(load_run_config(None, [f"--{key}={value}" for key, value in settings.items()]), resume=False)
        seconds = {True: [], False: []}
        for _ in range(arguments.rounds + 1):
            for background in (True, False):
                loop.train_step(run)
                begin = time.perf_counter()
                path = loop.save(run, background=background)
                blocked = time.perf_counter() - begin
                loop.finish_saving(run)
                seconds[background].append((blocked, time.perf_counter() - begin))
                assert find_corruption(path) is None
        size = sum(p.stat().st_size for p in path.iterdir())
        run.tracker.close()
    print(f"| {size / 2**20:,.0f} MiB | blocked, s | complete, s |\n|---|---|---|")
    for background, times in seconds.items():
        blocked, complete = (median(column) for column in zip(*times[1:], strict=True))
        print(f"| {'in the background' if background else 'while training waits'} | {blocked:.2f} | {complete:.2f} |")


if __name__ == "__main__":
    main()
