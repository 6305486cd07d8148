"""Figures of overlap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import tl_neuronshare as ns


@pytest.fixture
def sharing() -> ns.NeuronSharing:
    activated = torch.rand(5, 3, 2, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    return ns.NeuronSharing.from_activated(activated, languages=["en", "de", "zh"])


def test_a_square_of_the_pairs_indices_with_the_numbers_written_in(sharing):
    table = ns.language_overlap(sharing)
    square, by_layer = ns.plots.language_overlap(table).axes[:2]
    values = square.images[0].get_array()
    overall = table[table["layer"] == "all"].set_index(["language", "other"])["jaccard"]
    assert [text.get_text() for text in square.get_xticklabels()] == ["en", "de", "zh"]
    written = {text.get_position(): text.get_text() for text in square.texts}
    for row, column in itertools.permutations(range(3), 2):
        pair = tuple(sharing.languages[place] for place in sorted((row, column)))
        assert values[row, column] == pytest.approx(overall[pair])
        assert written[column, row] == f"{overall[pair]:.2f}".removeprefix("0")
    rows = table[table["layer"] != "all"]
    (measured, *_) = by_layer.lines
    assert measured.get_ydata() == pytest.approx(rows.groupby("layer")["jaccard"].mean().to_list())


def test_pairs_of_one_family_have_their_own_marker(sharing):
    overlap, script = sharing.overlap(), ns.same_script(["en", "de", "zh"])
    test = {"spearman": 0.5, "p_value": 0.25}
    figure = ns.plots.relatedness(overlap, {"script": script}, family=script, tests={"script": test})
    (axes,) = figure.axes
    other, same = axes.lines
    assert same.get_ydata().tolist() == [overlap.loc["en", "de"]]
    assert other.get_ydata().tolist() == [overlap.loc["en", "zh"], overlap.loc["de", "zh"]]
    assert axes.get_title(loc="left") == "ρ = 0.50, p = 0.250"
    for measures, tests in (({}, {}), ({"script": script}, {}), ({"script": script}, {"other": test})):
        with pytest.raises(ns.NeuronShareError, match="similarity and tests differ, or are empty"):
            ns.plots.relatedness(overlap, measures, family=script, tests=tests)


def test_inputs_of_one_task_and_of_two(sharing):
    table = ns.input_overlap({"a": sharing[:3], "b": sharing[3:]})
    by_layer = ns.plots.input_overlap(table).axes[1]
    rows = table[table["layer"] != "all"]
    same, other, _ = by_layer.lines
    of_one = rows["task"] == rows["other"]
    for line, chosen in ((same, of_one), (other, ~of_one)):
        assert line.get_ydata() == pytest.approx(rows[chosen].groupby("layer")["jaccard"].mean().to_list())


def test_languages_that_activate_nothing_have_a_figure():
    silent = ns.NeuronSharing.from_activated(torch.zeros(3, 2, 2, 8, dtype=torch.bool), languages=["en", "de"])
    figure = ns.plots.language_overlap(ns.language_overlap(silent, n_resamples=10))
    assert np.isnan(figure.axes[1].lines[0].get_ydata()).all()
