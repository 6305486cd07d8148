"""Checkers of options, and option objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare import checks

RIGHT = [
    (checks.count, np.int64(3), 3),
    (checks.whole, -2, -2),
    (checks.finite, 1, 1.0),
    (checks.share, 1, 1.0),
    (checks.flag, False, False),
    (checks.or_none(checks.count), None, None),
    (checks.or_none(checks.count), 2, 2),
]
WRONG = [
    (checks.count, 0, "x=0; give a whole number, at least 1"),
    (checks.count, True, "x=True; give a whole number"),
    (checks.count, 2.0, "x=2.0; give a whole number"),
    (checks.whole, 0.5, "x=0.5 is not a whole number"),
    (checks.whole, False, "x=False is not a whole number"),
    (checks.finite, float("nan"), "x=nan is not a finite number"),
    (checks.finite, 1e39, "is not a finite number"),
    (checks.finite, "0", "x='0' is not a finite number"),
    (checks.share, 0, "x=0; give a share, above 0 and at most 1"),
    (checks.share, 1.5, "x=1.5; give a share"),
    (checks.share, True, "x=True; give a share"),
    (checks.flag, 1, "x=1; give True or False"),
    (checks.or_none(checks.count), 0, "x=0; give a whole number"),
    (checks.texts_by_language, ["a"], "x is not a mapping from each language to its texts"),
    (checks.texts_by_language, {}, "x is not a mapping"),
    (checks.texts_by_language, {"en": "a"}, "x, language 'en': 'a' is not a list of texts; give"),
    (checks.texts_by_language, {"en": None}, "x, language 'en': None is not a list of texts; give"),
    (checks.texts_by_language, {"en": iter("a")}, "x, language 'en': a str_ascii_iterator is not a list of texts"),
    (checks.texts_by_language, {"en": ["a"], "de": []}, "x has no text for language 'de'; give at least one"),
]


@pytest.mark.parametrize(("check", "value", "expected"), RIGHT)
def test_what_is_right_is_given_back_in_the_library_s_form(check, value, expected):
    found = check("x", value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("check", "value", "message"), WRONG)
def test_what_is_wrong_is_refused_by_name(check, value, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        check("x", value)


@pytest.mark.usefixtures("as_users_run_it")
def test_checkers_that_know_what_there_is():
    assert checks.one_of("x", "a", "ab") == "a"
    for value in ("c", ["a"], None, torch.ones(2)):
        with pytest.raises(ns.NeuronShareError, match="is unknown; use one of a, b"):
            checks.one_of("x", value, "ab")
    assert checks.count("x", 0, least=0) == 0
    with pytest.raises(ns.NeuronShareError, match="x=1; give a whole number, at least 2, such as 5"):
        checks.count("x", 1, least=2, such_as=5)
    assert checks.distinct("x", range(3)) == [0, 1, 2]
    assert checks.distinct("x", (), least=0) == []
    for values in ([], [1, 1], [1, 4], "12", 3, None):
        with pytest.raises(ns.NeuronShareError, match="give a list of 1, 2, each once"):
            checks.distinct("x", values, known=[1, 2])
    texts = {"en": iter(["a"])}
    assert checks.texts_by_language("x", texts, lists=False) is texts
    assert checks.texts_by_language("x", {"en": np.array(["a"])})


@dataclass(frozen=True)
class Options(checks.Options):
    """Two options of which one needs the other."""

    size: int = checks.option(1, checks.count, help="how many")
    names: tuple[str, ...] | None = checks.option(None, checks.or_none(checks.distinct))
    mode: object = checks.option("zero", lambda name, value: value)

    def check_together(self) -> None:
        if self.names is not None and len(self.names) > self.size:
            raise ns.NeuronShareError(f"size={self.size} is too few for names={self.names!r}.")


def test_options_are_checked_alone_and_together_and_recorded():
    options = Options(size=np.int64(2), names=("a", "b"), mode=len)
    assert options.record == {"size": 2, "names": ["a", "b"], "mode": "len"}
    assert type(options.size) is int
    assert Options(mode=torch.ones(2)).record == {"size": 1, "names": None, "mode": "given"}
    with pytest.raises(ns.NeuronShareError, match="size=0; give a whole number"):
        Options(size=0)
    with pytest.raises(ns.NeuronShareError, match="size=1 is too few for names"):
        Options(names=("a", "b"))


def test_languages_may_be_anything_with_an_order(as_users_run_it):
    """Keys of a mapping, a table's column and an array have one; a set has none."""
    prompts = ns.ParallelPrompts({language: ["a"] for language in ("en", "de", "fr")})
    wanted = {"fr": 1, "en": 2}
    for names in (wanted.keys(), wanted, pd.Series(["fr", "en"]), np.array(["fr", "en"]), pd.Index(["fr", "en"])):
        assert prompts.select(names).languages == ("fr", "en")
    for names in (set(wanted), frozenset(wanted), iter(wanted), "fr", b"fr", 3):
        with pytest.raises(ns.NeuronShareError, match="give a list of names"):
            prompts.select(names)
