"""Mixtures of experts: hook points inside the experts, neurons by expert, and what routing does to types and tables.

`test_matrix.py` compares eight families with a reading that goes expert by expert; here is what is particular to them.
"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import tl_neuronshare as ns
from support import literal, zoo
from support.architectures import architectures, make
from tl_neuronshare import models
from tl_neuronshare.models import points
from tl_neuronshare.models.experts import RoutedHook
from tl_neuronshare.models.tokens import left_padded
from tl_neuronshare.results.routing import Routing
from tl_neuronshare.running import recording

LANGUAGES = ("en", "de", "ru")
PROMPTS = ns.ParallelPrompts({language: zoo.TEXTS[language] for language in LANGUAGES})
ANSWERED = ns.ParallelPrompts(
    PROMPTS.prompts, answers={language: [" a", " b", " c", " d", " e"] for language in LANGUAGES}
)
# DeepSeek has a dense layer and a shared expert, Qwen2 a shared expert behind a gate, NemotronH experts without a gate.
SHARED = ("DeepseekV3ForCausalLM", "Qwen2MoeForCausalLM")
UNGATED = "NemotronHForCausalLM (experts)"
KINDS = ("MixtralForCausalLM", *SHARED, "GptOssForCausalLM", "Llama4ForCausalLM", UNGATED)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Where a tiny model of an architecture is saved, made when it is first asked for."""
    known, root = architectures([name.split(" ")[0] for name in KINDS]), tmp_path_factory.mktemp("experts")

    def of(name):
        if not (root / name).exists():
            make(known[name], root / name)
        return root / name

    return of


@pytest.fixture(scope="module")
def loaded(directory):
    kept = {}

    def of(name):
        if name not in kept:
            kept[name] = ns.load_model(directory(name), backend="bridge", device="cpu")
        return kept[name]

    return of


def tokens_of(model, text):
    bos = [model.tokenizer.bos_token_id] * bool(model.cfg.default_prepend_bos)
    return bos + model.tokenizer(text, add_special_tokens=False).input_ids


def reference(directory, rows, masks=None):
    """The logits of each row and what each part of each layer does, from Hugging Face alone."""
    hugging_face = AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    layers = literal.blocks(hugging_face)
    if masks is not None:
        with literal.zeroed(layers, masks), torch.no_grad():
            return [hugging_face(torch.tensor([row])).logits[0] for row in rows]
    return [literal.read(layers, lambda row=row: hugging_face(torch.tensor([row])).logits[0]) for row in rows]


