"""Where prompt and answer meet, in tokens."""

from __future__ import annotations

import pytest

import tl_neuronshare as ns
from tl_neuronshare import models


def test_answers_that_add_no_token_or_swallow_the_prompt(animals, backend, as_users_run_it):
    from tokenizers import normalizers

    model = ns.load_model(animals.directory("bloom"), backend=backend, device="cpu")
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    nothing = ns.ParallelPrompts({la: ["ab", "cd"] for la in ("en", "de")}, {"en": ["x", "~"], "de": ["x", "y"]})
    with pytest.raises(ns.NeuronShareError, match="'en', example 1: '~' adds no token to the prompt"):
        ns.evaluate(model, nothing, scoring="exact")
    choices = {la: [[answer, "z"] for answer in answers] for la, answers in nothing.answers.items()}
    with pytest.raises(ns.NeuronShareError, match="'en', example 1: '~' adds no token"):
        ns.evaluate(model, ns.ParallelPrompts(nothing.prompts, nothing.answers, choices))
    merged = ns.ParallelPrompts({la: ["a"] for la in ("en", "de")}, {la: ["nd"] for la in ("en", "de")})
    first, whole = models.tokenise(model, ["T", "Two"])
    if first[0] != whole[0]:
        merged = ns.ParallelPrompts({la: ["T"] for la in ("en", "de")}, {la: ["wo"] for la in ("en", "de")})
    with pytest.raises(ns.NeuronShareError, match="'en', example 0: prompt and answer merge from the first token on"):
        ns.evaluate(model, merged, scoring="exact")
