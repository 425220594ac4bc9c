"""What fresh models predict: their loss before training, and how often they bet on the input token coming again.

    python experiments/fresh_start.py --data data/prose8k

A tied head sees the input token's own embedding come through the untrained residual stream.
"""

import argparse

import torch

from harmonic_gpt import HarmonicGPT2Config, HarmonicGPT2ForCausalLM
from harmonic_gpt.data.tokens import open_token_folder

BLOCK, BLOCKS = 256, 4
SIZES = ((2, 128), (4, 192), (6, 384), (12, 768))
UNMATCHED = {"hidden_scale": 1.0, "center_std": 0.02}
STANDARD = {"similarity": "dot", "normalization": "softmax"}
UNTIED = {"tie_word_embeddings": False}
HEADS = {  # exponent / sqrt(D), and the other fields of the config
    "harmonic, n = sqrt(D)": (1, {}),
    "harmonic, n = 2 sqrt(D)": (2, {}),
    "harmonic, n = 2 sqrt(D), untied": (2, UNTIED),
    "harmonic, n = 2 sqrt(D), norms not matched": (2, UNMATCHED),
    "standard, std 1/sqrt(D)": (1, STANDARD),
    "standard, std 1/sqrt(D), untied": (1, STANDARD | UNTIED),
    "standard, std 0.02": (1, STANDARD | {"center_std": 0.02}),
}


@torch.no_grad()
def start(fields: dict, vocab_size: int, ids: torch.Tensor, signs: bool) -> tuple[float, float]:
    """(loss in nats per token, mean probability that the input token repeats) of a fresh model.

    ids: (B, T + 1) int64. signs: the final layer norm's gain gets random signs.
    """
    torch.manual_seed(0)
    fields = fields | {"vocab_size": vocab_size, "n_positions": BLOCK, "bos_token_id": None, "eos_token_id": None}
    config = HarmonicGPT2Config(**fields)
    model = HarmonicGPT2ForCausalLM(config).eval()
    if signs:
        gain = model.transformer.ln_f.weight
        gain.mul_(torch.randint(0, 2, gain.shape) * 2 - 1)
    output = model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:], skip_logits=False)
    repeats = output.logits.log_softmax(-1).gather(-1, ids[:, :-1, None]).exp()
    return output.loss.item(), repeats.mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="token folder")
    folder = open_token_folder(parser.parse_args().data)
    validation = folder.tokens("val")
    ids = torch.stack([torch.from_numpy(validation.read(i * BLOCK, BLOCK + 1)) for i in range(BLOCKS)])  # (B, T + 1)
    print("| head | " + " | ".join(f"{layers} x {width}" for layers, width in SIZES) + " |")
    print("|---" * (len(SIZES) + 1) + "|")
    for signs in (False, True):
        for name, (exponent, fields) in HEADS.items():
            cells = []
            for layers, width in SIZES:
                size = {"n_layer": layers, "n_embd": width, "n_head": width // 64, "exponent": exponent * width**0.5}
                loss, repeats = start(fields | size, folder.vocab_size, ids, signs)
                cells.append(f"{loss:.2f} ({repeats:.1%})")
            print("| " + " | ".join([name + (", signs" if signs else ""), *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
