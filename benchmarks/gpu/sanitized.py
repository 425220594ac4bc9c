"""The float32 loss of all heads with a product, plain and with every option, small: for compute-sanitizer to watch."""

import torch

from harmonic_gpt.model.harmonic_head import HarmonicHead
from harmonic_gpt.model.heads import HEADS


def losses(device: str) -> None:
    """Forward and backward at an odd and at an aligned number of classes, more than one block of the kernel's each."""
    for classes in (4099, 4160):
        for name, definition in HEADS.items():
            if definition.form is None:
                continue
            able = [key for key, constant in definition.constants.items() if constant.learnable]
            # With options: a prior, learned numbers (frozen too, as beside adapters), smoothing and z-loss
            for learn, frozen in (([], False), (able, False), (able, True)):
                head = HarmonicHead(64, classes, head=name, learn=learn, prior=bool(learn)).to(device)
                torch.nn.init.normal_(head.weight)
                if learn:
                    head.label_smoothing, head.z_loss = 0.1, 1e-4
                for number in head.learned_numbers():
                    getattr(head, f"log_{number}").requires_grad_(not frozen)
                x = torch.randn(65, 64, device=device, requires_grad=True)
                head(x, torch.randint(classes, (65,), device=device)).backward()
                for tensor in (x, *head.parameters()):
                    if tensor.requires_grad and not tensor.grad.isfinite().all():
                        raise FloatingPointError(f"{name}, learning {learn}, frozen {frozen}, {classes} classes")


if __name__ == "__main__":
    losses("cuda")
