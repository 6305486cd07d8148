"""Across tokens: the neurons that no token of a prompt activates, and how often tokens activate each neuron.

    tl-neuronshare tokens                                    # the built-in model, on its prompts
    tl-neuronshare tokens --model DIRECTORY --texts FOLDER   # rates over free text, FOLDER/en.txt and so on

Writes never_activated.csv, rates.csv, run.json, and the figure never_activated as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.runs import Run, title_of


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and free text."""
    parser = arguments.parser(__name__, __doc__)
    parser.add_argument("--texts", type=Path, metavar="FOLDER", help="LANGUAGE.txt of free text, a text a line")
    parser.set_defaults(position="any")
    return parser


def main(args: argparse.Namespace) -> None:
    """Categorise at every token, count, print the tables, write them and the figure."""
    if args.position != "any":
        raise ns.NeuronShareError(f"--position {args.position}: this looks at every token, which is any.")
    texts = _texts(args.texts) if args.texts else None
    with Run(args) as run:
        prompts, model, sharing = run.start(dealt=False)
        table = sharing.never_activated()
        options = {"site": sharing.metadata["site"], "threshold": args.threshold, "batch_size": args.batch_size}
        rates = ns.activation_rates(model, texts or dict(prompts.prompts), **options, **run.keeping("rates"))
        of_languages = rates.by_language()
        run.timed("rates")
        _show(sharing, table, of_languages)
        run.table(table, "never_activated")
        run.table(of_languages, "rates")
        run.save(ns.plots.never_activated(table, title=title_of(sharing)), "never_activated")
        run.timed("tables and figure")
        _compare(run, table[table["language"] == "all"], len(sharing))


def _texts(folder: Path) -> dict[str, Path]:
    """Return each language's file."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise ns.NeuronShareError(f"--texts {folder}: there is no such folder, or no LANGUAGE.txt in it.")
    return {file.stem: file for file in files}


def _show(sharing: ns.NeuronSharing, table: pd.DataFrame, rates: pd.DataFrame) -> None:
    def of_languages(table: pd.DataFrame, values: str) -> str:
        languages = table["language"].unique()
        return str(table.pivot(index="layer", columns="language", values=values)[languages].round(2).to_string())

    print(f"{sharing}\n\nNeurons that no token of an input activates, percent of the layer (mean over inputs)")
    print(of_languages(table, "mean"))
    print("\nThat no token of any input activates")
    print(of_languages(table, "every"))
    print("\nTokens that activate a neuron, percent (mean over the layer's neurons)")
    print(of_languages(rates, "rate"))


def _compare(run: Run, overall: pd.DataFrame, n_inputs: int) -> None:
    """Compare the results with what the paper found."""
    run.found(
        "some neurons are activated by no token in any language (their share is only in the paper's figure)",
        f"{overall['mean'].min():.1f} to {overall['mean'].max():.1f} % of a layer for an average input, "
        f"{overall['every'].min():.1f} to {overall['every'].max():.1f} % for all {n_inputs} inputs",
        None,
    )
