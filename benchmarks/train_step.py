"""Tokens per second of a whole training step: forward, backward, clipping, AdamW. Contenders take turns in one process.

    python benchmarks/train_step.py                                   # quickstart and GPT-2 small
    python benchmarks/train_step.py --nanogpt PATH/TO/nanoGPT/model.py
    python benchmarks/train_step.py --device cuda --precision bf16 --size gpt2-small --batch 16 --compile

Contenders: harmonic and standard, both through our chunked loss; transformers' GPT2LMHeadModel with its own loss, in
its default configuration (no dropout); nanoGPT's model if the path to its model.py is given (it is fetched, never
committed).
"""

import argparse
import importlib.util
import json
import random
import sys
import time
from pathlib import Path
from statistics import median, quantiles

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from harmonic_gpt import HarmonicGPT2Config, HarmonicGPT2ForCausalLM
from harmonic_gpt.training.setup import keep_freed_memory

SIZES = {
    "quickstart": ({"vocab_size": 4096, "n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 256}, 8),
    "gpt2-small": ({"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}, 1),
}

NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None}


def ours(similarity: str, normalization: str):
    def build(shape: dict):
        model = HarmonicGPT2ForCausalLM(
            HarmonicGPT2Config(**shape, **NO_SPECIAL_TOKENS, similarity=similarity, normalization=normalization)
        )
        return model, lambda ids: model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:], labels=ids[:, :-1]).loss

    return build


def hugging_face(shape: dict):
    model = GPT2LMHeadModel(GPT2Config(**shape, **NO_SPECIAL_TOKENS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    return (
        model,
        lambda ids: (
            model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:].contiguous(), labels=ids[:, :-1], use_cache=False).loss
        ),
    )


def nanogpt(path: Path):
    specification = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["nanogpt_model"] = module
    specification.loader.exec_module(module)

    def build(shape: dict):
        names = {"n_positions": "block_size"}
        model = module.GPT(module.GPTConfig(**{names.get(k, k): v for k, v in shape.items()}, dropout=0.0, bias=True))
        return model, lambda ids: model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1]

    return build


def step_of(build, shape: dict, batch: int, args: argparse.Namespace):
    """A function that does one whole training step and returns its seconds."""
    torch.manual_seed(0)
    model, loss_of = build(shape)
    model.to(args.device).train()
    if args.compile:
        getattr(model, "transformer", model).compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    ids = torch.randint(shape["vocab_size"], (batch, shape["n_positions"] + 1), device=args.device)
    synchronize = torch.cuda.synchronize if args.device == "cuda" else lambda: None

    def step() -> float:
        synchronize()
        start = time.perf_counter()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--batch", type=int, help="sequences of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the trunk")
    parser.add_argument("--nanogpt", type=Path, help="nanoGPT's model.py")
    parser.add_argument(
        "--default-malloc", action="store_true", help="leave glibc's malloc as it is (train.py tunes it on the CPU)"
    )
    parser.add_argument("--out", type=Path, help="append JSON lines")
    args = parser.parse_args()
    if args.device == "cpu" and not args.default_malloc:
        keep_freed_memory()
    contenders = {
        "harmonic": ours("euclidean", "harmax"),
        "standard": ours("dot", "softmax"),
        "GPT2LMHeadModel": hugging_face,
    }
    if args.nanogpt:
        contenders["nanoGPT"] = nanogpt(args.nanogpt)

    for size in args.size or SIZES:
        shape, batch = SIZES[size][0], args.batch or SIZES[size][1]
        steps = {name: step_of(build, shape, batch, args) for name, build in contenders.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        order = list(steps)
        for i in range(args.rounds + 1):
            random.Random(i).shuffle(order)
            for name in order:
                seconds = steps[name]()
                if i:  # the first round warms up
                    times[name].append(seconds)
        tokens = batch * shape["n_positions"]
        base = median(times["GPT2LMHeadModel"])
        batch_shape = f"{batch} x {shape['n_positions']} tokens"
        print(f"\n{size}, {batch_shape}, {args.precision}, {args.device}, {torch.get_num_threads()} threads")
        print(f"{'':<18}{'tokens/s':>10}{'quartiles':>18}{'/ GPT2LMHeadModel':>20}")
        for name, seconds in times.items():
            low, _, high = (tokens / q for q in quantiles(seconds, n=4))
            row = {"size": size, "model": name, "tokens_per_second": tokens / median(seconds), "quartiles": [high, low]}
            ratio = base / median(seconds)
            print(f"{name:<18}{row['tokens_per_second']:>10,.0f}{f'{high:,.0f}-{low:,.0f}':>18}{ratio:>20.2f}")
            if args.out:
                with args.out.open("a") as out:
                    out.write(
                        json.dumps(row | {"device": args.device, "precision": args.precision, "batch": batch}) + "\n"
                    )


if __name__ == "__main__":
    main()
