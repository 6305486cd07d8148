"""Types and tables, against the definition and brute force; no model."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import subprocess
import sys
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

import tl_neuronshare as ns
from support.markup import table_in
from tl_neuronshare.maths.activation import pack
from tl_neuronshare.maths.totals import Counts
from tl_neuronshare.prompts import hashes_of

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
def test_no_activation_is_lost(activated):
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
    sharing = ns.NeuronSharing.from_activated(
        activated, languages=["en", "de"], widths=[10, 4], hooks=["first", "second"]
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
    assert sharing.packed.nbytes == 10 * 4 * 3 * 512 / 8


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


@given(activations())
def test_persistence_equals_brute_force(activated):
    """The share that is of a type for every example, beside the average: the paper's third finding."""
    table = sharing_of(activated).persistence().set_index(["layer", "type"])
    n_examples, _, n_layers, width = activated.shape
    assert list(table.columns) == ["average", "every", "chance"]
    assert len(table) == 4 * n_layers
    for layer, label in itertools.product(range(n_layers), LABELS):
        of_type = [
            [by_definition(tuple(activated[e, :, layer, n].tolist())) == label for e in range(n_examples)]
            for n in range(width)
        ]
        row = table.loc[(layer, label)]
        assert row["every"] == pytest.approx(100 * sum(map(all, of_type)) / width)
        assert row["average"] == pytest.approx(100 * sum(map(sum, of_type)) / width / n_examples)
        shares = [sum(column) / width for column in zip(*of_type, strict=True)]
        assert row["chance"] == pytest.approx(100 * math.prod(shares), abs=1e-9)


@settings(max_examples=20)
@given(activations())
def test_never_activated_equals_brute_force(activated):
    table = sharing_of(activated).never_activated().set_index(["layer", "language"])
    n_examples, n_languages, n_layers, width = activated.shape
    assert len(table) == n_layers * (n_languages + 1)
    for layer, index in itertools.product(range(n_layers), range(n_languages + 1)):
        of_languages = list(range(n_languages)) if index == n_languages else [index]
        silent = [
            [not any(activated[e, la, layer, n] for la in of_languages) for n in range(width)]
            for e in range(n_examples)
        ]
        row = table.loc[(layer, "all" if index == n_languages else f"l{index}")]
        check(row, [100 * sum(one) / width for one in silent])
        assert row["every"] == pytest.approx(100 * sum(map(all, zip(*silent, strict=True))) / width)


# Chance levels.


def test_what_is_no_number_of_draws_no_seed_and_no_language_is_refused(as_users_run_it):
    sharing = sharing_of(torch.rand(4, 2, 1, 9) > 0.5)
    for mismatches in (-1, 1.5, "a", True):
        with pytest.raises(ns.NeuronShareError, match="mismatches=.*; give a whole number, at least 0"):
            sharing.summary(mismatches=mismatches)
    with pytest.raises(ns.NeuronShareError, match="seed=None is not a whole number"):
        sharing.mismatched(seed=None)
    with pytest.raises(ns.NeuronShareError, match="A language is called 'all'"):
        ns.NeuronSharing.from_activated(sharing.activated(), languages=["en", "all"])


@settings(max_examples=20)
@given(activations())
def test_independent_types_equal_brute_force(activated):
    """Every combination of languages that a neuron could be activated in, with its probability."""
    table = sharing_of(activated).summary(mismatches=0).set_index(["layer", "type"])
    n_examples, n_languages, n_layers, _ = activated.shape
    for layer in range(min(2, n_layers)):
        expected = dict.fromkeys(LABELS, 0.0)
        for example in range(n_examples):
            shares = activated[example, :, layer].double().mean(-1).tolist()
            for row in itertools.product([False, True], repeat=n_languages):
                likely = math.prod(p if on else 1 - p for p, on in zip(shares, row, strict=True))
                expected[by_definition(row)] += 100 * likely / n_examples
        for label in LABELS:
            assert table.loc[(layer, label), "independent"] == pytest.approx(expected[label], abs=1e-9)


