"""Texts after prompts that are run once, compared with a plain Hugging Face model that runs each whole text alone."""

from __future__ import annotations

import pytest
import torch

from support import zoo
from support.watching import PeakMemory
from tl_neuronshare import models
from tl_neuronshare.models import verification
from tl_neuronshare.models.continuing import continuing

NAMES = [*zoo.KINDS, *zoo.MORE_KINDS]
# Rows of five lengths. Token 0 is BOS, end and padding: three rows begin with it, one of which has no other token.
ROWS = [[5, 6, 7, 8, 9, 10, 11], [0, 12, 13], [0], [0, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29], [30, 31]]
TEXTS = [[3], [4, 5], [0, 7, 8, 9]]
AFTER = [0, 0, 0, 1, 2, 2, 3, 3, 3, 4]


def whole(hugging_face, prompt, text):
    """The logits after a prompt and after each token of a text, of one forward pass of both."""
    with torch.no_grad():
        return hugging_face(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 :]


def check(model, hugging_face, rows, after, texts):
    with models.left_as_found(model), continuing(model, models.inputs_of(model, rows)) as once:
        first = once.prompts()
        later = once.texts(after, texts)
        again = once.texts(after[::-1], texts[::-1])  # those before have left nothing behind
    lengths = [len(text) for text in texts]
    assert later.shape == again.shape == (sum(lengths), 400)
    back = torch.split(again, lengths[::-1])[::-1]
    for row, text, one, other in zip(after, texts, torch.split(later, lengths), back, strict=True):
        expected = whole(hugging_face, rows[row], text)
        for found in (one, other):
            torch.testing.assert_close(torch.cat([first[row][None], found]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_whole_texts(animals, name, backend):
    """Mistral and Gemma 3 have windows of six tokens here, so that most of these texts are longer."""
    texts = [TEXTS[number % len(TEXTS)] for number in range(len(AFTER))]
    check(animals.lens(name, backend), animals.hugging_face(name)[0], ROWS, AFTER, texts)


def test_texts_that_are_longer_than_a_window(animals, backend):
    """Gemma 2 has a window of 64 tokens here; a text may be longer, become longer, or be padded to more."""
    model = animals.lens("gemma2", backend)
    rows = [[number % 400 for number in range(length)] for length in (90, 62, 64, 10)]
    check(model, animals.hugging_face("gemma2")[0], rows, [0, 0, 1, 2, 3], [[5, 6], [7], [8, 9, 10], [11], [12, 13]])
    assert models.windows(model) == [64]
    assert verification.shared_up_to(model, 128) == 128


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_shares_prompts(animals, name, backend):
    assert verification.shared_up_to(animals.lens(name, backend), 100) >= 100


def test_the_cache_is_not_copied_for_every_text(animals, backend):
    """At no time does more than one layer hold as many copies of a prompt's keys as there are texts."""
    model = animals.lens("gpt2", backend)  # twelve layers
    prompt, texts = list(range(100)), [[5]] * 64
    one = 100 * 32 * 4  # bytes of the keys of one layer for the prompt
    with models.left_as_found(model), continuing(model, models.inputs_of(model, [prompt])) as once:
        once.prompts()
        with PeakMemory() as memory:
            once.texts([0] * len(texts), texts)
    assert memory.peak < 12 * len(texts) * one
