"""Masks: draws of the right size from the right neurons, matches against brute force, files and tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import tl_neuronshare as ns
from support.masks import random_mask, seeded

LAPE = Path(__file__).parents[3] / "shared" / "data" / "lape"


@pytest.mark.parametrize("shape", [(3, 20), (5, 3, 20)])
def test_random_like_has_as_many_in_each_layer(shape):
    mask = random_mask(*shape)
    found = ns.random_like(mask, generator=seeded())
    assert torch.equal(found.sum(-1), mask.sum(-1))
    assert torch.equal(found, ns.random_like(mask, generator=seeded()))
    assert not torch.equal(found, ns.random_like(mask, generator=seeded(1)))


def test_random_like_draws_every_neuron_equally_often():
    mask = torch.zeros(1, 10, dtype=torch.bool)
    mask[0, :3] = True
    generator = seeded()
    counts = sum(ns.random_like(mask, generator=generator).int() for _ in range(3000))
    assert ((counts / 3000 - 0.3).abs() < 0.05).all()


def test_random_like_within():
    mask, within = random_mask(5, 3, 20), random_mask(5, 3, 20, share=0.8, seed=1)
    found = ns.random_like(mask, generator=seeded(), within=within)
    assert torch.equal(found.sum(-1), mask.sum(-1))
    assert not (found & ~within).any()
    everywhere = ns.random_like(mask, generator=seeded(), within=within[0])  # one for all examples
    assert not (everywhere & ~within[0]).any()
    within[3, 2] = False
    with pytest.raises(ns.NeuronShareError, match="example 3, layer 2: .* neurons are needed, but only 0 are to draw"):
        ns.random_like(mask, generator=seeded(), within=within)


def test_magnitude_matched_like_is_outside_and_as_near_as_can_be():
    """Each neuron has a twin outside the mask: the twins are found, whatever the order."""
    impact = torch.arange(1.0, 21).repeat_interleave(2)[None]
    mask = (torch.arange(40) % 4 == 0)[None]
    for seed in range(5):
        found = ns.magnitude_matched_like(mask, impact, generator=seeded(seed))
        assert torch.equal(found, torch.arange(40)[None] % 4 == 1)


def test_magnitude_matched_like_says_what_share_has_no_near_match():
    mask = torch.tensor([[True, True, False, False, False]])
    impact = torch.tensor([[1.0, 100.0, 1.05, 2.0, torch.nan]])
    with pytest.warns(UserWarning, match=r"For 50.0% of the mask's neurons no unused neuron .* within 10%"):
        found = ns.magnitude_matched_like(mask, impact, generator=seeded(3))
    assert not found[0, 4]  # no neuron there


def test_set_algebra_with_masks_of_types(animals, prompts):
    sharing = ns.categorise(animals.lens("bloom", "bridge"), prompts)
    union = sharing.mask("all-shared") | sharing.mask("partial-shared") | sharing.mask("specific")
    assert torch.equal(~union, sharing.mask("non-activated"))
    assert not (sharing.mask("specific") & sharing.mask("all-shared")).any()


def test_files(tmp_path):
    chosen = {"one": random_mask(3, 20), "each": random_mask(5, 3, 20)}
    ns.save_masks(chosen, tmp_path / "masks.safetensors")
    found = ns.load_masks(tmp_path / "masks.safetensors")
    assert set(found) == set(chosen)
    assert all(torch.equal(found[name], mask) for name, mask in chosen.items())
    ns.save_masks({"part": chosen["each"].expand(5, 3, 20)[:, 1:]}, tmp_path / "view")  # a view of a larger tensor
    assert torch.equal(ns.load_masks(tmp_path / "view")["part"], chosen["each"][:, 1:])


@pytest.mark.parametrize("shape", [(3, 20), (5, 3, 20)])
def test_tables(shape):
    mask = random_mask(*shape)
    table = ns.mask_to_frame(mask)
    assert list(table.columns) == ["example", "layer", "neuron"][-len(shape) :]
    assert len(table) == mask.sum()
    size = {"n_layers": 3, "d_mlp": 20, "n_examples": shape[0] if len(shape) == 3 else None}
    assert torch.equal(ns.mask_from_frame(table.sample(frac=1, random_state=0), **size), mask)
    assert not ns.mask_from_frame(table[:0], **size).any()


def test_lape_files_made_on_the_spot(tmp_path):
    torch.save([[torch.tensor([1, 2]), torch.tensor([], dtype=torch.long)]] * 2, tmp_path / "X.neuron.pth")
    found = ns.load_lape_neurons(tmp_path / "X.neuron.pth", d_mlp=4, languages=["xx", "yy"])
    assert list(found) == ["xx", "yy"]
    assert found["yy"].tolist() == [[False, True, True, False], [False] * 4]
    with pytest.raises(ns.NeuronShareError, match="holds 2 languages, and 6 are named"):  # the last ones may be missing
        ns.load_lape_neurons(tmp_path / "X.neuron.pth", d_mlp=4)


@pytest.mark.skipif(not LAPE.is_dir(), reason="LAPE's neurons are not beside the checkout")
@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("BLOOM-7B", (30, 16384), {"en": 445, "zh": 653, "fr": 680, "es": 918, "vi": 551, "id": 2823}),
        (
            "LLaMA-2-7B",
            (32, 11008),
            {"en": 95, "zh": 583, "fr": 1022, "es": 838, "vi": 836, "id": 1068, "ja": 582},
        ),
    ],
)
def test_published_lape_neurons(name, shape, counts):
    found = ns.load_lape_neurons(LAPE / f"{name}.neuron.pth", d_mlp=shape[1])
    assert {language: int(mask.sum()) for language, mask in found.items()} == counts
    assert all(mask.shape == shape for mask in found.values())
    raw = torch.load(LAPE / f"{name}.neuron.pth", weights_only=True)
    for language, layers in zip(found, raw, strict=True):
        table = ns.mask_to_frame(found[language])
        assert [sorted(layer.tolist()) for layer in layers] == [
            table.query("layer == @number")["neuron"].tolist() for number in range(shape[0])
        ]


MASKS = {
    "numbers": (torch.ones(3, 20), "The mask is torch.float32 of shape .3, 20.; give a boolean"),
    "one axis": (torch.ones(20, dtype=torch.bool), "The mask is torch.bool of shape .20,."),
    "a list": ([[True]], "The mask is list; give a boolean"),
}


@pytest.mark.usefixtures("as_users_run_it")
class TestBadInput:
    """What is refused, and how it is said."""

    @pytest.mark.parametrize(("mask", "message"), MASKS.values(), ids=MASKS)
    def test_masks(self, mask, message, tmp_path):
        for call in (
            lambda: ns.random_like(mask, generator=seeded()),
            lambda: ns.magnitude_matched_like(mask, torch.ones(3, 20), generator=seeded()),
            lambda: ns.save_masks({"x": mask}, tmp_path / "x"),
            lambda: ns.mask_to_frame(mask),
        ):
            with pytest.raises(ns.NeuronShareError, match=message):
                call()

    def test_matching(self):
        with pytest.raises(ns.NeuronShareError, match="impact has shape .2,., the mask .1, 2."):
            ns.magnitude_matched_like(random_mask(1, 2), torch.ones(2), generator=seeded())
        with pytest.raises(ns.NeuronShareError, match="impact is NaN or infinite for some of the mask's neurons"):
            ns.magnitude_matched_like(torch.tensor([[True, False]]), torch.full((1, 2), torch.nan), generator=seeded())
        most = torch.tensor([[True, True, False]])
        with pytest.raises(ns.NeuronShareError, match="layer 0: 2 neurons are needed, but only 1 are outside the mask"):
            ns.magnitude_matched_like(most, torch.ones(1, 3), generator=seeded())

    def test_tables_of_examples_and_shared_memory(self, tmp_path):
        mask = random_mask(2, 3, 20)
        with pytest.raises(ns.NeuronShareError, match="has a column example; say n_examples="):
            ns.mask_from_frame(ns.mask_to_frame(mask), n_layers=3, d_mlp=20)
        ns.save_masks({"all": mask, "first": mask[0]}, tmp_path / "x")  # two views of one tensor
        assert torch.equal(ns.load_masks(tmp_path / "x")["first"], mask[0])

    def test_files(self, tmp_path):
        with pytest.raises(ns.NeuronShareError, match="masks is not a mapping"):
            ns.save_masks([random_mask(1, 2)], tmp_path / "x")
        with pytest.raises(ns.NeuronShareError, match="make the directory first"):
            ns.save_masks({"x": random_mask(1, 2)}, tmp_path / "no" / "x")
        with pytest.raises(ns.NeuronShareError, match="There is no file"):
            ns.load_masks(tmp_path / "x")
        (tmp_path / "x").write_text("no masks")
        with pytest.raises(ns.NeuronShareError, match="cannot be read"):
            ns.load_masks(tmp_path / "x")
        ns.categorise(ns.demo.load_model(device="cpu"), ns.demo.prompts()[:1]).save(tmp_path / "sharing")
        with pytest.raises(ns.NeuronShareError, match="holds no masks"):
            ns.load_masks(tmp_path / "sharing")

    def test_tables(self):
        with pytest.raises(ns.NeuronShareError, match="lacks the column.s. neuron; it has layer"):
            ns.mask_from_frame(pd.DataFrame({"layer": [1]}), n_layers=2, d_mlp=2)
        with pytest.raises(ns.NeuronShareError, match="Row 1 of the table has neuron 2; there are 2, counted from 0"):
            ns.mask_from_frame(pd.DataFrame({"layer": [1, 1], "neuron": [0, 2]}), n_layers=2, d_mlp=2)

    def test_lape(self, tmp_path):
        with pytest.raises(ns.NeuronShareError, match="There is no file"):
            ns.load_lape_neurons(tmp_path / "x", d_mlp=2)
        (tmp_path / "x").write_text("no neurons")
        with pytest.raises(ns.NeuronShareError, match="cannot be read"):
            ns.load_lape_neurons(tmp_path / "x", d_mlp=2)
        torch.save({"en": 1}, tmp_path / "x")
        with pytest.raises(ns.NeuronShareError, match="not a list of languages"):
            ns.load_lape_neurons(tmp_path / "x", d_mlp=2)
        torch.save([[torch.tensor([5])]], tmp_path / "x")
        with pytest.raises(ns.NeuronShareError, match="'en', layer 0: neuron 5 is beyond d_mlp=2"):
            ns.load_lape_neurons(tmp_path / "x", d_mlp=2, languages=["en"])
        with pytest.raises(ns.NeuronShareError, match="holds 1 languages, and 2 are named"):
            ns.load_lape_neurons(tmp_path / "x", d_mlp=20, languages=["en", "zh"])
