"""The model card of a published model: metadata by huggingface_hub's card tools, and what a reader needs to know before
using it."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from harmonic_gpt.data.sources import HUB_ALIASES, hub_name, parse_spec
from harmonic_gpt.model.harmonic_head import HarmonicHead
from harmonic_gpt.model.heads import find_head
from harmonic_gpt.runs.load import LoadedModel

PAPER = "2502.01628"
NOT_A_GPT2 = """
**Load it as above, with `trust_remote_code=True`, or with `AutoModelForCausalLM`. `GPT2LMHeadModel.from_pretrained`
loads these weights with no more than a warning, and then computes dot products: its probabilities are wrong. So are
those of any other program that takes the weights for a plain GPT-2.**
"""
CITATION = """```bibtex
@article{baek2025harmonic,
  title   = {Harmonic Loss Trains Interpretable AI Models},
  author  = {Baek, David D. and Liu, Ziming and Tyagi, Riya and Tegmark, Max},
  journal = {arXiv preprint arXiv:2502.01628},
  year    = {2025}
}
```"""


@dataclass
class Measurements:
    """What is known of how good a model is. `values`: (task, metric id, value), a row of the results table each."""

    protocol: str
    values: list[tuple[str, str, float]] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)  # file name: caption


def _hub_dataset(source: str) -> str | None:
    """USER/NAME of a source's dataset on the Hub, else None."""
    place, options = parse_spec(source)
    name = hub_name(place)
    # A folder that is not here any more looks much like USER/NAME. With a dot it may be one, unless an option says that
    # it is not
    characters = r"[\w.-]" if options.keys() & {"config", "split", "revision"} else r"[\w-]"
    return name if name and re.fullmatch(f"[A-Za-z0-9]{characters}*/{characters}+", name) else None


def _is_pydocs(source: str) -> bool:
    return parse_spec(source)[0] == "pydocs"


def _sources(config: dict) -> list[str]:
    """What the run's token files were made from; empty if the run does not record it."""
    source = config["data"].get("source")
    return [source] if isinstance(source, str) else source or []


def _data_sentence(source: str) -> str:
    if _is_pydocs(source):
        return "the English prose that every Python carries (help topics and docstrings of the standard library)"
    if (name := _hub_dataset(source)) is not None:
        return f"[{name}](https://huggingface.co/datasets/{name})"
    return "local text files of whoever trained it"


def _recipe(config: dict) -> dict:
    """The run's settings without what belongs to one machine."""
    sections = {name: dict(value) if isinstance(value, dict) else value for name, value in config.items()}
    for name in ("run_dir", "tracking", "checkpoint"):
        sections.pop(name, None)
    public = all(_is_pydocs(source) or _hub_dataset(source) for source in _sources(config))
    for key in ("dir", "tokenizer") if public else ("dir", "tokenizer", "source", "weights"):
        sections["data"].pop(key, None)
    for key in ("init_from", "prior"):
        if start := config["model"].get(key):
            sections["model"][key] = _start(start)
    return sections


def _start(init_from: str) -> str:
    """Name of the file or folder that a run started from, without the path to it."""
    return Path(init_from).name if Path(init_from).expanduser().exists() or init_from.count("/") > 1 else init_from


