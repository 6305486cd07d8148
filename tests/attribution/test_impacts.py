"""Scores: what single neurons write and push, compared with ablations and with TransformerLens."""

from __future__ import annotations

import warnings
from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tl_neuronshare as ns
from support import reference, zoo
from support.impacts import scores_of
from support.prompts import PROMPTS, QUIZ, quiz_for
from tl_neuronshare import models
from tl_neuronshare.attribution import impacts as impacts_module
from tl_neuronshare.models import added, dense
from tl_neuronshare.running.plan import Running


@pytest.mark.parametrize(("answer", "norm"), [("first", "none"), ("all", "full")])
@pytest.mark.parametrize("name", zoo.LITERAL)
def test_scores_equal_a_loop_over_single_neurons(animals, name, backend, answer, norm):
    model, prompts = animals.lens(name, backend), quiz_for(name)
    expected = reference.literal_scores(*animals.hugging_face(name), animals.kind(name), prompts, answer, norm)
    found = scores_of(model, prompts, ns.categorise(model, prompts), answer=answer, norm=norm)
    assert found.keys() == expected.keys()
    for key, of_one in expected.items():
        for ours, in_a_loop in zip(found[key], of_one, strict=True):
            theirs = torch.tensor(in_a_loop)
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max(), key


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="needs HookedTransformer's normalization_type=None")
def test_without_a_norm_the_score_is_what_the_logit_loses(animals):
    """Causal: one neuron of the last layer is set to zero at the last position."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, d_mlp=48, act_fn="gelu", d_vocab=400, device="cpu", seed=1,
        normalization_type=None,
    )  # fmt: skip
    model = HookedTransformer(config, AutoTokenizer.from_pretrained(animals.directory("bloom")))
    sharing = ns.categorise(model, QUIZ)
    for norm in ("none", "frozen", "full"):
        found = scores_of(model, QUIZ, sharing, norm=norm)
        for (example, language), neuron in zip(product(range(3), QUIZ.languages), (0, 7, 13) * 3, strict=True):
            text, gold = QUIZ.prompts[language][example], QUIZ.answers[language][example]
            start, (tokens,), _ = reference.literal_start(model.tokenizer, text, [gold], True)
            before = torch.tensor([tokens[:start]])
            mask = torch.zeros(2, 48, dtype=torch.bool)
            mask[1, neuron] = True
            hooks = ns.ablation_hooks(model, mask, position="last")
            logits = [model(before), model.run_with_hooks(before, fwd_hooks=hooks)]
            lost = (logits[0] - logits[1])[0, -1, tokens[start]]
            assert abs(found[example, language, 1][1][neuron] - lost) <= 1e-4


def literal_norm(name, residual, scale_of, module):
    """The final norm by its formula, at the scale of another residual stream."""
    centre = (lambda x: x) if name in ("llama", "qwen2") else (lambda x: x - x.mean())
    eps = 1e-6 if name in ("llama", "qwen2") else 1e-5
    scale = (centre(scale_of).square().mean() + eps).sqrt()
    return centre(residual) / scale * module.weight + getattr(module, "bias", 0.0)


@pytest.mark.parametrize("name", ["bloom", "gpt2", "llama", "opt", "qwen2"])
def test_at_a_frozen_scale_the_score_is_what_the_logit_loses(animals, name, backend):
    """Causal, with the norm's weight: one neuron of Hugging Face's model is zeroed, and its last norm is by hand."""
    model, kind = animals.lens(name, backend), zoo.KINDS[name]
    hugging_face, tokenizer = animals.hugging_face(name)
    found = scores_of(model, QUIZ, ns.categorise(model, QUIZ), norm="frozen")
    module = hugging_face.get_submodule(kind.norm)
    last, residual = kind.n_layers - 1, []
    module.register_forward_pre_hook(lambda _, inputs: residual.append(inputs[0].reshape(-1, 32)[-1]))
    for (example, language), neuron in zip(product(range(3), QUIZ.languages), (0, 7, 13) * 3, strict=True):
        text, gold = QUIZ.prompts[language][example], QUIZ.answers[language][example]
        start, (tokens,), _ = reference.literal_start(tokenizer, text, [gold], kind.bos)

        def without(values, neuron=neuron):
            flat = values.reshape(-1, values.shape[-1]).clone()
            flat[-1, neuron] = 0
            return flat.reshape(values.shape)

        with torch.no_grad():
            hugging_face(torch.tensor([tokens[:start]]))
            with reference.edited(hugging_face, module=kind.down, edits={last: without}):
                hugging_face(torch.tensor([tokens[:start]]))
        before, after = residual[-2:]
        torch.testing.assert_close(literal_norm(name, before, before, module), module(before), rtol=1e-5, atol=1e-5)
        logits = [
            literal_norm(name, one, before, module) @ hugging_face.get_output_embeddings().weight[tokens[start]]
            for one in (before, after)
        ]
        assert abs(found[example, language, last][1][neuron] - (logits[0] - logits[1])) <= 1e-4


AFTER = "model.layers.{}.post_feedforward_layernorm"
# The norm after the MLP, and the number by which its output is multiplied.
ADDED_THROUGH = {
    "gemma2": (zoo.KINDS["gemma2"].config, AFTER, 1.0),
    "gemma3_text": (zoo.MORE_KINDS["gemma3"].config, AFTER, 1.0),
    "olmo2": (zoo._LLAMA, AFTER, 1.0),
    "olmo3": (zoo._LLAMA, AFTER, 1.0),
    "granite": ({**zoo._LLAMA, "residual_multiplier": 0.22}, None, 0.22),
}


@pytest.mark.parametrize(
    ("model_type", "config", "after", "factor"), [(k, *v) for k, v in ADDED_THROUGH.items()], ids=ADDED_THROUGH
)
@pytest.mark.parametrize("norm", ["frozen", "full"])
def test_through_a_norm_after_the_mlp_the_score_is_what_the_logit_loses(
    model_type, config, after, factor, norm, backend, tmp_path
):
    """Causal, for every neuron of every layer: Hugging Face's modules in float64, while all scales stay as they are."""
    zoo.save_model(model_type, config, tmp_path)
    if backend == "hooked" and model_type != "olmo3":
        pytest.skip("TransformerLens loads no HookedTransformer of it from a directory")
    model = ns.load_model(tmp_path, backend=backend, device="cpu")
    hugging_face = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").double().eval()
    prompts = QUIZ.select(["en", "de"])
    with warnings.catch_warnings(action="error"):  # nothing is left out that a user should know
        sharing = ns.categorise(model, prompts, site="post")
        found = scores_of(model, prompts, sharing, norm=norm)
    for example, language, layer in product(range(3), prompts.languages, range(3)):
        text, gold = prompts.prompts[language][example], prompts.answers[language][example]
        has_bos = sharing.metadata["prepend_bos"]
        start, (tokens,), _ = reference.literal_start(model.tokenizer, text, [gold], has_bos)
        lost, lengths = reference.direct_losses(
            hugging_face,
            tokens[:start],
            tokens[start],
            down=f"model.layers.{layer}.mlp.down_proj",
            norm="model.norm",
            after=after and after.format(layer),
            factor=factor,
            is_frozen=norm == "frozen",
        )
        generation, correctness = found[example, language, layer]
        assert lost.abs().max() > 0.01
        assert (correctness - lost).abs().max() <= 1e-4
        if norm == "frozen":
            assert (generation - lengths).abs().max() <= 1e-4


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="only HookedTransformer divides by its hook_scale")
@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_at_a_scale_that_a_hook_freezes_too(animals, name):
    model, neuron = animals.lens(name, "hooked"), 5
    found = scores_of(model, QUIZ, ns.categorise(model, QUIZ), norm="frozen")
    start, (tokens,), _ = reference.literal_start(
        model.tokenizer, PROMPTS["en"][1], [QUIZ.answers["en"][1]], zoo.KINDS[name].bos
    )
    before = torch.tensor([tokens[:start]])
    logits, cache = model.run_with_cache(before)
    mask = torch.zeros(3, model.cfg.d_mlp, dtype=torch.bool)
    mask[2, neuron] = True
    frozen = [("ln_final.hook_scale", lambda scale, hook: cache["ln_final.hook_scale"])]
    ablated = model.run_with_hooks(before, fwd_hooks=frozen + ns.ablation_hooks(model, mask, position="last"))
    lost = (logits - ablated)[0, -1, tokens[start]]
    assert abs(found[1, "en", 2][1][neuron] - lost) <= 1e-4


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_without_the_norms_weight_it_is_what_transformer_lens_has(animals, name, backend, tmp_path):
    """`stack_neuron_results` and `apply_ln`, which leaves out the weight."""
    hugging_face, tokenizer = animals.hugging_face(name)
    module = hugging_face.get_submodule(zoo.KINDS[name].norm)
    with torch.no_grad():
        module.weight.fill_(1.0)
    hugging_face.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = (
        zoo.hooked_by_hand(zoo.KINDS[name].hooked, tmp_path)
        if backend == "hooked" and name == "llama"
        else ns.load_model(tmp_path, backend=backend, device="cpu")
    )
    found = scores_of(model, QUIZ, ns.categorise(model, QUIZ), norm="frozen")
    for example, language in product(range(3), QUIZ.languages):
        text, gold = QUIZ.prompts[language][example], QUIZ.answers[language][example]
        start, (tokens,), _ = reference.literal_start(tokenizer, text, [gold], zoo.KINDS[name].bos)
        _, cache = model.run_with_cache(torch.tensor([tokens[:start]]))
        stack = cache.stack_neuron_results(layer=-1, pos_slice=-1, apply_ln=True)
        theirs = (stack @ model.unembed.W_U[:, tokens[start]]).reshape(3, -1)
        for layer in range(3):
            torch.testing.assert_close(found[example, language, layer][1], theirs[layer], rtol=1e-4, atol=1e-5)


