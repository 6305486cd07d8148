"""What all figures share: colours, markers, style, and the checks of their tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
from math import ceil
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.results.types import TYPES

# Okabe and Ito's colours, which the colour-blind can tell apart too; markers and dashes say the same without colour.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999933", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
HATCHES = ("", "///", "...", "xxx", "\\\\\\")
_LONGEST_TITLE = 96  # letters in a line
_GROUP = 0.8  # how wide a group of bars is
_FEW_CELLS = 12  # the most cells a side that are large enough for numbers
LABELS = tuple(type.label for type in TYPES)
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.markersize": 4,
}


class ShownFigure(Figure):
    """A figure that a notebook's cell shows by itself, whether or not pyplot is imported."""

    def _repr_png_(self) -> bytes:
        picture = BytesIO()
        self.savefig(picture, format="png", dpi=130)
        return picture.getvalue()


@contextmanager
def styled_figure(height: float, title: str) -> Iterator[Figure]:
    """Open a figure in our style, as wide as a page, and put the title above what is drawn in it."""
    with rc_context(STYLE):
        figure = ShownFigure(figsize=(6.9, height), layout="constrained")
        yield figure
        if title:
            figure.suptitle(_in_lines(title), fontsize=9)


def _in_lines(title: str) -> str:
    """Break a title that is too long for a line into lines of about the same length."""
    n_lines = ceil(len(title) / _LONGEST_TITLE)
    return fill(title, _LONGEST_TITLE if n_lines < 2 else min(_LONGEST_TITLE, len(title) // n_lines + 12))


def name_panel(axes: Axes, name: str) -> None:
    """Write a panel's name above its left corner."""
    axes.set_title(name, loc="left", fontsize=8)


def legend_below(figure: Figure, *panels: Axes, columns: int, title: str | None = None) -> None:
    """Put the legend of some panels below the whole figure."""
    each = [axes.get_legend_handles_labels() for axes in panels]
    handles, labels = (list(chain.from_iterable(parts)) for parts in zip(*each, strict=True))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=7, title=title, title_fontsize=7)


def places_of(centres: Any, series: tuple[int, int]) -> Any:
    """Say where the bars of a series are, round the centres of groups; `series` is its number, and of how many."""
    number, n_series = series
    return centres + (number - (n_series - 1) / 2) * (_GROUP / n_series)


def bars(
    axes: Axes, places: Any, values: Any, spread: Any, series: tuple[int, int], *, label: str, colour: str | None = None
) -> None:
    """Draw one of several series of bars side by side, with whiskers; hatches tell series apart without colour.

    `places` come from `places_of`, with the same `series`, and `spread` comes from `whiskers`.
    """
    number, n_series = series
    axes.bar(
        places,
        values,
        _GROUP / n_series * 0.92,
        yerr=spread,
        color=colour or COLOURS[number % len(COLOURS)],
        hatch=HATCHES[number % len(HATCHES)],
        edgecolor="white",
        linewidth=0,
        error_kw={"elinewidth": 0.8, "capsize": 1.5},
        label=label,
    )


def whiskers(middle: pd.Series, rows: pd.DataFrame) -> NDArray[np.float64]:
    """Say how far whiskers reach below and above the middle: to the columns low and high."""
    reach: NDArray[np.float64] = np.abs(np.stack([middle - rows["low"], rows["high"] - middle]))
    return reach


def line(
    axes: Axes,
    layers: Any,
    values: pd.Series,
    index: int,
    label: str,
    *,
    band: tuple[Any, Any] | None = None,
    linestyle: str | None = None,
    is_hollow: bool = False,
) -> None:
    """Draw values by layer, with a band between two ends; where there are more lines than colours, dashes differ.

    A hollow line has larger empty markers and dashes, so that a line below it shows.
    """
    repeats, place = divmod(index, len(COLOURS))
    axes.plot(
        layers,
        values,
        color=COLOURS[place],
        marker=MARKERS[place],
        linestyle=linestyle or ("--" if is_hollow else ("-", "--", ":")[repeats % 3]),
        linewidth=1.2,
        markerfacecolor="none" if is_hollow else COLOURS[place],
        markersize=6 if is_hollow else None,
        label=label,
    )
    if band is not None:
        axes.fill_between(layers, *band, color=COLOURS[place], alpha=0.2, linewidth=0)


def require(table: pd.DataFrame, name: str, columns: tuple[str, ...], *, one_row_for: tuple[str, ...] = ()) -> None:
    """Refuse a table without these columns or without rows, or with several rows for one value of some of them."""
    wanted = f"give the table that {name} makes"
    if not isinstance(table, pd.DataFrame):
        raise NeuronShareError(f"{name} is a {type(table).__name__}; {wanted}.")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise NeuronShareError(f"{name} lacks the column(s) {', '.join(missing)}; {wanted}.")
    if table.empty:
        raise NeuronShareError(f"{name} has no rows; {wanted}.")
    if one_row_for and table.duplicated(list(one_row_for)).any():
        raise NeuronShareError(f"{name} has several rows for one {' and '.join(one_row_for)}; {wanted} of one result.")


def of_language(rows: pd.DataFrame, language: str) -> pd.DataFrame:
    """Take the rows of one language; refuse a language that is not in the table."""
    known = list(rows["language"].unique())
    if language not in known:
        raise NeuronShareError(f"language={language!r} is not in the table; use one of {', '.join(known)}.")
    return rows[rows["language"] == language]


def layer_axis(axes: Axes) -> None:
    """Make the axis one of layers, which are whole numbers."""
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def heatmap(
    axes: Axes,
    table: pd.DataFrame,
    *,
    title: str,
    limits: tuple[float, float] | None = None,
    signed: bool = False,
) -> AxesImage:
    """Draw a table of numbers as a heat map, with the numbers where there is room; gaps stay white. Return the image.

    Without `limits` it has a colour bar and, in few cells, the numbers. With them it is one of several with the same
    colours, which share a bar.

    Args:
        axes: where to draw.
        table: the numbers; its columns and its index name the cells.
        title: the name of the panel.
        limits: the numbers at the ends of the colours; by default the least and the largest of the table.
        signed: whether 0 is in the middle of the colours, and numbers on both sides differ in hue.
    """
    values = table.to_numpy(float)
    low, high = limits or limits_of(table, signed=signed)
    image = axes.imshow(values, cmap="PuOr_r" if signed else "cividis", vmin=low, vmax=max(high, low + 1e-9))
    columns, rows = ([str(name).replace("/", "/\n") for name in names] for names in (table.columns, table.index))
    axes.set_xticks(range(table.shape[1]), columns, rotation=90 if max(map(len, table.columns)) > 3 else 0)
    axes.set_yticks(range(len(table)), rows)
    axes.tick_params(labelsize=7, length=0)
    for (row, column), value in np.ndenumerate(values):
        if limits is None and max(table.shape) <= _FEW_CELLS and not np.isnan(value):
            is_light = abs(value) < 0.6 * high if signed else value > (low + high) / 2
            axes.text(
                column, row, _short(value), ha="center", va="center", fontsize=6, color="black" if is_light else "white"
            )
    axes.spines[:].set_visible(False)
    name_panel(axes, title)
    if limits is None:
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.85)
        bar.ax.tick_params(labelsize=7)
    return image


def limits_of(*tables: pd.DataFrame, signed: bool = False) -> tuple[float, float]:
    """Return the least and the largest number of some tables; if `signed`, as far from 0 on both sides."""
    shown = np.concatenate([table.to_numpy(float).ravel() for table in tables])
    shown = shown[~np.isnan(shown)]
    if not len(shown):
        return (-1.0, 1.0) if signed else (0.0, 1.0)
    most = float(np.abs(shown).max())
    return (-most, most) if signed else (float(shown.min()), float(shown.max()))


def _short(value: float) -> str:
    """A number with two digits behind the point and none before it where that is 0: .25, -.25, 1.25, and 1."""
    text = f"{value:.2f}" if value != 1 else "1"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
