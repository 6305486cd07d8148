"""Whether a language loses more than others when its own neurons are ablated, from the answers of a study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tl_neuronshare.ablation.controls import Itself
from tl_neuronshare.maths.bootstrap import Bootstrap


class OwnLanguage:
    """Collect the answers of a study whose masks have the names of languages, and compare own with other languages.

    A language may lose much because its neurons are its own, or because they matter everywhere. So its loss stands
    beside the mean loss of the other languages, and beside both losses with a control.

    Args:
        languages: those that are measured.

    Examples:
        >>> prompts = ns.demo.prompts()[:2].select(["en", "de"])
        >>> masks = ns.methods.lape(ns.activation_rates(model, prompts.prompts), share=0.1)
        >>> own = OwnLanguage(prompts.languages)
        >>> _ = ns.ablation_study(model, prompts, masks, controls=["random"], seeds=[0], on_run=own.keep)
        >>> own.table(n_resamples=100)["ablated"].to_list()
        ['type', 'random']
    """

    def __init__(self, languages: Sequence[str]) -> None:
        self.languages = list(languages)
        self._unablated: pd.DataFrame | None = None
        self._changes: dict[str, dict[str, list[NDArray[np.float64]]]] = {}  # by what was ablated, and whose mask

    def keep(self, type: str, ablated: str, seed: int | None, table: pd.DataFrame) -> None:
        """Keep the answers of a run; `on_run` of `ablation_study`."""
        answers = table.pivot(index="example", columns="language", values="correct").astype(float)[self.languages]
        if type == "none":
            self._unablated = answers
        elif type in self.languages:
            assert self._unablated is not None  # it is the first run
            changes = (answers - self._unablated).to_numpy()
            self._changes.setdefault(ablated, {}).setdefault(type, []).append(changes)

    def table(self, *, n_resamples: int = 5000) -> pd.DataFrame:
        """Return a row for the masks themselves (`type`) and for each control.

        Columns: ablated; own (the change of accuracy in the language whose neurons are ablated, mean over languages);
        others (the mean change in all other languages); difference (own minus others), with its 95 % interval low and
        high; vs_control (the masks' difference minus the control's, only in rows of controls), with its interval vs_low
        and vs_high; examples. Below zero means a loss.

        Intervals are percentile bootstraps over examples; they need at least ten.
        """
        bootstrap, rows = Bootstrap(n_resamples), []
        of_masks: NDArray[np.float64] | None = None
        for ablated, by_language in self._changes.items():
            own, others = self._of_examples(by_language)
            difference = own - others
            row = {"ablated": ablated, "own": own.mean(), "others": others.mean(), "difference": difference.mean()}
            row["low"], row["high"] = map(float, bootstrap.intervals(difference))
            if ablated == Itself.name:  # is run before its controls
                of_masks = difference
            elif of_masks is not None:
                beyond = of_masks - difference
                row["vs_control"] = beyond.mean()
                row["vs_low"], row["vs_high"] = map(float, bootstrap.intervals(beyond))
            rows.append(row | {"examples": len(difference)})
        columns = ("ablated", "own", "others", "difference", "low", "high", "vs_control", "vs_low", "vs_high")
        return pd.DataFrame(rows, columns=[*columns, "examples"])

    def _of_examples(
        self, by_language: dict[str, list[NDArray[np.float64]]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each example's change in the language that is ablated and in the others: means over seeds and languages."""
        own, others = [], []
        for language, runs in by_language.items():
            changes, column = np.mean(runs, axis=0), self.languages.index(language)
            own.append(changes[:, column])
            others.append(np.delete(changes, column, axis=1).mean(1))
        return np.mean(own, axis=0), np.mean(others, axis=0)
