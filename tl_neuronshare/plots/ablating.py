"""Figures of ablation: of a study, and of a growing share of a type."""

from __future__ import annotations

from typing import Literal

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
    legend_below,
    line,
    name_panel,
    places_of,
    require,
    styled_figure,
    whiskers,
)

Metric = Literal["accuracy", "known_accuracy", "log_prob"]
_ORDERS = ("by impact", "at random")
_LABELS = {
    "accuracy": "accuracy",
    "known_accuracy": "accuracy on known facts",
    "log_prob": "log-probability of the answer (nats)",
}


@explains
def ablation(table: pd.DataFrame, *, metric: Metric = "accuracy", title: str = "") -> Figure:
    """Draw what is left when each type is ablated, beside its controls; and, by language, the types.

    Args:
        table: the table of `ablation_study`. Bars are the mean over languages, whiskers the 95 % interval of the
            difference from the unablated model (dashed line). A dotted line is what choosing at random gives, which
            `table.attrs` says for choices. A cross on the axis marks a control that could not be drawn, a star one that
            could be drawn for some examples only.
        metric: `accuracy`, `known_accuracy` (of what the unablated model knows), or `log_prob` of the right answer.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs, an unknown metric.

    Examples:
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
        raise NeuronShareError(
            f"metric={metric!r} is not in the table; use one of {', '.join(table['metric'].unique())}."
        )
    rows = table[table["metric"] == metric]
    overall = rows[rows["language"] == "all"]
    types = [type for type in overall["type"].unique() if type != "none"]
    kinds = [kind for kind in overall["ablated"].unique() if kind != "none"]
    languages = [language for language in rows["language"].unique() if language != "all"]
    with styled_figure(3.2, title) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _bars_of_ablation(left, overall, types, kinds)
        _lines_of_ablation(right, rows, types, languages)
        for axes in (left, right):
            axes.set_ylabel(_LABELS[metric])
            if metric != "log_prob":
                axes.set_ylim(0, 1.05)
                if table.attrs.get("chance") is not None:
                    axes.axhline(table.attrs["chance"], color="0.4", linestyle=":", linewidth=1.0, label="chance")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=2, fontsize=7)
    return figure


@explains
def dose_response(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw what is left when a growing share of a type is ablated: in the order of impact, at random, and controls.

    Args:
        table: the table of `dose_response`. Lines are means over languages, bands the 95 % interval of the difference
            from the unablated model. A dotted line is what choosing at random gives.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Examples:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> sharing = ns.categorise(model, prompts)
        >>> table = ns.dose_response(model, prompts, sharing, shares=[0.5, 1.0], controls=[], seeds=[0])
        >>> [axes.get_ylabel() for axes in dose_response(table).axes]
        ['accuracy', 'log-probability of the answer (nats)']
    """
    require(table, "dose_response", ("share", "ablated", "language", "metric", "value", "difference", "low", "high"))
    overall = table[table["language"] == "all"]
    with styled_figure(3.0, title) as figure:
        panels = figure.subplots(1, 2)
        for axes, metric in zip(panels, ("accuracy", "log_prob"), strict=True):
            rows = overall[overall["metric"] == metric]
            unablated = rows[rows["ablated"] == "none"]
            for index, kind in enumerate(each for each in rows["ablated"].unique() if each != "none"):
                of_kind = pd.concat([unablated, rows[rows["ablated"] == kind].sort_values("share")])
                label = kind if kind in _ORDERS else f"control: {kind}"
                shares, base = 100 * of_kind["share"], of_kind["value"] - of_kind["difference"].fillna(0)
                ends, dashes = (base + of_kind["low"], base + of_kind["high"]), "-" if kind in _ORDERS else "--"
                line(axes, shares, of_kind["value"], index, label, band=ends, linestyle=dashes)
            axes.set_xlabel("share of the type's neurons that is ablated (%)")
            axes.set_ylabel(_LABELS[metric])
            if metric == "accuracy":
                axes.set_ylim(0, 1.05)
                if table.attrs.get("chance") is not None:
                    axes.axhline(table.attrs["chance"], color="0.4", linestyle=":", linewidth=1.0, label="chance")
        legend_below(figure, panels[0], columns=5)
    return figure


def _bars_of_ablation(axes: Axes, overall: pd.DataFrame, types: list[str], kinds: list[str]) -> None:
    """Draw the mean over languages: for each type a bar for itself and one for each control."""
    baseline = overall.loc[overall["type"] == "none", "value"].item()
    axes.axhline(baseline, color="black", linestyle="--", linewidth=0.8)
    marks: set[str] = set()  # what the title explains
    for index, kind in enumerate(kinds):
        rows = overall[overall["ablated"] == kind].set_index("type").reindex(types)
        values, missing = rows["value"].to_numpy(), rows["value"].isna().to_numpy()
        series, spread = (index, len(kinds)), whiskers(rows["difference"], rows)
        places = places_of(np.arange(len(types)), series)
        label = "the type itself" if kind == "type" else f"control: {kind}"
        bars(axes, places, values, spread, series, label=label)
        axes.plot(places[missing], np.zeros(missing.sum()), "x", color=COLOURS[index % len(COLOURS)], clip_on=False)
        marks |= {"× none"} if missing.any() else set()
        tops = values + np.nan_to_num(spread[1])
        for place, top, n_examples in zip(places, tops, rows["examples"], strict=True):
            if 0 < n_examples < overall["examples"].max():
                axes.annotate("*", (place, max(top, 0)), (0, 0), textcoords="offset points", ha="center")
                marks.add("* some examples")
    axes.set_xticks(range(len(types)), types)
    axes.tick_params(axis="x", labelsize=7)
    name_panel(axes, f"All languages ({', '.join(sorted(marks))})" if marks else "All languages")
    axes.set_xlabel("ablated")


def _lines_of_ablation(axes: Axes, rows: pd.DataFrame, types: list[str], languages: list[str]) -> None:
    """Draw the unablated model, and the model without each type, by language."""
    for index, kind in enumerate(("none", *types)):
        values = rows[(rows["type"] == kind) & rows["ablated"].isin(["none", "type"])].set_index("language")["value"]
        axes.plot(
            languages,
            values.reindex(languages),
            color="black" if kind == "none" else COLOURS[(index - 1) % len(COLOURS)],
            marker=None if kind == "none" else MARKERS[(index - 1) % len(MARKERS)],
            linestyle="--" if kind == "none" else "-",
            linewidth=1.0,
            label="unablated" if kind == "none" else f"without {kind}",
        )
    axes.set_xlabel("language")
    name_panel(axes, "By language")