def dense(parts):
    return torch.cat([part.post for part in parts], dim=-1)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_changes_until_something_is_hooked(directory, name):
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(str(directory(name)), device="cpu")
    tokens = torch.tensor([tokens_of(model, "The sky is")])
    before, weights = model(tokens), {key: value.clone() for key, value in model.state_dict().items()}
    layers = models.neuron_layers(model, "post")
    assert any(layer.experts for layer in layers)
    assert torch.equal(model(tokens), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert set(weights) == set(model.state_dict())
    names = set(model.hook_dict)
    models.neuron_layers(model, "post")  # a second time
    assert set(model.hook_dict) == names


@pytest.mark.parametrize("position", ["last", "any"])
@pytest.mark.parametrize("name", ["MixtralForCausalLM", "DeepseekV3ForCausalLM"])
def test_how_many_rows_and_layers_are_reduced_together_changes_nothing(loaded, monkeypatch, name, position):
    model = loaded(name)
    options = {"position": position, "batch_size": 7}
    expected = ns.categorise(model, PROMPTS, **options)
    widest = max(layer.width for layer in models.neuron_layers(model, "post"))
    for n_rows in (2, 9):
        monkeypatch.setattr(recording, "_CHUNK", n_rows * widest)
        assert ns.categorise(model, PROMPTS, **options) == expected  # of neurons and of routing


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
def test_every_way_to_run_experts_gives_the_same(loaded, implementation):
    model = loaded("MixtralForCausalLM")
    expected = ns.categorise(model, PROMPTS)
    config = model.original_model.config
    before, config._experts_implementation = config._experts_implementation, implementation
    try:
        assert torch.equal(ns.categorise(model, PROMPTS).types, expected.types)
        mask = expected.mask("partial-shared")[0]
        ablated = model.run_with_hooks("The sky is", fwd_hooks=ns.ablation_hooks(model, mask))
        assert config._experts_implementation == implementation
    finally:
        config._experts_implementation = before
    torch.testing.assert_close(
        ablated, model.run_with_hooks("The sky is", fwd_hooks=ns.ablation_hooks(model, mask)), rtol=1e-4, atol=1e-4
    )
    assert (ablated - model("The sky is")).abs().max() > 0.01


def test_the_hook_points_hold_what_the_experts_compute(loaded, directory):
    """In the order of the tokens, whatever the order in which experts are run."""
    model = loaded("MixtralForCausalLM")
    row = tokens_of(model, "Two and three make")
    models.neuron_layers(model, "post")
    _, cache = model.run_with_cache(torch.tensor([row]), names_filter=lambda name: ".routed." in name)
    (_, expected), *_ = reference(directory("MixtralForCausalLM"), [row])
    for number, (part,) in enumerate(expected):
        index, weights, post, gate, up = (
            cache[f"blocks.{number}.routed.{name}"]
            for name in ("hook_index", "hook_weights", "hook_post", "hook_pre", "hook_pre_linear")
        )
        assert index.shape == weights.shape == (len(row), 2)
        values = part.post.unflatten(1, (6, -1))
        for token in range(len(row)):
            for slot, expert in enumerate(index[token].tolist()):
                torch.testing.assert_close(post[token, slot], values[token, expert], rtol=1e-4, atol=1e-5)
                assert part.weight[token, expert * values.shape[2]] == pytest.approx(weights[token, slot].item(), 1e-4)
        torch.testing.assert_close(torch.nn.functional.silu(gate) * up, post, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("position", ["any", "all", -2])
def test_types_at_other_positions(loaded, directory, name, position):
    """A neuron is active at a token only if its expert is used there; `any` and `all` go over the prompt's tokens."""
    model = loaded(name)
    longer = ns.ParallelPrompts({language: zoo.LONGER[language] for language in LANGUAGES})
    sharing = ns.categorise(model, longer, position=position)
    special = set(models.special_tokens(model))
    for number, language in enumerate(LANGUAGES):
        for example, text in enumerate(longer.prompts[language]):
            row = tokens_of(model, text)
            (_, parts), *_ = reference(directory(name), [row])
            counted = torch.tensor([token not in special for token in row])
            for layer, of_layer in enumerate(parts):
                active = dense(of_layer) > 0
                expected = (
                    active[counted].any(0)
                    if position == "any"
                    else active[counted].all(0)
                    if position == "all"
                    else active[-2]
                )
                ours = sharing.activated([example], language=language)[0, 0, layer, : len(expected)]
                assert torch.equal(ours, expected), (number, language, example, layer)


def test_a_threshold_below_zero_does_not_activate_experts_that_are_not_used(loaded):
    model = loaded("DeepseekV3ForCausalLM")
    sharing = ns.categorise(model, PROMPTS, threshold=-0.1)
    computed = torch.cat(list(sharing.computed()))
    active = sharing.activated()
    assert not (active & ~computed).any()
    assert (active & ~ns.categorise(model, PROMPTS).activated()).any()
    rates = ns.activation_rates(model, PROMPTS.prompts, threshold=-0.1).rates
    assert rates[:, 1, : 6 * 16].mean() < 0.5 < rates[:, 0].nanmean()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"mode": "scale", "values": 2.0},
        {"mode": "mean"},
        {"mode": lambda values: values.clamp(max=0.1)},
        {"position": "last"},
    ],
    ids=["zero", "scale", "mean", "function", "last"],
)
def test_edits_of_a_padded_batch_are_those_of_each_row_alone(loaded, name, how):
    """Each row has its own mask; a hook on the dense values of one row is a second way to the same edit."""
    model = loaded(name)
    layers = models.neuron_layers(model, "post")
    widest = max(layer.width for layer in layers)
    masks = torch.rand(3, len(layers), widest, generator=torch.Generator().manual_seed(0)) < 0.4
    for number, layer in enumerate(layers):
        masks[:, number, layer.width :] = False
    values = torch.randn(len(layers), widest, generator=torch.Generator().manual_seed(1))
    given = how | ({"values": values} if how.get("mode") == "mean" else {})
    rows = [tokens_of(model, zoo.TEXTS[language][0]) for language in LANGUAGES]
    tokens, mask = left_padded(rows)
    hooks = ns.ablation_hooks(model, masks, prompt_tokens=tokens.shape[1] if "position" in how else None, **given)
    with model.hooks(fwd_hooks=hooks):
        together = model(tokens, attention_mask=mask)[:, -1]
    for number, row in enumerate(rows):
        hooks = ns.ablation_hooks(model, masks[number], prompt_tokens=len(row) if "position" in how else None, **given)
        alone = model.run_with_hooks(torch.tensor([row]), fwd_hooks=hooks)[0, -1]
        torch.testing.assert_close(together[number], alone, rtol=1e-3, atol=1e-3)
        assert (alone - model(torch.tensor([row]))[0, -1]).abs().max() > 0.005


