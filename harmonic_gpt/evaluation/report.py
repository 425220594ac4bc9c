"""The report: one Markdown text, and the same as a self-contained HTML page."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

STYLE = """body{font:16px/1.55 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:.9em}td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;
text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}code{font-size:.85em;overflow-wrap:anywhere}"""


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
        lines.append(f"**Reading**: {start}. {a} leads in {_names(won)}; {b} leads in {_names(lost)}; undecided: {_names(open_)}.")
        tasks = difference["tasks"]
        lines.append(
            f"**Word-pair tasks** ({tasks['compared']} compared): {a} has the lower parallelogram ratio in {len(tasks['won'])}, {b} in "
            f"{len(tasks['lost'])}, undecided {len(tasks['undecided'])}; sign test p = {tasks['sign_test_p']:.2g}."
        )
        for arm in (x for x in (a, b) if "harmonic" in x.lower()):
            worse = [k for k, r in rows.items() if r["better"] not in (arm, None)]
            if nats["difference"] and better != arm and "nats" not in worse:
                worse.insert(0, "nats")
            even = [k for k in open_ if k not in worse]
            lines.append(f"**Where {arm} is not better**: worse in {_names(worse)}; no difference shown in {_names(even)}.")
    if any(count < 2 for count in runs.values()) and len(arms) > 1:
        counts = ", ".join(f"{arm} {count}" for arm, count in runs.items())
        lines.append(f"Runs: {counts}. Intervals of single runs cover the words and tokens measured, **not** other seeds.")
    return lines


def _names(keys: list[str]) -> str:
    return ", ".join(k.replace("_", " ") for k in keys) or "none"


def limits(found: list[float] | None) -> str:
    return f"[{found[0]:.4g}, {found[1]:.4g}]" if found else "-"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(row) + " |" for row in rows), ""]


def headline_table(comparison: dict) -> tuple[list[str], list[list[str]]]:
    """(header, rows): a headline a row, an arm a column, then the differences from the first arm."""
    arms = list(comparison["arms"])
    header = ["", *arms, *(f"{d['first']} - {d['second']}" for d in comparison["differences"])]
    rows = []
    for key, line in comparison["headlines"].items():
        cells = [f"{line['label']} ({'higher' if line['higher_is_better'] else 'lower'} is better)"]
        for arm in arms:
            value = line["arms"][arm]
            if value is None:
                cells.append("not measured")
                continue
            sd = f" ± {value['sd']:.2g} ({value['runs']} runs)" if value["sd"] is not None else ""
            cells.append(f"{value['mean']:.4g}{sd}" + (f" {limits(value['interval'])}" if value["interval"] else ""))
        for difference in comparison["differences"]:
            row = difference["headlines"][key]
            gap = "-" if row["difference"] is None else f"{row['difference']:+.4g} {limits(row['interval'])}"
            cells.append(gap + (f" **{row['better']}**" if row["better"] else ""))
        rows.append(cells)
    return header, rows


def reading_sections(results: dict, figures: list[tuple[str, str]]) -> list[str]:
    """Markdown of everything behind the headlines."""
    lines = []
    for path, caption in figures:
        lines += [f"![{caption}]({path})", ""]
    for model in results["models"]:
        reading = model.get("interpretability")
        lines += [f"## {model['name']}", ""]
        if reading is None:
            lines += [f"Not read: {model['interpretability_missing']}", ""]
            continue
        lines += [f"Flag: **{flag}**" for flag in reading["flags"]] + [""]
        strict = [r for r in reading["matrices"]["centers"]["tasks"] if r["protocol"] == "strict" and r["components"] == "all"]
        paper = {r["task"]: r for r in reading["matrices"]["centers"]["tasks"] if r["protocol"] == "paper"}
        analogies = {r["task"]: r for r in reading["analogies"]}
        header = [
            "task",
            "pairs",
            "single tokens",
            "unknown",
            "used",
            "loss / shuffled [95 %]",
            "offset cosine",
            "paper's loss (trivial)",
            "@5 distance (no offset)",
        ]
        rows = []
        for r in strict:
            p, q = paper.get(r["task"]), analogies.get(r["task"], {})
            rows.append([
                r["task"], str(r["pairs"]), str(r["single_token_pairs"]), str(r["unknown"]), str(r["used"]),
                r["flag"] if r["ratio"] is None else f"{r['ratio']:.3f} {limits(r['ratio_interval'])}",
                "-" if r.get("offset_cosine") is None else f"{r['offset_cosine']:.3f}",
                "-" if not p or p["loss"] is None else f"{p['loss']:.3f} ({p['trivial_quadruples']:,})",
                f"{q['distance']['accuracy_at_5']:.2f} ({q['no offset']['accuracy_at_5']:.2f})" if q.get("queries") else "-",
            ])  # fmt: skip
        lines += table(header, rows)
        shape = reading["matrices"]["centers"]["compression"]
        lines += [f"Centers: {shape_line(shape)}", ""]
        for layer in reading.get("layers", []):
            lines.append(f"- layer {layer['layer']}: {shape_line(layer['compression'])}")
        if found := reading.get("class_centers"):
            text = found["flag"] or (
                f"cosine of center and mean context {found['cosine']:.3f} {limits(found['cosine_interval'])} (other tokens' centers "
                f"{found['shuffled_cosine']:.3f}); own center nearest at {found['own_nearest']:.1%} of positions "
                f"(unscaled {found['own_nearest_raw']:.1%}); "
                f"distance to the own contexts' hull {found['convex_own_over_other']:.3f} of that to another token's"
            )
            lines += ["", f"Class centers, {found['tokens']} tokens: {text}.", ""]
    return lines


def shape_line(shape: dict) -> str:
    if shape["collapsed"]:
        return "collapsed"
    return (
        f"{shape['components_for_90_percent']} components for 90 % of the variance, effective rank {shape['effective_rank']:.1f}, "
        f"participation ratio {shape['participation_ratio']:.1f} of {shape['dimensions']}, mean cosine {shape['mean_cosine']:.3f}"
    )


def write_html(markdown: str, folder: Path, name: str = "report.html") -> None:
    """The Markdown as one page: local PNG files become part of it, nothing else is loaded. Raw HTML in the text stays text."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)

    def embed(match: re.Match) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'<img src="data:image/png;base64,{data}"'

    body = re.sub(r'<img src="([\w-]+\.png)"', embed, body)
    title = html.escape(markdown.splitlines()[0].lstrip("# "))
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style><body>{body}</body></html>'
    (folder / name).write_text(page, encoding="utf-8")
