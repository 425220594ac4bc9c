"""From a configuration to a run that is ready to train, in one line of stages: claim the folder, start the ranks, open
the data, build or load the model, optimizer, restore, track. Everything that can be wrong is checked before anything is
written."""

import hashlib
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from harmonic_gpt.allocator import keep_freed_memory
from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.sampler import MixtureSampler, Sampler, training_sampler
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.data.tokens import TokenFolder, open_token_folder
from harmonic_gpt.errors import InputError, is_out_of_memory, options_spelled, reason_of
from harmonic_gpt.files import file_sha256, write_text
from harmonic_gpt.likelihood import token_counts, unigram_nats
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import DataSection, RunConfig
from harmonic_gpt.runs import checkpoint as ckpt
from harmonic_gpt.training.attention import compile_blocks, use_causal_attention
from harmonic_gpt.training.distributed import (
    check_ranks_agree,
    make_gradients,
    model_facts,
    raise_together,
    start_ranks,
)
from harmonic_gpt.training.init_from import start_from
from harmonic_gpt.training.memory import RankDevice, check_memory, rank_device
from harmonic_gpt.training.optimizer import build_optimizer, freeze
from harmonic_gpt.training.plan import model_config, plan
from harmonic_gpt.training.prefetch import Prefetch
from harmonic_gpt.training.pushing import Pusher
from harmonic_gpt.training.run import Run
from harmonic_gpt.training.run_dir import Start, find_start, flat
from harmonic_gpt.training.saving import restore_rng_state, sharded_as
from harmonic_gpt.training.trackers import trackers
from harmonic_gpt.training.tracking import Tracker


def setup(config: RunConfig, resume: bool, verify: bool = False) -> Run:
    """Everything of a run, checked and built. `verify`: read the token files anew, whatever is noted about them.

    Raises InputError; nothing has been written then.
    """
    run_dir = Path(config.run_dir).expanduser()
    model_config(config, 1, None)  # a head that does not exist is known before the data are
    start = find_start(config, resume)
    accelerator = start_ranks(config, trackers(config, run_dir, start.step, start.state.get("wandb_id")))
    with options_spelled("data.{}".format):
        data, tokenizer = _open_data(config.data, accelerator, verify)
    sampler = _batches(config, data, accelerator.num_processes)
    check_ranks_agree(_facts(config, start, data))
    device = rank_device(accelerator.device, accelerator.num_processes, accelerator.is_fsdp2)
    _check_memory(config, data, device, accelerator.is_main_process)

    set_seed(config.seed)  # every rank draws the same initial weights
    model = _model(config, start, data, tokenizer, accelerator)
    model.lm_head.label_smoothing, model.lm_head.z_loss = config.train.label_smoothing, config.train.z_loss
    freeze(model, config.optim.freeze)
    if accelerator.num_processes > 1:
        check_ranks_agree(model_facts(model))
    if accelerator.is_main_process:
        _announce(config, data, sampler, device, model)
    if config.train.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    use_causal_attention(model)
    if config.train.compile:
        compile_blocks(model)
    if accelerator.device.type == "cpu":
        keep_freed_memory()

    if accelerator.num_processes > 1 and not accelerator.is_fsdp2:
        make_gradients(model)
    prepared, optimizer = accelerator.prepare(model, build_optimizer(model, config.optim))
    batches = Prefetch(
        lambda step: sampler.batch(step, accelerator.process_index, accelerator.num_processes),
        config.train.steps,
        accelerator.device,
    )
    run = Run(config, run_dir, accelerator, prepared, optimizer, sampler, batches, data, tokenizer)
    set_seed(config.seed + 1 + accelerator.process_index)  # dropout differs by rank
    _restore(run, start)
    if accelerator.is_main_process:
        _begin_writing(run, start)
    return run


def _open_data(
    section: DataSection, accelerator: Accelerator, verify: bool
) -> tuple[TokenFolder, PreTrainedTokenizerBase | None]:
    """The token folder (prepared first if it is missing and a source is named) and its tokenizer, if it has one."""
    path, ranks = Path(section.dir).expanduser(), accelerator.num_processes
    if section.source is not None and not path.is_dir():
        if ranks > 1:  # the other ranks would time out waiting
            raise InputError(
                f"{path} is not there yet; before starting {ranks} processes run: {_preparation(path, section.request)}"
            )
        print(f"preparing {path} from {section.source}", file=sys.stderr)
        prepare(out=path, **section.request)
    tokenizer = load_tokenizer(section.tokenizer) if section.tokenizer else None
    folder = open_token_folder(path, section.vocab_size or (len(tokenizer) if tokenizer else None))
    folder.check_request(section.request)
    if tokenizer is None and folder.tokenizer_path is not None:
        tokenizer = load_tokenizer(folder.tokenizer_path)
    if tokenizer is not None:
        folder.check_tokenizer(tokenizer)
    _verify(folder, accelerator, verify)
    return folder, tokenizer


