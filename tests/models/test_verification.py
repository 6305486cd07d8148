"""`verify` finds what is broken on purpose, passes what is right, and only refuses what depends on a failed check."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import tl_neuronshare as ns
from support import reference, zoo
from tl_neuronshare import models
from tl_neuronshare.models import verification
from tl_neuronshare.models.lens import has_hooked_transformer

PROMPTS = ns.ParallelPrompts(
    {"en": ["Cats are", "The sky"], "de": ["Die Katzen", "Der"]},
    {"en": [" nice", " is"], "de": [" sind", " Himmel"]},
    {"en": [[" nice", " blue"], [" is", " was"]], "de": [[" sind", " war"], [" Himmel", " Hund"]]},
)
RIGHT = [*zoo.KINDS, *zoo.MORE_KINDS]


@pytest.fixture
def fresh(animals, backend):
    """Return a function that loads a model for this test alone, which may break it."""

    def load(name="bloom"):
        hooked = animals.kind(name).hooked
        if backend == "hooked" and isinstance(hooked, dict):
            return zoo.hooked_by_hand(hooked, animals.directory(name))
        return ns.load_model(animals.directory(name), backend=backend, device="cpu")

    return load


def failed(model, **options):
    """Return the names of the checks that fail."""
    table = ns.verify(model, **options)
    return set(table["check"][table["passed"].eq(False).fillna(False)])


@pytest.mark.parametrize("name", RIGHT)
def test_every_architecture_passes(animals, name, backend):
    """All checks pass, except for the model's own `generate`: there the table agrees with a plain loop."""
    model = animals.lens(name, backend)
    hugging_face, _ = animals.hugging_face(name)
    table = ns.verify(model, reference=hugging_face).set_index("check")
    row = models.tokenise(model, verification.TEXTS)[0][:16]
    options = {"do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}
    with torch.no_grad():
        own = model.generate(torch.tensor([row]), max_new_tokens=4, prepend_bos=False, **options)[0].tolist()
    assert table.loc["generate", "passed"] == (own == reference.greedy(hugging_face, row, 4))
    assert table.drop(index="generate")["passed"].all()
    assert (table.drop(index="generate")["value"] < 1e-5).all()
    gated = ["gate", "up", "edit gate", "edit up"]
    assert set(gated) & set(table.index) == (set(gated) if models.is_gated(model) else set())


class Deaf(torch.nn.Module):
    """A hook point that calls its hooks, but drops what they return."""

    def __call__(self, tensor):
        super().__call__(tensor)
        return tensor


class Lying(torch.nn.Module):
    """A hook point whose hooks see different values from those that the model computes with."""

    def __call__(self, tensor):
        super().__call__(1.5 * tensor)
        return tensor


class Silent(torch.nn.Module):
    """A hook point that does not call its hooks."""

    def __call__(self, tensor):
        return tensor


def with_point(model, kind, layer=1):
    """Return the model after breaking the hook point of one layer's neurons."""
    point = model.hook_dict[f"blocks.{layer}.mlp.hook_post"]
    point.__class__ = type(kind.__name__, (kind, type(point)), {})
    return model


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_an_edit_that_does_not_arrive(fresh, name):
    model = with_point(fresh(name), Deaf)
    found = failed(model)
    assert "edit post" in found
    assert not found & {"logits", "post", "padding", "cache", "decoding", "unembedding"}
    mask = torch.zeros(3, models.neuron_layers(model, "post")[0].width, dtype=torch.bool)
    with pytest.raises(ns.NeuronShareError, match="fails the check 'edit post'.*verify"):
        ns.ablation_hooks(model, mask)
    sharing = ns.categorise(model, PROMPTS)
    with pytest.raises(ns.NeuronShareError, match="fails the check 'edit post'"):
        ns.ablation_study(model, PROMPTS, sharing)
    assert len(ns.evaluate(model, PROMPTS, scoring="exact")) == 4  # evaluate edits nothing without hooks


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_values_that_are_not_what_the_model_computes_with(fresh, name):
    model = with_point(fresh(name), Lying)
    found = failed(model)
    assert "post" in found
    assert not found & {"logits", "padding", "cache", "decoding", "unembedding"}
    calls = [
        lambda: ns.categorise(model, PROMPTS),
        lambda: ns.SharingRecorder(model, ["en", "de"], 2),
        lambda: ns.activation_rates(model, zoo.TEXTS),
        lambda: ns.reference_values(model, zoo.TEXTS),
    ]
    for call in calls:
        with pytest.raises(ns.NeuronShareError, match="fails the check 'post'"):
            call()
    assert len(ns.evaluate(model, PROMPTS)) == 4


def test_a_hook_that_is_not_called(fresh):
    with pytest.raises(ns.NeuronShareError, match="blocks.1.mlp.hook_post did not fire"):
        ns.verify(with_point(fresh(), Silent))


def test_padding_that_changes_other_rows(fresh):
    """If a model ignores the mask, only prompts of equal length share a batch, and results are as without padding."""
    model = fresh()
    forward = model.forward

    def without_mask(tokens, *args, attention_mask=None, **options):
        return forward(tokens, *args, **options)

    model.forward = without_mask
    table = ns.verify(model).set_index("check")
    assert not table.loc["padding", "passed"]
    assert "batches are of one length" in table.loc["padding", "note"]
    assert table.loc["decoding", "passed"]
    prompts = ns.ParallelPrompts(zoo.TEXTS)
    found = ns.categorise(model, prompts)
    assert found == ns.categorise(model, prompts, batch_size=1)
    assert found.metadata["batches"] == len(
        {len(row) for texts in zoo.TEXTS.values() for row in models.tokenise(model, texts)}
    )


def test_a_cache_that_is_lost(fresh, backend, monkeypatch):
    """Each step would then see only one token; so decoding runs all tokens again, and its answers are right."""
    model = fresh()
    right = ns.evaluate(model, PROMPTS, scoring="exact", max_new_tokens=4)
    if backend == "bridge":
        for block in model.blocks:
            monkeypatch.setattr(block.attn, "_update_kv_cache", lambda k, v, **options: (k, v))
    else:
        from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

        monkeypatch.setattr(TransformerLensKeyValueCacheEntry, "append", lambda self, k, v: (k, v))
    table = ns.verify(model).set_index("check")
    assert not table.loc["cache", "passed"]
    assert table.loc["decoding", "passed"]
    assert not verification.caches(model)
    assert ns.evaluate(model, PROMPTS, scoring="exact", max_new_tokens=4).equals(right)


def test_a_forward_pass_that_computes_something_else(fresh, animals, backend):
    """A HookedTransformer is compared only if a reference is given, because it holds no second model."""
    model = fresh()
    reference_model, _ = animals.hugging_face("bloom")
    if backend == "hooked":
        assert failed(model) == set()
        model.blocks[1].mlp.W_out.data *= 1.01
    else:
        mlp = model.blocks[1].mlp  # only TransformerLens's component is changed, not the module inside
        forward = type(mlp).forward
        mlp.__class__ = type(
            "Off", (type(mlp),), {"forward": lambda *given, **options: 1.01 * forward(*given, **options)}
        )
    assert "logits" in failed(model, reference=reference_model)
    assert "logits" in failed(model)  # the comparison with a reference is remembered
    calls = [
        lambda: ns.categorise(model, PROMPTS),
        lambda: ns.evaluate(model, PROMPTS),
        lambda: ns.perplexity(model, zoo.TEXTS),
    ]
    for call in calls:
        with pytest.raises(ns.NeuronShareError, match="fails the check 'logits'"):
            call()


def test_a_nan_in_any_text_fails():
    """Python's max ignores a NaN that is not the first."""
    worst = verification._worst([0.1, float("nan"), 0.2])
    assert math.isnan(worst)
    assert verification.Outcome.of(worst, 1e-4, "wrong").passed is False


def test_a_model_is_verified_once_and_found_again(fresh):
    model = fresh("llama")
    passes = []
    forward = model.forward

    def counting(*given, **options):
        passes.append(1)
        return forward(*given, **options)

    model.forward = counting
    ns.categorise(model, PROMPTS)
    first = len(passes)
    ns.categorise(model, PROMPTS)
    assert len(passes) - first == 1 < first  # the batch
    assert ns.verify(model).set_index("check")["passed"].drop("generate").dropna().all()
    passes.clear()
    ns.ablation_hooks(model, torch.zeros(3, 96, dtype=torch.bool))
    ns.evaluate(model, PROMPTS)
    assert len(passes) == 2  # one for each language
    model.to(torch.bfloat16)
    passes.clear()
    ns.categorise(model, PROMPTS)
    assert len(passes) > 1  # the changed model is verified again


def test_hooks_on_the_model_take_no_part_and_stay(fresh):
    model = fresh()
    model.train()
    ns.verify(model)
    seen = []

    def double(tensor, hook):
        seen.append(tuple(tensor.shape))
        return 2 * tensor

    with model.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", double)]):
        assert failed(model) <= {"generate"}
        assert not seen
        ns.evaluate(model, PROMPTS)
    assert seen
    assert all(module.training for module in model.modules())
    assert not models.has_hooks(model)
    seen.clear()
    model.hook_dict["blocks.1.mlp.hook_post"].add_perma_hook(double)  # permanent hooks are the user's too
    assert failed(model) <= {"generate"}
    assert not seen
    assert models.has_hooks(model)
    handle = model.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)  # torch's own
    assert failed(model) <= {"generate"}
    handle.remove()


