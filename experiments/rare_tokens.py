"""Where two models lose: validation loss and probability mass by how often a token occurs in the training text.

    python experiments/rare_tokens.py RUN... [--blocks 64] [--picture FILE.png]

All runs must have been trained on one token folder. mass: probability that the model gives to a class of tokens, mean
over positions; share: how often a token of that class is the target. They are equal for a calibrated model. Loss in
nats per target of that class. The picture has the loss with 95 % intervals over blocks of the text.
"""

import argparse
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from harmonic_gpt.data.tokens import TokenFolder
from harmonic_gpt.evaluation.comparison.canvas import arm_colors, legend, panels
from harmonic_gpt.evaluation.measures.bootstrap import percentile_interval, resample_weights
from harmonic_gpt.evaluation.text import data_of
from harmonic_gpt.likelihood import token_counts
from harmonic_gpt.runs.load import load_model

EDGES = (1, 10, 100, 1_000, 10_000)  # occurrences in training; the classes lie between them
NAMES = ("never", "1 to 9", "10 to 99", "100 to 999", "1,000 to 9,999", "10,000 or more")
RARE = slice(1, 3)  # of these: 1 to 99 times, as in `eval.py compare`
KNOTS = 8  # of a bias by frequency: at 1, 2, 4 ... 128 occurrences


def by_frequency(model: torch.nn.Module, blocks: torch.Tensor, classes: torch.Tensor) -> dict[str, np.ndarray]:
    """Mass, share, loss and mean norm of the centers of each class of tokens.

    blocks: (N, T + 1) int64 token ids; classes: (V,) int64, the class of each token. Values: (classes,) float64;
    "losses", "when" and "targets" are sums of each block, (N, classes). "when" is the part of the loss that is spent on
    whether a RARE token comes, -log p(the target is RARE or not, as it is); the rest of it is spent on which one.
    "log_p_rare": (RARE targets, RARE tokens), at the positions whose target is RARE; "rare_target": its place there.
    """
    count = len(NAMES)
    mass = torch.zeros(count, dtype=torch.float64)
    is_rare = torch.isin(classes, torch.arange(count)[RARE])
    place_among_rare = is_rare.cumsum(0) - 1
    log_p_rare, rare_target = [], []
    targets, losses, when = (torch.zeros(len(blocks), count, dtype=torch.float64) for _ in range(3))
    for place, block in enumerate(blocks.split(1)):
        with torch.inference_mode():
            log_p = model(input_ids=block[:, :-1]).logits[0].double().log_softmax(-1)
        target = block[0, 1:]
        of_target = classes[target]
        mass.index_add_(0, classes, log_p.exp().sum(0))
        targets[place].index_add_(0, of_target, torch.ones(len(target), dtype=torch.float64))
        losses[place].index_add_(0, of_target, -log_p.gather(1, target[:, None])[:, 0])
        log_p_rare.append(log_p[is_rare[target]][:, is_rare])
        rare_target.append(place_among_rare[target[is_rare[target]]])
        rare, other = (log_p[:, chosen].logsumexp(-1) for chosen in (is_rare, ~is_rare))
        when[place].index_add_(0, of_target, -torch.where(is_rare[target], rare, other))
    norms = model.get_output_embeddings().weight.detach().double().norm(dim=1)
    total = blocks[:, 1:].numel()
    mean_norm = [norms[classes == k].mean().item() if (classes == k).any() else float("nan") for k in range(count)]
    return {
        "mass": (mass / total).numpy(),
        "share": (targets.sum(0) / total).numpy(),
        "loss": (losses.sum(0) / targets.sum(0)).numpy(),
        "norm": np.array(mean_norm),
        "losses": losses.numpy(),
        "when": when.numpy(),
        "targets": targets.numpy(),
        "log_p_rare": torch.cat(log_p_rare).numpy(),
        "rare_target": torch.cat(rare_target).numpy(),
    }


class AtRare(NamedTuple):
    """Positions whose target is RARE."""

    log_p: np.ndarray  # (N, R) float64, of the R tokens that are RARE
    target: np.ndarray  # (N,) int64, the place of the target among them


def which_after_fit(fitted: AtRare, read: AtRare, counts: np.ndarray) -> float | None:
    """Nats per target for which RARE token it is, after the bias by frequency and the temperature that suit the model
    best: a bias for each token, piecewise linear in log2 of its occurrences.

    counts: (R,) int64, occurrences in the corpus, at least 1. None without a target in one of the texts.
    """
    if not len(fitted.target) or not len(read.target):
        return None
    at = torch.from_numpy(counts).double().log2()
    hats = (1 - (at[:, None] - torch.arange(KNOTS)).abs()).clamp(min=0)  # (R, KNOTS)
    heights, log_scale = (torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (KNOTS, 1))
    optimizer = torch.optim.LBFGS([heights, log_scale], max_iter=200, line_search_fn="strong_wolfe")

    def loss(text: AtRare) -> torch.Tensor:
        scores = torch.from_numpy(text.log_p) * log_scale.exp() + hats @ heights
        return F.cross_entropy(scores, torch.from_numpy(text.target))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        nats = loss(fitted)
        nats.backward()
        return nats

    optimizer.step(closure)
    with torch.no_grad():
        return loss(read).item()


