"""Figures of scores: what each type writes, and how much it pushes the answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tl_neuronshare.arguments import explains
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.bootstrap import FEWEST
from tl_neuronshare.plots.drawing import (
    COLOURS,
    HATCHES,
    LABELS,
    bars,
    layer_axis,
    legend_below,
    line,
    name_panel,
    of_language,
    places_of,
    require,
    styled_figure,
    whiskers,
)

_FEW_LAYERS = 12  # the most layers whose bars are wide enough for hatches
_UNITS = {
    "generation": "generation impact\n(length)",
    "correctness": "correctness impact\n(logits)",
    "difference": "right minus wrong\n(logits)",
}
_READINGS = {
    "mean_positive_share": "positive, mean of shares",
    "pooled_positive_share": "positive, ratio of sums",
    "mean_absolute_share": "absolute, mean of shares",
    "pooled_absolute_share": "absolute, ratio of sums",
}
_TARGETS = {
    "logit": "Score and loss of the logit",
    "log_prob": "Score and loss of the log-prob.",
    "abs_logit": "Sizes of score and of the logit's loss",
}
_CHECKED = {
    "none": "correctness, no norm",
    "frozen": "correctness, frozen scale",
    "full": "correctness, full norm",
    "generation": "generation",
}


@explains
def top_shares(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw the types of the neurons that write the most, by layer: a panel for each language and for their mean.

    Args:
        table: the table of `attribute`. Bars are stacked and add up to 100 %. The dots across them are the share that
            the all-shared neurons would have if as many neurons were drawn at random.
        title: above all panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Examples:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> figure = top_shares(ns.attribute(model, prompts, ns.categorise(model, prompts)))
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['all', 'en', 'de']
    """
    rows = _attributed(table, "generation", "top_share")
    languages = list(rows["language"].unique())
    n_columns = min(5, len(languages))
    n_rows = -(-len(languages) // n_columns)
    few_layers = rows["layer"].nunique() <= _FEW_LAYERS
    with styled_figure(0.9 + 1.35 * n_rows, title) as figure:
        panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
        for axes, language in zip(panels.flat, languages, strict=False):
            _stack(axes, rows[rows["language"] == language], few_layers=few_layers)
            name_panel(axes, language)
        for axes in panels.flat[len(languages) :]:
            axes.set_visible(False)
        for axes in panels[-1]:
            axes.set_xlabel("layer")
        figure.supylabel("top-K neurons (%)", fontsize=8)
        legend_below(figure, panels.flat[0], columns=5)
    return figure


def _stack(axes: Axes, rows: pd.DataFrame, *, few_layers: bool) -> None:
    """Stack the types' shares by layer, and mark the share of as many random neurons as there are all-shared ones."""
    below = np.zeros(rows["layer"].nunique())
    for index, label in enumerate(LABELS):
        of_type = rows[rows["type"] == label]
        values = of_type["value"].to_numpy()
        axes.bar(
            of_type["layer"].astype(int),
            values,
            0.9 if few_layers else 1.0,
            bottom=below,
            color=COLOURS[index],
            hatch=HATCHES[index] * 2 if few_layers else None,
            edgecolor="white",
            linewidth=0,
            label=label,
        )
        below = below + values
    all_shared = rows[rows["type"] == LABELS[0]]
    layers = all_shared["layer"].astype(int)
    ends = (layers - 0.5, layers + 0.5)
    axes.hlines(all_shared["chance"], *ends, color="black", linestyle=":", label="as many random as all-shared")
    axes.set_ylim(0, 100)
    axes.set_xlim(layers.min() - 0.6, layers.max() + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))


@explains
def impact(table: pd.DataFrame, *, language: str = "all", title: str = "") -> Figure:
    """Draw mean and sum by layer, for each type: of both scores, and of what is right minus wrong.

    Args:
        table: the table of `attribute`. Lines are means over examples, bands 95 % intervals.
        language: the language to show; `all` is the mean over languages.
        title: above all panels.

    Raises:
        NeuronShareError: a table without the columns that this needs, or without the language.

    Examples:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> figure = impact(ns.attribute(model, prompts, ns.categorise(model, prompts)))
        >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
        ['Mean over neurons', 'Sum over neurons']
    """
    with styled_figure(5.6, title) as figure:
        panels = figure.subplots(len(_UNITS), 2, sharex=True)
        for row, (score, unit) in enumerate(_UNITS.items()):
            for column, statistic in enumerate(("mean", "sum")):
                axes = panels[row, column]
                _by_layer(axes, of_language(_attributed(table, score, statistic), language))
                axes.set_ylabel(unit if column == 0 else "")
                if row == 0:
                    name_panel(axes, f"{statistic.capitalize()} over neurons")
        for axes in panels[-1]:
            axes.set_xlabel("layer")
        legend_below(figure, panels[0, 0], columns=4)
    return figure


