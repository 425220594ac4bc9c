"""A training step of GPT-2 small (124 M parameters, tied) with both heads, beside others' models; and the seconds from
the start of the program to its first step."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.gpu.device import describe, interleaved, micro_batch_size, peak_bytes
from benchmarks.gpu.first_step import first_step
from benchmarks.gpu.plain_gpt import PlainGPT, Shape
from benchmarks.gpu.settings import ROOT, Settings, gpt2_small, random_tokens, running
from benchmarks.train_step import Build, hugging_face, nanogpt
from harmonic_gpt.run_config import RunConfig
from harmonic_gpt.training.loop import train_step
from harmonic_gpt.training.plan import model_config, peak_flops, training_flops_per_token

COLUMNS = {
    "contender": "", "micro_batch": "", "tokens_per_second": ",.0f", "mfu": ".1%", "peak_gib": ".1f",
    "cache": "", "seconds_to_first_step": ".1f", "skipped": "",
}  # fmt: skip
HARMONIC, STANDARD = "harmonic, ours", "standard, ours"
NANOGPT_LIKE, NANOGPT = "nanoGPT-like, compiled", "nanoGPT, compiled"
STEPS = 2  # of one timing: a loop may prepare the next batch while a step runs


class Trainee(NamedTuple):
    """step: one optimizer update of a whole batch. state: what stays in memory between steps."""

    step: Callable[[], object]
    state: Callable[[], Iterable[Tensor]]
    micro_batch: int


def measurements(settings: Settings) -> dict[str, Callable[[], list[dict]]]:
    return {"throughput": partial(throughput, settings), "start to first step": partial(start, settings)}


def throughput(settings: Settings) -> list[dict]:
    """Tokens per second of whole steps, interleaved.

    Ours run train.py's own step, which reads the data and checks the gradient; the others a plain loop (forward,
    backward, clipping, fused AdamW) on tokens that lie on the device. Peak memory is that of one alone: its weights and
    optimizer state, and what a step needs beyond.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=settings.work)))
        builders, trainees, errors = _contenders(settings, folder), {}, {}
        for name, build in builders.items():
            try:
                trainees[name] = stack.enter_context(build())
            except Exception as error:  # noqa: BLE001 - the others are measured all the same
                errors[name] = describe(error)
        calls = {name: partial(_steps, trainee) for name, trainee in trainees.items()}
        times, failed = interleaved(calls, 1 if settings.toy else 4, settings.device)
        errors |= failed
        peaks = {name: peak_bytes(trainees[name].step, settings.device) for name in times}

        config = _tied(settings, "harmonic", folder)
        flops = training_flops_per_token(model_config(config, settings.vocab_size, None))
        peak = peak_flops(torch.device(settings.device), "bf16")
        rows = []
        for name in builders:
            row: dict = {"contender": name, "batch_tokens": config.train.batch_tokens}
            if name in errors:  # a rival's failure is its own, and no reason to measure anew
                rows.append(row | {"error" if name in (HARMONIC, STANDARD) else "skipped": errors[name]})
                continue
            speeds = [STEPS * config.train.batch_tokens / seconds for seconds in times[name]]
            row |= {"micro_batch": trainees[name].micro_batch, "tokens_per_second": median(speeds)}
            if len(speeds) > 1:
                low, _, high = quantiles(speeds, n=4, method="inclusive")
                row["quartiles"] = [low, high]
            row |= {"mfu": row["tokens_per_second"] * flops / peak} if peak else {}
            if peaks[name] is not None:
                resident = sum(tensor.numel() * tensor.itemsize for tensor in trainees[name].state())
                row["peak_gib"] = (peaks[name] + resident) / 2**30
            rows.append(row)
    return rows


def _steps(trainee: Trainee) -> None:
    for _ in range(STEPS):
        trainee.step()


