"""Write the generated pages: settings of a run, commands with their options, shipped configs, README as the home,
the notebook as a page.

    python docs/make_reference.py

tests/test_reference.py checks that the committed pages are those that this program writes.
"""

import json
import re
from pathlib import Path

import torch
import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from harmonic_gpt.__main__ import app
from harmonic_gpt.cli.options import first_sentence
from harmonic_gpt.data.tokens import NANOGPT_VOCAB_SIZE
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import RunConfig, fields, load_run_config
from harmonic_gpt.training.memory import GIB, RankDevice, need
from harmonic_gpt.training.plan import model_config, training_flops_per_token

DOCS = Path(__file__).parent
NOTEBOOK = "tutorials/read_a_model.ipynb"
NOTE = "<!-- Written by docs/make_reference.py: change the source and run it again. -->\n\n"
SETTINGS = """# Settings of a run

A setting is a line of the YAML file that `train --config` names, or `--section.name=value` on the command line, which
overrides the file. `null` on the command line undoes a file's value. An unknown or impossible setting is refused before
anything is loaded, with the nearest name or the range that is allowed.
"""
LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


CONFIGS = """# Shipped configs

Each file of `configs/` is a run that someone would start: `python train.py --config FILE`. The two files of a pair
differ in the head, or say at their top in what else. `--dry-run` prints a run's plan.

## Models

| file of `configs/` | head | depth x width | parameters | context |
|---|---|---|---|---|
"""
TRAINING = """
## Training

FLOPs are those of matrix products, forward and backward. Memory is the peak of a step on one device (a GPU where the
config is made for one), by the formula of `--dry-run`: an estimate.

| file of `configs/` | data | tokens | optimizer | FLOPs | memory |
|---|---|---|---|---|---|
"""
TIMES = """
`data/pydocs` is Python's own documentation (0.58 M tokens), which the run prepares itself. `data/openwebtext` (9.0 B
tokens) and `data/babylm_small` are prepared first: [data](../how-to/data.md), [BabyLM](../how-to/babylm.md).

## Time and loss

Only the quickstart has been run. Times on a GPU are **estimates**: the FLOPs above at 40 % of an H100's 989 TFLOP/s.
Losses are of the whole validation text in windows without overlap, as training prints them.

| file of `configs/` | made for | time | validation loss, nats per token | source of the loss |
|---|---|---|---|---|
"""
# What no config says: made for; time, or None for an estimate from the FLOPs; expected validation loss, and its source
EXPECTED = {
    "quickstart_harmonic": ("two CPU cores", "2 min (measured)", "4.941", "one seed, `make quickstart` on 2026-11-30"),
    "quickstart_standard": ("two CPU cores", "2 min (measured)", "4.882", "one seed, `make quickstart` on 2026-11-30"),
    "quickstart_sharp": (
        "two CPU cores",
        "2 min (measured)",
        "4.913",
        "one seed, on 2026-11-29, as quickstart_harmonic then",
    ),
    "quickstart_heads": ("two CPU cores", "depends on the head", "not known", "never measured"),
    "babylm_small_harmonic": ("one GPU", "minutes on one H100 (estimate)", "not known", "never run"),
    "babylm_small_standard": ("one GPU", "minutes on one H100 (estimate)", "not known", "never run"),
    "gpt2_small_harmonic": ("1 to 8 GPUs", None, "not known", "never run"),
    "gpt2_small_sharp": ("1 to 8 GPUs", None, "not known", "never run"),
    "gpt2_small_standard": ("1 to 8 GPUs", None, "not known", "never run"),
    "gpt2_small_harmonic_paper": ("1 to 8 GPUs", None, "3.146", "the paper's table; never run here"),
    "gpt2_small_standard_paper": ("1 to 8 GPUs", None, "3.159", "the paper's table; never run here"),
}
H100_FLOPS = 0.4 * 989e12  # an estimate: 40 % of the dense bf16 peak