def _preparation(path: Path, request: dict[str, Any]) -> str:
    """The command that prepares just this."""
    words = ["harmonic-gpt", "prepare", "--out", str(path)]
    for name, value in request.items():
        if value is not None:
            for one in value if isinstance(value, list) else [value]:
                words += [f"--{name.replace('_', '-')}", str(one)]
    return shlex.join(words)


def _verify(folder: TokenFolder, accelerator: Accelerator, anew: bool) -> None:
    """One process of each machine reads the files; what it finds wrong stops all ranks. Collective."""
    problem = None
    if accelerator.is_local_main_process:
        try:
            for split in folder.splits:
                folder.verify(split, anew)
        except InputError as error:
            problem = str(error)
    raise_together(problem)
    folder.trust()


def _batches(config: RunConfig, data: TokenFolder, ranks: int) -> Sampler | MixtureSampler:
    """The order of the training tokens. Raises InputError if ranks cannot share a batch, or a split is too short."""
    block = config.model.n_positions
    batch_size = config.train.batch_tokens // block
    if batch_size % ranks:
        raise InputError(f"train.batch_tokens is {batch_size} sequences, which {ranks} ranks cannot share equally")
    sampler = training_sampler(data, config.data.weights, block, batch_size, config.seed)
    if (tokens := len(data.tokens("val"))) < block + 1:
        raise InputError(
            f"{data.path}: {tokens} validation tokens are less than one block of {block} and its last target"
        )
    return sampler


def _facts(config: RunConfig, start: Start, data: TokenFolder) -> dict[str, object]:
    """What all ranks must share before they build a model. Raises InputError if the data are not the checkpoint's."""
    fingerprint = data.fingerprint()
    if start.state and start.state.get("data") != fingerprint:
        raise InputError(
            f"{data.path} is not the data that {start.checkpoint} was trained on: its files or its tokenizer differ; "
            "name the folder that it was trained on with --data.dir, or start a new run with another --run_dir"
        )
    return {
        "step to go on from": start.step,
        "checkpoint": file_sha256(start.checkpoint / ckpt.CHECKSUMS) if start.checkpoint else None,
        "data": hashlib.sha256(repr(fingerprint).encode()).hexdigest(),
        # Folders may have other names on other machines
        **flat(config.model_dump(mode="json", exclude={"run_dir": True, "data": {"dir"}})),
    }


def _model(
    config: RunConfig,
    start: Start,
    data: TokenFolder,
    tokenizer: PreTrainedTokenizerBase | None,
    accelerator: Accelerator,
) -> HarmonicGPT2ForCausalLM:
    """The checkpoint's model; else one with the weights of `model.init_from`; else one with random weights."""
    if start.checkpoint is not None:
        return _saved_model(start.checkpoint)
    target = model_config(config, data.vocab_size, None if tokenizer is None else tokenizer.eos_token_id)
    log_prior = _log_prior(config.model.prior, data)
    if config.model.init_from is not None:
        model, done = start_from(config, target, data, accelerator, log_prior)
        if accelerator.is_main_process:
            print(f"{'init_from:':<12}{done}", file=sys.stderr)
        return model
    model = HarmonicGPT2ForCausalLM(target)
    if log_prior is not None:
        model.lm_head.log_prior.data.copy_(log_prior)
    return model


def _log_prior(prior: str | None, data: TokenFolder) -> torch.Tensor | None:
    """(V,) log of the prior that `model.prior` names; frequencies with one added to every count.

    Raises InputError for a file that does not hold one positive number a token.
    """
    if prior is None:
        return None
    if prior == "uniform":
        return torch.zeros(data.vocab_size)
    if prior == "unigram":
        shares = token_counts(data) + 1.0
    else:
        try:
            shares = np.load(Path(prior).expanduser(), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f'model.prior: expected "unigram", "uniform" or a .npy file, got {prior!r} ({reason_of(error)})'
            ) from error
        if shares.shape != (data.vocab_size,):
            raise InputError(
                f"model.prior: {prior} holds an array of shape {shares.shape}, the data has {data.vocab_size} tokens"
            )
        shares = shares.astype(np.float64)
        if not (np.isfinite(shares).all() and (shares > 0).all()):
            raise InputError(f"model.prior: {prior} holds numbers that are not positive")
    return torch.from_numpy(np.log(shares / shares.sum())).float()


