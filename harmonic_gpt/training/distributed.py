"""The ranks of a run: how they start, and that they agree about what they train."""

import hashlib
import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, gather_object
from torch.distributed.fsdp import MixedPrecisionPolicy

from harmonic_gpt.errors import InputError
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import RunConfig

# A rank that waits longer than this for the others gives up. Most deaths are noticed at once, by a closed connection;
# this is for a rank that hangs, and must leave the first rank time to finish a checkpoint. Not 10 minutes: accelerate
# drops that value, as equal to NCCL's default, and gloo would wait for 30.
COLLECTIVE_TIMEOUT = timedelta(minutes=15)
BF16_CAPABILITY = 8  # first compute capability with bfloat16 in its tensor cores


def start_ranks(config: RunConfig, services: list[GeneralTracker]) -> Accelerator:
    """Join the other processes of the launch, if there are any. Raises InputError for a launch that cannot work.

    Args:
        services: trackers for accelerate to finish at the end.
    """
    _check_precision(config.train.precision)
    AcceleratorState._reset_state()  # a notebook may train twice: the first run's precision would be kept otherwise
    accelerator = Accelerator(
        log_with=services or None,
        mixed_precision={"fp32": "no", "bf16": "bf16"}[config.train.precision],
        # torchrun on a machine without GPUs makes ranks that each believe they are alone, unless this says cpu
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
            # Gradients lie in the buckets that are exchanged, and not beside them (`make_gradients`)
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise InputError(
            f"{launched} processes were launched, but accelerate sees {accelerator.num_processes}: they would train "
            "alone and write the same folder. On GPUs start with `accelerate launch`; on CPU with "
            "`torchrun --nproc_per_node N train.py ...`"
        )
    kind = accelerator.distributed_type
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and launched > 1 and kind != DistributedType.FSDP:
        raise InputError(
            "FSDP was asked for, but accelerate shards on GPUs only; on CPU use "
            "`torchrun --nproc_per_node N train.py ...`"
        )
    unknown = kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if unknown or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise InputError("expected plain data parallelism, or FSDP with fsdp_version 2 (configs/accelerate)")
    if accelerator.is_fsdp2:
        if config.optim.optimizer == "muon":
            raise InputError(
                "optim.optimizer: muon works on whole matrices, and FSDP2 cuts them up; use --optim.optimizer=adamw, "
                "or leave the weights whole (accelerate launch --config_file configs/accelerate/ddp.yaml)"
            )
        # Left alone, accelerate adds gradients up and returns losses in bfloat16. Autocast alone decides, as without
        # sharding
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return accelerator


def make_gradients(model: HarmonicGPT2ForCausalLM) -> None:
    """Gradients of 0, for DistributedDataParallel to move into its buckets when it wraps the model.

    There they must stay, as zeros between steps. Where they are None, the first micro-batch makes others outside of the
    buckets, which are moved there by the last one: until then both take memory.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _check_precision(precision: str) -> None:
    """Raises InputError for bf16 on a GPU that computes in it slowly or not at all."""
    if precision != "bf16" or not torch.cuda.is_available() or torch.version.hip is not None:
        return
    device = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    major, minor = torch.cuda.get_device_capability(device)
    if major < BF16_CAPABILITY:
        raise InputError(
            f"train.precision: bf16 needs a GPU of compute capability {BF16_CAPABILITY}.0 or later (Ampere); "
            f"{torch.cuda.get_device_name(device)} has {major}.{minor}: use --train.precision=fp32"
        )


def raise_together(problem: str | None) -> None:
    """InputError on every rank, with the first problem that one of them has. Collective."""
    if problems := [problem for problem in gather_object([problem]) if problem is not None]:
        raise InputError(problems[0])


def check_ranks_agree(facts: dict[str, object]) -> None:
    """Each machine reads its own files: another config, checkpoint or data on one would train something else, silently.

    Collective. Raises InputError on every rank that names the first fact in which two of them differ.
    """
    everyone = gather_object([facts])
    for name, first in everyone[0].items():
        for rank, other in enumerate(everyone):
            if other[name] != first:
                raise InputError(
                    f"the ranks disagree about the {name}: rank 0 has {first}, rank {rank} has {other[name]}. All "
                    "machines need the same command and config, and a run_dir on a file system that they share"
                )


def model_facts(model: HarmonicGPT2ForCausalLM) -> dict[str, object]:
    """What every rank's model must share before it is wrapped: the configuration and each bit of the weights."""
    digest = hashlib.sha256()
    for parameter in (*model.parameters(), *model.buffers()):
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return {"model's configuration": model.config.to_json_string(), "initial weights": digest.hexdigest()}
