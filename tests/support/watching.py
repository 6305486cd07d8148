"""Effects of a run that its result does not show: memory, logits for the whole vocabulary, changes of the model."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is active; views of older tensors do not count."""

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


def state_of(model: Any) -> dict[str, Any]:
    """Return everything about a model that a run could change."""
    return {
        "hooks": {name: (len(hook.fwd_hooks), len(hook.bwd_hooks)) for name, hook in model.hook_dict.items()},
        "torch hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "training": [module.training for module in model.modules()],
        "gradients": (torch.is_grad_enabled(), [(p.requires_grad, p.grad) for p in model.parameters()]),
        "padding side": model.tokenizer.padding_side,
        "device": [parameter.device for parameter in model.parameters()],
        "weights": [parameter.data_ptr() for parameter in model.parameters()],
    }


class Largest(TorchDispatchMode):
    """Keeps the shapes of all tensors, from any operation, whose last axis has the width of the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.shapes = vocabulary, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dim() == 3 and result.shape[-1] == self.vocabulary:
            self.shapes.add(tuple(result.shape))
        return result
