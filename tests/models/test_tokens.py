"""From texts to tokens: special tokens, end tokens, and texts that cannot be tokenised."""

from __future__ import annotations

import shutil

import pytest
from transformers import AutoTokenizer, GenerationConfig, MBart50Tokenizer, MBartTokenizer, NllbTokenizer

import tl_neuronshare as ns
from support import encoders, zoo
from tl_neuronshare import models
from tl_neuronshare.models import tokens


def test_unknown_tokens_stand_for_text(animals):
    """The tokenizer calls them special tokens, but they are part of the prompt."""
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    assert models.special_tokens(model) == [0]
    model.tokenizer.unk_token = "a"
    unknown = model.tokenizer.unk_token_id
    assert unknown in model.tokenizer.all_special_ids
    assert models.special_tokens(model) == [0]


@pytest.mark.parametrize("prepend_bos", [True, False, None])
@pytest.mark.parametrize("name", zoo.DENSE)
def test_tokens_are_those_of_transformer_lens(animals, name, backend, prepend_bos):
    model = animals.lens(name, backend)
    texts = [text for texts in zoo.TEXTS.values() for text in texts]
    for text, ours in zip(texts, models.tokenise(model, texts, prepend_bos=prepend_bos), strict=True):
        assert ours == model.to_tokens(text, prepend_bos=prepend_bos)[0].tolist()


def test_end_tokens_are_those_of_the_directory_too(animals, backend, tmp_path):
    """`generation_config.json` may name several end tokens, which a HookedTransformer does not know by itself."""
    directory = tmp_path / "bloom"
    shutil.copytree(animals.directory("bloom"), directory)
    GenerationConfig(eos_token_id=[7, 106]).save_pretrained(directory)
    model = ns.load_model(directory, backend=backend, device="cpu")
    assert models.end_tokens(model) == [0, 7, 106]  # 0 is the tokenizer's


@pytest.mark.usefixtures("as_users_run_it")
def test_a_prompt_longer_than_the_context(animals, backend):
    prompts = ns.ParallelPrompts({"en": ["a", "b"], "de": ["c", "x y " * 100]}, examples=["first", "second"])
    with pytest.raises(
        ns.NeuronShareError,
        match="'de', example 'second': the prompt has 40[01] tokens.*context is 128",
    ):
        ns.categorise(animals.lens("gpt2", backend), prompts)


@pytest.mark.usefixtures("as_users_run_it")
def test_no_tokenizer(bloom, prompts):
    tokenizer, bloom.tokenizer = bloom.tokenizer, None
    try:
        with pytest.raises(ns.NeuronShareError, match="has no tokenizer"):
            ns.categorise(bloom, prompts)
    finally:
        bloom.tokenizer = tokenizer


@pytest.mark.usefixtures("as_users_run_it")
def test_no_bos_token(bloom, prompts):
    bos, bloom.tokenizer.bos_token = bloom.tokenizer.bos_token, None
    try:
        with pytest.raises(ns.NeuronShareError, match="no BOS token; use prepend_bos=False"):
            ns.categorise(bloom, prompts, prepend_bos=True)
    finally:
        bloom.tokenizer.bos_token = bos


def unigrams(*special: str) -> list[tuple[str, float]]:
    """A vocabulary of letters for tokenizers that mark languages."""
    return [(token, 0.0) for token in special] + [(letter, -float(rank)) for rank, letter in enumerate("▁abdeistw", 2)]


MARKED = {
    "mbart50": (lambda: MBart50Tokenizer(vocab=unigrams("<s>", "<pad>", "</s>", "<unk>")), ["de_DE", "das", "</s>"]),
    "mbart": (lambda: MBartTokenizer(vocab=unigrams("<s>", "<pad>", "</s>", "<unk>")), ["das", "</s>", "de_DE"]),
    "nllb": (
        lambda: NllbTokenizer(
            vocab={token: rank for rank, (token, _) in enumerate(unigrams("<s>", "<pad>", "</s>", "<unk>"))},
            merges=[],
        ),
        ["deu_Latn", "das", "</s>"],
    ),
}


