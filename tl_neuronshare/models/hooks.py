"""Hooks on a model: install them for a while, check that they all fire, or take the user's own hooks off."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.lens import LensModel, name_of
from tl_neuronshare.models.points import plainly

Hooks = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]
# Hooks that these packages put on a model are part of the model.
_LIBRARIES = ("transformers", "transformer_lens", "accelerate")


@runtime_checkable
class Edit(Protocol):
    """A hook that says what it edits; of any other hook it is assumed that it may edit everything."""

    @property
    def is_local(self) -> bool:
        """Whether the edit of a token depends on that token alone."""
        ...

    def ends_at(self, prompt_tokens: int) -> bool:
        """Whether the hook takes the prompt to have so many tokens, or does not need to know."""
        ...

    def following(self, rows: Int[Tensor, " row"]) -> Edit:
        """Return the edit of tokens after the prompt, in a batch whose rows belong to these rows of the prompts."""
        ...

    def __call__(self, tensor: Tensor, hook: Any) -> Tensor | None:
        """Return the new tensor, or None to leave it."""
        ...


class Editing:
    """A hook that edits the last of several hook points, with the tensors of all of them.

    The others fire before it in a forward pass; their tensors are kept until then, and no longer.

    Args:
        names: the hook points, as in `NeuronHook.names`.
        edit: gets their tensors, and returns the new one of the last, or None to leave it.
    """

    def __init__(self, names: Sequence[str], edit: Callable[[list[Tensor]], Tensor | None]) -> None:
        self.names, self.edit = tuple(names), edit
        self._kept: dict[str, Tensor] = {}
        self._latest: Callable[[], Tensor | None] = lambda: None  # a weak reference to what the latest call gave
        self._called_as: str | None = None

    @property
    def hooks(self) -> list[tuple[str, Callable[..., Any]]]:
        """One hook for each of the points."""
        return [*((name, _Keep(name, self._kept)) for name in self.names[:-1]), (self.names[-1], self)]

    def __call__(self, tensor: Tensor, hook: Any) -> Tensor | None:
        """Edit the tensor; called by TransformerLens."""
        # A bridge's compatibility mode calls a hook once for each name of its hook point.
        called_as = getattr(hook, "name", None)
        if tensor is self._latest() and called_as != self._called_as:
            return None
        missing = [name for name in self.names[:-1] if name not in self._kept]
        if missing:
            raise NeuronShareError(
                f"{self.names[-1]} cannot be edited without the tensor of {missing[0]}; install all hooks of the list, "
                "and not only those of some names."
            )
        edited = self.edit([*(self._kept.pop(name) for name in self.names[:-1]), tensor])
        self._latest, self._called_as = weakref.ref(tensor if edited is None else edited), called_as
        return edited


class _Keep:
    """A hook that keeps a tensor for a later edit, and edits nothing."""

    is_local = True

    def __init__(self, name: str, kept: dict[str, Tensor]) -> None:
        self._name, self._kept = name, kept

    def ends_at(self, prompt_tokens: int) -> bool:
        """Return True: the hook does not need to know how many tokens the prompt has."""
        return True

    def following(self, rows: Int[Tensor, " row"]) -> _Keep:
        """Return the hook itself: it keeps a tensor of any tokens."""
        return self

    def __call__(self, tensor: Tensor, hook: Any) -> None:
        self._kept[self._name] = tensor


@contextmanager
def hooked(model: LensModel, fwd_hooks: Hooks) -> Iterator[set[int]]:
    """Install hooks for as long as the context lasts, and give the list places of those that have fired.

    It does the same as `model.hooks`, except that a name which the model does not have is an error. Hook points are
    compared by identity, because one point can have several names. They are hooked directly, because TransformerLens
    lists all of a bridge's hooks again for every name, and visits all hook points of a HookedTransformer at the end.

    Raises:
        NeuronShareError: the hooks are not a list of pairs, or the model does not have one of the names.
    """
    points = model.hook_dict
    functions: dict[Any, list[tuple[int, Callable[..., Any]]]] = {}
    fired = set()
    for number, pair in enumerate(fwd_hooks):
        if not (isinstance(pair, Sequence) and len(pair) == 2 and callable(pair[1])):
            raise NeuronShareError(f"{pair!r} is not a hook; give pairs of a hook's name and a function.")
        chosen = [pair[0]] if isinstance(pair[0], str) else [name for name in points if pair[0](name)]
        if not chosen or chosen[0] not in points:
            raise NeuronShareError(f"{name_of(model)} has no hook {pair[0]}; see model.hook_dict for the hooks it has.")
        for point in dict.fromkeys(points[name] for name in chosen):
            functions.setdefault(point, []).append((number, pair[1]))

    def call(tensor: Tensor, hook: Any, *, of_point: list[tuple[int, Callable[..., Any]]]) -> Tensor | None:
        changed = None
        for number, function in of_point:
            fired.add(number)
            result = function(tensor, hook=hook)
            if result is not None:
                changed = tensor = result
        return changed

    installed = []
    try:
        for point, of_point in functions.items():
            point.add_hook(partial(call, of_point=of_point))
            installed.append((point, point.fwd_hooks[-1]))
        yield fired
    finally:
        for point, handle in installed:
            handle.hook.remove()
            point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]


@contextmanager
def all_firing(model: LensModel, fwd_hooks: Hooks) -> Iterator[None]:
    """Install hooks as `hooked` does, and refuse at the end if one of them has not fired.

    Raises:
        NeuronShareError: as in `hooked`, and when a hook has not fired.
    """
    with hooked(model, fwd_hooks) as fired:
        yield
    for number, (name, _) in enumerate(fwd_hooks):
        if number not in fired:
            raise NeuronShareError(
                f"The hook on {name} did not fire; does it belong to a part that this model does not run?"
            )


@contextmanager
def without_hooks(model: LensModel) -> Iterator[None]:
    """Take off the user's hooks, TransformerLens's and torch's, on all modules for as long as the context lasts."""
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
        for hooks, before in taken:  # the libraries may have added hooks meanwhile; these come last
            meanwhile = {key: hook for key, hook in hooks.items() if key not in before}
            hooks.clear()
            hooks.update(before | meanwhile)


