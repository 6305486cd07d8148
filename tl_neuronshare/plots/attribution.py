"""Figures of scores: what each type writes, and how much it pushes the answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.bootstrap import FEWEST
from tl_neuronshare.plots.drawing import (
    COLOURS,
    HATCHES,
    LABELS,
    STYLE,
    bars,
    entitle,
    layer_axis,
    line,
    of_language,
    require,
)

_FEW_LAYERS = 12  # whose bars are wide enough for hatches
_UNITS = {"generation": "generation impact (length)", "correctness": "correctness impact (logits)"}
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


def top_shares(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Which types the neurons are of that write the most, by layer: a panel for each language and for their mean.

    Args:
        table: of `attribute`. Bars are stacked and add up to 100 %; the dots across them are what the all-shared
            neurons' share would be for as many neurons drawn at random.
        title: above all panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Example:
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
    with rc_context(STYLE):
        figure = Figure(figsize=(6.9, 0.9 + 1.35 * n_rows), layout="constrained")
        panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
        for axes, language in zip(panels.flat, languages, strict=False):
            of_language = rows[rows["language"] == language]
            below = 0.0
            for index, label in enumerate(LABELS):
                found = of_language[of_language["type"] == label]
                layers, values = found["layer"].astype(int), found["value"].to_numpy()
                axes.bar(
                    layers,
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
            random = of_language[of_language["type"] == LABELS[0]]
            layers = random["layer"].astype(int)
            ends = (layers - 0.5, layers + 0.5)
            axes.hlines(random["chance"], *ends, color="black", linestyle=":", label="as many random as all-shared")
            axes.set_title(language, loc="left", fontsize=8)
            axes.set_ylim(0, 100)
            axes.set_xlim(layers.min() - 0.6, layers.max() + 0.6)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
        for axes in panels.flat[len(languages) :]:
            axes.set_visible(False)
        for axes in panels[-1]:
            axes.set_xlabel("layer")
        figure.supylabel("top-K neurons (%)", fontsize=8)
        figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7)
        entitle(figure, title)
    return figure


def impact(table: pd.DataFrame, *, language: str = "all", title: str = "") -> Figure:
    """Mean and sum of both scores by layer, for each type.

    Args:
        table: of `attribute`. Lines are means over examples, bands 95 % intervals.
        language: which; `all` is the mean over languages.
        title: above all panels.

    Raises:
        NeuronShareError: a table without the columns that this needs, or without the language.

    Example:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> figure = impact(ns.attribute(model, prompts, ns.categorise(model, prompts)))
        >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
        ['Mean over neurons', 'Sum over neurons']
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(6.9, 4.4), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True)
        for row, (score, unit) in enumerate(_UNITS.items()):
            for column, statistic in enumerate(("mean", "sum")):
                axes = panels[row, column]
                _by_layer(axes, of_language(_attributed(table, score, statistic), language))
                axes.set_ylabel(unit if column == 0 else "")
                if row == 0:
                    axes.set_title(f"{statistic.capitalize()} over neurons", loc="left", fontsize=8)
                else:
                    axes.set_xlabel("layer")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
        entitle(figure, title)
    return figure