def rare_words(model: torch.nn.Module, data: TokenFolder, start: int, block: int) -> dict:
    """What a row of a queue says of RARE tokens, over the validation text from token `start` on, in blocks of `block`.
    Frequencies are those of the whole corpus, of which a run may see a part.

    losses: nats per target of each class, None without a target; loss: of all targets that are RARE; all: of all. The
    last is when + share x which + (1 - share) x which_other, with share that of RARE targets: nats per token for
    whether a RARE token comes, and per target for which one of its kind. which_after_fit: which, with what suits the
    model best on the first half of the text before `start`.
    """
    counts, validation = token_counts(data), data.tokens("val")
    classes = np.digitize(counts, EDGES)

    def measured(first: int, end: int) -> dict[str, np.ndarray]:
        ids = torch.from_numpy(validation.read(first, (end - first - 1) // block * block + 1).astype(np.int64))
        return by_frequency(model, ids.unfold(0, block + 1, block), torch.from_numpy(classes))

    was_training = model.training
    model.eval()
    fitted, found = measured(0, start // 2), measured(start, len(validation))
    model.train(was_training)
    nats, when, targets = (found[name].sum(0) for name in ("losses", "when", "targets"))
    is_rare = np.isin(np.arange(len(NAMES)), np.arange(len(NAMES))[RARE])

    def per_target(sums: np.ndarray, chosen: np.ndarray) -> float:
        return float(sums[chosen].sum() / max(targets[chosen].sum(), 1))

    texts = (AtRare(text["log_p_rare"], text["rare_target"]) for text in (fitted, found))
    return {
        "losses": [n / t if t else None for n, t in zip(nats.tolist(), targets.tolist(), strict=True)],
        "targets": targets.astype(int).tolist(),
        "loss": per_target(nats, is_rare),
        "all": per_target(nats, is_rare | ~is_rare),
        "when": float(when.sum() / targets.sum()),
        "which": per_target(nats - when, is_rare),
        "which_other": per_target(nats - when, ~is_rare),
        "which_after_fit": which_after_fit(*texts, counts[is_rare[classes]]),
        "mass": float(found["mass"][is_rare].sum()),
    }


def draw(measured: dict[str, tuple[str, dict[str, np.ndarray]]], path: str) -> None:
    """The loss of each class of targets, and beside it the difference of each run from the last one, with paired
    intervals. measured: {run: (head, what `by_frequency` returns)}.

    Classes with fewer targets than the text has blocks are left out.
    """
    colors = arm_colors({run: head for run, (head, _) in measured.items()})
    sums = {run: values for run, (_, values) in measured.items()}
    blocks, totals = (one := next(iter(sums.values())))["targets"].shape[0], one["targets"].sum(0)
    kept = totals >= blocks
    weights = resample_weights(blocks, 0)
    replicates = {
        run: (weights @ values["losses"][:, kept]) / np.maximum(weights @ values["targets"][:, kept], 1)
        for run, values in sums.items()
    }
    figure, [losses, differences] = panels(2, 10, 4.4)
    last = list(sums)[-1]
    for run, values in sums.items():
        at, base = values["loss"][kept], sums[last]["loss"][kept]
        _points(losses, at, replicates[run], colors[run], run)
        if run != last:
            _points(differences, at - base, replicates[run] - replicates[last], colors[run], f"{run} - {last}")
    differences.axhline(0, color=colors[last], linewidth=1)
    names = [f"{name}\n{share:.1%}" for name, share in zip(NAMES, totals / totals.sum(), strict=True)]
    for axes in (losses, differences):
        axes.set_xticks(range(kept.sum()), [name for name, keep in zip(names, kept, strict=True) if keep], fontsize=7)
        axes.set_xlabel("occurrences in the training text; share of targets", fontsize=9)
        legend(axes)
    losses.set(ylabel="nats per target", ylim=(0, None))
    differences.set_ylabel("difference, nats per target")
    figure.savefig(path, dpi=150)


def _points(axes: Any, at: np.ndarray, replicates: np.ndarray, color: str, label: str) -> None:
    ends = np.array([percentile_interval(column) for column in replicates.T]).T
    look = {"color": color, "marker": "o", "markersize": 5, "capsize": 3}
    axes.errorbar(range(len(at)), at, np.abs(ends - at), label=label, **look)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", help="token folder; default: that of the first run")
    parser.add_argument("--blocks", type=int, default=64, help="blocks of 256 tokens of the validation text")
    parser.add_argument("--picture", help="PNG or SVG to draw the losses into")
    args = parser.parse_args()
    models = [load_model(run) for run in args.runs]
    data = data_of(models[0], args.data)
    val = data.tokens("val")
    classes = torch.from_numpy(np.digitize(token_counts(data), EDGES))
    blocks = torch.from_numpy(val.read(0, args.blocks * 257).astype(np.int64)).view(args.blocks, 257)
    print("| " + " | ".join(["", *NAMES]) + " |\n" + "|---" * (len(NAMES) + 1) + "|")
    print(
        "| tokens of the vocabulary | "
        + " | ".join(f"{n:,}" for n in np.bincount(classes, minlength=len(NAMES)))
        + " |"
    )
    measured = {}
    for loaded in models:
        found = by_frequency(loaded.model.eval(), blocks, classes)
        measured[loaded.name] = loaded.head, found
        if loaded is models[0]:
            print("| share of targets | " + " | ".join(f"{x:.2%}" for x in found["share"]) + " |")
        print(f"| {loaded.name}: mass | " + " | ".join(f"{x:.2%}" for x in found["mass"]) + " |")
        print(f"| {loaded.name}: nats per target | " + " | ".join(f"{x:.3f}" for x in found["loss"]) + " |")
        print(f"| {loaded.name}: norm of centers | " + " | ".join(f"{x:.2f}" for x in found["norm"]) + " |")
    if args.picture:
        draw(measured, args.picture)


if __name__ == "__main__":
    main()
