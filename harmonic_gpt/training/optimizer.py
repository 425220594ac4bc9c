"""AdamW, or Muon and AdamW, over groups of parameters; and the learning rate as a pure function of the step."""

import math
from typing import Any

import torch
from torch import nn

from harmonic_gpt.run_config import OptimSection


class MuonAndAdamW(torch.optim.Optimizer):
    """torch.optim.Muon and torch.optim.AdamW as one optimizer: one list of groups, one state.

    muon_groups hold matrices only. `adamw` are AdamW's settings; `lr` is a group's own.
    """

    def __init__(self, muon_groups: list[dict], adamw_groups: list[dict], **adamw: Any):
        # match_rms_adamw: an update as long as AdamW's, by the longer side, so GPT-2's matrices may lie transposed
        # (Conv1D)
        muon = torch.optim.Muon(muon_groups, adjust_lr_fn="match_rms_adamw")
        self.parts = (muon, torch.optim.AdamW(adamw_groups, **adamw))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts work on this optimizer's groups and state, which loading a state dict replaces."""
        n = len(self.parts[0].param_groups)
        self.parts[0].param_groups, self.parts[1].param_groups = self.param_groups[:n], self.param_groups[n:]
        for part in self.parts:
            part.state = self.state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            raise NotImplementedError("MuonAndAdamW takes no closure")
        for part in self.parts:
            part.step()


def parameter_groups(model: nn.Module, weight_decay: float, head_lr_scale: float = 1.0) -> list[dict]:
    """Decay what multiplies (matrices, embeddings: two dimensions or more), not biases and layer norms. A tied weight
    comes once.

    With another `head_lr_scale` than 1 the head's centers are a third group, whose `lr_scale` it is.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    centers = [model.lm_head.weight] if head_lr_scale != 1.0 else []
    rest = [p for p in parameters if not any(p is c for c in centers)]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    if centers:
        groups.append({"params": centers, "weight_decay": weight_decay, "lr_scale": head_lr_scale})
    return groups


def build_optimizer(model: nn.Module, config: OptimSection) -> torch.optim.Optimizer:
    """The optimizer of a run. Muon (torch.optim.Muon) is for the blocks' matrices; embeddings, centers and vectors stay
    with AdamW."""
    groups = parameter_groups(model, config.weight_decay, config.head_lr_scale)
    adamw: dict = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "fused": True}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **adamw)
    in_blocks = {id(p) for p in model.transformer.h.parameters()}
    matrices = [p for p in groups[0]["params"] if id(p) in in_blocks]
    groups[0]["params"] = [p for p in groups[0]["params"] if id(p) not in in_blocks]
    return MuonAndAdamW([{"params": matrices, "weight_decay": config.weight_decay, "lr": config.lr}], groups, **adamw)


def learning_rate(step: int, steps: int, config: OptimSection) -> float:
    """Of update `step` in [0, steps): linear warmup to `lr`, then a cosine to `lr * min_lr_ratio` at the last
    update."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    floor = config.lr * config.min_lr_ratio
    return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
