r"""Patterns by layer: how many neurons of each layer are of each type, and how many each language activates.

    tl-neuronshare patterns                                    # the built-in model, nine languages
    tl-neuronshare patterns --model bigscience/bloom-560m      # any model that TransformerLens supports
    tl-neuronshare patterns --model DIRECTORY --languages en de --limit 50 --site gate
    tl-neuronshare patterns --task fact_probing --source mpararel_reviewed --options relations=P36 \
        --wordings pattern=1 pattern=2                         # the same facts in other words

Writes summary.csv, by_language.csv, run.json, and the figures patterns and chance as PNG and PDF, to the run folder;
with --wordings also wordings.csv: the same summary for each wording of the facts.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import pandas as pd
import torch

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.inputs import categorise, load_in_other_words
from tl_neuronshare.cli.runs import BESIDE_CHANCE, Run, excess_of, title_of
from tl_neuronshare.maths.activation import count_true
from tl_neuronshare.maths.bootstrap import FEWEST
from tl_neuronshare.models.layers import is_gated
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.plots.drawing import LABELS
from tl_neuronshare.results.bits import ranges
from tl_neuronshare.running.loop import each_of

BY_SIGN = (
    "WARNING: this MLP is gated, and its values have the sign of the up branch, so that about half of a layer is "
    "active in any text; types at this site are mostly about signs. Read them at --site gate"
)
_SOME = 32  # examples at a time
_HALF = (40, 60)  # percent of a layer


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and for other wordings."""
    parser = arguments.parser(__name__, __doc__)
    parser.add_argument(
        "--wordings",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="options of the task, each of which asks for the same facts in other words, such as pattern=1",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Categorise, print the tables, write them and the figures."""
    with Run(args) as run:
        prompts, model, sharing = run.start()
        others = _wordings(args, run, prompts, model)
        summary, by_language = sharing.summary(), sharing.by_language()
        _show(sharing, summary, by_language)
        run.table(summary, "summary")
        run.table(by_language, "by_language")
        title = title_of(sharing)
        run.save(ns.plots.patterns(summary, by_language, title=title), "patterns")
        run.save(ns.plots.chance(summary, title=title), "chance")
        run.timed("tables and figures")
        _compare(run, sharing, summary, by_language, by_sign=_by_sign(model, sharing, by_language))
        if others:
            _compare_wordings(run, {"as above": sharing, **others})


def _wordings(
    args: argparse.Namespace, run: Run, prompts: ns.ParallelPrompts, model: LensModel
) -> dict[str, ns.NeuronSharing]:
    """Categorise the same facts in other words, by the option that asks for them."""
    asked = {option: load_in_other_words(args, prompts, [option], model) for option in args.wordings}
    found = each_of(
        partial(categorise, args, model, wording, **run.keeping(f"wording {number}"))
        for number, wording in enumerate(asked.values())
    )
    return dict(zip(asked, found, strict=True))


def _compare_wordings(run: Run, results: dict[str, ns.NeuronSharing]) -> None:
    """Print and write the patterns by wording, and say how far they differ from wording to wording."""
    table = ns.side_by_side(results, name="wording")
    run.table(table, "wordings")
    means = table.groupby(["wording", "type"], sort=False)[["mean", "excess"]].mean().unstack("type")
    print(f"\nBy wording, mean of layers: percent, and excess in points\n{means.round(2).to_string()}")
    shared = means["mean"]["all-shared"]
    errors = [_standard_error(sharing) for sharing in results.values()]
    run.control(
        "how much does the wording matter?",
        f"all-shared, mean of layers: {shared.min():.2f} to {shared.max():.2f} % in {len(shared)} wordings (standard "
        f"deviation {shared.std():.2f} between wordings; the standard error of one, over its examples, is "
        f"{max(errors):.2f} at most); excess "
        f"{means['excess']['all-shared'].min():+.2f} to {means['excess']['all-shared'].max():+.2f} points",
    )


def _standard_error(sharing: ns.NeuronSharing) -> float:
    """How far the mean over layers and examples, in percent, would differ with other examples."""
    widths = torch.tensor(sharing.widths, dtype=torch.float64, device="cpu")
    parts = [count_true(sharing.mask("all-shared", examples=some)) for some in ranges(len(sharing), _SOME)]
    return float((100 * torch.cat(parts) / widths).mean(1).std() / len(sharing) ** 0.5)


def _by_sign(model: LensModel, sharing: ns.NeuronSharing, by_language: pd.DataFrame) -> bool:
    """Whether half of the neurons are active because a branch of a gated MLP is positive as often as negative."""
    is_up = sharing.metadata["site"] != "gate" and is_gated(model)
    return is_up and bool(by_language["mean"].between(*_HALF).mean() > 0.5)


def _show(sharing: ns.NeuronSharing, summary: pd.DataFrame, by_language: pd.DataFrame) -> None:
    print(f"{sharing}\n\nTypes of neurons, percent of each layer (mean over {len(sharing)} examples)")
    print(summary.pivot(index="layer", columns="type", values="mean")[list(LABELS)].round(2))
    print("\nActivated neurons, percent of each layer (mean over examples)")
    print(by_language.pivot(index="layer", columns="language", values="mean")[list(sharing.languages)].round(2))
    print(
        "\nAll-shared neurons, percent of each layer, beside chance; excess: mean - mismatched, with its 95 % interval"
    )
    columns = ["mean", *BESIDE_CHANCE, "excess_low", "excess_high"]
    print(summary.query("type == 'all-shared'").set_index("layer")[columns].round(2).to_string())


def _compare(
    run: Run, sharing: ns.NeuronSharing, summary: pd.DataFrame, by_language: pd.DataFrame, *, by_sign: bool
) -> None:
    """Compare the results with what the paper found."""
    all_shared, enough = summary[summary["type"] == "all-shared"], len(sharing) >= FEWEST
    run.found(
        "all-shared neurons are under 30 % of the neurons of a layer",
        f"{all_shared['mean'].min():.1f} to {all_shared['mean'].max():.1f} % of a layer",
        all_shared["mean"].max() < 30 if enough else None,
        criterion="the mean over examples is under 30 % in every layer",
    )
    share = by_language.groupby("language")["mean"].mean()
    overlap = sharing.overlap().to_numpy()
    between = overlap[np.triu_indices(len(overlap), k=1)]
    run.found(
        "about as many neurons are active in each language; which ones differs",
        f"{share.min():.1f} % ({share.idxmin()}) to {share.max():.1f} % ({share.idxmax()}) of the neurons; two "
        f"languages have {100 * between.mean():.0f} % in common (mean Jaccard index)" + by_sign * f". {BY_SIGN}",
        share.max() <= 1.25 * share.min() and between.mean() < 0.9 if enough and not by_sign else None,
        criterion="the most active language has at most a quarter more than the least; a mean Jaccard index under 0.9",
    )
    run.control(
        "is there more sharing than the number of active neurons, and the task alone, would give?",
        f"all-shared, mean of layers: {all_shared['mean'].mean():.2f} %; as many random neurons "
        f"{all_shared['independent'].mean():.2f} %; {excess_of(sharing, all_shared)}",
    )
