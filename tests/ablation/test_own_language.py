"""What a language loses without its own neurons, from answers that are made up."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from tl_neuronshare.ablation.own_language import OwnLanguage
from tl_neuronshare.maths.bootstrap import Bootstrap

LANGUAGES, N = ("en", "de", "th"), 12


def run_of(correct):
    """A table of `evaluate`, with its rows in a different order than the examples."""
    rows = [
        {"example": f"example {example:02}", "language": language, "correct": bool(correct[example, column])}
        for (column, language), example in product(enumerate(LANGUAGES), range(N))
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def ends(values):
    return [float(end) for end in Bootstrap(200).intervals(values)]


def test_it_is_the_mean_by_its_definition():
    """Seeds first, then languages; a mask with a different name does not count; an example's order does not matter."""
    rng = np.random.default_rng(0)
    unablated = rng.random((N, 3)) < 0.8
    runs = {
        (mask, ablated, seed): rng.random((N, 3)) < 0.5
        for mask, ablated, seed in product(("en", "th", "other"), ("type", "random"), (0, 1))
        if ablated != "type" or seed == 0
    }
    own = OwnLanguage(LANGUAGES)
    own.keep("none", "none", None, run_of(unablated))
    for (mask, ablated, seed), correct in runs.items():
        own.keep(mask, ablated, seed, run_of(correct))
    table = own.table(n_resamples=200).set_index("ablated")
    assert table.index.to_list() == ["type", "random"]
    differences = {}
    for ablated in ("type", "random"):
        each = np.zeros((N, 2))
        for example in range(N):
            in_own, in_others = [], []
            for mask in ("en", "th"):
                seeds = [correct for (name, kind, _), correct in runs.items() if (name, kind) == (mask, ablated)]
                changes = [
                    np.mean([float(correct[example, column]) - float(unablated[example, column]) for correct in seeds])
                    for column in range(3)
                ]
                place = LANGUAGES.index(mask)
                in_own.append(changes[place])
                in_others.append(np.mean([change for column, change in enumerate(changes) if column != place]))
            each[example] = np.mean(in_own), np.mean(in_others)
        row, difference = table.loc[ablated], each[:, 0] - each[:, 1]
        assert row[["own", "others", "difference"]].to_list() == pytest.approx([*each.mean(0), difference.mean()])
        assert row[["low", "high"]].to_list() == pytest.approx(ends(difference))
        differences[ablated] = difference
    beyond = differences["type"] - differences["random"]
    assert table.loc["random", "vs_control"] == pytest.approx(beyond.mean())
    assert table.loc["random", ["vs_low", "vs_high"]].to_list() == pytest.approx(ends(beyond))
    assert table.loc["type", ["vs_control", "vs_low", "vs_high"]].isna().all()


def test_neurons_that_matter_to_one_language_only_are_found_as_that():
    """Each language answers nothing without its own neurons, and everything without those of others."""
    own = OwnLanguage(LANGUAGES)
    own.keep("none", "none", None, run_of(np.ones((N, 3))))
    for column, language in enumerate(LANGUAGES):
        correct = np.ones((N, 3))
        correct[:, column] = 0
        own.keep(language, "type", 0, run_of(correct))
        own.keep(language, "random", 0, run_of(np.ones((N, 3))))
    table = own.table(n_resamples=50).set_index("ablated")
    assert table.loc["type", ["own", "others", "difference", "high"]].to_list() == [-1, 0, -1, -1]
    assert table.loc["random", ["own", "difference", "vs_control"]].to_list() == [0, 0, -1]
