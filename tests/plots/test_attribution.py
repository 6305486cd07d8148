"""Figures of attribution: what they refuse, and what they leave out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import tl_neuronshare as ns


def test_parts_of_the_table_that_figures_lack_are_named(ready, as_users_run_it):
    table = ns.attribute(*ready)
    for plot in (ns.plots.top_shares, ns.plots.impact, ns.plots.correctness):
        with pytest.raises(ns.NeuronShareError, match=r"for specific; give all rows of attribute"):
            plot(table[table["type"] != "specific"])
        with pytest.raises(ns.NeuronShareError, match=r"by layer for all-shared"):
            plot(table[table["layer"] == "all"])
    with pytest.raises(ns.NeuronShareError, match=r"of the whole model \(layer 'all'\) for all-shared"):
        ns.plots.correctness(table[table["layer"] != "all"])
    with pytest.raises(ns.NeuronShareError, match=r"language='fr' is not in the table; use one of all, en, de, zh"):
        ns.plots.impact(table, language="fr")
    with pytest.raises(ns.NeuronShareError, match=r"attribute lacks the column\(s\) chance"):
        ns.plots.top_shares(table.drop(columns="chance"))


def test_means_of_few_examples_out_of_many_are_not_drawn(ready):
    table = ns.attribute(*ready)
    table["examples"] = 20
    few = (table["layer"] == 1) & (table["type"] == "specific")
    table.loc[few, "examples"] = 9
    lines = {line.get_label(): line.get_ydata() for line in ns.plots.impact(table).axes[0].lines}
    assert np.isnan(lines["specific"]).tolist() == [False, True, False]
    assert not np.isnan(lines["all-shared"]).any()


def test_bars_of_a_layer_add_up_to_all(ready):
    table = ns.attribute(*ready)
    for axes in ns.plots.top_shares(table).axes:
        tops = {}
        for bar in axes.patches:
            place = round(bar.get_x() + bar.get_width() / 2)
            tops[place] = tops.get(place, 0) + bar.get_height()
        assert list(tops.values()) == pytest.approx([100] * 3)


def test_a_causal_check_has_a_panel_for_each_target():
    row = {"layer": 0, "language": "all", "low": 0.1, "high": 1.0}
    named = [("logit", "none", 0.25), ("logit", "full", 0.75), ("log_prob", "full", 0.5)]
    table = pd.DataFrame([row | {"target": target, "score": score, "value": value} for target, score, value in named])
    panels = ns.plots.causal_check(table).axes
    lines = [dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True)) for axes in panels]
    assert [[line.get_ydata().tolist() for line in each.values()] for each in lines] == [[[0.25], [0.75]], [[0.5]]]