def correctness(table: pd.DataFrame, *, language: str = "all", title: str = "") -> Figure:
    """What pushes the answer: the strongest neuron of each type by layer; and each type's share, by every reading.

    Args:
        table: of `attribute`. Left, lines are means over examples of the largest correctness impact. Right, the types'
            shares of the whole model's correctness impact, in all readings of the paper's figure, and two controls: the
            dots across each group are the share that as many neurons drawn at random would have, the diamond in each
            bar the share for a wrong answer. Bands and whiskers are 95 % intervals.
        language: which; `all` is the mean over languages.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs, or without the language.

    Example:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> figure = correctness(ns.attribute(model, prompts, ns.categorise(model, prompts)))
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['largest correctness impact (logits)', "share of the model's impact (%)"]
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(6.9, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        _by_layer(left, of_language(_attributed(table, "correctness", "max"), language))
        left.set_xlabel("layer")
        left.set_ylabel("largest correctness impact (logits)")
        left.set_title("The strongest neuron of each type", loc="left", fontsize=8)
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7)
        width = 0.8 / len(_READINGS)
        for index, (statistic, label) in enumerate(_READINGS.items()):
            rows = of_language(_attributed(table, "correctness", statistic, whole_model=True), language)
            rows = rows.set_index("type").loc[list(LABELS)]
            places = np.arange(len(LABELS)) + (index - (len(_READINGS) - 1) / 2) * width
            other = "for a wrong answer" if index == 0 else None
            right.plot(places, rows["other_answer"], "D", color="white", markeredgecolor="black", ms=3, label=other)
            spread = np.abs(np.stack([rows["value"] - rows["low"], rows["high"] - rows["value"]]))
            colour = COLOURS[(4, 5, 7, 8)[index]]
            bars(right, places, rows["value"], spread, width=width, index=index, colour=colour, label=label)
            for place, chance in enumerate(rows["chance"] if index == 0 else ()):
                label_once = "as many random neurons" if place == 0 else None
                right.hlines(chance, place - 0.45, place + 0.45, color="black", linestyle=":", label=label_once)
        right.set_xticks(range(len(LABELS)), [label.replace("-", "-\n") for label in LABELS], fontsize=7)
        right.set_ylabel("share of the model's impact (%)")
        right.set_title("All neurons of each type", loc="left", fontsize=8)
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7)
        entitle(figure, title)
    return figure


def causal_check(table: pd.DataFrame, *, title: str = "") -> Figure:
    """How far scores rank the neurons of each layer as zeroing each alone does.

    Args:
        table: of `attribution.causal`: columns target (logit, log_prob, abs_logit), layer, score, language,
            value, low, high. Bars are means over all prompts, whiskers 95 % intervals over examples.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Example:
        >>> row = {"target": "logit", "layer": 0, "score": "full", "language": "all"}
        >>> table = pd.DataFrame([row | {"value": 0.9, "low": 0.8, "high": 1.0}])
        >>> [axes.get_ylabel() for axes in causal_check(table).axes]
        ["Spearman's correlation"]
    """
    require(table, "causal_check", ("target", "layer", "score", "language", "value", "low", "high"))
    overall = of_language(table, "all")
    targets, scores = list(overall["target"].unique()), list(overall["score"].unique())
    with rc_context(STYLE):
        figure = Figure(figsize=(6.9, 2.9), layout="constrained")
        panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
        for axes, target in zip(panels, targets, strict=True):
            of_target = overall[overall["target"] == target]
            width = 0.8 / of_target["score"].nunique()
            for index, score in enumerate(score for score in scores if score in set(of_target["score"])):
                rows = of_target[of_target["score"] == score]
                places = rows["layer"] + (index - (of_target["score"].nunique() - 1) / 2) * width
                spread = np.abs(np.stack([rows["value"] - rows["low"], rows["high"] - rows["value"]]))
                label = _CHECKED.get(score, score)
                bars(axes, places, rows["value"], spread, width=width, index=index, colour=COLOURS[index], label=label)
            axes.axhline(0, color="grey", linewidth=0.5)
            axes.set_title(_TARGETS.get(target, target), loc="left", fontsize=8)
            layer_axis(axes)
        panels[0].set_ylabel("Spearman's correlation")
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
        entitle(figure, title)
    return figure


def _attributed(table: pd.DataFrame, score: str, statistic: str, *, whole_model: bool = False) -> pd.DataFrame:
    """One statistic of `attribute`, by layer or of the whole model."""
    columns = ("language", "layer", "type", "score", "statistic", "value", "low", "high", "chance", "other_answer")
    require(table, "attribute", (*columns, "examples"))
    rows = table[(table["score"] == score) & (table["statistic"] == statistic)]
    rows = rows[(rows["layer"].astype(str) == "all") == whole_model]
    missing = [label for label in LABELS if label not in set(rows["type"])]
    if missing:
        where = "of the whole model (layer 'all')" if whole_model else "by layer"
        raise NeuronShareError(
            f"The table has no {statistic} of {score} {where} for {', '.join(missing)}; give all that attribute made."
        )
    return rows


def _by_layer(axes: Axes, rows: pd.DataFrame) -> None:
    """A line for each type, with its interval; with gaps where it is a mean of fewer than ten examples out of more."""
    enough = min(FEWEST, rows["examples"].max())
    for index, label in enumerate(LABELS):
        found = rows[rows["type"] == label]
        found = found.mask(found["examples"] < enough).assign(layer=found["layer"])
        layers = found["layer"].astype(int)
        line(axes, layers, found["value"], index, label)
        axes.fill_between(layers, found["low"], found["high"], color=COLOURS[index], alpha=0.2, linewidth=0)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
