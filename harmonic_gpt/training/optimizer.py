"""AdamW with two parameter groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from harmonic_gpt.run_config import OptimSection


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay what multiplies (matrices, embeddings: two dimensions or more), not biases and layer norms. A tied weight comes once."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimSection) -> torch.optim.AdamW:
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, steps: int, config: OptimSection) -> float:
    """Of update `step` in [0, steps): linear warmup to `lr`, then a cosine to `lr * min_lr_ratio` at the last update."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    floor = config.lr * config.min_lr_ratio
    return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
