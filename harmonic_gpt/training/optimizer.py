"""AdamW, or Muon and AdamW, over groups of parameters; and the learning rate as a pure function of the step."""

import math
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from harmonic_gpt.errors import InputError
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import OptimSection


def orthogonalize(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Each matrix with its singular values moved near 1: U V^T of its SVD, roughly; (n, R, C) bfloat16.

    Newton and Schulz's iteration of fifth order (Jordan 2024, https://kellerjordan.github.io/posts/muon/), the same
    arithmetic as torch.optim.Muon's for one matrix: on a CPU the same bits.

    Args:
        matrices: (n, R, C), orthogonalized together: one launch for all where torch.optim.Muon needs n.
        coefficients: a, b, c of one step X <- a X + (b A + c A^2) X with A = X X^T.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16().mT if tall else matrices.bfloat16()  # (n, shorter side, longer side)
    norms = torch.stack(torch._foreach_norm(list(x.unbind())))
    x = x / norms.clamp(min=eps)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class BatchedMuon(torch.optim.Muon):
    """torch.optim.Muon, with matrices of one shape updated in one call: for GPT-2's blocks 4 calls in all, not 4 each.

    Settings and state are torch.optim.Muon's; of the settings it heeds those that `MuonAndAdamW` leaves open. Where
    `found_inf` is set and not 0, nothing changes, as with torch's fused optimizers.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise NotImplementedError("BatchedMuon takes no closure")
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group, None if found_inf is None else found_inf.bool())

    def _update(self, parameters: list[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        """Parameters of one shape (R, C), n of them. The shapes of the tensors here: (n, R, C)."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradient = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        old_momentum, old_weight = torch.stack(buffers), torch.stack(parameters)
        momentum = old_momentum.lerp(gradient, 1 - group["momentum"])
        update = orthogonalize(
            gradient.lerp(momentum, group["momentum"]), group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        # As long as AdamW's updates, by the longer side: GPT-2's matrices (Conv1D) lie transposed
        rate = group["lr"] * (0.2 * math.sqrt(max(old_weight.shape[1:])))
        weight = old_weight.mul(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)
        if skip is not None:
            momentum, weight = torch.where(skip, old_momentum, momentum), torch.where(skip, old_weight, weight)
        torch._foreach_copy_(buffers, momentum.unbind())
        torch._foreach_copy_(parameters, weight.unbind())


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon and torch.optim.AdamW as one optimizer: one list of groups, one state.

    muon_groups hold matrices only. `adamw` are AdamW's settings; `lr` is a group's own.
    """

    def __init__(self, muon_groups: list[dict], adamw_groups: list[dict], **adamw: Any):
        muon = BatchedMuon(muon_groups, adjust_lr_fn="match_rms_adamw")
        self.parts = (muon, torch.optim.AdamW(adamw_groups, **adamw))
        self._made = False
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._made = True
        self._share()

    def add_param_group(self, param_group: dict) -> None:
        """Refused: the parts would not see it. Raises NotImplementedError."""
        if self._made:
            raise NotImplementedError(
                "MuonAndAdamW takes all groups when it is made: give parameters that come later to a new one "
                "(build_optimizer), or freeze them and unfreeze them in place"
            )
        super().add_param_group(param_group)

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
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise NotImplementedError("MuonAndAdamW takes no closure")
        for part in self.parts:
            part.found_inf = getattr(self, "found_inf", None)  # type: ignore[union-attr]
            part.step()


@torch.no_grad()
def step_unless(skip: Tensor, optimizer: AcceleratedOptimizer) -> None:
    """The optimizer's step; where `skip` is true, weights, moments and step counts stay as they are, bit by bit.

    The device decides and the host is not told. torch's fused optimizers take the decision as `found_inf`, which is
    what a gradient scaler sets; so does `MuonAndAdamW`.

    Args:
        skip: bool scalar on the parameters' device, the same on all ranks.
    """
    inner = optimizer.optimizer
    inner.found_inf = skip.float()
    try:
        optimizer.step()
    finally:
        del inner.found_inf


def freeze(model: HarmonicGPT2ForCausalLM, names: list[str]) -> None:
    """Modules and parameters of these names keep the values they have. Raises InputError for a name that the model does
    not have, and where nothing is left to train."""
    every = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        parts = [parameter for own, parameter in every.items() if f"{own}.".startswith(f"{name}.")]
        if not parts:
            modules = sorted({own.rpartition(".")[0] for own in every if ".h." not in own})
            raise InputError(
                f"optim.freeze: the model has no {name!r}; it has {', '.join(modules)} and transformer.h.0 to "
                f"transformer.h.{len(model.transformer.h) - 1}"
            )
        for parameter in parts:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in every.values()):
        raise InputError("optim.freeze: nothing is left to train")


def parameter_groups(model: HarmonicGPT2ForCausalLM, weight_decay: float, head_lr_scale: float = 1.0) -> list[dict]:
    """Decay what multiplies (matrices, embeddings: two dimensions or more), not biases and layer norms, and nothing of
    the head but its centers: decay would pull a metric to 0. A tied weight comes once.

    With another `head_lr_scale` than 1 the head's centers are a third group, whose `lr_scale` it is.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    weight = model.lm_head.weight
    centers = [weight] if head_lr_scale != 1.0 and weight.requires_grad else []
    rest = [p for p in parameters if not any(p is c for c in centers)]
    of_head = {id(p) for p in model.lm_head.parameters() if p is not model.lm_head.weight}
    decayed = [p for p in rest if p.ndim >= 2 and id(p) not in of_head]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2 or id(p) in of_head], "weight_decay": 0.0},
    ]
    if centers:
        groups.append({"params": centers, "weight_decay": weight_decay, "lr_scale": head_lr_scale})
    return groups


def build_optimizer(model: HarmonicGPT2ForCausalLM, config: OptimSection) -> torch.optim.Optimizer:
    """The optimizer of a run. Muon is for the blocks' matrices; embeddings, the head and vectors stay with AdamW."""
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
