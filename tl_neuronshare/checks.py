"""Checkers of options, and option objects: each option is declared, checked and recorded in one place.

A checker takes an option's name and value. It refuses a value that is not allowed, and returns an allowed one in the
form that the library works with.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import field, fields
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, TypeVar

import torch

from tl_neuronshare.errors import NeuronShareError

Checker = Callable[[str, Any], Any]
_Kind = TypeVar("_Kind")
_LARGEST = float(torch.finfo(torch.float32).max)
_MOST = 2**31  # more cannot be a number of neurons, tokens or examples


def one_of(name: str, value: Any, known: Iterable[Any]) -> Any:
    """Check that a value is one of the known strings.

    Examples:
        >>> one_of("site", "post", ("post", "gate"))
        'post'
    """
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise NeuronShareError(f"{name}={value!r} is unknown; use one of {', '.join(map(str, known))}.")
    return value


def flag(name: str, value: Any) -> bool:
    """Check that a value is True or False."""
    if not isinstance(value, bool):
        raise NeuronShareError(f"{name}={value!r}; give True or False.")
    return value


def is_count(value: Any, least: int = 1) -> bool:
    """Return whether a value is a whole number of at least `least`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < _MOST


def count(name: str, value: Any, *, least: int = 1, such_as: int | None = None) -> int:
    """Check that a value is a whole number of at least `least`.

    Examples:
        >>> count("n_resamples", 100)
        100
    """
    if not is_count(value, least):
        example = "" if such_as is None else f", such as {such_as}"
        raise NeuronShareError(f"{name}={value!r}; give a whole number, at least {least}{example}.")
    return int(value)


def whole(name: str, value: Any) -> int:
    """Check that a value is a whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise NeuronShareError(f"{name}={value!r} is not a whole number; give one, such as 0.")
    if not -(2**63) <= int(value) < 2**63:
        raise NeuronShareError(f"{name}={value!r} does not fit into 64 bits; give a smaller number.")
    return int(value)


def finite(name: str, value: Any, *, such_as: str = "0.0") -> float:
    """Check that a value is a finite number, also in single precision."""
    # It is compared before it is converted, because an integer may be too large for a float.
    if isinstance(value, bool) or not isinstance(value, Real) or not -_LARGEST < value < _LARGEST:  # type: ignore[operator]
        raise NeuronShareError(f"{name}={value!r} is not a finite number; give a number such as {such_as}.")
    return float(value)


def instance(name: str, value: Any, kind: type[_Kind]) -> _Kind:
    """Check that a value is of a class.

    Examples:
        >>> instance("n", 3, int)
        3
    """
    if not isinstance(value, kind):
        raise NeuronShareError(f"{name} is a {type(value).__name__}; give a {kind.__name__}.")
    return value


def path_of(name: str, value: Any) -> Path:
    """Check that a value can be the path of a file or folder, which need not be there.

    Examples:
        >>> path_of("path", "result.safetensors").name
        'result.safetensors'
    """
    try:
        path = Path(value).expanduser()
        os.fsencode(path)
        path.exists()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise NeuronShareError(f"{name}={shortened(value)} is not a path ({_reason(error)}); give one.") from error
    return path


def _reason(error: Exception) -> str:
    """What an error says, without the path, which may be very long."""
    return (error.strerror if isinstance(error, OSError) else None) or shortened(str(error))


def has_order(value: Any) -> bool:
    """Return whether a value has items in a fixed order, which can be read more than once.

    Examples:
        >>> has_order({"en": 1}.keys()), has_order({"en", "de"}), has_order("en"), has_order(iter(["en"]))
        (True, False, False, False)
    """
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | set | frozenset | Iterator)


def names_of(name: str, value: Any) -> tuple[str, ...]:
    """Check that a value is a list of names in a fixed order.

    Examples:
        >>> names_of("languages", ["en", "de"])
        ('en', 'de')
    """
    if not has_order(value) or not all(isinstance(each, str) and each for each in value):
        raise NeuronShareError(f"{name}={shortened(value)}; give a list of names, such as ['en', 'de'].")
    return tuple(value)


def sizes_of(name: str, value: Any) -> list[int]:
    """Check that values are sizes, which are whole numbers of at least 1.

    Examples:
        >>> sizes_of("widths", (512, 512))
        [512, 512]
    """
    sizes = list(value) if has_order(value) else []
    if not sizes or not all(map(is_count, sizes)):
        raise NeuronShareError(f"{name}={shortened(value)}; give a list of whole numbers, each at least 1.")
    return [int(size) for size in sizes]


def measured_layers(value: Any, n_layers: int) -> int:
    """Check how many of the layers are measured; all if it is None."""
    if value is None:
        return n_layers
    if not is_count(value) or value > n_layers:
        raise NeuronShareError(f"n_measured={value!r}; give a number of layers, from 1 to {n_layers}.")
    return int(value)


def numbers_of(name: str, value: Any, n: int) -> Sequence[int]:
    """Check that values are numbers of `n` examples; one may appear several times.

    Examples:
        >>> numbers_of("examples", [2, 0, 0], 3)
        [2, 0, 0]
    """
    numbers: Sequence[int] = value.tolist() if hasattr(value, "tolist") else value
    is_list = isinstance(numbers, Sequence) and not isinstance(numbers, str | bytes)
    if not is_list or not all(is_count(each, 0) and each < n for each in numbers):
        raise NeuronShareError(f"{name}={shortened(value)}; give numbers of examples, from 0 to {n - 1}.")
    return numbers


def is_whole(text: str) -> bool:
    """Return whether a text has only whole characters: half of a surrogate pair, which JSON allows, has no bytes."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def writable(name: str, value: Any, *, least: int = 0) -> str:
    """Check that a value is a text that can be written to a file."""
    if not isinstance(value, str) or len(value) < least or not is_whole(value):
        raise NeuronShareError(f"{name}={shortened(value)} is not a text that can be written; give one.")
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Check that a value is a mapping or None, and return it as a dictionary."""
    if value is not None and not isinstance(value, Mapping):
        raise NeuronShareError(f"{name} is a {type(value).__name__}; give a mapping, such as {{'model': 'demo'}}.")
    return dict(value or {})


def share(name: str, value: Any) -> float:
    """Check that a value is a share, above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= 1:
        raise NeuronShareError(f"{name}={value!r}; give a share, above 0 and at most 1.")
    return float(value)


