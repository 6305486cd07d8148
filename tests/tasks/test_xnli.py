"""The reader of XNLI, on a small source."""

from __future__ import annotations

import importlib

import pandas as pd
import pytest

import tl_neuronshare as ns
from support import sources


def test_a_premise_is_to_be_taken_as_true(xnli):
    prompts = ns.tasks.xnli(xnli)
    assert prompts.languages == ("en", "de", "zh")
    index = prompts.examples.index("2/21")
    assert prompts.prompts["de"][index] == (
        "Take the following as truth: Er sagte: „Niemand ist zu Hause.“\n"
        'Then the following statement: "Jemand hat gesprochen." is "true", "false" or "inconclusive"?'
    )
    gold = {"1/11": " false", "1/12": " inconclusive", "2/21": " true"}
    for language in prompts.languages:
        assert dict(zip(prompts.examples, prompts.answers[language], strict=True)) == gold
        assert set(prompts.choices[language]) == {(" true", " inconclusive", " false")}


def test_instructions_and_choices_of_xnli_in_the_language_itself(xnli):
    prompts = ns.tasks.xnli(xnli, instructions="native")
    index = prompts.examples.index("1/11")
    assert prompts.prompts["zh"][index].startswith("请将以下内容视为事实：从星期一起一直下雨。")
    assert [prompts.answers[language][index] for language in ("en", "de", "zh")] == [" false", " falsch", "错误"]
    for language, wording in importlib.import_module("tl_neuronshare.tasks.xnli").WORDING.items():
        assert all(answer in wording.instruction for answer in wording.answers), language
        assert len(set(wording.answers)) == 3


@pytest.mark.parametrize(
    "damage",
    [
        {"premise": ["a string"] * 3},
        {"hypothesis": [{"language": ["en", "de"], "translation": ["one"]}] * 3},
        {"label": [7] * 3},
        {"premise": [{"en": "one", "de": None}] * 3},
    ],
)
def test_a_damaged_data_set(tmp_path, offline, damage):
    folder = sources.xnli_from_the_hub(tmp_path / "xnli")
    path = next(folder.glob("*/*.parquet"))
    pd.read_parquet(path).assign(**damage).to_parquet(path)
    with pytest.raises(ns.NeuronShareError, match="row 0 of the data set"):
        ns.tasks.xnli(folder)


XNLI = {
    "cut off": (
        lambda lines: [*lines[:-1], lines[-1][:30]],
        "line 10: 8 cells where the header has 19 columns",
    ),
    "label": (
        lambda lines: [line.replace("neutral", "maybe") for line in lines],
        "line 3: the gold_label is 'maybe'",
    ),
    "header": (
        lambda lines: [lines[0].replace("promptID", "id"), *lines[1:]],
        "line 1: the header has no column 'promptID'",
    ),
    "no hypothesis": (
        lambda lines: [line.replace("Die Ernte wird gut.", "") for line in lines],
        "line 3: 'sentence2' is ''",
    ),
    "disagree": (
        lambda lines: [line.replace("neutral", "entailment") if line.startswith("de") else line for line in lines],
        "example 1/12 is neutral in 'en', and entailment in 'de'",
    ),
    "same key": (
        lambda lines: [*lines, lines[1].replace("Montag", "Sonntag")],
        "line 11: 1/11 appears at .*, line 2 too, and says something else",
    ),
}


@pytest.mark.parametrize(("damage", "message"), XNLI.values(), ids=XNLI)
def test_damage_to_xnli(xnli, damage, message):
    xnli.write_text("\n".join(damage(xnli.read_text("utf-8").splitlines())), "utf-8")
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.xnli(xnli)


def test_pairs_without_a_gold_label_are_dropped(xnli):
    xnli.write_text(xnli.read_text("utf-8").replace("\tneutral\t\t", "\t-\t\t"), "utf-8")
    prompts = ns.tasks.xnli(xnli)
    assert set(prompts.examples) == {"1/11", "2/21"}
    assert sources.counts(prompts)["de", "dropped", "no gold label"] == 1
    assert sources.counts(prompts)["de", "kept", "read"] == 3


def test_an_xnli_file_without_rows(xnli):
    for text in ("", xnli.read_text("utf-8").splitlines()[0]):
        xnli.write_text(text, "utf-8")
        with pytest.raises(ns.NeuronShareError, match=r"xnli\.test\.tsv: there is nothing after the header"):
            ns.tasks.xnli(xnli)
