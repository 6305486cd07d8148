"""What controls draw and for which examples they can be drawn, without a model."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare.ablation import controls
from tl_neuronshare.ablation.targets import Choice, Targets, given_masks, masks_of_types


@pytest.fixture
def sharing() -> ns.NeuronSharing:
    activated = torch.rand(6, 3, 2, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    return ns.NeuronSharing.from_activated(activated, languages=["en", "de", "fr"])


@pytest.fixture
def prompts(sharing) -> ns.ParallelPrompts:
    return ns.ParallelPrompts({language: list("abcdef") for language in sharing.languages})


def draw_of(targets, target, control, examples):
    """What a control draws, where every neuron writes as much as its number."""
    impact = torch.arange(40.0).expand(len(examples), 2, 40).clone
    return controls.CONTROLS[control].draw(
        controls.Draw(targets, target, control, 0, "de", examples, targets.ablated(target, 0, examples), impact)
    )


def test_targets_of_types_know_no_model(sharing, prompts):
    targets = Targets(masks_of_types(sharing, ["specific"]), prompts.examples, [40, 40], Choice(), active=sharing)
    assert controls.drawable(controls.CONTROLS["random"], targets, "specific").examples.all()
    assert torch.equal(targets.ablated("specific", 0, [2]), sharing.mask("specific")[[2]])


@pytest.mark.parametrize("control", ["random", "random-active", "magnitude"])
def test_as_many_are_drawn_and_from_where_they_should_be(sharing, prompts, control):
    targets = Targets(masks_of_types(sharing, ["specific"]), prompts.examples, [40, 40], Choice(), active=sharing)
    can = controls.drawable(controls.CONTROLS[control], targets, "specific").examples.nonzero()[0].tolist()
    assert can
    drawn, mask = draw_of(targets, "specific", control, can).mask, sharing.mask("specific")[can]
    assert torch.equal(drawn.sum(-1), mask.sum(-1))
    if control == "random-active":
        assert not (drawn & ~sharing.activated(language="de")[can, 0]).any()
    if control == "magnitude":
        assert not (drawn & mask).any()


def test_a_mask_for_all_examples_has_one_random_draw_and_no_other_example(sharing, prompts):
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[:, :7] = True
    masks = given_masks({"mine": mask}, n_examples=6, widths=[40, 40])
    targets = Targets(masks, prompts.examples, [40, 40], Choice(), active=None)
    drawn = draw_of(targets, "mine", "random", [0, 3]).mask
    assert torch.equal(drawn[0], drawn[1])
    assert drawn.sum(-1).tolist() == [[7, 7], [7, 7]]
    notes = {name: controls.drawable(kind, targets, "mine").why_not for name, kind in controls.CONTROLS.items()}
    assert notes["other-example"] == "all examples have one mask"
    assert "give active=" in notes["random-active"]
    assert not notes["random"]


def test_options_choose_neurons_of_masks_too(sharing, prompts):
    masks = given_masks({"a": sharing.mask("specific")}, n_examples=6, widths=[40, 40])
    in_one_layer = Targets(masks, prompts.examples, [40, 40], Choice(layers=[1]), active=None)
    assert in_one_layer.counts["a"][:, 0].sum() == 0
    often = Targets(masks, prompts.examples, [40, 40], Choice(consistent=0.5), active=None)
    is_often = sharing.mask("specific").double().mean(0) >= 0.5
    assert torch.equal(often.ablated("a", 0, range(6)), sharing.mask("specific") & is_often)
    whole = often.whole("a", range(6))
    assert torch.equal(whole, sharing.mask("specific"))