def distinct(
    name: str, values: Any, *, known: Iterable[Any] | None = None, least: int = 1, what: str = "values"
) -> list[Any]:
    """Check that values are all different and, where `known` is given, all known; return them as a list.

    Examples:
        >>> distinct("seeds", range(3))
        [0, 1, 2]
    """
    is_list = isinstance(values, Iterable) and not isinstance(values, str | bytes | set | frozenset)
    items = list(values) if is_list else []
    known = None if known is None else list(known)
    unknown = known is not None and [item for item in items if item not in known]
    if not is_list or unknown or len(items) < least or any(item in items[:place] for place, item in enumerate(items)):
        allowed = what if known is None else ", ".join(map(str, known))
        raise NeuronShareError(f"{name}={values!r}; give a list of {allowed}, each once.")
    return items


def layer_numbers(name: str, value: Any, *, n_layers: int | None = None) -> list[int]:
    """Check that values are the numbers of layers, each once; return them as a list.

    Examples:
        >>> layer_numbers("layers", range(1, 3), n_layers=4)
        [1, 2]
    """
    layers = [] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    are_counts = all(is_count(layer, 0) and (n_layers is None or layer < n_layers) for layer in layers)
    if not layers or not are_counts or len(set(layers)) < len(layers):
        known = "" if n_layers is None else f" of 0 to {n_layers - 1}"
        raise NeuronShareError(f"{name}={value!r}; give the numbers of some layers{known}, each once.")
    return [int(layer) for layer in layers]


def refuse_language_all(languages: Iterable[str]) -> None:
    """Refuse a language that is called "all", the name that stands for all languages in tables.

    Raises:
        NeuronShareError: a language is called "all".
    """
    if "all" in languages:
        raise NeuronShareError(
            "A language is called 'all', which means all languages in tables; give it a different name."
        )