def test_scores_have_no_gradients_and_those_of_the_user_stay_on(bloom):
    assert torch.is_grad_enabled()
    scores = []

    def step(of_layer):
        scores.append(of_layer)
        return {}

    options = impacts_module.ImpactOptions()
    impacts_module.Impacts(bloom, QUIZ, ns.categorise(bloom, QUIZ), options, Running()).each(
        step, lambda *kept: None, task="scores"
    )
    assert torch.is_grad_enabled()
    assert scores
    assert not any(of_layer.correctness.requires_grad for of_layer in scores)


@pytest.mark.parametrize("norm", ["none", "frozen", "full"])
def test_one_forward_pass_a_prompt_no_vocabulary_and_each_token_projected_once(bloom, norm, monkeypatch):
    sharing = ns.categorise(bloom, QUIZ)
    rows, unembedded, directions = [], [], []
    original = impacts_module.projected

    def counted(W_out, direction):  # noqa: N803
        directions.append(len(direction))
        return original(W_out, direction)

    monkeypatch.setattr(impacts_module, "projected", counted)
    hooks = [
        ("blocks.0.mlp.hook_post", lambda tensor, hook: rows.append(len(tensor))),
        ("unembed.hook_in", lambda tensor, hook: unembedded.append(tensor.shape[1])),
    ]
    with bloom.hooks(fwd_hooks=hooks):
        ns.attribute(bloom, QUIZ, sharing, norm=norm, batch_size=1)
    assert sum(rows) == 9
    assert all(n_positions == 1 for n_positions in unembedded)
    if norm != "full":  # its direction is different for each prompt
        starts = {
            (language, reference.literal_start(bloom.tokenizer, text, [gold], False)[1][0][start])
            for language in QUIZ.languages
            for text, gold in zip(QUIZ.prompts[language], QUIZ.answers[language], strict=True)
            for start in [reference.literal_start(bloom.tokenizer, text, [gold], False)[0]]
        }
        assert sum(directions) == 3 * len(starts)


