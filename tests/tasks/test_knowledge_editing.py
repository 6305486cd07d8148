"""The reader of MzsRE, on a small source."""

from __future__ import annotations

import json

import pytest

import tl_neuronshare as ns
from support import sources


def test_an_edit_is_told_in_one_language_and_asked_in_another(mzsre):
    (fact,) = (edit for edit in sources.EDITS if "Bridge" in edit["en"][0])
    names = ("q", "other", "a", "loc", "loc_a", "new")
    english, german, thai = (dict(zip(names, row, strict=False)) for row in fact.values())
    key = f"{english['q']} {english['a']}"
    prompts = ns.tasks.knowledge_editing(mzsre, direction="en->xx")
    assert prompts.languages == ("en", "de", "th")
    index = prompts.examples.index(key)
    told = f"New fact: {english['q']} {english['a']}\n"
    assert prompts.prompts["th"][index] == f"{told}Question: {thai['q']}\nAnswer:"
    assert prompts.answers["th"][index] == f" {thai['a']}"
    assert prompts.prompts["en"][index] == f"{told}Question: {english['q']}\nAnswer:"
    assert prompts.choices is None
    back = ns.tasks.knowledge_editing(mzsre, direction="xx->en", instructions="native", asks="generality")
    told = f"Neue Tatsache: {german['q']} {german['a']}\n"
    assert back.prompts["de"][index] == f"{told}Question: {english['other']}\nAnswer:"
    assert set(zip(*back.answers.values(), strict=True)) == {(f" {edit['en'][2]}",) * 3 for edit in sources.EDITS}
    assert thai["a"] in back.prompts["th"][index]
    elsewhere = ns.tasks.knowledge_editing(mzsre, asks="locality", instructions="native")
    assert elsewhere.prompts["de"][index].endswith(f"\nFrage: {german['loc']}\nAntwort:")
    assert elsewhere.answers["de"][index] == f" {german['loc_a']}"
    assert elsewhere.prompts["en"][index].endswith(f"\nQuestion: {english['loc']}\nAnswer:")
    follows = ns.tasks.knowledge_editing(mzsre / "mzsre_test_duplicate_ende.json", asks="portability")
    assert follows.languages == ("en", "de")
    assert german["new"] in follows.prompts["de"][index]


def test_other_files_beside_those_of_mzsre_are_left_alone(mzsre):
    before = ns.tasks.knowledge_editing(mzsre)
    for name in ("mzsre_test_duplicate_ende.json.bak", "mzsre_train_duplicate_ende.json", "my_english.json"):
        (mzsre / name).write_text("[]")
    (mzsre.parent / "tuples").mkdir()
    assert ns.tasks.knowledge_editing(mzsre) == before


def test_files_of_mzsre_that_differ_in_english_are_refused(mzsre):
    path = mzsre / "mzsre_test_duplicate_ende.json"
    path.write_text(path.read_text("utf-8").replace("Where is the Nile?", "Where is the Rhine?"), "utf-8")
    assert len(ns.tasks.knowledge_editing(mzsre)) == 3  # it is not asked for
    with pytest.raises(
        ns.NeuronShareError, match=r"enth\.json, line 2: .* appears at .*ende\.json, line 2 too, and says"
    ):
        ns.tasks.knowledge_editing(mzsre, asks="locality")


EDITING = {
    "cut off": (lambda text: text[: len(text) // 2], r"ende\.json, line \d+: this is not JSON"),
    "cut off between entries": (lambda text: text.rstrip()[:-1], "line 80: the list does not go on here"),
    "a comma too many": (lambda text: text.rstrip()[:-1] + ",]", "this is not JSON"),
    "two lists": (lambda text: text + text, "line 80: more comes after the list"),
    "too deep": (lambda text: "[" * 100_000, "line 1: this is not JSON"),
    "half a character": (lambda text: text.replace('"blau"', '"\\ud83d"'), "'alt' holds half a character"),
    "no list": (lambda text: '{"en": {}}', "line 1: this is not a JSON list"),
    "no answer": (lambda text: text.replace('"alt": "blau"', '"alt": ""'), r"line 28, 'de': 'alt' is ''"),
    "no question": (lambda text: text.replace('"src": "Wann', '"scr": "Wann'), r"line 54, 'de': no 'src'; it has"),
    "no English": (lambda text: text.replace('"en": {', '"eng": {', 1), r"line 2: no entry in 'en'"),
    "same key": (
        lambda text: json.dumps([*json.loads(text), json.loads(text.replace("blau", "rot"))[1]]),
        "What colour is the Red House\\? blue appears at .* says something else",
    ),
}


@pytest.mark.parametrize(("damage", "message"), EDITING.values(), ids=EDITING)
def test_damage_to_mzsre(mzsre, damage, message):
    path = mzsre / "mzsre_test_duplicate_ende.json"
    path.write_text(damage(path.read_text("utf-8")), "utf-8")
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.knowledge_editing(mzsre)
