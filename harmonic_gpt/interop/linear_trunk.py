"""GPT-2's trunk in nn.Linear, for quantizers that know no Conv1D."""

from typing import TypeVar

from torch import nn
from transformers.pytorch_utils import Conv1D

Model = TypeVar("Model", bound=nn.Module)


def linear_trunk(model: Model) -> Model:
    """Replaces every Conv1D by the nn.Linear of the same function, in place, and returns the model.

    Names stay, weights are transposed: a state dict of the result does not load into GPT-2. The head stays as it is.
    """
    for name, conv in list(model.named_modules()):
        if isinstance(conv, Conv1D):
            linear = nn.Linear(conv.weight.shape[0], conv.weight.shape[1], device="meta")
            linear.weight = nn.Parameter(conv.weight.detach().T.contiguous(), requires_grad=conv.weight.requires_grad)
            linear.bias = conv.bias
            model.set_submodule(name, linear)
    return model