def test_independent_types_are_what_random_neurons_give():
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(40, 4, 1, 1, generator=generator)
    activated = torch.rand(40, 4, 1, 2000, generator=generator) < shares
    summary = sharing_of(activated).summary()
    np.testing.assert_allclose(summary["independent"], summary["mean"], atol=0.3)
    assert (summary["independent"] - summary["mismatched"]).abs().max() > 1  # each example has shares of its own


def test_excess_is_what_is_shared_because_it_is_the_same_input():
    """Of 400 neurons 40 are active in all prompts, 80 for one input in all languages, and the others by chance."""
    generator = torch.Generator().manual_seed(0)
    activated = torch.rand(60, 3, 2, 400, generator=generator) < 0.3
    activated[..., :40] = True
    of_input = torch.rand(60, 1, 2, 80, generator=generator) < 0.5
    activated[..., 40:120] = of_input
    table = sharing_of(activated).summary().query("type == 'all-shared'")
    expected = 100 * 80 / 400 * (0.5 - 0.5**3)  # what mismatched examples lack
    assert ((table["excess_low"] < expected) & (expected < table["excess_high"])).all()
    assert (table["excess_high"] - table["excess_low"]).max() < 1
    without = sharing_of(activated[:, :, :, 120:]).summary().query("type == 'all-shared'")
    assert ((without["excess_low"] < 0) & (without["excess_high"] > 0)).all()


@settings(max_examples=20)
@given(activations(), st.integers(0, 5))
def test_mismatched_examples_equal_brute_force(activated, seed):
    sharing = sharing_of(activated)
    n_examples, n_languages, n_layers, width = activated.shape
    if n_examples < n_languages:
        assert sharing.summary()["mismatched"].isna().all()
        with pytest.raises(ns.NeuronShareError, match=f"{n_examples} .* for {n_languages} languages; a different one"):
            sharing.mismatched(seed=seed)
        return
    moved = sharing.mismatched(seed=seed)
    offsets = moved.metadata["mismatched"]
    assert len({offset % n_examples for offset in offsets}) == n_languages  # nowhere the same example twice
    for language, offset in enumerate(offsets):
        assert torch.equal(moved.activated()[:, language], activated[:, language].roll(-offset, dims=0))
    summary = sharing.summary(mismatches=2, seed=seed).set_index(["layer", "type"])
    other = sharing.mismatched(seed=seed + 1)
    for layer, label in itertools.product(range(n_layers), LABELS):
        found = [
            sum(by_definition(tuple(one.activated()[e, :, layer, n].tolist())) == label for n in range(width))
            for one in (moved, other)
            for e in range(n_examples)
        ]
        row = summary.loc[(layer, label)]
        assert row["mismatched"] == pytest.approx(100 * sum(found) / len(found) / width)
        assert row["excess"] == pytest.approx(row["mean"] - row["mismatched"], abs=1e-9)
        assert np.isnan(row["excess_low"]) == (n_examples < 10)


def jaccard(activated: torch.Tensor, first: int, second: int, layers: list[int]) -> float:
    """Mean over examples of |A and B| / |A or B|; examples in which both are empty do not count."""
    indices = []
    for example in range(len(activated)):
        one, other = (
            {(layer, n) for layer in layers for n in activated[example, la, layer].nonzero().flatten().tolist()}
            for la in (first, second)
        )
        if one | other:
            indices.append(len(one & other) / len(one | other))
    return sum(indices) / len(indices) if indices else float("nan")


@given(activations())
def test_overlap_equals_brute_force(activated):
    sharing = sharing_of(activated)
    n_layers = activated.shape[2]
    for layer in (None, *range(n_layers)):
        table = sharing.overlap(layer)
        assert list(table.index) == list(table.columns) == list(sharing.languages)
        layers = list(range(n_layers)) if layer is None else [layer]
        expected = [
            [jaccard(activated, first, second, layers) for second in range(activated.shape[1])]
            for first in range(activated.shape[1])
        ]
        np.testing.assert_allclose(table.to_numpy(), np.array(expected), atol=1e-9)


