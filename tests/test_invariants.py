"""The invariants of the design, by number: on the zoo, and under hypothesis on models and prompts of any size.

The pure part of the first is in results/test_sharing.py; the fifth is in ablation/test_hooks.py.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import accelerate
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_neuronshare as ns
from support import zoo
from support.prompts import QUIZ
from support.watching import state_of
from tl_neuronshare import models


def flips(first: ns.NeuronSharing, second: ns.NeuronSharing) -> int:
    return int((first.activated() != second.activated()).sum())


def same(one, other) -> bool:
    """Whether two results are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other if isinstance(one, ns.NeuronSharing | ns.NeuronRates) else one.equals(other)


# What hypothesis draws. Every character of the prompts is a token, so that lengths are known.
MODELS = [f"{kind}-{layers}-{width}" for kind, layers, width in (("neox", 1, 8), ("opt", 2, 13), ("llama", 3, 33))]
CHARACTERS = "0123456789%&*+=<>#@~"


@dataclass(frozen=True)
class Case:
    """A model, prompts, and how to read them."""

    model: str
    texts: dict[str, list[str]]
    options: dict[str, Any]

    @property
    def prompts(self) -> ns.ParallelPrompts:
        return ns.ParallelPrompts(self.texts)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Two to twelve languages, one token to the whole context, any batch, position and site, thresholds of any sign."""
    languages = [f"l{number}" for number in range(draw(st.integers(2, 12)))]
    n_examples = draw(st.integers(1, 3))
    bos = draw(st.booleans())
    position = draw(st.sampled_from(["last", "any", "all", -1, -2]))
    shortest = 2 if position == -2 and not bos else 1
    longest = zoo.CONTEXT - bos
    lengths = st.sampled_from([shortest, longest]) | st.integers(shortest, longest)  # the ends as often as all between
    texts = lengths.flatmap(lambda length: st.text(CHARACTERS, min_size=length, max_size=length))
    drawn_texts = {la: draw(st.lists(texts, min_size=n_examples, max_size=n_examples)) for la in languages}
    model = draw(st.sampled_from(MODELS))
    sites = ["post", "gate", "up"] if model.startswith("llama") else ["post"]
    options = {
        "site": draw(st.sampled_from(sites)),
        "position": position,
        "threshold": draw(st.floats(-1, 1)),
        "batch_size": draw(st.integers(1, 40)),
        "prepend_bos": bos,
    }
    return Case(model, drawn_texts, options)


def borderline(sharing: ns.NeuronSharing) -> int:
    """How many activations rounding may turn: one in 100,000 in any case."""
    n_values = len(sharing) * len(sharing.languages) * sum(sharing.widths)
    return max(n_values // 100_000, round(sharing.metadata["borderline_fraction"] * n_values))


drawn = settings(max_examples=25)


# 1: the four types partition the neurons, and do not depend on the order of the languages; with the second below.
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


@pytest.mark.slow
def test_invariant_2_on_the_built_in_model(animals, backend):
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:100]
    padded = ns.categorise(model, prompts, batch_size=100)
    alone = ns.categorise(model, prompts, batch_size=1)
    assert flips(padded, alone) <= padded.activated().numel() // 100_000
    assert 0 <= padded.metadata["borderline_fraction"] < 1e-2


@drawn
@given(case=cases(), other=st.integers(1, 40))
def test_invariants_1_and_2_under_hypothesis(animals, backend, case, other):
    """Another batch size; the languages the other way round; the last example alone, with two languages only."""
    model = animals.lens(case.model, backend)
    sharing = ns.categorise(model, case.prompts, **case.options)
    assert flips(sharing, ns.categorise(model, case.prompts, **case.options | {"batch_size": other})) <= borderline(
        sharing
    )
    assert (torch.stack([sharing.mask(type) for type in ns.NeuronType]).sum(0) == 1).all()
    turned = ns.categorise(model, case.prompts.select(case.prompts.languages[::-1]), **case.options)
    assert turned.languages == sharing.languages[::-1]
    assert (turned.types != sharing.types).sum() <= borderline(sharing)
    some = case.prompts.languages[:2]
    alone = ns.categorise(model, case.prompts[-1:].select(some), **case.options)
    assert (alone.activated()[0] != sharing.activated()[-1, :2]).sum() <= borderline(sharing)


# 3: the model is left as found.


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


SHARING = ns.NeuronSharing.from_activated(
    torch.arange(3 * 3 * 3 * 128).reshape(3, 3, 3, 128) % 5 > 1, languages=QUIZ.languages
)
RUNS = {
    "categorise": lambda model: ns.categorise(model, QUIZ, batch_size=2),
    "activation_rates": lambda model: ns.activation_rates(model, QUIZ.prompts, batch_size=2),
    "reference_values": lambda model: torch.stack([*ns.reference_values(model, QUIZ, batch_size=2).values()]),
    "evaluate": lambda model: ns.evaluate(model, QUIZ, batch_size=2),
    "evaluate exactly": lambda model: ns.evaluate(model, QUIZ, scoring="exact", max_new_tokens=2, batch_size=2),
    "perplexity": lambda model: ns.perplexity(model, QUIZ.prompts, batch_size=2),
    "ablation_study": lambda model: ns.ablation_study(
        model, QUIZ, SHARING, types=["specific"], controls=["random"], seeds=[0], n_resamples=10, batch_size=2
    ),
    "attribute": lambda model: ns.attribute(model, QUIZ, SHARING, n_resamples=10, batch_size=2),
}


@pytest.mark.parametrize("run", RUNS)
def test_invariant_3_the_model_is_left_as_found(bloom, run):
    expected = RUNS[run](bloom)
    with half_in_training(bloom):
        before = state_of(bloom)
        found = RUNS[run](bloom)
        assert state_of(bloom) == before
    assert same(found, expected)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_invariant_3_also_when_it_stops_half_way(bloom, run, error):
    ns.verify(bloom)  # whose own passes take no part
    seen = []

    def stop(tensor, hook):
        seen.append(1)
        if len(seen) == 3:
            raise error("half-way")

    with half_in_training(bloom):
        before = state_of(bloom)
        with pytest.raises(error, match="half-way"), bloom.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", stop)]):
            RUNS[run](bloom)
        assert state_of(bloom) == before
    assert len(seen) == 3


@drawn
@given(case=cases(), layer=st.integers(0, 2), call=st.integers(1, 40))
def test_invariant_3_under_hypothesis(animals, backend, case, layer, call):
    """After a whole run, and after one that a hook of the user's stopped at some call (if it came to that)."""
    model, calls = animals.lens(case.model, backend), []
    model(torch.tensor([[5]]))  # A bridge adds torch hooks of its own with its first pass.

    def stop(tensor, hook):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt

    with half_in_training(model):
        before = state_of(model)
        ns.categorise(model, case.prompts, **case.options)
        assert state_of(model) == before
        names = [layer.name for layer in models.neuron_layers(model, "post")]
        with contextlib.suppress(KeyboardInterrupt), model.hooks(fwd_hooks=[(names[layer % len(names)], stop)]):
            ns.categorise(model, case.prompts, **case.options)
        assert state_of(model) == before


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_invariant_3_offloaded_weights_stay_offloaded(animals, name, prompts):
    """accelerate keeps them on the meta device between forward passes; types and fingerprint are the same."""
    model = ns.load_model(animals.directory(name), backend="bridge", device="cpu")
    expected = ns.categorise(model, prompts, position="any")
    accelerate.cpu_offload(model.original_model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    sharing = ns.categorise(model, prompts, position="any")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sharing == expected
    assert sharing.metadata["fingerprint"] == expected.metadata["fingerprint"]


# 4: hooks of the user's stay active.


def test_invariant_4_hooks_of_the_user_stay_active(bloom, prompts):
    def silence(tensor, hook):
        return torch.full_like(tensor, -1)

    plain = ns.categorise(bloom, prompts)
    with bloom.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", silence)]):
        hooked = ns.categorise(bloom, prompts)
    assert not hooked.activated()[:, :, 1].any()
    assert torch.equal(hooked.activated()[:, :, 0], plain.activated()[:, :, 0])
    assert not torch.equal(hooked.activated()[:, :, 2], plain.activated()[:, :, 2])


@drawn
@given(case=cases(), above=st.booleans())
def test_invariant_4_under_hypothesis(animals, backend, case, above):
    """A user's hook sets the last layer's values above or below the threshold: all of its neurons follow."""
    model = animals.lens(case.model, backend)
    last = models.neuron_layers(model, case.options["site"])[-1]
    # What is read at the gate is act(gate): a large gate gives a large value, and the smallest is near 0.
    value = 5.0 if above else -30.0
    threshold = 0.5 if case.options["site"] == "gate" else case.options["threshold"]
    with model.hooks(fwd_hooks=[(last.name, lambda tensor, hook: torch.full_like(tensor, value))]):
        hooked = ns.categorise(model, case.prompts, **case.options | {"threshold": threshold})
    assert hooked.activated()[:, :, -1, : last.width].all() if above else not hooked.activated()[:, :, -1].any()


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
    layers = [
        *models.neuron_layers(bloom, "post"),
        models.NeuronLayer((models.NeuronHook("blocks.9.mlp.hook_post", 128),)),
    ]
    monkeypatch.setattr(models, "neuron_layers", lambda model, site: layers)
    with pytest.raises(ns.NeuronShareError, match=r"has no hook blocks\.9\.mlp\.hook_post"):
        ns.categorise(bloom, prompts)


def test_invariant_6_a_tensor_of_the_wrong_width_is_an_error(bloom, prompts, monkeypatch):
    layers = models.neuron_layers(bloom, "post")
    layers[2] = replace(layers[2], hooks=(replace(layers[2].hooks[0], width=96),))
    monkeypatch.setattr(models, "neuron_layers", lambda model, site: layers)
    message = r"blocks\.2\.mlp\.hook_post of .* has a tensor of shape \(1, \d+, 128\) where one of \(1, \d+, 96\)"
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.categorise(bloom, prompts[3:4], batch_size=1)


@drawn
@given(case=cases(), layer=st.integers(0, 2), kept=st.integers(1, 7))
def test_invariant_6_under_hypothesis(animals, backend, case, layer, kept):
    """A user's hook that narrows a layer is an error that names the layer, whatever else is asked for."""
    model = animals.lens(case.model, backend)
    layers = models.neuron_layers(model, case.options["site"])
    narrowed = layers[layer % len(layers)]
    error = rf"{re.escape(narrowed.name)} gave a tensor of shape .*{kept}\), not .*{narrowed.width}\)"
    recorder = ns.SharingRecorder(model, ["en", "de"], 1, site=case.options["site"])
    hooks = dict(recorder.fwd_hooks("en", [0]))
    with pytest.raises(ns.NeuronShareError, match=error):
        hooks[narrowed.name](torch.zeros(1, 4, kept), hook=None)


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


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="TransformerLens 4 has one model class only")
@drawn
@given(case=cases())
def test_invariant_7_under_hypothesis(animals, case):
    bridge, hooked = (
        ns.categorise(animals.lens(case.model, backend), case.prompts, **case.options)
        for backend in ("bridge", "hooked")
    )
    assert flips(bridge, hooked) <= borderline(bridge)
    assert bridge.metadata["fingerprint"] == hooked.metadata["fingerprint"]


