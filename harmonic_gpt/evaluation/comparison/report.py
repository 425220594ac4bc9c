"""The report: one Markdown text, and the same as a self-contained HTML page."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

from harmonic_gpt.evaluation.comparison import report_sections as sections
from harmonic_gpt.evaluation.comparison.report_sections import limits, plain, table

STYLE = """body{font:16px/1.55 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:.85em}td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;
text-align:right;vertical-align:top}td:first-child,th:first-child{text-align:left}img{max-width:100%;display:block}em{color:#666;font-size:.9em}
code{font-size:.85em;overflow-wrap:anywhere}h2{margin-top:2.5rem}"""


def write(results: dict, figures: list[tuple[str, str]], folder: Path) -> None:
    """report.md and report.html in a folder that holds the figures: (file, caption) each."""
    text = markdown(results, figures)
    (folder / "report.md").write_text(text, encoding="utf-8")
    write_html(text, folder)


def write_html(text: str, folder: Path, name: str = "report.html") -> None:
    """Markdown as one page: local PNG files become part of it, nothing else is loaded. Raw HTML in the text stays
    text."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def embed(match: re.Match) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'<img src="data:image/png;base64,{data}"'

    body = re.sub(r'<img src="([\w-]+\.png)"', embed, body)
    title = html.escape(text.splitlines()[0].lstrip("# "))
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{view}<title>{title}</title><style>{STYLE}</style>'
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'
    (folder / name).write_text(page, encoding="utf-8")


def markdown(results: dict, figures: list[tuple[str, str]]) -> str:
    """The whole report. Every figure stands in the section that it belongs to."""
    shown = dict(figures)

    def figure(name: str) -> list[str]:
        caption = shown.get(f"{name}.png")
        return [f"![{caption}]({name}.png)", f"*{caption}*", ""] if caption else []

    data, models = results["data"], results["models"]
    lines = ["# Comparison", ""]
    for text in first_screen(results["comparison"]) + _unequal_training(models):
        lines += [text, ""]
    lines += table(*headline_table(results["comparison"]))
    lines += [
        "↓ lower is better, ↑ higher is better; in brackets 95 % intervals; in bold who is better, where the interval leaves no doubt. "
        "Parallelogram loss is divided by that of the same words paired at random: 1 is no structure, and collapse does not lower it. "
        "The first principal component is left out: in a dot-product head it can be little else than how frequent a token is. "
        "Words that merely lie near their partner lower it without forming parallelograms; the cosine of offsets does not count those.",
        "",
        "## Prediction",
        "",
        verdict(results),
        "",
        f"Validation: the first {data['validation_tokens']:,} tokens of `{data['path']}`, every token but the first scored once in windows "
        f"that overlap by half. Predicting by token frequency alone costs {data['unigram_nats_per_token']:.4f} nats a token.",
        "",
        *table(*model_table(results)),
        *figure("loss_curves"),
    ]
    for model in models:
        if model.get("interpretability") is None:
            lines += [f"{plain(model['name'])} was not read: {model['interpretability_missing']}.", ""]
    read = [model for model in models if model.get("interpretability")]
    lines += sections.word_pairs(results["comparison"], read, figure) if read else []
    lines += [
        "## Class centers",
        "",
        *sections.class_centers(read),
        *sections.norms(models),
        *figure("center_norms"),
        *figure("explained_variance"),
    ]
    if any("layers" in model["interpretability"] for model in read):
        lines += ["## Layers", "", *sections.layers(read), *figure("layers")]
        lines += sections.probes(read, figure)
        lines += sections.similarity(results["comparison"], figure)
    lines += sections.neighbours(read)
    lines += ["## Weights evaluated", ""]
    lines += [f"- {plain(m['name'])}: `{m['path']}`, step {m['step']}, sha256 `{m['weights_sha256']}`" for m in models]
    return "\n".join([*lines, ""])


def first_screen(comparison: dict) -> list[str]:
    """Lines that answer: who predicts better, who is easier to read, by how much, how sure."""
    arms, lines = list(comparison["arms"]), []
    runs = {arm: len(members) for arm, members in comparison["arms"].items()}
    for difference in comparison["differences"]:
        a, b, rows = difference["first"], difference["second"], difference["headlines"]
        nats = rows["nats"]
        better = (a if nats["difference"] < 0 else b) if nats["difference"] else "neither"
        sure = (
            f"95 % interval {limits(nats['interval'])} over seeds"
            if nats["interval"]
            else "one run in an arm: the spread over seeds is unknown"
        )
        lines.append(f"**Prediction**: {better} is better by {abs(nats['difference']):.4f} nats a token ({sure}).")
        reading = {key: row for key, row in rows.items() if key != "nats"}
        won, lost = ([k for k, r in reading.items() if r["better"] == arm] for arm in (a, b))
        open_ = [k for k, r in reading.items() if r["better"] is None]
        if len(won) == len(lost):
            start = "neither model is clearly easier to read"
        else:
            start = f"{a if len(won) > len(lost) else b} is easier to read by {max(len(won), len(lost))} of {len(reading)} measures"
        lines.append(
            f"**Reading**: {start}. {a} leads in {_names(won)}; {b} leads in {_names(lost)}; undecided: {_names(open_)}."
        )
        tasks, paper = difference["tasks"], difference["paper_tasks"]
        lines.append(
            f"**Word-pair tasks** ({tasks['compared']} compared): {a} has the lower parallelogram ratio in {len(tasks['won'])}, {b} in "
            f"{len(tasks['lost'])}, undecided {len(tasks['undecided'])}; sign test p = {tasks['sign_test_p']:.2g}. By the paper's raw "
            f"loss, which collapse would win, {a} is lower in {len(paper['lower'])} of {paper['compared']} "
            f"(p = {paper['sign_test_p']:.2g}), and for the same words paired at random in {len(paper['shuffled_lower'])}."
        )
        for arm in (x for x in (a, b) if "harmonic" in x.lower()):
            worse = [k for k, r in rows.items() if r["better"] not in (arm, None)]
            if nats["difference"] and better != arm and "nats" not in worse:
                worse.insert(0, "nats")
            even = [k for k in open_ if k not in worse]
            lines.append(
                f"**Where {arm} is not better**: worse in {_names(worse)}; no difference shown in {_names(even)}."
            )
    if any(count < 2 for count in runs.values()) and len(arms) > 1:
        counts = ", ".join(f"{arm} {count}" for arm, count in runs.items())
        lines.append(
            f"Runs: {counts}. Intervals of single runs cover the words and tokens measured, **not** other seeds."
        )
    return lines


def verdict(results: dict) -> str:
    """Which model predicts best, by how much, and what is not known."""
    ranked = sorted(results["models"], key=lambda m: m["validation"]["nats_per_token"])
    best = ranked[0]["validation"]["nats_per_token"]
    gaps = [f"{m['name']} needs {m['validation']['nats_per_token'] / best - 1:.2%} more nats" for m in ranked[1:]]
    if not gaps:
        return "One model: nothing to compare it with."
    several = any(len(members) > 1 for members in results.get("comparison", {}).get("arms", {}).values())
    known = "" if several else " One run of each: the spread over seeds is not known."
    return f"Best at prediction: {ranked[0]['name']}; {', '.join(gaps)}.{known}"


def _unequal_training(models: list[dict]) -> list[str]:
    """A warning, where the models have not seen as much text."""
    tokens = {m["trained_tokens"] for m in models}
    if len(tokens) == 1 and None not in tokens:
        return []
    seen = ", ".join(
        f"{m['name']} {m['trained_tokens']:,}" if m["trained_tokens"] else f"{m['name']} unknown" for m in models
    )
    return [f"**Not a fair pair**: the models have not been trained on the same number of tokens ({seen})."]


def _names(keys: list[str]) -> str:
    return ", ".join(k.replace("_", " ") for k in keys) or "none"


def headline_table(comparison: dict) -> tuple[list[str], list[list[str]]]:
    """(header, rows): a headline a row, an arm a column, then the differences from the first arm."""
    arms = list(comparison["arms"])
    header = ["", *arms, *(f"{d['first']} - {d['second']}" for d in comparison["differences"])]
    rows = []
    for key, line in comparison["headlines"].items():
        form = ".4f" if key == "nats" else ".3f"
        cells = [f"{line['label']} {'↑' if line['higher_is_better'] else '↓'}"]
        for arm in arms:
            value = line["arms"][arm]
            if value is None:
                cells.append("not measured")
                continue
            sd = f" ± {value['sd']:{form}} ({value['runs']} runs)" if value["sd"] is not None else ""
            cells.append(f"{value['mean']:{form}}{sd}" + (f" {limits(value['interval'])}" if value["interval"] else ""))
        for difference in comparison["differences"]:
            row = difference["headlines"][key]
            gap = (
                "-"
                if row["difference"] is None
                else f"{row['difference']:+{form}} {limits(row['interval']) if row['interval'] else ''}"
            )
            cells.append(gap.strip() + (f" **{row['better']}**" if row["better"] else ""))
        rows.append(cells)
    return header, rows


def model_table(results: dict) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of prediction and size: a column a model, a row a measurement."""
    models = results["models"]

    def row(label: str, form: str, value) -> list[str]:
        values = [value(m) for m in models]
        return [label, *("-" if v is None else format(v, form) for v in values)]

    return ["", *(m["name"] for m in models)], [
        row("head", "", lambda m: m["head"]),
        row("exponent n", ".4g", lambda m: m["exponent"]),
        row("step", ",", lambda m: m["step"]),
        row("trained tokens", ",", lambda m: m["trained_tokens"]),
        row("parameters", ",", lambda m: m["parameters"]),
        row("validation loss (nats/token)", ".4f", lambda m: m["validation"]["nats_per_token"]),
        row("perplexity", ".2f", lambda m: m["validation"]["perplexity"]),
        row("bits per byte", ".4f", lambda m: m["validation"]["bits_per_byte"]),
        row("training tokens/s (median)", ",.0f", lambda m: m["train_tokens_per_second"]),
        row("components for 90 % variance", ",", lambda m: m["centers"]["components_for_90_percent"]),
        row("variance in 50 components", ".3f", lambda m: m["centers"]["explained_variance_50"]),
        row("norm of centers (mean)", ".3f", lambda m: m["centers"]["norm"]["mean"]),
        row("norm of centers (std)", ".3f", lambda m: m["centers"]["norm"]["std"]),
    ]
