"""Checkers of options, and option objects: what a user may say is declared, checked and recorded in one place.

A checker takes an option's name and value, and returns the value in the form that the library works with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, fields
from numbers import Integral, Real
from reprlib import repr as shortened
from typing import Any

import torch

from tl_neuronshare.errors import NeuronShareError

Checker = Callable[[str, Any], Any]
_LARGEST = float(torch.finfo(torch.float32).max)


def one_of(name: str, value: Any, known: Iterable[Any]) -> Any:
    """One of the values that are known.

    Example:
        >>> one_of("site", "post", ("post", "gate"))
        'post'
    """
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise NeuronShareError(f"{name}={value!r} is unknown; use one of {', '.join(map(str, known))}.")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise NeuronShareError(f"{name}={value!r}; give True or False.")
    return value


def is_count(value: Any, least: int = 1) -> bool:
    """Whether this is a whole number of at least so many."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def count(name: str, value: Any, *, least: int = 1, such_as: int | None = None) -> int:
    """A whole number of at least so many.

    Example:
        >>> count("n_resamples", 100)
        100
    """
    if not is_count(value, least):
        example = "" if such_as is None else f", such as {such_as}"
        raise NeuronShareError(f"{name}={value!r}; give a whole number, at least {least}{example}.")
    return int(value)


def whole(name: str, value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise NeuronShareError(f"{name}={value!r} is not a whole number.")
    return int(value)


def finite(name: str, value: Any, *, such_as: str = "0.0") -> float:
    """A finite number, also in single precision."""
    # Compared before it is converted: an integer may be too large for a float.
    if isinstance(value, bool) or not isinstance(value, Real) or not -_LARGEST < value < _LARGEST:  # type: ignore[operator]
        raise NeuronShareError(f"{name}={value!r} is not a finite number; give a number such as {such_as}.")
    return float(value)


def share(name: str, value: Any) -> float:
    """A share, above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= 1:
        raise NeuronShareError(f"{name}={value!r}; give a share, above 0 and at most 1.")
    return float(value)


def distinct(
    name: str, values: Any, *, known: Iterable[Any] | None = None, least: int = 1, what: str = "values"
) -> list[Any]:
    """A list of values that are all different, and all known where that is asked for.

    Example:
        >>> distinct("seeds", range(3))
        [0, 1, 2]
    """
    given = [] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    known = None if known is None else list(known)
    unknown = known is not None and [value for value in given if value not in known]
    is_list = isinstance(values, Iterable) and not isinstance(values, str)
    if not is_list or unknown or len(given) < least or any(value in given[:place] for place, value in enumerate(given)):
        of_these = what if known is None else ", ".join(map(str, known))
        raise NeuronShareError(f"{name}={values!r}; give a list of {of_these}, each once.")
    return given


def refuse_language_all(languages: Iterable[str]) -> None:
    """Refuse a language of the name that stands for all languages in tables.

    Raises:
        NeuronShareError: a language is called "all".
    """
    if "all" in languages:
        raise NeuronShareError("A language is called 'all', which means all of them in tables; name it otherwise.")


def selected(name: str, n: int, examples: Any) -> Sequence[int]:
    """Find the places of the selected examples: a range for a slice, otherwise a list.

    Args:
        name: what is selected from, for messages.
        n: how many examples there are.
        examples: a slice, numbers of examples (negative ones count from the end), or one boolean for each example; as
            a list, a numpy array, a torch tensor or a pandas Series.

    Raises:
        NeuronShareError: a bare number, a value that does not select examples, an example that is not there or is
            selected twice, booleans that are not as many as the examples, or nothing is selected.

    Example:
        >>> selected("prompts", 3, slice(1, None)), selected("prompts", 3, [True, False, True])
        (range(1, 3), [0, 2])
    """
    places = range(n)[examples] if isinstance(examples, slice) else _places(name, n, examples)
    if not places:
        raise NeuronShareError(f"{name}[{shortened(examples)}] selects none of the {n} examples.")
    return places


def _places(name: str, n: int, examples: Any) -> list[int]:
    """The places of examples that are selected by number or by booleans."""
    given = examples.tolist() if hasattr(examples, "tolist") else examples
    if isinstance(given, Integral) and not isinstance(given, bool):
        raise NeuronShareError(f"{name}[{given}] is a bare number; write {name}[[{given}]] for this example alone.")
    values = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    values = [value.item() if getattr(value, "shape", None) == () else value for value in values]
    if values and all(isinstance(value, bool) for value in values):
        if len(values) != n:
            raise NeuronShareError(f"{name}[...] has {len(values)} booleans for {n} examples; give one for each.")
        return [place for place, chosen in enumerate(values) if chosen]
    if not all(isinstance(value, Integral) and not isinstance(value, bool) for value in values):
        raise NeuronShareError(
            f"{name}[{shortened(examples)}] does not select examples; give a slice such as {name}[3:5], a "
            f"list of numbers such as {name}[[0, 4]], or one boolean for each example."
        )
    if absent := [value for value in values if not -n <= value < n]:
        raise NeuronShareError(f"There is no example {absent[0]}; {name} has {n}, counted from 0.")
    places = [int(value) % n for value in values]
    if len(set(places)) < len(places):
        twice = next(place for place, times in Counter(places).items() if times > 1)
        raise NeuronShareError(f"{name}[{shortened(given)}] selects example {twice} twice; give each example once.")
    return places


def or_none(check: Checker) -> Checker:
    """The same checker, for an option that may also be None."""

    def checked(name: str, value: Any) -> Any:
        return None if value is None else check(name, value)

    return checked


def texts_by_language(name: str, value: Any, *, lists: bool = True) -> Mapping[str, Any]:
    """A mapping from each language to its texts: a list of at least one, or (without `lists`) anything that iterates.

    Raises:
        NeuronShareError: there is no mapping, no language, a string where a list belongs, or no text.
    """

    def are_texts(texts: Any) -> bool:
        kind = Sequence if lists else Iterable
        return (isinstance(texts, kind) or hasattr(texts, "tolist")) and not isinstance(texts, str)

    if not isinstance(value, Mapping) or not value or not all(map(are_texts, value.values())):
        raise NeuronShareError(f"{name} is not a mapping from each language to its texts; give {{'en': [text, ...]}}.")
    if lists and (empty := [language for language, texts in value.items() if not len(texts)]):
        raise NeuronShareError(f"{name} has no text for language {empty[0]!r}; give at least one.")
    return value


def option(default: Any, check: Checker, *, help: str = "", **argument: Any) -> Any:
    """A field of an option object: its default, its checker, and how it is asked for on the command line.

    Args:
        default: the option's default.
        check: takes name and value, and returns the value to keep.
        help: what the command line says of it; an option without help is not offered there.
        argument: other arguments of `argparse`, such as type, choices, nargs and metavar.
    """
    return field(default=default, metadata={"check": check, "help": help, "argument": argument})


class Options:
    """Options that belong together, as a frozen dataclass of `option` fields: checked when they are made.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Drawing(Options):
        ...     seed: int = option(0, whole, help="of the first draw")
        >>> Drawing(seed=3).record
        {'seed': 3}
    """

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            checked = each.metadata["check"](each.name, getattr(self, each.name))
            object.__setattr__(self, each.name, checked)
        self.check_together()

    def check_together(self) -> None:
        """Refuse options that are right alone and wrong together."""

    @property
    def record(self) -> dict[str, Any]:
        """The options as a result's metadata keeps them."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    """A value that JSON can say: a function's name, and `given` for tensors."""
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return getattr(value, "__name__", "given")
