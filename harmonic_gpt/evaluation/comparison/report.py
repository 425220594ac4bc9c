"""The report: values for the template report.md.j2, its Markdown, and the same as a self-contained HTML page."""

import base64
import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harmonic_gpt.evaluation.comparison.arms import PREDICTION, interval_kinds
from harmonic_gpt.evaluation.measures.geometry import WITHOUT_FIRST
from harmonic_gpt.extras import require
from harmonic_gpt.files import write_text

if TYPE_CHECKING:
    from jinja2 import Template

# The colors of the explorer's page, light and dark
STYLE = """:root{color-scheme:light dark;--paper:#f7f6f2;--panel:#fff;--ink:#1a2028;--soft:#5c6672;--line:#dcdbd4;
--accent:#14608f}
@media(prefers-color-scheme:dark){:root{--paper:#0c1118;--panel:#131a24;--ink:#e8ecf1;--soft:#98a4b3;--line:#273140;
--accent:#7cc2f5}}
*{box-sizing:border-box}html{background:var(--paper);color:var(--ink);
font:16px/1.55 -apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
body{max-width:84rem;margin:0 auto;padding:1.5rem 1.25rem 4rem}h1{font-size:1.6rem;margin:0 0 .5rem}
a{color:var(--accent)}
.first{display:grid;grid-template-columns:minmax(0,7fr) minmax(0,5fr);gap:1.5rem;align-items:start}
.first p{margin:.55rem 0}.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1rem;
margin:1.25rem 0}figure{margin:0;background:#fff;border:1px solid var(--line);border-radius:14px;padding:.75rem}
figure a{display:block}figcaption{color:#5c6672;font-size:.85rem;margin-top:.4rem}img{max-width:100%;display:block;
margin:auto;background:#fff;border-radius:8px}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:.86em;background:var(--panel);
border:1px solid var(--line);border-radius:14px;padding:.4rem .9rem;margin:1rem 0;font-variant-numeric:tabular-nums}
td{white-space:nowrap}
td,th{padding:.35rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
tr:last-child td{border-bottom:0}td:first-child,th:first-child{text-align:left;white-space:normal}
details{border-top:1px solid var(--line)}details:last-of-type{border-bottom:1px solid var(--line)}
summary{cursor:pointer;padding:.8rem 0;list-style-position:inside}summary h2{display:inline;font-size:1.15rem}
details[open]{padding-bottom:1rem}em,ul{color:var(--soft);font-size:.9em}code{font-size:.85em;overflow-wrap:anywhere}
@media(max-width:50rem){.first{grid-template-columns:minmax(0,1fr)}html{font-size:15px}}
@media print{details::details-content{content-visibility:visible;block-size:auto}}"""
FIRST_SCREEN = ("forest", "lens_agreement", "probes")  # pictures that stand beside the verdict and the loss curves
# `eval.py explore --report` puts a link between these
EXPLORER = "<!-- explorer -->"


def write(results: dict, figures: list[tuple[str, str]], folder: Path) -> None:
    """report.md and report.html in a folder that holds the figures: (file, caption) each."""
    text = markdown(results, figures)
    write_text(folder / "report.md", text)
    write_html(text, folder)