def test_an_answer_that_adds_no_token(animals, ready, as_users_run_it, monkeypatch):
    model, prompts, sharing = ready
    monkeypatch.setattr(models.tokens, "tokenise", lambda model, texts, **_: [[5, 6]] * len(texts))
    monkeypatch.setattr(models, "tokenise", models.tokens.tokenise)
    with pytest.raises(ns.NeuronShareError, match=r"Language 'en', example 0: .* adds no token to the prompt"):
        ns.attribute(model, prompts, sharing)


def test_models_without_the_weights_that_are_needed(animals, ready, as_users_run_it, monkeypatch):
    _, prompts, sharing = ready
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    monkeypatch.delitem(model._modules, "unembed")
    with pytest.raises(ns.NeuronShareError, match="has no unembedding W_U"):
        ns.attribute(model, prompts, sharing)
    monkeypatch.setattr(dense, "_readable", lambda mlp: None)
    monkeypatch.setattr(dense, "dequantised", lambda linear: None)
    with pytest.raises(ns.NeuronShareError, match="has no W_out with one row for each neuron"):
        ns.attribute(model, prompts, sharing)


def test_an_unembedding_of_another_width(tmp_path, as_users_run_it):
    """OPT-350m maps its residual stream to fewer numbers before the unembedding."""
    config = {**zoo.KINDS["opt"].config, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    model = ns.load_model(zoo.save_model("opt", config, tmp_path), backend="bridge", device="cpu")
    with pytest.raises(ns.NeuronShareError, match="write 32 numbers and its unembedding reads 16"):
        ns.attribute(model, QUIZ, ns.categorise(model, QUIZ))


def test_values_that_are_no_numbers(ready, as_users_run_it):
    model, prompts, sharing = ready

    def break_one(tensor, hook):
        tensor = tensor.clone()
        tensor[1] = float("nan")
        return tensor

    with (
        model.hooks(fwd_hooks=[("blocks.2.mlp.hook_post", break_one)]),
        pytest.raises(ns.NeuronShareError, match=r"Language 'en', example \d, layer 2: a score is NaN or infinite"),
    ):
        ns.attribute(model, prompts, sharing)
    assert not any(hook.fwd_hooks for hook in model.hook_dict.values())


def test_processed_weights_and_what_is_not_known_of_the_output_are_warned_of(animals, tmp_path, monkeypatch):
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    model.enable_compatibility_mode(disable_warnings=True)
    sharing = ns.categorise(model, QUIZ)
    with pytest.warns(UserWarning, match="The weights are folded, which changes W_out") as warned:
        table = ns.attribute(model, QUIZ, sharing, batch_size=1)
    assert len(warned) == 1
    assert table.attrs["weights"] == "folded"
    monkeypatch.setattr(added, "_MULTIPLIERS", ())
    zoo.save_model("granite", {**zoo._LLAMA, "residual_multiplier": 0.22}, tmp_path)
    granite = ns.load_model(tmp_path, backend="bridge", device="cpu")
    sharing = ns.categorise(granite, QUIZ, site="post")
    with pytest.warns(UserWarning, match="multiplies what its MLPs write") as warned:
        table = ns.attribute(granite, QUIZ, sharing, batch_size=1)
    assert len(warned) == 1
    assert table.attrs["mlp_output"] == "multiplies what its MLPs write (layer 0: by 0.22)"
