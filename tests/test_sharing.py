"""Types and tables, against the definition and brute force; no model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tl_neuronshare as ns
from tl_neuronshare.activation import pack, unpack

LABELS = {"all-shared", "partial-shared", "specific", "non-activated"}


def by_definition(row: tuple[bool, ...]) -> str:
    """The paper's definition for one neuron: how many of the languages activate it."""
    count = sum(row)
    if count == len(row):
        return "all-shared"
    if count > 1:
        return "partial-shared"
    return "specific" if count == 1 else "non-activated"


@pytest.mark.parametrize("n_languages", [2, 3, 5])
def test_every_combination_of_languages_has_its_type(n_languages):
    rows = list(itertools.product([False, True], repeat=n_languages))
    activated = torch.tensor(rows).T[:, None, :]  # language, one layer, a neuron for each combination
    types = ns.neuron_types(activated)[0].tolist()
    assert [ns.NeuronType(number).label for number in types] == [by_definition(row) for row in rows]


def activations():
    shapes = hnp.array_shapes(min_dims=4, max_dims=4, max_side=9).filter(lambda shape: shape[1] >= 2)
    return hnp.arrays(np.bool_, shapes).map(torch.from_numpy)


def sharing_of(activated: torch.Tensor) -> ns.NeuronSharing:
    return ns.NeuronSharing.from_activated(activated, languages=[f"l{i}" for i in range(activated.shape[1])])


@given(activations(), st.randoms())
def test_invariant_1_types_partition_the_neurons_whatever_the_order_of_languages(activated, rnd):
    sharing = sharing_of(activated)
    masks = torch.stack([sharing.mask(label) for label in sorted(LABELS)])
    assert (masks.sum(0) == 1).all()
    order = list(range(activated.shape[1]))
    rnd.shuffle(order)
    assert torch.equal(sharing_of(activated[:, order]).types, sharing.types)


@given(activations())
def test_packing_keeps_every_bit(activated):
    assert torch.equal(unpack(pack(activated), activated.shape[-1]), activated)
    assert torch.equal(sharing_of(activated).activated(), activated)


@given(activations())
def test_tables_equal_brute_force(activated):
    sharing = sharing_of(activated)
    n_examples, n_languages, n_layers, width = activated.shape
    summary = sharing.summary().set_index(["layer", "type"])
    by_language = sharing.by_language().set_index(["layer", "language"])
    assert len(summary) == 4 * n_layers
    assert len(by_language) == n_languages * n_layers
    for layer in range(n_layers):
        for label in LABELS:
            shares = [
                100
                * sum(by_definition(tuple(activated[e, :, layer, n].tolist())) == label for n in range(width))
                / width
                for e in range(n_examples)
            ]
            check(summary.loc[(layer, label)], shares)
        for index, language in enumerate(sharing.languages):
            check(
                by_language.loc[(layer, language)],
                [100 * row.float().mean().item() for row in activated[:, index, layer]],
            )


def check(row, shares):
    expected = [np.mean(shares), np.std(shares), min(shares), max(shares)]
    np.testing.assert_allclose(row[["mean", "std", "min", "max"]].astype(float), expected, atol=1e-4)


def test_layers_of_different_width_keep_their_own_neurons():
    activated = torch.ones(1, 2, 2, 10, dtype=torch.bool)
    activated[:, :, 1, 4:] = False  # the second layer has four neurons
    sharing = ns.NeuronSharing(
        pack(activated), languages=["en", "de"], widths=[10, 4], hooks=["first", "second"], metadata={}
    )
    assert sharing.d_mlp == 10
    assert sharing.types[0, 1].tolist() == [3] * 4 + [255] * 6
    assert sum(int(sharing.mask(label)[0, 1].sum()) for label in LABELS) == 4
    assert sharing.summary().query("layer == 1").set_index("type")["mean"]["all-shared"] == 100
    assert sharing.by_language().query("layer == 1")["mean"].tolist() == [100, 100]


def test_slicing_selects_examples():
    activated = torch.rand(5, 3, 2, 11, generator=torch.Generator().manual_seed(0)) > 0.5
    sharing = sharing_of(activated)
    assert len(sharing[1:3]) == 2
    assert torch.equal(sharing[1:3].types, sharing.types[1:3])
    assert torch.equal(sharing.activated(slice(1, 3)), activated[1:3])
    assert torch.equal(sharing[::-2].activated(), activated[[4, 2, 0]])


def test_one_bit_a_neuron_is_kept():
    sharing = sharing_of(torch.zeros(10, 4, 3, 512, dtype=torch.bool))
    assert sharing._packed.nbytes == 10 * 4 * 3 * 512 / 8


def test_save_and_load(tmp_path):
    sharing = ns.NeuronSharing.from_activated(
        torch.rand(4, 3, 2, 21) > 0.5, languages=["en", "中文", "th"], metadata={"model": "toy", "threshold": 0.5}
    )
    sharing.save(tmp_path / "s.safetensors")
    loaded = ns.NeuronSharing.load(tmp_path / "s.safetensors")
    assert loaded == sharing
    assert loaded.metadata == sharing.metadata
    assert loaded.widths == sharing.widths
    assert loaded.hooks == sharing.hooks


def test_mask_takes_a_label_a_type_or_its_number():
    sharing = sharing_of(torch.rand(2, 3, 2, 9) > 0.5)
    for type in ns.NeuronType:
        assert torch.equal(sharing.mask(type), sharing.mask(type.label))