# 8: every saved result says where it comes from. Nothing here is random yet.

SAID = {
    "verified",
    "model", "model_class", "weights", "dtype", "device", "versions", "prompts", "languages", "site", "position",
    "threshold", "prepend_bos", "special_tokens_left_out", "fingerprint", "borderline_fraction", "common_prefix_share",
    "same_last_token", "site_chosen", "batch_size", "batches",
}  # fmt: skip


@drawn
@given(case=cases())
def test_invariant_8_every_saved_result_says_where_it_comes_from(animals, backend, tmp_path_factory, case):
    model = animals.lens(case.model, backend)
    sharing = ns.categorise(model, case.prompts, **case.options)
    path = tmp_path_factory.mktemp("saved") / "sharing"
    sharing.save(path)
    loaded = ns.NeuronSharing.load(path)
    assert loaded == sharing
    assert set(loaded.metadata) == SAID
    assert loaded.metadata == sharing.metadata
    assert loaded.prompt_hashes == sharing.prompt_hashes
    position = case.options["position"]
    expected = case.options | {"position": "last" if position == -1 else position, "dtype": "float32"}
    assert loaded.metadata | expected == loaded.metadata
    assert loaded.metadata["languages"] == list(case.prompts.languages)
    assert loaded.metadata["special_tokens_left_out"] == ([0] if position in ("any", "all") else [])
    again = ns.categorise(model, case.prompts, **case.options)
    assert again.metadata == sharing.metadata
    assert again == sharing


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


