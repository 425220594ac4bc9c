"""For tests that compare what a loaded model computes bit by bit."""

from torch import nn


def aligned(model: nn.Module) -> nn.Module:
    """The model, with its weights where the allocator puts them.

    Weights that were read from a file lie at any multiple of 4 bytes, and there some processors' matrix product takes
    another path: the same weights gave logits that differ by 1e-5.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model
