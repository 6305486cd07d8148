"""Scoring: in batches and pieces, under hooks, and without logits that are not needed."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from support.masks import mask_of
from support.watching import PeakMemory
from tl_neuronshare import models
from tl_neuronshare.evaluation import evaluating
from tl_neuronshare.evaluation import scoring as scorer_module
from tl_neuronshare.running import plan


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_and_pieces_change_nothing(animals, backend, quiz, batch_size, monkeypatch):
    model = animals.lens("bloom", backend)
    expected = ns.evaluate(model, quiz)
    for logits in (plan.AUTO_NUMBERS, 1):  # 1: the columns one by one
        monkeypatch.setattr(scorer_module, "AUTO_NUMBERS", logits)
        found = ns.evaluate(model, quiz, batch_size=batch_size)
        assert (found["log_prob"] - expected["log_prob"]).abs().max() < 1e-4
        assert found.drop(columns="log_prob").equals(expected.drop(columns="log_prob"))


def test_choices_that_differ_in_the_last_token_share_a_row(bloom, quiz):
    rows = []
    with bloom.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda tensor, hook: rows.append(len(tensor)))]):
        ns.evaluate(bloom, ns.demo.prompts()[:1].select(["en", "de"]))
    task = evaluating.Evaluation(bloom, quiz, evaluating.Scoring(), plan.Running())
    prefixes = {
        (language, one.example, one.before, one.scored[:-1])
        for language, scorer in task.scorers.items()
        for one in scorer.continuations
    }
    assert task.n_rows == len(prefixes) < 27


def test_a_function_makes_hooks_for_each_batch_with_one_mask_a_row(bloom, quiz):
    masks = mask_of(bloom, rows=(3,))
    asked = []

    def hooks(language, examples, prompt_tokens, tokens):
        asked.append((language, examples.tolist(), tuple(tokens.shape), prompt_tokens))
        return ns.ablation_hooks(bloom, masks[examples], position="last", prompt_tokens=prompt_tokens)

    together = ns.evaluate(bloom, quiz, fwd_hooks=hooks, batch_size=100)
    assert [language for language, *_ in asked] == list(quiz.languages)
    for _, examples, shape, prompt_tokens in asked:
        assert shape == (len(examples), prompt_tokens)
        assert set(examples) == {0, 1, 2}
    for example in range(3):
        alone = ns.evaluate(
            bloom,
            quiz[example : example + 1],
            batch_size=1,
            fwd_hooks=lambda language, examples, prompt_tokens, example=example: ns.ablation_hooks(
                bloom, masks[example], position="last", prompt_tokens=prompt_tokens
            ),
        )
        rows = together[together["example"] == example].reset_index(drop=True)
        assert (rows["log_prob"] - alone["log_prob"]).abs().max() < 1e-4
    assert (together["log_prob"] - ns.evaluate(bloom, quiz)["log_prob"]).abs().min() > 1e-4


def test_hooks_that_count_from_the_prompt_s_end_must_know_it(bloom, quiz):
    """The answer follows the prompt: hooks that do not know the prompt's end would edit the wrong tokens."""
    mask = mask_of(bloom)

    def ignorant(language, examples):
        return ns.ablation_hooks(bloom, mask, position="last")

    wrong = ns.ablation_hooks(bloom, mask, position="last", prompt_tokens=1)
    for scoring in ("choice", "exact"):
        for hooks in (ignorant, ignorant("en", [0]), wrong):
            with pytest.raises(ns.NeuronShareError, match="do not know where this batch's prompts end.*prompt_tokens"):
                ns.evaluate(bloom, quiz, fwd_hooks=hooks, scoring=scoring)

    def told(language, examples, *, prompt_tokens):
        return ns.ablation_hooks(bloom, mask, position="last", prompt_tokens=prompt_tokens)

    def passing_on(language, examples, **options):
        assert set(options) == {"prompt_tokens", "tokens"}
        return told(language, examples, prompt_tokens=options["prompt_tokens"])

    assert ns.evaluate(bloom, quiz, fwd_hooks=told).equals(ns.evaluate(bloom, quiz, fwd_hooks=passing_on))


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ([("blocks.7.mlp.hook_post", print)], "has no hook blocks.7.mlp.hook_post"),
        ([(lambda name: name.startswith("brain"), print)], "has no hook <function"),
        ([("blocks.0.mlp.hook_post",)], "is not a hook; give pairs"),
        ((pair for pair in [("blocks.0.mlp.hook_post", print)]), "fwd_hooks is or gives a generator; give a list"),
        (lambda language, examples: None, "fwd_hooks is or gives a NoneType"),
    ],
)
def test_names_that_the_model_lacks_are_an_error(bloom, quiz, hooks, message, as_users_run_it):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.evaluate(bloom, quiz, fwd_hooks=hooks)


def test_a_hook_that_does_not_fire_is_an_error(bloom, backend, quiz):
    """A hook point that exists but is never called in this architecture."""
    name = "hook_pos_embed" if backend == "hooked" else "blocks.0.attn.qkv.hook_in"
    assert name in bloom.hook_dict
    with pytest.raises(ns.NeuronShareError, match=f"The hook on {name} did not fire"):
        ns.evaluate(bloom, quiz, fwd_hooks=[(name, lambda tensor, hook: None)])


@pytest.mark.parametrize("scoring", ["choice", "exact"])
def test_logits_are_made_for_scored_positions_only(animals, backend, scoring):
    """With prompts of 80 tokens and short answers, all logits would be ten times as many as are computed."""
    model = animals.lens("bloom", backend)
    ns.verify(model)  # whose own passes do not count
    prompts = ns.ParallelPrompts(
        {la: ["a b c d e " * 8] for la in ("en", "de")},
        {la: [" yes"] for la in ("en", "de")},
        {la: [[" yes", " no"]] for la in ("en", "de")},
    )
    n_tokens = len(models.tokenise(model, prompts.prompts["en"])[0])
    assert n_tokens > 60
    largest = 0

    class Largest(PeakMemory):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (400,) and result.ndim == 3:
                largest = max(largest, result.shape[1])
            return result

    with Largest():
        ns.evaluate(model, prompts, scoring=scoring)
    assert 1 <= largest <= 6
