"""Load a model to evaluate: a run folder, a checkpoint or any Hugging Face folder, or a name on the Hub."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.errors import InputError, is_out_of_memory, option, reason_of
from harmonic_gpt.files import file_sha256
from harmonic_gpt.runs.checkpoint import CHECKSUMS, LATEST, checkpoints, find_corruption, read_state
from harmonic_gpt.swap_head import STORED, swap_head, weight_files


@dataclass
class LoadedModel:
    """A model in evaluation mode and what is known of where it came from."""

    name: str
    path: str  # the folder whose weights were loaded, or the hub name
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    state: dict | None  # state.json of a checkpoint of ours
    weights_sha256: str | None

    @property
    def run_dir(self) -> Path | None:
        return Path(self.path).parent if self.state else None

    @property
    def step(self) -> int | None:
        return self.state["step"] if self.state else None

    @property
    def head(self) -> str:
        """Name of the head (docs/how-to/heads.md)."""
        spec = getattr(self.model.get_output_embeddings(), "spec", None)
        return "standard" if spec is None else spec.name

    def describe(self, path: bool = True) -> str:
        step = "" if self.step is None else f", step {self.step}"
        weights = "" if self.weights_sha256 is None else f", weights sha256 {self.weights_sha256[:12]}"
        return f"{self.name}{f': {self.path}' if path else ''}{step}{weights}"


def resolve(name: str) -> str:
    """The folder that holds the weights: `RUN/latest` for a run, otherwise the name itself."""
    path = Path(name).expanduser()
    if not path.exists():
        in_a_folder = path.parent != Path(".") and path.parent.is_dir()
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or in_a_folder:
            raise InputError(f"no model at {name}: expected a run folder, a Hugging Face folder, or a hub name")
        return name
    if (path / "config.json").is_file():
        return str(path.resolve())
    if (path / LATEST).exists():
        return str((path / LATEST).resolve())
    if saved := checkpoints(path):
        return str(saved[-1].resolve())
    raise InputError(f"{path}: no config.json and no checkpoint; expected a run folder or a Hugging Face folder")


def load_model(name: str, device: str | torch.device | None = "cpu", trust_remote_code: bool = False) -> LoadedModel:
    """Load in float32 and evaluation mode. Raises InputError if there is no causal language model of that name.

    Args:
        device: None: CUDA where there is one, else the CPU.
        trust_remote_code: run code that comes with the model; harmonic_gpt2 needs none.
    """
    path = resolve(name)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model: PreTrainedModel
    info: dict
    try:
        model, info = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]  # a pair, with output_loading_info
            path, dtype=torch.float32, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except Exception as error:  # the hub client, safetensors and the model's own code raise many kinds
        if is_out_of_memory(error):
            raise
        raise InputError(f"cannot load a causal language model from {path}: {reason_of(error)}") from error
    if info.get("missing_keys") or info.get("mismatched_keys"):
        broken = sorted(map(str, [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())]))
        raise InputError(
            f"{path}: its weights do not fit its config.json; missing or of another shape: {', '.join(broken[:5])}"
        )
    if hasattr(model.config, STORED):
        swap_head(model)
    folder = Path(path)
    if (folder / CHECKSUMS).is_file() and (problem := find_corruption(folder)):
        raise InputError(f"{path} is damaged: {problem}")
    try:
        model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps `to`, and loses its signature
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
        if is_out_of_memory(error):
            raise
        raise InputError(f"{option('device')} {str(device)!r}: {reason_of(error)}") from error
    _check_causal(model, path)
    has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")) or not folder.is_dir()
    return LoadedModel(
        name=Path(name).name if Path(name).exists() else name,
        path=path,
        model=model,
        tokenizer=load_tokenizer(path) if has_tokenizer else None,
        state=read_state(folder) if (folder / CHECKSUMS).is_file() else None,
        weights_sha256=_weights_sha256(path),
    )


def _weights_sha256(path: str) -> str | None:
    """SHA-256 of the weight file, or of the hashes of several, of a folder or a model on the Hub. As transformers loads
    them: pytorch_model*.bin only where there is no safetensors file, and of a folder alone; None without either."""
    files = weight_files(path) or sorted(map(str, Path(path).glob("pytorch_model*.bin")))
    hashes = [file_sha256(Path(file)) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else None


@torch.no_grad()
def _check_causal(model: PreTrainedModel, path: str) -> None:
    """A model that sees later tokens would have a meaningless perplexity. Raises InputError."""
    ids = torch.arange(4, device=model.device)[None] % model.config.vocab_size
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % model.config.vocab_size
    a, b = (model(input_ids=i).logits[0, :-1] for i in (ids, other))
    if not (a.isfinite().all() and b.isfinite().all()):
        raise FloatingPointError(f"{path}: its logits are not finite")
    if (a - b).abs().max() > 1e-5 * a.abs().max():
        raise InputError(f"{path}: not a causal language model: what it says of a token depends on later ones")
