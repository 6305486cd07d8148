"""Bad input gets a NeuronShareError that says what, where, and what to do; run as users run it, without type checks."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM

import tl_neuronshare as ns
import zoo
from tl_neuronshare import models

pytestmark = pytest.mark.usefixtures("as_users_run_it")

TWO = {"en": ["a", "b"], "de": ["c", "d"]}

PROMPTS = {
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
    "a language that is no string": ({1: ["a"], "de": ["b"]}, "1 is no name of a language"),
}


@pytest.mark.parametrize(("prompts", "message"), PROMPTS.values(), ids=PROMPTS)
def test_prompts(prompts, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.ParallelPrompts(prompts)


REST = {
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


@pytest.mark.parametrize(("rest", "message"), REST.values(), ids=REST)
def test_answers_and_choices(rest, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.ParallelPrompts(TWO, **rest)


def test_one_example_by_number():
    with pytest.raises(ns.NeuronShareError, match=r"use a slice, such as prompts\[3:4\]"):
        ns.ParallelPrompts(TWO)[0]


def test_select_of_a_language_that_is_not_there():
    with pytest.raises(ns.NeuronShareError, match="No prompts in 'xx'; these have en, de"):
        ns.ParallelPrompts(TWO).select(["en", "xx"])


FRAMES = {
    "a column is missing": (pd.DataFrame({"example": [1], "prompt": ["a"]}), "lacks the column.*language"),
    "a row is missing": (
        pd.DataFrame({"example": [1, 1, 2], "language": ["en", "de", "en"], "prompt": list("abc")}),
        "Example 2 has no row in language 'de' .1 rows",
    ),
    "a row stands twice": (
        pd.DataFrame({"example": [1, 1, 1], "language": ["en", "de", "de"], "prompt": list("abc")}),
        "Example 1 stands more than once in language 'de'",
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


@pytest.mark.parametrize(("frame", "message"), FRAMES.values(), ids=FRAMES)
def test_frames(frame, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.ParallelPrompts.from_frame(frame)


def test_a_frame_that_is_none():
    with pytest.raises(ns.NeuronShareError, match="frame is a list; give a pandas DataFrame"):
        ns.ParallelPrompts.from_frame([1, 2])


def test_a_set_of_splits_and_something_else_for_a_dataset():
    splits = DatasetDict({"test": Dataset.from_dict({"example": [1]})})
    with pytest.raises(ns.NeuronShareError, match=r"set of splits \(test\)"):
        ns.ParallelPrompts.from_dataset(splits)
    with pytest.raises(ns.NeuronShareError, match=r"give a datasets\.Dataset"):
        ns.ParallelPrompts.from_dataset([1])


OPTIONS = {
    "site": ({"site": "pre"}, "site='pre' is unknown; use one of post, gate, up"),
    "position": ({"position": "first"}, "position='first' is unknown; use one of last, any, all, or a negative index"),
    "threshold": ({"threshold": float("nan")}, "threshold=nan is no finite number"),
    "threshold of another kind": ({"threshold": "0"}, "threshold='0' is no finite number"),
    "BOS": ({"prepend_bos": "yes"}, "prepend_bos='yes' is unknown; use True, False, or None"),
    "batch size": ({"batch_size": 0}, "batch_size=0 is unknown"),
    "batch size of another kind": ({"batch_size": "many"}, "batch_size='many' is unknown; use \"auto\""),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options(bloom, prompts, options, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.categorise(bloom, prompts, **options)


def test_prompts_of_another_kind(bloom):
    with pytest.raises(ns.NeuronShareError, match="prompts is a dict; make it ParallelPrompts"):
        ns.categorise(bloom, TWO)


def test_a_prompt_longer_than_the_context(animals, backend):
    prompts = ns.ParallelPrompts({"en": ["a", "b"], "de": ["c", "x y " * 100]}, examples=["first", "second"])
    with pytest.raises(ns.NeuronShareError, match="'de', example 'second': the prompt has 40[01] tokens.*context 128"):
        ns.categorise(animals.lens("gpt2", backend), prompts)


def test_not_a_model(animals, prompts):
    for thing in (torch.nn.Linear(2, 2), animals.hugging_face("bloom")[0], "bloom"):
        with pytest.raises(ns.NeuronShareError, match=r"is no TransformerLens model; load one with .*load_model"):
            ns.categorise(thing, prompts)


def test_no_tokenizer(bloom, prompts):
    tokenizer, bloom.tokenizer = bloom.tokenizer, None
    try:
        with pytest.raises(ns.NeuronShareError, match="has no tokenizer"):
            ns.categorise(bloom, prompts)
    finally:
        bloom.tokenizer = tokenizer


def test_no_bos_token(bloom, prompts):
    bos, bloom.tokenizer.bos_token = bloom.tokenizer.bos_token, None
    try:
        with pytest.raises(ns.NeuronShareError, match="no BOS token; use prepend_bos=False"):
            ns.categorise(bloom, prompts, prepend_bos=True)
    finally:
        bloom.tokenizer.bos_token = bos


def test_a_model_without_mlps(tmp_path, prompts):
    config = {"vocab_size": 400, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
    model = ns.load_model(zoo.save_model("mamba", config, tmp_path), device="cpu")
    with pytest.raises(ns.NeuronShareError, match="has no MLP: none of its .* hooks"):
        ns.categorise(model, prompts)


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="only HookedTransformer can be attention-only")
def test_an_attention_only_model(prompts):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, attn_only=True, d_vocab=400, device="cpu"
    )
    model = HookedTransformer(config)
    model.tokenizer = zoo.make_tokenizer()
    with pytest.raises(ns.NeuronShareError, match="has no MLP"):
        ns.categorise(model, prompts)


def test_a_mixture_of_experts_is_refused_by_name(tmp_path, prompts):
    config = {
        **{name: size for name, size in zoo.KINDS["llama"].config.items() if name != "head_dim"},
        "num_local_experts": 4,
    }
    model = ns.load_model(zoo.save_model("mixtral", config, tmp_path), backend="bridge", device="cpu")
    with pytest.raises(ns.NeuronShareError, match=r"blocks\.0\.mlp is a mixture of experts.*dense model"):
        ns.categorise(model, prompts)


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer")
def test_a_mixture_of_experts_is_refused_on_hooked_transformer_too(prompts):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, d_mlp=64, act_fn="silu", d_vocab=400, device="cpu",
        num_experts=4, experts_per_token=2, gated_mlp=True,
    )  # fmt: skip
    model = HookedTransformer(config)
    model.tokenizer = zoo.make_tokenizer()
    with pytest.raises(ns.NeuronShareError, match=r"blocks\.0\.mlp is a mixture of experts"):
        ns.categorise(model, prompts)


def test_an_encoder_is_refused(tmp_path, prompts):
    config = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    model = ns.load_model(
        zoo.save_model("bert", config, tmp_path, auto=AutoModelForMaskedLM), backend="bridge", device="cpu"
    )
    with pytest.raises(ns.NeuronShareError, match="is no decoder-only language model"):
        ns.categorise(model, prompts)


def test_cohere_is_refused_where_its_bridge_is_wrong(tmp_path, prompts):
    config = {
        name: size for name, size in zoo.KINDS["llama"].config.items() if name not in ("head_dim", "rms_norm_eps")
    }
    directory = zoo.save_model("cohere", config | {"num_key_value_heads": 4}, tmp_path)
    model = ns.load_model(directory, backend="bridge", device="cpu")
    if models.has_hooked_transformer():
        with pytest.raises(ns.NeuronShareError, match="CohereForCausalLM.*use TransformerLens 4"):
            ns.categorise(model, prompts)
    else:
        assert len(ns.categorise(model, prompts)) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers(bloom, value):
    prompts = ns.ParallelPrompts(
        {"en": ["The sky", "Cats"], "de": ["Der Himmel ist", "Katzen"]}, examples=["sky", "cats"]
    )
    longest = len(models.tokenise(bloom, ["Der Himmel ist"])[0])

    def spoil(tensor, hook):
        spoilt = tensor.clone()
        spoilt[:, -1, 3] = value if tensor.shape[1] == longest else 0.0
        return spoilt

    with bloom.hooks(fwd_hooks=[("blocks.2.mlp.hook_post", spoil)]):
        message = r"Language 'de', example 'sky': NaN or infinite activations at blocks\.2\.mlp\.hook_post"
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.categorise(bloom, prompts, batch_size=1)


def test_files(tmp_path):
    sharing = ns.NeuronSharing.from_activated(torch.ones(1, 2, 1, 8, dtype=torch.bool), languages=["en", "de"])
    with pytest.raises(ns.NeuronShareError, match="There is no file .*missing"):
        ns.NeuronSharing.load(tmp_path / "missing")
    with pytest.raises(ns.NeuronShareError, match="no directory.*absent"):
        sharing.save(tmp_path / "absent" / "file")
    odd = ns.NeuronSharing.from_activated(
        torch.ones(1, 2, 1, 8, dtype=torch.bool), languages=["en", "de"], metadata={"model": object()}
    )
    with pytest.raises(ns.NeuronShareError, match="metadata cannot be saved.*object is not JSON"):
        odd.save(tmp_path / "odd")
    corrupt = tmp_path / "corrupt"
    sharing.save(corrupt)
    corrupt.write_bytes(corrupt.read_bytes()[:-1])
    with pytest.raises(ns.NeuronShareError, match="cannot be read.*damaged"):
        ns.NeuronSharing.load(corrupt)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ns.NeuronShareError, match="cannot be read.*damaged"):
        ns.NeuronSharing.load(tmp_path / "text")
    save_file({"packed": torch.zeros(2)}, tmp_path / "foreign", {"format": json.dumps("another/1")})
    with pytest.raises(ns.NeuronShareError, match="holds no NeuronSharing"):
        ns.NeuronSharing.load(tmp_path / "foreign")
    save_file({"packed": torch.zeros(2)}, tmp_path / "plain", {"format": "pt"})
    with pytest.raises(ns.NeuronShareError, match="holds no NeuronSharing"):
        ns.NeuronSharing.load(tmp_path / "plain")
    with pytest.raises(ns.NeuronShareError, match="There is no file"):
        ns.NeuronSharing.load(tmp_path)


HEADER = {"languages": ["a", "b"], "widths": [8], "hooks": ["h"], "metadata": {}}
TAMPERED = {
    "a key is missing": ({"widths": None}, torch.uint8, "cannot be read.*widths"),
    "a key of another kind": ({"languages": 5}, torch.uint8, "cannot be read"),
    "a language twice": ({"languages": ["a", "a"]}, torch.uint8, "not all different"),
    "other widths": ({"widths": [9]}, torch.uint8, "shape"),
    "other numbers": ({}, torch.float32, "torch.float32"),
}


@pytest.mark.parametrize(("change", "dtype", "message"), TAMPERED.values(), ids=TAMPERED)
def test_tampered_files(tmp_path, change, dtype, message):
    header = {key: json.dumps(value) for key, value in (HEADER | change).items() if value is not None}
    packed = torch.zeros(1, 2, 1, 1, dtype=dtype)
    save_file({"packed": packed}, tmp_path / "file", {"format": "tl_neuronshare.NeuronSharing/1", **header})
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.NeuronSharing.load(tmp_path / "file")


def test_results():
    sharing = ns.NeuronSharing.from_activated(torch.ones(1, 2, 1, 8, dtype=torch.bool), languages=["en", "de"])
    with pytest.raises(
        ns.NeuronShareError, match="'shared' is no type of neuron; use one of all-shared, partial-shared"
    ):
        sharing.mask("shared")
    with pytest.raises(ns.NeuronShareError, match=r"use a slice, such as sharing\[3:4\]"):
        sharing[0]
    with pytest.raises(ns.NeuronShareError, match="nothing to share"):
        sharing[5:]
    with pytest.raises(ns.NeuronShareError, match="1 language"):
        ns.neuron_types(torch.ones(1, 1, 4, dtype=torch.bool))
    with pytest.raises(ns.NeuronShareError, match="torch.float32 of shape .*give booleans"):
        ns.neuron_types(torch.ones(2, 1, 4))
    with pytest.raises(ns.NeuronShareError, match="shape"):
        ns.NeuronSharing.from_activated(torch.ones(1, 2, 1, 8, dtype=torch.bool), languages=["en", "de", "fr"])


def test_loading_models(tmp_path):  # names that the hub does not know: test_experiments.py
    with pytest.raises(ns.NeuronShareError, match="backend='fast' is unknown; use one of auto, hooked, bridge"):
        ns.load_model("gpt2", backend="fast")
    with pytest.raises(ns.NeuronShareError, match="The directory .* could not be loaded"):
        ns.load_model(tmp_path)


FACTS = {
    "relation": ({"relations": ["capital"]}, "no relation 'capital'; it has country_code"),
    "no relation": ({"relations": []}, "No relation was asked for"),
    "a string of relations": ({"relations": "sum"}, "relations is the string 'sum'; put it in a list"),
    "language": ({"languages": ["en", "pt"]}, "no language 'pt'; it has en, de"),
    "limit": ({"limit": 0}, "limit is 0"),
    "choices": ({"n_choices": 6}, "n_choices is 6; it can be 2 to 5"),
}


@pytest.mark.parametrize(("options", "message"), FACTS.values(), ids=FACTS)
def test_world_facts(options, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.world_facts(**options)


def test_tables_that_do_not_fit_a_figure(bloom, prompts):
    sharing = ns.categorise(bloom, prompts)
    with pytest.raises(ns.NeuronShareError, match=r"summary lacks the column.*type"):
        ns.plots.patterns(sharing.by_language(), sharing.by_language())
