"""Hooks on a model: installed for a while, all of them known to fire, or the user's own taken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.lens import LensModel, name_of

Hooks = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]
# Whose hooks on a model are part of it.
_LIBRARIES = ("transformers", "transformer_lens", "accelerate")


@contextmanager
def hooked(model: LensModel, fwd_hooks: Hooks) -> Iterator[set[int]]:
    """Install hooks for as long as the context lasts; gives the numbers, in the list, of those that have fired.

    The same as `model.hooks`, but that a name which the model lacks is an error. Hook points are known by identity:
    they may bear another name than that by which they were found. They are installed by one filter, since
    TransformerLens 3's bridge lists all its hooks anew for every name.

    Raises:
        NeuronShareError: no list of pairs, or a name that the model lacks.
    """
    points = model.hook_dict
    functions: dict[int, list[tuple[int, Callable[..., Any]]]] = {}
    names, fired = set(), set()
    for number, pair in enumerate(fwd_hooks):
        if not (isinstance(pair, Sequence) and len(pair) == 2 and callable(pair[1])):
            raise NeuronShareError(f"{pair!r} is no hook; give pairs of a hook's name and a function.")
        chosen = [pair[0]] if isinstance(pair[0], str) else [name for name in points if pair[0](name)]
        if not chosen or chosen[0] not in points:
            raise NeuronShareError(f"{name_of(model)} has no hook {pair[0]}; see model.hook_dict for those it has.")
        names.update(chosen)
        for point in {id(points[name]) for name in chosen}:
            functions.setdefault(point, []).append((number, pair[1]))

    def call(tensor: Tensor, hook: Any) -> Tensor | None:
        changed = None
        for number, function in functions[id(hook)]:
            fired.add(number)
            result = function(tensor, hook=hook)
            if result is not None:
                changed = tensor = result
        return changed

    with model.hooks(fwd_hooks=[(names.__contains__, call)]) if names else nullcontext():
        yield fired


@contextmanager
def all_firing(model: LensModel, fwd_hooks: Hooks) -> Iterator[None]:
    """`hooked`, for runs in which every hook must fire.

    Raises:
        NeuronShareError: as `hooked`; and at the end for a hook that has not fired.
    """
    with hooked(model, fwd_hooks) as fired:
        yield
    for number, (name, _) in enumerate(fwd_hooks):
        if number not in fired:
            raise NeuronShareError(f"The hook on {name} did not fire; is it of a part that this model does not run?")


@contextmanager
def without_hooks(model: LensModel) -> Iterator[None]:
    """Take the user's hooks off for as long as the context lasts: TransformerLens's, and torch's on any module."""
    taken: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            if theirs := _hooks_of_the_user(module, hooks):
                taken.append((hooks, dict(hooks)))
                for key in theirs:
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, before in taken:  # in their order; after them what the libraries have put there meanwhile
            meanwhile = {key: hook for key, hook in hooks.items() if key not in before}
            hooks.clear()
            hooks.update(before | meanwhile)


def has_hooks(model: LensModel) -> bool:
    """Whether somebody's hooks are on the model: TransformerLens's, or torch's on any of its modules."""
    return any(
        _hooks_of_the_user(module, hooks)
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
    )


def _hooks_of_the_user(module: Any, hooks: Mapping[int, Any]) -> set[int]:
    """The keys of a module's hooks that the libraries have not put there themselves, as they do to capture outputs."""
    if not hooks:
        return set()
    # A hook point calls the user's function from one of its own.
    given = {handle.hook.id: handle.user_hook for handle in getattr(module, "fwd_hooks", ())}
    functions = {key: given.get(key, hook) for key, hook in hooks.items()}
    return {
        key
        for key, function in functions.items()
        if str(getattr(getattr(function, "func", function), "__module__", "")).split(".")[0] not in _LIBRARIES
    }


@contextmanager
def unwrapped(model: LensModel) -> Iterator[torch.nn.Module]:
    """A bridge's Hugging Face model without TransformerLens: the same weights, run by Hugging Face's own modules.

    TransformerLens puts its components in the places of Hugging Face's modules and keeps those inside. For as long as
    the context lasts they are back in their places, so that nothing has to be loaded a second time.

    Example:
        >>> with unwrapped(model) as hugging_face:
        ...     type(hugging_face.transformer.h[0].mlp.dense_4h_to_h).__name__
        'Linear'
    """
    hugging_face: torch.nn.Module = model.original_model  # type: ignore[attr-defined]
    swapped = [
        (parent, name, child)
        for parent in hugging_face.modules()
        for name, child in parent._modules.items()
        if child is not None and "_original_component" in child._modules
    ]
    for parent, name, child in swapped:
        parent._modules[name] = child._modules["_original_component"]
    try:
        yield hugging_face
    finally:
        for parent, name, child in swapped:
            parent._modules[name] = child
