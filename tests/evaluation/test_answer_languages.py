"""In what language a model answers: the detector on sentences, and a model that is made to say words of a language."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare.evaluation.answer_languages import Detector

SENTENCES = {
    "en": "The children are playing in the garden.",
    "de": "Die Kinder spielen im Garten.",
    "fr": "Les enfants jouent dans le jardin.",
    "ru": "Дети играют в саду.",
    "th": "เด็กๆ กำลังเล่นอยู่ในสวน",
    "tr": "Çocuklar bahçede oynuyor.",
    "vi": "Bọn trẻ đang chơi trong vườn.",
    "zh": "孩子们在花园里玩耍。",
}


@pytest.fixture(autouse=True)
def installed():
    pytest.importorskip("lingua")


def test_sentences():
    detector = Detector(list(SENTENCES))
    for language, sentence in SENTENCES.items():
        answered, confidence = detector(sentence)
        assert answered == language
        assert 0.5 < confidence <= 1
    assert detector("<strong><em>Das ist ein Haus</em></strong> <str")[0] == "de"
    assert detector("Is 3 < 4, and 5 > 4 in this sentence?")[0] == "en"
    for nothing in ("", "  \n", "1234 --", "<strong><em><strong></em><h2 class='a'>1</h2><stro"):
        assert detector(nothing) == ("unclear", 0.0)


def test_a_model_that_is_made_to_say_words_of_a_language(bloom):
    """The logits of one word's tokens are raised, whatever the prompt's language."""
    said = {"de": " und", "en": " the"}

    def saying(text):
        tokens = bloom.tokenizer(text, add_special_tokens=False).input_ids

        def raised(residual_or_logits, hook):
            bonus = torch.zeros(residual_or_logits.shape[-1])
            bonus[tokens[0]] = 1e4
            return residual_or_logits + bonus

        return raised

    prompts = {"en": ["The sky is", "Cats"], "de": ["Der Himmel ist"]}
    plain = ns.answer_languages(bloom, prompts, max_new_tokens=4)
    assert list(plain.columns) == ["language", "example", "answered", "confidence", "text"]
    assert plain[["language", "example"]].to_numpy().tolist() == [["en", 0], ["en", 1], ["de", 0]]
    hook = "unembed.hook_out" if "unembed.hook_out" in bloom.hook_dict else "hook_logits"
    if hook not in bloom.hook_dict:
        pytest.skip("this class has no hook on its logits")
    for language, word in said.items():
        table = ns.answer_languages(bloom, prompts, max_new_tokens=4, fwd_hooks=[(hook, saying(word))])
        assert set(table["text"]) == {table["text"][0]}
        expected = Detector(["en", "de"])(table["text"][0])[0]
        assert (table["answered"] == expected).all()
        assert language in ("en", "de")


def test_texts_are_those_of_a_plain_greedy_loop(animals, backend):
    model = animals.lens("llama", backend)
    hugging_face, tokenizer = animals.hugging_face("llama")
    prompts = {"en": ["The sky is blue", "Cats"], "de": ["Der Himmel"]}
    table = ns.answer_languages(model, prompts, max_new_tokens=5, prepend_bos=False)
    ends = {tokenizer.eos_token_id}
    for row in table.itertuples():
        tokens = tokenizer(prompts[row.language][row.example], add_special_tokens=False).input_ids
        new: list[int] = []
        while len(new) < 5:
            with torch.no_grad():
                token = int(hugging_face(torch.tensor([tokens + new])).logits[0, -1].argmax())
            if token in ends:
                break
            new.append(token)
        assert row.text == tokenizer.decode(new)
        assert row.answered == Detector(["en", "de"])(row.text)[0]


def test_shares(bloom):
    table = ns.answer_languages(bloom, {"en": ["Cats", "Dogs"], "de": ["Katzen"]}, max_new_tokens=2)
    shares = pd.crosstab(table["language"], table["answered"], normalize="index")
    assert shares.sum(axis=1).tolist() == pytest.approx([1.0, 1.0])


def test_bad_input(bloom, monkeypatch):
    with pytest.raises(ns.NeuronShareError, match="candidates=.*; give"):
        ns.answer_languages(bloom, {"en": ["Cats"]})
    with pytest.raises(ns.NeuronShareError, match="candidates=.*; give"):
        Detector(["en", "EN"])
    with pytest.raises(ns.NeuronShareError, match="The detector does not know the language 'xx'"):
        ns.answer_languages(bloom, {"en": ["Cats"]}, candidates=["en", "xx"])
    with pytest.raises(ns.NeuronShareError, match="max_new_tokens=0"):
        ns.answer_languages(bloom, {"en": ["Cats"]}, candidates=["en", "de"], max_new_tokens=0)
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(ns.NeuronShareError, match=r'pip install "tl_neuronshare\[detection\]"'):
        ns.answer_languages(bloom, {"en": ["Cats"], "de": ["Katzen"]})
