"""Thresholds that are quantiles of a layer's values: as many neurons in every language, whatever the units."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tl_neuronshare as ns
from support.architectures import architectures, make
from support.prompts import QUIZ
from tl_neuronshare.maths.activation import absolute, quantile_of


def values_of(model, layer, text, *, token=-1):
    _, cache = model.run_with_cache(text)
    return cache[f"blocks.{layer}.mlp.hook_post"][0, token]


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.123])
def test_a_quantile_is_that_of_numpy(quantile):
    values = torch.randn(4, 57, generator=torch.Generator().manual_seed(0))
    found = absolute(values, f"{100 * quantile:g}%")
    expected = np.quantile(values.numpy(), quantile, axis=-1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_neurons_above_the_quantile_of_their_layer_are_activated(animals, name, backend):
    model = animals.lens(name, backend)
    sharing = ns.categorise(model, QUIZ, site="post", threshold="90%")
    assert sharing.metadata["threshold"] == "90%"
    for (language, texts), place in zip(QUIZ.prompts.items(), range(3), strict=True):
        for example, text in enumerate(texts):
            for layer in range(3):
                values = values_of(model, layer, text)
                expected = values > np.quantile(values.numpy(force=True), 0.9)
                assert torch.equal(sharing.activated()[example, place, layer, : len(values)], expected), language
    counts = sharing.activated().sum(-1)
    assert counts.min() == counts.max() == np.ceil(0.1 * (sharing.d_mlp - 1))


def test_units_do_not_matter(animals, backend):
    model = animals.lens("bloom", backend)
    plain = ns.categorise(model, QUIZ, threshold="75%")
    hooks = [(f"blocks.{layer}.mlp.hook_post", lambda tensor, hook: 8.0 * tensor) for layer in range(1)]
    with model.hooks(fwd_hooks=hooks):
        scaled = ns.categorise(model, QUIZ, threshold="75%")
    assert torch.equal(plain.types[:, 0], scaled.types[:, 0])


def test_quantiles_and_numbers_in_one_pass(animals, backend, tmp_path):
    model = animals.lens("bloom", backend)
    several = ns.categorise(model, QUIZ, threshold=[0.0, "90%"], out=tmp_path / "kept")
    assert list(several) == [0.0, "90%"]
    assert several["90%"] == ns.categorise(model, QUIZ, threshold="90%")
    assert several[0.0] == ns.categorise(model, QUIZ)
    assert ns.NeuronSharing.load(tmp_path / "kept" / "threshold-90%.safetensors") == several["90%"]
    with pytest.raises(ns.NeuronShareError, match="has threshold '90%', result 0 0.0"):
        ns.NeuronSharing.concatenate([several[0.0], several["90%"]])


def test_rates_of_quantiles(animals, backend):
    """A tenth of a layer's neurons at each token, one token at a time."""
    model = animals.lens("bloom", backend)
    rates = ns.activation_rates(model, {"en": ["The sky is blue"]}, threshold="90%")
    expected = sum(
        (values > np.quantile(values.numpy(force=True), 0.9)).int()
        for token in range(-int(rates.tokens[0]), 0)
        for values in [values_of(model, 1, "The sky is blue", token=token)]
    )
    assert torch.equal(rates.counts[0, 1].int(), expected)


@pytest.mark.parametrize("threshold", ["90", "%", "0%", "100%", "-5%", "high", ["90%", "90%"]])
def test_what_is_not_a_quantile_is_refused(animals, threshold, as_users_run_it):
    with pytest.raises(ns.NeuronShareError, match="threshold="):
        ns.categorise(animals.lens("bloom", "bridge"), QUIZ, threshold=threshold)
    if isinstance(threshold, str):
        assert np.isnan(quantile_of(threshold))


def test_other_digits_are_not_numbers():
    assert all(math.isnan(quantile_of(text)) for text in ("²%", "1²%", "%", ".%"))


def test_a_mixture_of_experts_has_no_quantiles(tmp_path):
    make(architectures(["MixtralForCausalLM"])["MixtralForCausalLM"], tmp_path)
    model = ns.load_model(tmp_path, device="cpu", backend="bridge")
    with pytest.raises(ns.NeuronShareError, match="only some neurons of a layer have values"):
        ns.categorise(model, QUIZ, threshold="90%")
    with pytest.raises(ns.NeuronShareError, match="only some neurons of a layer have values"):
        ns.activation_rates(model, {"en": ["The sky"]}, threshold="90%")
