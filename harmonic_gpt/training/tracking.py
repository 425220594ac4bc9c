"""Where numbers go: metrics.jsonl always, a progress bar on a terminal, lines otherwise, trackers when configured."""

import json
import math
import os
import sys
import time
from collections import deque
from datetime import timedelta
from pathlib import Path

from accelerate.tracking import GeneralTracker
from tqdm import tqdm

from harmonic_gpt.files import write_text
from harmonic_gpt.run_config import RunConfig
from harmonic_gpt.runs.metrics import METRICS, read_metrics
from harmonic_gpt.training.trackers import flat_config, log, start


class Tracker:
    """Writes one run's metrics. Only the main process builds one."""

    def __init__(self, run_dir: Path, config: RunConfig, start_step: int, services: list[GeneralTracker]):
        self.steps = config.train.steps
        self.services = services
        for service in services:
            start(service, flat_config(config) if start_step == 0 else None)
        self._forget_after(run_dir, start_step)
        self.file = (run_dir / METRICS).open("a", encoding="utf-8")
        self.bar = tqdm(total=self.steps, initial=start_step, unit="step", dynamic_ncols=True, disable=None)
        self.started, self.start_step = time.monotonic(), start_step

    @staticmethod
    def _forget_after(run_dir: Path, step: int) -> None:
        """Drop rows of steps that will be run again, so that each step has one row."""
        rows = [row for row in read_metrics(run_dir) if row["step"] <= step]
        write_text(run_dir / METRICS, "".join(json.dumps(row) + "\n" for row in rows))

    @property
    def wandb_id(self) -> str | None:
        return next((service.tracker.id for service in self.services if service.name == "wandb"), None)

    def log(self, step: int, **values) -> None:
        """One row of metrics.jsonl, and the same to every tracker. `step` is the number of finished updates."""
        row = {"step": step, **values}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for service in self.services:
            log(service, step, values)

    def progress(self, step: int, **values) -> None:
        """The bar, or a line when the output is not a terminal."""
        text = "  ".join(f"{name} {value}" for name, value in values.items())
        if self.bar.disable:
            done = step - self.start_step
            remaining = (time.monotonic() - self.started) / done * (self.steps - step) if done else 0.0
            self.say(f"step {step}/{self.steps}  {text}  ETA {timedelta(seconds=int(remaining))}")
        else:
            self.bar.set_postfix_str(text, refresh=False)

    def advance(self) -> None:
        self.bar.update()

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


class SpikeDetector:
    """Warns when the loss jumps: often the first sign of a learning rate that is too high, or of bad data.

    Compares each loss with those of the last `window` steps, spikes left out.

    A spike is more than `deviations` standard deviations above their mean, and at least `least` nats.
    """

    def __init__(self, window: int = 100, deviations: float = 6.0, least: float = 0.2):
        self.recent: deque[float] = deque(maxlen=window)
        self.window, self.deviations, self.least = window, deviations, least

    def is_spike(self, loss: float) -> bool:
        """Take note of a step's loss in nats per token."""
        count = len(self.recent)
        if count >= self.window // 2:
            mean = sum(self.recent) / count
            deviation = math.sqrt(sum((x - mean) ** 2 for x in self.recent) / count)
            if loss - mean > max(self.least, self.deviations * deviation):
                return True
        self.recent.append(loss)
        return False
