"""From texts to tokens: special tokens, end tokens, and texts that cannot be tokenised."""

from __future__ import annotations

import shutil

import pytest
from transformers import GenerationConfig

import tl_neuronshare as ns
from support import zoo
from tl_neuronshare import models


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