def test_means_are_put_where_experts_are_used(loaded, directory):
    """Against edits of Hugging Face's weights: the mean of a neuron is a bias of its expert."""
    model = loaded("MixtralForCausalLM")
    row = tokens_of(model, "The sky is")
    layers = models.neuron_layers(model, "post")
    mask = torch.zeros(len(layers), layers[0].width, dtype=torch.bool)
    mask[1, ::3] = True
    values = torch.randn(len(layers), layers[0].width, generator=torch.Generator().manual_seed(3))
    ours = model.run_with_hooks(
        torch.tensor([row]), fwd_hooks=ns.ablation_hooks(model, mask, mode="mean", values=values)
    )[0]
    hugging_face = AutoModelForCausalLM.from_pretrained(
        directory("MixtralForCausalLM"), attn_implementation="eager", experts_implementation="eager"
    ).eval()
    block = literal.blocks(hugging_face)[1].parts[0]
    down = block.module.down_proj
    kept = down.detach().clone()
    n_experts, _, width = down.shape

    def add(module, inputs, output):
        _, index, weights = inputs
        for token, experts in enumerate(index.tolist()):
            for slot, expert in enumerate(experts):
                part = slice(expert * width, (expert + 1) * width)
                put = torch.where(mask[1, part], values[1, part], 0.0)
                output[token] += weights[token, slot] * (kept[expert] @ put)
        return output

    with torch.no_grad():
        down.masked_fill_(mask[1].unflatten(0, (n_experts, 1, width)), 0)
        block.module.register_forward_hook(add)
        expected = hugging_face(torch.tensor([row])).logits[0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SHARED)
def test_means_over_prompts(loaded, directory, name):
    model = loaded(name)
    means = ns.reference_values(model, {"en": zoo.TEXTS["en"]}, position="all")["en"]
    rows = [tokens_of(model, text) for text in zoo.TEXTS["en"]]
    special = set(models.special_tokens(model))
    for layer in range(len(means)):
        expected = []
        for row, (_, parts) in zip(rows, reference(directory(name), rows), strict=True):
            counted = torch.tensor([token not in special for token in row])
            expected.append(dense(parts[layer])[counted].mean(0))
        wanted = torch.stack(expected).mean(0)
        torch.testing.assert_close(means[layer, : len(wanted)], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SHARED)
