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


def test_bipartition_of_a_models_histograms(animals):
    """The neurons that are kept overlap least between their group and the others; Thai is one of three languages."""
    texts = {**TEXTS, "de": ["Der Himmel ist blau", "Katzen", "Eins zwei drei vier"]}
    histograms = ns.value_histograms(animals.lens("bloom", "bridge"), texts, n_bins=20)
    masks = ns.methods.bipartition(histograms, share=0.05)
    kept = sum(masks.values())
    assert set(kept.unique().tolist()) == {0, 1}  # of three languages the smaller group is one
    shares = histograms.counts.double() / histograms.tokens.double()[:, None, None, None]
    overlap = torch.stack([torch.minimum(shares[a], shares[b]).sum(-1) for a, b in ((0, 1), (0, 2), (1, 2))])
    cost = torch.stack([overlap[list(pairs)].amax(0) for pairs in ((0, 1), (0, 2), (1, 2))])  # of en, th and de alone
    for number, language in enumerate(texts):
        assert (cost[number][masks[language]] == cost.amin(0)[masks[language]]).all()
    assert cost.amin(0)[kept == 1].max() <= cost.amin(0)[kept == 0].min()