def _metadata(loaded: LoadedModel, name: str, measured: Measurements, license: str | None) -> ModelCardData:
    sources = _sources(loaded.state["config"]) if loaded.state else []
    datasets = sorted({dataset for source in sources if (dataset := _hub_dataset(source))})
    embedded = bool(sources) and all(map(_is_pydocs, sources))
    english = bool(sources) and all(
        _is_pydocs(source) or _hub_dataset(source) == HUB_ALIASES["openwebtext"] for source in sources
    )
    results = [
        EvalResult(
            task_type="text-generation",
            task_name=task,
            dataset_type=datasets[0] if len(datasets) == 1 else "pydocs" if embedded else "text",
            dataset_name=task,
            metric_type=metric,
            metric_value=float(f"{value:.6g}"),
        )
        for task, metric, value in measured.values
    ]
    return ModelCardData(
        language="en" if english else None,
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt2", "harmonic-loss", f"arxiv:{PAPER}"],
        datasets=datasets or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _training(loaded: LoadedModel) -> str:
    if loaded.state is None:
        return "Not recorded: the model did not come from a training run of this program."
    state, config = loaded.state, loaded.state["config"]
    sources = list(dict.fromkeys(map(_data_sentence, _sources(config))))
    data = " and ".join(sources) or "token files whose source the run does not record"
    trained = f"Trained on {data}: {state['step']:,} steps, {state['tokens']:,} tokens"
    if start := config["model"].get("init_from"):
        trained += f", starting from the weights of `{_start(start)}`"
    made_with = [f"{name} {version}" for name, version in state.get("versions", {}).items()]
    if commit := state.get("git_commit"):
        made_with.append(f"commit `{commit}` of harmonic-gpt")
    return f"""{trained}.{f" Made with {', '.join(made_with)}." if made_with else ""}

<details><summary>All settings</summary>

```yaml
{yaml.safe_dump(_recipe(config), sort_keys=False).strip()}
```

</details>"""


def _head(model: PreTrainedModel) -> tuple[str, bool]:
    """(what the head does, in a sentence, whether GPT2LMHeadModel computes the same from these weights)."""
    head = model.get_output_embeddings()
    ours = isinstance(head, HarmonicHead)
    if not ours or (head.name == "standard" and head.log_prior is None):
        factor = head.hidden_scale / head.spec.constants["temperature"] if ours else 1.0
        times = "" if factor == 1.0 else f", times {factor:.6g}"
        sentence = "softmax of dot products of the hidden state with each row of the unembedding"
        return f"**standard** head: {sentence}{times}, as in GPT-2", factor == 1.0
    symbols = {"exponent": "n"}
    numbers = [f"{symbols.get(name, name)} = {value:.6g}" for name, value in head.spec.constants.items()]
    scale = f"x = {head.hidden_scale:.6g} · (output of the final layer norm)"
    prior = " and to its prior (`lm_head.log_prior`)" if head.log_prior is not None else ""
    learned = f" Learned: {', '.join(head.learn)}." if head.learn else ""
    shape = (
        "log-probabilities" if head.name != "standard" else "logarithms of what the probabilities are proportional to"
    )
    return (
        f"**{head.name}** head: each row w_j of the unembedding is the center of a class, and the probability of token "
        f"j is proportional to {head.definition.meaning}{prior}, {', '.join([*numbers, scale])}.{learned} `logits` are "
        f"{shape}"
    ), False


def _results(measured: Measurements) -> str:
    rows = [f"| {task} | {metric} | {value:.5g} |" for task, metric, value in measured.values]
    figures = [f"![{caption}](figures/{file})" for file, caption in measured.figures.items()]
    table = ["| measured on | metric | value |", "|---|---|---|", *rows, ""] if rows else []
    return "\n".join([measured.protocol, "", *table, *figures])


def _limitations(loaded: LoadedModel, own_code: bool) -> list[str]:
    lines = []
    if loaded.state is not None and loaded.state["tokens"] < 1e9:
        tokens = f"{loaded.state['tokens']:,} training tokens"
        lines.append(f"It saw {tokens}, far too few for fluent text: it is for studying the head.")
    lines.append(f"It sees at most {loaded.model.config.max_position_embeddings:,} tokens.")
    lines.append(
        "It has no instruction tuning and no safety training: it continues text, repeats what its data says, and makes "
        "things up."
    )
    if own_code and find_head(loaded.head).form != ("dot", "linear"):
        lines.append("Distances are formed in float32, whatever the weights are in. Training in float16 is refused.")
    return lines


def model_card(
    loaded: LoadedModel, name: str, measured: Measurements, license: str | None = None, repo: str | None = None
) -> ModelCard:
    """The card of one model.

    Args:
        name: what the model is called. repo: USER/NAME on the Hub, if it is known, for the code example.
        measured: results with their protocol; nothing is claimed that is not in here.
        license: identifier of the weights' license; None says that none was stated.
    """
    config = loaded.model.config
    own_code = getattr(config, "model_type", None) == "harmonic_gpt2"
    head, plain = _head(loaded.model)
    trust = ", trust_remote_code=True" if own_code else ""
    parameters = sum(p.numel() for p in loaded.model.parameters())
    sizes = f"{config.n_layer} layers x {config.n_embd}, {config.n_head} heads, vocabulary {config.vocab_size:,}"
    tied = "tied to" if config.tie_word_embeddings else "separate from"
    license_text = f"Weights: {license}." if license else "Weights: their publisher has stated no license."
    text = f"""---
{_metadata(loaded, name, measured, license).to_yaml()}
---

# {name}

A GPT-2 of {parameters:,} parameters ({sizes}, unembedding {tied} the token embedding) with a {head}.
The head and why one might want it: [Baek et al., arXiv {PAPER}](https://arxiv.org/abs/{PAPER}).

## Use

```python
from transformers import pipeline

generator = pipeline("text-generation", model="{repo or name}"{trust})
print(generator("The", max_new_tokens=40, do_sample=True)[0]["generated_text"])
```

Needs torch and transformers 5{"; the code of the model lies in this repository" if own_code else ""}.
{"" if plain else NOT_A_GPT2}
## Results

{_results(measured)}

## Training

{_training(loaded)}

## Limitations

{chr(10).join(f"- {line}" for line in _limitations(loaded, own_code))}

## License and citation

{license_text}{" Code: Apache-2.0." if own_code else ""}

{CITATION}
"""
    return ModelCard(text)