def test_routing_is_the_routers(loaded, directory, name):
    """Which experts each prompt is routed to, against the experts that the literal reading finds a weight for."""
    model = loaded(name)
    sharing = ns.categorise(model, PROMPTS)
    assert sharing.routing is not None
    routed = sharing.routing.routed()
    for number, language in enumerate(LANGUAGES):
        rows = [tokens_of(model, text) for text in PROMPTS.prompts[language]]
        for example, (_, parts) in enumerate(reference(directory(name), rows)):
            for layer, of_layer in enumerate(parts):
                experts = sharing.routing.experts[layer]
                if experts is None:
                    assert len(of_layer) == 1
                    continue
                n_experts, width = experts
                used = (of_layer[0].post[-1].unflatten(0, (n_experts, width)) != 0).any(-1)
                assert torch.equal(routed[example, number, layer, :n_experts], used)
    table = sharing.experts()
    assert set(table["layer"]) == {layer for layer, experts in enumerate(sharing.routing.experts) if experts}
    of_one = table.query("layer == 1 and language == 'de'")
    assert np.allclose(of_one["percent"], 100 * routed[:, 1, 1, :n_experts].double().mean(0))
    most = sharing.by_language().query("layer == 1 and language == 'de'")["experts"].item()
    assert of_one.set_index("expert").loc[list(most), "percent"].is_monotonic_decreasing
    assert len(most) == 2


def test_tables_say_how_much_is_due_to_routing(loaded):
    sharing = ns.categorise(loaded("DeepseekV3ForCausalLM"), PROMPTS)
    summary, (n_experts, width) = sharing.summary(), sharing.routing.experts[1]
    in_some, in_all = [], []
    for types, routed in zip(
        sharing.types[:, 1, : n_experts * width + 16], sharing.routing.routed()[:, :, 1], strict=True
    ):
        for kept, reduced in ((in_some, routed.any(0)), (in_all, routed.all(0))):
            of_shared = torch.ones(16, dtype=torch.bool)
            computed = torch.cat([reduced[:n_experts].repeat_interleave(width), of_shared])
            kept.append(100 * (types[computed] == int(ns.NeuronType.SPECIFIC)).float().mean().item())
    row = summary.query("layer == 1 and type == 'specific'").iloc[0]
    assert row["of_routed"] == pytest.approx(np.mean(in_some), abs=1e-4)
    assert row["of_routed_in_all"] == pytest.approx(np.mean(in_all), abs=1e-4)
    of_dense = summary.query("layer == 0")
    assert np.allclose(of_dense["mean"], of_dense["of_routed"])
    for column in ("of_routed", "of_routed_in_all"):
        assert np.allclose(summary.groupby("layer")[column].sum(), 100)


def test_a_result_keeps_its_routing(loaded, tmp_path):
    sharing = ns.categorise(loaded("DeepseekV3ForCausalLM"), PROMPTS)
    sharing.save(tmp_path / "x.safetensors")
    assert ns.NeuronSharing.load(tmp_path / "x.safetensors") == sharing
    joined = ns.NeuronSharing.concatenate([sharing[:2], sharing[2:]])
    assert joined == sharing
    assert torch.equal(sharing[[3, 1]].routing.packed, sharing.routing.packed[[3, 1]])
    moved = sharing.mismatched()
    offset = moved.metadata["mismatched"][1]
    assert torch.equal(moved.routing.routed()[0, 1], sharing.routing.routed()[offset, 1])
    with pytest.raises(ns.NeuronShareError, match="The routing is of shape"):
        ns.NeuronSharing(
            sharing.packed[:1],
            languages=LANGUAGES,
            widths=sharing.widths,
            hooks=sharing.hooks,
            metadata={},
            routing=sharing.routing,
        )
    with pytest.raises(ns.NeuronShareError, match="layers of at most 3 experts need torch.uint8"):
        Routing(torch.zeros(1, 2, 3, 1, dtype=torch.uint8), [(3, 4)])
    plain = ns.NeuronSharing.from_activated(torch.ones(1, 2, 1, 3, dtype=torch.bool), languages=["a", "b"])
    with pytest.raises(ns.NeuronShareError, match="not a mixture of experts"):
        plain.experts()


