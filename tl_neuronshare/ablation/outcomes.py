"""Collect the results of a study's runs, and make its table. This module does not use the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from tl_neuronshare.ablation.controls import Control, Drawable
from tl_neuronshare.maths.bootstrap import FEWEST, Bootstrap
from tl_neuronshare.prompts import ParallelPrompts

# Each metric's column in the table of `evaluate`. What the unablated model answers wrongly is not known.
METRICS = {"accuracy": "correct", "known_accuracy": "correct", "log_prob": "log_prob"}
_HARDLY_ANY = 0.2  # if the unablated model's accuracy is below this, there is little to lose
Numbers = NDArray[np.float64]  # one for each example and language


def scores_of(table: pd.DataFrame, prompts: ParallelPrompts) -> dict[str, Numbers]:
    """Take each metric from a table of `evaluate`, by example and language."""
    return {
        metric: table[column].to_numpy(dtype=float).reshape(len(prompts.languages), len(prompts)).T
        for metric, column in METRICS.items()
    }


class Sums:
    """Sums over neurons, for each example and language: how many were ablated, and the measures of a control."""

    def __init__(self, prompts: ParallelPrompts) -> None:
        self.prompts = prompts
        self._numbers: dict[str, Numbers] = {}

    def add(self, name: str, language: str, examples: Sequence[int], sums: Tensor) -> None:
        """Keep the sums over neurons for these examples; if an example runs twice, its sums are the same."""
        shape = (len(self.prompts), len(self.prompts.languages))
        numbers = self._numbers.setdefault(name, np.zeros(shape))
        numbers[list(examples), self.prompts.languages.index(language)] = sums

    def items(self) -> Iterator[tuple[str, Numbers]]:
        """Give each name with its numbers."""
        return iter(self._numbers.items())


@dataclass
class Outcome:
    """The results of one mask or control with all seeds; they are for the examples for which it can be drawn."""

    control: Control
    drawable: Drawable
    runs: list[dict[str, Numbers]] = field(default_factory=list)
    sums: list[Sums] = field(default_factory=list)

    def mean_over_seeds(self, metric: str) -> Numbers:
        """The mean of a metric over seeds, for all examples."""
        mean: Numbers = np.mean([run[metric] for run in self.runs], axis=0)
        return mean

    def mean_sums(self) -> dict[str, Numbers]:
        """The means of the sums over seeds, by name."""
        by_name: dict[str, list[Numbers]] = {}
        for sums in self.sums:
            for name, numbers in sums.items():
                by_name.setdefault(name, []).append(numbers)
        return {name: np.mean(numbers, axis=0)[self.drawable.examples] for name, numbers in by_name.items()}

    @property
    def note(self) -> str:
        """What a reader of the row must know about it."""
        notes = []
        n_drawn, n_examples = int(self.drawable.examples.sum()), len(self.drawable.examples)
        if n_drawn == 0:
            notes.append(self.drawable.why_not)
        elif n_drawn < n_examples:
            notes.append(f"only {n_drawn} of {n_examples} examples: {self.drawable.why_not}")
        if 0 < n_drawn < FEWEST:
            notes.append(f"no intervals for fewer than {FEWEST} examples")
        if self.sums:
            of_control = self.control.note({name: numbers.sum() for name, numbers in self.mean_sums().items()})
            notes += [of_control] if of_control else []
        return "; ".join(notes)


def table_of(
    prompts: ParallelPrompts,
    unablated: dict[str, Numbers],
    outcomes: Mapping[tuple[str, str], Outcome],
    n_layers: int,
    bootstrap: Bootstrap,
) -> pd.DataFrame:
    """Make the table of `ablation_study`: the unablated model, then each mask and its controls."""
    # What the unablated model does not know is NaN, and is left out wherever it is compared.
    known = np.where(unablated["accuracy"] == 1, unablated["known_accuracy"], np.nan)
    unablated = {**unablated, "known_accuracy": known}
    rows = list(_rows_of_unablated(prompts, unablated))
    for (target, ablated), outcome in outcomes.items():
        note = outcome.note
        for metric in METRICS:
            if not outcome.runs:
                languages = ("all", *prompts.languages)
                rows += [_row(target, ablated, language, metric, note=note) for language in languages]
                continue
            numbers = _Compared(outcome, outcomes[target, "type"], prompts, metric, unablated[metric])
            for language in ("all", *prompts.languages):
                found = {"note": note} | numbers.of(language, n_layers, bootstrap, is_control=ablated != "type")
                rows.append(_row(target, ablated, language, metric, **found))
    return pd.DataFrame(rows)


def _rows_of_unablated(prompts: ParallelPrompts, unablated: dict[str, Numbers]) -> Iterator[dict[str, Any]]:
    for metric in METRICS:
        for language, scores in _by_language(unablated[metric], prompts).items():
            few_right = metric == "accuracy" and scores.mean() < _HARDLY_ANY
            note = "few answers are right to begin with: little can be lost" if few_right else ""
            known = {"value": _mean(scores), "difference": 0.0, "neurons": 0.0, "examples": len(scores)}
            yield _row("none", "none", language, metric, **known, note=note)


class _Compared:
    """The scores of one outcome beside those of the unablated model and of the mask, for one metric, by language."""

    def __init__(
        self, outcome: Outcome, mask: Outcome, prompts: ParallelPrompts, metric: str, unablated: Numbers
    ) -> None:
        before = unablated[outcome.drawable.examples]

        def counted(numbers: Numbers) -> dict[str, NDArray[np.float64]]:
            return _by_language(np.where(np.isnan(before), np.nan, numbers), prompts)

        self.before = counted(before)
        self.values, self.of_mask = (
            counted(each.mean_over_seeds(metric)[outcome.drawable.examples]) for each in (outcome, mask)
        )
        sums = outcome.mean_sums()
        self.neurons, self.shared = (counted(sums[name]) for name in ("neurons", "shared"))

    def of(self, language: str, n_layers: int, bootstrap: Bootstrap, *, is_control: bool) -> dict[str, Any]:
        """Compute the numbers of one row."""
        values, neurons = self.values[language], self.neurons[language]
        if not len(values):
            return {"note": "no answer is right to begin with"}
        difference = values - self.before[language]
        low, high = map(float, bootstrap.intervals(difference))
        known = {"value": values.mean(), "difference": difference.mean(), "low": low, "high": high}
        known |= {"neurons": neurons.mean() / n_layers, "examples": len(values)}
        if is_control:
            against = self.of_mask[language] - values
            low, high = map(float, bootstrap.intervals(against))
            known |= {"vs_control": against.mean(), "vs_low": low, "vs_high": high}
            total = neurons.sum()
            known["overlap"] = self.shared[language].sum() / total if total else np.nan
        return known


def _row(target: str, ablated: str, language: str, metric: str, **known: Any) -> dict[str, Any]:
    """Make a row in which all numbers that are not given are missing."""
    numbers = ("value", "difference", "low", "high", "vs_control", "vs_low", "vs_high", "neurons", "overlap")
    labels = {"type": target, "ablated": ablated, "language": language, "metric": metric}
    return {**labels, **dict.fromkeys(numbers, np.nan), "examples": 0, "note": "", **known}


def _by_language(numbers: Numbers, prompts: ParallelPrompts) -> dict[str, NDArray[np.float64]]:
    """Split numbers by language: first each example's mean over languages, as "all", then each language.

    NaN is left out, and so is an example in which all numbers are NaN.
    """
    is_number = ~np.isnan(numbers)
    some = is_number.any(1)
    means = np.where(is_number, numbers, 0)[some].sum(1) / is_number[some].sum(1)
    of_each = (column[has] for column, has in zip(numbers.T, is_number.T, strict=True))
    return {"all": means, **dict(zip(prompts.languages, of_each, strict=True))}


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else np.nan
