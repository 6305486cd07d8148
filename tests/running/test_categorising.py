"""What is held while categorising: bits, and at most one layer's values. Counted tensor by tensor, not timed."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tl_neuronshare as ns
from tl_neuronshare import models
from tl_neuronshare.models import fingerprint
from tl_neuronshare.running import recording


def storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is active, as they come and go; views of what was there are not."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in storages((args, kwargs))}
        for storage in storages(result):
            if storage not in self.known and storage.data_ptr() not in given:
                self.known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.freed, storage.nbytes())
        return result

    def freed(self, n_bytes: int) -> None:
        self.live -= n_bytes


WIDTH, LAYERS, EXAMPLES, LANGUAGES, BATCH = 1024, 2, 200, 12, 64
BITS = EXAMPLES * LANGUAGES * LAYERS * WIDTH / 8


@pytest.fixture
def many() -> ns.ParallelPrompts:
    """Enough examples that what is kept outweighs what is held for a moment; each prompt of one to four tokens."""
    texts = ["0", "10", "210", "3210"] * (EXAMPLES // 4)
    return ns.ParallelPrompts({f"l{number}": texts for number in range(LANGUAGES)})


def peak_of(work: Any) -> int:
    with PeakMemory() as memory:
        work()
    return memory.peak


@pytest.fixture(autouse=True)
def _chunks_as_small_as_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk is little beside a real model's batch; here, where everything is small, it must be so too."""
    monkeypatch.setattr(recording, "_CHUNK", 1 << 12)
    monkeypatch.setattr(fingerprint, "_CHUNK", 1 << 12)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["last", "any"])
def test_memory_is_a_bit_a_neuron_beyond_the_bare_trunk(animals, backend, many, position):
    """At most 1.1 x examples x languages x layers x d_mlp / 8."""
    model = animals.lens(f"neox-{LAYERS}-{WIDTH}", backend)
    options = {"batch_size": BATCH, "progress": False, "position": position}
    longest = [models.tokenise(model, ["3210"])[0]] * BATCH

    def trunk():
        with models.left_as_found(model):
            models.run(model, *models.left_padded(longest))

    ns.categorise(model, many, **options)  # what is made once is made
    extra = peak_of(lambda: ns.categorise(model, many, **options)) - peak_of(trunk)
    assert extra <= 1.1 * BITS
    assert extra >= 0.7 * BITS  # else the count would miss what it must see


@pytest.mark.slow
def test_six_thresholds_keep_six_bits(animals, many):
    model, thresholds = animals.lens(f"neox-{LAYERS}-{WIDTH}", "bridge"), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    one, six = (
        peak_of(lambda threshold=threshold: ns.categorise(model, many, threshold=threshold, batch_size=BATCH))
        for threshold in (0.0, thresholds)
    )
    assert 4.5 * BITS <= six - one <= 5 * 1.1 * BITS


@pytest.mark.parametrize("position", ["last", "any", "all"])
def test_no_layer_is_held_until_the_next(animals, backend, position):
    """When a layer's hook fires, the values of those before it are gone: nothing keeps them for later."""
    model = animals.lens("gpt2", backend)
    values: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watch(tensor, hook):
        alive.append(sum(reference() is not None for reference in values))
        values.append(weakref.ref(tensor.untyped_storage()))

    prompts = ns.ParallelPrompts({"en": ["The sky is"], "de": ["Der Himmel ist"]})
    names = [(f"blocks.{layer}.mlp.hook_post", watch) for layer in range(12)]
    with model.hooks(fwd_hooks=names):
        ns.categorise(model, prompts, position=position, batch_size=2)
    assert len(alive) == 12
    assert max(alive) <= 1


def test_results_are_unpacked_anew_at_each_call_and_let_go(animals):
    sharing = ns.categorise(animals.lens("bloom", "bridge"), ns.ParallelPrompts({"en": ["a"], "de": ["b"]}))
    made = [sharing.activated(), sharing.types, sharing.mask("specific")]
    references = [weakref.ref(tensor) for tensor in made]
    del made
    assert [reference() for reference in references] == [None] * 3


def test_neither_model_nor_activations_outlive_a_result(animals, backend):
    """A result keeps bits, not the model that they are of."""
    model = ns.load_model(animals.directory("bloom"), backend=backend, device="cpu")
    recorder = ns.SharingRecorder(model, ["en", "de"], 1)
    for language in ("en", "de"):
        model.run_with_hooks(torch.tensor([[5, 6]]), fwd_hooks=recorder.fwd_hooks(language, [0]))
    sharing, weights = recorder.sharing(), weakref.ref(next(model.parameters()))
    del model, recorder
    import gc

    gc.collect()
    assert weights() is None
    assert len(sharing) == 1