def _contenders(settings: Settings, folder: Path) -> dict[str, Callable]:
    like_nanogpt: Build = nanogpt(settings.nanogpt) if settings.nanogpt else _plain_gpt
    rivals: dict[str, tuple[Build, bool]] = {
        NANOGPT if settings.nanogpt else NANOGPT_LIKE: (lambda shape: like_nanogpt(_padded(shape)), True),
        "GPT2LMHeadModel, eager": (hugging_face, False),
        "GPT2LMHeadModel, compiled": (hugging_face, True),
    }
    return {
        HARMONIC: partial(_ours, settings, "harmonic", folder),
        STANDARD: partial(_ours, settings, "standard", folder),
        **{name: partial(_rival, settings, folder, *choice) for name, choice in rivals.items()},
    }


def _tied(settings: Settings, head: str, folder: Path) -> RunConfig:
    """nanoGPT's model and optimizer: one matrix for embedding and head, AdamW."""
    micro = {} if settings.toy else {"train__micro_batch_size": micro_batch_size()}
    return gpt2_small(
        settings, head, run_dir=folder / head, data__dir=random_tokens(settings), data__vocab_size=settings.vocab_size,
        model__tie_word_embeddings=True, optim__optimizer="adamw", optim__lr=6e-4, optim__head_lr_scale=1.0, **micro,
    )  # fmt: skip


@contextmanager
def _ours(settings: Settings, head: str, folder: Path) -> Iterator[Trainee]:
    config = _tied(settings, head, folder)
    with running(config) as run:
        yield Trainee(partial(train_step, run), lambda: _state(run.model, run.optimizer), config.train.micro_batch_size)


@contextmanager
def _rival(settings: Settings, folder: Path, build: Build, compiled: bool) -> Iterator[Trainee]:
    """The micro-batch is halved until a step fits the memory."""
    config = _tied(settings, "standard", folder)
    model_section, train = config.model, config.train
    shape = model_section.model_dump(include={"n_embd", "n_layer", "n_head", "n_positions"})
    torch.manual_seed(0)
    model, loss_of = build(shape | {"vocab_size": settings.vocab_size})
    model.to(settings.device).train()
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr, betas=config.optim.betas, fused=True)
    sequences = train.batch_tokens // model_section.n_positions
    ids = torch.randint(settings.vocab_size, (sequences, model_section.n_positions + 1), device=settings.device)

    def step(micro_batch: int) -> None:
        micro_batches = ids.split(micro_batch)
        for part in micro_batches:
            with torch.autocast(settings.device, torch.bfloat16):
                loss = loss_of(part) / len(micro_batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    micro_batch = train.micro_batch_size
    while not _fits(step, micro_batch) and micro_batch > 1:
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        micro_batch //= 2
    yield Trainee(partial(step, micro_batch), lambda: _state(model, optimizer), micro_batch)


def _fits(step: Callable[[int], None], micro_batch: int) -> bool:
    try:
        step(micro_batch)
    except torch.OutOfMemoryError:
        return False
    return True


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    yield from model.parameters()
    for values in optimizer.state.values():
        yield from (value for value in values.values() if isinstance(value, Tensor))


def _padded(shape: dict) -> dict:
    """As nanoGPT has it by default: GPT-2's vocabulary becomes 50,304."""
    return shape | {"vocab_size": -(-shape["vocab_size"] // 64) * 64}


def _plain_gpt(shape: dict) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    model = PlainGPT(Shape(**shape))
    return model, lambda ids: model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def start(settings: Settings) -> list[dict]:
    """Seconds from the start of a process like train.py's to the end of its first step, with an empty cache of compiled
    code and with the one that the first left behind."""
    rows = []
    with tempfile.TemporaryDirectory(dir=settings.work) as folder:
        for cache in ("cold", "warm"):
            config = gpt2_small(
                settings, "harmonic", run_dir=f"{folder}/{cache}", data__dir=random_tokens(settings),
                data__vocab_size=settings.vocab_size,
            )  # fmt: skip
            done = first_step(config, time.time()) if settings.toy else _first_step_of_a_process(config, Path(folder))
            rows.append({"cache": cache} | done)
    return rows


def _first_step_of_a_process(config: RunConfig, folder: Path) -> dict:
    file = folder / "config.yaml"
    file.write_text(config.to_yaml())
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
    command = [sys.executable, "-m", "benchmarks.gpu.first_step", str(file), str(time.time())]
    done = subprocess.run(command, env=os.environ | caches, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"the first step failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