def _saved_model(path: Path) -> HarmonicGPT2ForCausalLM:
    """Raises InputError unless the weights are just those that config.json asks for; transformers alone would make up
    the rest."""
    try:
        loaded: Any = HarmonicGPT2ForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # safetensors, transformers and torch raise many kinds
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path}: its model cannot be loaded ({reason_of(error)})") from error
    model, info = loaded
    wrong = sorted({str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]})
    if wrong:
        raise InputError(f"{path}: weights and config.json do not fit: {', '.join(wrong[:5])}")
    return model


def _check_memory(config: RunConfig, data: TokenFolder, device: RankDevice, is_main: bool) -> None:
    """Raises InputError on all ranks if a step will not fit on one of their devices. Collective."""
    warning = problem = None
    try:
        warning = check_memory(model_config(config, data.vocab_size, None), config, device)
    except InputError as error:
        problem = str(error)
    raise_together(problem)
    if warning and is_main:
        print(f"warning: {warning}", file=sys.stderr)


def _announce(
    config: RunConfig,
    data: TokenFolder,
    sampler: Sampler | MixtureSampler,
    device: RankDevice,
    model: HarmonicGPT2ForCausalLM,
) -> None:
    """The plan, and the loss that a model must beat to have learned anything."""
    print(plan(config, data.vocab_size, device, len(sampler.tokens), data.vocabulary_note, model), file=sys.stderr)
    unigram = unigram_nats(data, config.eval.tokens)
    print(
        f"{'baseline:':<12}token frequencies alone cost {unigram:.3f} nats per validation token",
        file=sys.stderr,
    )


def _restore(run: Run, start: Start) -> None:
    """Step, optimizer and generators of a checkpoint. Raises InputError if they are not of this run."""
    path, state = start.checkpoint, start.state
    if path is None:
        return
    rank, ranks = run.accelerator.process_index, run.accelerator.num_processes
    optimizer = ckpt.load_state(path / ckpt.OPTIMIZER)
    rng = ckpt.load_state(path / ckpt.rng_file(rank)) if state["world_size"] == ranks else None
    try:
        run.optimizer.load_state_dict(sharded_as(optimizer, run.optimizer))
        if rng is not None:
            restore_rng_state(rng)
        else:  # dropout cannot be continued by other ranks: draw anew, and not what step 1 drew
            set_seed((run.config.seed + 1 + rank + ranks * state["step"]) % 2**31)
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: optimizer or random state is not of this run ({type(error).__name__}: {reason_of(error)})"
        ) from error
    run.step, run.skipped_steps = state["step"], state.get("skipped_steps", 0)
    run.skipped_in_a_row = state.get("skipped_in_a_row", 0)
    run.evaluation_due = state.get("evaluation_due", False)


def _begin_writing(run: Run, start: Start) -> None:
    """The run folder becomes this run's: config.yaml, the newest checkpoint in its place, metrics and trackers."""
    run_dir, config_file = run.run_dir, run.run_dir / ckpt.CONFIG_FILE
    run_dir.mkdir(parents=True, exist_ok=True)
    fresh = not config_file.exists()
    # The first file of a run, and whole: without it a folder that holds anything is none of ours
    write_text(config_file, run.config.to_yaml())
    if start.checkpoint is not None:
        print(f"resuming {start.checkpoint} at step {run.step}", file=sys.stderr)
        for damaged in (path for path in ckpt.checkpoints(run_dir) if ckpt.step_of(path) > run.step):
            print(f"damaged {damaged.name} is kept as {ckpt.quarantine(damaged)}", file=sys.stderr)
        ckpt.point_latest(start.checkpoint)  # a killed run may have left the link behind, or on a damaged one
    try:
        run.tracker = Tracker(run_dir, run.config, run.step, run.accelerator.log_with)
    except InputError:  # a service that does not start: it has not become a run
        if fresh:
            config_file.unlink()
        raise
    run.accelerator.trackers = run.accelerator.log_with  # started; `end_training` finishes them
    if (repo := run.config.checkpoint.push_to) is not None:
        run.pusher = Pusher(repo, run.config.checkpoint.push_private, run.tracker.say)
