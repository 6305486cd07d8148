"""Types against the literal reference of support/reference.py, on eight architectures and the built-in model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import tl_neuronshare as ns
from support import reference, zoo


def assert_agrees(sharing: ns.NeuronSharing, active: reference.ActiveNeurons) -> None:
    """At most one activation in 100,000 differs, and so do the types that follow from it."""
    languages, activated, types = list(sharing.languages), sharing.activated(), sharing.types
    wrong = wrong_types = 0
    for example in range(len(sharing)):
        for layer, width in enumerate(sharing.widths):
            for index, language in enumerate(languages):
                found = set(activated[example, index, layer].nonzero().flatten().tolist())
                wrong += len(found ^ active[example, language, layer])
            for label, neurons in reference.types(active, example, layer, languages, width).items():
                found = set((types[example, layer] == ns.results.types.as_type(label)).nonzero().flatten().tolist())
                wrong_types += len(found - neurons)
    assert wrong <= activated.numel() // 100_000
    assert wrong_types <= wrong


def by_reference(animals, name, site, *, texts=zoo.TEXTS, bos=None, **options) -> reference.ActiveNeurons:
    """The literal reading of a zoo model on texts of the zoo."""
    kind = zoo.KINDS[name]
    module = {"gate": kind.act, "up": kind.up}.get(site) or kind.down
    return reference.active_neurons(
        *animals.hugging_face(name),
        texts,
        module=module,
        of_output=module != kind.down,
        n_layers=kind.n_layers,
        bos=kind.bos if bos is None else bos,
        **options,
    )


@pytest.mark.parametrize("site", ["post", "gate"])
@pytest.mark.parametrize("name", zoo.KINDS)
def test_types_equal_the_literal_reference(animals, name, backend, site, prompts):
    kind = zoo.KINDS[name]
    sharing = ns.categorise(animals.lens(name, backend), prompts, site=site)
    assert_agrees(sharing, by_reference(animals, name, site))
    assert sharing.metadata["site"] == ("gate" if site == "gate" and kind.act else "post")
    assert sharing.metadata["prepend_bos"] == kind.bos
    assert {type.label for type in ns.NeuronType if sharing.mask(type).any()} == {t.label for t in ns.NeuronType}


SITES = [("bloom", "post"), ("opt", "post"), ("llama", "post"), ("llama", "gate"), ("llama", "up")]
POSITIONS = ["last", "any", "all", -1, -2, -3]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("name", "site"), SITES)
def test_every_position_and_site_equals_the_literal_reference(animals, name, site, position, backend):
    """Both thresholds from one pass; Llama and OPT with a BOS, which `any` and `all` leave out."""
    found = ns.categorise(
        animals.lens(name, backend),
        ns.ParallelPrompts(zoo.LONGER),
        site=site,
        position=position,
        threshold=[-0.05, 0.3],
    )
    for threshold, sharing in found.items():
        active = by_reference(animals, name, site, texts=zoo.LONGER, position=position, threshold=threshold)
        assert_agrees(sharing, active)
        assert threshold > 0 or any(active.values())
        assert sharing.metadata["position"] == ("last" if position == -1 else position)
        assert sharing.metadata["threshold"] == threshold
        assert sharing.metadata["special_tokens_left_out"] == ([0] if position in ("any", "all") else [])


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
@pytest.mark.parametrize("site", ["gate", "up"])
def test_gates_at_other_thresholds_use_the_true_activation_function(animals, name, site, backend):
    """SiLU and the tanh GELU; at a threshold above 0 the gate's pre-activation would give another set."""
    prompts = ns.ParallelPrompts(zoo.LONGER)
    for position in ("last", "any"):
        sharing = ns.categorise(animals.lens(name, backend), prompts, site=site, position=position, threshold=0.2)
        active = by_reference(animals, name, site, texts=zoo.LONGER, position=position, threshold=0.2)
        assert_agrees(sharing, active)


@pytest.mark.parametrize("threshold", [-0.05, 0.3])
@pytest.mark.parametrize(("name", "site"), SITES)
def test_other_thresholds_and_bos_equal_the_reference_too(animals, name, site, threshold, backend, prompts):
    bos = not zoo.KINDS[name].bos
    sharing = ns.categorise(
        animals.lens(name, backend), prompts, site=site, threshold=threshold, prepend_bos=bos, position="last"
    )
    assert_agrees(sharing, by_reference(animals, name, site, bos=bos, threshold=threshold))


@pytest.mark.parametrize("site", ["post", "gate"])
def test_the_built_in_model_equals_the_literal_reference(animals, backend, site):
    prompts = ns.demo.prompts()[:25]
    active = reference.active_neurons(
        *animals.hugging_face("demo"),
        {language: list(texts) for language, texts in prompts.prompts.items()},
        module="transformer.h.{}.mlp.dense_4h_to_h",
        n_layers=4,
        bos=False,
    )
    sharing = ns.categorise(animals.lens("demo", backend), prompts, site=site)
    assert_agrees(sharing, active)
    assert sharing.metadata["site"] == "post"


def test_a_scaled_gate_is_activated_as_the_model_does_it(tmp_path, prompts):
    """Falcon-H1 multiplies the gate by a constant before the activation function."""
    sizes = {f"mamba_{name}": size for name, size in {"d_ssm": 32, "n_heads": 4, "d_head": 8, "d_state": 8}.items()}
    config = {**zoo.KINDS["llama"].config, **sizes, "mlp_multipliers": [3.0, 0.5]}
    directory = zoo.save_model("falcon_h1", config, tmp_path)
    model = ns.load_model(directory, backend="bridge", device="cpu")
    active = reference.active_neurons(
        AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval(),
        model.tokenizer,
        zoo.TEXTS,
        module="model.layers.{}.feed_forward.act_fn",
        n_layers=3,
        bos=True,
        of_output=True,
        threshold=0.3,
    )
    assert_agrees(ns.categorise(model, prompts, site="gate", threshold=0.3, prepend_bos=True), active)


def test_the_gate_is_not_the_product(animals, backend, prompts):
    """Else a mistaken site would pass unseen: up to sign the two differ for about half of the neurons."""
    model = animals.lens("llama", backend)
    post, gate = (ns.categorise(model, prompts, site=site).activated() for site in ("post", "gate"))
    assert 0.3 < (post != gate).float().mean() < 0.7


def test_the_reference_reads_something_worth_comparing(animals):
    active = by_reference(animals, "bloom", "post")
    shares = torch.tensor([len(neurons) / 128 for neurons in active.values()])
    assert shares.min() > 0.1
    assert shares.max() < 0.9
    assert shares.std() > 0
