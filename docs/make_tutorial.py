"""Run the tutorial's text and write it, with what it shows, as a notebook: `python docs/make_tutorial.py`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient

TEXT = Path(__file__).with_name("tutorial.py")
NOTEBOOK = TEXT.with_suffix(".ipynb")


def run() -> nbformat.NotebookNode:
    """Run the text in an empty folder, and return the notebook without progress bars and times."""
    notebook = jupytext.read(TEXT)
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    nbformat.write(run(), NOTEBOOK)
