"""Tables to matplotlib figures. Nothing here changes matplotlib's global style."""

from __future__ import annotations

from textwrap import fill
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tl_neuronshare.bootstrap import FEWEST
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.sharing import TYPES

# Okabe and Ito's colours, told apart by the colour-blind too; markers and dashes say the same without colour.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999933", "#882255")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\")
_FEW_LAYERS = 12  # whose bars are wide enough for hatches
_LABELS = tuple(type.label for type in TYPES)
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
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.markersize": 4,
}


def patterns(summary: pd.DataFrame, by_language: pd.DataFrame, *, title: str = "") -> Figure:
    """Types by layer beside activation by language: the paper's figure of patterns by layer.

    Args:
        summary: `NeuronSharing.summary()`; lines are means, bands the standard deviation over examples.
        by_language: `NeuronSharing.by_language()`; lines are means over examples.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that these two have.

    Example:
        >>> figure = patterns(sharing.summary(), sharing.by_language())
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['neurons (% of layer)', 'activated neurons (% of layer)']
    """
    _require(summary, "summary", ("layer", "type", "mean", "std"))
    _require(by_language, "by_language", ("layer", "language", "mean"))
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.9, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        for index, label in enumerate(_LABELS):
            rows = summary[summary["type"] == label]
            _line(left, rows["layer"], rows["mean"], index, label)
            low, high = (rows["mean"] - rows["std"]).clip(lower=0), (rows["mean"] + rows["std"]).clip(upper=100)
            left.fill_between(rows["layer"], low, high, color=_COLOURS[index], alpha=0.2, linewidth=0)
        languages = list(by_language["language"].unique())
        for index, language in enumerate(languages):
            rows = by_language[by_language["language"] == language]
            _line(right, rows["layer"], rows["mean"], index, language)
        left.set_ylabel("neurons (% of layer)")
        left.set_title("Types: mean ± std over examples", loc="left", fontsize=8)
        right.set_ylabel("activated neurons (% of layer)")
        right.set_title("Activated, by language", loc="left", fontsize=8)
        for axes in (left, right):
            axes.set_xlabel("layer")
            axes.margins(y=0.08)
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=7)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=5, fontsize=7)
        _entitle(figure, title)
    return figure


def ablation(table: pd.DataFrame, *, metric: Literal["accuracy", "log_prob"] = "accuracy", title: str = "") -> Figure:
    """What is left when each type is ablated, beside its controls; and, by language, the types.

    Args:
        table: of `ablation_study`. Bars are the mean over languages, whiskers the 95 % interval of the difference from
            the unablated model (dashed line). A control that could not be drawn is a cross on the axis, one that could
            be drawn for some examples only has a star.
        metric: `accuracy`, or `log_prob` of the right answer.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs, an unknown metric.

    Example:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> table = ns.ablation_study(model, prompts, ns.categorise(model, prompts), controls=["random"], seeds=[0])
        >>> [axes.get_ylabel() for axes in ablation(table).figure.axes]
        ['accuracy', 'accuracy']
    """
    _require(
        table,
        "ablation_study",
        ("type", "ablated", "language", "metric", "value", "difference", "low", "high", "examples"),
    )
    if metric not in table["metric"].unique():
        raise NeuronShareError(f"metric={metric!r} is not in the table; use one of {set(table['metric'])}.")
    rows = table[table["metric"] == metric]
    overall = rows[rows["language"] == "all"]
    types = [type for type in overall["type"].unique() if type != "none"]
    kinds = [kind for kind in overall["ablated"].unique() if kind != "none"]
    languages = [language for language in rows["language"].unique() if language != "all"]
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _bars_of_ablation(left, overall, types, kinds)
        _lines_of_ablation(right, rows, types, languages)
        for axes in (left, right):
            axes.set_ylabel("accuracy" if metric == "accuracy" else "log-probability of the answer (nats)")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=2, fontsize=7)
            if metric == "accuracy":
                axes.set_ylim(0, 1.05)
        _entitle(figure, title)
    return figure