def test_results_are_the_same_to_the_bit_however_examples_are_cut(monkeypatch):
    sharing = sharing_of(torch.rand(23, 3, 2, 40, generator=torch.Generator().manual_seed(0)) > 0.6)
    tables = {
        **{name: getattr(sharing, name) for name in ("summary", "by_language", "persistence", "never_activated")},
        "overlap": sharing.overlap,
        "language_overlap": lambda: ns.language_overlap(sharing, n_resamples=100),
    }
    tensors = {
        "types": lambda: sharing.types,
        "mask": lambda: sharing.mask("specific"),
        "intersections": sharing.intersections,
        "times": sharing.times_of_types,
        "moved": lambda: sharing.mismatched().packed,
    }
    at_once = {name: make() for name, make in (tables | tensors).items()}
    for n_bytes in (1, 5 * 8 * sharing.packed[0].numel()):  # one example at a time, and five
        monkeypatch.setattr(ns.results.bits, "_CHUNK_BYTES", n_bytes)
        for name, make in tables.items():
            pd.testing.assert_frame_equal(make(), at_once[name], check_exact=True)
        for name, make in tensors.items():
            assert torch.equal(make(), at_once[name])


@pytest.mark.parametrize("n_languages", [2, 3, 9])
def test_types_and_masks_of_some_examples(n_languages):
    activated = torch.rand(6, n_languages, 3, 21, generator=torch.Generator().manual_seed(1)) > 0.4
    sharing, types = sharing_of(activated), ns.neuron_types(activated)
    assert torch.equal(sharing.types, types)
    for examples in ([3], [5, 0, 0, 2], range(1, 4)):
        assert torch.equal(sharing.types_of(examples), types[list(examples)])
        for type in ns.NeuronType:
            assert torch.equal(sharing.mask(type, examples=examples), types[list(examples)] == type)
    assert torch.equal(sharing.times_of_types(), torch.stack([(types == type).sum(0) for type in ns.NeuronType]))


def test_statistics_are_exact():
    """The deviation of counts that hardly differ, of which a sum of squares in floating point would keep nothing."""
    counts = Counts()
    for piece in torch.tensor([10**9, 10**9, 10**9 + 1]).split(1):
        counts.add(piece[:, None])
    statistics = counts.statistics([100])
    assert statistics["std"].item() == pytest.approx(math.sqrt(2) / 3, rel=1e-15)
    assert statistics["mean"].item() == pytest.approx(10**9 + 1 / 3, rel=1e-15)


def test_mismatched_examples_stay_where_they_are(tmp_path):
    """No bits are copied; whatever is asked of them is as of a result that holds them in that order."""
    sharing = sharing_of(torch.rand(11, 3, 2, 21, generator=torch.Generator().manual_seed(0)) > 0.5)
    moved = sharing.mismatched(seed=2)
    assert moved.bits.stored.data_ptr() == sharing.packed.data_ptr()
    offsets = moved.metadata["mismatched"]
    rolled = [sharing.activated()[:, place].roll(-offset, 0) for place, offset in enumerate(offsets)]
    held = ns.NeuronSharing.from_activated(torch.stack(rolled, dim=1), languages=sharing.languages)
    assert moved == held == moved
    assert moved != sharing
    assert torch.equal(moved.types, held.types)
    assert torch.equal(moved.activated([9, 0], language="l1"), held.activated([9, 0], language="l1"))
    assert moved[3:7] == held[3:7]
    assert moved[::-1][[0, 4]] == held[[10, 6]]
    assert ns.NeuronSharing.concatenate([moved, sharing]) == ns.NeuronSharing.concatenate([held, sharing])
    assert moved.mismatched(seed=5) == held.mismatched(seed=5)
    for table in ("summary", "by_language", "persistence", "never_activated"):
        pd.testing.assert_frame_equal(getattr(moved, table)(), getattr(held, table)(), check_exact=True)
    moved.save(tmp_path / "moved")
    assert ns.NeuronSharing.load(tmp_path / "moved") == held


