"""From prompts or caches to types: the types are right, and memory stays near one bit for each neuron."""

from __future__ import annotations

import itertools
import weakref
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tl_neuronshare as ns
from support.prompts import QUIZ
from support.toys import LAST, SETS
from support.watching import PeakMemory
from tl_neuronshare import models
from tl_neuronshare.models import fingerprint
from tl_neuronshare.running import recording, segments

WIDTH, LAYERS, EXAMPLES, LANGUAGES, BATCH = 1024, 2, 200, 12, 64
BITS = EXAMPLES * LANGUAGES * LAYERS * WIDTH / 8


@pytest.fixture
def many() -> ns.ParallelPrompts:
    """So many examples that kept bits need more memory than temporary values; each prompt has one to four tokens."""
    texts = ["0", "10", "210", "3210"] * (EXAMPLES // 4)
    return ns.ParallelPrompts({f"l{number}": texts for number in range(LANGUAGES)})


def peak_of(work: Any) -> int:
    with PeakMemory() as memory:
        work()
    return memory.peak


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk is small beside a real model's batch. Here everything is small, so the chunk must be smaller too.

    The values of several layers wait until they fill a chunk, and are then copied into one tensor.
    """
    monkeypatch.setattr(recording, "_CHUNK", 1 << 11)
    monkeypatch.setattr(fingerprint, "_CHUNK", 1 << 12)


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("position", ["last", "any"])
def test_memory_is_a_bit_a_neuron_beyond_the_bare_trunk(animals, backend, many, position):
    """At most 1.1 x examples x languages x layers x d_mlp / 8."""
    model = animals.lens(f"neox-{LAYERS}-{WIDTH}", backend)
    options = {"batch_size": BATCH, "progress": False, "position": position}
    longest = [models.tokenise(model, ["3210"])[0]] * BATCH

    def trunk():
        with models.left_as_found(model):
            models.run(model, models.inputs_of(model, longest))

    ns.categorise(model, many, **options)  # so that whatever is made only once exists before measuring
    extra = peak_of(lambda: ns.categorise(model, many, **options)) - peak_of(trunk)
    assert extra <= 1.1 * BITS
    assert extra >= 0.7 * BITS  # this shows that the measurement sees the bits


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
def test_six_thresholds_keep_six_bits(animals, many):
    model, thresholds = animals.lens(f"neox-{LAYERS}-{WIDTH}", "bridge"), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    one, six = (
        peak_of(lambda threshold=threshold: ns.categorise(model, many, threshold=threshold, batch_size=BATCH))
        for threshold in (0.0, thresholds)
    )
    assert 4.5 * BITS <= six - one <= 5 * 1.1 * BITS


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("position", ["last", "any", "all"])
def test_no_layer_is_held_until_the_next(animals, backend, position):
    """When a layer's hook fires, the values of earlier layers are gone: nothing keeps them."""
    model = animals.lens("gpt2", backend)
    values: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watch(tensor, hook):
        alive.append(sum(reference() is not None for reference in values))
        values.append(weakref.ref(tensor.untyped_storage()))

    prompts = ns.ParallelPrompts({"en": ["The sky is"], "de": ["Der Himmel ist"]})
    names = [(f"blocks.{layer}.mlp.hook_post", watch) for layer in range(12)]
    with model.hooks(fwd_hooks=names):
        ns.categorise(model, prompts, position=position, batch_size=2)
    assert len(alive) == 12
    assert max(alive) <= 1


def test_types_are_those_of_the_construction(toy_directory, backend):
    prompts = ns.ParallelPrompts({la: [f"sky {word}" for word in words] for la, words in LAST.items()})
    sharing = ns.categorise(ns.load_model(toy_directory, backend=backend, device="cpu"), prompts)
    for example, layer in itertools.product(range(len(prompts)), range(2)):
        for neuron, words in enumerate((SETS, SETS[::-1])[layer]):
            speakers = [language for language in LAST if LAST[language][example] in words]
            expected = {0: "non-activated", 1: "specific", 2: "partial-shared", 3: "all-shared"}[len(speakers)]
            assert sharing.mask(expected)[example, layer, neuron], (example, layer, words, speakers)
            found = sharing.activated()[example, :, layer, neuron]
            assert [la for la, active in zip(sharing.languages, found, strict=True) if active] == speakers
    assert sharing.metadata["borderline_fraction"] == 0


def test_caches_of_single_prompts_without_padding(bloom):
    """A cache of one string, a cache without its batch axis, and a cache of only the last position."""
    texts = {"en": "The capital of France is", "zh": "法国的首都是"}
    expected = ns.categorise(bloom, ns.ParallelPrompts({language: [text] for language, text in texts.items()}))
    run = partial(bloom.run_with_cache, prepend_bos=False)
    assert ns.categorise_caches({language: run(text)[1] for language, text in texts.items()}) == expected
    bare = {language: run(text, remove_batch_dim=True)[1] for language, text in texts.items()}
    assert ns.categorise_caches(bare) == expected
    cut = {la: run(text, names_filter=lambda n: n.endswith("hook_post"), pos_slice=-1)[1] for la, text in texts.items()}
    assert ns.categorise_caches(cut) == expected


def test_prompts_that_end_in_the_padding_token_are_not_taken_for_padded(bloom):
    """`categorise` knows the lengths, so an end token in the prompt itself is read like any other token."""
    prompts = ns.ParallelPrompts({"en": ["ab", "c<|end|>"], "de": ["<|end|>d", "ef"]})
    assert ns.categorise(bloom, prompts) == ns.categorise(bloom, prompts, batch_size=1)
    assert ns.categorise(bloom, prompts, position="any").metadata["batches"] == 1


@pytest.mark.usefixtures("as_users_run_it")  # the annotations ask for Python's
def test_numbers_of_numpy_serve_as_options(animals, prompts, tmp_path):
    model = animals.lens("bloom", "bridge")
    sharing = ns.categorise(model, prompts, threshold=np.float32(0.5), batch_size=np.int64(3))
    assert sharing == ns.categorise(model, prompts, threshold=0.5, batch_size=3)
    sharing.save(tmp_path / "file")
    assert ns.NeuronSharing.load(tmp_path / "file").metadata == sharing.metadata


def test_half_precision_is_loaded_and_recorded(animals, prompts):
    model = ns.load_model(animals.directory("llama"), device="cpu", dtype=torch.bfloat16)
    sharing = ns.categorise(model, prompts)
    assert sharing.metadata["dtype"] == "bfloat16"
    exact = ns.categorise(animals.lens("llama", "bridge"), prompts)
    assert (sharing.activated() != exact.activated()).float().mean() < 0.05


@pytest.mark.parametrize(("dtype", "value", "threshold"), [(torch.float64, 1e-60, 0.0), (torch.bfloat16, 0.1, 0.1)])
def test_values_are_compared_in_no_less_than_their_own_precision(animals, prompts, dtype, value, threshold):
    """1e-60 is 0 in single precision; bfloat16's 0.1 is 0.10009765625, above 0.1."""
    model = ns.load_model(animals.directory("bloom"), device="cpu", dtype=dtype)
    fill = [("blocks.2.mlp.hook_post", lambda tensor, hook: torch.full_like(tensor, value))]
    with model.hooks(fwd_hooks=fill):
        # One at a time: a padded BLOOM gives NaN in double precision, also in Hugging Face, so it is refused.
        assert ns.categorise(model, prompts, threshold=threshold, batch_size=1).activated()[:, :, 2].all()


def test_a_model_with_layers_of_different_width(animals):
    model = animals.narrowed_llama()
    prompts = ns.ParallelPrompts({"en": ["The sky is", "Cats"], "de": ["Der", "Katzen"]})
    uncut = animals.lens("llama", "bridge")
    for site, position in (("post", "last"), ("gate", "any")):
        sharing = ns.categorise(model, prompts, site=site, position=position)
        assert sharing.widths == (96, 40, 96)
        whole = ns.categorise(uncut, prompts, site=site, position=position)
        assert torch.equal(sharing.activated()[:, :, 1, :40], whole.activated()[:, :, 1, :40])
        assert (sharing.types[:, 1, 40:] == 255).all()


def test_categorising_needs_no_unembedding(animals, monkeypatch):
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    expected = ns.categorise(model, QUIZ)
    monkeypatch.delitem(model._modules, "unembed")
    assert ns.categorise(model, QUIZ) == expected


OPTIONS = {
    "site": ({"site": "pre"}, "site='pre' is unknown; use one of post, gate, up"),
    "position": ({"position": "first"}, "position='first' is unknown; use one of last, any, all, or a negative index"),
    "threshold": ({"threshold": float("nan")}, "threshold=nan is not a finite number"),
    "threshold of another kind": ({"threshold": "0"}, "threshold='0' is not a finite number"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options(bloom, prompts, options, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.categorise(bloom, prompts, **options)


@pytest.mark.usefixtures("as_users_run_it")
def test_thresholds(bloom, prompts):
    with pytest.raises(ns.NeuronShareError, match=r"threshold=\[\]; give at least one threshold, each once"):
        ns.categorise(bloom, prompts, threshold=[])
    with pytest.raises(ns.NeuronShareError, match=r"threshold=\[0, 0.0\]; give at least one threshold, each once"):
        ns.categorise(bloom, prompts, threshold=[0, 0.0])
    with pytest.raises(ns.NeuronShareError, match="threshold=inf is not a finite number"):
        ns.categorise(bloom, prompts, threshold=(0.1, float("inf")))
    for huge in (10**400, 1e39):
        with pytest.raises(ns.NeuronShareError, match="is not a finite number"):
            ns.categorise(bloom, prompts, threshold=huge)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("position", ["any", "all"])
def test_prompts_of_special_tokens_only(bloom, position):
    prompts = ns.ParallelPrompts({"en": ["a", "b"], "de": ["c", "<|end|>"]})
    message = r"'de', example 1: the prompt has 0 token\(s\) without special ones, but position=.* needs 1"
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.categorise(bloom, prompts, position=position)
    assert len(ns.categorise(bloom, prompts, position="last")) == 2


@pytest.mark.usefixtures("as_users_run_it")
def test_the_up_branch_of_a_model_without_gates(bloom, prompts):
    with pytest.raises(ns.NeuronShareError, match=r'blocks\.0\.mlp has no gate, and so no up branch; use site="post"'):
        ns.categorise(bloom, prompts, site="up")


def caches_of(model, **shapes):
    return {la: model.run_with_cache(torch.ones(shape).long())[1] for la, shape in shapes.items()}


@pytest.mark.usefixtures("as_users_run_it")
def test_caches(animals, backend, bloom):
    caches = caches_of(bloom, en=(2, 4), de=(2, 5))
    assert len(ns.categorise_caches(caches)) == 2
    with pytest.raises(ns.NeuronShareError, match="caches is not a mapping"):
        ns.categorise_caches(list(caches.values()))
    with pytest.raises(ns.NeuronShareError, match=r"languages=\['en'\]; give a list of at least two names"):
        ns.categorise_caches({"en": caches["en"]})
    with pytest.raises(ns.NeuronShareError, match="'de': a dict is not an ActivationCache.*run_with_cache returns"):
        ns.categorise_caches(caches | {"de": dict(caches["de"].cache_dict)})
    other = caches_of(animals.lens("gpt2", backend), de=(2, 5))
    with pytest.raises(ns.NeuronShareError, match="'de': a different model from the first"):
        ns.categorise_caches(caches | other)
    with pytest.raises(ns.NeuronShareError, match="different numbers of prompts: en 2, de 3. Row i must be example i"):
        ns.categorise_caches(caches | caches_of(bloom, de=(3, 5)))
    some = {"de": bloom.run_with_cache(torch.ones(2, 5).long(), names_filter="blocks.0.mlp.hook_post")[1]}
    message = r"'de': the cache lacks blocks\.1\.mlp\.hook_post; .*name.endswith\('mlp.hook_post'\)"
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.categorise_caches(caches | some)
    lengths = {"en": [4, 2], "de": [5, 1]}
    assert len(ns.categorise_caches(caches, lengths=lengths)) == 2
    for wrong in ([4], [4, 0], [4, 6], [4, 1.5], [[4, 2]], ["4", "2"], [[4], [2, 1]], None):
        with pytest.raises(ns.NeuronShareError, match="'de': lengths .* do not fit 2 prompts of at most 5 tokens"):
            ns.categorise_caches(caches, lengths=lengths | {"de": wrong})
    with pytest.raises(ns.NeuronShareError, match="lengths is not for the languages of the caches; give it for en, de"):
        ns.categorise_caches(caches, lengths={"en": [4, 2]})
    with pytest.raises(ns.NeuronShareError, match="tokens is not for the languages"):
        ns.categorise_caches(caches, position="any", tokens={"de": torch.ones(2, 5).long()})
    with pytest.raises(ns.NeuronShareError, match="padding_side='both' is unknown; use one of left, right"):
        ns.categorise_caches(caches, padding_side="both")


@pytest.mark.usefixtures("as_users_run_it")
def test_prompts_of_another_kind(bloom):
    with pytest.raises(ns.NeuronShareError, match="prompts is a dict; make it ParallelPrompts"):
        ns.categorise(bloom, {"en": ["a", "b"], "de": ["c", "d"]})


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers(bloom, value):
    prompts = ns.ParallelPrompts(
        {"en": ["The sky", "Cats"], "de": ["Der Himmel ist", "Katzen"]}, examples=["sky", "cats"]
    )
    longest = len(models.tokenise(bloom, ["Der Himmel ist"])[0])

    def spoil(tensor, hook):
        spoilt = tensor.clone()
        spoilt[:, -1, 3] = value if tensor.shape[1] == longest else 0.0
        return spoilt

    with bloom.hooks(fwd_hooks=[("blocks.2.mlp.hook_post", spoil)]):
        message = (
            r"Language 'de', example 'sky': NaN or infinite activations .or beyond 1e19. at blocks\.2\.mlp\.hook_post"
        )
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.categorise(bloom, prompts, batch_size=1)


def test_what_prompts_have_in_common_is_said(bloom):
    """The share of a prompt's tokens, without special ones, with which it begins in all languages alike."""
    prompts = ns.ParallelPrompts({"en": ["123x", "<|end|>45"], "de": ["12yz", "<|end|>46789"]})
    shares = [2 / 4, 2 / 4, 1 / 2, 1 / 5]
    assert ns.categorise(bloom, prompts).metadata["common_prefix_share"] == pytest.approx(sum(shares) / 4)


def test_how_many_prompts_end_in_the_same_token_is_said(bloom, tmp_path, monkeypatch):
    texts = {"en": ["one,", "two:", "sun,"], "de": ["eins,", "zwei,", "rot."], "th": ["x:", "y:", "z,"]}
    prompts = ns.ParallelPrompts(texts)
    last = {language: [row[-1] for row in models.tokenise(bloom, each)] for language, each in texts.items()}
    assert last["en"][0] == last["de"][0] == last["th"][2] != last["th"][0]
    sharing = ns.categorise(bloom, prompts)
    table = sharing.same_last_token()
    for first, of_first in last.items():
        for second, of_second in last.items():
            assert table.loc[first, second] == pytest.approx(sum(map(int.__eq__, of_first, of_second)) / 3)
    assert table.loc["en"].tolist() == pytest.approx([1, 1 / 3, 2 / 3])
    monkeypatch.setattr(segments, "_MOST_PROMPTS", 3)  # a segment for each example
    pd.testing.assert_frame_equal(ns.categorise(bloom, prompts, out=tmp_path / "kept").same_last_token(), table)
    halves = ns.NeuronSharing.concatenate([ns.categorise(bloom, prompts[[0]]), ns.categorise(bloom, prompts[[1, 2]])])
    pd.testing.assert_frame_equal(halves.same_last_token(), table)
    with pytest.raises(ns.NeuronShareError, match="The last tokens are not known"):
        ns.NeuronSharing.from_activated(sharing.activated(), languages=prompts.languages).same_last_token()
