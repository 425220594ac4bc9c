"""Draw the pictures of docs/results/reading.md, each from numbers that are there; what has none is not drawn.

python docs/make_reading_pictures.py report/quickstart     # the folder that `make quickstart` compares into
"""

import sys
from pathlib import Path
from statistics import mean

from harmonic_gpt.evaluation.comparison.canvas import HEAD_COLORS, arm_colors
from harmonic_gpt.evaluation.comparison.result_figures import Read, forest, lens_agreement, paper_losses
from harmonic_gpt.evaluation.comparison.results import read_results
from harmonic_gpt.files import read_jsonl

DOCS = Path(__file__).parent
PROTOCOL = DOCS / "results/protocol.jsonl"
# The arms of the protocol: harmonic in two blues, standard in orange
ARMS = {
    "harmonic": (HEAD_COLORS["harmonic"], "harmonic, r = 1"),
    "quarter": ("#7fb8e6", "harmonic, r = 1/4"),
    "standard": (HEAD_COLORS["standard"], "standard"),
}


def draw_pair(report: Path, images: Path) -> None:
    """Forest plot, lens agreement and the paper's measure beside its control, of a report's results.json."""
    results = read_results(report)
    models = results["models"]
    colors = arm_colors({model["arm"]: model["head"] for model in models})
    read = [(colors[model["arm"]], model["arm"], model["interpretability"]) for model in models]
    lens = [Read(color, arm, row["lens"]["layers"]) for color, arm, row in read]
    centers = [Read(color, arm, row["matrices"]["centers"]["tasks"]) for color, arm, row in read]
    for name, figure in (
        ("forest_quickstart", forest(results["comparison"], colors)),
        ("lens_agreement_quickstart", lens_agreement({"Lens agreement": lens})),
        ("parallelograms_paper_quickstart", paper_losses(centers)),
    ):
        if figure:
            figure.savefig(images / f"{name}.png", dpi=150)


def draw_protocol(rows: list[dict], images: Path) -> None:
    """Lens agreement by layer of the protocol's arms, a panel for each size: mean over seeds, bars from the least to
    the largest."""
    held: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        if "reading" in row and row["question"] == "enough text" and row["arm"] in ARMS:
            held.setdefault(row["size"], {}).setdefault(row["arm"], []).append(row["reading"]["layers"])
    panels = {}
    for size, arms in sorted(held.items()):
        reads = [Read(*ARMS[arm], over_seeds(arms[arm])) for arm in ARMS if arm in arms]
        panels[f"{size}, seeds: {min(map(len, arms.values()))}"] = reads
    if figure := lens_agreement(panels):
        figure.savefig(images / "lens_agreement_protocol.png", dpi=150)


def over_seeds(layers: list[dict[str, list[float]]]) -> list[dict]:
    """Rows of a layer each, as results.json has them, from {measure: [value a layer]} of every seed."""
    rows: list[dict] = [{"layer": layer} for layer in range(len(layers[0]["context_agreement"]))]
    for row in rows:
        for key in ("context_agreement", "tuned_context_agreement"):
            values = [seed[key][row["layer"]] for seed in layers if row["layer"] < len(seed[key])]
            if values:
                row |= {key: mean(values), f"{key}_interval": [min(values), max(values)]}
    return rows


if __name__ == "__main__":
    if len(sys.argv) > 1:
        draw_pair(Path(sys.argv[1]), DOCS / "images")
    draw_protocol(list(read_jsonl(PROTOCOL)), DOCS / "images")