FLAT = """
import sys, threading, time, torch
import tl_neuronshare as ns
from tl_neuronshare.results.files import Stream
from tl_neuronshare.results.sharing import write_sharing

def memory():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon"))) / 1024

def peak(step):
    least, most, done = memory(), [], False
    def watch():
        while not done:
            most.append(memory())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    done = True
    watcher.join()
    return max(most) - least

def pieces(n):
    for _ in range(0, n, 500):
        yield torch.randint(0, 256, (500, 4, 4, 64), generator=generator, dtype=torch.uint8)

def tables(sharing):
    sharing.summary(), sharing.by_language(), sharing.persistence(), sharing.never_activated(), sharing.overlap()
    sharing.mismatched().save(sys.argv[1] + ".moved")
    ns.language_overlap(sharing, n_resamples=50)
    ns.side_by_side({"a": sharing[: len(sharing) // 2], "b": sharing[len(sharing) // 2 :]}, name="task")

generator, how = torch.Generator().manual_seed(0), {"widths": [512] * 4, "hooks": list("abcd"), "metadata": {}}
for n in (5_000, 80_000):
    write_sharing(sys.argv[1], Stream((n, 4, 4, 64), torch.uint8, pieces(n)), languages=["en", "de", "th", "zh"],
                  prompt_hashes=None, **how)
    sharing = ns.NeuronSharing.load(sys.argv[1])
    print(peak(lambda: tables(sharing)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tables_take_no_more_memory_for_more_examples(tmp_path):
    run = [sys.executable, "-c", FLAT, str(tmp_path / "file")]
    few, many = map(float, subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())
    assert many < few + 20  # MiB; the bits alone are 78


# Layers of different width.


def ragged() -> tuple[ns.NeuronSharing, list[torch.Tensor]]:
    """Three layers of 5, 12 and 3 neurons, and each layer's activations for itself."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(4, 3, width, generator=generator) > 0.5 for width in (5, 12, 3)]
    activated = torch.stack([torch.nn.functional.pad(layer, (0, 12 - layer.shape[-1])) for layer in layers], dim=2)
    hooks = ["blocks.0.mlp.hook_post", "blocks.2.mlp.hook_post", "blocks.7.mlp.hook_post"]
    return ns.NeuronSharing.from_activated(
        activated, languages=["en", "de", "fr"], widths=[5, 12, 3], hooks=hooks
    ), layers


def test_layers_of_different_width_are_as_each_for_itself(tmp_path):
    """Padding is type 255, in no mask and in no percentage."""
    sharing, layers = ragged()
    assert (sharing.d_mlp, sharing.widths) == (12, (5, 12, 3))
    assert sharing.hooks[1] == "blocks.2.mlp.hook_post"
    sharing.save(tmp_path / "ragged")
    for result in (sharing, ns.NeuronSharing.load(tmp_path / "ragged"), ns.NeuronSharing.concatenate([sharing])):
        for number, (layer, width) in enumerate(zip(layers, result.widths, strict=True)):
            alone = sharing_of(layer.unsqueeze(2))
            assert torch.equal(result.types[:, number, :width], alone.types[:, 0])
            assert (result.types[:, number, width:] == 255).all()
            assert not any(result.mask(type)[:, number, width:].any() for type in ns.NeuronType)
            assert not result.activated()[:, :, number, width:].any()
            for table in ("summary", "by_language", "persistence", "never_activated"):
                ours = getattr(result, table)().query("layer == @number").drop(columns="layer").reset_index(drop=True)
                theirs = getattr(alone, table)().drop(columns="layer").replace({"l0": "en", "l1": "de", "l2": "fr"})
                pd.testing.assert_frame_equal(ours, theirs)
            np.testing.assert_allclose(result.overlap(number).to_numpy(), alone.overlap().to_numpy())


