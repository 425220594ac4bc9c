"""Run docs/tutorials/read_a_model.ipynb from the repository's root and keep its outputs.

    python docs/make_notebook.py

It reads the quickstart's runs; without them it trains them, in a few minutes. tests/test_notebook.py runs the same
cells.
"""

import hashlib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parent / "tutorials/read_a_model.ipynb"
CODE_SHA256 = "code_sha256"  # in the metadata: of the code that the outputs are of


def code_of(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def sha256_of(notebook: NotebookNode) -> str:
    return hashlib.sha256("\0".join(code_of(notebook)).encode()).hexdigest()


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in `folder`; outputs replace those that are there. Raises CellExecutionError for a cell that fails.

    Left out: what a terminal would show on stderr, and widgets, which are nothing without a running kernel.
    """
    client = NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True, record_timing=False,
    )  # fmt: skip
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _is_kept(output)]
    notebook.metadata.pop("widgets", None)
    notebook.metadata[CODE_SHA256] = sha256_of(notebook)


def _is_kept(output: NotebookNode) -> bool:
    if output.output_type == "stream":
        return output.name == "stdout"
    return "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


if __name__ == "__main__":
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    execute(notebook, NOTEBOOK.parents[2])
    nbformat.write(notebook, NOTEBOOK)
