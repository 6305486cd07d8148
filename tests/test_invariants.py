"""The invariants of the design, by number. The first is in test_sharing.py."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import tl_neuronshare as ns
import zoo
from tl_neuronshare import models


def flips(first: ns.NeuronSharing, second: ns.NeuronSharing) -> int:
    return int((first.activated() != second.activated()).sum())


# 2: the result for an example does not depend on the batch, the padding or the neighbours.


@pytest.mark.parametrize("name", zoo.KINDS)
def test_invariant_2_batches_padding_and_neighbours_do_not_matter(animals, name, backend, prompts):
    model = animals.lens(name, backend)
    together = ns.categorise(model, prompts, batch_size=25)
    assert together.metadata["batches"] == 1
    for batch_size in (1, 4):
        apart = ns.categorise(model, prompts, batch_size=batch_size)
        assert flips(apart, together) <= together.activated().numel() // 100_000
    alone = ns.categorise(model, prompts[2:3].select(["zh", "en"]))
    assert torch.equal(alone.activated()[:, 1], together[2:3].activated()[:, 0])
    assert torch.equal(alone.activated()[:, 0], together[2:3].activated()[:, 4])


def test_invariant_2_on_the_built_in_model(animals, backend):
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:100]
    padded = ns.categorise(model, prompts, batch_size=100)
    alone = ns.categorise(model, prompts, batch_size=1)
    assert flips(padded, alone) <= padded.activated().numel() // 100_000
    assert 0 <= padded.metadata["borderline_fraction"] < 1e-2


# 3: the model is left as found.


def state_of(model):
    """All that a run could leave behind on a model."""
    return {
        "hooks": {name: (len(hook.fwd_hooks), len(hook.bwd_hooks)) for name, hook in model.hook_dict.items()},
        "torch hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "training": [module.training for module in model.modules()],
        "gradients": (torch.is_grad_enabled(), [(p.requires_grad, p.grad) for p in model.parameters()]),
        "padding side": model.tokenizer.padding_side,
        "device": [parameter.device for parameter in model.parameters()],
        "weights": [parameter.data_ptr() for parameter in model.parameters()],
    }


@contextmanager
def half_in_training(model):
    """Some modules in training mode, others not, as somebody who fine-tunes a part may have it."""
    modules = list(model.modules())
    before = [module.training for module in modules]
    for index, module in enumerate(modules):
        module.training = index % 3 == 0
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def test_invariant_3_the_model_is_left_as_found(bloom, prompts):
    expected = ns.categorise(bloom, prompts)
    with half_in_training(bloom):
        before = state_of(bloom)
        assert ns.categorise(bloom, prompts) == expected
        assert state_of(bloom) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_invariant_3_also_when_it_stops_half_way(bloom, prompts, error):
    seen = []

    def stop(tensor, hook):
        seen.append(1)
        if len(seen) == 3:
            raise error("half-way")

    with half_in_training(bloom):
        before = state_of(bloom)
        with pytest.raises(error, match="half-way"), bloom.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", stop)]):
            ns.categorise(bloom, prompts, batch_size=5)
        assert state_of(bloom) == before
    assert len(seen) == 3


# 4 belongs to a later step, but reading through run_with_cache gives it for nothing.


def test_hooks_of_the_user_stay_active(bloom, prompts):
    def silence(tensor, hook):
        return torch.full_like(tensor, -1)

    plain = ns.categorise(bloom, prompts)
    with bloom.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", silence)]):
        hooked = ns.categorise(bloom, prompts)
    assert not hooked.activated()[:, :, 1].any()
    assert torch.equal(hooked.activated()[:, :, 0], plain.activated()[:, :, 0])
    assert not torch.equal(hooked.activated()[:, :, 2], plain.activated()[:, :, 2])


# 6: nothing is silently skipped.


class Skip(torch.nn.Module):
    """An MLP that does nothing, in whose place the real one's hooks never fire."""

    def forward(self, hidden, *rest):
        return hidden