def test_memory_is_one_bit_a_neuron_and_one_an_expert(loaded):
    sharing = ns.categorise(loaded("MixtralForCausalLM"), PROMPTS)
    n_layers, n_bytes = sharing.n_layers, -(-sharing.d_mlp // 8)
    assert sharing.packed.numel() == len(PROMPTS) * len(LANGUAGES) * n_layers * n_bytes
    assert sharing.routing.packed.numel() == len(PROMPTS) * len(LANGUAGES) * n_layers * 1  # six experts in a byte


def test_the_users_own_runs(loaded):
    model = loaded("DeepseekV3ForCausalLM")
    expected = ns.categorise(model, PROMPTS[:1], prepend_bos=False)
    caches = {
        language: model.run_with_cache(torch.tensor([model.tokenizer(texts[0], add_special_tokens=False).input_ids]))[1]
        for language, texts in PROMPTS.prompts.items()
    }
    assert ns.categorise_caches(caches) == expected
    recorder = ns.SharingRecorder(model, LANGUAGES, 1)
    for language, texts in PROMPTS.prompts.items():
        tokens = torch.tensor([model.tokenizer(texts[0], add_special_tokens=False).input_ids])
        with model.hooks(fwd_hooks=recorder.fwd_hooks(language, [0])):
            for _ in range(3):  # what is generated afterwards is not recorded
                tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    assert recorder.sharing() == expected
    _, cache = model.run_with_cache(torch.tensor([[5, 6, 7]]), remove_batch_dim=True)
    with pytest.raises(ns.NeuronShareError, match="experts have rows and positions in one axis"):
        ns.categorise_caches({"en": cache, "de": cache})


def test_neurons_are_named_by_their_expert(loaded):
    model = loaded("DeepseekV3ForCausalLM")
    sharing = ns.categorise(model, ANSWERED)
    table = ns.top_neurons(model, ANSWERED, sharing, n=None, top_k=1.0)
    (n_experts, width), routed = sharing.routing.experts[1], table[table["layer"] == 1]
    of_experts = routed["neuron"] < n_experts * width
    assert (routed["expert"][of_experts] == routed["neuron"][of_experts] // width).all()
    assert (routed["index"][of_experts] == routed["neuron"][of_experts] % width).all()
    assert (routed["expert"][~of_experts] == -1).all()
    assert of_experts.any()
    assert not of_experts.all()
    of_dense = table[table["layer"] == 0]
    assert (of_dense["expert"] == -1).all()
    assert (of_dense["index"] == of_dense["neuron"]).all()
    mask, experts = sharing.mask("all-shared"), sharing.routing.experts
    frame = ns.mask_to_frame(mask, experts=experts)
    assert (frame.query("layer == 1 and expert >= 0").eval("expert * @width + index == neuron")).all()
    size = {"n_layers": sharing.n_layers, "d_mlp": sharing.d_mlp, "n_examples": len(sharing)}
    assert torch.equal(ns.mask_from_frame(frame.drop(columns="neuron"), experts=experts, **size), mask)
    with pytest.raises(ns.NeuronShareError, match="experts is for 1 layers, but there are 3"):
        ns.mask_to_frame(mask, experts=experts[:1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 2, 0), "neuron 0 of expert 2 in layer 0, which has 2 experts of 3 neurons"),
        ((0, 0, 3), "neuron 3 of expert 0"),
        ((0, 1, -1), "neuron -1 of expert 1"),
        ((0, -2, 0), "neuron 0 of expert -2"),
        ((0, -1, 2), "neuron 2 of expert -1"),
        ((2, 0, 0), "The table has layer 2; there are 2"),
        ((1, 0, 0), "neuron 0 of expert 0 in layer 1, which has 0 experts"),
    ],
)
def test_rows_that_name_no_neuron_are_refused(row, message):
    """Two experts of three neurons and a shared one of two; and a dense layer."""
    frame = pd.DataFrame([row], columns=["layer", "expert", "index"])
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.mask_from_frame(frame, n_layers=2, d_mlp=8, experts=[(2, 3), None])
    good = pd.DataFrame([(0, 1, 2), (0, -1, 1), (1, -1, 7)], columns=["layer", "expert", "index"])
    mask = ns.mask_from_frame(good, n_layers=2, d_mlp=8, experts=[(2, 3), None])
    assert mask.nonzero().tolist() == [[0, 5], [0, 7], [1, 7]]


