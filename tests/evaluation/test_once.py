"""Prompts that are run once for all choices, compared with Hugging Face running each whole text alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import tl_neuronshare as ns
from support import reference, zoo
from support.masks import random_mask
from tl_neuronshare import models
from tl_neuronshare.evaluation.answers import continuations
from tl_neuronshare.evaluation.scoring import Scorer
from tl_neuronshare.models import verification
from tl_neuronshare.running.loop import Loop

# Long enough that running them again for every choice costs more; the last example's choices share one row.
PROMPTS = [
    "The capital of France is the city of " * 2,
    "Two and three make five, and three and four make" * 2,
    "Water boils at one hundred degrees, and it freezes at",
    "The sky is blue in the morning, and at night it is",
]
CHOICES = [
    [" Paris", " London and Berlin", " Ro", " the river Seine, of course"],
    [" seven", " eight or nine", " six cats"],
    [" zero degrees", " no", " one hundred and two degrees"],
    ["a", "b", "c"],
]


def quiz_of(prompts, choices):
    """The same in two languages, of which the tests look at one."""
    each = {"en": choices, "de": choices}
    return ns.ParallelPrompts(
        dict.fromkeys(each, prompts), {language: [row[0] for row in rows] for language, rows in each.items()}, each
    )


LONG = quiz_of(PROMPTS, CHOICES)
NAMES = [*zoo.KINDS, *zoo.MORE_KINDS]


class Scored:
    """The scores of the choices, and how many forward passes of how many rows and tokens it took."""

    def __init__(self, model, fwd_hooks=None, batch_size="auto", quiz=LONG, each=None):
        self.each = each or continuations(model, quiz, "en", quiz.choices["en"]).each
        self.scorer = Scorer(model, "en", self.each, batch_size)
        self.passes: list[tuple[int, int]] = []
        forward = model.forward

        def counting(tokens, *given, **options):
            self.passes.append(tuple(tokens.shape))
            return forward(tokens, *given, **options)

        model.forward = counting
        try:
            with models.left_as_found(model):
                self.log_probs = self.scorer.run(fwd_hooks, Loop()).log_probs
        finally:
            del model.forward

    @property
    def is_once(self):
        """Whether no prompt was run twice."""
        prompts = {(one.example, one.before) for one in self.each}
        shortest = min(len(before) for _, before in prompts)
        return sum(rows for rows, length in self.passes if length >= shortest) == len(prompts)


def edit(values, *, neurons, position, length, new):
    """Put new values for a layer's neurons at the tokens that a position means, in one text."""
    where = torch.zeros(values.shape[1], 1, dtype=torch.bool)
    where[slice(None) if position == "all" else length + (-1 if position == "last" else position)] = True
    return torch.where(where & neurons, new(values), values)


