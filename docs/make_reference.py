"""Write the generated pages: every setting of a run, every command with its options, README as the site's home, and
the notebook as a page.

    python docs/make_reference.py

tests/test_reference.py checks that the committed pages are those that this program writes.
"""

import json
import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from harmonic_gpt.__main__ import app
from harmonic_gpt.run_config import RunConfig, fields

DOCS = Path(__file__).parent
NOTEBOOK = "tutorials/read_a_model.ipynb"
NOTE = "<!-- Written by docs/make_reference.py: change the source and run it again. -->\n\n"
SETTINGS = """# Settings of a run

A setting is a line of the YAML file that `train --config` names, or `--section.name=value` on the command line, which
overrides the file. `null` on the command line undoes a file's value. An unknown or impossible setting is refused before
anything is loaded, with the nearest name or the range that is allowed.
"""
LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


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
    return NOTE + text.replace("# `harmonic-gpt`\n", "# Commands\n", 1)


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
    "index.md": home_page,
    str(Path(NOTEBOOK).with_suffix(".md")): notebook_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
