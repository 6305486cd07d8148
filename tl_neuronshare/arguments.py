"""Arguments of the wrong kind: a raw error that one of them causes becomes an error that names it."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from reprlib import repr as shortened
from typing import Any, Literal, TypeVar, Union, cast

from tl_neuronshare.errors import NeuronShareError

_Function = TypeVar("_Function", bound=Callable[..., Any])


def explains(function: _Function) -> _Function:
    """Make a function say which of its arguments is of the wrong kind, where that ends in a raw error.

    The annotations say what each argument may be. They are looked at only when something was raised, so that a right
    call costs nothing, and an error that has a different cause, such as a hook of the user's, stays what it is.

    Examples:
        >>> @explains
        ... def first(texts: Sequence[str]) -> str:
        ...     return texts[0]
        >>> first(3)
        Traceback (most recent call last):
            ...
        tl_neuronshare.errors.NeuronShareError: first: texts=3 is not of the kind Sequence[str]; give one.
    """

    @wraps(function)
    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except NeuronShareError:
            raise
        except Exception as error:
            if (misfit := _misfit(function, args, kwargs)) is None:
                raise
            raise NeuronShareError(misfit) from error

    return cast(_Function, explained)


def _misfit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Say which argument is of the wrong kind; None if all are right, or are too many or too few."""
    try:
        signature = inspect.signature(function)
        given = signature.bind(*args, **kwargs).arguments
        hints = typing.get_type_hints(function)
    except (TypeError, NameError):
        return None
    for name, value in given.items():
        parameter = signature.parameters[name]
        values = value if parameter.kind is parameter.VAR_POSITIONAL else (value,)
        if (
            parameter.kind is parameter.VAR_KEYWORD
            or name not in hints
            or all(fits(each, hints[name]) for each in values)
        ):
            continue
        kind = " ".join(str(parameter.annotation).split())
        name_of = function.__qualname__.removesuffix(".__init__")
        return f"{name_of}: {name}={shortened(value)} is not of the kind {kind}; give one."
    return None


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of the kind that an annotation names, in all its items.

    Examples:
        >>> fits({"en": ["a"]}, Mapping[str, Sequence[str]]), fits({"en": "a"}, Mapping[str, Sequence[str]])
        (True, False)
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or isinstance(kind, TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return any(value is each or (isinstance(value, str) and value == each) for each in inner)
    if origin is Callable or origin is type:
        return callable(value)
    if isinstance(value, bool) and kind in (int, float):
        return False
    own_kind: Any = origin or {float: (int, float), None: type(None)}.get(kind, kind)
    return isinstance(value, own_kind) and _items_fit(value, origin, inner)


def _items_fit(value: Any, origin: Any, inner: Sequence[Any]) -> bool:
    """Return whether the items of a value are of the kinds that an annotation names."""
    if origin is None or not inner:
        return True
    if isinstance(value, Mapping):
        return all(fits(key, inner[0]) and fits(each, inner[-1]) for key, each in value.items())
    if origin is tuple and ... not in inner:
        return len(value) == len(inner) and all(map(fits, value, inner))
    # A text is a sequence of texts too, and is never meant as one.
    return not isinstance(value, str) and (
        not isinstance(value, Sequence) or all(fits(each, inner[0]) for each in value)
    )
