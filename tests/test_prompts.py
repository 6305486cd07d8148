"""Parallel prompts: alignment, tables and back."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict

import tl_neuronshare as ns
from support.markup import table_in
from tl_neuronshare import models

PROMPTS = ns.ParallelPrompts(
    {"en": ["Red and", "Two and"], "de": ["Rot und", "Zwei und"]},
    {"en": [" blue", " three"], "de": [" blau", " drei"]},
    {"en": [[" blue", " three"]] * 2, "de": [[" blau", " drei"]] * 2},
    "toy",
    examples=["colours", "numbers"],
)


def test_frame_and_back():
    assert ns.ParallelPrompts.from_frame(PROMPTS.to_frame(), name="toy") == PROMPTS


def test_frame_columns():
    frame = PROMPTS.to_frame()
    assert list(frame.columns) == ["example", "language", "prompt", "answer", "choices"]
    assert len(frame) == 4
    assert list(ns.ParallelPrompts(PROMPTS.prompts).to_frame().columns) == ["example", "language", "prompt"]


def test_rows_are_aligned_by_example_not_by_their_order():
    shuffled = PROMPTS.to_frame().iloc[[3, 0, 2, 1]]
    prompts = ns.ParallelPrompts.from_frame(shuffled)
    assert prompts.examples == ("numbers", "colours")
    assert prompts.languages == ("de", "en")
    assert prompts.prompts == {"de": ("Zwei und", "Rot und"), "en": ("Two and", "Red and")}
    assert prompts.answers == {"de": (" drei", " blau"), "en": (" three", " blue")}


def test_examples_may_have_labels_of_any_kind():
    frame = pd.DataFrame({"example": [1, 1, "b", "b"], "language": ["en", "de"] * 2, "prompt": list("wxyz")})
    assert ns.ParallelPrompts.from_frame(frame).prompts == {"en": ("w", "y"), "de": ("x", "z")}


def test_dataset():
    assert ns.ParallelPrompts.from_dataset(Dataset.from_pandas(PROMPTS.to_frame()), name="toy") == PROMPTS


@pytest.mark.usefixtures("as_users_run_it")  # the annotations ask for lists
def test_columns_and_arrays_serve_as_lists():
    frame = PROMPTS.to_frame().pivot(index="example", columns="language")
    prompts, answers, choices = (
        {la: frame[what][la] for la in ("en", "de")} for what in ("prompt", "answer", "choices")
    )
    arrays = {language: column.to_numpy() for language, column in prompts.items()}
    assert ns.ParallelPrompts(arrays, answers, choices, "toy", examples=frame.index) == PROMPTS


def test_slicing_keeps_languages_aligned():
    assert PROMPTS[1:].prompts == {"en": ("Two and",), "de": ("Zwei und",)}
    assert PROMPTS[1:].answers == {"en": (" three",), "de": (" drei",)}
    assert PROMPTS[1:].examples == ("numbers",)
    assert PROMPTS[-1:] == PROMPTS[1:]
    assert PROMPTS[::-1].examples == ("numbers", "colours")
    assert len(PROMPTS[:1]) == 1


def test_select_orders_languages():
    three = ns.ParallelPrompts({"en": ["a"], "de": ["b"], "fr": ["c"]}, {"en": ["d"], "de": ["e"], "fr": ["f"]})
    assert three.select(["fr", "en"]).prompts == {"fr": ("c",), "en": ("a",)}
    assert three.select(["fr", "en"]).answers == {"fr": ("f",), "en": ("d",)}


def test_what_was_given_can_change_without_changing_the_prompts():
    english = ["a"]
    prompts = ns.ParallelPrompts({"en": english, "de": ["b"]})
    english.append("c")
    assert prompts.prompts["en"] == ("a",)


LLAMA_2 = (  # begins with BOS, and puts a space before the answer
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
CHAT_ML = (  # no BOS, and a line before the answer
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEW_LINE = (  # a line only before what the assistant says
    "{% for m in messages %}[{{ m.role }}]{{ '\\n' if m.role == 'assistant' else '' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_line_that_a_template_begins_the_answer_with_belongs_to_the_prompt(animals):
    tokenizer = animals.hugging_face("bloom")[1]
    tokenizer.chat_template = NEW_LINE
    chat = ns.ParallelPrompts({"en": ["Red and"], "de": ["Rot und"]}, {"en": [" blue"], "de": [" blau"]})
    chat = chat.with_chat_template(tokenizer)
    assert chat.prompts["de"] == ("[user]Rot und[assistant]\n",)
    assert chat.answers["de"] == ("blau",)


@pytest.mark.parametrize(("template", "space"), [(LLAMA_2, " "), (CHAT_ML, "")])
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_chat_template_gives_the_tokens_that_the_tokenizer_gives(animals, backend, name, template, space):
    """With one BOS, whether the template writes it, the model class puts it there, or both."""
    model = animals.lens(name, backend)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    prompts = ns.ParallelPrompts(
        {"en": ["Red and", "So"], "de": ["Rot und", "Also"]},
        {"en": [" blue", "no"], "de": [" blau", " nein"]},
        {"en": [[" blue", " green"], ["no", " yes"]], "de": [[" blau", " grün"], [" nein", " ja"]]},
        "colours",
        examples=["a", "b"],
    )
    chat = prompts.with_chat_template(tokenizer, system="Answer.")
    assert (chat.name, chat.examples, chat.languages) == (prompts.name, prompts.examples, prompts.languages)
    for language, texts in prompts.prompts.items():
        messages = [[{"role": "system", "content": "Answer."}, {"role": "user", "content": text}] for text in texts]
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        bos = model.cfg.default_prepend_bos
        found = models.tokenise(model, chat.prompts[language])
        if bos and template is CHAT_ML:
            expected = [[tokenizer.bos_token_id, *row] for row in expected]
        assert found == expected
        assert chat.answers[language] == tuple(space + text.strip() for text in prompts.answers[language])
        assert chat.choices[language][1] == tuple(space + text.strip() for text in prompts.choices[language][1])
    sharing = ns.categorise(model, chat)
    assert len(sharing) == 2


def test_a_tokenizer_without_a_chat_template_or_one_that_refuses(animals):
    tokenizer = animals.hugging_face("bloom")[1]
    prompts = ns.ParallelPrompts({"en": ["Red and"], "de": ["Rot und"]})
    with pytest.raises(ns.NeuronShareError, match="no chat template"):
        prompts.with_chat_template(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system message') }}"
    with pytest.raises(ns.NeuronShareError, match="refuses the messages: no system message"):
        prompts.with_chat_template(tokenizer, system="x")


# Selecting examples.

FIVE = ns.ParallelPrompts({"en": list("abcde"), "de": list("vwxyz")}, examples=list("pqrst"))


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        (slice(3, 5), "st"),
        (slice(None, None, -2), "trp"),
        ([0, -1], "pt"),
        ((3, 1), "sq"),
        (range(2), "pq"),
        (np.array([4, 0]), "tp"),
        (torch.tensor([1, 2]), "qr"),
        (pd.Series([2], index=["x"]), "r"),
        ([True, False, False, True, False], "ps"),
        (np.arange(5) > 2, "st"),
        (torch.arange(5) < 1, "p"),
        (pd.Series([False, True, False, False, False]), "q"),
    ],
)
def test_prompts_and_results_select_the_same_examples(examples, expected):
    sharing = ns.NeuronSharing.from_activated(torch.eye(10, dtype=torch.bool).view(5, 2, 1, 10), languages=["en", "de"])
    places = ["pqrst".index(label) for label in expected]
    assert FIVE[examples].examples == tuple(expected)
    assert FIVE[examples].prompts["de"] == tuple("vwxyz"[place] for place in places)
    assert torch.equal(sharing[examples].activated(), sharing.activated()[places])
    assert torch.equal(sharing.activated(examples), sharing.activated()[places])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (3, r"prompts\[3\] is a bare number; write prompts\[\[3\]\] for this example alone"),
        (np.int64(3), r"write prompts\[\[3\]\]"),
        (torch.tensor(3), r"write prompts\[\[3\]\]"),
        ([0, 5], "There is no example 5; prompts has 5, counted from 0"),
        ([-6], "There is no example -6"),
        ([1, 1], "selects example 1 twice"),
        ([4, -1], "selects example 4 twice"),
        ([], r"prompts\[\[\]\] selects none of the 5 examples"),
        ([False] * 5, "selects none of the 5 examples"),
        ([True] * 4, "4 booleans for 5 examples; give one for each"),
        ([True, 1], "does not select examples; give a slice such as"),
        ("st", "does not select examples"),
        ([1.0], "does not select examples"),
        (None, "does not select examples"),
        (np.eye(5) > 0, "does not select examples"),
    ],
)
def test_what_does_not_select_examples_is_refused(as_users_run_it, examples, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        FIVE[examples]


def test_a_slice_of_a_result_is_a_view():
    sharing = ns.NeuronSharing.from_activated(torch.ones(5, 2, 1, 8, dtype=torch.bool), languages=["en", "de"])
    assert sharing[1:4:2].packed.data_ptr() == sharing.packed[1:].data_ptr()


def test_examples_for_which_a_condition_holds(as_users_run_it):
    prompts = ns.ParallelPrompts({"en": ["a", "bc"], "de": ["d", "e"]}, {"en": ["x", "y"], "de": ["z", "z"]})
    assert prompts.where(lambda row: row["answers"]["en"] == "y") == prompts[1:]
    assert prompts.where(lambda row: len(row["prompts"]["en"]) == 1 and row["choices"] is None) == prompts[:1]
    assert prompts.where(lambda row: row["example"] == 1) == prompts.where([False, True]) == prompts[[1]]
    assert prompts.where([1]) == prompts[[1]]
    table = pd.DataFrame(
        {"language": ["en", "en", "de", "de"], "example": [0, 1, 1, 0], "correct": [True, True, True, False]}
    )
    assert prompts.where(table) == prompts[[1]]  # known in both languages
    with pytest.raises(ns.NeuronShareError, match="The table lacks example 1 in language 'de'"):
        prompts.where(table.drop(index=2))
    with pytest.raises(ns.NeuronShareError, match="The table lacks the column correct"):
        prompts.where(table.drop(columns="correct"))
    with pytest.raises(ns.NeuronShareError, match="None of the 2 examples is answered rightly in all 2 languages"):
        prompts.where(table.assign(correct=False))
    with pytest.raises(ns.NeuronShareError, match="selects none of the 2 examples"):
        prompts.where(lambda row: False)


def test_no_language_is_called_all():
    with pytest.raises(ns.NeuronShareError, match="A language is called 'all'"):
        ns.ParallelPrompts({"en": ["a"], "all": ["b"]})


TWO = {"en": ["a", "b"], "de": ["c", "d"]}
WRONG = {
    "languages of different length": ({"en": ["a", "b"], "de": ["c"]}, "en 2, de 1.*align"),
    "one language": ({"en": ["a"]}, "1 language.*at least two"),
    "no language": ({}, "0 language.*at least two"),
    "no examples": ({"en": [], "de": []}, "no examples.*at least one"),
    "empty prompt": ({"en": ["a", "b"], "de": ["c", ""]}, "'de', example 1: the prompt is empty.*drop"),
    "blank prompt": ({"en": ["a", " \n"], "de": ["c", "d"]}, "'en', example 1: the prompt is empty"),
    "a number": ({"en": ["a", "b"], "de": [3, "d"]}, "'de', example 0: the prompt 3 is a int; give a string"),
    "None": ({"en": ["a", None], "de": ["c", "d"]}, "'en', example 1: the prompt None is a NoneType"),
    "a string for a list": ({"en": "ab", "de": ["c", "d"]}, "'en': a str where a list of prompts belongs"),
    "a list for a mapping": (["a", "b"], "prompts is a list; give a mapping"),
    "a language that is no string": ({1: ["a"], "de": ["b"]}, "1 is not the name of a language"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("prompts", "message"), WRONG.values(), ids=WRONG)
def test_prompts_that_are_none(prompts, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.ParallelPrompts(prompts)


WRONG_ANSWERS = {
    "answers in other languages": ({"answers": {"en": ["x", "y"]}}, "answers is for en, but prompts is for en, de"),
    "too few answers": ({"answers": {"en": ["x"], "de": ["y", "z"]}}, r"answers\['en'\] has 1 entries for 2 prompts"),
    "an empty answer": ({"answers": {"en": ["x", ""], "de": ["y", "z"]}}, "'en', example 1: the answer is empty"),
    "a string of answers": ({"answers": {"en": "xy", "de": ["y", "z"]}}, r"answers\['en'\] is a str; give a list"),
    "one choice": ({"choices": {la: [["x"], ["y"]] for la in TWO}}, "'en', example 0: choices .*at least two"),
    "the same choice twice": ({"choices": {la: [["x", "x"]] * 2 for la in TWO}}, "all different"),
    "an answer that is no choice": (
        {"answers": {la: ["x", " y"] for la in TWO}, "choices": {la: [["x", "y"]] * 2 for la in TWO}},
        "'en', example 1: the answer ' y' is not among the choices",
    ),
    "labels that repeat": ({"examples": ["p", "p"]}, "2 labels, 1 of them different, for 2 examples"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("rest", "message"), WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
def test_answers_and_choices(rest, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.ParallelPrompts(TWO, **rest)


@pytest.mark.usefixtures("as_users_run_it")
def test_one_example_by_number():
    with pytest.raises(ns.NeuronShareError, match=r"bare number; write prompts\[\[0\]\]"):
        ns.ParallelPrompts(TWO)[0]


@pytest.mark.usefixtures("as_users_run_it")
def test_select_of_a_language_that_is_not_there():
    with pytest.raises(ns.NeuronShareError, match="No prompts in 'xx'; these have en, de"):
        ns.ParallelPrompts(TWO).select(["en", "xx"])


WRONG_FRAMES = {
    "a column is missing": (pd.DataFrame({"example": [1], "prompt": ["a"]}), "lacks the column.*language"),
    "a row is missing": (
        pd.DataFrame({"example": [1, 1, 2], "language": ["en", "de", "en"], "prompt": list("abc")}),
        "Example 2 has no row in language 'de' .1 rows",
    ),
    "a row stands twice": (
        pd.DataFrame({"example": [1, 1, 1], "language": ["en", "de", "de"], "prompt": list("abc")}),
        "Example 1 appears more than once in language 'de'",
    ),
    "no language": (
        pd.DataFrame({"example": [1, 1], "language": ["en", None], "prompt": list("ab")}),
        "Row 1 of the table has no example or no language",
    ),
    "no prompt": (
        pd.DataFrame({"example": ["x", "x"], "language": ["en", "de"], "prompt": ["a", None]}),
        "'de', example 'x': the prompt .* is a",
    ),
    "no rows": (pd.DataFrame({"example": [], "language": [], "prompt": []}), "0 language"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("frame", "message"), WRONG_FRAMES.values(), ids=WRONG_FRAMES)
def test_frames_that_are_none(frame, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.ParallelPrompts.from_frame(frame)


@pytest.mark.usefixtures("as_users_run_it")
def test_a_frame_that_is_none():
    with pytest.raises(ns.NeuronShareError, match="frame is a list; give a pandas DataFrame"):
        ns.ParallelPrompts.from_frame([1, 2])


@pytest.mark.usefixtures("as_users_run_it")
def test_a_set_of_splits_and_something_else_for_a_dataset():
    splits = DatasetDict({"test": Dataset.from_dict({"example": [1]})})
    with pytest.raises(ns.NeuronShareError, match=r"set of splits \(test\)"):
        ns.ParallelPrompts.from_dataset(splits)
    with pytest.raises(ns.NeuronShareError, match=r"give a datasets\.Dataset"):
        ns.ParallelPrompts.from_dataset([1])


def test_a_notebook_shows_the_first_examples_and_data_stay_text():
    prompts = ns.ParallelPrompts(
        {"en": ["<script>one", "two", "three", "four"], "de": ["eins", "zwei", "drei", "vier"]},
        {"en": [" 1"] * 4, "de": [" 1"] * 4},
        examples=["a", "b", "c", "d"],
    )
    html = prompts._repr_html_()
    table = table_in(html)
    assert list(table["de"])[:3] == ["prompt, example a", "answer, example a", "prompt, example b"]
    assert table["de"]["prompt, example c"] == "drei"
    assert "vier" not in html
    assert "&lt;script&gt;one" in html
    assert "<script>" not in html
    assert "answer" not in ns.ParallelPrompts(prompts.prompts)._repr_html_()