# Concatenation.


def test_concatenation_joins_examples_and_says_what_differs():
    activated = torch.rand(5, 2, 2, 9, generator=torch.Generator().manual_seed(0)) > 0.5

    def part(examples, **metadata):
        return ns.NeuronSharing.from_activated(activated[examples], languages=["en", "de"], metadata=metadata)

    first = part(slice(0, 2), threshold=0.0, device="cpu", borderline_fraction=0.5)
    second = part(slice(2, 5), threshold=0.0, device="cuda", borderline_fraction=0.0)
    both = ns.NeuronSharing.concatenate([first, second])
    assert torch.equal(both.activated(), activated)
    assert both.metadata == {"threshold": 0.0, "device": ["cpu", "cuda"], "borderline_fraction": pytest.approx(0.2)}
    with pytest.raises(ns.NeuronShareError, match="Result 1 has threshold 0.5, result 0 0.0; concatenate results that"):
        ns.NeuronSharing.concatenate([first, part(slice(2, 5), threshold=0.5)])
    with pytest.raises(ns.NeuronShareError, match=r"Result 1 has languages \('de', 'en'\), result 0 \('en', 'de'\)"):
        ns.NeuronSharing.concatenate([first, ns.NeuronSharing.from_activated(activated, languages=["de", "en"])])
    with pytest.raises(ns.NeuronShareError, match="no result to concatenate"):
        ns.NeuronSharing.concatenate([])


def test_results_of_other_weights_are_not_concatenated(animals):
    prompts = ns.ParallelPrompts({"en": ["The sky is"], "de": ["Der"]})
    bloom = ns.categorise(animals.lens("bloom", "bridge"), prompts)
    others = ns.NeuronSharing.from_activated(
        bloom.activated(), languages=["en", "de"], metadata=bloom.metadata | {"fingerprint": "0123-4567"}
    )
    with pytest.raises(ns.NeuronShareError, match="Result 1 has fingerprint of the weights '0123', result 0 "):
        ns.NeuronSharing.concatenate([bloom, others])


def test_results_are_unpacked_anew_at_each_call_and_let_go(animals):
    sharing = ns.categorise(animals.lens("bloom", "bridge"), ns.ParallelPrompts({"en": ["a"], "de": ["b"]}))
    made = [sharing.activated(), sharing.types, sharing.mask("specific")]
    references = [weakref.ref(tensor) for tensor in made]
    del made
    assert [reference() for reference in references] == [None] * 3


@pytest.mark.usefixtures("as_users_run_it")
def test_layers_of_a_result_that_are_not_there(bloom, prompts):
    sharing = ns.categorise(bloom, prompts)
    for layer in (3, -1, "0", True, 1.0):
        with pytest.raises(
            ns.NeuronShareError, match="There is no layer .*; use 0 to 2, or None for all|give one of 0 to 2"
        ):
            sharing.overlap(layer)
    activated = torch.ones(1, 2, 2, 8, dtype=torch.bool)
    with pytest.raises(ns.NeuronShareError, match=r"Neurons beyond the widths \(8, 4\) are activated"):
        ns.NeuronSharing.from_activated(activated, languages=["en", "de"], widths=[8, 4])
    with pytest.raises(
        ns.NeuronShareError, match=r"The widest of the layers has 4 neurons, the tensor 8|widest layer of"
    ):
        ns.NeuronSharing.from_activated(activated, languages=["en", "de"], widths=[4, 4])


