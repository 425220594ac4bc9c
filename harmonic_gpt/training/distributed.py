"""The ranks of a run: how they start, and that they agree about what they train."""

import hashlib
import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather_object
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from harmonic_gpt.errors import InputError

# A rank that waits longer than this for the others gives up. Most deaths are noticed at once, by a closed connection;
# this is for a rank that hangs, and must leave the first rank time to finish a checkpoint. Not 10 minutes: accelerate
# drops that value, as equal to NCCL's default, and gloo would wait for 30.
COLLECTIVE_TIMEOUT = timedelta(minutes=15)


def start_ranks(precision: str, services: list[GeneralTracker]) -> Accelerator:
    """Join the other processes of the launch, if there are any. Raises InputError for a launch that cannot work.

    Args:
        precision: "fp32" or "bf16". services: trackers for accelerate to finish at the end.
    """
    AcceleratorState._reset_state()  # a notebook may train twice: the first run's precision would be kept otherwise
    accelerator = Accelerator(
        log_with=services or None,
        mixed_precision={"fp32": "no", "bf16": "bf16"}[precision],
        # torchrun on a machine without GPUs makes ranks that each believe they are alone, unless this says cpu
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
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
        # Left alone, accelerate adds gradients up and returns losses in bfloat16. Autocast alone decides, as without
        # sharding
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return accelerator


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


def model_facts(model: nn.Module) -> dict[str, object]:
    """What every rank's model must share before it is wrapped: the configuration and each bit of the weights."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return {"model's configuration": model.config.to_json_string(), "initial weights": digest.hexdigest()}
