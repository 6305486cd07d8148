"""The silent traps of TransformerLens that can touch a dense decoder: each has a guard, and each guard a test.

That a guard is needed is shown first, where the trap can be set: without it the result would be another.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import tl_neuronshare as ns
from support import reference, zoo
from tl_neuronshare import models

TEXTS = {"en": ["The capital of France is", "Cats"], "de": ["Die", "Zwei und drei sind"]}


@pytest.fixture
def uneven() -> ns.ParallelPrompts:
    """Prompts of very different length, so that a batch of all has much padding."""
    return ns.ParallelPrompts({la: [*TEXTS[la], *zoo.LONGER[la]] for la in TEXTS})


def one_by_one(model, prompts, **options):
    """What no padding can touch."""
    return ns.categorise(model, prompts, batch_size=1, **options)


def activated_last(model, tokens, mask):
    """The last layer's activations at the last position, with a mask of the user's choice."""
    arguments = {} if mask is None else {"attention_mask": mask}
    _, cache = model.run_with_cache(tokens, **arguments)
    return cache[models.neuron_layers(model, "post")[-1].name][:, -1] > 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bloom"])
def test_padding_is_bos_and_end_token(animals, name, backend, uneven):
    """All three are token 0 here: a mask of `tokens != pad` would hide each prompt's own BOS."""
    model = animals.lens(name, backend)
    assert model.tokenizer.pad_token_id == model.tokenizer.bos_token_id == 0
    rows = models.tokenise(model, uneven.prompts["en"], prepend_bos=True)
    tokens, mask = models.left_padded(rows)
    naive = activated_last(model, tokens, (tokens != 0).long())
    assert not torch.equal(naive, activated_last(model, tokens, mask))  # the trap
    alone = one_by_one(model, uneven, prepend_bos=True)
    for position in ("last", "any"):
        expected = one_by_one(model, uneven, prepend_bos=True, position=position)
        assert ns.categorise(model, uneven, prepend_bos=True, position=position) == expected
    assert torch.equal(alone.activated()[:, 0, -1], activated_last(model, tokens, mask))


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bloom"])
def test_left_padding_without_a_mask(animals, name, backend, uneven):
    """Silently wrong in TransformerLens; a mask always goes with padding here."""
    model = animals.lens(name, backend)
    tokens, mask = models.left_padded(models.tokenise(model, uneven.prompts["de"]))
    assert mask is not None
    assert not torch.equal(activated_last(model, tokens, None), activated_last(model, tokens, mask))  # the trap
    ns.verify(model)  # whose own passes would be counted below
    given = []
    forward = model.forward

    def spy(tokens, *args, **kwargs):
        given.append((tuple(tokens.shape), kwargs.get("attention_mask")))
        return forward(tokens, *args, **kwargs)

    model.forward = spy
    try:
        assert ns.categorise(model, uneven, batch_size=100) == one_by_one(model, uneven)
    finally:
        del model.forward
    (shape, mask), *alone = given
    assert shape[0] == 10
    assert (mask.sum(1).min(), mask.sum(1).max()) == (min(map(len_of(model), uneven_rows(uneven))), shape[1])
    assert [mask for _, mask in alone] == [None] * 10


def len_of(model):
    return lambda text: len(models.tokenise(model, [text])[0])


def uneven_rows(prompts):
    return [text for texts in prompts.prompts.values() for text in texts]


