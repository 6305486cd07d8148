"""Figures of the types of neurons: by layer, task, threshold and model, beside chance; persistence; never activated."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tl_neuronshare.arguments import explains
from tl_neuronshare.plots.drawing import (
    COLOURS,
    LABELS,
    layer_axis,
    legend_below,
    line,
    name_panel,
    require,
    styled_figure,
)

_LEVELS = {
    "mean": ("measured", "-"),
    "mismatched": ("mismatched examples", "--"),
    "independent": ("independent languages", ":"),
}


@explains
def patterns(summary: pd.DataFrame, by_language: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw types by layer beside activation by language: the paper's figure of patterns by layer.

    Args:
        summary: `NeuronSharing.summary()`; lines are means, bands the standard deviation over examples.
        by_language: `NeuronSharing.by_language()`; lines are means over examples, as points of difference from the mean
            of all languages, whose range over the layers is in the panel's name.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that these two have.

    Examples:
        >>> figure = patterns(sharing.summary(), sharing.by_language())
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['neurons (% of layer)', 'minus the mean of all (points)']
    """
    require(summary, "summary", ("layer", "type", "mean", "std"), one_row_for=("layer", "type"))
    require(by_language, "by_language", ("layer", "language", "mean"), one_row_for=("layer", "language"))
    with styled_figure(2.9, title) as figure:
        left, right = figure.subplots(1, 2)
        for index, label in enumerate(LABELS):
            rows = summary[summary["type"] == label]
            # Two types may be as large as each other: the last one is hollow, so that what is below it shows.
            line(left, rows["layer"], rows["mean"], index, label, is_hollow=label == LABELS[-1])
            _spread(left, rows, COLOURS[index])
        means = by_language.groupby("layer")["mean"].mean()
        for index, language in enumerate(by_language["language"].unique()):
            rows = by_language[by_language["language"] == language].set_index("layer")
            line(right, rows.index, rows["mean"] - means, index, language)
        left.set_ylabel("neurons (% of layer)")
        name_panel(left, "Types: mean ± std over examples")
        right.axhline(0, color="grey", linewidth=0.5)
        right.set_ylabel("minus the mean of all (points)")
        name_panel(right, f"Activated, by language (of all: {means.min():.1f} to {means.max():.1f} %)")
        for axes in (left, right):
            layer_axis(axes)
        _from_zero(left)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=7)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=5, fontsize=7)
    return figure


def _from_zero(axes: Axes) -> None:
    """Let an axis begin at 0, with room for markers at its other end."""
    axes.set_ylim(0, 1.06 * axes.dataLim.ymax or 1.0)


def _spread(axes: Axes, rows: pd.DataFrame, colour: str, *, label: str | None = None) -> None:
    """Draw a band of a standard deviation round the mean, within 0 and 100 %."""
    low, high = (rows["mean"] - rows["std"]).clip(lower=0), (rows["mean"] + rows["std"]).clip(upper=100)
    axes.fill_between(rows["layer"], low, high, color=colour, alpha=0.2, linewidth=0, label=label)


