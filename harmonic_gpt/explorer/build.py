"""Make the explorer's folder: read two models, write what the page shows."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harmonic_gpt.data.tokenizer import tokenizer_hash
from harmonic_gpt.data.tokens import TokenFolder
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.activations import centers_of, head_input, hidden_states, score_name
from harmonic_gpt.evaluation.comparison.report import link_explorer
from harmonic_gpt.evaluation.tasks.word_pairs import load_tasks
from harmonic_gpt.evaluation.text import data_of
from harmonic_gpt.explorer.centers import NEAREST, CenterMap, add_umap, count_kept, map_centers, state_scale
from harmonic_gpt.explorer.format import DATA, MANIFEST, SCHEMA_VERSION, token_ids, write_data
from harmonic_gpt.explorer.passages import Passage, by_difference, candidates, read_files
from harmonic_gpt.explorer.reading import Prediction, Walk, read_text, shown_layers
from harmonic_gpt.explorer.verdict import read_verdict
from harmonic_gpt.explorer.vocabulary import describe_tokens
from harmonic_gpt.extras import require
from harmonic_gpt.likelihood import token_counts
from harmonic_gpt.progress import show_progress
from harmonic_gpt.runs.load import LoadedModel, load_model
from harmonic_gpt.runs.provenance import provenance

PAGE, CARD_FILE = "index.html", "README.md"
OPENING = 12  # tokens of a text that name it in a list
DEFAULT_CONTEXT = 1024  # of a model that does not say
CARD = """---
title: {title}
emoji: 🔵
colorFrom: blue
colorTo: yellow
sdk: static
pinned: false
---

Two language models side by side: {models}. Made by `eval.py explore` of harmonic-gpt {version}.
"""


@dataclass
class Explored:
    """A pair of models with what the page has of them; `read` serves typed texts, too."""

    models: list[LoadedModel]
    maps: list[CenterMap]
    layers: list[list[int] | None]
    context: int  # tokens of a text at most
    can_read: bool  # both models read the same tokens
    left_out: list[str]  # of the page, and why

    def read(self, passage: Passage) -> dict:
        """What both models make of a text: the value of a text's data file."""
        values = []
        for loaded, layers, centers in zip(self.models, self.layers, self.maps, strict=True):
            prediction, walk = read_text(loaded.model, passage.ids, layers, centers)
            values.append(_text_values(prediction, walk, loaded.model.config.vocab_size))
        return {"ids": passage.ids.astype(np.int32), "source": passage.source, "note": passage.note, "models": values}