def test_openai_gpt_s_bridge_with_a_mask(tmp_path, uneven):
    """It is not causal any more once a mask is given: its first tokens then see the later ones."""
    config = {"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    model = ns.load_model(zoo.save_model("openai-gpt", config, tmp_path), backend="bridge", device="cpu")
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        free, masked = model(tokens), model(tokens, attention_mask=torch.ones_like(tokens))
    assert not torch.allclose(free[:, 0], masked[:, 0], atol=1e-3)  # the trap: the first token sees the others
    for position in ("last", "any"):
        found = ns.categorise(model, uneven, prepend_bos=False, position=position)
        assert found == one_by_one(model, uneven, prepend_bos=False, position=position)
        assert found.metadata["batches"] > 1


def test_hooks_in_the_order_of_the_alphabet(animals):
    """TransformerLens 3's bridge lists layer 10 before layer 2; GPT-2 has twelve here."""
    model = animals.lens("gpt2", "bridge")
    listed = [name for name in model.hook_dict if name.endswith("mlp.hook_post")]
    if models.has_hooked_transformer():
        assert listed != sorted(listed, key=lambda name: int(name.split(".")[1]))  # the trap
    sharing = ns.categorise(model, ns.ParallelPrompts(TEXTS))
    assert list(sharing.hooks) == [f"blocks.{layer}.mlp.hook_post" for layer in range(12)]
    _, cache = model.run_with_cache(torch.tensor(models.tokenise(model, [TEXTS["en"][0]])))
    for layer in range(12):
        expected = cache[f"blocks.{layer}.mlp.hook_post"][0, -1] > 0
        assert torch.equal(sharing.activated()[0, 0, layer], expected)


@pytest.mark.parametrize(("name", "site"), [("llama", "post"), ("llama", "gate"), ("llama", "up"), ("opt", "post")])
def test_hook_points_that_bear_another_name(animals, name, site):
    """A bridge's hook point answers to several names; `hook.name` is another than the one it was found by."""
    model = animals.lens(name, "bridge")
    layers = models.neuron_layers(model, site)
    assert all(model.hook_dict[layer.name].name != layer.name for layer in layers)  # the trap
    read = []
    with models.reading(model, layers, lambda number, tensor: read.append(number)):
        model(torch.tensor([[5, 6, 7]]))
    assert read == list(range(len(layers)))
    prompts = ns.ParallelPrompts(TEXTS)
    sharing = ns.categorise(model, prompts, site=site)
    assert list(sharing.hooks) == [layer.name for layer in layers]


@pytest.mark.parametrize(("name", "site"), [("bloom", "post"), ("llama", "gate"), ("llama", "up"), ("gemma2", "gate")])
def test_configurations_that_are_wrong(animals, name, site, backend, uneven):
    """`cfg.d_mlp` and `cfg.act_fn` are wrong for many models; nothing here depends on them."""
    model = animals.lens(name, backend)
    expected = ns.categorise(model, uneven, site=site, threshold=0.1)
    d_mlp, act_fn = model.cfg.d_mlp, model.cfg.act_fn
    model.cfg.d_mlp, model.cfg.act_fn = 7, "relu"
    try:
        assert ns.categorise(model, uneven, site=site, threshold=0.1) == expected
    finally:
        model.cfg.d_mlp, model.cfg.act_fn = d_mlp, act_fn
    assert set(expected.widths) != {7}


def test_cfg_act_fn_is_wrong_for_bloom(animals):
    """That the trap is real; act(gate) at a threshold would follow it."""
    assert animals.lens("bloom", "bridge").cfg.act_fn == "relu"


def test_cohere_on_transformer_lens_3(tmp_path):
    """Its bridge computes something else than the model: refused by every way in, and right on 4."""
    config = {key: size for key, size in zoo.KINDS["llama"].config.items() if key not in ("head_dim", "rms_norm_eps")}
    directory = zoo.save_model("cohere", config | {"num_key_value_heads": 4}, tmp_path)
    model = ns.load_model(directory, backend="bridge", device="cpu")
    prompts = ns.ParallelPrompts(TEXTS)
    ways = [
        lambda: ns.categorise(model, prompts, prepend_bos=False),
        lambda: ns.SharingRecorder(model, ["en", "de"], 2),
        lambda: ns.categorise_caches({la: model.run_with_cache(torch.tensor([[5, 6]]))[1] for la in TEXTS}),
    ]
    for way in ways:
        if models.has_hooked_transformer():
            with pytest.raises(ns.NeuronShareError, match="fails the check 'logits'"):
                way()
        else:
            way()


def test_prompts_that_to_tokens_would_cut_off(animals, backend):
    """`to_tokens` truncates at the context without a word; here it is an error."""
    model, text = animals.lens("gpt2", backend), "x y " * 100
    assert model.to_tokens(text).shape[1] == model.cfg.n_ctx  # the trap
    with pytest.raises(ns.NeuronShareError, match="'de', example 0: the prompt has 40[01] tokens"):
        ns.categorise(model, ns.ParallelPrompts({"en": ["a"], "de": [text]}))


@pytest.fixture
def long_rope(tmp_path):
    """A Phi-3 that computes texts of more than 12 tokens with other rotary frequencies, a whole batch at a time."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 4.0, 16.0, 32.0],
        "original_max_position_embeddings": 12,
    }
    config = zoo.MORE_KINDS["phi3"].config | {"rope_parameters": rope, "original_max_position_embeddings": 12}
    return zoo.save_model("phi3", config, tmp_path)


def test_long_rope_in_a_batch(long_rope, uneven):
    """One long row changes the short ones beside it; those on either side of the boundary never share a batch."""
    model = ns.load_model(long_rope, backend="bridge", device="cpu")
    rows = models.tokenise(model, uneven_rows(uneven))
    assert min(map(len, rows)) < 12 < max(map(len, rows))
    short = [row for row in rows if len(row) <= 12]
    tokens, mask = models.left_padded([*short, max(rows, key=len)])
    beside = activated_last(model, tokens, mask)[:-1]
    alone = torch.cat([activated_last(model, torch.tensor([row]), None) for row in short])
    assert (beside != alone).sum() > 10  # the trap
    for position in ("last", "any"):
        assert ns.categorise(model, uneven, position=position) == one_by_one(model, uneven, position=position)
    assert ns.verify(model).set_index("check")["passed"].drop("generate").all()


def test_long_rope_in_scoring(long_rope):
    """Answers that end at, before and beyond the boundary: in one batch as alone, in both ways to score."""
    model = ns.load_model(long_rope, backend="bridge", device="cpu")
    answer = " abab"
    cut = {la: [f"x{la}" + "z" * place for place in range(12)] for la in ("q", "w")}
    quiz = ns.ParallelPrompts(cut, {la: [answer] * 12 for la in cut}, {la: [[answer, " c"]] * 12 for la in cut})
    rows = models.tokenise(model, [text + answer for text in cut["q"]])
    assert {11, 12, 13, 14} <= set(map(len, rows))
    tables = {
        (scoring, size): ns.evaluate(model, quiz, scoring=scoring, batch_size=size)["log_prob"]
        for scoring in ("choice", "exact")
        for size in ("auto", 1, 100)
    }
    alone = tables["choice", 1]
    assert all((table - alone).abs().max() < 1e-4 for table in tables.values())


def test_long_rope_in_decoding(long_rope):
    """A text that grows beyond the boundary is computed anew from its first token, which a cache cannot do."""
    model = ns.load_model(long_rope, backend="bridge", device="cpu")
    hugging_face = AutoModelForCausalLM.from_pretrained(long_rope, attn_implementation="eager").eval()
    prompts = ns.ParallelPrompts(TEXTS, {la: [" x"] * 2 for la in TEXTS})
    table = ns.evaluate(model, prompts, scoring="exact", max_new_tokens=9, stop=[])
    crossed = 0
    for row in table.itertuples():
        (prompt,) = models.tokenise(model, [TEXTS[row.language][row.example]])
        crossed += len(prompt) <= 12 < len(prompt) + 9
        new = reference.greedy(hugging_face, prompt, 9)[len(prompt) :]
        new = new[: new.index(0)] if 0 in new else new
        assert row.prediction == model.tokenizer.decode(new)
    assert crossed