@explains
def chance(summary: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw each type by layer, beside what mismatched examples and independent languages would give.

    Args:
        summary: `NeuronSharing.summary()`. Solid lines are means over examples, bands the standard deviation.
        title: above all panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Examples:
        >>> [axes.get_title(loc="left") for axes in chance(sharing.summary()).axes]
        ['all-shared', 'partial-shared', 'specific', 'non-activated']
    """
    require(
        summary, "summary", ("layer", "type", "mean", "std", "independent", "mismatched"), one_row_for=("layer", "type")
    )
    with styled_figure(4.2, title) as figure:
        panels = figure.subplots(2, 2, sharex=True)
        for axes, label in zip(panels.flat, LABELS, strict=True):
            rows = summary[summary["type"] == label]
            for index, (column, (name, dashes)) in enumerate(_LEVELS.items()):
                line(axes, rows["layer"], rows[column], index, name, linestyle=dashes)
            _spread(axes, rows, COLOURS[0], label="± std")
            name_panel(axes, label)
            _from_zero(axes)
        _share_labels(figure, panels)
    return figure


@explains
def side_by_side(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw the types of several tasks, thresholds or models by layer: a panel for each type.

    Args:
        table: the table of `side_by_side`. Lines are means over examples, bands reach from the smallest to the largest.
            Where the first column is "model", layers are shown as a fraction of the model's depth.
        title: above all panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Examples:
        >>> table = ns.side_by_side({"first": sharing[:1], "others": sharing[1:]}, name="task")
        >>> side_by_side(table).axes[2].get_xlabel()
        'layer'
    """
    require(table, "side_by_side", ("layer", "depth", "type", "mean", "min", "max"))
    name = table.columns[0]
    place = "depth" if name == "model" else "layer"
    n_results = table[name].nunique()
    with styled_figure(4.4, title) as figure:
        panels = figure.subplots(2, 2, sharex=True)
        for axes, label in zip(panels.flat, LABELS, strict=True):
            for index, (which, rows) in enumerate(table[table["type"] == label].groupby(name, sort=False)):
                line(axes, rows[place], rows["mean"], index, str(which))
                colour = COLOURS[index % len(COLOURS)]
                faint = 0.15 / n_results
                axes.fill_between(rows[place], rows["min"], rows["max"], color=colour, alpha=faint, linewidth=0)
                for edge in ("min", "max"):  # bands overlap, so their edges are drawn too
                    axes.plot(rows[place], rows[edge], color=colour, linewidth=0.5, alpha=0.7)
            name_panel(axes, label)
            axes.set_ylim(bottom=0)
        panels.flat[0].plot([], [], color="grey", linewidth=0.5, label="smallest, largest")
        _share_labels(figure, panels, is_depth=place == "depth", legend=str(name))
    return figure


def _share_labels(figure: Figure, panels: NDArray[Any], *, is_depth: bool = False, legend: str | None = None) -> None:
    """Label axes and lines once for all panels of a figure."""
    figure.supylabel("neurons (% of layer)", fontsize=8)
    for axes in panels[-1]:
        if is_depth:
            axes.set_xlabel("layer (fraction of depth)")
        else:
            layer_axis(axes)
    n_labels = len(panels.flat[0].get_legend_handles_labels()[1])
    legend_below(figure, panels.flat[0], columns=min(6, n_labels), title=legend)


@explains
def persistence(table: pd.DataFrame, growth: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw how many neurons are of one type for every input: by layer, and by how many inputs there are.

    Args:
        table: `NeuronSharing.persistence()`. Left, filled markers are the percent that is of the type for every input,
            dashes the average over inputs.
        growth: the same for the first 1, 2, ... inputs, with the columns inputs, type and every. Right, lines are means
            over layers.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Examples:
        >>> growth = pd.concat([sharing[:n].persistence().assign(inputs=n) for n in (1, 2, 3)])
        >>> [axes.get_xlabel() for axes in persistence(sharing.persistence(), growth).axes]
        ['layer', 'inputs']
    """
    require(table, "persistence", ("layer", "type", "average", "every"))
    require(growth, "persistence", ("inputs", "type", "every"))
    with styled_figure(3.0, title) as figure:
        left, right = figure.subplots(1, 2)
        for index, label in enumerate(LABELS):
            rows = table[table["type"] == label]
            line(left, rows["layer"], rows["every"], index, label)
            left.plot(rows["layer"], rows["average"], color=COLOURS[index], linestyle="--", linewidth=0.8)
            means = growth[growth["type"] == label].groupby("inputs")["every"].mean()
            line(right, means.index, means, index, label)
        left.plot([], [], color="grey", linestyle="--", linewidth=0.8, label="average over inputs")
        layer_axis(left)
        right.set_xscale("log")
        right.set_xlabel("inputs")
        numbers = sorted(growth["inputs"].unique())
        right.set_xticks(numbers, numbers)
        right.minorticks_off()
        for axes, what in ((left, "every input"), (right, "the first inputs (mean of layers)")):
            axes.set_ylabel("neurons (% of layer)")
            name_panel(axes, f"Of one type for {what}")
            axes.set_ylim(bottom=0)
        legend_below(figure, left, columns=5)
    return figure


@explains
def never_activated(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw how many neurons no token activates: of an input on average, and of any input; by layer and language.

    Args:
        table: `NeuronSharing.never_activated()` of a result at position "any".
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Examples:
        >>> [axes.get_title(loc="left") for axes in never_activated(sharing.never_activated()).axes]
        ['By no token of an input (mean)', 'By no token of any input']
    """
    require(table, "never_activated", ("layer", "language", "mean", "every"))
    languages = [language for language in table["language"].unique() if language != "all"]
    with styled_figure(3.0, title) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        named = (("mean", "By no token of an input (mean)"), ("every", "By no token of any input"))
        for axes, (column, name) in zip(panels, named, strict=True):
            for index, language in enumerate(languages):
                rows = table[table["language"] == language]
                line(axes, rows["layer"], rows[column], index, language)
            rows = table[table["language"] == "all"]
            axes.plot(rows["layer"], rows[column], color="grey", linewidth=2, linestyle="--", label="in no language")
            name_panel(axes, name)
            axes.set_ylim(bottom=0)
            layer_axis(axes)
        panels[0].set_ylabel("neurons (% of layer)")
        legend_below(figure, panels[0], columns=6)
    return figure
