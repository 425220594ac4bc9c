"""Where numbers go: metrics.jsonl always, a progress bar on a terminal, lines otherwise, trackers when configured."""

import json
import os
import re
import sys
import time
from datetime import timedelta
from pathlib import Path

from accelerate.tracking import GeneralTracker
from tqdm import tqdm

from harmonic_gpt.run_config import RunConfig
from harmonic_gpt.training.trackers import flat_config, log, start

METRICS = "metrics.jsonl"

# Dense bf16 FLOP/s by NVIDIA's data sheets, for model FLOPs utilisation. The first name whose words all occur counts.
PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


def peak_flops(device_name: str) -> float | None:
    """bf16 peak of a known accelerator, else None."""
    words = set(re.split(r"[\s-]+", device_name))
    return next((flops for name, flops in PEAK_BF16_FLOPS.items() if set(name.split()) <= words), None)


def read_metrics(run_dir: str | Path) -> list[dict]:
    """Rows of a run's metrics.jsonl; a last line cut short by a crash is left out."""
    rows = []
    path = Path(run_dir) / METRICS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


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
        temporary = run_dir / f".{METRICS}"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        temporary.replace(run_dir / METRICS)

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