# 9: it works under the user's own default dtype, default device, inference mode and deterministic algorithms.


@contextmanager
def under(setting):
    """A setting of the user's; the device `meta` holds no numbers, so that a tensor made there is seen at once."""
    try:
        torch.set_default_dtype(torch.bfloat16 if setting == "bfloat16" else torch.float32)
        torch.set_default_device("meta" if setting == "another device" else None)
        torch.use_deterministic_algorithms(setting == "deterministic inference")
        with torch.inference_mode(setting == "deterministic inference"):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)


def everything(model, prompts):
    """What every public function that runs a model gives, and some that do not."""
    quiet = {"progress": False}
    few = {**quiet, "seeds": [0], "types": ["all-shared"], "controls": ["random", "magnitude"], "n_resamples": 20}
    sharing = ns.categorise(model, prompts, position="any", **quiet)
    masks = sharing.mask("all-shared")
    texts = {"en": ["Country code of Peru → PE"]}
    tokens = torch.tensor(models.tokenise(model, [prompts.prompts["en"][0]]), device="cpu")
    cache = model.run_with_cache(tokens)[1]
    yield sharing
    yield ns.categorise_caches({"en": cache, "de": cache})
    yield ns.activation_rates(model, texts, **quiet)
    yield from ns.reference_values(model, prompts, position="all", **quiet).values()
    yield ns.evaluate(model, prompts, **quiet)
    hooks = lambda language, examples: ns.ablation_hooks(model, masks[examples])  # noqa: E731
    yield ns.evaluate(model, prompts, scoring="exact", fwd_hooks=hooks, **quiet)
    yield ns.perplexity(model, texts, **quiet)
    yield ns.ablation_study(model, prompts, sharing, mode="resample", position="last", equal_size=True, **few)
    given = {"types": None, "seeds": [0], "controls": ["random", "random-active"], "n_resamples": 20, **quiet}
    both = {"each": masks, "one": masks[0]}
    yield ns.ablation_study(model, prompts, both, consistent=0.5, active=sharing, **given)
    yield ns.ablation_study(model, prompts, sharing, one_mask=True, **few)
    yield ns.attribute(model, prompts, sharing, norm="frozen", answer="all", n_resamples=20, **quiet)
    yield ns.top_neurons(model, prompts, sharing, **quiet)
    yield ns.random_like(masks, generator=torch.Generator().manual_seed(0))
    yield from (sharing.summary(), sharing.by_language(), sharing.persistence(), sharing.overlap())
    yield ns.mask_from_frame(ns.mask_to_frame(masks[0]), n_layers=4, d_mlp=512)


@pytest.mark.parametrize("setting", ["bfloat16", "another device", "deterministic inference"])
def test_invariant_9_the_user_s_settings_change_nothing(backend, setting):
    # One of its own: HookedTransformer keeps its ALiBi, made in the default dtype and of the longest text so far.
    model, prompts = ns.demo.load_model(backend=backend, device="cpu"), ns.demo.prompts()[:2].select(["en", "de", "ru"])
    model(torch.ones(1, 40, dtype=torch.long))
    expected = list(everything(model, prompts))
    with under(setting):
        ns.verify(model)
        found = list(everything(model, prompts))
    if backend == "hooked" and setting == "bfloat16":
        return  # it computes something else itself
    assert all(same(one, other) for one, other in zip(expected, found, strict=True))
