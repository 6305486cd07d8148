"""The figure of types along a text."""

from __future__ import annotations

import pandas as pd
import pytest

import tl_neuronshare as ns
from tl_neuronshare.plots.drawing import LABELS


@pytest.fixture
def table():
    rows = [
        (step, layer, type, 10.0 * number + layer + step, 1.0)
        for step in (-1, 0, 1, 2)
        for layer in (0, 1)
        for number, type in enumerate(LABELS)
    ]
    return pd.DataFrame(rows, columns=["step", "layer", "type", "mean", "mismatched"])


@pytest.fixture
def texts():
    rows = [("a", "en", step, token) for step, token in zip((-1, 0, 1, 2), (" the", " sum", " $22", "."), strict=True)]
    return pd.DataFrame([*rows, ("b", "en", 0, "no")], columns=["example", "language", "step", "token"])


def test_lines_are_means_of_layers_and_the_map_has_the_all_shared(table, texts):
    lines, shares = ns.plots.tokens(table, texts, title="Toy").axes[:2]
    drawn = {line.get_label(): list(line.get_ydata()) for line in lines.lines if len(line.get_ydata()) == 4}
    assert drawn["specific"] == [19.5, 20.5, 21.5, 22.5]
    assert drawn["all-shared, mismatched"] == [1.0] * 4
    assert [label.get_text() for label in lines.get_xticklabels()] == ["-1\nthe", "0\nsum", "1\n\\$22", "2\n."]
    assert shares.images[0].get_array().tolist() == [[-1, 0, 1, 2], [0, 1, 2, 3]]


@pytest.mark.usefixtures("as_users_run_it")
def test_what_has_no_tokens(table, texts):
    with pytest.raises(ns.NeuronShareError, match="There are no tokens of example 'c' in 'en'"):
        ns.plots.tokens(table, texts, example="c")
    with pytest.raises(ns.NeuronShareError, match="side_by_side lacks the column.*step"):
        ns.plots.tokens(table.drop(columns="step"))
