"""What a neuron is, against Hugging Face's weights, and values read one prompt at a time."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

import tl_neuronshare as ns
from support import zoo
from support.architectures import architectures, make
from tl_neuronshare.models import added

TEXTS = {"en": ["The sky is blue", "Cats", "One two three"], "th": ["ท้องฟ้า", "แมว สุนัข"]}
PLACES = [(0, 3), (2, 0), (1, 17), (0, 4)]


def pushes(hugging_face) -> torch.Tensor:
    """How much each neuron's row raises each token's logit, through the weight of the final RMSNorm."""
    unembedding = hugging_face.lm_head.weight.double() * hugging_face.model.norm.weight.double()
    return torch.stack([layer.mlp.down_proj.weight.double().T @ unembedding.T for layer in hugging_face.model.layers])


@pytest.mark.parametrize("chunk", [1 << 26, 1 << 11])
def test_tokens_that_a_neuron_promotes_and_suppresses(animals, backend, chunk, monkeypatch):
    from tl_neuronshare.attribution import describing

    monkeypatch.setattr(describing, "_CHUNK", chunk)
    model = animals.lens("llama", backend)
    hugging_face, tokenizer = animals.hugging_face("llama")
    table = ns.describe_neurons(model, PLACES, n_tokens=4)
    assert list(zip(table["layer"], table["neuron"], strict=True)) == PLACES
    expected = pushes(hugging_face).detach()[..., : len(tokenizer)]
    for (layer, neuron), promotes, suppresses in zip(PLACES, table["promotes"], table["suppresses"], strict=True):
        order = expected[layer, neuron].argsort(descending=True).tolist()
        assert promotes == [tokenizer.decode([token]) for token in order[:4]]
        assert suppresses == [tokenizer.decode([token]) for token in order[:-5:-1]]


def test_a_layer_norm_takes_the_mean_away(animals):
    model = animals.lens("bloom", "bridge")
    hugging_face, tokenizer = animals.hugging_face("bloom")
    norm, row = hugging_face.transformer.ln_f, hugging_face.transformer.h[1].mlp.dense_4h_to_h.weight[:, 5]
    centred = (row - row.mean()).double() * norm.weight.double()
    order = (hugging_face.lm_head.weight.double() @ centred).argsort(descending=True)[: len(tokenizer)].tolist()
    table = ns.describe_neurons(model, [(1, 5)], n_tokens=3)
    assert table["promotes"][0] == [tokenizer.decode([token]) for token in order if token < len(tokenizer)][:3]


def test_types_rates_and_prompts(animals, backend, prompts):
    model = animals.lens("llama", backend)
    sharing, rates = ns.categorise(model, prompts), ns.activation_rates(model, TEXTS)
    values = ns.reference_values(model, TEXTS, each=True)
    table = ns.describe_neurons(model, PLACES, sharing=sharing, rates=rates, prompts=TEXTS, n_prompts=2)
    for row in table.to_dict("records"):
        layer, neuron = row["layer"], row["neuron"]
        for type in ns.NeuronType:
            assert row[type.label] == int((sharing.types[:, layer, neuron] == type).sum())
        for number, language in enumerate(rates.languages):
            assert row[f"rate {language}"] == pytest.approx(100 * rates.rates[number, layer, neuron].item())
        each = [
            (value.item(), language, text)
            for language, texts in TEXTS.items()
            for text, value in zip(texts, values[language][:, layer, neuron], strict=True)
        ]
        best = sorted(each, reverse=True)[:2]
        assert [(language, text) for language, text, _ in row["prompts"]] == [pair[1:] for pair in best]
        assert [value for *_, value in row["prompts"]] == pytest.approx([value for value, *_ in best], abs=1e-3)


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_values_token_by_token(animals, backend, name):
    """Against a cache of one prompt at a time; special tokens have none."""
    model = animals.lens(name, backend)
    table = ns.describe_neurons(model, PLACES, prompts=TEXTS, n_prompts=2, token_by_token=True, batch_size=2)
    special = set(model.tokenizer.all_special_ids)
    for (layer, neuron), found, tokens in zip(PLACES, table["prompts"], table["tokens"], strict=True):
        for (_, text, value), of_text in zip(found, tokens, strict=True):
            ids = model.to_tokens(text)
            _, cache = model.run_with_cache(ids)
            expected = cache[f"blocks.{layer}.mlp.hook_post"][0, :, neuron].tolist()
            assert [token for token, _ in of_text] == [model.tokenizer.decode([each]) for each in ids[0].tolist()]
            for token, (_, here), there in zip(ids[0].tolist(), of_text, expected, strict=True):
                assert here is None if token in special else here == pytest.approx(there, abs=1e-5)
            assert of_text[-1][1] == pytest.approx(value, abs=1e-5)


def test_experts_are_named_and_how_often_they_are_routed_to(tmp_path, prompts):
    make(architectures(["MixtralForCausalLM"])["MixtralForCausalLM"], tmp_path / "mixtral")
    model = ns.load_model(tmp_path / "mixtral", backend="bridge", device="cpu")
    sharing = ns.categorise(model, prompts)
    n_experts, size = sharing.routing.experts[0]
    table = ns.describe_neurons(model, [(0, size + 2), (1, 0)], sharing=sharing)
    assert table[["expert", "index"]].to_numpy().tolist() == [[1, 2], [0, 0]]
    routed = sharing.routing.routed()
    assert table["routed"].tolist() == pytest.approx(
        [100 * routed[:, :, 0, 1].double().mean().item(), 100 * routed[:, :, 1, 0].double().mean().item()]
    )
    assert n_experts > 1


def test_it_takes_over_from_top_neurons_and_from_masks(ready):
    model, prompts, sharing = ready
    top = ns.top_neurons(model, prompts, sharing, n=6)
    table = ns.describe_neurons(model, top, sharing=sharing)
    pd.testing.assert_frame_equal(table[["layer", "neuron"]], top[["layer", "neuron"]])
    assert (table["all-shared"] == top["all-shared"]).all()
    mask = torch.zeros(model.cfg.n_layers, model.cfg.d_mlp, dtype=torch.bool)
    mask[1, [4, 2]] = True
    assert ns.describe_neurons(model, mask)[["layer", "neuron"]].to_numpy().tolist() == [[1, 2], [1, 4]]


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ([], "There are 0 neurons; give 1 to 10000"),
        ([(0, 10**6)], "There is no neuron 1000000 in layer 0"),
        ([(-1, 0)], "There is no neuron 0 in layer -1"),
        ([(0, "x")], "neurons is a list; give a mask, a table"),
        ([(0.5, 1)], "neurons is a list; give a mask, a table"),
        (3, "neurons is a int; give a mask"),
        (torch.zeros(2, 2), r"The mask is torch.float32 of shape \(2, 2\)"),
        (pd.DataFrame({"layer": [0]}), "lacks the column"),
    ],
)
def test_bad_input(as_users_run_it, bloom, neurons, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.describe_neurons(bloom, neurons)


def test_rates_of_other_layers_are_refused(bloom):
    rates = ns.NeuronRates(torch.ones(1, 1, 2, dtype=torch.long), [4], languages=["en"], widths=[2])
    with pytest.raises(ns.NeuronShareError, match="The rates are of layers of 2 neurons, and the model has"):
        ns.describe_neurons(bloom, PLACES, rates=rates)


def test_rates_of_other_weights_are_refused(animals):
    model = animals.lens("llama", "bridge")
    rates = ns.activation_rates(model, TEXTS)
    rates.metadata["fingerprint"] = "0" * 16
    with pytest.raises(ns.NeuronShareError, match="The rates are of different weights"):
        ns.describe_neurons(model, PLACES, rates=rates)


def test_a_norm_after_the_mlp_has_its_weight_applied(animals, backend):
    hugging_face, _ = animals.hugging_face("gemma2")
    table = ns.describe_neurons(animals.lens("gemma2", backend), [(1, 7)], n_tokens=5)
    layer = hugging_face.model.layers[1]
    written = layer.mlp.down_proj.weight[:, 7] * (1 + layer.post_feedforward_layernorm.weight)
    pushes = hugging_face.lm_head.weight @ (written * (1 + hugging_face.model.norm.weight))
    tokenizer = animals.hugging_face("gemma2")[1]
    assert table["promotes"][0] == [tokenizer.decode([token]) for token in pushes.topk(5).indices]


def test_a_model_that_changes_what_its_mlps_write_gives_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(added, "_MULTIPLIERS", ())
    zoo.save_model("granite", {**zoo._LLAMA, "residual_multiplier": 0.22}, tmp_path)
    model = ns.load_model(tmp_path, backend="bridge", device="cpu")
    with pytest.warns(UserWarning, match="the tokens are of what the MLPs write, not of what is added"):
        ns.describe_neurons(model, [(0, 0)])