def _bars_of_ablation(axes: Axes, overall: pd.DataFrame, types: list[str], kinds: list[str]) -> None:
    """The mean over languages: for each type a bar for itself and one for each control."""
    baseline = overall.loc[overall["type"] == "none", "value"].item()
    axes.axhline(baseline, color="black", linestyle="--", linewidth=0.8)
    width = 0.8 / len(kinds)
    for index, kind in enumerate(kinds):
        found = overall[overall["ablated"] == kind].set_index("type").reindex(types)
        places = np.arange(len(types)) + (index - (len(kinds) - 1) / 2) * width
        values, missing = found["value"].to_numpy(), found["value"].isna().to_numpy()
        spread = np.abs(np.stack([found["low"] - found["difference"], found["high"] - found["difference"]]))
        label = "the type itself" if kind == "type" else f"control: {kind}"
        _bars(axes, places, values, spread, width=width, index=index, colour=_COLOURS[index], label=label)
        axes.plot(places[missing], np.zeros(missing.sum()), "x", color=_COLOURS[index], clip_on=False)
        tops = values + np.nan_to_num(spread[1])
        for place, top, n_examples in zip(places, tops, found["examples"], strict=True):
            if 0 < n_examples < overall["examples"].max():
                axes.annotate("*", (place, max(top, 0)), (0, 0), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(types)), types)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title("All languages (* some examples, × none)", loc="left", fontsize=8)
    axes.set_xlabel("ablated")


def _lines_of_ablation(axes: Axes, rows: pd.DataFrame, types: list[str], languages: list[str]) -> None:
    """By language: the unablated model, and without each type."""
    for index, kind in enumerate(("none", *types)):
        found = rows[(rows["type"] == kind) & rows["ablated"].isin(["none", "type"])]
        axes.plot(
            languages,
            found.set_index("language")["value"].reindex(languages),
            color="black" if kind == "none" else _COLOURS[index - 1],
            marker=None if kind == "none" else _MARKERS[index - 1],
            linestyle="--" if kind == "none" else "-",
            linewidth=1.0,
            label="unablated" if kind == "none" else f"without {kind}",
        )
    axes.set_xlabel("language")
    axes.set_title("By language", loc="left", fontsize=8)


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
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.9, 0.9 + 1.35 * n_rows), layout="constrained")
        panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
        for axes, language in zip(panels.flat, languages, strict=False):
            of_language = rows[rows["language"] == language]
            below = 0.0
            for index, label in enumerate(_LABELS):
                found = of_language[of_language["type"] == label]
                layers, values = found["layer"].astype(int), found["value"].to_numpy()
                axes.bar(
                    layers,
                    values,
                    0.9 if few_layers else 1.0,
                    bottom=below,
                    color=_COLOURS[index],
                    hatch=_HATCHES[index] * 2 if few_layers else None,
                    edgecolor="white",
                    linewidth=0,
                    label=label,
                )
                below = below + values
            random = of_language[of_language["type"] == _LABELS[0]]
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
        _entitle(figure, title)
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
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.9, 4.4), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True)
        for row, (score, unit) in enumerate(_UNITS.items()):
            for column, statistic in enumerate(("mean", "sum")):
                axes = panels[row, column]
                _by_layer(axes, _of_language(_attributed(table, score, statistic), language))
                axes.set_ylabel(unit if column == 0 else "")
                if row == 0:
                    axes.set_title(f"{statistic.capitalize()} over neurons", loc="left", fontsize=8)
                else:
                    axes.set_xlabel("layer")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
        _entitle(figure, title)
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
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.9, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        _by_layer(left, _of_language(_attributed(table, "correctness", "max"), language))
        left.set_xlabel("layer")
        left.set_ylabel("largest correctness impact (logits)")
        left.set_title("The strongest neuron of each type", loc="left", fontsize=8)
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7)
        width = 0.8 / len(_READINGS)
        for index, (statistic, label) in enumerate(_READINGS.items()):
            rows = _of_language(_attributed(table, "correctness", statistic, whole_model=True), language)
            rows = rows.set_index("type").loc[list(_LABELS)]
            places = np.arange(len(_LABELS)) + (index - (len(_READINGS) - 1) / 2) * width
            other = "for a wrong answer" if index == 0 else None
            right.plot(places, rows["other_answer"], "D", color="white", markeredgecolor="black", ms=3, label=other)
            spread = np.abs(np.stack([rows["value"] - rows["low"], rows["high"] - rows["value"]]))
            colour = _COLOURS[(4, 5, 7, 8)[index]]
            _bars(right, places, rows["value"], spread, width=width, index=index, colour=colour, label=label)
            for place, chance in enumerate(rows["chance"] if index == 0 else ()):
                label_once = "as many random neurons" if place == 0 else None
                right.hlines(chance, place - 0.45, place + 0.45, color="black", linestyle=":", label=label_once)
        right.set_xticks(range(len(_LABELS)), [label.replace("-", "-\n") for label in _LABELS], fontsize=7)
        right.set_ylabel("share of the model's impact (%)")
        right.set_title("All neurons of each type", loc="left", fontsize=8)
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7)
        _entitle(figure, title)
    return figure