@pytest.mark.usefixtures("as_users_run_it")
def test_files(tmp_path):
    sharing = ns.NeuronSharing.from_activated(torch.ones(1, 2, 1, 8, dtype=torch.bool), languages=["en", "de"])
    with pytest.raises(ns.NeuronShareError, match="There is no file .*missing"):
        ns.NeuronSharing.load(tmp_path / "missing")
    with pytest.raises(ns.NeuronShareError, match="no directory.*absent"):
        sharing.save(tmp_path / "absent" / "file")
    with pytest.raises(ns.NeuronShareError, match="is a directory; name a file in it"):
        sharing.save(tmp_path)
    odd = ns.NeuronSharing.from_activated(
        torch.ones(1, 2, 1, 8, dtype=torch.bool), languages=["en", "de"], metadata={"model": object()}
    )
    with pytest.raises(ns.NeuronShareError, match="metadata cannot be saved.*object is not JSON"):
        odd.save(tmp_path / "odd")
    corrupt = tmp_path / "corrupt"
    sharing.save(corrupt)
    corrupt.write_bytes(corrupt.read_bytes()[:-1])
    with pytest.raises(ns.NeuronShareError, match="cannot be read.*damaged"):
        ns.NeuronSharing.load(corrupt)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ns.NeuronShareError, match="cannot be read.*damaged"):
        ns.NeuronSharing.load(tmp_path / "text")
    save_file({"packed": torch.zeros(2)}, tmp_path / "foreign", {"format": json.dumps("another/1")})
    with pytest.raises(ns.NeuronShareError, match="holds no NeuronSharing"):
        ns.NeuronSharing.load(tmp_path / "foreign")
    save_file({"packed": torch.zeros(2)}, tmp_path / "plain", {"format": "pt"})
    with pytest.raises(ns.NeuronShareError, match="holds no NeuronSharing"):
        ns.NeuronSharing.load(tmp_path / "plain")
    with pytest.raises(ns.NeuronShareError, match="There is no file"):
        ns.NeuronSharing.load(tmp_path)


