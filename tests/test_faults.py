"""What goes wrong around a call: an interrupt, two threads; and a thousand calls, which leave nothing behind."""

from __future__ import annotations

import gc
import resource
import threading

import pytest
import torch

import tl_neuronshare as ns
from support.watching import state_of

TEXTS = {"en": ["The sky", "Cats"], "de": ["Der Himmel ist", "Katzen"]}
ANSWERS = {"en": [" is", " eat"], "de": [" blau", " essen"]}
CHOICES = {language: [[answer, " x"] for answer in of_language] for language, of_language in ANSWERS.items()}
PROMPTS = ns.ParallelPrompts(TEXTS, ANSWERS, CHOICES, examples=["r/sky", "r/cats"])
# Functions that run a model; tests/test_invariants.py interrupts the others.
RUNS = {
    "answer_languages": lambda model: ns.answer_languages(model, TEXTS, max_new_tokens=1),
    "cross_ablation": lambda model: ns.cross_ablation(
        model, TEXTS, {"en": SHARING(model).mask("specific")[0]}, seeds=[0], controls=["random"], n_resamples=3
    ),
    "describe_neurons": lambda model: ns.describe_neurons(model, [(1, 1)], prompts=PROMPTS),
    "dose_response": lambda model: ns.dose_response(
        model, PROMPTS, SHARING(model), type="specific", shares=[0.5], seeds=[0], controls=["random"], n_resamples=3
    ),
    "parallel_detection": lambda model: ns.methods.parallel_detection(model, TEXTS),
    "top_neurons": lambda model: ns.top_neurons(model, PROMPTS, SHARING(model), n=2),
    "transfer_neurons": lambda model: ns.methods.transfer_neurons(model, TEXTS, direction="to shared", n=2),
    "types_along": lambda model: ns.types_along(model, PROMPTS, before=1, after=1),
    "value_histograms": lambda model: ns.value_histograms(model, TEXTS, n_bins=4),
}


def SHARING(model):  # noqa: N802
    """Types by construction."""
    widths = (model.cfg.n_layers, model.cfg.d_mlp)
    activated = torch.arange(2 * 2 * widths[0] * widths[1]).reshape(2, 2, *widths) % 5 > 1
    return ns.NeuronSharing.from_activated(activated, languages=["en", "de"])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("run", RUNS)
def test_stopped_half_way_the_model_is_left_as_found(bloom, run, error):
    RUNS[run](bloom)  # its checks of the model are made here
    seen = []

    def stop(tensor, hook):
        seen.append(1)
        if len(seen) == 2:
            raise error("half-way")

    before = state_of(bloom)
    with pytest.raises(error, match="half-way"), bloom.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", stop)]):
        RUNS[run](bloom)
    assert state_of(bloom) == before
    RUNS[run](bloom)  # nothing is in the way of the next call


def test_a_model_in_two_threads_is_refused(bloom):
    """The second thread is refused while the first one runs; after that it may run the model."""
    inside, go_on, said = threading.Event(), threading.Event(), []

    def wait(tensor, hook):
        inside.set()
        go_on.wait(30)

    def of_the_first():
        said.append(ns.categorise(bloom, PROMPTS))

    expected = ns.categorise(bloom, PROMPTS)
    with bloom.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", wait)]):
        thread = threading.Thread(target=of_the_first)
        thread.start()
        assert inside.wait(30)
        with pytest.raises(ns.NeuronShareError, match="A different thread runs this model"):
            ns.categorise(bloom, PROMPTS)
        go_on.set()
        thread.join()
    assert said == [expected]
    assert ns.categorise(bloom, PROMPTS) == expected


@pytest.mark.slow
def test_a_thousand_calls_leave_nothing_behind(bloom):
    """Tensors, hooks and memory are as after the first calls; prompts, masks and values are not changed."""
    sharing = ns.categorise(bloom, PROMPTS)
    mask, values = sharing.mask("all-shared")[0], torch.rand(3, 128)
    kept = mask.clone(), values.clone(), repr(PROMPTS.prompts)

    def call():
        found = ns.categorise(bloom, PROMPTS, progress=False)
        hooks = ns.ablation_hooks(bloom, mask, mode="mean", values=values)
        return found, bloom.run_with_hooks("The sky", fwd_hooks=hooks)

    def living():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    for _ in range(50):
        call()
    state, tensors, memory = state_of(bloom), living(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        call()
    assert state_of(bloom) == state
    assert living() <= tensors + 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 30 * 1024  # KiB
    assert torch.equal(mask, kept[0])
    assert torch.equal(values, kept[1])
    assert repr(PROMPTS.prompts) == kept[2]