def test_invariant_6_a_hook_that_does_not_fire_is_an_error(bloom, prompts, monkeypatch):
    layers = models.neuron_layers(bloom, "post")
    monkeypatch.setattr(models, "neuron_layers", lambda model, site: layers)
    recorder = ns.SharingRecorder(bloom, ["en", "de"], 1)
    mlp = bloom.blocks[1].mlp
    holders = [module for module in bloom.modules() if module._modules.get("mlp") is mlp]
    for holder in holders:
        holder._modules["mlp"] = Skip()
    try:
        with pytest.raises(ns.NeuronShareError, match=r"blocks\.1\.mlp\.hook_post did not fire|no hook blocks\.1\.mlp"):
            ns.categorise(bloom, prompts)
        for language in ("en", "de"):
            bloom.run_with_hooks(torch.tensor([[5, 6, 7]]), fwd_hooks=recorder.fwd_hooks(language, [0]))
        message = r"'en', example 0: blocks\.1\.mlp\.hook_post did not fire, so that 2 of 2 prompts"
        with pytest.raises(ns.NeuronShareError, match=message):
            recorder.sharing()
    finally:
        for holder in holders:
            holder._modules["mlp"] = mlp


def test_invariant_6_a_hook_that_the_model_lacks_is_an_error(bloom, prompts, monkeypatch):
    layers = [*models.neuron_layers(bloom, "post"), models.NeuronLayer("blocks.9.mlp.hook_post", 128)]
    monkeypatch.setattr(models, "neuron_layers", lambda model, site: layers)
    with pytest.raises(ns.NeuronShareError, match=r"has no hook blocks\.9\.mlp\.hook_post"):
        ns.categorise(bloom, prompts)


def test_invariant_6_a_tensor_of_the_wrong_width_is_an_error(bloom, prompts, monkeypatch):
    layers = models.neuron_layers(bloom, "post")
    layers[2] = replace(layers[2], width=96)
    monkeypatch.setattr(models, "neuron_layers", lambda model, site: layers)
    message = r"blocks\.2\.mlp\.hook_post gave a tensor of shape \(1, 2, 128\), not \(1, 2, 96\)"
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.categorise(bloom, prompts[3:4], batch_size=1)


# 7: both model classes give the same types.


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="TransformerLens 4 has one model class only")
@pytest.mark.parametrize("site", ["post", "gate"])
@pytest.mark.parametrize("name", [*zoo.KINDS, "demo"])
def test_invariant_7_both_model_classes_give_the_same_types(animals, name, site, prompts):
    prompts = ns.demo.prompts() if name == "demo" else prompts
    bridge, hooked = (ns.categorise(animals.lens(name, b), prompts, site=site) for b in ("bridge", "hooked"))
    assert flips(bridge, hooked) <= bridge.activated().numel() // 100_000
    assert bridge.hooks == hooked.hooks
    assert bridge.widths == hooked.widths


# 9: importing the package imports no plotting, no task data and no model, and changes no global state.

IMPORT_CHECK = """
import logging, os, random, sys, warnings
import numpy, torch
def state():
    return (dict(os.environ), sys.excepthook, list(sys.path), list(warnings.filters), logging.root.level,
            list(logging.root.handlers), random.getstate(), torch.get_default_dtype(), torch.get_num_threads(),
            torch.is_grad_enabled(), torch.initial_seed(), str(numpy.random.get_state()), numpy.get_printoptions())
before = state()
import tl_neuronshare
assert state() == before
banned = ("matplotlib", "babel", "datasets", "transformers", "transformer_lens", "tl_neuronshare.plots",
          "tl_neuronshare.tasks", "tl_neuronshare.demo")
print([name for name in banned if name in sys.modules])
assert tl_neuronshare.plots.patterns and tl_neuronshare.tasks.world_facts and tl_neuronshare.demo.prompts
"""


def test_invariant_9_importing_is_light_and_changes_nothing():
    run = subprocess.run([sys.executable, "-c", IMPORT_CHECK], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_invariant_9_plotting_changes_no_global_style(bloom, prompts):
    import matplotlib

    before = dict(matplotlib.rcParams)
    sharing = ns.categorise(bloom, prompts)
    ns.plots.patterns(sharing.summary(), sharing.by_language())
    assert dict(matplotlib.rcParams) == before
