"""One step of a run, and the seconds since its process was started: `python -m benchmarks.gpu.first_step CONFIG
STARTED`, with STARTED by time.time()."""

import json
import sys
import time

from harmonic_gpt.run_config import RunConfig, load_run_config


def first_step(config: RunConfig, started: float) -> dict:
    """Everything that train.py does up to the end of its first step. started: time.time() of the start."""
    import torch

    from harmonic_gpt.training.loop import train_step
    from harmonic_gpt.training.setup import setup

    imported = time.time()
    run = setup(config, resume=False)
    ready = time.time()
    train_step(run)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    done = time.time()
    run.tracker.close()
    return {
        "seconds_to_first_step": done - started,
        "seconds_of_imports": imported - started,
        "seconds_of_setup": ready - imported,
    }


if __name__ == "__main__":
    print(json.dumps(first_step(load_run_config(sys.argv[1]), float(sys.argv[2]))))
