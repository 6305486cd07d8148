"""Tables to matplotlib figures. Nothing here changes matplotlib's global style."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.sharing import TYPES

# Okabe and Ito's colours, told apart by the colour-blind too; markers and dashes say the same without colour.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999933", "#882255")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
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
        for index, label in enumerate(type.label for type in TYPES):
            rows = summary[summary["type"] == label]
            _line(left, rows, index, label)
            low, high = (rows["mean"] - rows["std"]).clip(lower=0), (rows["mean"] + rows["std"]).clip(upper=100)
            left.fill_between(rows["layer"], low, high, color=_COLOURS[index], alpha=0.2, linewidth=0)
        languages = list(by_language["language"].unique())
        for index, language in enumerate(languages):
            _line(right, by_language[by_language["language"] == language], index, language)
        left.set_ylabel("neurons (% of layer)")
        left.set_title("Types: mean ± std over examples", loc="left", fontsize=8)
        right.set_ylabel("activated neurons (% of layer)")
        right.set_title("Activated, by language", loc="left", fontsize=8)
        for axes in (left, right):
            axes.set_xlabel("layer")
            axes.margins(y=0.08)
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=7)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=5, fontsize=7)
        if title:
            figure.suptitle(title, fontsize=9)
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
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        baseline = overall.loc[overall["type"] == "none", "value"].item()
        for axes in (left, right):
            axes.set_ylabel("accuracy" if metric == "accuracy" else "log-probability of the answer (nats)")
        left.axhline(baseline, color="black", linestyle="--", linewidth=0.8)
        width = 0.8 / len(kinds)
        for index, kind in enumerate(kinds):
            found = overall[overall["ablated"] == kind].set_index("type").reindex(types)
            places = np.arange(len(types)) + (index - (len(kinds) - 1) / 2) * width
            values, missing = found["value"].to_numpy(), found["value"].isna().to_numpy()
            spread = np.abs(np.stack([found["low"] - found["difference"], found["high"] - found["difference"]]))
            colour = _COLOURS[index]
            label = "the type itself" if kind == "type" else f"control: {kind}"
            left.bar(
                places,
                values,
                width * 0.92,
                yerr=spread,
                color=colour,
                hatch=("", "///", "...", "xxx", "\\\\\\")[index % 5],
                edgecolor="white",
                linewidth=0,
                error_kw={"elinewidth": 0.8, "capsize": 1.5},
                label=label,
            )
            left.plot(places[missing], np.zeros(missing.sum()), "x", color=colour, clip_on=False)
            tops = values + np.nan_to_num(spread[1])
            for place, top, n_examples in zip(places, tops, found["examples"], strict=True):
                if 0 < n_examples < overall["examples"].max():
                    left.annotate("*", (place, max(top, 0)), (0, 0), textcoords="offset points", ha="center")
        left.set_xticks(range(len(types)), types)
        left.set_title("All languages (* some examples, × none)", loc="left", fontsize=8)
        left.set_xlabel("ablated")
        languages = [language for language in rows["language"].unique() if language != "all"]
        for index, kind in enumerate(("none", *types)):
            found = rows[(rows["type"] == kind) & rows["ablated"].isin(["none", "type"])]
            values = found.set_index("language")["value"].reindex(languages)
            right.plot(
                languages,
                values,
                color="black" if kind == "none" else _COLOURS[index - 1],
                marker=None if kind == "none" else _MARKERS[index - 1],
                linestyle="--" if kind == "none" else "-",
                linewidth=1.0,
                label="unablated" if kind == "none" else f"without {kind}",
            )
        right.set_xlabel("language")
        right.set_title("By language", loc="left", fontsize=8)
        if metric == "accuracy":
            for axes in (left, right):
                axes.set_ylim(0, 1.05)
        left.tick_params(axis="x", labelsize=7)
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=2, fontsize=7)
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=2, fontsize=7)
        if title:
            figure.suptitle(title, fontsize=9)
    return figure


def _line(axes: Axes, rows: pd.DataFrame, index: int, label: str) -> None:
    """Mean by layer; colours and markers repeat only with different dashes."""
    n = len(_COLOURS)
    axes.plot(
        rows["layer"],
        rows["mean"],
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
