"""How a trained model can be read, as numbers of its row: lens agreement, label distance, own center.

    python experiments/reading.py RUN... [--data data/prose8k]       # of checkpoints that are there; one JSON line each

run_queue.py takes the same numbers at the end of a run.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from harmonic_gpt.data.tokens import Tokens
from harmonic_gpt.evaluation.activations import centers_of, final_residual, head_input, text_states
from harmonic_gpt.evaluation.measures.class_centers import class_centers
from harmonic_gpt.evaluation.measures.label_distance import label_distance
from harmonic_gpt.evaluation.measures.lens_agreement import lens_agreement
from harmonic_gpt.evaluation.text import data_of
from harmonic_gpt.runs.load import load_model

TOKENS = 32768  # leading validation tokens; one half fits, the other is read
BLOCK = 256


def reading(model: PreTrainedModel, validation: Tokens, tokens: int = TOKENS) -> dict:
    """Numbers of one model, without intervals: the protocol's are over seeds. None where a measure is flagged."""
    block = min(BLOCK, model.config.max_position_embeddings)
    ids = validation.read(0, min(len(validation), tokens + 1))
    was_training = model.training
    model.eval()
    with final_residual(model) as taken:
        states, labels = text_states(model, ids, block)
    inputs = torch.from_numpy(ids[: len(labels)].astype(np.int64))
    lens = lens_agreement(model, states, torch.cat(taken), inputs, block, positions=len(labels)).row
    before_head, centers = head_input(model, states[-1]), centers_of(model)
    label = label_distance(before_head, labels, centers).row
    own = class_centers(before_head, labels, centers).row
    model.train(was_training)
    layers = ("agreement", "kl", "context_agreement")
    return {
        "lens_agreement": lens.get("lens_agreement"),
        "tuned_lens": lens.get("tuned_lens"),
        "label_distance": label.get("label_over_shuffled"),
        "own_center": own.get("own_center"),
        "label_over_median": label.get("label"),
        "raw_label_over_median": label.get("raw_label"),
        "center_cosine": own.get("cosine"),
        "layers": {
            prefix + key: [round(row[prefix + key], 4) for row in lens["layers"] if prefix + key in row]
            for prefix in ("", "tuned_")
            for key in layers
        },
        "flags": [row["flag"] for row in (lens, label, own) if row["flag"]],
    }


def print_rows(measure: Callable[[Any, Tokens], dict], description: str | None, device: str | None = None) -> None:
    """A program: `measure(model, validation tokens)` of every run on the command line, one JSON line each."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders or checkpoints")
    parser.add_argument("--data", help="token folder; default: the run's own")
    args = parser.parse_args()
    for name in args.runs:
        loaded = load_model(name, device)
        print(json.dumps({"run": name} | measure(loaded.model, data_of(loaded, args.data).tokens("val"))), flush=True)


if __name__ == "__main__":
    print_rows(reading, __doc__)
