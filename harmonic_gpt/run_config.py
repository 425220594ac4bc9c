"""RunConfig: everything that defines a training run, typed and closed. YAML plus `--section.key=value` overrides."""

import difflib
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from harmonic_gpt.data.request import VALIDATION_SHARE
from harmonic_gpt.errors import InputError

OLD_NAMES = {"optim.head_lr": "optim.head_lr_scale"}  # of version 0.1
# How version 0.2 and before named a head: similarity, normalization. As `model.heads.PAIRS`, which needs torch
PAIRS = {
    ("euclidean", "harmax"): "harmonic",
    ("euclidean", "softmax"): "euclidean_softmax",
    ("dot", "harmax"): "dot_harmax",
    ("dot", "softmax"): "standard",
}

Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Gt(0), Le(2**31 - 1)]
Size = Annotated[int, Gt(0), Le(2**20)]  # of the model: a matrix of such sizes still has a 64-bit number of elements


def _no_fp16(value: Any) -> Any:
    if value in ("fp16", "float16"):
        raise ValueError(
            "fp16 is not supported: the head's gradients are formed in forward, out of loss scaling's reach; use bf16"
        )
    return value


def _user_and_name(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
        raise ValueError("expected USER/NAME")
    return value


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), coerce_numbers_to_str=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _texts_can_name_files(cls, value: Any) -> Any:
        for text in [value] if isinstance(value, str) else value if isinstance(value, list | dict) else []:
            try:
                if b"\0" in text.encode():
                    raise ValueError("a text with a zero byte")
                if len(text.encode()) > 4095 or any(len(part.encode()) > 255 for part in text.split("/")):
                    raise ValueError("longer than the name of a file can be")
                Path(text).expanduser()
            except UnicodeEncodeError as error:
                raise ValueError("a text that is not Unicode (half of a surrogate pair)") from error
            except RuntimeError as error:
                raise ValueError("this user (~NAME) has no home directory here") from error
        return value