def test_a_function_sees_neurons_under_their_numbers_in_the_layer(loaded):
    """A shared expert is called apart, and its neurons are still those after the routed ones."""
    model, text = loaded("Qwen2MoeForCausalLM"), "The sky is"
    sharing = ns.categorise(model, PROMPTS)
    (n_experts, size), width = sharing.routing.experts[0], sharing.widths[0]
    everything = torch.ones(len(sharing.widths), width, dtype=torch.bool)
    for neuron in (5, n_experts * size + 5):

        def off(values, neuron=neuron):
            assert values.shape[-1] == width
            values[..., neuron] = 0
            return values

        alone = torch.zeros_like(everything)
        alone[:, neuron] = True
        ours, theirs = (
            model.run_with_hooks(text, fwd_hooks=ns.ablation_hooks(model, mask, mode=mode))
            for mask, mode in ((everything, off), (alone, "zero"))
        )
        assert torch.equal(ours, theirs)


def test_caches_say_all_that_they_lack(loaded):
    model = loaded("MixtralForCausalLM")
    tokens = torch.tensor([tokens_of(model, "The sky is")])
    filters = [lambda name: ".routed." in name, lambda name: name.endswith(("mlp.hook_in", "routed.hook_index"))]
    for names in filters:
        cache = model.run_with_cache(tokens, names_filter=names)[1]
        with pytest.raises(
            ns.NeuronShareError, match=r"endswith\(\('mlp.hook_in', 'routed.hook_index', 'routed.hook_post'"
        ):
            ns.categorise_caches({"en": cache, "de": cache})
    ends = ("mlp.hook_in", "routed.hook_index", "routed.hook_post")
    cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith(ends))[1]
    assert ns.categorise_caches({"en": cache, "de": cache}).n_examples == 1


def test_double_precision(directory):
    model = ns.load_model(directory("MixtralForCausalLM"), backend="bridge", device="cpu", dtype=torch.float64)
    model.original_model.config._experts_implementation = "eager"  # the only one that runs without hooks
    single = ns.load_model(directory("MixtralForCausalLM"), backend="bridge", device="cpu")
    assert torch.equal(ns.categorise(model, PROMPTS).types, ns.categorise(single, PROMPTS).types)


def test_a_model_that_was_loaded_in_inference_mode(directory):
    with torch.inference_mode():
        model = ns.load_model(directory("MixtralForCausalLM"), backend="bridge", device="cpu")
    sharing = ns.categorise(model, PROMPTS)
    hooks = ns.ablation_hooks(model, sharing.mask("specific")[0])
    with torch.no_grad():
        assert not torch.equal(model.run_with_hooks("The sky is", fwd_hooks=hooks), model("The sky is"))


def test_hooks_of_some_names_only_are_refused(loaded):
    model = loaded("MixtralForCausalLM")
    hooks = ns.ablation_hooks(model, ns.categorise(model, PROMPTS).mask("specific")[0])
    some = [hook for hook in hooks if hook[0].endswith("hook_post")]
    with pytest.raises(ns.NeuronShareError, match="cannot be edited without the tensor of .*install all hooks"):
        model.run_with_hooks("The sky is", fwd_hooks=some)
    model.run_with_hooks("The sky is", fwd_hooks=hooks)
    assert not any(hook._kept for _, hook in hooks)  # nothing of the run is held


