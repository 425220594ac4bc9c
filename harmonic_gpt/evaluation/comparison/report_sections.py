"""Sections of the report: Markdown from results.json, models side by side."""

import re
from collections.abc import Callable

from harmonic_gpt.evaluation.measures.geometry import WITHOUT_FIRST


def limits(found: list[float] | None) -> str:
    return f"[{found[0]:.3f}, {found[1]:.3f}]" if found else "-"


def plain(text: str) -> str:
    """Text in which Markdown sees nothing."""
    return re.sub(r"([\\`*_\[\]<>|~#!])", r"\\\1", text.replace("\n", " "))


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def side_by_side(first: str, keys: list[str], models: list[dict], cell: Callable[[dict, str], str]) -> list[str]:
    """A table with a row a key and a column a model."""
    return table([first, *(plain(m["name"]) for m in models)], [[key, *(cell(m, key) for m in models)] for key in keys])


def word_pairs(comparison: dict, models: list[dict], figure: Callable) -> list[str]:
    def found(model: dict, task: str, **wanted) -> dict:
        rows = model["interpretability"]["matrices"]["centers"]["tasks"]
        return next((r for r in rows if r["task"] == task and all(r[k] == v for k, v in wanted.items())), {})

    def strict(model: dict, task: str) -> dict:
        return found(model, task, protocol="strict", components=WITHOUT_FIRST)

    def in_full_space(model: dict, task: str, key: str) -> str:
        value = found(model, task, protocol="strict", components="all").get(key)
        return "" if value is None else f"; {value:.3f}"

    def ratio(model: dict, task: str) -> str:
        r = strict(model, task)
        shown = r["flag"] if r["ratio"] is None else f"{r['ratio']:.3f} {limits(r['ratio_interval'])}"
        return shown + in_full_space(model, task, "ratio")

    def cosine(model: dict, task: str) -> str:
        r = strict(model, task)
        shown = (
            "-" if r.get("offset_cosine") is None else f"{r['offset_cosine']:.3f} {limits(r['offset_cosine_interval'])}"
        )
        return shown + in_full_space(model, task, "offset_cosine")

    def paper(model: dict, task: str) -> str:
        r = found(model, task, protocol="paper")
        return "-" if r.get("loss") is None else f"{r['loss']:.3f} ({r['shuffled_loss']:.3f})"

    def analogies(model: dict, task: str) -> str:
        q = next((r for r in model["interpretability"]["analogies"] if r["task"] == task), {})
        if not q.get("queries"):
            return "-"
        by = [f"{q[m]['accuracy_at_1']:.2f}, {q[m]['accuracy_at_5']:.2f}" for m in ("cosine", "distance", "no offset")]
        return f"{' / '.join(by)} ({q['queries']})"

    tasks = list(dict.fromkeys(r["task"] for r in models[0]["interpretability"]["matrices"]["centers"]["tasks"]))
    usable = [task for task in tasks if any(strict(m, task).get("ratio") is not None for m in models)]
    coverage = []
    for task in tasks:
        r, p = strict(models[0], task), found(models[0], task, protocol="paper")
        counts = [r["pairs"], r["single_token_pairs"], r["unknown"], r["used"], p.get("trivial_quadruples")]
        coverage.append([task, *("-" if c is None else f"{c:,}" for c in counts)])
    flags = [f"{plain(m['name'])}: **{flag}**" for m in models for flag in m["interpretability"]["flags"]]
    lines = ["## Word pairs", "", *(line for flag in flags for line in (flag, ""))]
    if usable:
        lines += [
            "Parallelogram loss over that of the same words paired at random, without the first component; in the full space:",
            "",
        ]
        lines += [*side_by_side("task", usable, models, ratio), *figure("parallelograms")]
        lines += [
            "Cosine of the offsets of two pairs, without the first component; in the full space:",
            "",
            *side_by_side("task", usable, models, cosine),
        ]
        lines += ["Analogies, accuracy at 1 and at 5: by cosine / by distance / nearest without offset (queries):", ""]
        lines += side_by_side("task", usable, models, analogies)
    lines += [
        "Coverage: pairs whose words are one token each are used by the strict protocol; the paper's takes every pair by its last tokens, "
        "and of its 10,000 quadruples the trivial ones have loss 0 in any embedding.",
        "",
    ]
    lines += table(["task", "pairs", "single tokens", "unknown", "used", "trivial quadruples (paper)"], coverage)
    lines += [
        "The paper's parallelogram loss (equation 3, last tokens, two principal components), mean of 10,000 quadruples (paired at random):",
        "",
    ]
    lines += side_by_side("task", tasks, models, paper)
    return [*lines, *figure("parallelograms_paper"), *figure("parallelograms_paper_middle_layer")]


def class_centers(models: list[dict]) -> list[str]:
    rows = {
        "tokens / contexts": lambda r: f"{r['tokens']} / {r['contexts']:,}",
        "cosine of center and mean context [95 %]": lambda r: f"{r['cosine']:.3f} {limits(r['cosine_interval'])}",
        "the same, another token's center": lambda r: f"{r['shuffled_cosine']:.3f}",
        "variance of mean contexts explained by centers": lambda r: f"{r['variance_explained']:.3f}",
        "distance to own center / nearest other (median)": lambda r: f"{r['own_over_nearest_other']:.3f}",
        "own center nearest, scaled fairly": lambda r: f"{r['own_nearest']:.1%}",
        "own center nearest, as it stands": lambda r: f"{r['own_nearest_raw']:.1%}",
        "distance to hull of own contexts / another's": lambda r: f"{r['convex_own_over_other']:.3f}",
    }

    def cell(model: dict, key: str) -> str:
        found = model["interpretability"].get("class_centers")
        return "not measured" if found is None else found["flag"] or rows[key](found)

    return side_by_side("", list(rows), models, cell) if models else []