def selected(name: str, n: int, examples: Any) -> Sequence[int]:
    """Return the places of the selected examples: a range for a slice, otherwise a list.

    Args:
        name: the name, in messages, of the object whose examples are selected.
        n: how many examples there are.
        examples: a slice, numbers of examples (negative ones count from the end), or one boolean for each example; as
            a list, a numpy array, a torch tensor or a pandas Series.

    Raises:
        NeuronShareError: the value is a bare number or does not select examples, an example does not exist or is
            selected twice, the number of booleans differs from that of the examples, or nothing is selected.

    Examples:
        >>> selected("prompts", 3, slice(1, None)), selected("prompts", 3, [True, False, True])
        (range(1, 3), [0, 2])
    """
    places = range(n)[examples] if isinstance(examples, slice) else _places(name, n, examples)
    if not places:
        raise NeuronShareError(f"{name}[{shortened(examples)}] selects none of the {n} examples.")
    return places


def _places(name: str, n: int, examples: Any) -> list[int]:
    """Return the places of examples that are selected by numbers or by booleans."""
    selection = examples.tolist() if hasattr(examples, "tolist") else examples
    if isinstance(selection, Integral) and not isinstance(selection, bool):
        raise NeuronShareError(
            f"{name}[{selection}] is a bare number; write {name}[[{selection}]] for this example alone."
        )
    values = list(selection) if isinstance(selection, Sequence) and not isinstance(selection, str) else [selection]
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
        raise NeuronShareError(f"{name}[{shortened(selection)}] selects example {twice} twice; give each example once.")
    return places


def or_none(check: Checker) -> Checker:
    """Return the same checker for an option that may also be None."""

    def checked(name: str, value: Any) -> Any:
        return None if value is None else check(name, value)

    return checked


def texts_by_language(name: str, value: Any, *, lists: bool = True) -> Mapping[str, Any]:
    """Check that a value maps each language to its texts: a list of at least one.

    Without `lists` they may be any iterable, or the path of a file. A table is not one: its items are its columns.

    Raises:
        NeuronShareError: the value is not a mapping, has no language, or has a string or no text for a language.
    """
    if not isinstance(value, Mapping) or not value:
        raise NeuronShareError(f"{name} is not a mapping from each language to its texts; give {{'en': [text, ...]}}.")
    for language, texts in value.items():
        kind = Sequence if lists else Iterable | Path
        is_column = hasattr(texts, "tolist")
        is_table = isinstance(texts, str | Mapping | Set) or hasattr(texts, "columns")
        if not (isinstance(texts, kind) or is_column) or is_table:
            raise NeuronShareError(
                f"{name}, language {language!r}: {_shown(texts)} is not a list of texts"
                f"{'' if lists else ', a file or a data set'}; give {{{language!r}: [text, ...]}}."
            )
    if lists and (empty := [language for language, texts in value.items() if not len(texts)]):
        raise NeuronShareError(f"{name} has no text for language {empty[0]!r}; give at least one.")
    return value


def _shown(value: Any) -> str:
    """A string as it is, and anything else by its kind."""
    return shortened(value) if isinstance(value, str) or value is None else f"a {type(value).__name__}"


def option(default: Any, check: Checker, *, help: str = "", **argument: Any) -> Any:
    """Return a field of an option object: its default, its checker, and its form on the command line.

    Args:
        default: the option's default.
        check: the checker, which takes the name and the value and returns the value to keep.
        help: the help text on the command line; an option without one is not offered there.
        argument: other arguments of `argparse`, such as type, choices, nargs and metavar.
    """
    return field(default=default, metadata={"check": check, "help": help, "argument": argument})


class Options:
    """Options that belong together: the base of frozen dataclasses of `option` fields, which are checked when made.

    Examples:
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
        """Refuse options that are each allowed, but not together; a subclass may override it."""

    @property
    def record(self) -> dict[str, Any]:
        """The options in the form in which a result's metadata keeps them."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    """Return a value in a form that JSON can hold: a function as its name, a tensor as the word "given"."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Real):  # numpy's numbers
        return float(value)
    return getattr(value, "__name__", str(value)) if callable(value) else "given"
