"""Figures of overlap: between languages, between inputs of tasks, and against how alike languages are."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tl_neuronshare.arguments import explains
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.plots.drawing import (
    COLOURS,
    MARKERS,
    bars,
    heatmap,
    layer_axis,
    legend_below,
    line,
    name_panel,
    places_of,
    require,
    styled_figure,
    whiskers,
)

_INDEX = "Jaccard index"
_KINDS = {"different": "in two languages", "same": "in one language, worded differently"}
_PARTS = {
    "task": "task: the relation",
    "entity": "entity: the subject",
    "answer": "answer",
    "fact": "all that belongs to the fact",
}
_LEVELS = {
    "jaccard": ("same input", "-"),
    "mismatched": ("mismatched examples", "--"),
    "independent": ("as many random neurons", ":"),
}


@explains
def language_overlap(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw how far languages activate the same neurons: each pair over all layers; and by layer, beside chance.

    Args:
        table: the table of `language_overlap`. Right, lines are means over pairs; the band goes from the least to the
            most alike pair.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Examples:
        >>> figure = language_overlap(ns.language_overlap(sharing))
        >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
        ['Jaccard index: all layers, mean over inputs', 'By layer, mean over pairs']
    """
    require(table, "language_overlap", ("layer", "language", "other", "jaccard", "independent", "mismatched"))
    with styled_figure(3.2, title) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
        overall = table[table["layer"].astype(str) == "all"]
        heatmap(left, _square(overall, "language"), title=f"{_INDEX}: all layers, mean over inputs")
        _by_layer(right, table)
        name_panel(right, "By layer, mean over pairs")
    return figure