@explains
def correctness(table: pd.DataFrame, *, language: str = "all", title: str = "") -> Figure:
    """Draw what pushes the answer: the strongest neurons, right minus wrong, and each type's share by every reading.

    Args:
        table: the table of `attribute`. On the left, lines are means over examples of the largest correctness impact.
            On the right, bars are the sum of what the type's neurons push the right answer more than a wrong one.
            Below, bars are the types' shares of the whole model's correctness impact, in all readings of the paper's
            figure. There are two controls: the dots across each group are the share that as many neurons drawn at
            random would have, and the diamond in each bar is the share for a wrong answer. Bands and whiskers are 95 %
            intervals.
        language: the language to show; `all` is the mean over languages.
        title: above the panels.

    Raises:
        NeuronShareError: a table without the columns that this needs, or without the language.

    Examples:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> figure = correctness(ns.attribute(model, prompts, ns.categorise(model, prompts)))
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['largest impact (logits)', 'sum over neurons (logits)', "share of the model's impact (%)"]
    """
    with styled_figure(5.0, title) as figure:
        panels: dict[str, Axes] = figure.subplot_mosaic([["left", "right"], ["below", "below"]], width_ratios=[1.2, 1])
        left, right, below = panels["left"], panels["right"], panels["below"]
        _by_layer(left, of_language(_attributed(table, "correctness", "max"), language))
        left.set_xlabel("layer")
        left.set_ylabel("largest impact (logits)")
        name_panel(left, "The strongest neuron of each type")
        left.legend(fontsize=7)
        _bars_of_differences(right, table, language)
        _bars_of_shares(below, table, language)
        legend_below(figure, below, columns=3)
    return figure


def _bars_of_differences(axes: Axes, table: pd.DataFrame, language: str) -> None:
    """Draw how much more each type pushes the right answer than a wrong one."""
    rows = of_language(_attributed(table, "difference", "sum", whole_model=True), language)
    for index, label in enumerate(LABELS):
        row = rows[rows["type"] == label]
        bars(axes, [index], row["value"], whiskers(row["value"], row), (index, 1), label=label)
    axes.axhline(0, color="grey", linewidth=0.5)
    _name_types(axes)
    axes.set_ylabel("sum over neurons (logits)")
    name_panel(axes, "Right minus wrong")


def _name_types(axes: Axes) -> None:
    axes.set_xticks(range(len(LABELS)), [label.replace("-", "-\n") for label in LABELS], fontsize=7)


def _bars_of_shares(axes: Axes, table: pd.DataFrame, language: str) -> None:
    """Draw each type's share of the model's correctness impact by every reading, beside both controls."""
    groups = np.arange(len(LABELS))
    for index, (statistic, label) in enumerate(_READINGS.items()):
        rows = of_language(_attributed(table, "correctness", statistic, whole_model=True), language)
        rows = rows.set_index("type").loc[list(LABELS)]
        series = (index, len(_READINGS))
        places = places_of(groups, series)
        wrong = "for a wrong answer" if index == 0 else None
        axes.plot(places, rows["other_answer"], "D", color="white", markeredgecolor="black", ms=3, label=wrong)
        spread, colour = whiskers(rows["value"], rows), COLOURS[(4, 5, 7, 8)[index]]
        bars(axes, places, rows["value"], spread, series, label=label, colour=colour)
        if index == 0:
            ends = (groups - 0.45, groups + 0.45)
            axes.hlines(rows["chance"], *ends, color="black", linestyle=":", label="as many random neurons")
    _name_types(axes)
    axes.set_ylabel("share of the model's impact (%)")
    name_panel(axes, "All neurons of each type")


@explains
def causal_check(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw how far scores rank the neurons of each layer as zeroing each neuron alone does.

    Args:
        table: the table of `attribution.causal.causal_check`, with the columns target (logit, log_prob, abs_logit),
            layer, score, language, value, low and high. Lines are means over all prompts, bands 95 % intervals
            over examples.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Examples:
        >>> row = {"target": "logit", "layer": 0, "score": "full", "language": "all"}
        >>> table = pd.DataFrame([row | {"value": 0.9, "low": 0.8, "high": 1.0}])
        >>> [axes.get_ylabel() for axes in causal_check(table).axes]
        ["Spearman's correlation"]
    """
    require(table, "causal_check", ("target", "layer", "score", "language", "value", "low", "high"))
    overall = of_language(table, "all")
    targets, scores = list(overall["target"].unique()), list(overall["score"].unique())
    with styled_figure(2.9, title) as figure:
        panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
        for axes, target in zip(panels, targets, strict=True):
            of_target = overall[overall["target"] == target]
            present = [score for score in scores if score in set(of_target["score"])]
            for index, score in enumerate(present):
                rows = of_target[of_target["score"] == score]
                line(
                    axes,
                    rows["layer"],
                    rows["value"],
                    index,
                    _CHECKED.get(score, score),
                    band=(rows["low"], rows["high"]),
                )
            axes.axhline(0, color="grey", linewidth=0.5)
            name_panel(axes, _TARGETS.get(target, target))
            layer_axis(axes)
        panels[0].set_ylabel("Spearman's correlation")
        legend_below(figure, panels[-1], columns=4)
    return figure


def _attributed(table: pd.DataFrame, score: str, statistic: str, *, whole_model: bool = False) -> pd.DataFrame:
    """The rows of one statistic of `attribute`, by layer or of the whole model."""
    columns = ("language", "layer", "type", "score", "statistic", "value", "low", "high", "chance", "other_answer")
    require(table, "attribute", (*columns, "examples"))
    rows = table[(table["score"] == score) & (table["statistic"] == statistic)]
    rows = rows[(rows["layer"].astype(str) == "all") == whole_model]
    missing = [label for label in LABELS if label not in set(rows["type"])]
    if missing:
        where = "of the whole model (layer 'all')" if whole_model else "by layer"
        raise NeuronShareError(
            f"The table has no {statistic} of {score} {where} for {', '.join(missing)}; give all rows of attribute."
        )
    return rows


def _by_layer(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw a line for each type, with its interval; it has gaps where fewer than ten examples of more have a value."""
    enough = min(FEWEST, rows["examples"].max())
    for index, label in enumerate(LABELS):
        of_type = rows[rows["type"] == label]
        layers = of_type["layer"].astype(int)
        shown = of_type.mask(of_type["examples"] < enough)
        line(axes, layers, shown["value"], index, label, band=(shown["low"], shown["high"]))
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