def test_borderline_values_are_near_for_the_neurons_that_are_computed(loaded, monkeypatch):
    """Against a count over the values of one prompt, whose scale is that of the neurons that have values."""
    model = loaded("MixtralForCausalLM")
    monkeypatch.setattr("tl_neuronshare.maths.activation._N_EPS", 1e6)
    sharing = ns.categorise(model, PROMPTS[:1].select(["en", "de"]), threshold=0.05)
    near = 0
    for language in ("en", "de"):
        row = tokens_of(model, PROMPTS.prompts[language][0])
        values = models.values_of(model, models.neuron_layers(model, "post"), models.Inputs(torch.tensor([row])), -1)
        for of_layer in values:
            computed = of_layer[0][of_layer[0] != 0]
            reach = 1e6 * torch.finfo(torch.float32).eps * computed.square().mean().sqrt()
            near += int(((computed - 0.05).abs() <= reach).sum())
    assert near > 100
    total = 2 * sum(sharing.widths)
    assert sharing.metadata["borderline_fraction"] == pytest.approx(near / total, rel=0.01)


def test_experts_whose_forward_accelerate_has_wrapped(directory):
    """A model that is spread over devices is called through accelerate, which keeps the method that it found."""
    from accelerate import dispatch_model
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    path = directory("Qwen2MoeForCausalLM")
    hugging_face = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    dispatch_model(hugging_face, {"model": "cpu", "lm_head": "cpu"}, force_hooks=True)
    spread = TransformerBridge.boot_transformers(
        str(path), hf_model=hugging_face, tokenizer=AutoTokenizer.from_pretrained(path), device="cpu"
    )
    whole = ns.load_model(path, backend="bridge", device="cpu")
    assert torch.equal(ns.categorise(spread, PROMPTS).types, ns.categorise(whole, PROMPTS).types)


def test_random_controls_draw_as_many_of_the_neurons_that_are_computed(loaded, monkeypatch):
    from tl_neuronshare.ablation.controls import CONTROLS, Draw

    model = loaded("MixtralForCausalLM")
    sharing = ns.categorise(model, ANSWERED)
    computed = torch.cat(list(sharing.computed()))
    drawn, seen = [], CONTROLS["random"].draw

    def keep(draw: Draw):
        result = seen(draw)
        of_these = computed[draw.examples, LANGUAGES.index(draw.language)]
        drawn.append(((draw.mask & of_these).sum(-1), (result.mask & of_these).sum(-1)))
        assert torch.equal(result.mask.sum(-1), draw.mask.sum(-1))
        return result

    monkeypatch.setattr(CONTROLS["random"], "draw", keep)
    ns.ablation_study(model, ANSWERED, sharing, types=["specific"], controls=["random"], seeds=[0], scoring="exact")
    assert drawn
    assert all(torch.equal(ours, theirs) for ours, theirs in drawn)


def test_verify_sees_a_wrong_order_of_rows(directory, monkeypatch):
    """Rows that are taken to be sorted by token although they are sorted by expert are found by the check."""
    monkeypatch.setattr(points.PointedExperts, "at", _unsorted)
    model = ns.load_model(directory("MixtralForCausalLM"), backend="bridge", device="cpu")
    with pytest.raises(ns.NeuronShareError, match="fails the check 'post'"):
        ns.categorise(model, PROMPTS)


def _unsorted(experts, name, rows):
    if experts.is_running:
        experts._modules[name](rows.unflatten(0, (-1, experts.n_slots)))
    return rows


