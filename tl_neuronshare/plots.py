"""Tables to matplotlib figures. Nothing here changes matplotlib's global style."""

from __future__ import annotations

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
        raise NeuronShareError(
            f"{name} lacks the column(s) {', '.join(missing)}; give the table that NeuronSharing.{name}() returns."
        )
