"""Which value of a neuron is read where nobody named it: `post`, with one warning on a gated model."""

from __future__ import annotations

import warnings

import pytest

import tl_neuronshare as ns

TEXTS = {"en": ["The sky", "Cats"], "de": ["Der Himmel", "Katzen"]}
PROMPTS = ns.ParallelPrompts(TEXTS)


def recorded(model, **site):
    recorder = ns.SharingRecorder(model, list(TEXTS), n_examples=2, **site)
    for language, texts in TEXTS.items():
        for number, text in enumerate(texts):
            model.run_with_hooks(text, fwd_hooks=recorder.fwd_hooks(language, [number]))
    return recorder.sharing(prompts=PROMPTS)


def of_caches(model, **site):
    caches = {language: model.run_with_cache(texts[0])[1] for language, texts in TEXTS.items()}
    return ns.categorise_caches(caches, **site)


CALLS = {
    "categorise": lambda model, **site: ns.categorise(model, PROMPTS, **site),
    "SharingRecorder": recorded,
    "categorise_caches": of_caches,
    "activation_rates": lambda model, **site: ns.activation_rates(model, TEXTS, **site),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_gated_model_warns_once_where_no_site_is_named(animals, backend, call):
    model = animals.lens("llama", backend)
    with pytest.warns(UserWarning, match=r"are gated, and no site was named, so that post is read") as warned:
        found = call(model)
    assert len(warned) == 1
    assert (found.metadata["site"], found.metadata["site_chosen"]) == ("post", False)
    for site in ("post", "gate", "up"):
        with warnings.catch_warnings(action="error"):
            named = call(model, site=site)
        assert (named.metadata["site"], named.metadata["site_chosen"]) == (site, True)
        if site == "post" and isinstance(found, ns.NeuronSharing):
            assert bool((named.types == found.types).all())


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_without_a_gate_there_is_nothing_to_choose(bloom, call):
    with warnings.catch_warnings(action="error"):
        found = call(bloom)
    assert (found.metadata["site"], found.metadata["site_chosen"]) == ("post", True)


def test_a_folder_is_the_same_whether_the_site_was_named_or_not(animals, tmp_path):
    model = animals.lens("llama", "bridge")
    first = ns.categorise(model, PROMPTS, out=tmp_path / "kept")
    again = ns.categorise(model, PROMPTS, site="post", out=tmp_path / "kept")
    assert again == first
