"""How exact the harmonic head is in low precision, against float64: the table of docs/explanation/numerics.md.

    python benchmarks/numerics.py                 # the table; docs/explanation/numerics.md adds what follows from it

Truth is the float64 loss and gradient of the same float32 inputs. Columns: float32; bfloat16 operands with float32
distances (what autocast and `precision: bf16` do); the same after the centers' mean is subtracted from both operands;
distances computed in bfloat16.
"""

import argparse

import torch
from torch import Tensor
from torch.nn import functional as F

from harmonic_gpt.model.harmonic_logits import RELATIVE_FLOOR, head_logits
from harmonic_gpt.model.harmonic_loss import harmonic_cross_entropy

TOKENS, CLASSES, DIM = 256, 1000, 768
EXPONENTS = (1, 28, 56, 166, 768, 1536)  # 28: the paper, 166: configs/gpt2_small_sharp.yaml


def scenes() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """name -> x (N, D), w (V, D), y (N,), float32, norms about 1 as in a matched model."""
    torch.manual_seed(0)
    w = torch.randn(CLASSES, DIM) / DIM**0.5
    y = torch.randint(CLASSES, (TOKENS,))
    x = torch.randn(TOKENS, DIM) / DIM**0.5
    near = w[y] + 0.1 * torch.randn(TOKENS, DIM) / DIM**0.5  # a distance of a tenth of the norm
    offset = 3 * torch.ones(DIM) / DIM**0.5  # a common mean of three times the norm
    return {"random": (x, w, y), "near its center": (near, w, y), "common offset": (x + offset, w + offset, y)}


def gradients(x: Tensor, w: Tensor, loss_of) -> tuple[Tensor, Tensor]:
    x, w = x.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
    loss_of(x, w).backward()
    return x.grad.double(), w.grad.double()


def naive_bfloat16(x: Tensor, w: Tensor, n: float) -> Tensor:
    """Log-probabilities with every step in bfloat16, floored as ours are."""
    x, w = x.bfloat16(), w.bfloat16()
    scale = x.square().sum(1, keepdim=True) + w.square().sum(1)
    d2 = torch.maximum(scale - 2 * (x @ w.T), RELATIVE_FLOOR * scale)
    return (-(n / 2) * d2.log()).log_softmax(1)


def errors(x: Tensor, w: Tensor, y: Tensor, n: float) -> list[tuple[float, float]]:
    """(max |error of log p|, relative gradient error) for each column."""

    def log_p(a: Tensor, b: Tensor) -> Tensor:
        return head_logits(a, b, exponent=n).log_softmax(1)

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return harmonic_cross_entropy(a, b, y, exponent=n)

    mean = w.mean(0)
    truth = log_p(x.double(), w.double())
    true_gradients = gradients(x.double(), w.double(), ours)
    low, centered = (x.bfloat16(), w.bfloat16()), ((x - mean).bfloat16(), (w - mean).bfloat16())
    columns = [
        (log_p(x, w), gradients(x, w, ours)),
        (log_p(*low), gradients(*low, ours)),
        (log_p(*centered), gradients(*centered, ours)),
        (naive_bfloat16(x, w, n), gradients(x, w, lambda a, b: F.nll_loss(naive_bfloat16(a, b, n).float(), y))),
    ]
    result = []
    for value, grads in columns:
        # a gradient below float32's range (p = 1 to within rounding) is rightly zero
        sizes = [max(t.norm().item(), torch.finfo(torch.float32).tiny) for t in true_gradients]
        relative = max((g - t).norm().item() / size for g, t, size in zip(grads, true_gradients, sizes, strict=True))
        result.append(((value.double() - truth).abs().max().item(), relative))
    return result


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(
        f"N = {TOKENS}, V = {CLASSES}, D = {DIM}; max |error of log p| in nats / relative error of the worse gradient\n"
    )
    print("| inputs | n | float32 | bf16 in, float32 distances | the same, mean removed | distances in bf16 |")
    print("|---|---|---|---|---|---|")
    for name, (x, w, y) in scenes().items():
        for n in EXPONENTS:
            cells = " | ".join(f"{log_p:.1e} / {gradient:.1e}" for log_p, gradient in errors(x, w, y, n))
            print(f"| {name} | {n} | {cells} |")


if __name__ == "__main__":
    main()