@pytest.fixture(params=MARKED)
def marked(request, tmp_path, monkeypatch):
    """An encoder-decoder with a tokenizer that marks the language of a text, and what it makes of "das" in German."""
    make, expected = MARKED[request.param]
    tokenizer = make()
    model = ns.load_model(encoders.save("mbart", tmp_path), backend="bridge", device="cpu")
    monkeypatch.setattr(model, "_tokenizer", tokenizer)
    monkeypatch.setattr(tokens, "vocabulary_size", lambda model: len(tokenizer))
    model.original_model.generation_config.forced_bos_token_id = None
    return model, expected


def test_each_language_is_marked_as_the_tokenizer_does(marked):
    model, expected = marked
    code = next(token for token in expected if "_" in token)
    before = model.tokenizer.src_lang, model.tokenizer.tgt_lang
    for language in {code, code.split("_")[0]}:
        (row,) = models.tokenised(model, ["das"], language, [0], prepend_bos=None)
        ours = model.tokenizer.convert_ids_to_tokens(row)
        assert [token for token in ours if token in model.tokenizer.all_special_tokens] == [
            token for token in expected if token != "das"
        ]
        assert ours.index(code) == (0 if expected[0] == code else len(ours) - 1)
    assert (model.tokenizer.src_lang, model.tokenizer.tgt_lang) == before
    with pytest.raises(ns.NeuronShareError, match="Language 'xx': the tokenizer of .* has none of this name"):
        models.tokenised(model, ["das"], "xx", [0], prepend_bos=None)


def test_the_target_language_is_that_of_the_settings_or_of_the_tokenizer(marked):
    model, expected = marked
    code = next(token for token in expected if "_" in token)
    with pytest.raises(ns.NeuronShareError, match="writes several languages, .* set model.tokenizer.tgt_lang"):
        models.decoder_prompt(model)
    answer = models.answer_tokens(model, [" das"])
    assert "".join(model.tokenizer.convert_ids_to_tokens(answer[0])) == "▁das"
    assert model.tokenizer.tgt_lang is None  # the tokenizer would keep the source's
    model.tokenizer.tgt_lang = code
    number = model.tokenizer.convert_tokens_to_ids(code)
    assert models.decoder_prompt(model) == [encoders.END, number]
    settings = model.original_model.generation_config
    settings.forced_bos_token_id = 7
    assert models.decoder_prompt(model) == [encoders.END, 7]
    settings.forced_bos_token_id = None
    settings.decoder_start_token_id = model.original_model.config.decoder_start_token_id = None
    assert models.decoder_prompt(model) == [number]


def test_special_tokens_of_an_encoder_are_those_that_were_saved(tmp_path):
    """TransformerLens replaces them by a BOS where a tokenizer has no class of its own; load_model gives them back."""
    from transformer_lens.model_bridge import TransformerBridge

    directory = encoders.save("mbart", tmp_path)
    model = ns.load_model(directory, backend="bridge", device="cpu")
    text = zoo.TEXTS["de"][0]
    assert models.tokenise(model, [text]) == AutoTokenizer.from_pretrained(directory)([text]).input_ids
    theirs = TransformerBridge.boot_transformers(str(directory), device="cpu")
    with pytest.raises(ns.NeuronShareError, match="has replaced the special tokens .* load the model with load_model"):
        models.tokenise(theirs, [text])


def test_a_decoder_without_a_start_is_refused(tmp_path):
    model = ns.load_model(encoders.save("t5", tmp_path), backend="bridge", device="cpu")
    for owner in (model.original_model.generation_config, model.original_model.config):
        owner.decoder_start_token_id = None
    with pytest.raises(ns.NeuronShareError, match="does not say with which token its decoder begins"):
        models.decoder_prompt(model)


def test_a_tokenizer_that_knows_nothing_of_a_text_is_refused(tmp_path, prompts):
    """Transformers invents a tokenizer of a few tokens where a directory has none; every prompt would be the same."""
    zoo.save_model("gpt_neox", zoo.KINDS["neox"].config, tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).unlink()
    with pytest.raises(ns.NeuronShareError, match="knows nothing of|has no token; write one"):
        ns.categorise(ns.load_model(tmp_path, backend="bridge", device="cpu"), prompts)
