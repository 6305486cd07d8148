"""The notebook of the tutorial is made from its text, and says what it says there when it is run."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="the extra docs is not installed")

SCRIPT = Path(__file__).parents[1] / "docs" / "make_tutorial.py"
NUMBER = re.compile(r"-?\d+\.?\d*")


@pytest.fixture(scope="module")
def making():
    """The script that makes the notebook."""
    spec = importlib.util.spec_from_file_location("make_tutorial", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kept(making):
    return jupytext.read(making.NOTEBOOK)


def shown(cell):
    """What a cell prints and shows, as text, without what differs from run to run; pictures only by their kind."""
    parts, printed = [], ""
    for output in cell.get("outputs", ()):
        if output.output_type == "stream":
            printed += output.text  # what a cell prints comes in several pieces where the machine is slow
        elif output.output_type in ("display_data", "execute_result"):
            parts += [output.data.get("text/plain", ""), *sorted(set(output.data) - {"text/plain"})]
        assert output.output_type != "error"
    return "\n".join([printed, *parts])


def test_the_notebook_has_the_cells_of_the_text(making, kept):
    text = jupytext.read(making.TEXT)
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [
        (cell.cell_type, cell.source) for cell in text.cells
    ]


@pytest.mark.slow
def test_the_notebook_shows_what_running_it_shows(making, kept):
    kinds = set()
    for ran, cell in zip(making.run().cells, kept.cells, strict=True):
        now, then = shown(ran), shown(cell)
        assert NUMBER.sub("#", now) == NUMBER.sub("#", then), cell.source
        # Rounding differs from one processor to another.
        assert [float(n) for n in NUMBER.findall(now)] == pytest.approx(
            [float(n) for n in NUMBER.findall(then)], abs=0.02
        )
        kinds |= set(then.split())
    assert {"image/png", "text/html"} <= kinds