class ModelSection(Section):
    head: str = Field(
        "harmonic", description="harmonic, standard, cosine_harmonic or another one; docs/how-to/heads.md has them all"
    )
    init_from: str | None = Field(
        None,
        description="start from the weights of this run, Hugging Face folder or hub name; "
        "another head (harmonic or euclidean_softmax) is fitted to them first",
    )
    exponent: Positive | Literal["sqrt", "fit"] = Field(
        "sqrt",
        description='harmonic exponent n, on the distance; "sqrt" is sqrt(n_embd); '
        '"fit": chosen for the weights of init_from',
    )
    head_constants: dict[str, Positive] = Field(
        {}, description="the head's other constants, as in {temperature: 0.1}; docs/how-to/heads.md names them"
    )
    learn: list[str] = Field(
        [],
        description="numbers that are learned, starting at their values: exponent, temperature, hidden_scale or "
        "another constant of the head; prior",
    )
    prior: str | None = Field(
        None,
        description='log prior added to the logits: "unigram" (frequencies of the training tokens), "uniform" (0, to '
        "be learned), or a .npy file with a positive number for each token",
    )
    allow_slow: bool = Field(
        False,
        description="permit a head without a matrix product with a large vocabulary (hours where others take minutes)",
    )
    hidden_scale: Positive | None = Field(
        None,
        description="constant factor on hidden states before the head; null: the head's own start (1/sqrt(D) for "
        "harmonic, 1 for standard)",
    )
    center_std: Positive | None = Field(
        None,
        description="initial std of centers and tied embedding; null: the head's own start (1/sqrt(D) for harmonic and "
        "standard)",
    )
    tie_word_embeddings: bool = Field(True, description="centers are the token embedding")
    n_layer: Size = Field(12, description="transformer blocks")
    n_head: Size = Field(12, description="attention heads")
    n_embd: Size = Field(768, description="hidden size D")
    n_positions: Size = Field(1024, description="block size: tokens of context")
    dropout: Share = Field(0.0, description="dropout of embeddings, attention and residuals")
    activation_function: Literal["gelu_pytorch_tanh", "gelu_new", "gelu"] = Field(
        "gelu_pytorch_tanh", description="gelu_pytorch_tanh: GPT-2's, fast; gelu: exact (nanoGPT's)"
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_head(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.keys() & {"similarity", "normalization"}:
            return values
        values = dict(values)
        pair = (str(values.pop("similarity", "euclidean")), str(values.pop("normalization", "harmax")))
        if pair not in PAIRS:
            raise ValueError(f"similarity and normalization: expected one of {[*PAIRS]}, got {pair}")
        if values.setdefault("head", PAIRS[pair]) != PAIRS[pair]:
            raise ValueError(f"head {values['head']} and similarity, normalization {pair} name different heads")
        return values


class DataSection(Section):
    dir: str = Field(
        "data/pydocs", description="token folder: of `prepare`, `join` or datatrove, or nanoGPT's train.bin and val.bin"
    )
    source: str | list[str] | None = Field(
        None,
        description='prepare `dir` from this when it is missing: "pydocs", files (.txt .jsonl .parquet), '
        "a hub dataset, or a list",
    )
    weights: dict[str, Positive] | None = Field(
        None, description="share of training blocks from each source in `dir`, by its name; null: all tokens alike"
    )
    tokenizer: str | None = Field(
        None, description="tokenizer folder or hub name; null: train a byte-level BPE on the source"
    )
    vocab_size: Annotated[int, Ge(2), Le(2**20)] | None = Field(
        None,
        description="size of the BPE to train, 257 or more; or vocabulary of nanoGPT's .bin files, which do not say "
        "(default: GPT-2's; of character data, one more than the largest id)",
    )
    text_column: str = Field("text", description="column of .jsonl, .parquet and hub datasets that holds the document")
    validation_share: Annotated[float, Gt(0), Lt(1)] = Field(
        VALIDATION_SHARE, description="share of documents for validation, chosen by content hash"
    )

    @property
    def request(self) -> dict[str, Any]:
        """What `data.prepare` is asked for, by the names of its parameters."""
        return {
            "source": self.source,
            "text_column": self.text_column,
            "validation_share": self.validation_share,
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size if self.tokenizer is None else None,
        }


class OptimSection(Section):
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the blocks' matrices; AdamW for everything else"
    )
    lr: Positive = Field(6e-4, description="peak learning rate")
    head_lr_scale: Positive = Field(
        1.0, description="learning rate of the head's centers (tied: of the embedding), as a multiple of lr"
    )
    warmup_steps: Annotated[int, Ge(0), Le(2**31 - 1)] = Field(100, description="linear warmup")
    min_lr_ratio: Annotated[float, Ge(0), Le(1)] = Field(0.05, description="end of the cosine, as a share of lr")
    betas: tuple[Share, Share] = Field((0.9, 0.95), description="AdamW betas")
    eps: Positive = Field(1e-8, description="AdamW epsilon")
    weight_decay: Annotated[float, Ge(0)] = Field(
        0.0,
        description="on matrices and embeddings; never on biases, layer norms, and what a head learns beside its "
        "centers",
    )
    grad_clip: Positive = Field(1.0, description="clip the global gradient norm")
    freeze: list[str] = Field(
        [],
        description="modules or parameters that keep the values they start with, as in [transformer.ln_f]; with "
        "model.init_from, [transformer] trains the head alone",
    )


class TrainSection(Section):
    steps: Count = Field(1000, description="optimizer steps")
    batch_tokens: Count = Field(8192, description="tokens of one optimizer step, over all ranks and accumulation steps")
    micro_batch_size: Count = Field(8, description="sequences of one forward pass on one rank")
    precision: Annotated[Literal["fp32", "bf16"], BeforeValidator(_no_fp16)] = Field(
        "fp32", description="fp32 or bf16 (autocast)"
    )
    label_smoothing: Share = Field(
        0.0, description="share of the target's probability that is spread over all tokens, in training"
    )
    z_loss: Annotated[float, Ge(0)] = Field(
        0.0, description="coefficient of logsumexp(logits)^2, added to each token's loss in training"
    )
    compile: bool = Field(False, description="torch.compile the trunk")
    gradient_checkpointing: bool = Field(False, description="recompute activations in backward: less memory, more time")
    log_every: Count = Field(10, description="steps between rows of metrics.jsonl")
    max_skipped_steps: Annotated[int, Ge(0)] = Field(
        0,
        description="steps in a row whose loss or gradient may be not finite: they are skipped, counted, "
        "and the run goes on",
    )


class EvalSection(Section):
    every: Count = Field(250, description="steps between evaluations; the last step is always evaluated")
    tokens: Count = Field(65536, description="validation tokens to evaluate during training, the first of each source")


class CheckpointSection(Section):
    every: Count = Field(1000, description="steps between checkpoints; the last step always writes one")
    keep: Count = Field(2, description="newest checkpoints to keep")
    keep_every: Count | None = Field(None, description="keep for good those of steps that are multiples of this")
    background: bool = Field(
        True, description="write files while training goes on; holds a copy of weights and optimizer in memory"
    )
    push_to: Annotated[str, AfterValidator(_user_and_name)] | None = Field(
        None, description="USER/NAME on the Hub: push checkpoints there during training, a branch step-N each"
    )
    push_every: Count = Field(1, description="push every n-th checkpoint; the last one always")
    push_private: bool = Field(True, description="push to a private repository; refuse a public one")


class TrackingSection(Section):
    wandb: Literal["disabled", "offline", "online"] = Field(
        "disabled", description="Weights & Biases; metrics.jsonl is always written"
    )
    tensorboard: bool = Field(False, description="TensorBoard files in RUN/tensorboard")
    trackio: bool = Field(False, description="trackio's local dashboard")
    project: str = Field("harmonic-gpt", description="project name in wandb and trackio")


class RunConfig(Section):
    run_dir: str = Field("runs/run", description="folder of this run: config, metrics, checkpoints")
    seed: int = Field(0, ge=0, lt=2**31, description="initial weights, order of the data, dropout")
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _sections_agree(self):
        problems = []
        if self.model.n_embd % self.model.n_head:
            problems.append(
                f"model.n_embd must be a multiple of model.n_head, got {self.model.n_embd} and {self.model.n_head}"
            )
        if self.train.batch_tokens % self.model.n_positions:
            problems.append(
                f"train.batch_tokens must be a multiple of model.n_positions, got {self.train.batch_tokens} and "
                f"{self.model.n_positions}"
            )
        if self.model.exponent == "fit" and self.model.init_from is None:
            problems.append('model.exponent: "fit" needs model.init_from, whose weights it is fitted to')
        if self.model.init_from is not None and (
            self.model.hidden_scale is not None or self.model.center_std is not None
        ):
            problems.append(
                "model.hidden_scale and model.center_std belong to fresh weights; with model.init_from "
                "leave them out, or undo a file's value with --model.hidden_scale=null --model.center_std=null"
            )
        if self.optim.warmup_steps >= self.train.steps:
            problems.append(
                f"optim.warmup_steps must be less than train.steps, got {self.optim.warmup_steps} and "
                f"{self.train.steps}"
            )
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def fields(section: type[Section] = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, pydantic field) of every setting, in order."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def describe_fields() -> str:
    """One line a setting: path, default, meaning. The `--help` of training."""
    lines = []
    for path, field in fields():
        choices = [str(c) for c in get_args(field.annotation) if isinstance(c, str)] if field.annotation else []
        default = "null" if field.default is None else field.default
        text = field.description + (f" [{' | '.join(choices)}]" if len(choices) > 1 else "")
        lines.append(f"--{path}={default}\n      {text}")
    return "\n".join(lines)


def load_run_config(path: str | Path | None, overrides: Sequence[str] = (), values: dict | None = None) -> RunConfig:
    """Read a YAML file (or take `values`), apply `--a.b=c` overrides (values are YAML), validate everything.

    Raises InputError that lists every problem with its dotted path.
    """
    values = deepcopy(values or {})
    if path is not None:
        try:
            values = _parse(Path(path).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise InputError(f"cannot read the config {path}: {error}") from error
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path}: expected sections such as `model:` and `train:`, got {type(values).__name__}")
    _take_old_names(values)
    problems = [problem for item in _pairs(overrides) if (problem := _apply(values, *item))]
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        problems += [_explain(detail) for detail in error.errors()]
        problems += _combination_problems(values, error)
    if problems:
        raise InputError("the configuration has problems:\n  " + "\n  ".join(problems))
    return config


class _Loader(yaml.SafeLoader):
    """Without dates: a run may be called 2026-01-01."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _parse(text: str) -> Any:
    """YAML to plain values. Raises ValueError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error


def _take_old_names(values: dict) -> None:
    """Files of version 0.1 stay valid. With both names in one file the old one is left, to be refused as unknown."""
    for old, new in OLD_NAMES.items():
        section, old_key = old.split(".")
        settings = values.get(section)
        if isinstance(settings, dict) and old_key in settings and (new_key := new.split(".")[1]) not in settings:
            settings[new_key] = settings.pop(old_key)


def _combination_problems(values: dict, error: ValidationError) -> list[str]:
    """Combinations are checked once all fields are right: put defaults where they are not, so that all is reported at
    once."""
    values = deepcopy(values)
    for detail in error.errors():
        place, *path = [values, *detail["loc"]]
        for part in path:
            if not isinstance(place, dict) or part not in place:
                break
            if not isinstance(place[part], dict) or part == path[-1]:
                del place[part]
                break
            place = place[part]
    try:
        RunConfig.model_validate(values)
    except ValidationError as second:
        return (
            [_explain(detail) for detail in second.errors()] if not any(d["loc"] == () for d in error.errors()) else []
        )
    return []


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """("a.b", "c") from `--a.b=c` or `--a.b c`."""
    rest = list(overrides)
    while rest:
        item = rest.pop(0)
        if not item.startswith("--") or item == "--":
            raise InputError(f"expected an override such as --train.steps=100, got {item!r}")
        key, equals, value = item[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"--{key} needs a value, as in --{key}=...")
            value = rest.pop(0)
        yield key, value


def _apply(values: dict, key: str, text: str) -> str | None:
    """Set the dotted key in place, an old name as its new one; returns a problem or None."""
    key = OLD_NAMES.get(key, key)
    try:
        value = _parse(text)
    except ValueError:
        return f"{key}: {text!r} is not a YAML value"
    _give_way(values.get("model"), key)
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:  # absent, or an empty `section:` in the file
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            return f"{key}: {parent} is a value, not a section"
    values[last] = value
    return None


def _give_way(model: Any, key: str) -> None:
    """A head named on the command line, in whichever way, replaces the file's, however that names it."""
    if not isinstance(model, dict):
        return
    if key == "model.head":
        model.pop("similarity", None), model.pop("normalization", None)
    elif key in ("model.similarity", "model.normalization") and "head" in model:
        head = model.pop("head")
        pairs = [pair for pair, name in PAIRS.items() if name == head]
        model |= dict(zip(("similarity", "normalization"), pairs[0], strict=True)) if pairs else {}


def _explain(detail: ErrorDetails) -> str:
    parts = [str(part) for part in detail["loc"]]
    known = [path for path, _ in fields()]
    sections = [name for name, field in RunConfig.model_fields.items() if isinstance(field.default, Section)]
    # pydantic adds the tried branch of a union ("float", "literal['sqrt']") to the location
    while parts and ".".join(parts) not in known + sections and detail["type"] != "extra_forbidden":
        parts.pop()
    path = ".".join(parts)
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path, known + sections, n=1, cutoff=0.5)
        if not close:
            close = [k for k in known if k.split(".")[-1] == parts[-1]]
        return f"{path}: unknown key" + (f"; did you mean {close[0]}?" if close else "; see --help for all keys")
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if path in sections or not path:
        return f"{path}: {message}".removeprefix(": ")
    return f"{path}: {message}, got {detail['input']!r}"
