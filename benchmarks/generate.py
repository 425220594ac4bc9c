"""Time per token of greedy generation with a key-value cache: harmonic, standard and GPT2LMHeadModel take turns.

    OMP_NUM_THREADS=1 python benchmarks/generate.py --rounds 30
    python benchmarks/generate.py --device cuda --rounds 20

GPT-2 small with random weights, batch 1, 32 prompt tokens. All three have the same activation: GPT2LMHeadModel's
default is the same function in several passes over memory. CPU time beside wall time: on a machine that others use,
only the first can be compared. Each ratio is of medians; its interval is of medians of rounds drawn with replacement.
"""

import argparse
import random
import time

import numpy as np
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
        "GPT2LMHeadModel": GPT2LMHeadModel(GPT2Config(activation_function="gelu_pytorch_tanh", **plain)),
    }
    ids = torch.randint(50257, (1, 32), device=args.device)
    for model in models.values():
        model.to(args.device).eval()
    clocks = {"wall": time.perf_counter, "CPU": time.process_time}
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in models} for clock in clocks}
    order = list(models)
    for i in range(args.rounds + 1):
        random.Random(i).shuffle(order)
        for name in order:
            start = {clock: now() for clock, now in clocks.items()}
            models[name].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            if args.device == "cuda":
                torch.cuda.synchronize()
            for clock, now in clocks.items():
                if i:  # the first round warms up
                    times[clock][name].append(1000 * (now() - start[clock]) / args.new_tokens)
    print(f"GPT-2 small, batch 1, {args.device}, {torch.get_num_threads()} threads, {args.rounds} rounds")
    print(f"{'':<18}{'clock':>6}{'ms a token':>12}{'quartiles':>16}{'/ GPT2LMHeadModel':>20}{'95 %':>14}")
    drawn = np.random.default_rng(0).integers(args.rounds, size=(10_000, args.rounds))
    for clock, by_name in times.items():
        base = np.array(by_name["GPT2LMHeadModel"])
        for name, values in by_name.items():
            these = np.array(values)
            low, middle, high = np.quantile(these, [0.25, 0.5, 0.75])
            ratios = np.median(these[drawn], axis=1) / np.median(base[drawn], axis=1)
            interval = "-".join(f"{q:.3f}" for q in np.quantile(ratios, [0.025, 0.975]))
            ratio = middle / np.median(base)
            print(f"{name:<18}{clock:>6}{middle:>12.2f}{f'{low:.2f}-{high:.2f}':>16}{ratio:>20.3f}{interval:>14}")


if __name__ == "__main__":
    main()
