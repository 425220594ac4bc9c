"""Harmonic and standard for some five minutes each, by the recipes of configs/ and on the same tokens: loss curves, and
the speed of whole runs."""

import re
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from benchmarks.gpu import step
from benchmarks.gpu.device import code_of, facts, micro_batch_size
from benchmarks.gpu.settings import ROOT, TOY_VOCAB_SIZE, Settings, gpt2_small
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.run_config import RunConfig
from harmonic_gpt.runs.metrics import read_metrics
from harmonic_gpt.training.loop import train

COLUMNS = {
    "head": "", "steps": ",", "batch_tokens": ",", "train_tokens": ",", "val_loss": ".4f", "lowest_val_loss": ".4f",
    "tokens_per_second": ",.0f",    "mfu": ".1%", "peak_gib": ".1f",
}  # fmt: skip
TRAINING_SECONDS = 280  # by the measured speed; evaluation, checkpoints and the start come on top
ASSUMED_TOKENS_PER_SECOND = 100_000  # where the stage `step` has no number yet
BATCH_TOKENS = 131072  # a quarter of configs/: more steps in the same time
CURVE_POINTS = 60


def measurements(settings: Settings, earlier: list[dict], head: str) -> dict[str, Callable[[], list[dict]]]:
    """earlier: rows of this device and commit, for the speed."""
    return {f"{head} run": partial(curve, settings, head, earlier)}


def pair_config(settings: Settings, head: str, earlier: list[dict]) -> RunConfig:
    """configs/gpt2_small_HEAD.yaml with a shorter schedule, alike for both heads, on the given or the embedded data."""
    if settings.toy:
        steps, batch = 4, {"train__log_every": 1}
    else:
        steps, batch = steps_for(earlier), {
            "train__batch_tokens": BATCH_TOKENS, "train__micro_batch_size": micro_batch_size(),
        }  # fmt: skip
    data = {"data__dir": settings.data} if settings.data else {
        "data__dir": settings.work / "pydocs", "data__source": "pydocs",
        "data__vocab_size": TOY_VOCAB_SIZE if settings.toy else 4096,
    }  # fmt: skip
    device = re.sub(r"\W+", "-", facts(settings.device)["device"])
    return gpt2_small(  # another device or other code does not go on with this run
        settings, head, run_dir=settings.work / f"pair-{head}-{steps}-{device}-{code_of(ROOT)['code']}",
        train__steps=steps, optim__warmup_steps=max(1, steps // 10), eval__every=max(1, steps // 12),
        eval__tokens=256 if settings.toy else 2**20, checkpoint__every=max(1, steps // 2), checkpoint__keep=1,
        **batch, **data,
    )  # fmt: skip


def steps_for(earlier: list[dict]) -> int:
    """Steps of about TRAINING_SECONDS, by the slower head's speed; both heads get the same number."""
    if pair := [row["steps"] for row in earlier if row["stage"].startswith("pair") and "error" not in row]:
        return pair[0]
    speeds = [
        row["tokens_per_second"]
        for row in earlier
        if row["stage"] == "step" and row.get("contender") in (step.HARMONIC, step.STANDARD) and "error" not in row
    ]
    return int(TRAINING_SECONDS * min(speeds, default=ASSUMED_TOKENS_PER_SECOND)) // BATCH_TOKENS


def curve(settings: Settings, head: str, earlier: list[dict]) -> list[dict]:
    """One row: the loss of about CURVE_POINTS steps and of every evaluation. A run that was stopped goes on."""
    config = pair_config(settings, head, earlier)
    if not settings.toy:
        torch.cuda.reset_peak_memory_stats()
    code = train(config, resume=True)
    if code:
        raise RuntimeError(f"training was stopped (exit code {code}); the same command continues it")
    metrics = read_metrics(config.run_dir)
    losses = [(row["step"], round(row["loss"], 4)) for row in metrics if "loss" in row]
    evaluations = [(row["step"], round(row["val_loss"], 4)) for row in metrics if "val_loss" in row]
    logged = [row for row in metrics if "tokens_per_second" in row]
    settled = logged[len(logged) // 4 :]
    row = {
        "head": head,
        "steps": config.train.steps,
        "batch_tokens": config.train.batch_tokens,
        "data": "embedded corpus" if settings.data is None else settings.data.name,
        "train_tokens": len(open_token_folder(config.data.dir, config.data.vocab_size).splits["train"]),
        "curve": losses[:: max(1, len(losses) // CURVE_POINTS)],
        "val_curve": evaluations,
        "val_loss": evaluations[-1][1],
        "lowest_val_loss": min(loss for _, loss in evaluations),  # the embedded corpus is read many times
        "tokens_per_second": median(row["tokens_per_second"] for row in settled),
    }
    if "mfu" in settled[-1]:
        row["mfu"] = median(row["mfu"] for row in settled)
    return [row if settings.toy else row | {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}]
