"""What a run will do and need, worked out from its configuration alone."""

import math
import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from harmonic_gpt.data.request import DEFAULT_VOCAB_SIZE
from harmonic_gpt.data.tokens import NANOGPT_VOCAB_SIZE, open_token_folder
from harmonic_gpt.errors import InputError, reason_of
from harmonic_gpt.model.configuration_harmonic_gpt2 import HarmonicGPT2Config
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import RunConfig
from harmonic_gpt.training.memory import GIB, RankDevice, need, rank_device

# Dense bf16 FLOP/s by NVIDIA's data sheets, for model FLOPs utilisation. The first name whose words all occur counts.
PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


def model_config(config: RunConfig, vocab_size: int, end_of_text: int | None) -> HarmonicGPT2Config:
    """The model of a run. Raises InputError for a head that does not exist, or that has not these constants."""
    model = config.model
    try:
        return HarmonicGPT2Config(
            vocab_size=vocab_size,
            bos_token_id=end_of_text,
            eos_token_id=end_of_text,
            resid_pdrop=model.dropout,
            embd_pdrop=model.dropout,
            attn_pdrop=model.dropout,
            **model.model_dump(exclude={"dropout", "init_from"})
            | {"exponent": "sqrt" if model.exponent == "fit" else model.exponent, "prior": model.prior is not None},
        )
    except (ValueError, StrictDataclassError) as error:
        raise InputError(f"model: {reason_of(error)}") from error


def training_flops_per_token(config: HarmonicGPT2Config) -> float:
    """Forward and backward matrix products of one token: 6 a weight that multiplies, 12 L D T of attention (PaLM,
    appendix B)."""
    matmul_weights = 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd
    return 6 * matmul_weights + 12 * config.n_layer * config.n_embd * config.n_positions


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Dense FLOP/s of a known accelerator in bf16, else None."""
    if device.type != "cuda" or precision != "bf16":
        return None
    return _peak_of(torch.cuda.get_device_name(device))


def _peak_of(device_name: str) -> float | None:
    words = set(re.split(r"[\s-]+", device_name))
    return next((flops for name, flops in PEAK_BF16_FLOPS.items() if set(name.split()) <= words), None)


def plan(
    config: RunConfig,
    vocab_size: int,
    device: RankDevice,
    train_tokens: int | None = None,
    vocabulary_note: str = "",
    built: HarmonicGPT2ForCausalLM | None = None,
) -> str:
    """What a run will do, before it does it. Builds no weights.

    built: the run's model; the head of a checkpoint or of `model.init_from` has its own numbers. None: as configured.
    """
    with torch.device("meta"):
        model = built or HarmonicGPT2ForCausalLM(model_config(config, vocab_size, None))
    hf_config = model.config
    assert isinstance(hf_config, HarmonicGPT2Config)
    spec, hidden_scale = hf_config.head_spec, hf_config.hidden_scale
    if built is not None:  # learned numbers as they are now
        spec, hidden_scale = built.lm_head.spec, built.lm_head.hidden_scale
    total = sum(p.numel() for p in model.parameters())
    embeddings = model.transformer.wte.weight.numel() + model.transformer.wpe.weight.numel()
    t, m = config.train, config.model
    sequences = t.batch_tokens // m.n_positions
    micro = min(t.micro_batch_size, sequences // device.ranks or 1)
    all_tokens = t.steps * t.batch_tokens
    needed, largest = need(hf_config, config, device)
    fits = f"micro-batches of up to {largest} sequences fit" if largest else "not even one sequence fits"
    numbers = {name: f"{value:.4g}" for name, value in spec.constants.items()}
    if m.exponent == "fit" and built is None:
        numbers["exponent"] = "to be fitted"
    constants = ", ".join(f"{name} {value}" for name, value in numbers.items())
    learned = f", learned: {', '.join(hf_config.learn)}" if hf_config.learn else ""
    prior = f", prior {m.prior or 'of the weights'}" if hf_config.prior else ""
    head_lr = f" (head x {config.optim.head_lr_scale:g})" if config.optim.head_lr_scale != 1.0 else ""
    epochs = f", {train_tokens:,} training tokens, {all_tokens / train_tokens:.2f} epochs" if train_tokens else ""
    frozen = f", frozen: {', '.join(config.optim.freeze)}" if config.optim.freeze else ""
    rows = {
        "run": config.run_dir,
        "head": f"{hf_config.head} ({constants}){learned}{prior}, "
        f"hidden_scale {hidden_scale:.4g}, center_std {hf_config.center_std:.4g}, "
        f"{'tied' if m.tie_word_embeddings else 'untied'}",
        "model": f"{m.n_layer} layers x {m.n_embd}, {m.n_head} heads, {m.n_positions} positions, "
        f"vocabulary {vocab_size:,}{vocabulary_note}",
        "parameters": f"{total:,} ({total - embeddings:,} without token and position embeddings){frozen}",
        "data": config.data.dir + epochs,
        "schedule": f"{t.steps:,} steps x {t.batch_tokens:,} tokens = {all_tokens:,} tokens, "
        f"{config.optim.optimizer}, lr {config.optim.lr:g}{head_lr}, warmup {config.optim.warmup_steps:,}",
        "batch": f"{sequences} sequences = {device.ranks} ranks x {math.ceil(sequences / device.ranks / micro)} "
        f"micro-batches of up to {micro}",
        "compute": f"{training_flops_per_token(hf_config) * all_tokens:.3g} FLOPs, {t.precision}",
        "memory": f"about {needed / GIB:.1f} GiB a rank at the peak of a step (estimate); there are "
        f"{device.bytes / GIB:.1f} GiB {device.where}: {fits}",
    }
    return "\n".join(f"{name + ':':<12}{text}" for name, text in rows.items())


def dry_run(config: RunConfig) -> str:
    """The plan of one process on this machine, without reading data: the vocabulary is the manifest's if the folder
    exists, else the configured one, else the default of the tokenizer that will be trained, or GPT-2's.
    """
    device = rank_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    path = Path(config.data.dir).expanduser()
    if path.is_dir():
        folder = open_token_folder(path, config.data.vocab_size)
        train_tokens = len(folder.unverified_tokens("train"))
        return plan(config, folder.vocab_size, device, train_tokens, folder.vocabulary_note)
    trains_tokenizer = config.data.source is not None and config.data.tokenizer is None
    vocab_size = config.data.vocab_size or (DEFAULT_VOCAB_SIZE if trains_tokenizer else NANOGPT_VOCAB_SIZE)
    return plan(config, vocab_size, device, vocabulary_note=f" (assumed: {config.data.dir} is not there yet)")