def test_a_copy_of_a_model_is_a_model_of_its_own(loaded):
    model = loaded("MixtralForCausalLM")
    models.neuron_layers(model, "post")
    tokens = torch.tensor([[5, 6, 7]])
    experts = copy.deepcopy(points.experts_of(model.blocks[0]))
    seen = []
    experts.hook_post.add_hook(lambda tensor, hook: seen.append(tensor.shape))
    assert model(tokens).shape[1] == 3
    assert not seen
    experts(torch.randn(4, 32), torch.tensor([[0, 1]] * 4), torch.ones(4, 2))
    assert seen == [(4, 2, 96)]


def test_values_of_experts_on_a_small_case():
    """Two rows of two tokens, three experts of two neurons, two slots."""
    hook = RoutedHook("post", 6, None, ("in", "index"), 3)
    index = torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1]])
    post = torch.arange(16.0).reshape(4, 2, 2) + 1
    tensors = [torch.zeros(2, 2, 5), index, post]
    assert hook.shape(tensors) == (2, 2)
    assert hook.shape([torch.zeros(2, 3, 5), index, post]) is None
    expected = torch.zeros(2, 2, 3, 2)
    for token in range(4):
        for slot in range(2):
            expected[token // 2, token % 2, index[token, slot]] = post[token, slot]
    assert torch.equal(hook.read(tensors), expected.flatten(2))
    absent = hook.read(tensors, (slice(None), -1), absent=-7.0)
    assert torch.equal(absent[1], torch.tensor([13.0, 14, 15, 16, -7, -7]))
    assert torch.equal(hook.routed(tensors)[0, 0], torch.tensor([True, False, True]))
    by_neuron = torch.arange(24).reshape(2, 2, 6)
    like = hook.like(by_neuron, tensors)
    for token in range(4):
        for slot in range(2):
            start = 6 * token + 2 * index[token, slot]
            assert torch.equal(like[token, slot], torch.stack([start, start + 1]))
    assert torch.equal(hook.like(by_neuron[:1, :1], tensors)[3, 1], torch.tensor([2, 3]))
    weights = torch.tensor([[0.5, 2.0]] * 4)
    weighted = hook.weighted().read([tensors[0], index, weights, post])
    assert torch.equal(weighted[0, 0], torch.tensor([0.5, 1.0, 0, 0, 6, 8]))


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer")
def test_a_hooked_transformers_experts_are_refused_with_the_way_out():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, d_mlp=64, act_fn="silu", d_vocab=400, device="cpu",
        num_experts=4, experts_per_token=2, gated_mlp=True,
    )  # fmt: skip
    model = HookedTransformer(config)
    model.tokenizer = zoo.make_tokenizer()
    with pytest.raises(ns.NeuronShareError, match=r'HookedTransformer, .*load the model with backend="bridge"'):
        ns.categorise(model, PROMPTS)


def test_sites_of_experts(loaded):
    model = loaded("MixtralForCausalLM")
    gate, up, post = (ns.categorise(model, PROMPTS, site=site).activated() for site in ("gate", "up", "post"))
    assert torch.equal(post, gate & up | post & ~gate & ~up)  # the product of two numbers is positive
    assert not torch.equal(gate, post)
    with pytest.raises(ns.NeuronShareError, match="has a gate, but no hook for it"):
        ns.categorise(loaded("GptOssForCausalLM"), PROMPTS, site="gate")


def test_the_weights_of_experts_are_in_the_fingerprint(directory):
    first, second = (ns.load_model(directory("MixtralForCausalLM"), backend="bridge", device="cpu") for _ in range(2))
    sharing = ns.categorise(first, PROMPTS)
    assert ns.categorise(second, PROMPTS).metadata["fingerprint"] == sharing.metadata["fingerprint"]
    with torch.no_grad():
        points.experts_of(second.blocks[1]).down_proj[3, 0, 0] += 1e-3
    assert ns.categorise(second, PROMPTS).metadata["fingerprint"] != sharing.metadata["fingerprint"]
