"""The float32 loss of all four heads, small: a program for compute-sanitizer to watch."""

import torch

from harmonic_gpt.model.harmonic_logits import NORMALIZATIONS, SIMILARITIES
from harmonic_gpt.model.harmonic_loss import harmonic_cross_entropy


def losses(device: str) -> None:
    """Forward and backward at an odd and at an aligned number of classes, more than one block of the kernel's each."""
    for classes in (4099, 4160):
        for similarity in SIMILARITIES:
            for normalization in NORMALIZATIONS:
                x, w = (torch.randn(n, 64, device=device, requires_grad=True) for n in (65, classes))
                y = torch.randint(classes, (65,), device=device)
                harmonic_cross_entropy(
                    x, w, y, exponent=8, similarity=similarity, normalization=normalization
                ).backward()
                if not (x.grad.isfinite().all() and w.grad.isfinite().all()):
                    raise FloatingPointError(f"{similarity} + {normalization}, {classes} classes")


if __name__ == "__main__":
    losses("cuda")
