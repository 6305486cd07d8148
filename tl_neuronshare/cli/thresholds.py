"""Thresholds: the types of neurons when activated means above 0, 0.1, ... 0.5, from one pass.

    tl-neuronshare thresholds                                              # the built-in model, nine languages
    tl-neuronshare thresholds --model DIRECTORY --thresholds 0 0.01 0.05   # for a model with smaller values

Writes thresholds.csv, run.json, and the figure thresholds as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse

import pandas as pd

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.inputs import categorise
from tl_neuronshare.cli.runs import BESIDE_CHANCE, Run, title_of
from tl_neuronshare.running.recording import threshold_argument

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and the thresholds."""
    parser = arguments.parser(__name__, __doc__)
    parser.add_argument(
        "--thresholds",
        type=threshold_argument,
        nargs="+",
        default=THRESHOLDS,
        metavar="T",
        help="numbers, or quantiles of a layer's values such as 90%% (default: the paper's, 0 to 0.5)",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Categorise at every threshold, print the table, write it and the figure."""
    if args.threshold:
        raise ns.NeuronShareError(f"--threshold {args.threshold}: this takes several; say --thresholds.")
    with Run(args) as run:
        prompts, model = run.begin()
        results = categorise(args, model, prompts, threshold=args.thresholds, **run.keeping("categorise"))
        run.timed("categorise")
        run.record["sharing"] = {str(threshold): sharing.metadata for threshold, sharing in results.items()}
        table = ns.side_by_side(results, name="threshold")
        means = table.groupby(["threshold", "type"], sort=False)[["mean", *BESIDE_CHANCE]].mean()
        first = results[args.thresholds[0]]
        run.say_how_it_was_read(first)
        print(f"{first}\n\nTypes of neurons, percent (mean over inputs and layers), beside chance")
        print(means.unstack("type")[["mean", "mismatched", "excess"]].round(2).to_string())
        run.table(table, "thresholds")
        run.save(ns.plots.side_by_side(table, title=title_of(first)), "thresholds")
        run.timed("table and figure")
        _compare(run, means["mean"].unstack("type"))


def _compare(run: Run, means: pd.DataFrame) -> None:
    """Compare the results with what the paper found."""
    shared, silent = means["all-shared"], means["non-activated"]
    run.found(
        "the patterns at thresholds from 0 to 0.5 (what they look like is only in the paper's figure)",
        f"all-shared {shared.iloc[0]:.1f} % at {means.index[0]}, {shared.iloc[-1]:.1f} % at {means.index[-1]}; "
        f"non-activated {silent.iloc[0]:.1f} and {silent.iloc[-1]:.1f} %",
        None,
    )
