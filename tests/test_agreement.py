"""Types against the literal reference of reference.py, on eight architectures and the built-in model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import reference
import tl_neuronshare as ns
import zoo


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
                found = set((types[example, layer] == ns.sharing.as_type(label)).nonzero().flatten().tolist())
                wrong_types += len(found - neurons)
    assert wrong <= activated.numel() // 100_000
    assert wrong_types <= wrong


@pytest.mark.parametrize("site", ["post", "gate"])
@pytest.mark.parametrize("name", zoo.KINDS)
def test_types_equal_the_literal_reference(animals, name, backend, site, prompts):
    kind = zoo.KINDS[name]
    sharing = ns.categorise(animals.lens(name, backend), prompts, site=site)
    gated = site == "gate" and kind.act is not None
    active = reference.active_neurons(
        *animals.hugging_face(name),
        zoo.TEXTS,
        module=kind.act if gated else kind.down,
        n_layers=kind.n_layers,
        bos=kind.bos,
        of_output=gated,
    )
    assert_agrees(sharing, active)
    assert sharing.metadata["site"] == ("gate" if gated else "post")
    assert sharing.metadata["prepend_bos"] == kind.bos
    assert {type.label for type in ns.NeuronType if sharing.mask(type).any()} == {t.label for t in ns.NeuronType}


@pytest.mark.parametrize("threshold", [-0.05, 0.3])
@pytest.mark.parametrize(("name", "site"), [("bloom", "post"), ("opt", "post"), ("llama", "post"), ("llama", "gate")])
def test_other_thresholds_and_bos_equal_the_reference_too(animals, name, site, threshold, backend, prompts):
    kind = zoo.KINDS[name]
    active = reference.active_neurons(
        *animals.hugging_face(name),
        zoo.TEXTS,
        module=kind.act if site == "gate" else kind.down,
        n_layers=kind.n_layers,
        bos=not kind.bos,
        of_output=site == "gate",
        threshold=threshold,
    )
    model = animals.lens(name, backend)
    assert_agrees(ns.categorise(model, prompts, site=site, threshold=threshold, prepend_bos=not kind.bos), active)


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
    active = reference.active_neurons(
        *animals.hugging_face("bloom"),
        zoo.TEXTS,
        module=zoo.KINDS["bloom"].down,
        n_layers=3,
        bos=False,
    )
    shares = torch.tensor([len(neurons) / 128 for neurons in active.values()])
    assert shares.min() > 0.1
    assert shares.max() < 0.9
    assert shares.std() > 0