def write_html(text: str, folder: Path, name: str = "report.html") -> None:
    """Markdown as one page: local PNG files become part of it, nothing else is loaded. Raw HTML in the text stays
    text.

    What stands before the first section is the first screen, with the pictures that matter; sections are folded.
    """
    require("eval", "markdown_it")
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def embed(match: re.Match) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'<img src="data:image/png;base64,{data}"'

    body = re.sub(r'<img src="([\w-]+\.png)"', embed, _arranged(body))
    title = html.escape(text.splitlines()[0].lstrip("# "))
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{view}<title>{title}</title><style>{STYLE}</style>'
    write_text(folder / name, f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>')


def _arranged(body: str) -> str:
    """A rendered report as a first screen and folded sections. A figure that moves to the first screen leaves its
    section."""
    figures = {}

    def taken(match: re.Match) -> str:
        if match[1] not in ("loss_curves", *FIRST_SCREEN):
            return match[0]
        figures[match[1]] = f"<figure>{match[2]}<figcaption>{match[3]}</figcaption></figure>"
        return ""

    body = re.sub(r'<p>(?=<img src="([\w-]+)\.png")(<img[^>]*>)\s*<em>(.*?)</em></p>', taken, body, flags=re.DOTALL)
    opening, *sections = re.split(r"(?=<h2>)", body)
    lines, table, rest = opening.partition("<table>")
    pictures = "".join(figures[key] for key in FIRST_SCREEN if key in figures)
    folded = [
        re.sub(r"^(<h2>.*?</h2>)", r"<details><summary>\1</summary>", section) + "</details>" for section in sections
    ]
    return "".join(
        [
            f'<div class="first"><div>{lines}{EXPLORER}{EXPLORER}</div>{figures.get("loss_curves", "")}</div>',
            f'<div class="pictures">{pictures}</div>' if pictures else "",
            table + rest,
            *folded,
        ]
    )


def link_explorer(folder: Path, page: str) -> None:
    """Put a link to an explorer's page, relative to the folder, into report.html; nothing where there is none."""
    path = folder / "report.html"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, mark, rest = text.partition(EXPLORER)
    _, end, after = rest.partition(EXPLORER)
    if mark and end:
        link = f'<p><a href="{html.escape(page)}"><b>Open the explorer</b></a>: both models on one text.</p>'
        write_text(path, f"{before}{EXPLORER}{link}{EXPLORER}{after}")


def markdown(results: dict, figures: list[tuple[str, str]]) -> str:
    """The whole report. Every figure stands in the section that it belongs to."""
    shown = {file.removesuffix(".png"): caption for file, caption in figures}
    return _template(plain).render(_values(results) | {"figures": shown})


def verdict(results: dict) -> list[str]:
    """The first screen of the report as plain lines: who predicts better, who is easier to interpret, by how much, how
    sure that is."""
    template = _template(str)
    text = "".join(template.blocks["verdict"](template.new_context(_values(results))))
    return [" ".join(line.split()).replace("**", "") for line in text.split("\n\n") if line.strip()]


def _template(escape: Any) -> "Template":
    require("eval", "jinja2")
    from jinja2 import Environment, StrictUndefined

    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"plain": escape, "number": number, "limits": limits, "code": code}
    return environment.from_string(Path(__file__).with_name("report.md.j2").read_text(encoding="utf-8"))


def plain(text: str) -> str:
    """Text in which Markdown sees nothing."""
    return re.sub(r"([\\`*_\[\]<>|~#!&])", r"\\\1", str(text).replace("\n", " "))


def code(text: str) -> str:
    """Text as a code span that holds in a table, whatever is in it."""
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{repr(text)[1:-1]}{space}{fence}".replace("|", "\\|")


def number(value: float | None, form: str, missing: str = "-") -> str:
    return missing if value is None else format(value, form)


def limits(interval: list[float] | None) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""


def _values(results: dict) -> dict[str, Any]:
    """results.json, and what the template looks up in it."""
    models, comparison = results["models"], results["comparison"]
    read = [model for model in models if model.get("interpretability")]
    heads = {model["arm"]: model["head"] for model in models}
    trained = {model["trained_tokens"] for model in models}
    suites = [model["interpretability"] for model in read]
    tested = [row for suite in suites for row in suite["matrices"]["centers"]["tasks"]]
    tasks = list(dict.fromkeys(row["task"] for row in tested))
    judged = {r["task"] for r in tested if r["components"] == WITHOUT_FIRST and r["ratio"] is not None}
    return results | {
        "pairs": [_pair(d, comparison["headlines"], heads) for d in comparison["differences"]],
        "single_runs": len(comparison["arms"]) > 1 and any(len(m) < 2 for m in comparison["arms"].values()),
        "unequal_training": len(trained) > 1 or None in trained,
        "ranked": sorted(models, key=lambda model: model["validation"]["nats_per_token"]),
        "model_table": model_table(results),
        "read": read,
        "tasks": tasks,
        "usable": [task for task in tasks if task in judged],
        "probed": list(dict.fromkeys((r["task"], r["layer"]) for suite in suites for r in suite.get("probes", ()))),
        "probe_rows": lambda task, layer: [first(s.get("probes", ()), task=task, layer=layer) for s in suites],
        "words": list(dict.fromkeys(row["word"] for suite in suites for row in suite["neighbors"]["words"])),
        "first": first,
        "word_pairs": _word_pairs,
        "without_first": WITHOUT_FIRST,
        "places": _places,
        "mean_ratio": mean_ratio,
    }


