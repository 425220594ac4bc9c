"""Seconds per token of greedy generation with a key-value cache: harmonic, standard and GPT2LMHeadModel take turns.

    python benchmarks/generate.py
    python benchmarks/generate.py --device cuda --rounds 20

GPT-2 small with random weights, batch 1, 32 prompt tokens.
"""

import argparse
import random
import time
from statistics import median, quantiles

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from harmonic_gpt import HarmonicGPT2Config, HarmonicGPT2ForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    plain = {"bos_token_id": None, "eos_token_id": None}
    models = {
        "harmonic": HarmonicGPT2ForCausalLM(HarmonicGPT2Config(**plain)),
        "standard": HarmonicGPT2ForCausalLM(HarmonicGPT2Config(similarity="dot", normalization="softmax", **plain)),
        "GPT2LMHeadModel": GPT2LMHeadModel(GPT2Config(**plain)),
    }
    ids = torch.randint(50257, (1, 32), device=args.device)
    for model in models.values():
        model.to(args.device).eval()
    times: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    for i in range(args.rounds + 1):
        random.Random(i).shuffle(order)
        for name in order:
            start = time.perf_counter()
            models[name].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            if args.device == "cuda":
                torch.cuda.synchronize()
            if i:  # the first round warms up
                times[name].append((time.perf_counter() - start) / args.new_tokens)
    base = median(times["GPT2LMHeadModel"])
    print(f"GPT-2 small, batch 1, {args.device}, {torch.get_num_threads()} threads; milliseconds a token")
    print(f"{'':<18}{'ms':>8}{'quartiles':>16}{'/ GPT2LMHeadModel':>20}")
    for name, seconds in times.items():
        low, _, high = (1000 * q for q in quantiles(seconds, n=4, method="inclusive"))
        print(f"{name:<18}{1000 * median(seconds):>8.1f}{f'{low:.1f}-{high:.1f}':>16}{median(seconds) / base:>20.2f}")


if __name__ == "__main__":
    main()
