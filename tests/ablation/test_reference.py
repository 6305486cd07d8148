"""Reference values: means and single values, compared with caches of single texts."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from support.masks import POST, tokens_of


def test_reference_values_are_means_and_single_values(bloom, prompts):
    means = ns.reference_values(bloom, prompts, position="all")
    each = ns.reference_values(bloom, prompts, each=True)
    for language in prompts.languages:
        tokens_of_all, last_of_all = [], []
        for text in prompts.prompts[language]:
            _, cache = bloom.run_with_cache(tokens_of(bloom, text))
            values = torch.stack([cache[POST.format(layer)][0] for layer in range(3)], dim=1)
            tokens_of_all.append(values.mean(0))
            last_of_all.append(values[-1])
        assert (means[language] - torch.stack(tokens_of_all).mean(0)).abs().max() < 1e-5
        assert (each[language] - torch.stack(last_of_all)).abs().max() < 1e-5
    last = ns.reference_values(bloom, prompts)
    assert (last["en"] - each["en"].mean(0)).abs().max() < 1e-5


def test_what_reference_values_refuses(bloom, as_users_run_it):
    for texts, options, message in (
        ({}, {}, "prompts is not a mapping from each language to its texts"),
        ({"en": []}, {}, "prompts has no text for language 'en'"),
        ({"en": "a text"}, {}, "prompts, language 'en': 'a text' is not a list of texts"),
        ({"en": ["a"]}, {"position": -3}, "'en', text 0: it has fewer than 3 tokens, too few for position=-3"),
        ({"en": ["a"]}, {"site": "gate"}, "site='gate' has no values"),
        ({"en": ["<|end|>"]}, {"position": "all"}, "'en', text 0: it has only special tokens"),
    ):
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.reference_values(bloom, texts, **options)