def causal_check(table: pd.DataFrame, *, title: str = "") -> Figure:
    """How far scores rank the neurons of each layer as zeroing each alone does.

    Args:
        table: of `experiments/causal_check.py`: columns target (logit, log_prob, abs_logit), layer, score, language,
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
    _require(table, "causal_check", ("target", "layer", "score", "language", "value", "low", "high"))
    overall = _of_language(table, "all")
    targets, scores = list(overall["target"].unique()), list(overall["score"].unique())
    with rc_context(_STYLE):
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
                _bars(
                    axes, places, rows["value"], spread, width=width, index=index, colour=_COLOURS[index], label=label
                )
            axes.axhline(0, color="grey", linewidth=0.5)
            axes.set_xlabel("layer")
            axes.set_title(_TARGETS.get(target, target), loc="left", fontsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panels[0].set_ylabel("Spearman's correlation")
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
        _entitle(figure, title)
    return figure


def _attributed(table: pd.DataFrame, score: str, statistic: str, *, whole_model: bool = False) -> pd.DataFrame:
    """One statistic of `attribute`, by layer or of the whole model."""
    columns = ("language", "layer", "type", "score", "statistic", "value", "low", "high", "chance", "other_answer")
    _require(table, "attribute", (*columns, "examples"))
    rows = table[(table["score"] == score) & (table["statistic"] == statistic)]
    rows = rows[(rows["layer"].astype(str) == "all") == whole_model]
    missing = [label for label in _LABELS if label not in set(rows["type"])]
    if missing:
        where = "of the whole model (layer 'all')" if whole_model else "by layer"
        raise NeuronShareError(
            f"The table has no {statistic} of {score} {where} for {', '.join(missing)}; give all that attribute made."
        )
    return rows


def _of_language(rows: pd.DataFrame, language: str) -> pd.DataFrame:
    found = rows[rows["language"] == language]
    if found.empty:
        known = ", ".join(rows["language"].unique())
        raise NeuronShareError(f"language={language!r} is not in the table; use one of {known}.")
    return found


def _by_layer(axes: Axes, rows: pd.DataFrame) -> None:
    """A line for each type, with its interval; with gaps where it is a mean of fewer than ten examples out of more."""
    enough = min(FEWEST, rows["examples"].max())
    for index, label in enumerate(_LABELS):
        found = rows[rows["type"] == label]
        found = found.mask(found["examples"] < enough).assign(layer=found["layer"])
        layers = found["layer"].astype(int)
        _line(axes, layers, found["value"], index, label)
        axes.fill_between(layers, found["low"], found["high"], color=_COLOURS[index], alpha=0.2, linewidth=0)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _bars(
    axes: Axes, places: Any, values: Any, spread: Any, *, width: float, index: int, colour: str, label: str
) -> None:
    """One of several series of bars side by side, with whiskers; told apart by hatches too."""
    axes.bar(
        places,
        values,
        width * 0.92,
        yerr=spread,
        color=colour,
        hatch=_HATCHES[index % len(_HATCHES)],
        edgecolor="white",
        linewidth=0,
        error_kw={"elinewidth": 0.8, "capsize": 1.5},
        label=label,
    )


def _entitle(figure: Figure, title: str) -> None:
    """Long titles take several lines."""
    if title:
        figure.suptitle(fill(title, 100), fontsize=9)


def _line(axes: Axes, layers: pd.Series, values: pd.Series, index: int, label: str) -> None:
    """Values by layer; colours and markers repeat only with different dashes."""
    n = len(_COLOURS)
    axes.plot(
        layers,
        values,
        color=_COLOURS[index % n],
        marker=_MARKERS[index % n],
        linestyle=("-", "--", ":")[index // n % 3],
        linewidth=1.2,
        label=label,
    )


def _require(table: pd.DataFrame, name: str, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise NeuronShareError(f"{name} lacks the column(s) {', '.join(missing)}; give the table that {name} makes.")
