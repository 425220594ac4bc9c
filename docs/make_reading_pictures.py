"""Draw the pictures of a pair in docs/results/reading.md; what has no numbers is not drawn.

python docs/make_reading_pictures.py report/quickstart     # the folder that `make quickstart` compares into
"""

import sys
from pathlib import Path

from harmonic_gpt.evaluation.comparison.canvas import arm_colors
from harmonic_gpt.evaluation.comparison.result_figures import Read, forest, lens_agreement, paper_losses
from harmonic_gpt.evaluation.comparison.results import read_results

DOCS = Path(__file__).parent


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


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    draw_pair(Path(sys.argv[1]), DOCS / "images")
