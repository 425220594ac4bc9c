"""Write the claims and figures of docs/results/studies.md from the committed rows, without training.

python docs/make_study_pages.py

docs/results/studies_claims_{algorithmic,full_modular_addition}.md and docs/images/studies_*.png. The figures of
embeddings and the pages of the toy points and the digits need their runs: `harmonic-gpt study` makes them.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from harmonic_gpt.files import read_jsonl, write_text
from harmonic_gpt.studies import algorithmic_claims, row_figures
from harmonic_gpt.studies.claims import claims_page

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"
# {name of the rows: what the page says of their epochs}
NOTES = {
    "algorithmic": "The case study ran for 2,000 epochs; at 7,000 its verdict for harmonic is another: "
    "[studies](studies.md#findings).",
    "full_modular_addition": "The case study ran for 2,000 epochs, the rest for 7,000; at 7,000 its verdict for "
    "harmonic is another: [studies](studies.md#findings).",
}
# Of the protocol without overlap, at the quick budget
FIGURES = ("figure3a_variance_clean", "figure3b_data_clean", "figure3c_grokking_clean", "heads", "figure13_exponents")


def pages() -> dict[str, str]:
    """{file name: Markdown} of the pages of claims that the committed rows are enough for."""
    made = {}
    for name, note in NOTES.items():
        rows = read_jsonl(RESULTS / f"studies_{name}.jsonl")
        told = f"{algorithmic_claims.note(rows)} {note}"
        made[f"studies_claims_{name}.md"] = claims_page("Algorithmic tasks", algorithmic_claims.claims(rows), told)
    return made


def draw() -> None:
    """docs/images/studies_NAME.png of every one of FIGURES."""
    with TemporaryDirectory() as folder:
        row_figures.draw(Path(folder), read_jsonl(RESULTS / "studies_algorithmic.jsonl"))
        for name in FIGURES:
            (DOCS / f"images/studies_{name}.png").write_bytes((Path(folder) / f"{name}.png").read_bytes())


if __name__ == "__main__":
    for name, text in pages().items():
        write_text(RESULTS / name, text)
    draw()
