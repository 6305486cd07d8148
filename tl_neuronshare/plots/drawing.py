"""What all figures share: colours, markers, style, and the checks of their tables."""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.results.types import TYPES

# Okabe and Ito's colours, told apart by the colour-blind too; markers and dashes say the same without colour.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999933", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
HATCHES = ("", "///", "...", "xxx", "\\\\\\")
_FEW_CELLS = 12  # a side, which are large enough for numbers
LABELS = tuple(type.label for type in TYPES)
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.markersize": 4,
}


def bars(
    axes: Axes, places: Any, values: Any, spread: Any, *, width: float, index: int, colour: str, label: str
) -> None:
    """One of several series of bars side by side, with whiskers; told apart by hatches too."""
    axes.bar(
        places,
        values,
        width * 0.92,
        yerr=spread,
        color=colour,
        hatch=HATCHES[index % len(HATCHES)],
        edgecolor="white",
        linewidth=0,
        error_kw={"elinewidth": 0.8, "capsize": 1.5},
        label=label,
    )


def entitle(figure: Figure, title: str) -> None:
    """Long titles take several lines."""
    if title:
        figure.suptitle(fill(title, 100), fontsize=9)


def line(axes: Axes, layers: Any, values: pd.Series, index: int, label: str, *, linestyle: str | None = None) -> None:
    """Values by layer; colours and markers repeat only with different dashes."""
    n = len(COLOURS)
    axes.plot(
        layers,
        values,
        color=COLOURS[index % n],
        marker=MARKERS[index % n],
        linestyle=linestyle or ("-", "--", ":")[index // n % 3],
        linewidth=1.2,
        label=label,
    )


def require(table: pd.DataFrame, name: str, columns: tuple[str, ...]) -> None:
    """Refuse a table without these columns."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise NeuronShareError(f"{name} lacks the column(s) {', '.join(missing)}; give the table that {name} makes.")


def of_language(rows: pd.DataFrame, language: str) -> pd.DataFrame:
    """The rows of one language."""
    found = rows[rows["language"] == language]
    if found.empty:
        known = ", ".join(rows["language"].unique())
        raise NeuronShareError(f"language={language!r} is not in the table; use one of {known}.")
    return found


def layer_axis(axes: Axes) -> None:
    """An axis of layers, which are whole numbers."""
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def heatmap(axes: Axes, table: pd.DataFrame, *, title: str) -> None:
    """A square table of numbers from 0 to 1, with the numbers written in where there is room; gaps stay white."""
    values = table.to_numpy(float)
    shown = values[~np.isnan(values)]
    low, high = (shown.min(), shown.max()) if len(shown) else (0.0, 1.0)
    image = axes.imshow(values, cmap="cividis", vmin=low, vmax=max(high, low + 1e-9))
    axes.set_xticks(range(len(table)), table.columns, rotation=90 if max(map(len, table.columns)) > 3 else 0)
    axes.set_yticks(range(len(table)), table.index)
    axes.tick_params(labelsize=7, length=0)
    for (row, column), value in np.ndenumerate(values):
        if len(table) <= _FEW_CELLS and not np.isnan(value):
            colour = "black" if value > (low + high) / 2 else "white"
            text = f"{value:.2f}".removeprefix("0") if value < 1 else "1"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.85)
    bar.ax.tick_params(labelsize=7)
    axes.set_title(title, loc="left", fontsize=8)
