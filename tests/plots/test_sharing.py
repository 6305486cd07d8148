"""Figures of types."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

import tl_neuronshare as ns


@pytest.mark.usefixtures("as_users_run_it")
def test_tables_that_do_not_fit_a_figure(bloom, prompts):
    sharing = ns.categorise(bloom, prompts)
    with pytest.raises(ns.NeuronShareError, match=r"summary lacks the column.*type"):
        ns.plots.patterns(sharing.by_language(), sharing.by_language())
    with pytest.raises(ns.NeuronShareError, match="summary is a NoneType; give the table that summary makes"):
        ns.plots.chance(None)
    with pytest.raises(ns.NeuronShareError, match="summary has no rows"):
        ns.plots.chance(sharing.summary()[:0])
    several = ns.side_by_side({"a": sharing[:1], "b": sharing[1:]}, name="task")
    with pytest.raises(ns.NeuronShareError, match="several rows for one layer and type; .* of one result"):
        ns.plots.chance(several)
    with pytest.raises(ns.NeuronShareError, match="several rows for one layer and type; .* of one result"):
        ns.plots.patterns(several, sharing.by_language())


@pytest.fixture
def sharing() -> ns.NeuronSharing:
    activated = torch.rand(12, 3, 4, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    return ns.NeuronSharing.from_activated(activated, languages=["en", "de", "zh"])


def test_a_notebook_shows_the_figure_itself(sharing):
    picture = ns.plots.chance(sharing.summary())._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") == int(6.9 * 130)  # the width, in pixels


def lines(axes) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines}


def test_lines_are_the_tables_means(sharing):
    summary, by_language = sharing.summary(), sharing.by_language()
    types, languages = ns.plots.patterns(summary, by_language, title="Toy").axes
    for label, rows in summary.groupby("type"):
        assert lines(types)[label] == rows["mean"].tolist()
    means = by_language.groupby("layer")["mean"].mean()
    for language, rows in by_language.groupby("language"):
        assert lines(languages)[language] == pytest.approx((rows["mean"] - means.to_numpy()).tolist())
    for axes in ns.plots.chance(summary).axes:
        rows = summary[summary["type"] == axes.get_title(loc="left")]
        for column, name in (("mean", "measured"), ("mismatched", "mismatched examples")):
            assert lines(axes)[name] == rows[column].tolist()
    silent = sharing.never_activated()
    average, every = ns.plots.never_activated(silent).axes
    for axes, column in ((average, "mean"), (every, "every")):
        rows = silent[silent["language"] == "all"]
        assert lines(axes)["in no language"] == rows[column].tolist()


def test_models_are_compared_by_depth_and_tasks_by_layer(sharing):
    results = {"one": sharing, "other": sharing[:6]}
    for name, along in (("model", "layer (fraction of depth)"), ("task", "layer")):
        table = ns.side_by_side(results, name=name)
        figure = ns.plots.side_by_side(table, title="long " * 40)
        assert figure.axes[2].get_xlabel() == along
        rows = table[(table[name] == "other") & (table["type"] == "specific")]
        (specific,) = (axes for axes in figure.axes if axes.get_title(loc="left") == "specific")
        assert lines(specific)["other"] == rows["mean"].tolist()
        assert "\n" in figure.get_suptitle()  # long titles take several lines


def test_persistence_by_how_many_inputs_there_are(sharing):
    growth = pd.concat([sharing[:n].persistence().assign(inputs=n) for n in (1, 5, 12)])
    left, right = ns.plots.persistence(sharing.persistence(), growth).axes
    of_type = growth[growth["type"] == "all-shared"].groupby("inputs")["every"].mean()
    assert lines(right)["all-shared"] == of_type.tolist()
    assert lines(left)["all-shared"] == sharing.persistence().query("type == 'all-shared'")["every"].tolist()


@pytest.mark.usefixtures("as_users_run_it")
def test_each_figure_names_the_column_that_its_table_lacks(sharing):
    tables = {
        "chance": (sharing.summary(), "independent"),
        "never_activated": (sharing.never_activated(), "every"),
        "side_by_side": (ns.side_by_side({"a": sharing}, name="task"), "depth"),
        "language_overlap": (ns.language_overlap(sharing), "mismatched"),
        "input_overlap": (ns.input_overlap({"a": sharing, "b": sharing}), "independent"),
    }
    for name, (table, column) in tables.items():
        with pytest.raises(ns.NeuronShareError, match=rf"lacks the column\(s\) {column}; give the table that"):
            getattr(ns.plots, name)(table.drop(columns=column))