def test_a_fresh_model_has_no_hooks(animals, backend):
    """Hooks of the libraries do not count, such as those of TransformerLens 4's bridge of OPT."""
    model = ns.load_model(animals.directory("opt"), backend=backend, device="cpu")
    model(torch.tensor([[5, 6]]))  # the libraries add some hooks in this pass
    assert not models.has_hooks(model)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda tensor, hook: None)]):
        assert models.has_hooks(model)
    assert not models.has_hooks(model)


def test_a_model_that_was_verified_is_not_kept_alive(animals):
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    ns.verify(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_is_not_verified_says_so(animals, backend, tmp_path):
    model = with_point(ns.load_model(animals.directory("bloom"), backend=backend, device="cpu", verify=False), Lying)
    sharing = ns.categorise(model, PROMPTS)  # allowed, at the user's own risk
    assert sharing.metadata["verified"] is False
    sharing.save(tmp_path / "file")
    assert ns.NeuronSharing.load(tmp_path / "file").metadata["verified"] is False
    assert ns.categorise(animals.lens("bloom", backend), PROMPTS).metadata["verified"] is True
    assert "post" in failed(model)  # from now on the model is refused again
    with pytest.raises(ns.NeuronShareError, match="'post'"):
        ns.categorise(model, PROMPTS)


def made(tmp_path, model_type, **changes):
    """Return a bridge of a different architecture, with the sizes of a small Qwen 3."""
    config = zoo.MORE_KINDS["qwen3"].config | changes
    config = {key: value for key, value in config.items() if value is not None}
    return ns.load_model(zoo.save_model(model_type, config, tmp_path), backend="bridge", device="cpu")


@pytest.mark.parametrize("model_type", ["cohere", "hunyuan_v1_dense"])
def test_adapters_that_are_wrong_on_transformer_lens_3(tmp_path, model_type):
    """These adapters compute wrong logits on TransformerLens 3 and right ones on 4."""
    no = dict.fromkeys(["head_dim", "rms_norm_eps"]) if model_type == "cohere" else {}
    model = made(tmp_path, model_type, num_key_value_heads=4, **no)
    if has_hooked_transformer():
        assert "logits" in failed(model)
        with pytest.raises(ns.NeuronShareError, match="fails the check 'logits'.*Hugging Face.*TransformerLens"):
            ns.evaluate(model, PROMPTS)
    else:
        assert failed(model) <= {"generate"}


def test_a_norm_between_the_product_and_the_down_projection(tmp_path):
    """In BitNet, setting `post` to zero does not set act(gate) to zero, and only this edit is refused."""
    model = made(tmp_path, "bitnet")
    assert failed(model) - {"generate"} == {"edit gate"}
    mask = torch.ones(3, 96, dtype=torch.bool)
    with pytest.raises(ns.NeuronShareError, match="fails the check 'edit gate'"):
        ns.ablation_hooks(model, mask, site="gate")
    assert ns.ablation_hooks(model, mask, site="up")
    assert ns.categorise(model, PROMPTS, site="gate").metadata["site"] == "gate"


def test_a_head_after_the_final_norm_and_a_gate_without_a_hook(tmp_path):
    """ModernBERT's decoder has both: attribution and `gate` are refused, since `gate` would be read as `post`."""
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    config = {key: zoo.MORE_KINDS["qwen3"].config[key] for key in sizes} | {"intermediate_size": 48}
    model = ns.load_model(zoo.save_model("modernbert-decoder", config, tmp_path), backend="bridge", device="cpu")
    assert failed(model) - {"generate"} == {"unembedding"}
    sharing = ns.categorise(model, PROMPTS)
    for norm in ("none", "full"):
        with pytest.raises(ns.NeuronShareError, match="'unembedding'.*not what the final norm gives"):
            ns.attribute(model, PROMPTS, sharing, norm=norm)
    for site in ("gate", "up"):
        with pytest.raises(ns.NeuronShareError, match="has a gate, but no hook for it"):
            ns.categorise(model, PROMPTS, site=site)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_processed_weights_are_compared_by_a_small_model_of_the_architecture(animals, name):
    model = ns.load_model(animals.directory(name), backend="bridge", device="cpu")
    model.enable_compatibility_mode(disable_warnings=True)
    table = ns.verify(model).set_index("check")
    assert table.drop(index="generate")["passed"].all()
    assert table.loc["logits", "value"] < 1e-5


@pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer")
def test_a_hooked_transformer_is_compared_with_the_directory_it_is_made_of(tmp_path, animals):
    """This BLOOM adds the norm's output to the residual stream, which a HookedTransformer ignores without a warning."""
    config = zoo.KINDS["bloom"].config | {"apply_residual_connection_post_layernorm": True}
    directory = zoo.save_model("bloom", config, tmp_path)
    with pytest.raises(ns.NeuronShareError, match=r"is a different model .*the logits differ.*use|Use backend"):
        ns.load_model(directory, backend="hooked", device="cpu")
    assert ns.load_model(directory, backend="hooked", device="cpu", verify=False) is not None
    table = ns.verify(ns.load_model(directory, backend="bridge", device="cpu"))
    assert table["passed"].all()


DROPPED = {
    "biases of attention and MLP": ("llama", {"attention_bias": True, "mlp_bias": True}, "the logits differ"),
    "a window longer than the texts": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
        "has a sliding window of 64 tokens in some layers, which this model lacks",
    ),
    "RoPE that depends on the length": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        "dynamic RoPE depends on a text's length",
    ),
}


@pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize(("model_type", "config", "what"), DROPPED.values(), ids=DROPPED)
def test_what_a_hooked_transformer_leaves_out_is_found(tmp_path, model_type, config, what):
    directory = zoo.save_model(model_type, {**zoo._LLAMA, **config}, tmp_path)
    with pytest.raises(ns.NeuronShareError, match=f"is a different model .*{what}.*Use backend=.bridge"):
        ns.load_model(directory, backend="hooked", device="cpu")


@pytest.mark.usefixtures("as_users_run_it")
def test_texts_of_one_s_own_and_bad_ones(animals, backend):
    model = animals.lens("bloom", backend)
    assert ns.verify(model, texts=["Cats", "The sky is blue and"])["passed"].dropna().all()
    for texts in ("Cats", [], [1], 5, ["x"] * 33):
        with pytest.raises(ns.NeuronShareError, match="give a list of texts"):
            ns.verify(model, texts=texts)
    with pytest.raises(ns.NeuronShareError, match="is not a TransformerLens model"):
        ns.verify(torch.nn.Linear(1, 1))
    for reference_model in ("x", torch.nn.Linear(1, 1), model):
        with pytest.raises(ns.NeuronShareError, match="reference is a .*give a Hugging Face language model"):
            ns.verify(model, reference=reference_model)
    with pytest.raises(ns.NeuronShareError, match="reference is a different model: it has 4000 tokens"):
        ns.verify(model, reference=animals.hugging_face("demo")[0])


