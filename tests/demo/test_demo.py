"""The built-in model: it knows its prompts, it is small, and its card says what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare import models

CARD = Path(__file__).parents[2] / "docs" / "demo-model.md"
FIGURES = json.loads((ns.demo.DIRECTORY / "training.json").read_text())


@pytest.fixture
def demo(animals, backend):
    return animals.lens("demo", backend)


def test_the_class_is_that_of_the_installed_version():
    name = "HookedTransformer" if models.has_hooked_transformer() else "TransformerBridge"
    assert type(ns.demo.load_model(device="cpu")).__name__ == name


def test_prompts_are_at_least_200_with_answers_and_choices():
    prompts = ns.demo.prompts()
    assert len(prompts) >= 200
    assert prompts.languages == ns.tasks.world_facts(limit=1).languages
    assert prompts.answers is not None
    assert prompts.choices is not None
    assert prompts == ns.demo.prompts()
    assert {label.split("/")[0] for label in prompts.examples} == set(FIGURES["accuracy_by_relation"])


def test_prompts_are_world_facts():
    """The file with the prompts says the same as the facts that it was made from."""
    facts, demo = ns.tasks.world_facts(), ns.demo.prompts()
    where = {label: index for index, label in enumerate(facts.examples)}
    for index, label in enumerate(demo.examples):
        for language in demo.languages:
            assert demo.prompts[language][index] == facts.prompts[language][where[label]]
            assert demo.answers[language][index] == facts.answers[language][where[label]]


@pytest.mark.slow
def test_every_prompt_is_right_in_every_language(demo):
    """Greedy decoding gives the answer and then the end token, through TransformerLens."""
    prompts, end = ns.demo.prompts(), demo.tokenizer.eos_token_id
    wrong = []
    for language in prompts.languages:
        questions = models.tokenise(demo, prompts.prompts[language])
        answers = models.tokenise(demo, prompts.answers[language])
        for label, question, answer in zip(prompts.examples, questions, answers, strict=True):
            with torch.no_grad():
                predicted = demo(torch.tensor([question + answer]))[0, len(question) - 1 :].argmax(-1).tolist()
            if predicted != [*answer, end]:
                wrong.append((language, label))
    assert not wrong


def test_prompt_and_answer_never_merge():
    """The tokens of prompt + answer are those of the prompt and those of the answer, for every fact."""
    tokenizer = ns.demo.load_model(device="cpu").tokenizer
    facts = ns.tasks.world_facts()
    for language in facts.languages:
        prompts, answers = facts.prompts[language], facts.answers[language]

        def ids(texts):
            return tokenizer(list(texts), add_special_tokens=False).input_ids

        whole = ids([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
        assert whole == [prompt + answer for prompt, answer in zip(ids(prompts), ids(answers), strict=True)]


def test_all_shared_neurons_are_common(demo):
    sharing = ns.categorise(demo, ns.demo.prompts())
    percent = 100 * sharing.mask("all-shared").float().mean().item()
    assert percent >= 4
    assert percent == pytest.approx(FIGURES["all_shared_percent"], abs=0.01)


def test_it_takes_less_than_5_mb():
    assert sum(path.stat().st_size for path in ns.demo.DIRECTORY.iterdir()) < 5_000_000


def test_training_met_what_the_model_is_for():
    assert FIGURES["accuracy"] >= 0.95
    assert FIGURES["worst_language_accuracy"] >= 0.88
    assert FIGURES["right_in_all_languages"] >= 200
    assert FIGURES["all_shared_below_random"] >= 0.25


CARD_ROWS = {
    "Facts right, all tasks and languages": "accuracy",
    "Facts right, worst language": "worst_language_accuracy",
    "Facts right that were held out in that language": "held_out_accuracy",
    "Right with the all-shared neurons zeroed": "ablated_accuracy",
    "Right with as many random neurons zeroed": "random_accuracy",
}


@pytest.mark.parametrize("row", CARD_ROWS)
def test_the_card_says_what_was_measured(row):
    figure = re.search(rf"\| {row} \| ([\d.]+) \|", CARD.read_text())
    assert figure is not None
    assert float(figure[1]) == pytest.approx(FIGURES[CARD_ROWS[row]], abs=0.0051)