def norms(models: list[dict]) -> list[str]:
    """How the mean norm of the centers went, in words."""
    lines = []
    for model in models:
        if len(curve := model["centers"]["norm_over_training"]) > 3:
            first, late, last = curve[0][1], curve[-1 - len(curve) // 4][1], curve[-1][1]
            change = f"{first:.3f} at first, {last:.3f} at the end, {last / late - 1:+.1%} in the last quarter"
            lines += [f"{plain(model['name'])}: mean norm of the centers {change}.", ""]
    return lines


def shape_line(shape: dict) -> str:
    if shape["collapsed"]:
        return "collapsed"
    return (
        f"{shape['components_for_90_percent']} components for 90 % of the variance, effective rank {shape['effective_rank']:.1f}, "
        f"participation ratio {shape['participation_ratio']:.1f} of {shape['dimensions']}, mean cosine {shape['mean_cosine']:.3f}"
    )


def layers(models: list[dict]) -> list[str]:
    lines = [
        "Hidden states on held-out text; the last layer after the final norm. Few dimensions are no merit by themselves.",
        "",
    ]
    header = [
        "",
        "components for 90 %",
        "effective rank",
        "participation ratio",
        "mean cosine",
        "parallelogram / shuffled",
    ]
    for model in models:
        reading, rows = model["interpretability"], []
        named = [("centers", reading["matrices"]["centers"])] + [
            (f"layer {row['layer']}", row) for row in reading.get("layers", ())
        ]
        for name, row in named:
            ratios = [
                r["ratio"] for r in row.get("tasks", ()) if r["components"] == "all" and r.get("ratio") is not None
            ]
            shape = row["compression"]
            cells = ["collapsed", "-", "-", "-"] if shape["collapsed"] else [
                str(shape["components_for_90_percent"]), f"{shape['effective_rank']:.1f}",
                f"{shape['participation_ratio']:.1f}", f"{shape['mean_cosine']:.3f}",
            ]  # fmt: skip
            rows.append([name, *cells, f"{sum(ratios) / len(ratios):.3f}" if ratios else "-"])
        lines += [f"{plain(model['name'])}:", "", *table(header, rows)]
    return lines


def probes(models: list[dict], figure: Callable) -> list[str]:
    if not any(model["interpretability"].get("probes") for model in models):
        return []
    held = {m["name"]: {(r["task"], r["layer"]): r for r in m["interpretability"].get("probes", ())} for m in models}
    places = list(dict.fromkeys(place for rows in held.values() for place in rows))
    rows = []
    for task, layer in places:
        found = [held[m["name"]].get((task, layer)) for m in models]
        known = next(r for r in found if r)
        cells = []
        for r in found:
            if r is None or r["flag"]:
                cells.append("-" if r is None else r["flag"])
            else:
                both = [f"{r[kind]['f1']:.3f} ± {r[kind]['sd']:.3f}" for kind in ("mlp", "logistic")]
                cells.append(f"{both[0]} / {both[1]} ({r['shuffled']['f1']:.2f})")
        majority = "-" if known["flag"] else f"{known['majority']['f1']:.3f}"
        rows.append([f"{plain(task)}, layer {layer}", str(known["examples"]), majority, *cells])
    intro = (
        "Macro F1 on mean hidden states, five folds, ± spread over folds: perceptron with 16 hidden units / logistic regression (logistic "
        "regression on shuffled labels). The sentences are from texts that a quickstart model was trained on."
    )
    header = ["task", "examples", "majority", *(plain(m["name"]) for m in models)]
    return ["## Probes", "", intro, "", *table(header, rows), *figure("probes")]


def similarity(comparison: dict, figure: Callable) -> list[str]:
    if not comparison.get("similarity"):
        return []
    pair = comparison["similarity"][0]
    text = f"Hidden states at the same {pair['positions']:,} positions. Of equal layers CKA would be 1."
    return ["## Similarity of the models' layers", "", text, "", *figure("similarity")]


def neighbours(models: list[dict]) -> list[str]:
    words = list(dict.fromkeys(row["word"] for m in models for row in m["interpretability"]["neighbours"]["words"]))
    if not words:
        return []

    def cell(model: dict, word: str) -> str:
        row = next((r for r in model["interpretability"]["neighbours"]["words"] if r["word"] == word), None)
        return "-" if row is None else " ".join(f"`{repr(w)[1:-1]}`" for w in row["nearest"]).replace("|", "\\|")

    by = ", ".join(f"{plain(m['name'])} by {m['interpretability']['neighbours']['by']}" for m in models)
    return [
        "## Nearest centers",
        "",
        f"Centers nearest to a word's own: {by}. � is a part of a character: a byte that the tokenizer keeps as a token.",
        "",
        *side_by_side("word", words, models, cell),
    ]