@pytest.mark.parametrize("context", [3, 24])
def test_a_tokenizer_that_cannot_read_our_texts_and_a_short_context(tmp_path, context):
    config = {"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": context}
    model = ns.load_model(zoo.save_model("gpt2", config, tmp_path), backend="bridge", device="cpu")
    digits = Tokenizer(tokenizer_models.WordLevel({char: place for place, char in enumerate("0123456789a")}))
    digits.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=digits)
    with pytest.raises(Exception, match="UNK"):
        models.tokenise(model, verification.TEXTS)
    prompts = ns.ParallelPrompts({"a": ["12"], "b": ["34"]}, {"a": ["5"], "b": ["6"]})
    assert ns.categorise(model, prompts, prepend_bos=False).n_examples == 1
    assert len(ns.evaluate(model, prompts, scoring="exact", max_new_tokens=1, prepend_bos=False)) == 2


@pytest.mark.parametrize("check", ["post", "edit post", "cache"])
def test_ctrl_c_in_a_check_leaves_the_model_as_found(animals, backend, check, monkeypatch):
    model = ns.load_model(animals.directory("bloom"), backend=backend, device="cpu")
    model.train()
    modules, hooks = list(model.modules()), []
    with model.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", lambda tensor, hook: hooks.append(1))]):
        with monkeypatch.context() as patch:

            def stop(*given):
                raise KeyboardInterrupt

            patch.setattr(verification, "_difference", stop)
            with pytest.raises(KeyboardInterrupt):
                verification._outcome(model, check, verification._record_of(model))
        assert [id(module) for module in model.modules()] == [id(module) for module in modules]
        assert all(module.training for module in modules)
        model(torch.tensor([[5, 6]]))
        assert hooks
    assert ns.verify(model)["passed"].dropna().all()
