"""The memory that a training step needs at its peak, by formula, and whether the device has it.

Bytes of what lives at once, checked against a count of every tensor of a step (tests/training/test_plan.py). N: tokens
of a micro-batch, D: hidden size, V: classes, L: blocks.
"""

import math
import os
from typing import NamedTuple

import torch

from harmonic_gpt.errors import InputError
from harmonic_gpt.model.configuration_harmonic_gpt2 import HarmonicGPT2Config
from harmonic_gpt.model.harmonic_elements import BLOCK_BYTES
from harmonic_gpt.model.harmonic_logits import PAIRS_BYTES
from harmonic_gpt.model.harmonic_loss_cpu import CHUNK_BYTES
from harmonic_gpt.model.harmonic_loss_cuda import CUDA_ALIGNMENT, CUDA_CHUNK_BYTES, CUDA_CHUNK_ROWS
from harmonic_gpt.run_config import RunConfig

GIB = 2**30
FLOAT32 = 4
# The estimate and what a device has free are compared up to this share: what the allocator leaves unused and workspaces
# of libraries are not in it
BORDERLINE = 0.1


class RankDevice(NamedTuple):
    """What one of `ranks` ranks trains on. bytes: memory that it may use, and where, in words. sharded: the ranks share
    weights, gradients and optimizer state (FSDP2)."""

    where: str
    bytes: int
    cuda: bool
    ranks: int = 1
    sharded: bool = False


class Need(NamedTuple):
    """What a step needs, in bytes. largest: sequences of a micro-batch that fit, 0 if not even one does."""

    bytes: int
    largest: int


