"""A Hugging Face folder to publish: weights, code, tokenizer, generation settings and a model card.

It is checked before it is handed out.
"""

import copy
import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.dynamic_module_utils import get_relative_import_files

from harmonic_gpt.errors import InputError, reason_of
from harmonic_gpt.evaluation.comparison.results import RESULTS, read_results, row_of
from harmonic_gpt.files import check_new_folder, new_folder
from harmonic_gpt.interop.card import Measurements, model_card
from harmonic_gpt.runs.hub import MAIN, check_repository_name, upload_checkpoint
from harmonic_gpt.runs.load import LoadedModel, load_model
from harmonic_gpt.runs.metrics import read_metrics
from harmonic_gpt.swap_head import STORED

FIGURES = "figures"
EXPORTED = ("harmonic_gpt2", "gpt2")  # the types of models that the card describes
VALIDATION_METRICS = {"nats_per_token": "loss", "perplexity": "perplexity", "bits_per_byte": "bits_per_byte"}


def export(
    name: str, out: str | Path, *, report: str | None = None, license: str | None = None, repo: str | None = None
) -> Path:
    """Write model `name` (run folder, Hugging Face folder, hub name) to the new folder `out`, ready for the Hub.
    Returns `out`.

    Args:
        report: folder with results.json and figures, as `eval.py compare` and `eval.py lm-eval` write them, that has
            this very model (by the hash of its weights). Default: the validation loss of the run's own metrics.
        license: of the weights, an identifier of the Hub such as apache-2.0.
        repo: USER/NAME, where it will be published; only the card's example needs it.
    Raises InputError: `out` exists, the model does not load or is no GPT-2, or the report is of another model. Nothing
        is left behind then.
    """
    out = check_new_folder(out)
    if repo is not None:
        check_repository_name(repo)
    loaded = load_model(name)
    if hasattr(loaded.model.config, STORED):
        raise InputError(
            f"{name} has its head by swap_head; loaded elsewhere, without this package, its weights would be taken for "
            "those of dot products"
        )
    kind = loaded.model.config.model_type
    if kind not in EXPORTED:
        raise InputError(f"{name}: expected a GPT-2 (model type {' or '.join(EXPORTED)}), got model type {kind}")
    title = repo.split("/")[-1] if repo else loaded.run_dir.name if loaded.run_dir else loaded.name
    with new_folder(out) as folder:
        loaded.model.save_pretrained(folder)
        _write_tokenizer(loaded, folder)
        measured = _from_report(loaded, Path(report).expanduser(), folder) if report else _from_metrics(loaded, folder)
        model_card(loaded, title, measured, license, repo).save(folder / "README.md")
        check_folder(folder)
    return out


def push(name: str, repo: str, *, private: bool = False, report: str | None = None, license: str | None = None) -> str:
    """Publish on the Hub: what `export` wrote as it is, anything else exported first. Returns the commit's address.

    Raises: as `export`, `check_folder` and `upload_checkpoint`.
    """
    given, progress = Path(name).expanduser(), sys.stderr.isatty()
    if (given / "README.md").is_file():
        if report or license:
            raise InputError(f"{given} has its card already; --report and --license belong to `export`")
        check_folder(given)
        return upload_checkpoint(given, repo, revision=MAIN, private=private, progress=progress)
    with tempfile.TemporaryDirectory(prefix="harmonic-gpt-") as temporary:
        folder = export(name, Path(temporary) / repo.replace("/", "--"), report=report, license=license, repo=repo)
        return upload_checkpoint(folder, repo, revision=MAIN, private=private, progress=progress)


def _write_tokenizer(loaded: LoadedModel, folder: Path) -> None:
    """Tokenizer and generation_config.json: what batched generation needs, a padding token, on the left."""
    config = loaded.model.config
    end = config.eos_token_id
    if loaded.tokenizer is not None:
        tokenizer = copy.deepcopy(loaded.tokenizer)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # save_pretrained writes the attributes that are keys of init_kwargs, and no others
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(folder)
    GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=end, pad_token_id=end).save_pretrained(folder)


def _from_report(loaded: LoadedModel, report: Path, folder: Path) -> Measurements:
    row = row_of(read_results(report)["models"], loaded.weights_sha256)
    if row is None:
        raise InputError(
            f"{report / RESULTS} has no model with the weights of {loaded.path}; evaluate that model, or choose its "
            "report"
        )
    validation = row.get("validation") or {}
    values = [
        ("validation text", metric, validation[key])
        for key, metric in VALIDATION_METRICS.items()
        if validation.get(key) is not None
    ]
    for task, metrics in row.get("lm_eval", {}).items():
        values += [(f"lm-evaluation-harness: {task}", metric, value) for metric, value in metrics.items()]
    figures = {}
    for path in sorted(report.rglob("*.png")):
        (folder / FIGURES).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / FIGURES / path.name)
        figures[path.name] = path.stem.replace("_", " ")
    if not validation:
        return Measurements("Measured with EleutherAI's lm-evaluation-harness.", values, figures)
    windows = f"windows of {validation['window']} that advance by {validation['stride']}"
    protocol = f"Validation text: {validation['tokens']:,} tokens, each scored once in {windows}."
    return Measurements(protocol, values, figures)


def _from_metrics(loaded: LoadedModel, folder: Path) -> Measurements:
    rows = [row for row in read_metrics(loaded.run_dir) if row["step"] <= loaded.step] if loaded.run_dir else []
    scored = [row for row in rows if "val_loss" in row]
    if not scored or scored[-1]["step"] != loaded.step:
        return Measurements("Nothing has been measured.")
    last = scored[-1]
    values = [("validation text", "loss", last["val_loss"]), ("validation text", "perplexity", last["val_perplexity"])]
    protocol = (
        f"Measured at the end of training on {last['val_tokens']:,} validation tokens, in blocks without overlap; loss "
        "in nats per token."
    )
    if find_spec("matplotlib") is None:
        return Measurements(protocol, values)
    (folder / FIGURES).mkdir(exist_ok=True)
    _plot_losses(rows, folder / FIGURES / "loss.png")
    return Measurements(protocol, values, {"loss.png": "loss during training"})


def _plot_losses(rows: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label in (("loss", "training batch"), ("val_loss", "validation")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, alpha=0.4 if key == "loss" else 1)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=150)


def check_folder(folder: Path) -> None:
    """Raises InputError, naming what is wrong, unless a folder is what the Hub and transformers expect. Needs no
    network."""
    try:
        config = AutoConfig.from_pretrained(folder)
        for target in (getattr(config, "auto_map", None) or {}).values():
            get_relative_import_files(folder / f"{target.split('.')[0]}.py")  # reads the file and all that it imports
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            raise ValueError("no weights (*.safetensors)")
        for shard in shards:
            with safe_open(shard, "pt") as weights:
                if not weights.keys():
                    raise ValueError(f"{shard.name} is empty")
        GenerationConfig.from_pretrained(folder)
        if (folder / "tokenizer_config.json").is_file():
            AutoTokenizer.from_pretrained(folder)
        card = ModelCard.load(folder / "README.md")
        missing = [file for file in _linked_files(card.text) if not (folder / file).is_file()]
        if missing:
            raise ValueError(f"the card shows {', '.join(missing)}, not there")
        if not card.data.to_dict().get("library_name"):
            raise ValueError("the card has no metadata")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder} cannot be published: {reason_of(error)}") from error


def _linked_files(text: str) -> list[str]:
    """Pictures of a card that lie beside it. Other links may go anywhere."""
    return [place for place in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text) if not urlsplit(place).scheme]
