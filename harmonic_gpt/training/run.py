"""The state of one run: one small object that plain functions pass on."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from harmonic_gpt.data.sampler import MixtureSampler, Sampler
from harmonic_gpt.data.tokens import TokenFolder, Tokens
from harmonic_gpt.model.configuration_harmonic_gpt2 import HarmonicGPT2Config
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import RunConfig
from harmonic_gpt.training.prefetch import Prefetch
from harmonic_gpt.training.pushing import Pusher
from harmonic_gpt.training.tracking import SpikeDetector, Tracker


@dataclass
class Run:
    """What training works on. `step` counts finished steps."""

    config: RunConfig
    run_dir: Path
    accelerator: Accelerator
    model: nn.Module  # as prepared by accelerate
    optimizer: torch.optim.Optimizer
    sampler: Sampler | MixtureSampler
    batches: Prefetch  # of the sampler, by step; this rank's share
    data: TokenFolder
    tokenizer: PreTrainedTokenizerBase | None
    step: int = 0
    skipped_steps: int = 0  # of these, where loss or gradient were not finite and the optimizer did not move
    skipped_in_a_row: int = 0
    evaluation_due: bool = False  # of the last finished step: a stop signal came before it was done
    stop_signal: int = 0
    spikes: SpikeDetector = field(default_factory=SpikeDetector)
    # Main process only
    tracker: Tracker | None = None
    pusher: Pusher | None = None
    writer: ThreadPoolExecutor | None = None
    writing: Future | None = None  # the checkpoint on its way to the disk

    @property
    def validation(self) -> Tokens:
        """What `eval.tokens` asks for, and one more target."""
        return self.data.leading("val", self.config.eval.tokens + 1)

    @property
    def model_config(self) -> HarmonicGPT2Config:
        return cast(HarmonicGPT2Config, self.bare_model.config)

    @property
    def bare_model(self) -> HarmonicGPT2ForCausalLM:
        return self.accelerator.unwrap_model(self.model)
