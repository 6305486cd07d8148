"""The reader of parallel sentences, on a small source."""

from __future__ import annotations

import pytest

import tl_neuronshare as ns
from support import sources

TEXTS = sources.TRANSLATIONS


def test_each_sentence_is_answered_by_that_of_the_target_language(translations):
    prompts = ns.tasks.translation(translations)
    assert prompts.languages == ("deu_Latn", "rus_Cyrl", "zho_Hans")
    assert prompts.name == "translation/eng_Latn"
    for index, label in enumerate(prompts.examples):
        for language in prompts.languages:
            assert prompts.prompts[language][index] == TEXTS[language][int(label) - 1]
            assert prompts.answers[language][index].strip() == TEXTS["eng_Latn"][int(label) - 1]
    other = ns.tasks.translation(translations, target="deu_Latn", languages=["zho_Hans", "eng_Latn"], limit=1)
    assert other.languages == ("zho_Hans", "eng_Latn")
    assert len(other) == 1


def test_a_template_asks_for_the_translation(translations):
    one = ns.tasks.translation(translations, template="{source}\nEnglish:")
    assert one.prompts["deu_Latn"][one.examples.index("1")] == "Das Buch ist neu.\nEnglish:"
    assert one.answers["deu_Latn"][one.examples.index("1")] == " The book is new."
    wording = {"deu_Latn": "German: {source}", "zho_Hans": "Chinese: {source}"}
    each = ns.tasks.translation(translations, template=wording, languages=list(wording))
    assert each.prompts["zho_Hans"][each.examples.index("2")] == "Chinese: 下雨了。"
    for wrong in ("English:", {"deu_Latn": "{source}"}):
        with pytest.raises(ns.NeuronShareError, match=r"the template of '\w+' is .*; give a text with {source}"):
            ns.tasks.translation(translations, template=wrong)


@pytest.mark.parametrize("column", ["text", "sentence"])
@pytest.mark.usefixtures("offline")
def test_a_local_copy_from_the_hub_gives_the_same(tmp_path, translations, column):
    folder = sources.translations_from_the_hub(tmp_path / "hub", column)
    from_the_hub = ns.tasks.translation(folder, split="test")
    from_files = ns.tasks.translation(translations)
    for language in from_files.languages:
        assert sorted(from_the_hub.prompts[language]) == sorted(from_files.prompts[language])


def test_files_that_are_not_parallel_are_refused(translations):
    path = translations / "deu_Latn.devtest"
    path.write_text("Das Buch ist neu.\n", "utf-8")
    with pytest.raises(ns.NeuronShareError, match=r"deu_Latn.devtest has 1 lines, .*rus_Cyrl.devtest 2"):
        ns.tasks.translation(translations)
    path.write_text("\nEs regnet.\n", "utf-8")
    with pytest.raises(ns.NeuronShareError, match=r"deu_Latn.devtest, line 1: the line is empty"):
        ns.tasks.translation(translations)


def test_other_sources_and_targets_are_refused(translations):
    with pytest.raises(ns.NeuronShareError, match="has no target 'en' in this source; it has deu_Latn"):
        ns.tasks.translation(translations, target="en")
    with pytest.raises(ns.NeuronShareError, match="is one language's file; give the folder"):
        ns.tasks.translation(translations / "eng_Latn.devtest")
    with pytest.raises(ns.NeuronShareError, match="translation has nothing in 'eng_Latn'"):
        ns.tasks.translation(translations, languages=["eng_Latn", "deu_Latn"])
    (translations / "eng_Latn.dev").write_text("The book is new.\n", "utf-8")
    with pytest.raises(ns.NeuronShareError, match="end in dev, devtest; give a folder of files with one ending"):
        ns.tasks.translation(translations)
