"""The paper's two toy cases (section 2, figure 1): fixed points in the plane, only the unembedding W trains.

M seeds train as one program. The published code's exponent 1 acts on d^2: n = 2 here; n = 1 is the other reading.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from harmonic_gpt.extras import require
from harmonic_gpt.model.harmonic_logits import head_logits
from harmonic_gpt.studies import figures
from harmonic_gpt.studies.claims import Claim, compare, told, write_claims

POINTS = {
    "two points": [[1.0, 1.0], [-1.0, -1.0]],
    "five points": [[0.0, 1.0], [0.0, -1.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]],
}
HEADS: dict[str, dict] = {
    "cross-entropy": {"exponent": 1.0, "similarity": "dot", "normalization": "softmax"},
    "harmonic, n = 2 (code)": {"exponent": 2.0},
    "harmonic, n = 1 (paper)": {"exponent": 1.0},
}
CODE, PAPER = list(HEADS)[1:]
LEARNING_RATE, STEPS = 1e-2, 10_000
LOW = 1e-2  # nats, reached fast or slowly


def train(points: list, head: dict, seeds: int, steps: int = STEPS, start: list | None = None) -> tuple[Tensor, Tensor]:
    """Losses in nats and Frobenius norms of W, each (steps, seeds), of Adam on W in float64, from `start` or from
    nn.Linear's."""
    x = torch.tensor(points, dtype=torch.float64)
    classes, d = x.shape
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    starts = [(torch.rand(classes, d, generator=g) * 2 - 1) * d**-0.5 for g in generators]
    random = torch.stack(starts).double()  # (M, V, D)
    w = (random if start is None else torch.tensor(start, dtype=torch.float64).repeat(seeds, 1, 1)).requires_grad_()
    labels = torch.arange(classes).repeat(seeds)
    optimizer = torch.optim.Adam([w], lr=LEARNING_RATE)
    losses, norms = torch.empty(steps, seeds), torch.empty(steps, seeds)
    for step in range(steps):
        z = head_logits(x.expand(seeds, -1, -1), w, **head)  # (M, N, V)
        loss = F.cross_entropy(z.flatten(0, 1), labels, reduction="none").view(seeds, -1).mean(1)  # (M,)
        losses[step], norms[step] = loss.detach(), w.detach().norm(dim=(1, 2))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return losses, norms


def study(out: str, seeds: int, steps: int = STEPS) -> None:
    """Train both cases with both losses, draw figure 1 and judge its claims."""
    require("studies", "matplotlib", "scipy")  # before the work
    torch.set_num_threads(1)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    curves = {
        case: {name: train(points, head, seeds, steps) for name, head in HEADS.items()}
        for case, points in POINTS.items()
    }
    figures.toy(folder, curves)
    write_claims(
        folder,
        "Toy points",
        claims(curves),
        f"{seeds} seeds, {steps:,} steps of Adam, float64; medians, p of two-sided Mann-Whitney tests over seeds; "
        "in the details, [min, max].",
    )


def claims(curves: dict[str, dict[str, tuple[Tensor, Tensor]]]) -> list[Claim]:
    """What the paper says of figure 1, measured. curves[case][head]: losses and norms, each (steps, seeds)."""

    def first_below(case: str, head: str) -> Tensor:
        losses = curves[case][head][0]
        below = losses < LOW
        return torch.where(below.any(0), below.float().argmax(0), len(losses)).double()

    def growth(case: str, head: str) -> Tensor:
        """||W|| at the end over ||W|| at half time."""
        norms = curves[case][head][1]
        return norms[-1] / norms[len(norms) // 2]

    def last(case: str, head: str) -> Tensor:
        return curves[case][head][0][-1]

    def spread(values: Tensor) -> str:
        return f"{values.quantile(0.5).item():.3g} [{values.min().item():.3g}, {values.max().item():.3g}]"

    judged = []
    for head in (CODE, PAPER):
        steps, base = first_below("two points", head), first_below("two points", "cross-entropy")
        faster = compare(steps.numpy(), base.numpy(), higher_is_better=False)
        judged.append(
            Claim(
                f"two points: the loss falls faster ({head})",
                faster.verdict,
                f"steps to {LOW} nats: {told(faster)}",
                f"Steps to {LOW} nats: {spread(steps)}, cross-entropy {spread(base)}.",
            )
        )
        grown, base = growth("two points", head), growth("two points", "cross-entropy")
        judged.append(
            Claim(
                f"two points: the norm of W plateaus, cross-entropy's grows for ever ({head})",
                "holds" if grown.max() < 1.01 < base.min() else "does not hold",
                f"growth in the second half: {told(compare(grown.numpy(), base.numpy(), higher_is_better=False))}",
                f"Growth in the second half of the steps, as a factor: {spread(grown)}, cross-entropy {spread(base)}.",
            )
        )
        # Centers right on their points: distances below the head's floor cannot be told apart
        resolvable = train(POINTS["five points"], HEADS[head], seeds=1, steps=1, start=POINTS["five points"])[0][-1, 0]
        final, base = last("five points", head), last("five points", "cross-entropy")
        judged.append(
            Claim(
                f"five points: the loss reaches the floor of the head's arithmetic ({head})",
                "holds" if final.max() < 1.5 * resolvable else "does not hold",
                f"final loss: {told(compare(final.numpy(), base.numpy(), higher_is_better=False))}",
                f"Final loss {spread(final)}; centers exactly on the points cost {resolvable:.3g} in this head.",
            )
        )
    stuck = last("five points", "cross-entropy")
    judged.append(
        Claim(
            "five points: cross-entropy plateaus high",
            "holds" if stuck.min() > 0.3 else "does not hold",
            f"final loss: {stuck.quantile(0.5).item():.3g}",
            f"Final loss {spread(stuck)}; the middle point alone costs log(5)/5 = 0.322.",
        )
    )
    return judged
