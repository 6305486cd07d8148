"""The figure that compares methods."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns


@pytest.fixture
def tables():
    generator = torch.Generator().manual_seed(0)
    activated = torch.rand(5, 3, 4, 50, generator=generator) < 0.4
    sharing = ns.NeuronSharing.from_activated(activated, languages=["en", "de", "th"])
    masks = {
        method: {language: torch.rand(4, 50, generator=generator) < 0.2 for language in sharing.languages}
        for method in ("lape", "bipartition")
    }
    return (
        ns.methods.sizes(masks, is_neuron=sharing.is_neuron),
        ns.methods.agreement(masks, is_neuron=sharing.is_neuron),
        ns.methods.types(masks, sharing),
    )


def test_what_is_drawn(tables):
    sizes, agreement, types = tables
    by_layer, square, by_type, *_ = (axes for axes in ns.plots.methods(*tables).axes if axes.get_title(loc="left"))
    for drawn, method in zip(by_layer.lines, ("lape", "bipartition"), strict=True):
        rows = sizes[(sizes["method"] == method) & (sizes["layer"].astype(str) != "all")]
        assert drawn.get_ydata() == pytest.approx(rows.groupby("layer")["percent"].mean().to_list())
        assert drawn.get_label() == method
    values = square.images[0].get_array()
    row = agreement.query("method == 'lape' and other == 'bipartition' and language == 'all'").iloc[0]
    assert (values[0, 1], values[1, 0]) == (pytest.approx(row["jaccard"]), pytest.approx(row["chance"]))
    heights = [bar.get_height() for bar in by_type.patches]
    expected = types[types["language"] == "all"]
    assert heights == pytest.approx(
        [expected[(expected["type"] == label) & (expected["method"] == method)]["percent"].item()
         for label in ("all-shared", "partial-shared", "specific", "non-activated")
         for method in ("lape", "bipartition")]
    )  # fmt: skip


def test_tables_of_others_are_refused(tables):
    sizes, agreement, types = tables
    with pytest.raises(ns.NeuronShareError, match=r"methods\.sizes lacks the column\(s\) percent"):
        ns.plots.methods(sizes.drop(columns="percent"), agreement, types)
