"""The tokens of an answer after its prompt."""

from __future__ import annotations

import pytest

import tl_neuronshare as ns
from support import reference
from tl_neuronshare import models
from tl_neuronshare.evaluation.answers import continuations


@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("name", ["bloom", "gpt2"])
def test_scoring_begins_where_the_prompt_s_tokens_end(animals, name, backend, quiz, prepend_bos):
    """By the definition: after the common prefix of each answer; for choices, after the shortest of these."""
    model, merged = animals.lens(name, backend), 0
    for language in quiz.languages:
        for texts in ([[answer] for answer in quiz.answers[language]], quiz.choices[language]):
            found = continuations(model, quiz, language, texts, prepend_bos=prepend_bos)
            each = iter(found.each)
            for example, (prompt, of_example) in enumerate(zip(quiz.prompts[language], texts, strict=True)):
                start, whole, n_prompt = reference.literal_start(model.tokenizer, prompt, of_example, prepend_bos)
                assert len(found.prompts[example]) == n_prompt
                assert found.merged[example] == (start < n_prompt)
                merged += found.merged[example]
                for tokens in whole:
                    one = next(each)
                    assert (one.example, [*one.before], [*one.scored]) == (example, tokens[:start], tokens[start:])
            assert next(each, None) is None
    assert 0 < merged < 18  # both occur


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
