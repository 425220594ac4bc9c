"""Checkpoints of nanoGPT, and of the paper authors' code that grew from it, into our format."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.data.tokens import NANOGPT_VOCAB_SIZE
from harmonic_gpt.errors import InputError, is_out_of_memory, option, reason_of
from harmonic_gpt.files import check_new_folder, new_folder
from harmonic_gpt.model.configuration_harmonic_gpt2 import HarmonicGPT2Config
from harmonic_gpt.model.heads import find_head
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM

# nanoGPT rounds GPT-2's vocabulary up to a multiple of 64
PADDED_VOCAB_SIZE = 50304
LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
REQUIRED = {"n_layer", "n_head", "n_embd", "block_size"}
# In the model_args of the paper's code and of its follow-up (arXiv 2603.10225), not in nanoGPT's
PAPERS_ARGUMENT = "scale_attn_by_inverse_layer_idx"
UNDERSTOOD = REQUIRED | {"bias", "vocab_size", "dropout", "pow_n", "distance", PAPERS_ARGUMENT}
WHICH_HEAD = (
    "which head does the checkpoint have? Its weights do not say. Give exactly one of --standard (dot products and "
    "softmax), --exponent N (harmonic, N on the distance, as in the paper's text), or --squared-distance-exponent P "
    "(harmonic, P on the squared distance, the paper's code's pow_n: N = 2 P)"
)


@dataclass(frozen=True)
class Imported:
    """What was made, and what the reader of the command line should know about it."""

    out: Path
    notes: list[str]


def import_nanogpt(
    checkpoint: str | Path,
    out: str | Path,
    *,
    standard: bool = False,
    exponent: float | None = None,
    squared_distance_exponent: float | None = None,
    vocab_size: int | None = None,
    tokenizer: str | None = None,
) -> Imported:
    """Write the model of a nanoGPT checkpoint as a Hugging Face folder `out`, with hidden_scale 1.

    The activation is the one of the code that wrote the checkpoint: the exact GELU of nanoGPT, or the tanh form of the
    paper's code, which is told by an entry of model_args that nanoGPT does not have.

    Args:
        checkpoint: a .pt of {"model": state dict, "model_args": dict, ...}; loaded with weights_only=True.
        standard: its head takes dot products and softmax (nanoGPT's own).
        exponent: its head is harmonic, with this exponent n on the distance (the paper's text).
        squared_distance_exponent: its head is harmonic, with this exponent on the *squared* distance (`pow_n` of the
            paper's code); n is twice that. Exactly one of the three, unless the checkpoint records `pow_n`, or that it
            is the follow-up's baseline.
        vocab_size: keep this many rows of the embedding. Default: the tokenizer's size; or 50257 of nanoGPT's 50304; or
            all.
        tokenizer: folder or hub name of the tokenizer to put beside the model.
    A checkpoint of the follow-up (arXiv 2603.10225) says which of its distances it has, and needs none of the three.
    Raises InputError: not such a checkpoint, head not known or in a form that none here has, weights that GPT-2 does
        not have.
    """
    out, notes = check_new_folder(out), list[str]()
    state, arguments = _read(Path(checkpoint).expanduser())
    chosen = standard or exponent is not None or squared_distance_exponent is not None
    head, tensors = _follow_up_head(arguments, state, chosen, notes)
    if not head:
        n = _exponent(arguments, standard, exponent, squared_distance_exponent, notes)
        head = {"head": "standard"} if n is None else {"head": "harmonic", "exponent": n}
    if ignored := {key: value for key, value in arguments.items() if key not in UNDERSTOOD}:
        notes.append(f"warning: model_args that GPT-2 does not know were ignored: {ignored}")

    text = load_tokenizer(tokenizer) if tokenizer else None
    rows = state["transformer.wte.weight"].shape[0]
    if vocab_size is None:
        vocab_size = len(text) if text is not None else NANOGPT_VOCAB_SIZE if rows == PADDED_VOCAB_SIZE else rows
    if not 1 <= vocab_size <= rows:
        raise InputError(
            f"{checkpoint}: the embedding has {rows} rows; a vocabulary of {vocab_size} ({option('vocab_size')}, or "
            f"the size of {option('tokenizer')}) does not fit"
        )
    if vocab_size < rows:
        notes.append(
            f"left out {rows - vocab_size} padding rows of the vocabulary: probabilities are shared among the "
            f"{vocab_size} others"
        )
    end_of_text = NANOGPT_VOCAB_SIZE - 1 if vocab_size == NANOGPT_VOCAB_SIZE else None
    if text is not None:
        end_of_text = text.eos_token_id
    try:
        model = HarmonicGPT2ForCausalLM(_config(arguments, head, vocab_size, end_of_text, _is_tied(state), notes))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"{checkpoint}: no GPT-2 is like that: {' '.join(str(error).split())}") from error
    _load(model, state, tensors, vocab_size, str(checkpoint))
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        if text is not None:
            text.save_pretrained(folder)
        else:
            notes.append("no tokenizer: name one with --tokenizer to evaluate on text")
    return Imported(out, notes)


def _config(
    arguments: dict, head: dict, vocab_size: int, end_of_text: int | None, tied: bool, notes: list[str]
) -> HarmonicGPT2Config:
    papers = PAPERS_ARGUMENT in arguments
    program, form = ("the paper's code", "the tanh form of GELU") if papers else ("nanoGPT", "the exact GELU")
    notes.append(f"activation: {form}, as in {program}")
    if "distance" in arguments:
        notes.append(
            "warning: the follow-up clamps embeddings to 10 and final hidden states to 20; this model does not"
        )
    return HarmonicGPT2Config(
        vocab_size=vocab_size,
        n_layer=arguments["n_layer"],
        n_head=arguments["n_head"],
        n_embd=arguments["n_embd"],
        n_positions=arguments["block_size"],
        activation_function="gelu_pytorch_tanh" if papers else "gelu",
        scale_attn_by_inverse_layer_idx=bool(arguments.get(PAPERS_ARGUMENT, False)),
        tie_word_embeddings=tied,
        hidden_scale=1.0,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        **head,
    )


def _follow_up_head(
    arguments: dict, state: dict[str, Tensor], chosen: bool, notes: list[str]
) -> tuple[dict, dict[str, Tensor]]:
    """Fields of the config and tensors of the head, of a checkpoint of the follow-up (arXiv 2603.10225) whose
    model_args name one of its other distances; both empty where they do not.

    Its code fixes the exponents: n_embd on the distance (on 1 - cos for cosines), 1 for Mahalanobis. What it adds to
    distances and denominators against division by zero (1e-8; Mahalanobis 1e-4) is left out here.
    """
    distance, width = arguments.get("distance"), arguments["n_embd"]
    if distance in (None, "baseline", "euclidean"):
        return {}, {}
    if chosen:
        raise InputError(f"the checkpoint records distance = {distance} (model_args), and the options say otherwise")
    tensors = {}
    if distance == "cosine":
        head = {"head": "cosine_harmonic", "exponent": 2.0 * width}
    elif (match := re.fullmatch(r"cosine_temp_scale_(\d+)_(\d+)", distance)) is not None:
        head = {"head": "normalized_dot", "head_constants": {"temperature": float(f"{match[1]}.{match[2]}")}}
    elif distance in ("manhattan_long", "minkowski_l1", "optimized_minkowski_l1"):
        head = {"head": "manhattan", "exponent": float(width)}
    elif distance in ("minkowski_l2", "optimized_minkowski_l2"):
        head = {"head": "harmonic", "exponent": float(width)}
    elif (match := re.fullmatch(r"minkowski_l(\d+)(?:_(\d+))?", distance)) is not None:
        order = float(f"{match[1]}.{match[2] or 0}")
        head = {"head": "minkowski", "exponent": float(width), "head_constants": {"order": order}}
    elif distance in METRICS:
        key, name, weight, factor_of = METRICS[distance]
        if key not in state:
            raise InputError(f"the checkpoint records distance = {distance}, and has no weight {key}")
        head, tensors = {"head": name, "exponent": 1.0}, {weight: factor_of(state[key])}
    else:
        raise InputError(
            f"the checkpoint's head measures the distance {distance!r} (model_args), in a form that no head here has; "
            "any other one would give other probabilities"
        )
    if find_head(head["head"]).form is None:
        head["allow_slow"] = True
        notes.append(f"warning: {head['head']} has no matrix product: evaluation is slow (docs/how-to/heads.md)")
    notes.append(f"head: {head}, for the distance {distance} of the follow-up")
    return head, tensors


def _cholesky(metric: Tensor) -> Tensor:
    """A of a metric A^T A, as the follow-up factors it, with what its code adds to the diagonal."""
    return torch.linalg.cholesky(metric.double() + (1e-2 + 1e-4) * torch.eye(len(metric))).mT.to(metric.dtype)


def _triangle(factor: Tensor) -> Tensor:
    """A of the follow-up's triangular factor, whose diagonal it keeps positive."""
    lower = factor.tril()
    return (lower + torch.diag(lower.diagonal().clamp(min=1e-4) - lower.diagonal())).mT


# Distance of the follow-up: (its weight, our head, our weight, ours from its)
METRICS = {
    "mahalanobis_diagonal": (
        "lm_head.log_diag_cov_inv", "mahalanobis_diagonal", "factors", lambda t: (t.clamp(-10, 10).exp() + 1e-4).sqrt()
    ),
    "mahalanobis_cholesky": ("lm_head.chol_factor", "mahalanobis_full", "matrix", _triangle),
    "mahalanobis_standard": ("lm_head.cov_inv", "mahalanobis_full", "matrix", _cholesky),
}  # fmt: skip


def _is_tied(state: dict[str, Tensor]) -> bool:
    head = state.get("lm_head.weight")
    return head is None or torch.equal(state["transformer.wte.weight"], head)


def _read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """(state dict with plain names, model_args)."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a nanoGPT checkpoint, such as ckpt.pt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise many kinds
        if is_out_of_memory(error):
            raise
        expected = "a checkpoint of tensors and plain values (anything else could run code)"
        raise InputError(f"{path}: not {expected}: {reason_of(error)}") from error
    arguments = content.get("model_args") if isinstance(content, dict) else None
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(arguments, dict) or not isinstance(state, dict) or REQUIRED - arguments.keys():
        raise InputError(
            f"{path}: expected nanoGPT's dict with `model` and `model_args` (n_layer, n_head, n_embd, block_size)"
        )
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: `model` is not a state dict of tensors")
    # torch.compile and DistributedDataParallel leave their names in front
    state = {name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    if "transformer.wte.weight" not in state:
        raise InputError(f"{path}: no transformer.wte.weight; its weights begin with {', '.join(list(state)[:3])}")
    return state, arguments


def _exponent(
    arguments: dict, standard: bool, exponent: float | None, squared: float | None, notes: list[str]
) -> float | None:
    """n on the distance, or None for a standard head."""
    distance = arguments.get("distance")
    chosen = [standard, exponent is not None, squared is not None]
    if distance == "baseline" and not any(chosen[1:]):
        notes.append("standard head: the checkpoint records distance = baseline")
        return None
    if distance is not None and standard == (distance == "euclidean"):
        raise InputError(f"the checkpoint records distance = {distance} (model_args), and the options say otherwise")
    recorded = arguments.get("pow_n")
    if not any(chosen) and isinstance(recorded, int | float):
        squared = float(recorded)
        notes.append(
            f"pow_n = {squared:g} is recorded in the checkpoint, and taken to act on the squared distance as in the "
            "paper's code"
        )
    elif sum(chosen) != 1:
        raise InputError(WHICH_HEAD)
    if standard:
        return None
    n = exponent if squared is None else 2 * squared
    assert n is not None  # one of them is given, or recorded
    notes.append(f"harmonic head, exponent n = {n:g} on the distance ({n / 2:g} on the squared distance)")
    return n


@torch.no_grad()
def _load(
    model: HarmonicGPT2ForCausalLM, state: dict[str, Tensor], tensors: dict[str, Tensor], vocab_size: int, path: str
) -> None:
    """Copy the weights: linear layers transposed (GPT-2 has Conv1D), absent biases zero, padding rows left out.
    tensors: of the head, beside its centers."""
    used = {key for key, *_ in METRICS.values()} if tensors else set()
    for name, parameter in model.named_parameters():  # a tied head comes once, as wte
        if (own := tensors.get(name.removeprefix("lm_head."))) is not None:
            parameter.copy_(own)
            continue
        source = state.get(name)
        if source is None:
            if not name.endswith(".bias"):
                raise InputError(f"{path}: {name} is missing")
            parameter.zero_()
            continue
        used.add(name)
        if name.removesuffix(".weight").endswith(LINEAR):
            source = source.T
        elif name in ("transformer.wte.weight", "lm_head.weight"):
            source = source[:vocab_size]
        if source.shape != parameter.shape:
            raise InputError(f"{path}: {name} is {tuple(source.shape)}, its model_args say {tuple(parameter.shape)}")
        parameter.copy_(source)
    # attn.bias and attn.masked_bias are the causal mask
    masks = (".attn.bias", ".attn.masked_bias")
    unknown = [name for name in state if name not in used and name != "lm_head.weight" and not name.endswith(masks)]
    if unknown:
        raise InputError(f"{path}: weights that GPT-2 does not have: {', '.join(unknown[:5])}")
