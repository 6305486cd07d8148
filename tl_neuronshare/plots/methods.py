"""The figure that compares methods: how many neurons they find, how far they agree, and of which types these are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tl_neuronshare.arguments import explains
from tl_neuronshare.plots.drawing import (
    LABELS,
    bars,
    heatmap,
    layer_axis,
    legend_below,
    line,
    name_panel,
    places_of,
    require,
    styled_figure,
)


@explains
def methods(sizes: pd.DataFrame, agreement: pd.DataFrame, types: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw the sizes of methods' masks by layer, how far methods agree beside chance, and the types of their neurons.

    Args:
        sizes: the table of `methods.sizes`; lines are means over languages.
        agreement: the table of `methods.agreement`. Above the diagonal is the index, below it what chance gives.
        types: the table of `methods.types`; the black line in a bar is what chance gives.
        title: above all panels.

    Raises:
        NeuronShareError: a table without the columns that this needs.

    Examples:
        >>> masks = {"all": {"en": sharing.is_neuron}}
        >>> tables = [ns.methods.sizes(masks, is_neuron=sharing.is_neuron)]
        >>> tables += [ns.methods.agreement(masks, is_neuron=sharing.is_neuron), ns.methods.types(masks, sharing)]
        >>> [axes.get_title(loc="left") for axes in methods(*tables).axes[:3]]
        ['Neurons found', 'Jaccard index; chance below', 'Types of the neurons found; black: by chance']
    """
    require(sizes, "methods.sizes", ("method", "language", "layer", "percent"))
    require(agreement, "methods.agreement", ("method", "other", "language", "jaccard", "chance"))
    require(types, "methods.types", ("method", "language", "type", "percent", "chance"))
    with styled_figure(5.0, title) as figure:
        panels: dict[str, Axes] = figure.subplot_mosaic(
            [["sizes", "agreement"], ["types", "types"]], width_ratios=(1, 1.15)
        )
        _by_layer(panels["sizes"], sizes)
        overall = agreement[agreement["language"] == "all"]
        heatmap(panels["agreement"], _triangles(overall), title="Jaccard index; chance below")
        _by_type(panels["types"], types[types["language"] == "all"])
        legend_below(figure, panels["types"], columns=len(LABELS))
    return figure


def _by_layer(axes: Axes, sizes: pd.DataFrame) -> None:
    rows = sizes[sizes["layer"].astype(str) != "all"]
    rows = rows.assign(layer=rows["layer"].astype(int))
    for index, (method, of_method) in enumerate(rows.groupby("method", sort=False)):
        means = of_method.groupby("layer")["percent"].mean()
        line(axes, means.index, means, index, str(method))
    axes.set_ylabel("neurons of a language, percent")
    axes.set_ylim(bottom=0)
    layer_axis(axes)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    name_panel(axes, "Neurons found")


def _triangles(agreement: pd.DataFrame) -> pd.DataFrame:
    """The indices above the diagonal, and chance below it."""
    names = list(dict.fromkeys(agreement["method"]))
    pairs = agreement[agreement["method"] != agreement["other"]]
    above = pairs.pivot(index="method", columns="other", values="jaccard").reindex(index=names, columns=names)
    below = pairs.pivot(index="other", columns="method", values="chance").reindex(index=names, columns=names)
    return above.fillna(below)


def _by_type(axes: Axes, types: pd.DataFrame) -> None:
    names = list(dict.fromkeys(types["method"]))
    centres = np.arange(len(names))
    for number, label in enumerate(LABELS):
        rows = types[types["type"] == label].set_index("method").loc[names]
        series = (number, len(LABELS))
        places = places_of(centres, series)
        bars(axes, places, rows["percent"], None, series, label=label)
        width = 0.8 / len(LABELS) / 2
        axes.hlines(rows["chance"], places - width, places + width, color="black", linewidth=1.2)
    axes.set_xticks(centres, [name.replace("-", "-\n") for name in names])
    axes.set_ylabel("percent of its neurons")
    name_panel(axes, "Types of the neurons found; black: by chance")
