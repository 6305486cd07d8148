"""The figure of cross-ablation: which number is in which cell of which panel."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

import tl_neuronshare as ns

LANGUAGES = ("en", "de", "th")


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {
            "ablated": ablated,
            "measured": measured,
            "control": control,
            "difference": rng.normal(),
            "vs_control": rng.normal(),
        }
        for control in ("none", "random", "magnitude")
        for ablated, measured in itertools.product(("none", *LANGUAGES), LANGUAGES)
        if ablated != "none" or control == "none"
    ]
    return pd.DataFrame(rows)


def test_rows_are_ablated_languages_and_columns_measured_ones():
    crossed = table()
    figure = ns.plots.cross_ablation(crossed, title="of a model")
    panels = [axes for axes in figure.axes if axes.images]
    names = [axes.get_title(loc="left") for axes in panels]
    assert names == [
        "its neurons", "random", "magnitude", "its own − random", "its own − magnitude"
    ]  # fmt: skip
    known = crossed.set_index(["control", "ablated", "measured"])
    for axes, name in zip(panels, names, strict=True):
        control = "none" if name == "its neurons" else name.split()[-1]
        column = "vs_control" if "−" in name else "difference"
        values = axes.images[0].get_array()
        for (row, ablated), (place, measured) in itertools.product(enumerate(LANGUAGES), enumerate(LANGUAGES)):
            assert values[row, place] == pytest.approx(known.loc[control, ablated, measured][column])
        assert [text.get_text() for text in axes.get_yticklabels()] == list(LANGUAGES)
    limits = {axes.images[0].get_clim() for axes in panels[:3]}
    assert len(limits) == 1
    ((low, high),) = limits
    assert low == -high


def test_a_table_without_controls_is_refused():
    crossed = table()
    with pytest.raises(ns.NeuronShareError, match="The table has no control"):
        ns.plots.cross_ablation(crossed[crossed["control"] == "none"])
    with pytest.raises(ns.NeuronShareError, match="cross_ablation lacks the column"):
        ns.plots.cross_ablation(crossed.drop(columns="measured"))