def _by_layer(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the mean over pairs, beside both chance levels."""
    rows = table[table["layer"].astype(str) != "all"]
    of_layers = rows.assign(layer=rows["layer"].astype(int)).groupby("layer")[list(_LEVELS)]
    means = of_layers.mean()
    for index, (column, (name, dashes)) in enumerate(_LEVELS.items()):
        line(axes, means.index, means[column], index, name, linestyle=dashes)
    low, high = of_layers.min()["jaccard"], of_layers.max()["jaccard"]
    axes.fill_between(means.index, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="all pairs")
    axes.set_ylabel(_INDEX)
    if high.max() > 0:  # neither nothing nor unknown
        axes.set_ylim(0, 1.02 if high.max() > 0.75 else 1.3 * high.max())  # with room for the legend
    layer_axis(axes)
    axes.legend(fontsize=7, loc="upper right")


@explains
def relatedness(
    sharing: pd.DataFrame,
    similarity: Mapping[str, pd.DataFrame],
    *,
    family: pd.DataFrame,
    tests: Mapping[str, Mapping[str, Any]],
    title: str = "",
) -> Figure:
    """Draw how far pairs of languages activate the same neurons, against how alike they are: a panel for each measure.

    Args:
        sharing: a square table, such as `NeuronSharing.overlap()`.
        similarity: for each measure a square table, such as that of `typological_similarity`.
        family: the square table of `same_family`; pairs of one family have a marker of their own.
        tests: for each measure the result of `permutation_test`, shown above its panel.
        title: above all panels.

    Raises:
        NeuronShareError: no measure, or tests of other measures.

    Examples:
        >>> measure, family = same_script(sharing.languages), same_family(sharing.languages)
        >>> tests = {"script": permutation_test(sharing.overlap(), measure, n_permutations=99)}
        >>> relatedness(sharing.overlap(), {"script": measure}, family=family, tests=tests).axes[0].get_xlabel()
        'script'
    """
    if not similarity or set(similarity) != set(tests):
        raise NeuronShareError("similarity and tests differ, or are empty; give the same measures in both.")
    for table in (family, *similarity.values()):
        if not set(sharing.index) <= set(table.index) & set(table.columns):
            raise NeuronShareError("A table lacks languages of sharing; give tables of the same languages.")
    pairs = list(combinations(sharing.index, 2))
    with styled_figure(2.9, title) as figure:
        panels = figure.subplots(1, len(similarity), sharey=True, squeeze=False)[0]
        for axes, (measure, table) in zip(panels, similarity.items(), strict=True):
            for index, name in enumerate(("other family", "same family")):
                chosen = [pair for pair in pairs if bool(family.loc[pair]) == bool(index)]
                axes.plot(
                    [table.loc[pair] for pair in chosen],
                    [sharing.loc[pair] for pair in chosen],
                    MARKERS[index],
                    color=COLOURS[index],
                    markerfacecolor="none",
                    label=name,
                )
            axes.set_xlabel(measure)
            name_panel(axes, f"ρ = {tests[measure]['spearman']:.2f}, p = {tests[measure]['p_value']:.3f}")
        panels[0].set_ylabel(f"{_INDEX}, mean over inputs")
        legend_below(figure, panels[0], columns=2)
    return figure


@explains
def input_overlap(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw how far two inputs have the same neurons of one type: inputs of one task, of two tasks, and at random.

    Args:
        table: the table of `input_overlap`. Indices are means over pairs of inputs.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Examples:
        >>> figure = input_overlap(ns.input_overlap({"first": sharing[:1], "others": sharing[1:]}))
        >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
        ['Jaccard index, all layers', 'By layer, mean over tasks']
    """
    require(table, "input_overlap", ("layer", "task", "other", "jaccard", "independent"))
    is_all = table["layer"].astype(str) == "all"
    with styled_figure(3.2, title) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
        heatmap(left, _square(table[is_all], "task"), title=f"{_INDEX}, all layers")
        rows = table[~is_all].assign(layer=table[~is_all]["layer"].astype(int))
        same = rows["task"] == rows["other"]
        lines = (
            ("two inputs of one task", rows[same], "jaccard", "-"),
            ("inputs of two tasks", rows[~same], "jaccard", "--"),
            ("as many random neurons", rows, "independent", ":"),
        )
        for index, (name, chosen, column, dashes) in enumerate(lines):
            means = chosen.groupby("layer")[column].mean()
            line(right, means.index, means, index, name, linestyle=dashes)
        right.set_ylabel(_INDEX)
        right.set_ylim(bottom=0)
        layer_axis(right)
        name_panel(right, "By layer, mean over tasks")
        legend_below(figure, right, columns=3)
    return figure


@explains
def overlap_ladder(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw what prompts share that have more and more in common; and by layer what task, entity and answer add.

    Args:
        table: the table of `overlap_ladder`. On the left, bars are the index over all layers, for two languages and, if
            there is a paraphrase, for two wordings of one language; dots are the index of as many random neurons. On
            the right, lines are the differences of two rungs, for two languages. Whiskers and bands are 95 % intervals.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Examples:
        >>> table = ns.overlap_ladder(sharing, ns.facts_of(ns.demo.prompts()[: len(sharing)]))
        >>> [axes.get_title(loc="left") for axes in overlap_ladder(table).axes]
        ['Two prompts with this in common', 'What it adds, by layer']
    """
    require(table, "overlap_ladder", ("languages", "rung", "layer", "jaccard", "low", "high", "independent"))
    require(table, "overlap_ladder", ("part", "difference", "difference_low", "difference_high"))
    is_all = table["layer"].astype(str) == "all"
    with styled_figure(3.2, title) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
        kinds = list(table["languages"].unique())
        for index, kind in enumerate(kinds):
            rows = table[is_all & (table["languages"] == kind)]
            series, label = (index, len(kinds)), _KINDS[kind]
            places = places_of(np.arange(len(rows)), series)
            bars(left, places, rows["jaccard"], whiskers(rows["jaccard"], rows), series, label=label)
            at_random = "as many random neurons" if index == 0 else None
            left.plot(places, rows["independent"], ".", color="black", label=at_random)
        rungs = list(table["rung"].unique())
        left.set_xticks(range(len(rungs)), [rung.replace(" ", "\n") for rung in rungs], fontsize=7)
        left.set_ylabel(_INDEX)
        left.set_ylim(bottom=0)
        name_panel(left, "Two prompts with this in common")
        rows = table[~is_all & (table["languages"] == "different") & (table["part"] != "form")]
        for index, (part, of_part) in enumerate(rows.groupby("part", sort=False)):
            layers = of_part["layer"].astype(int)
            ends = of_part["difference_low"], of_part["difference_high"]
            line(right, layers, of_part["difference"], index, _PARTS[str(part)], band=ends)
        right.axhline(0, color="grey", linewidth=0.5)
        right.set_ylabel(f"difference of the {_INDEX}")
        layer_axis(right)
        name_panel(right, "What it adds, by layer")
        legend_below(figure, left, right, columns=3)
    return figure


def _square(pairs: pd.DataFrame, name: str) -> pd.DataFrame:
    """A square table of the pairs' indices, in the order of the pairs."""
    names = list(dict.fromkeys([*pairs[name], *pairs["other"]]))
    table = pairs.pivot(index=name, columns="other", values="jaccard").reindex(index=names, columns=names)
    return table.fillna(table.T)
