"""Which neurons a study ablates and what its controls draw, without a model."""

from __future__ import annotations

import torch

import tl_neuronshare as ns
from tl_neuronshare.ablation import controls


def test_selection_alone_knows_no_model():
    """A sharing that is made by hand is enough."""
    activated = torch.rand(6, 3, 2, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    sharing = ns.NeuronSharing.from_activated(activated, languages=["en", "de", "fr"])
    prompts = ns.ParallelPrompts({language: list("abcdef") for language in sharing.languages})
    selection = controls.Selection(
        sharing, prompts, [ns.NeuronType.SPECIFIC], layers=None, consistent=None, one_mask=False, equal_size=False
    )
    assert selection.drawable(ns.NeuronType.SPECIFIC, "random").examples.all()
    assert torch.equal(selection.drawn(ns.NeuronType.SPECIFIC, 0, [2]), sharing.mask("specific")[[2]])