def first(rows: Iterable[dict], **wanted: Any) -> dict:
    """The first row with these values; without one an empty row."""
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), {})


def _word_pairs(model: dict, task: str, protocol: str, components: str | int = 2) -> dict:
    """The row of a task in the model's centers. The paper's protocol looks at two components."""
    rows = model["interpretability"]["matrices"]["centers"]["tasks"]
    return first(rows, task=task, protocol=protocol, components=components)


def _places(model: dict) -> dict[str, dict]:
    """{"centers" or layer: its compression and tasks}."""
    layers = {f"layer {row['layer']}": row for row in model["interpretability"]["layers"]}
    return {"centers": model["interpretability"]["matrices"]["centers"]} | layers


def mean_ratio(place: dict) -> float | None:
    """Mean over tasks of parallelogram loss / shuffled pairs, in the full space."""
    rows = place.get("tasks", ())
    ratios = [r["ratio"] for r in rows if r["components"] == "all" and r.get("ratio") is not None]
    return sum(ratios) / len(ratios) if ratios else None


def _pair(difference: dict, headlines: dict, heads: dict[str, str]) -> dict:
    """A difference of two arms, and the names of the headlines that each is ahead in. heads: of the arms."""
    arms, rows = (difference["first"], difference["second"]), difference["headlines"]
    lower = arms[rows["nats"]["difference"] >= 0]
    better = {headlines[key]["name"]: row["better"] for key, row in rows.items() if row["difference"] is not None}
    loss, predicted = headlines["nats"]["name"], {headlines[key]["name"] for key in PREDICTION if key in headlines}
    usual, *others = interval_kinds(rows).items() or [("", [])]
    exceptions = [f"{kind} ({', '.join(headlines[key]['name'] for key in keys)})" for kind, keys in others]
    suite = {name: leader for name, leader in better.items() if name not in predicted}
    if rows["nats"]["interval"] is None:  # a higher loss counts against harmonic even where its spread is not known
        better[loss] = lower
    return difference | {
        "lower": lower,
        "intervals": "; ".join([usual[0], *exceptions]),
        "measures": len(suite),
        "ahead": {arm: [name for name, leader in suite.items() if leader == arm] for arm in arms},
        "even": [name for name, leader in suite.items() if leader is None],
        "missing": [headlines[key]["name"] for key, row in rows.items() if row["difference"] is None],
        "harmonic": {
            arm: {
                "not_ahead": [name for name, leader in better.items() if leader != arm],
                "worse": [name for name, leader in better.items() if leader not in (arm, None)],
            }
            for arm in arms
            if heads[arm] == "harmonic"
        },
    }


def model_table(results: dict) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of prediction and size: a column a model, a row a measurement."""
    models = results["models"]

    def row(label: str, form: str, value: Any) -> list[str]:
        return [label, *(number(value(model), form) for model in models)]

    return ["", *(m["name"] for m in models)], [
        row("head", "", lambda m: m["head"]),
        row("exponent n", ".4g", lambda m: m["exponent"]),
        row("step", ",", lambda m: m["step"]),
        row("trained tokens", ",", lambda m: m["trained_tokens"]),
        row("parameters", ",", lambda m: m["parameters"]),
        row("validation loss (nats per token)", ".4f", lambda m: m["validation"]["nats_per_token"]),
        row("perplexity", ".2f", lambda m: m["validation"]["perplexity"]),
        row("bits per byte", ".4f", lambda m: m["validation"]["bits_per_byte"]),
        row("training tokens per second (median)", ",.0f", lambda m: m["train_tokens_per_second"]),
        row("components for 90 % of the variance", ",", lambda m: m["centers"]["components_for_90_percent"]),
        row("variance in 50 components", ".3f", lambda m: m["centers"]["explained_variance_50"]),
        row("norm of centers (mean)", ".3f", lambda m: m["centers"]["norm"]["mean"]),
        row("norm of centers (standard deviation)", ".3f", lambda m: m["centers"]["norm"]["std"]),
    ]