def expected(animals, name, each, masks=None, position="all", new=lambda values, example, layer: 0.0 * values):
    """Each continuation's log-probability by Hugging Face, one whole unpadded text at a time."""
    hugging_face, _ = animals.hugging_face(name)
    found = []
    for one in each:
        edits = {
            layer: partial(
                edit,
                neurons=neurons,
                position=position,
                length=len(one.before),
                new=partial(new, example=one.example, layer=layer),
            )
            for layer, neurons in enumerate([] if masks is None else masks[one.example])
        }
        with reference.edited(hugging_face, module=animals.kind(name).down, edits=edits):
            found.append(reference.log_prob(hugging_face, list(one.before), list(one.scored)))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_whole_texts(animals, name, backend):
    """Gemma 3 and Mistral have windows of six tokens, and so most of these texts are longer."""
    found = Scored(animals.lens(name, backend))
    assert found.is_once
    torch.testing.assert_close(found.log_probs, expected(animals, name, found.each), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_change_nothing(animals, backend, batch_size):
    model = animals.lens("llama", backend)
    found = Scored(model, batch_size=batch_size)
    assert max(rows for rows, _ in found.passes) == batch_size
    torch.testing.assert_close(found.log_probs, Scored(model).log_probs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", ["zero", "mean", "scale"])
@pytest.mark.parametrize("position", ["all", "last", -2])
@pytest.mark.parametrize("name", ["bloom", "gpt2", "llama", "gemma3"])
def test_ablation_with_a_mask_for_each_example(animals, name, backend, position, mode):
    model = animals.lens(name, backend)
    layers = models.neuron_layers(model, "post")
    masks = random_mask(len(LONG), len(layers), layers[0].width)
    means = torch.randn(masks.shape, generator=torch.Generator().manual_seed(1))
    asked = []

    def hooks(language, examples, prompt_tokens):
        asked.append(examples.tolist())
        values = {"mean": means[examples], "scale": 2.0, "zero": None}[mode]
        options = {} if position == "all" else {"prompt_tokens": prompt_tokens}
        return ns.ablation_hooks(model, masks[examples], mode=mode, values=values, position=position, **options)

    found = Scored(model, hooks)
    assert found.is_once
    assert sorted(example for examples in asked for example in examples) == [0, 1, 2, 3]
    new = {
        "zero": lambda values, example, layer: 0.0 * values,
        "mean": lambda values, example, layer: means[example, layer].expand_as(values),
        "scale": lambda values, example, layer: 2.0 * values,
    }[mode]
    want = expected(animals, name, found.each, masks, position, new)
    torch.testing.assert_close(found.log_probs, want, rtol=1e-5, atol=5e-4)
    assert (found.log_probs - expected(animals, name, found.each)).abs().max() > 0.01


def test_special_tokens_that_are_not_edited(animals, backend):
    """The mask of the prompt's tokens is of the prompts; tokens of the answers are all edited, as without sharing."""
    model = animals.lens("llama", backend)
    mask = random_mask(3, 96)
    found = Scored(model, lambda language, examples, tokens: ns.ablation_hooks(model, mask, tokens=tokens))
    assert found.is_once
    hugging_face, _ = animals.hugging_face("llama")

    def all_but_the_bos(values, neurons):
        return torch.cat([values[:, :1], values[:, 1:] * ~neurons], dim=1)

    edits = {layer: partial(all_but_the_bos, neurons=neurons) for layer, neurons in enumerate(mask)}
    with reference.edited(hugging_face, module=zoo.KINDS["llama"].down, edits=edits):
        want = [reference.log_prob(hugging_face, list(one.before), list(one.scored)) for one in found.each]
    torch.testing.assert_close(found.log_probs, torch.tensor(want).double(), rtol=1e-5, atol=2e-4)


def test_up_is_edited_with_the_tensors_of_two_points(animals, backend):
    """An edit of `up` needs the tensors of several hook points, also after the prompt."""
    model = animals.lens("llama", backend)
    masks = random_mask(len(LONG), 3, 96)
    found = Scored(model, lambda language, examples: ns.ablation_hooks(model, masks[examples], site="up"))
    assert found.is_once
    want = expected(animals, "llama", found.each, masks)  # zero at one factor is zero at their product
    torch.testing.assert_close(found.log_probs, want, rtol=1e-5, atol=5e-4)


def test_a_hook_that_looks_at_whole_texts_sees_them(animals, backend):
    """A user's own hook adds the sum over all tokens to the last: given as a list, by a function, or on the model."""
    model = animals.lens("gpt2", backend)
    lengths = []

    def add_all(tensor, hook):
        lengths.append(tensor.shape[1])
        return torch.cat([tensor[:, :-1], tensor.sum(1, keepdim=True)], dim=1)

    pairs = [("blocks.1.mlp.hook_post", add_all)]
    # One choice a run: nothing to share, and nothing padded.
    each = continuations(model, LONG, "en", CHOICES).each
    alone = [Scored(model, pairs, each=[one]).log_probs for one in each]
    for fwd_hooks in (pairs, lambda language, examples: pairs):
        lengths.clear()
        found = Scored(model, fwd_hooks, batch_size=1)
        assert not found.is_once
        assert min(lengths) >= min(len(one.before) for one in found.each)
        torch.testing.assert_close(found.log_probs, torch.cat(alone), rtol=1e-5, atol=2e-4)
    with model.hooks(fwd_hooks=pairs):
        assert torch.equal(Scored(model, batch_size=1).log_probs, found.log_probs)


def test_a_function_as_mode_sees_whole_texts(animals, backend):
    """What such a function does to other tokens is not known."""
    model = animals.lens("gpt2", backend)
    mask = random_mask(12, 128)
    found = Scored(model, ns.ablation_hooks(model, mask, mode=lambda values: values - values.mean(1, keepdim=True)))
    assert not found.is_once


def test_a_model_whose_cache_is_lost(animals, backend, monkeypatch):
    """Every row is run with its prompt, as before."""
    directory = animals.directory("bloom")
    model = ns.load_model(directory, backend=backend, device="cpu")
    if backend == "bridge":
        for block in model.blocks:
            monkeypatch.setattr(block.attn, "_update_kv_cache", lambda k, v, **options: (k, v))
    else:
        from tl_neuronshare.models import caches

        monkeypatch.setattr(caches._RowsOfEntry, "append", lambda self, k, v: (k, v))
    assert verification.shared_up_to(model, 50) == 0
    found = Scored(model)
    assert not found.is_once
    torch.testing.assert_close(found.log_probs, expected(animals, "bloom", found.each), rtol=1e-5, atol=2e-4)


def test_texts_beyond_a_window_where_only_these_are_wrong(animals, monkeypatch):
    """A cache that forgets more than a window: short texts share their prompts, and long ones are run whole."""
    from transformers.cache_utils import DynamicSlidingWindowLayer

    update = DynamicSlidingWindowLayer.update

    def forgetful(self, keys, values, *given, **options):
        had = self.cumulative_length
        keys, values = update(self, keys, values, *given, **options)
        return (keys, values * 0) if had > 40 else (keys, values)

    monkeypatch.setattr(DynamicSlidingWindowLayer, "update", forgetful)
    model = ns.load_model(animals.directory("gemma2"), backend="bridge", device="cpu")
    assert verification.shared_up_to(model, 40) == verification.shared_up_to(model, 100) == 64
    found = Scored(model, quiz=quiz_of([PROMPTS[0] * 2, *[PROMPTS[2]] * 6], [CHOICES[0], *[CHOICES[2]] * 6]))
    longest = {one.example: 0 for one in found.each}
    for one in found.each:
        longest[one.example] = max(longest[one.example], len(one.before) + len(one.scored) - 1)
    beyond = {example for example, length in longest.items() if length > 64}
    assert 0 < len(beyond) < len(longest)
    rows = {(one.example, one.before, one.scored[:-1] if one.example in beyond else ()) for one in found.each}
    shortest = min(len(one.before) for one in found.each)
    assert sum(n_rows for n_rows, length in found.passes if length >= shortest) == len(rows)
    torch.testing.assert_close(found.log_probs, expected(animals, "gemma2", found.each), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_what_shares_nothing_is_run_as_before(animals, name, backend):
    """One row an example, and prompts so short that a second pass costs more: one pass, and no check is made for it."""
    model = ns.load_model(animals.directory(name), backend="bridge", device="cpu")
    for quiz in (LONG[3:], quiz_of(["The"], [[" sky is", " cat was", " cat"]])):
        assert len(Scored(model, quiz=quiz).passes) == 1
    assert "continuations" not in verification._record_of(model).outcomes
