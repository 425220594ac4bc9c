"""One step of a run, and the seconds since its process was started: `python -m benchmarks.gpu.first_step CONFIG
STARTED`, with STARTED by time.time()."""

import json
import sys
import time

import torch

from benchmarks.gpu.settings import running
from harmonic_gpt.run_config import RunConfig, load_run_config
from harmonic_gpt.training.loop import train_step


def first_step(config: RunConfig, started: float) -> dict:
    """Everything that train.py does up to the end of its first step. started: time.time() of the start."""
    imported = time.time()
    with running(config) as run:
        ready = time.time()
        train_step(run)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        done = time.time()
    return {
        "seconds_to_first_step": done - started,
        "seconds_of_imports": imported - started,
        "seconds_of_setup": ready - imported,
    }


if __name__ == "__main__":
    print(json.dumps(first_step(load_run_config(sys.argv[1]), float(sys.argv[2]))))
