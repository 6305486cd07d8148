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
    "a language that is no string": ({1: ["a"], "de": ["b"]}, "1 is not the name of a language"),
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
    with pytest.raises(ns.NeuronShareError, match=r"bare number; write prompts\[\[0\]\]"):
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


def test_thresholds(bloom, prompts):
    with pytest.raises(ns.NeuronShareError, match=r"threshold=\[\]; give at least one threshold, each once"):
        ns.categorise(bloom, prompts, threshold=[])
    with pytest.raises(ns.NeuronShareError, match=r"threshold=\[0, 0.0\]; give at least one threshold, each once"):
        ns.categorise(bloom, prompts, threshold=[0, 0.0])
    with pytest.raises(ns.NeuronShareError, match="threshold=inf is no finite number"):
        ns.categorise(bloom, prompts, threshold=(0.1, float("inf")))
    for huge in (10**400, 1e39):
        with pytest.raises(ns.NeuronShareError, match="is no finite number"):
            ns.categorise(bloom, prompts, threshold=huge)


def test_positions_before_a_prompt_s_first_token(bloom):
    prompts = ns.ParallelPrompts({"en": ["12345", "12"], "de": ["123", "1234"]}, examples=["long", "short"])
    message = r"'en', example 'short': the prompt has 2 token\(s\), and position=-3 needs 3; use another position"
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.categorise(bloom, prompts, position=-3)
    recorder = ns.SharingRecorder(bloom, ["en", "de"], 2, position=-3)
    with pytest.raises(ns.NeuronShareError, match="'de', example 1: the prompt has 2 token.*position=-3 needs 3"):
        recorder.fwd_hooks("de", [0, 1], torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]]))


@pytest.mark.parametrize("position", ["any", "all"])
def test_prompts_of_special_tokens_only(bloom, position):
    prompts = ns.ParallelPrompts({"en": ["a", "b"], "de": ["c", "<|end|>"]})
    message = r"'de', example 1: the prompt has 0 token\(s\) that is no special token, and position=.* needs 1"
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.categorise(bloom, prompts, position=position)
    assert len(ns.categorise(bloom, prompts, position="last")) == 2


def test_the_up_branch_of_a_model_without_gates(bloom, prompts):
    with pytest.raises(ns.NeuronShareError, match=r'blocks\.0\.mlp has no gate and so no up branch; use site="post"'):
        ns.categorise(bloom, prompts, site="up")


RECORDERS = {
    "one language": ((["en"], 2), {}, r"languages=\['en'\]; give a list of at least two names"),
    "a language twice": ((["en", "en"], 2), {}, "a list of at least two names, all different"),
    "a string of languages": (("en", 2), {}, "languages='en'; give a list of at least two"),
    "no examples": ((["en", "de"], 0), {}, "n_examples=0 is no number of examples"),
    "examples for their number": ((["en", "de"], ["a"]), {}, r"n_examples=\['a'\] is no number"),
    "position": ((["en", "de"], 2), {"position": 1}, "position=1 is unknown"),
    "site": ((["en", "de"], 2), {"site": "pre"}, "site='pre' is unknown"),
    "threshold": ((["en", "de"], 2), {"threshold": "0"}, "threshold='0' is no finite number"),
}


