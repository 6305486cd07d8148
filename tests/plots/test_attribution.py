"""Figures of attribution: what they refuse, and what they leave out."""

from __future__ import annotations

import numpy as np
import pytest

import tl_neuronshare as ns


def test_parts_of_the_table_that_figures_lack_are_named(ready, as_users_run_it):
    table = ns.attribute(*ready)
    for plot in (ns.plots.top_shares, ns.plots.impact, ns.plots.correctness):
        with pytest.raises(ns.NeuronShareError, match=r"for specific; give all that attribute made"):
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
