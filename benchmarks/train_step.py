"""Tokens per second of a whole training step: forward, backward, clipping, AdamW. Contenders take turns in one process.

    python benchmarks/train_step.py                                   # quickstart and GPT-2 small
    python benchmarks/train_step.py --nanogpt PATH/TO/nanoGPT/model.py
    python benchmarks/train_step.py --device cuda --precision bf16 --size gpt2-small --batch 16 --compile

Contenders: harmonic and standard, by the step of train.py itself, which reads its batch from token files, checks the
gradient and may compile the blocks one by one; transformers' GPT2LMHeadModel with its own loss, in its default
configuration (no dropout); nanoGPT's model if the path to its model.py is given (it is fetched, never committed). These
two run in a plain loop on tokens that lie on the device; with --compile the whole model is compiled.
"""

import argparse
import importlib.util
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from harmonic_gpt.allocator import keep_freed_memory
from harmonic_gpt.run_config import load_run_config
from harmonic_gpt.training.loop import train_step
from harmonic_gpt.training.setup import setup

# Shape of the model, and sequences of a step
SIZES = {
    "toy": ({"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}, 4),
    "quickstart": ({"vocab_size": 4096, "n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 256}, 8),
    "gpt2-small": ({"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}, 1),
}
DEFAULT_SIZES = ("quickstart", "gpt2-small")
HEADS = {"harmonic": ("euclidean", "harmax"), "standard": ("dot", "softmax")}

Build = Callable[[dict], tuple[nn.Module, Callable[[Tensor], Tensor]]]  # shape -> model, loss of ids (B, T + 1)


def hugging_face(shape: dict) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    none = {"bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(**shape, **none, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))

    def loss(ids: Tensor) -> Tensor:
        inputs, targets = ids[:, :-1], ids[:, 1:].contiguous()
        return model(input_ids=inputs, shift_labels=targets, labels=inputs, use_cache=False).loss

    return model, loss


def nanogpt(path: Path) -> Build:
    specification = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["nanogpt_model"] = module
    specification.loader.exec_module(module)

    def build(shape: dict) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        names = {"n_positions": "block_size"}
        model = module.GPT(module.GPTConfig(**{names.get(k, k): v for k, v in shape.items()}, dropout=0.0, bias=True))
        return model, lambda ids: model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1]

    return build


def our_step(head: str, shape: dict, batch: int, folder: Path, args: argparse.Namespace) -> Callable[[], object]:
    """A function that does one step of a run, with random tokens in nanoGPT's format."""
    similarity, normalization = HEADS[head]
    rng = np.random.default_rng(0)
    for name, count in (("train", 2**22), ("val", 2 * shape["n_positions"])):
        rng.integers(shape["vocab_size"], size=count, dtype=np.uint16).astype("<u2").tofile(folder / f"{name}.bin")
    settings = {f"model.{name}": value for name, value in shape.items() if name != "vocab_size"} | {
        "run_dir": folder / head, "data.dir": folder, "data.vocab_size": shape["vocab_size"],
        "model.similarity": similarity, "model.normalization": normalization, "optim.lr": 1e-4,
        "train.batch_tokens": batch * shape["n_positions"], "train.micro_batch_size": batch,
        "train.precision": args.precision, "train.compile": args.compile,
    }  # fmt: skip
    run = setup(load_run_config(None, [f"--{name}={value}" for name, value in settings.items()]), resume=False)
    return lambda: train_step(run)


def plain_step(build: Build, shape: dict, batch: int, args: argparse.Namespace) -> Callable[[], object]:
    """A function that does one step of another program's model."""
    torch.manual_seed(0)
    model, loss_of = build(shape)
    model.to(args.device).train()
    if args.compile:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    ids = torch.randint(shape["vocab_size"], (batch, shape["n_positions"] + 1), device=args.device)

    def step() -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(size: str, folder: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each round, by contender."""
    shape, batch = SIZES[size][0], args.batch or SIZES[size][1]
    steps = {head: our_step(head, shape, batch, folder, args) for head in HEADS}
    steps["GPT2LMHeadModel"] = plain_step(hugging_face, shape, batch, args)
    if args.nanogpt:
        steps["nanoGPT"] = plain_step(nanogpt(args.nanogpt), shape, batch, args)
    synchronize = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for i in range(args.rounds + 1):
        random.Random(i).shuffle(order)
        for name in order:
            synchronize()
            start = time.perf_counter()
            steps[name]()
            synchronize()
            if i:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return times


def report(size: str, times: dict[str, list[float]], args: argparse.Namespace) -> None:
    """A table on stdout, rows of JSON into args.out."""
    positions, batch = SIZES[size][0]["n_positions"], args.batch or SIZES[size][1]
    compiled = ", compiled" if args.compile else ""
    print(f"\n{size}, {batch} x {positions} tokens, {args.precision}{compiled}, {args.device}, ", end="")
    print(f"{torch.get_num_threads()} threads")
    print(f"{'':<18}{'tokens/s':>10}{'quartiles':>18}{'/ GPT2LMHeadModel':>20}")
    base = median(times["GPT2LMHeadModel"])
    settings = {name: getattr(args, name) for name in ("device", "precision", "compile")} | {"batch": batch}
    for name, seconds in times.items():
        low, middle, high = (batch * positions / q for q in quantiles(seconds, n=4, method="inclusive"))
        spread = f"{high:,.0f}-{low:,.0f}"
        print(f"{name:<18}{middle:>10,.0f}{spread:>18}{base / median(seconds):>20.2f}")
        row = {"size": size, "model": name, "tokens_per_second": middle, "quartiles": [high, low]}
        if args.out:
            with args.out.open("a") as out:
                out.write(json.dumps(row | settings) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--batch", type=int, help="sequences of a step")
    parser.add_argument("--rounds", type=int, default=5, help="2 or more")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile every contender")
    parser.add_argument("--nanogpt", type=Path, help="nanoGPT's model.py")
    parser.add_argument("--out", type=Path, help="append JSON lines")
    args = parser.parse_args(arguments)
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # our step trains on a GPU where it sees one
        keep_freed_memory()
    for size in args.size or DEFAULT_SIZES:
        with tempfile.TemporaryDirectory() as folder:
            report(size, measure(size, Path(folder), args), args)


if __name__ == "__main__":
    main()