HEADER = {"languages": ["a", "b"], "widths": [8], "hooks": ["h"], "metadata": {}}
TAMPERED = {
    "a key is missing": ({"widths": None}, torch.uint8, "cannot be read.*widths"),
    "a key of another kind": ({"languages": 5}, torch.uint8, "languages=5; give a list of names"),
    "numbers as languages": ({"languages": [1, 2]}, torch.uint8, r"languages=\[1, 2\]; give a list of names"),
    "a text as languages": ({"languages": "ab"}, torch.uint8, "languages='ab'; give a list of names"),
    "a language twice": ({"languages": ["a", "a"]}, torch.uint8, "not all different"),
    "other widths": ({"widths": [9]}, torch.uint8, "shape"),
    "other numbers": ({}, torch.float32, "torch.float32"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("change", "dtype", "message"), TAMPERED.values(), ids=TAMPERED)
def test_tampered_files(tmp_path, change, dtype, message):
    header = {key: json.dumps(value) for key, value in (HEADER | change).items() if value is not None}
    packed = torch.zeros(1, 2, 1, 1, dtype=dtype)
    save_file({"packed": packed}, tmp_path / "file", {"format": "tl_neuronshare.NeuronSharing/1", **header})
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.NeuronSharing.load(tmp_path / "file")


@pytest.mark.usefixtures("as_users_run_it")
def test_results_refuse_what_they_cannot_give():
    sharing = ns.NeuronSharing.from_activated(torch.ones(1, 2, 1, 8, dtype=torch.bool), languages=["en", "de"])
    with pytest.raises(
        ns.NeuronShareError, match="'shared' is not a type of neuron; use one of all-shared, partial-shared"
    ):
        sharing.mask("shared")
    with pytest.raises(ns.NeuronShareError, match=r"bare number; write sharing\[\[0\]\]"):
        sharing[0]
    with pytest.raises(ns.NeuronShareError, match=r"slice\(5, None, None\)\] selects none of the 1 examples"):
        sharing[5:]
    with pytest.raises(ns.NeuronShareError, match=r"bare number; write sharing\[\[0\]\]"):
        sharing.activated(0)
    for odd in (torch.ones(1, 2, 1, 8), torch.ones(2, 1, 8, dtype=torch.bool), [[[[True]]]]):
        with pytest.raises(ns.NeuronShareError, match="activated is not a boolean tensor with axes example, language"):
            ns.NeuronSharing.from_activated(odd, languages=["en", "de"])
    for odd in ({0.0: sharing}, [sharing, None], sharing):
        with pytest.raises(
            ns.NeuronShareError, match="results is not a list of NeuronSharing; with several thresholds"
        ):
            ns.NeuronSharing.concatenate(odd)
    with pytest.raises(ns.NeuronShareError, match="1 language"):
        ns.neuron_types(torch.ones(1, 1, 4, dtype=torch.bool))
    with pytest.raises(ns.NeuronShareError, match="torch.float32 of shape .*give booleans"):
        ns.neuron_types(torch.ones(2, 1, 4))
    with pytest.raises(ns.NeuronShareError, match="shape"):
        ns.NeuronSharing.from_activated(torch.ones(1, 2, 1, 8, dtype=torch.bool), languages=["en", "de", "fr"])


# Hashes of prompts, and files of other kinds.

PROMPTS = {"en": ["Red and", "Two and", "One"], "de": ["Rot und", "Zwei und", "Eins"]}


def with_hashes() -> ns.NeuronSharing:
    prompts = ns.ParallelPrompts(PROMPTS)
    bits = pack(torch.rand(3, 2, 2, 21, generator=torch.Generator().manual_seed(0)) > 0.5)
    metadata = {"fingerprint": "0123456789abcdef-unknown", "threshold": 0.0}
    how = {"languages": ["en", "de"], "widths": [21, 21], "hooks": ["a", "b"], "metadata": metadata}
    return ns.NeuronSharing(bits, prompt_hashes=hashes_of(prompts), **how)


def test_a_file_of_the_older_kind_is_the_same_result(tmp_path):
    sharing = with_hashes()
    header = {name: getattr(sharing, name) for name in ("languages", "widths", "hooks", "metadata")}
    header["prompt_hashes"] = list(sharing.prompt_hashes)
    texts = {"format": "tl_neuronshare.NeuronSharing/1", **{key: json.dumps(value) for key, value in header.items()}}
    save_file({"packed": sharing.packed}, tmp_path / "older", texts)
    sharing.save(tmp_path / "now")
    for loaded in (ns.NeuronSharing.load(tmp_path / "older"), ns.NeuronSharing.load(tmp_path / "now")):
        assert loaded == sharing
        assert loaded.metadata == sharing.metadata
        assert loaded.prompt_hashes == sharing.prompt_hashes
        assert list(loaded.prompt_hashes) == list(hashes_of(ns.ParallelPrompts(PROMPTS)))


def test_hashes_go_with_their_examples():
    sharing, texts = with_hashes(), list(hashes_of(ns.ParallelPrompts(PROMPTS)))
    assert sharing.prompt_hashes == texts
    assert sharing[1:].prompt_hashes == texts[1:]
    assert sharing[[2, 0]].prompt_hashes == [texts[2], texts[0]]
    both = ns.NeuronSharing.concatenate([sharing[2:], sharing[:2]])
    assert both.prompt_hashes == [texts[2], *texts[:2]]
    of_texts = hashlib.sha256("".join(both.prompt_hashes).encode()).hexdigest()[:16]
    assert both.metadata["fingerprint"] == f"0123456789abcdef-{of_texts}"
    assert sharing.mismatched().prompt_hashes is None


@pytest.mark.usefixtures("as_users_run_it")
def test_hashes_that_are_none_are_refused():
    sharing = with_hashes()
    how = {name: getattr(sharing, name) for name in ("languages", "widths", "hooks", "metadata")}
    for odd in (["a b"] * 3, [*sharing.prompt_hashes[:2], "0123456789abcdef"], ["0123456789abcdeF"] * 3):
        with pytest.raises(ns.NeuronShareError, match="prompt_hashes are not the sixteen hexadecimal digits"):
            ns.NeuronSharing(sharing.packed, prompt_hashes=odd, **how)
    with pytest.raises(ns.NeuronShareError, match=r"prompt_hashes have shape \(2, 2\) for 3 examples in 2 languages"):
        ns.NeuronSharing(sharing.packed, prompt_hashes=sharing.prompt_hashes[:2], **how)


@pytest.mark.usefixtures("as_users_run_it")
def test_a_folder_is_its_one_result(tmp_path):
    sharing = with_hashes()
    for threshold in (0.0, 0.5):
        sharing.save(tmp_path / f"threshold-{threshold}.safetensors")
    with pytest.raises(ns.NeuronShareError, match="several thresholds: threshold-0.0.safetensors, threshold-0.5.safet"):
        ns.NeuronSharing.load(tmp_path)
    sharing.save(tmp_path / "sharing.safetensors")
    assert ns.NeuronSharing.load(tmp_path) == sharing


def values_of(generator, dtype=torch.float32):
    """Values of two languages in layers of 6 and 4 neurons."""
    values = {language: torch.randn(3, 2, 6, generator=generator).to(dtype) for language in ("en", "de")}
    for of_language in values.values():
        of_language[:, 1, 4:] = float("nan")  # there is no neuron
    return values


@pytest.mark.parametrize(("threshold", "dtype"), [(0.0, torch.float32), (0.3, torch.bfloat16), ("75%", torch.float32)])
def test_values_of_other_tools_are_compared_with_the_threshold(threshold, dtype):
    values = values_of(torch.Generator().manual_seed(0), dtype)
    sharing = ns.NeuronSharing.from_values(values, threshold=threshold, widths=[6, 4], metadata={"model": "mine"})
    for number, of_language in enumerate(values.values()):
        for layer, width in enumerate((6, 4)):
            for example in range(3):
                here = of_language[example, layer, :width].double()
                limit = here.quantile(0.75) if threshold == "75%" else threshold
                assert sharing.activated()[example, number, layer, :width].tolist() == (here > limit).tolist()
    assert not sharing.activated()[:, :, 1, 4:].any()
    assert sharing.metadata == {"model": "mine", "threshold": threshold}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: list(values.values()), "not a mapping from language to tensor"),
        (lambda values: {}, "not a mapping from language to tensor"),
        (lambda values: {"en": values["en"]}, "two languages"),
        (
            lambda values: values | {"de": values["de"][:2]},
            r"'de': values of shape \(2, 2, 6\), in the first \(3, 2, 6\)",
        ),
        (
            lambda values: values | {"de": values["de"][0]},
            "'de': the values are not a tensor of real numbers with axes",
        ),
        (lambda values: values | {"en": values["en"] > 0}, "'en': the values are not a tensor of real numbers"),
        (lambda values: values | {"en": [[[0.1]]]}, "'en': the values are not a tensor of real numbers"),
        (
            lambda values: values | {"de": values["de"].index_fill(0, torch.tensor(2), torch.inf)},
            "'de', example 2: NaN or",
        ),
    ],
)
def test_values_that_are_none_are_refused(change, message):
    values = {language: of_language.nan_to_num() for language, of_language in values_of(torch.Generator()).items()}
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.NeuronSharing.from_values(change(values))


def test_a_notebook_shows_the_types_of_some_examples_beside_chance():
    activated = torch.rand(250, 3, 2, 40, generator=torch.Generator().manual_seed(0)) > 0.4
    sharing = ns.NeuronSharing.from_activated(activated, languages=["en", "<b>de", "zh"], metadata={"model": "a<i>b"})
    html = sharing._repr_html_()
    table, expected = table_in(html), sharing[:200].summary().groupby("type")["mean"].mean()
    assert {type: row["% of a layer"] for type, row in table.items()} == expected.map("{:.1f}".format).to_dict()
    assert float(table["all-shared"]["if independent"]) == pytest.approx(100 * 0.6**3, abs=1)
    assert "the first 200 examples" in html
    assert "&lt;b&gt;de" in html
    assert "a&lt;i&gt;b" in html
    assert "<b>de" not in html
