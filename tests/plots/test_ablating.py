"""The figure of an ablation study: what is left, and what could not be drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import tl_neuronshare as ns


def row(type, ablated, value, *, language="all", examples=20):
    named = {"type": type, "ablated": ablated, "language": language, "metric": "accuracy", "examples": examples}
    return named | {"value": value, "difference": value - 0.9, "low": value - 0.95, "high": value - 0.85}


@pytest.fixture
def table() -> pd.DataFrame:
    """Of two types and one control, which could be drawn for some examples of the one and for none of the other."""
    rows = [
        row("none", "none", 0.9),
        row("all-shared", "type", 0.2),
        row("all-shared", "random", 0.8, examples=7),
        row("specific", "type", 0.85),
        row("specific", "random", np.nan, examples=0),
    ]
    of_languages = [
        row(one["type"], one["ablated"], one["value"] + step, language=language)
        for one in rows
        for language, step in (("en", 0.05), ("de", -0.05))
    ]
    return pd.DataFrame(rows + of_languages)


def test_bars_lines_crosses_and_stars(table):
    bars, by_language = ns.plots.ablation(table).axes
    assert sorted(bar.get_height() for bar in bars.patches if bar.get_height() > 0) == [0.2, 0.8, 0.85]
    baseline, *crosses = bars.lines[:1] + [line for line in bars.lines if line.get_marker() == "x"]
    assert list(baseline.get_ydata()) == [0.9, 0.9]
    assert [len(line.get_xdata()) for line in crosses] == [0, 1]  # none of the types', one of the control's
    assert [text.get_text() for text in bars.texts] == ["*"]
    lines = {line.get_label(): list(line.get_ydata()) for line in by_language.lines}
    assert lines["unablated"] == pytest.approx([0.95, 0.85])
    assert lines["without all-shared"] == pytest.approx([0.25, 0.15])


def test_what_chance_gives_is_a_line(table):
    assert all("chance" not in [line.get_label() for line in axes.lines] for axes in ns.plots.ablation(table).axes)
    table.attrs["chance"] = 0.25
    for axes in ns.plots.ablation(table).axes:
        (line,) = [line for line in axes.lines if line.get_label() == "chance"]
        assert set(line.get_ydata()) == {0.25}
    known = table.assign(metric="known_accuracy")
    known.attrs["chance"] = 0.25
    assert ns.plots.ablation(known, metric="known_accuracy").axes[0].get_ylabel() == "accuracy on known facts"


def test_what_the_table_lacks(table, as_users_run_it):
    with pytest.raises(ns.NeuronShareError, match="metric='log_prob' is not in the table; use one of accuracy"):
        ns.plots.ablation(table, metric="log_prob")
    with pytest.raises(ns.NeuronShareError, match=r"ablation_study lacks the column\(s\) examples"):
        ns.plots.ablation(table.drop(columns="examples"))