def has_hooks(model: LensModel) -> bool:
    """Return whether the user's hooks, TransformerLens's or torch's, are on any of the model's modules."""
    return any(
        _hooks_of_the_user(module, hooks)
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
    )


def _hooks_of_the_user(module: Any, hooks: Mapping[int, Any]) -> set[int]:
    """Return the keys of the hooks that the user put on a module; the libraries put some there to capture outputs."""
    if not hooks:
        return set()
    # A hook point wraps the user's function in a function of its own.
    wrapped = {handle.hook.id: handle.user_hook for handle in getattr(module, "fwd_hooks", ())}
    functions = {key: wrapped.get(key, hook) for key, hook in hooks.items()}
    return {
        key
        for key, function in functions.items()
        if str(getattr(getattr(function, "func", function), "__module__", "")).split(".")[0] not in _LIBRARIES
    }


@contextmanager
def unwrapped(model: LensModel) -> Iterator[torch.nn.Module]:
    """Give a bridge's Hugging Face model without TransformerLens: the same weights, run by Hugging Face's own modules.

    TransformerLens replaces Hugging Face's modules by its own components, each of which keeps the original inside, and
    it gives some originals a `forward` of its own (T5, Falcon). For as long as the context lasts the originals are back
    in their places with their own `forward`, so that no second copy has to be loaded. Experts run `plainly`.

    Examples:
        >>> with unwrapped(model) as hugging_face:
        ...     type(hugging_face.transformer.h[0].mlp.dense_4h_to_h).__name__
        'Linear'
    """
    hugging_face: torch.nn.Module = model.original_model  # type: ignore[attr-defined]
    with ExitStack() as stack:
        swapped = [
            (owner, name, child)
            for owner in hugging_face.modules()
            for name, child in owner._modules.items()
            if child is not None and "_original_component" in child._modules
        ]
        for parent, name, child in swapped:
            stack.callback(parent._modules.__setitem__, name, child)
            parent._modules[name] = child._modules["_original_component"]
        for module in list(hugging_face.modules()):
            forward = vars(module).get("forward")
            if str(getattr(forward, "__module__", "")).startswith("transformer_lens"):
                stack.callback(setattr, module, "forward", forward)
                del module.forward
        stack.enter_context(plainly(hugging_face))
        yield hugging_face
