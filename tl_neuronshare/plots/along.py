"""The figure of types along a text: the prompt's last tokens, and the tokens of the answer."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tl_neuronshare.arguments import explains
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.plots.drawing import (
    COLOURS,
    LABELS,
    heatmap,
    legend_below,
    line,
    name_panel,
    require,
    styled_figure,
)

_LONGEST = 12  # letters of a token that are shown


@explains
def tokens(
    table: pd.DataFrame, texts: pd.DataFrame | None = None, *, example: object = None, language: str | None = None,
    title: str = "",
) -> Figure:  # fmt: skip
    """Draw the types at each step of a text, and by layer how many neurons are all-shared there.

    Args:
        table: `side_by_side(along.results, name="step")` of what `types_along` gives. Left, lines are means of layers
            and examples; dashes show the all-shared neurons with a different example in each language.
        texts: `along.tokens`, to write an example's tokens below the steps.
        example: which example's; the first by default.
        language: in which language; the first by default. Its letters must be in matplotlib's font.
        title: above both panels.

    Raises:
        NeuronShareError: a table without the columns that this needs, or no such example or language.

    Examples:
        >>> along = ns.types_along(model, ns.demo.prompts()[:4], before=2, after=1)
        >>> figure = tokens(ns.side_by_side(along.results, name="step"), along.tokens)
        >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
        ['Mean of layers', 'All-shared, % of the layer']
    """
    require(table, "side_by_side", ("step", "layer", "type", "mean", "mismatched"))
    means = table.groupby(["step", "type"])[["mean", "mismatched"]].mean().unstack("type")
    steps = [int(step) for step in means.index]
    names = [str(step) for step in steps]
    if texts is not None:
        said = _said(texts, example, language)
        names = [f"{step}\n{said.get(step, '')}" for step in steps]
    with styled_figure(3.4, title) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        for index, label in enumerate(LABELS):
            line(left, steps, means["mean", label], index, label)
        left.plot(
            steps,
            means["mismatched", "all-shared"],
            "--",
            color=COLOURS[0],
            linewidth=1,
            label="all-shared, mismatched",
        )
        left.set_ylabel("neurons (% of a layer)")
        left.set_ylim(bottom=0)
        left.set_xticks(steps, names, fontsize=7)
        name_panel(left, "Mean of layers")
        _mark_the_answer(left, 0.5)
        of_layers = table[table["type"] == "all-shared"].pivot(index="layer", columns="step", values="mean")
        heatmap(right, of_layers.set_axis(list(map(str, steps)), axis=1), title="All-shared, % of the layer")
        right.set_aspect("auto")  # steps are few, and layers many
        right.set_ylabel("layer")
        _mark_the_answer(right, steps.index(0) + 0.5 if 0 in steps else -1)
        for axes in (left, right):
            axes.set_xlabel("step (0: the prompt's last token)")
        legend_below(figure, left, columns=5)
    return figure


def _mark_the_answer(axes: Axes, place: float) -> None:
    """Draw a line between the prompt and the answer."""
    axes.axvline(place, color="#888888", linewidth=0.8, linestyle=":")


def _said(texts: pd.DataFrame, example: object, language: str | None) -> dict[int, str]:
    """One example's tokens in one language, by step."""
    require(texts, "types_along", ("example", "language", "step", "token"))
    example = texts["example"].iloc[0] if example is None else example
    language = texts["language"].iloc[0] if language is None else language
    rows = texts[(texts["example"] == example) & (texts["language"] == language)]
    if rows.empty:
        raise NeuronShareError(f"There are no tokens of example {example!r} in {language!r}; see the table's columns.")
    shown = rows["token"].str.strip().str.replace("$", r"\$").str.slice(0, _LONGEST)
    return dict(zip(rows["step"], shown, strict=True))
