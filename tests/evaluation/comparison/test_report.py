"""What the report says, and that nothing in a name can change what it shows."""

import copy
import json
import re

import numpy as np
import pytest

from harmonic_gpt.evaluation.comparison.arms import HEADLINES, compare_arms
from harmonic_gpt.evaluation.comparison.report import (
    FIRST_SCREEN,
    code,
    link_explorer,
    markdown,
    model_table,
    plain,
    verdict,
    write_html,
)


def measured(nats, ratio):
    return {"nats": (nats, np.empty(0)), "parallelogram": (ratio, ratio + np.linspace(-0.01, 0.01, 100))}


def results_of(comparison: dict) -> dict:
    """Enough of results.json for the first screen."""
    models = [
        {"name": arm, "arm": arm, "head": arm, "trained_tokens": 100, "validation": {"nats_per_token": 5.0}}
        for arm in comparison["arms"]
    ]
    for model in models:
        model |= dict.fromkeys(("exponent", "step", "parameters", "train_tokens_per_second"))
        model["validation"] |= {"perplexity": 1.0, "bits_per_byte": None}
        model["centers"] = {
            "components_for_90_percent": 1,
            "explained_variance_50": 1.0,
            "norm": {"mean": 1.0, "std": 0.0},
        }
    return {"models": models, "comparison": comparison}


def test_first_screen_says_where_harmonic_is_worse():
    tasks = [{"t": (0.9, np.full(100, 0.9))}, {"t": (0.8, np.full(100, 0.8))}]
    comparison = compare_arms(
        {"harmonic": [0], "standard": [1]},
        [measured(5.2, 0.9), measured(5.1, 0.8)],
        tasks,
        [{"t": (1.0, 1.0)}, {"t": (2.0, 2.0)}],
        [0, 0],
    )
    text = "\n".join(verdict(results_of(comparison)))
    assert "the validation loss of standard is lower by 0.1000 nats per token" in text
    assert "the spread over seeds is not known" in text
    assert "standard is ahead in 1 of 1 measures: parallelogram loss." in text
    missing = text.split("Not measured: ")[1].split(".")[0].split(", ")
    assert missing == [headline.name for key, headline in HEADLINES.items() if key not in ("nats", "parallelogram")]
    assert "harmonic is not ahead in validation loss, parallelogram loss. It is worse in validation loss" in text
    assert comparison["differences"][0]["tasks"]["lost"] == ["t"]
    assert "0 are undecided, by intervals over words and tokens of one run (sign test" in text
    assert comparison["differences"][0]["paper_tasks"]["lower"] == ["t"]  # the raw loss may say the opposite
    assert comparison["differences"][0]["paper_tasks"]["shuffled_lower"] == ["t"]
    assert (
        "which a collapsed embedding wins, harmonic is lower in 1 of 1 (p = 1), "
        "and for the same words paired at random in 1." in text
    )


def test_rare_tokens_are_told_with_the_prediction_and_not_counted_as_reading():
    models = [measured(5.2, 0.9), measured(5.1, 0.8)]
    for model, value in zip(models, (6.0, 6.5), strict=True):
        model["rare_tokens"] = (value, np.linspace(value - 0.1, value + 0.1, 500))
    arms = {"harmonic": [0], "standard": [1]}
    text = "\n".join(verdict(results_of(compare_arms(arms, models, [{}] * 2, [{}] * 2, [0, 0]))))
    assert "Which rare token comes: harmonic is ahead, harmonic - standard -0.5000 nats per rare target [" in text
    assert "standard is ahead in 1 of 1 measures: parallelogram loss." in text
    assert "harmonic is not ahead in validation loss, parallelogram loss." in text


def test_ahead_is_said_only_where_the_interval_over_seeds_leaves_out_zero():
    def compared(*nats, seeds=(0, 1, 2, 3)):
        arms, measures = {"harmonic": [0, 1], "standard": [2, 3]}, [measured(n, 0.9) for n in nats]
        return compare_arms(arms, measures, [{}] * 4, [{}] * 4, list(seeds))

    clear, unclear = compared(5.0, 5.01, 6.0, 6.01), compared(5.0, 5.5, 5.2, 5.8)
    row = clear["differences"][0]["headlines"]["nats"]
    assert (row["over"], row["better"]) == ("seeds", "harmonic")
    json.dumps(clear, allow_nan=False)
    text = "\n".join(verdict(results_of(clear)))
    assert "harmonic is ahead by 1.0000 nats per token. The 95 % interval of harmonic - standard over seeds" in text
    assert "over seeds (Welch, seeds differ) is [" in text
    assert "harmonic is not ahead in parallelogram loss." in text
    assert "worse" not in text
    assert "Runs:" not in text
    text = "\n".join(verdict(results_of(unclear)))
    assert "Prediction: no difference is shown. harmonic - standard is -0.2500 nats per token" in text
    assert "neither is ahead in any measure. No difference is shown in parallelogram loss." in text
    assert "harmonic is not ahead in validation loss, parallelogram loss." in text
    text = "\n".join(verdict(results_of(compared(5.0, 5.5, 5.8, 5.2, seeds=(0, 1, 1, 0)))))
    assert "with a 95 % interval over seeds (paired by seed) of [" in text
    for pair in unclear["differences"]:  # results of before there was a method
        for row in (*pair["headlines"].values(), pair["tasks"]):
            del row["method"]
    assert "with a 95 % interval over seeds of [" in "\n".join(verdict(results_of(unclear)))