def rank_device(device: torch.device, ranks: int = 1, sharded: bool = False) -> RankDevice:
    """Of a GPU the memory that is free now, of main memory this rank's share of all of it."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # of an earlier run
        free = torch.cuda.mem_get_info(device)[0] + cached
        return RankDevice(f"free on {torch.cuda.get_device_name(device)}", free, True, ranks, sharded)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return RankDevice("of main memory", total // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), False, ranks, sharded)


def need(model: HarmonicGPT2Config, config: RunConfig, device: RankDevice) -> Need:
    """Of a step with the configured micro-batch. `largest` is at most a rank's share of a batch."""
    share = max(1, config.train.batch_tokens // model.n_positions // device.ranks)
    # Not monotonic: the loss cuts a micro-batch into equal chunks
    fitting = [n for n in range(1, share + 1) if step_bytes(model, config, n, device) <= device.bytes]
    needed = step_bytes(model, config, min(config.train.micro_batch_size, share), device)
    return Need(needed, max(fitting, default=0))


def check_memory(model: HarmonicGPT2Config, config: RunConfig, device: RankDevice) -> str | None:
    """None if a step fits, a warning if it may not. Raises InputError if it will not, with what to change."""
    needed, largest = need(model, config, device)
    text = (
        f"train.micro_batch_size {config.train.micro_batch_size} needs about {needed / GIB:.2f} GiB a rank; there are "
        f"{device.bytes / GIB:.2f} GiB {device.where}"
    )
    if needed <= (1 - BORDERLINE) * device.bytes:
        return None
    if needed <= (1 + BORDERLINE) * device.bytes:
        return f"{text}: it may run out of memory" + (f"; {largest} is safer" if largest > 1 else "")
    if largest:
        raise InputError(f"{text}. Results do not depend on it: use --train.micro_batch_size={largest}")
    if not config.train.gradient_checkpointing:
        train = config.train.model_copy(update={"gradient_checkpointing": True})
        if largest := need(model, config.model_copy(update={"train": train}), device).largest:
            raise InputError(
                f"{text}, too little for one sequence: use --train.gradient_checkpointing=true "
                f"--train.micro_batch_size={min(largest, config.train.micro_batch_size)}"
            )
    share = "" if device.sharded else ", or share it among GPUs (configs/accelerate/fsdp2.yaml)"
    raise InputError(
        f"{text}, too little for one sequence of this model: take a larger device or a smaller model{share}"
    )


def step_bytes(model: HarmonicGPT2Config, config: RunConfig, micro_batch: int, device: RankDevice) -> int:
    """Peak of one optimizer step, `micro_batch` sequences at a time, once the optimizer has its state."""
    train, width = config.train, 2 if config.train.precision == "bf16" else FLOAT32
    d, v, layers = model.n_embd, model.vocab_size, model.n_layer
    n_tokens = micro_batch * model.n_positions
    muon = config.optim.optimizer == "muon"
    matrices = layers * 12 * d * d
    embeddings = (v * (1 if model.tie_word_embeddings else 2) + model.n_positions) * d
    weights = gradients = FLOAT32 * (matrices + layers * 13 * d + embeddings + 2 * d)
    moments = 2 * weights - (FLOAT32 * matrices if muon else 0)
    whole = 0
    if device.sharded:  # put together at a time, with their gradients: two blocks, and what belongs to no block
        weights, gradients, moments = (n // device.ranks for n in (weights, gradients, moments))
        whole = 2 * FLOAT32 * (2 * 12 * d * d + embeddings)
    resident = weights + moments + whole

    stream = FLOAT32 * d * n_tokens  # hidden states between blocks
    block = _block_bytes(model, width, train.compile) * n_tokens
    kept = layers * (stream if train.gradient_checkpointing else block)
    if width < FLOAT32:  # what autocast has rounded of the blocks' matrices, until they are no more needed
        kept += width * matrices
    # In the head: besides, ln_f's output and its scaled copy, and what the loss holds
    definition = model.definition
    distances = definition.form is not None and definition.form.quantity != "dot"
    loss = _loss_bytes(n_tokens, v, d, width, distances, device.cuda)
    if definition.prepare is not None:  # the prepared operands, and their gradients beside the operands' own
        loss += 2 * FLOAT32 * (n_tokens + v) * d
    if definition.form is None:  # a block of pairs, several times over in its formula and its gradients
        loss = 6 * max(PAIRS_BYTES, FLOAT32 * v * d) + FLOAT32 * (2 * n_tokens + 2 * v) * d
    # Gradients that are held already: of earlier micro-batches, or in the buckets of whole copies
    held = train.batch_tokens // device.ranks > n_tokens or (device.ranks > 1 and not device.sharded)
    head = kept + 2 * stream + loss + (gradients if held else 0)
    # In the last block's backward pass: what is computed again, and the gradients of its hidden layer and of the stream
    recomputed = block if train.gradient_checkpointing else 0
    backward = kept + recomputed + 2 * stream + 2 * width * 4 * d * n_tokens + gradients
    # In the update
    update = gradients + (_muon_bytes(layers, d) if muon else 0)
    return resident + max(head, backward, update)


def _block_bytes(model: HarmonicGPT2Config, width: int, compiled: bool) -> int:
    """What a block keeps of one token for its backward pass. width: bytes of an operand of a product.

    Both layer norms' inputs (float32) and outputs (2 D), queries, keys and values (3 D), attention's output (D), the
    hidden layer before and after its activation function (8 D). A compiled block keeps nearly the same.
    """
    d, statistics = model.n_embd, FLOAT32 * (model.n_head + 4)  # of attention's rows, of two layer norms
    masks = 2 * d if model.resid_pdrop else 0
    chain = 12 * width * d if model.activation_function == "gelu_new" and not compiled else 0  # of its operations
    return 2 * FLOAT32 * d + 14 * width * d + masks + chain + statistics


def _loss_bytes(n_tokens: int, v: int, d: int, width: int, euclidean: bool, cuda: bool) -> int:
    """What `harmonic_cross_entropy` holds at its peak beside its float32 operands, gradients included."""
    if not cuda:
        chunk = min(n_tokens * v * FLOAT32, CHUNK_BYTES)
        rounded = FLOAT32 * (n_tokens + v) * d + 3 * chunk // 2 if width < FLOAT32 else 0  # again in float32; g, twice
        return chunk + BLOCK_BYTES + rounded + FLOAT32 * (n_tokens + v) * d
    padded = math.ceil(v / CUDA_ALIGNMENT) * CUDA_ALIGNMENT
    most = max(1, CUDA_CHUNK_BYTES // (padded * FLOAT32) // CUDA_CHUNK_ROWS) * CUDA_CHUNK_ROWS
    rows = math.ceil(n_tokens / math.ceil(n_tokens / most) / CUDA_CHUNK_ROWS) * CUDA_CHUNK_ROWS
    chunk = min(n_tokens, rows) * padded * (FLOAT32 + width)  # u, g
    operands = width * padded * d if width < FLOAT32 or padded != v else 0
    if width < FLOAT32:  # x too; for distances the centers at the end in float32 again
        operands += width * n_tokens * d + (FLOAT32 * v * d if euclidean else 0)
    return chunk + operands + FLOAT32 * (n_tokens + padded) * d


def _muon_bytes(layers: int, d: int) -> int:
    """Of the update of the largest group of matrices of one shape: gradients, momenta and weights, old and new."""
    return 6 * FLOAT32 * layers * 4 * d * d
