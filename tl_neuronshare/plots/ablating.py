"""The figure of an ablation study."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.plots.drawing import COLOURS, MARKERS, STYLE, bars, entitle, require


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
    require(
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
    with rc_context(STYLE):
        figure = Figure(figsize=(6.9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _bars_of_ablation(left, overall, types, kinds)
        _lines_of_ablation(right, rows, types, languages)
        for axes in (left, right):
            axes.set_ylabel("accuracy" if metric == "accuracy" else "log-probability of the answer (nats)")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=2, fontsize=7)
            if metric == "accuracy":
                axes.set_ylim(0, 1.05)
        entitle(figure, title)
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
        bars(axes, places, values, spread, width=width, index=index, colour=COLOURS[index], label=label)
        axes.plot(places[missing], np.zeros(missing.sum()), "x", color=COLOURS[index], clip_on=False)
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
            color="black" if kind == "none" else COLOURS[index - 1],
            marker=None if kind == "none" else MARKERS[index - 1],
            linestyle="--" if kind == "none" else "-",
            linewidth=1.0,
            label="unablated" if kind == "none" else f"without {kind}",
        )
    axes.set_xlabel("language")
    axes.set_title("By language", loc="left", fontsize=8)