def explore(
    models: Sequence[str],
    out: str | Path,
    *,
    data: str | None = None,
    texts: int = 12,
    length: int = 256,
    files: Sequence[str] = (),
    report: str | None = None,
    word_pairs: str | None = None,
    umap: bool = True,
    device: str | None = None,
) -> Explored:
    """Write a folder whose index.html opens without server and network.

    Args:
        models: two run folders, Hugging Face folders or hub names.
        out: new folder, or one that an earlier call wrote, which is replaced once the new one is whole.
        data: token folder for passages and frequencies; None: the one that the first model was trained with.
        texts: passages of the validation split; length: tokens of each, at most the models' context.
        files: texts of the user's, shown before the passages.
        report: folder of `eval.py compare`, for the verdict.
        word_pairs: folder of relation tasks; None: the built-in ones.
        umap: also draw UMAP's map, where umap-learn is installed.
        device: None: CUDA where there is one, else the CPU.
    Raises InputError before any work: not two models, an `out` that is something else, a file that cannot be read.
    """
    out = Path(out).expanduser()
    refuse_foreign(out)
    if len(models) != 2:
        raise InputError(f"expected two models, got {len(models)}")
    tasks = load_tasks(word_pairs)
    pair = [load_model(name, device) for name in models]
    if pair[0].path == pair[1].path:
        raise InputError(f"the same weights are named twice: {pair[0].path}")
    verdict = None if report is None else read_verdict(report, [loaded.weights_sha256 for loaded in pair])
    left_out: list[str] = []
    shared, why_not = shared_vocabulary(pair)
    context = min(getattr(p.model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT for p in pair)
    own = []
    if files:
        if not shared or pair[0].tokenizer is None:
            raise InputError(f"--text: the models cannot read one text: {why_not}")
        own = read_files(list(files), pair[0].tokenizer, context)
    folder = _data(pair[0], data)
    # Without the path: the page may be published
    why_no_data = f"the text that {pair[0].name} was trained on is not there, or has changed (--data FOLDER)"
    if folder is None:
        left_out.append(f"Frequencies of tokens and passages of validation text: {why_no_data}.")
    layers = _layers(pair, left_out)
    if umap and (reason := _umap_missing(pair)):
        umap = False
        left_out.append(reason)

    passages = candidates(folder.tokens("val"), texts, min(length, context)) if folder and shared else []
    scored = sum(len(passage.ids) for passage in passages)
    read = sum(len(passage.ids) for passage in [*own, *passages[:texts]])
    work = 2 * scored + 2 * read + sum(len(centers_of(p.model)) for p in pair)
    with show_progress(desc="explorer", unit=" tokens", total=work) as bar:
        chosen = by_difference(passages, [p.model for p in pair], texts, bar.update)
        shown = own + chosen
        maps: list[CenterMap] = []
        for loaded in pair:
            like = maps[0] if maps and shared else None
            maps.append(map_centers(loaded.model, like, bar.update))
            if umap:
                add_umap(maps[-1], loaded.model, like)
            count_kept(maps[-1])
            if shown and layers[len(maps) - 1] is not None:
                ids = torch.from_numpy(shown[0].ids)[None]
                last = head_input(loaded.model, hidden_states(loaded.model, ids)[-1][0])
                if score_name(loaded.model) == "dot product":
                    maps[-1].state_scale = state_scale(loaded.model, last)
        explored = Explored(pair, maps, layers, context, shared and why_not is None, left_out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            new = Path(temporary) / "new"
            _copy_page(new)
            listed = []
            for number, passage in enumerate(shown, 1):
                value = explored.read(passage)
                write_data(new, f"text-{number}", value)
                listed.append(summary(number, passage, value, pair[0]))
                bar.update(2 * len(passage.ids))
            counts = token_counts(folder) if folder and "train" in folder.splits else None
            for key, loaded in zip("ab", pair, strict=True):
                if key == "a" or not shared:
                    size = len(centers_of(loaded.model))
                    same_ids = folder if loaded is pair[0] else None
                    held = describe_tokens(loaded.tokenizer, size, counts if same_ids else None, tasks)
                    write_data(new, f"vocabulary-{key}", held)
            for key, centers in zip("ab", maps, strict=True):
                write_data(new, f"map-{key}", _map_values(centers))
            write_data(new, "verdict", verdict)
            write_data(new, "serve", None)
            manifest = {
                "schema_version": SCHEMA_VERSION,
                "models": [_model_values(*held) for held in zip(pair, maps, layers, strict=True)],
                "vocabularies": ["vocabulary-a", "vocabulary-a" if shared else "vocabulary-b"],
                "texts": listed,
                "texts_missing": None
                if listed
                else why_not or (why_no_data if folder is None else "no text was given"),
                "selection": _selection(len(passages), len(chosen)),
                "context": context,
                "nearest": NEAREST,
                "left_out": left_out,
                "verdict_missing": None if verdict else "no results of `eval.py compare` were given (--report FOLDER)",
                **provenance(),
            }
            write_data(new, MANIFEST, manifest)
            (new / CARD_FILE).write_text(_card(pair, manifest), encoding="utf-8")
            _replace(new, out, Path(temporary))
        if report is not None:
            link_explorer(Path(report).expanduser(), os.path.relpath(out / PAGE, Path(report).expanduser()))
    return explored


def refuse_foreign(out: Path) -> None:
    """Raises InputError for a path that holds anything else than an explorer: it would be gone with the old one."""
    if out.exists() and not (out.is_dir() and (is_explorer(out) or not any(out.iterdir()))):
        raise InputError(f"{out} exists and is not an earlier explorer; choose another folder")
    written = {DATA, CARD_FILE, *(file.name for file in _page_files())}
    if out.exists() and (foreign := sorted({path.name for path in out.iterdir()} - written)):
        raise InputError(f"{out} holds {', '.join(foreign)}, which no explorer has; choose another folder")


def is_explorer(folder: Path) -> bool:
    return (folder / DATA / f"{MANIFEST}.js").is_file() and (folder / PAGE).is_file()


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def shared_vocabulary(pair: list[LoadedModel]) -> tuple[bool, str | None]:
    """Whether a token's id means the same in both models, and why they cannot read one text where they cannot."""
    sizes = [len(centers_of(loaded.model)) for loaded in pair]
    tokenizers = [loaded.tokenizer for loaded in pair if loaded.tokenizer is not None]
    missing = [loaded.name for loaded in pair if loaded.tokenizer is None]
    if len(missing) == 2 and sizes[0] == sizes[1]:
        return True, "neither model has a tokenizer: text cannot be turned into tokens"
    if missing:
        return False, f"{' and '.join(missing)} came without a tokenizer: text cannot be turned into tokens"
    if len(set(map(tokenizer_hash, tokenizers))) > 1 or sizes[0] != sizes[1]:
        return False, "the models have different tokenizers: they do not share the tokens of a text"
    return True, None


def _data(loaded: LoadedModel, data: str | None) -> TokenFolder | None:
    """The token folder. One that was asked for must be there."""
    try:
        return data_of(loaded, data)
    except InputError:
        if data is not None:
            raise
        return None


def _layers(pair: list[LoadedModel], left_out: list[str]) -> list[list[int] | None]:
    layers: list[list[int] | None] = []
    for loaded in pair:
        try:
            layers.append(shown_layers(loaded.model))
        except InputError as error:
            layers.append(None)
            left_out.append(f"Lens and walk of {loaded.name}: {error}.")
            continue
        count = int(loaded.model.config.num_hidden_layers) + 1
        if len(layers[-1] or ()) < count:
            left_out.append(f"{loaded.name}: {len(layers[-1] or ())} of {count} layers are shown, evenly spaced.")
    return layers


def _umap_missing(pair: list[LoadedModel]) -> str | None:
    if min(len(centers_of(loaded.model)) for loaded in pair) < 20:
        return "A neighbor-keeping map: fewer than 20 tokens."
    try:
        require("explore", "umap")
    except InputError as error:
        return f"A neighbor-keeping map: {error}."
    return None


def _selection(scored: int, chosen: int) -> str:
    if not chosen:
        return ""
    return (
        f"The {chosen} of {scored} evenly spaced validation passages on which the models differ most. They are chosen "
        "for their difference, so their mean loss says nothing of the models: see the verdict for that."
    )


def summary(number: int | str, passage: Passage, value: dict, loaded: LoadedModel) -> dict:
    """A text's line in the list of texts: what is needed to choose it."""
    opening = "" if loaded.tokenizer is None else str(loaded.tokenizer.decode(passage.ids[:OPENING].tolist()))
    a, b = (model["nats"] for model in value["models"])
    return {
        "key": f"text-{number}",
        "opening": " ".join(opening.split()) or passage.source,
        "source": passage.source,
        "note": passage.note,
        "tokens": len(passage.ids),
        "nats": [float(a.mean()), float(b.mean())],
        "mean_gap": float(np.abs(a - b).mean()),
        "gaps": [round(float(gap), 1) for gap in a - b],
    }


def _text_values(prediction: Prediction, walk: Walk | None, vocab_size: int) -> dict:
    values: dict[str, Any] = {
        **vars(prediction),
        "top": token_ids(prediction.top, vocab_size),
        "walk": None,
    }
    if walk is not None:
        places = walk.coordinates
        values["walk"] = {**vars(walk), "top": token_ids(walk.top, vocab_size), "coordinates": places}
    return values


def _map_values(centers: CenterMap) -> dict:
    return {
        "coordinates": centers.coordinates,
        "norms": centers.norms,
        "nearest": token_ids(centers.nearest[:, :NEAREST], len(centers.nearest)),
        "scores": centers.scores[:, :NEAREST],
    }


def _model_values(loaded: LoadedModel, centers: CenterMap, layers: list[int] | None) -> dict:
    return {
        "name": loaded.name,
        "described": loaded.describe(path=False),  # the page may be published
        "weights_sha256": loaded.weights_sha256,
        "step": loaded.step,
        "head": loaded.head,
        "vocab_size": len(centers.nearest),
        "hidden_size": int(centers_of(loaded.model).shape[1]),
        "score": score_name(loaded.model),
        "nearest_by": centers.by,
        "layers": layers,
        "maps": {
            name: {"kept": share, "chance": min(1.0, NEAREST / max(1, len(centers.nearest) - 1))}
            for name, share in centers.kept.items()
        },
        "variance_share": centers.variance_share,
        "state_scale": centers.state_scale,
    }


def _page_files() -> list[Traversable]:
    return [file for file in resources.files("harmonic_gpt.explorer").joinpath("page").iterdir() if file.is_file()]


def _copy_page(folder: Path) -> None:
    folder.mkdir()
    for file in _page_files():
        (folder / file.name).write_bytes(file.read_bytes())


def _card(pair: list[LoadedModel], manifest: dict) -> str:
    names = " and ".join(loaded.name for loaded in pair)
    title = "".join(c for c in names if c.isalnum() or c in " -_.")[:60]
    return CARD.format(title=title, models=names, version=manifest["versions"]["harmonic-gpt"])


def _replace(new: Path, out: Path, temporary: Path) -> None:
    """Put the new folder in the place of an earlier one, which is gone only when the new one is whole."""
    if out.exists():
        out.rename(temporary / "old")
    new.rename(out)
    shutil.rmtree(temporary / "old", ignore_errors=True)
