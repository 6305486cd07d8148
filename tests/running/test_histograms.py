"""Histograms over free text, against values read one text at a time through Hugging Face's modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tl_neuronshare as ns
from support.free_text import TEXTS, mlp_inputs


def values_of(hugging_face, tokenizer, site: str) -> dict[str, list[np.ndarray]]:
    """Each language's values in each layer, [token, neuron]; at the gate those of the activation function alone."""
    found = {}
    for language, texts in TEXTS.items():
        of_layers = [[] for _ in hugging_face.model.layers]
        for text in texts:
            tokens = tokenizer(text, add_special_tokens=False).input_ids
            if site == "post":
                read = mlp_inputs(hugging_face, tokens)
            else:
                read = []
                hooks = [
                    layer.mlp.act_fn.register_forward_hook(
                        lambda _, given, got, read=read: read.append(got[0].detach())
                    )
                    for layer in hugging_face.model.layers
                ]
                with torch.no_grad():
                    hugging_face(torch.tensor([tokens]))
                for hook in hooks:
                    hook.remove()
            for kept, values in zip(of_layers, read, strict=True):
                kept.append(values.double().numpy())
        found[language] = [np.concatenate(kept) for kept in of_layers]
    return found


@pytest.mark.parametrize("site", ["gate", "post"])
def test_histograms_equal_brute_force(animals, backend, site):
    model = animals.lens("llama", backend)
    histograms = ns.value_histograms(model, TEXTS, site=site, n_bins=12, prepend_bos=False)
    values = values_of(*animals.hugging_face("llama"), site)
    for layer in range(model.cfg.n_layers):
        of_all = np.concatenate([values[language][layer] for language in TEXTS])
        low, high = (of_all.mean(0) + side * 3 * of_all.std(0) for side in (-1, 1))
        low = np.maximum(low, -0.4) if site == "gate" else low
        narrow = high - low < 1e-3
        low, high = (np.where(narrow, of_all.mean(0) + side * 0.05, end) for side, end in ((-1, low), (1, high)))
        np.testing.assert_allclose(histograms.low[layer], low, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(histograms.high[layer], high, atol=1e-5, rtol=1e-5)
        for number, language in enumerate(TEXTS):
            of_language = values[language][layer]
            for neuron in range(of_language.shape[1]):
                edges = np.linspace(low[neuron], high[neuron], 13)
                expected = np.histogram(of_language[:, neuron], [-np.inf, *edges, np.inf])[0]
                found = histograms.counts[number, layer, neuron].numpy()
                assert np.abs(found - expected).sum() <= 2  # one value at an edge may fall on either side


def test_batches_do_not_matter_and_texts_are_read_twice(bloom):
    whole = ns.value_histograms(bloom, TEXTS, n_bins=5)
    single = ns.value_histograms(bloom, TEXTS, n_bins=5, batch_size=1)
    assert (whole.counts - single.counts).abs().sum() <= 1e-3 * whole.counts.sum()
    assert whole.tokens.tolist() == ns.activation_rates(bloom, TEXTS).tokens.tolist()
    with pytest.raises(ns.NeuronShareError, match="Language 'th': the texts are an iterator, and are read twice"):
        ns.value_histograms(bloom, {**TEXTS, "th": iter(TEXTS["th"])})


def test_planted_neurons_are_found_by_bipartition(animals):
    """Neurons of a model that never fire but in one language have distributions of their own there."""
    model = animals.lens("bloom", "bridge")
    histograms = ns.value_histograms(model, TEXTS, n_bins=20)
    masks = ns.methods.bipartition(histograms, share=0.05)
    of_both = sum(mask.sum() for mask in masks.values())
    assert of_both > 0
    counts, n_tokens = histograms.counts.double(), histograms.tokens.double()
    overlap = torch.minimum(counts[0] / n_tokens[0], counts[1] / n_tokens[1]).sum(-1)
    assert overlap[masks["en"]].max() <= overlap[~masks["en"]].min()  # with two languages the first is the group