@pytest.mark.parametrize(("arguments", "options", "message"), RECORDERS.values(), ids=RECORDERS)
def test_recorders(bloom, arguments, options, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.SharingRecorder(bloom, *arguments, **options)


BATCHES = {
    "language": (("fr", [0]), {}, "language='fr' for 1 examples; give one of en, de"),
    "languages for fewer rows": ((["en"], [0, 1]), {}, r"language=\['en'\] for 2 examples; give one of en, de, or one"),
    "no examples": (("en", []), {}, r"examples=\[\] selects no examples"),
    "an empty slice": (("en", slice(3, 3)), {}, "selects no examples"),
    "one example by number": (("en", 1), {}, "examples=1 selects no examples; give their numbers"),
    "an example that is not there": (("en", [0, 2]), {}, "There is no example 2; there are 2, counted from 0"),
    "counting from the end": (("en", [-1]), {}, "There is no example -1"),
    "an example twice": (("en", [1, 1]), {}, "an example twice in one language"),
    "a mask of another batch": (
        ("en", [0, 1], torch.ones(3, 4).long()),
        {},
        r"attention_mask has shape \(3, 4\) for 2",
    ),
    "a mask of one row": (("en", [0], torch.ones(4).long()), {}, r"attention_mask has shape \(4,\) for 1 examples"),
    "tokens of another batch": (("en", [0]), {"tokens": torch.ones(2, 4).long()}, r"tokens has shape \(2, 4\) for 1"),
    "mask and tokens": (
        ("en", [0], torch.ones(1, 4).long()),
        {"tokens": torch.ones(1, 5).long()},
        r"attention_mask has shape \(1, 4\), tokens \(1, 5\)",
    ),
    "a mask to be added": (("en", [0]), {"attention_mask": torch.tensor([[0.0, -1e9]])}, "other values than 0 and 1"),
    "examples as floats": (("en", [0.0]), {}, "There is no example 0.0"),
    "an empty row": (("en", [0, 1], torch.tensor([[1, 1], [0, 0]])), {}, "'en', example 1: the prompt has 0 token"),
}


@pytest.mark.parametrize(("arguments", "options", "message"), BATCHES.values(), ids=BATCHES)
def test_batches_of_a_recorder(bloom, arguments, options, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.SharingRecorder(bloom, ["en", "de"], 2).fwd_hooks(*arguments, **options)


def test_runs_that_are_not_the_batch_that_was_announced(bloom):
    """Another number of prompts is never broadcast, another length never taken for a decoding step."""
    recorder = ns.SharingRecorder(bloom, ["en", "de"], 2)
    hooks = recorder.fwd_hooks("en", [0, 1], torch.ones(2, 4).long())
    for shape in ((1, 4), (3, 4), (2, 5), (2, 3), (2, 1)):
        message = (
            rf"gave a tensor of shape \({shape[0]}, {shape[1]}, 128\), not \(2, 4, 128\) .*Hooks are for the one batch"
        )
        with pytest.raises(ns.NeuronShareError, match=message):
            bloom.run_with_hooks(torch.ones(shape).long(), fwd_hooks=hooks)
    bloom.run_with_hooks(torch.ones(2, 4).long(), fwd_hooks=hooks)
    with pytest.raises(ns.NeuronShareError, match=r"of shape \(2, 3, 128\), not \(2, 4, 128\)"):
        bloom.run_with_hooks(torch.ones(2, 3).long(), fwd_hooks=hooks)


def test_results_before_everything_is_recorded(bloom):
    recorder = ns.SharingRecorder(bloom, ["en", "de"], 2)
    with pytest.raises(ns.NeuronShareError, match=r"'en', example 0: .* did not fire, so that 4 of 4 prompts are not"):
        recorder.sharing()
    tokens = torch.ones(2, 4).long()
    bloom.run_with_hooks(tokens, fwd_hooks=recorder.fwd_hooks("en", [0, 1], tokens=tokens))
    with pytest.raises(ns.NeuronShareError, match=r"'de', example 0: .* did not fire, so that 2 of 4 prompts are not"):
        recorder.sharing()
    bloom.run_with_hooks(tokens, fwd_hooks=recorder.fwd_hooks("de", [0, 1], tokens=tokens))
    assert len(recorder.sharing()) == 2
    with pytest.raises(ns.NeuronShareError, match="The prompts are 1 examples in en, de; 2 in en, de were recorded"):
        recorder.sharing(prompts=ns.ParallelPrompts({"en": ["a"], "de": ["b"]}))
    with pytest.raises(ns.NeuronShareError, match="prompts is a dict; give the ParallelPrompts that were run"):
        recorder.sharing(prompts={"en": ["a"], "de": ["b"]})


def caches_of(model, **shapes):
    return {la: model.run_with_cache(torch.ones(shape).long())[1] for la, shape in shapes.items()}


def test_caches(animals, backend, bloom):
    caches = caches_of(bloom, en=(2, 4), de=(2, 5))
    assert len(ns.categorise_caches(caches)) == 2
    with pytest.raises(ns.NeuronShareError, match="caches is no mapping"):
        ns.categorise_caches(list(caches.values()))
    with pytest.raises(ns.NeuronShareError, match=r"languages=\['en'\]; give a list of at least two names"):
        ns.categorise_caches({"en": caches["en"]})
    with pytest.raises(ns.NeuronShareError, match="'de': a dict is no ActivationCache.*run_with_cache returns"):
        ns.categorise_caches(caches | {"de": dict(caches["de"].cache_dict)})
    other = caches_of(animals.lens("gpt2", backend), de=(2, 5))
    with pytest.raises(ns.NeuronShareError, match="'de': another model than the first"):
        ns.categorise_caches(caches | other)
    with pytest.raises(ns.NeuronShareError, match="different numbers of prompts: en 2, de 3. Row i must be example i"):
        ns.categorise_caches(caches | caches_of(bloom, de=(3, 5)))
    some = {"de": bloom.run_with_cache(torch.ones(2, 5).long(), names_filter="blocks.0.mlp.hook_post")[1]}
    message = r"'de': the cache lacks blocks\.1\.mlp\.hook_post; .*name.endswith\('hook_post'\)"
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.categorise_caches(caches | some)
    lengths = {"en": [4, 2], "de": [5, 1]}
    assert len(ns.categorise_caches(caches, lengths=lengths)) == 2
    for wrong in ([4], [4, 0], [4, 6], [4, 1.5], [[4, 2]], ["4", "2"], [[4], [2, 1]], None):
        with pytest.raises(ns.NeuronShareError, match="'de': lengths .* do not fit 2 prompts of at most 5 tokens"):
            ns.categorise_caches(caches, lengths=lengths | {"de": wrong})
    with pytest.raises(ns.NeuronShareError, match="lengths is not for the languages of the caches; give it for en, de"):
        ns.categorise_caches(caches, lengths={"en": [4, 2]})
    with pytest.raises(ns.NeuronShareError, match="tokens is not for the languages"):
        ns.categorise_caches(caches, position="any", tokens={"de": torch.ones(2, 5).long()})
    with pytest.raises(ns.NeuronShareError, match="padding_side='both' is unknown; use left or right"):
        ns.categorise_caches(caches, padding_side="both")


def test_layers_of_a_result_that_are_not_there(bloom, prompts):
    sharing = ns.categorise(bloom, prompts)
    for layer in (3, -1, "0", True, 1.0):
        with pytest.raises(
            ns.NeuronShareError, match="There is no layer .*; use 0 to 2, or None for all|give one of 0 to 2"
        ):
            sharing.overlap(layer)
    activated = torch.ones(1, 2, 2, 8, dtype=torch.bool)
    with pytest.raises(ns.NeuronShareError, match=r"Neurons beyond the widths \(8, 4\) are activated"):
        ns.NeuronSharing.from_activated(activated, languages=["en", "de"], widths=[8, 4])
    with pytest.raises(
        ns.NeuronShareError, match=r"The widest of the layers has 4 neurons, the tensor 8|widest layer of"
    ):
        ns.NeuronSharing.from_activated(activated, languages=["en", "de"], widths=[4, 4])


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
        message = (
            r"Language 'de', example 'sky': NaN or infinite activations .or beyond 1e19. at blocks\.2\.mlp\.hook_post"
        )
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.categorise(bloom, prompts, batch_size=1)


def test_files(tmp_path):
    sharing = ns.NeuronSharing.from_activated(torch.ones(1, 2, 1, 8, dtype=torch.bool), languages=["en", "de"])
    with pytest.raises(ns.NeuronShareError, match="There is no file .*missing"):
        ns.NeuronSharing.load(tmp_path / "missing")
    with pytest.raises(ns.NeuronShareError, match="no directory.*absent"):
        sharing.save(tmp_path / "absent" / "file")
    with pytest.raises(ns.NeuronShareError, match="is a directory; name a file in it"):
        sharing.save(tmp_path)
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
        ns.NeuronShareError, match="'shared' is not a type of neuron; use one of all-shared, partial-shared"
    ):
        sharing.mask("shared")
    with pytest.raises(ns.NeuronShareError, match=r"bare number; write sharing\[\[0\]\]"):
        sharing[0]
    with pytest.raises(ns.NeuronShareError, match=r"slice\(5, None, None\)\] selects none of the 1 examples"):
        sharing[5:]
    with pytest.raises(ns.NeuronShareError, match=r"bare number; write sharing\[\[0\]\]"):
        sharing.activated(0)
    for odd in (torch.ones(1, 2, 1, 8), torch.ones(2, 1, 8, dtype=torch.bool), [[[[True]]]]):
        with pytest.raises(ns.NeuronShareError, match="activated is not a boolean tensor with axes example, language"):
            ns.NeuronSharing.from_activated(odd, languages=["en", "de"])
    for odd in ({0.0: sharing}, [sharing, None], sharing):
        with pytest.raises(
            ns.NeuronShareError, match="results is not a list of NeuronSharing; with several thresholds"
        ):
            ns.NeuronSharing.concatenate(odd)
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