def test_the_report_holds_every_number_of_the_model_table(full):
    report = (full.folder / "report.md").read_text()
    for cells in model_table(full.results)[1]:
        assert "| " + " | ".join(cells) + " |" in report
    assert "mood, layer 1" in report
    assert "- Intervals of harmonic - standard: over words and tokens of one run." in report
    bare = " ".join(report.replace("**", "").split())
    assert all(line in bare for line in verdict(full.results))
    assert 'src="data:image/png;base64,' in (full.folder / "report.html").read_text()


def test_the_report_says_which_intervals_are_paired_by_seed(full):
    results = copy.deepcopy(full.results)
    rows = results["comparison"]["differences"][0]["headlines"]
    for key, row in rows.items():
        row["interval"] = [-1.0, 1.0]
        row["method"] = "Welch, seeds differ" if key in ("own_center", "probes") else "paired by seed"
    expected = "- Intervals of harmonic - standard: paired by seed; Welch, seeds differ (own center, probes)."
    assert expected in markdown(results, [])
    for row in rows.values():
        row["interval"] = None
    assert "Intervals of harmonic" not in markdown(results, [])


@pytest.mark.parametrize(
    "name", ["a|b", "<script>alert(1)</script>", "**x**", "`y`", "[l](http://e.org)", "# h\n- i", "&amp;"]
)
def test_a_name_is_shown_as_it_is(full, tmp_path, name):
    results = copy.deepcopy(full.results)
    renamed = json.loads(json.dumps(results).replace('"harmonic"', json.dumps(name)))
    for model, original in zip(renamed["models"], results["models"], strict=True):
        model["head"] = original["head"]
        model["name"], model["path"] = f"{name} {original['name']}", name
    text = markdown(renamed, [])
    write_html(text, tmp_path)
    page = (tmp_path / "report.html").read_text()
    body = page[page.index("<body>") :]
    plainly = markdown(results, [])
    write_html(plainly, tmp_path, "plain.html")
    expected = (tmp_path / "plain.html").read_text()
    for tag in ("<td", "<th", "<tr", "<h1", "<h2", "<li", "<strong", "<a ", "<script"):
        assert body.count(tag) == expected.count(tag), tag
    shown = name.replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f">{shown}</th>" in body
    assert f"<strong>{shown} is not ahead</strong>" in body


def test_plain_and_code_keep_markdown_out():
    assert plain("a|b_c") == "a\\|b\\_c"
    assert code("a`b``c|d") == "``` a`b``c\\|d ```"


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    (tmp_path / "figure.png").write_bytes(b"png")
    write_html("# A <script>alert(1)</script>\n\n![f](figure.png)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "<td>1</td>" in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "data:image/png;base64," in page


def test_the_first_screen_and_what_is_folded(full):
    page = (full.folder / "report.html").read_text()
    first, *folded = page.split("<details>")
    report = (full.folder / "report.md").read_text()
    assert len(folded) == report.count("\n## ")
    shown = [name for name in ("loss_curves", *FIRST_SCREEN) if f"]({name}.png)" in report]
    assert len(shown) >= 2
    assert first.count("<figure>") == len(shown)
    assert page.count("<img") == report.count("![")
    assert "<h2>" not in first
    text = re.sub("<[^>]+>", "", first)
    assert all(line.split(":")[0] in text for line in verdict(full.results)[:3])


def test_the_link_to_an_explorer_is_there_once(tmp_path):
    write_html("# A\n\nverdict\n\n## Section\n", tmp_path)
    link_explorer(tmp_path, "../old/index.html")
    link_explorer(tmp_path, "../a b&c/index.html")
    page = (tmp_path / "report.html").read_text()
    assert re.findall('href="([^"]*)"', page) == ["../a b&amp;c/index.html"]
    assert page.endswith("</html>")
    link_explorer(tmp_path / "nowhere", "x")
