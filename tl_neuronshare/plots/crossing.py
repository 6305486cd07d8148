"""The figure of cross-ablation: what each language loses without the neurons of each language, beside controls."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from tl_neuronshare.arguments import explains
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.plots.drawing import heatmap, limits_of, require, styled_figure

_UNIT = "nats a token"


@explains
def cross_ablation(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw the changes of log-probability as heat maps: rows are ablated languages, columns measured ones.

    Above are the masks and each control, with the same colours; below, what the masks change beyond each control.

    Args:
        table: the table of `cross_ablation`, with at least one control.
        title: above all panels.

    Raises:
        NeuronShareError: a table without the columns that this needs, or without a control.

    Examples:
        >>> texts = {"en": ["Country code of Peru → PE"], "de": ["Ländercode von Peru → PE"]}
        >>> masks = ns.methods.lape(ns.activation_rates(model, texts))
        >>> figure = cross_ablation(ns.cross_ablation(model, texts, masks, seeds=[0]))
        >>> [axes.get_title(loc="left") for axes in figure.axes[:3]]
        ['its neurons', 'random', 'magnitude']
    """
    require(table, "cross_ablation", ("ablated", "measured", "control", "difference", "vs_control"))
    masks = table[table["ablated"] != "none"]
    controls = [control for control in masks["control"].unique() if control != "none"]
    if not controls:
        raise NeuronShareError("The table has no control; call cross_ablation with controls=, such as random.")
    changes = {control: _square(masks, control, "difference") for control in ("none", *controls)}
    beyond = {control: _square(masks, control, "vs_control") for control in controls}
    n_rows, n_columns = changes["none"].shape
    with styled_figure(0.9 + 3.6 * max(0.6, n_rows / max(n_rows, n_columns)), title) as figure:
        panels = figure.subplots(2, 1 + len(controls), squeeze=False)
        limits = limits_of(*changes.values(), signed=True)
        for axes, (control, square) in zip(panels[0], changes.items(), strict=True):
            name = "its neurons" if control == "none" else control
            image = heatmap(axes, square, title=name, limits=limits, signed=True)
        figure.colorbar(image, ax=panels[0], label=f"change, {_UNIT}", shrink=0.85)
        panels[1, 0].set_axis_off()
        limits = limits_of(*beyond.values(), signed=True)
        for axes, (control, square) in zip(panels[1, 1:], beyond.items(), strict=True):
            image = heatmap(axes, square, title=f"its own − {control}", limits=limits, signed=True)
        figure.colorbar(image, ax=panels[1], label=f"difference, {_UNIT}", shrink=0.85)
        for axes in (panels[0, 0], panels[1, 1]):
            axes.set_ylabel("neurons of")
        for axes in panels.flatten():
            axes.set_xlabel("text in")
    return figure


def _square(table: pd.DataFrame, control: str, column: str) -> pd.DataFrame:
    """A column of a control's rows, by ablated and measured language in their order."""
    rows = table[table["control"] == control]
    square = rows.pivot(index="ablated", columns="measured", values=column)
    return square.reindex(index=rows["ablated"].unique(), columns=rows["measured"].unique())