def allowed(schema: dict) -> str:
    """The values that a field's JSON schema allows, in a few words."""
    if "anyOf" in schema:
        return " or ".join(allowed(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} numbers, each {allowed(schema['prefixItems'][0])}"
    limits = " and ".join(f"{sign} {_number(schema[key])}" for key, sign in LIMITS.items() if key in schema)
    names = {"boolean": "true, false", "string": "text", "array": "list", "object": "mapping", "null": "null"}
    kind = names.get(schema["type"], schema["type"])
    return f"{kind} {limits}" if limits else kind


def _number(value: float) -> str:
    powers = {2**31 - 1: "2^31 - 1", 2**31: "2^31", 2**20: "2^20"}
    return powers.get(value, f"{value:g}")


def settings_page() -> str:
    schema = RunConfig.model_json_schema()
    page, section = [NOTE + SETTINGS], None
    for path, field in fields():
        *parents, name = path.split(".")
        title = parents[0] if parents else "The run"
        if title != section:
            section = title
            page.append(f"\n## {title}\n\n| setting | default | allowed | meaning |\n|---|---|---|---|")
        definition = RunConfig.model_fields[parents[0]].annotation.__name__ if parents else None
        properties = schema["$defs"][definition]["properties"] if definition else schema["properties"]
        default = field.default if isinstance(field.default, str) else json.dumps(field.default)
        cells = (f"`{path}`", f"`{default}`", allowed(properties[name]), field.description)
        page.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(page) + "\n"


def commands_page() -> str:
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="harmonic-gpt")
    # The settings of `train` have a page of their own
    listing = re.compile(r"\n+Settings and their defaults:\n.*?(?=\n\*\*Usage)", re.DOTALL)
    text = listing.sub("\n\nSettings and their defaults: [settings](settings.md).\n", text)
    text = text.replace("[,", "\\[,")  # no links
    return NOTE + _whole_summaries(command, text).replace("# `harmonic-gpt`\n", "# Commands\n", 1)


def _whole_summaries(group: typer.core.TyperGroup, text: str) -> str:
    """Lists of commands with the whole first sentence of each: typer cuts it at 45 characters."""
    for name, command in group.commands.items():
        cut, whole = command.get_short_help_str(), first_sentence(command.help or "")
        text = text.replace(f"* `{name}`: {cut}\n", f"* `{name}`: {whole}\n")
        if isinstance(command, typer.core.TyperGroup):
            text = _whole_summaries(command, text)
    return text


def configs_page() -> str:
    models, training, times = [], [], []
    for name, (hardware, time, loss, source) in EXPECTED.items():
        config = load_run_config(str(DOCS.parent / f"configs/{name}.yaml"), [])
        model, train, optim = config.model, config.train, config.optim
        with torch.device("meta"):
            hf_config = model_config(config, config.data.vocab_size or NANOGPT_VOCAB_SIZE, None)
            parameters = sum(weight.numel() for weight in HarmonicGPT2ForCausalLM(hf_config).parameters())
        tokens = train.steps * train.batch_tokens
        flops = tokens * training_flops_per_token(hf_config)
        memory = need(hf_config, config, RankDevice("", 80 * GIB, cuda="GPU" in hardware)).bytes / GIB
        exponent = hf_config.head_spec.constants.get("exponent")
        head = f"{model.head}, n = {exponent:.4g}" if exponent else model.head
        size = f"{parameters / 1e6:.3g} M, {'tied' if model.tie_word_embeddings else 'untied'}"
        seen = f"{tokens / 1e9:.3g} B" if tokens > 1e9 else f"{tokens / 1e6:.3g} M"
        models.append(_row(f"`{name}`", head, f"{model.n_layer} x {model.n_embd}", size, f"{model.n_positions:,}"))
        optimizer = f"{optim.optimizer}, lr {optim.lr:g}"
        training.append(_row(f"`{name}`", f"`{config.data.dir}`", seen, optimizer, f"{flops:.1e}", f"{memory:.1f} GiB"))
        time = time or f"{flops / H100_FLOPS / 3600:.1f} h on one H100 (estimate)"
        times.append(_row(f"`{name}`", hardware, time, loss, source))
    return "".join([NOTE, CONFIGS, *models, TRAINING, *training, TIMES, *times])


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |\n"


def home_page() -> str:
    """README as it reads from docs/. Not in the repository."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    text = text.replace("[CONTRIBUTING.md](CONTRIBUTING.md)", "CONTRIBUTING.md")
    return text.replace(f"({NOTEBOOK})", f"({Path(NOTEBOOK).with_suffix('.md')})")


def notebook_page() -> str:
    """The notebook with its outputs, as Markdown. Not in the repository, where the notebook itself is shown."""
    parts = [NOTE.strip()]
    for cell in json.loads((DOCS / NOTEBOOK).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            kinds = output.get("data", {})
            if "image/png" in kinds:
                parts.append(f'<img alt="" src="data:image/png;base64,{"".join(kinds["image/png"]).strip()}">')
            elif "text/html" in kinds:
                table = re.sub(r"<style.*?</style>", "", "".join(kinds["text/html"]), flags=re.DOTALL)
                parts.append(table.replace('<table border="1" class="dataframe">', "<table>"))  # in the site's style
            else:
                text = "".join(output.get("text", kinds.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


PAGES = {
    "reference/settings.md": settings_page,
    "reference/commands.md": commands_page,
    "reference/configs.md": configs_page,
    "index.md": home_page,
    str(Path(NOTEBOOK).with_suffix(".md")): notebook_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
