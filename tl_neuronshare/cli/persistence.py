"""Persistence: which neurons are of one type for every input, and how that falls with the number of inputs.

    tl-neuronshare persistence                                # the built-in model, nine languages
    tl-neuronshare persistence --model DIRECTORY --limit 1000

Writes persistence.csv, growth.csv, run.json, and the figure persistence as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse

import pandas as pd

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.runs import Run, title_of

ENOUGH = 100  # inputs: with few, many neurons are of one type for all of them
INPUTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments."""
    return arguments.parser(__name__, __doc__)


def main(args: argparse.Namespace) -> None:
    """Categorise, print the tables, write them and the figure."""
    with Run(args) as run:
        _, _, sharing = run.start()
        growth = _growth(sharing)
        table = growth[growth["inputs"] == len(sharing)].drop(columns="inputs").reset_index(drop=True)
        print(f"{sharing}\n\nOf one type for every input, beside the average over inputs (percent of the layer)")
        print(table.pivot(index="layer", columns="type", values=["every", "average"]).round(2).to_string())
        print("\nOf one type for the first so many inputs, percent (mean of layers)")
        print(growth.pivot_table(index="inputs", columns="type", values="every").round(2).to_string())
        run.table(table, "persistence")
        run.table(growth, "growth")
        run.save(ns.plots.persistence(table, growth, title=title_of(sharing)), "persistence")
        run.timed("tables and figure")
        _compare(run, sharing, table)


def _growth(sharing: ns.NeuronSharing) -> pd.DataFrame:
    """Return the persistence over the first inputs, for more and more of them."""
    numbers = [*(n for n in INPUTS if n < len(sharing)), len(sharing)]
    return pd.concat([sharing[:n].persistence().assign(inputs=n) for n in numbers], ignore_index=True)


def _compare(run: Run, sharing: ns.NeuronSharing, table: pd.DataFrame) -> None:
    """Compare the results with what the paper found."""
    means = table.groupby("type")[["every", "average"]].mean()
    kept = means["every"] / means["average"]
    run.found(
        "less than a tenth of the non-activated neurons stay so for all inputs (one secondary source only)",
        f"{100 * kept['non-activated']:.1f} % of those of an average input, for {len(sharing)} inputs",
        kept["non-activated"] < 0.1 if len(sharing) >= ENOUGH else None,
        criterion=f"for every input by on average, both as mean of layers; at least {ENOUGH} inputs",
    )
    two = ns.input_overlap({"inputs": sharing[:ENOUGH]}).query("layer == 'all'").iloc[0]
    run.found(
        "types change with the input",
        f"two inputs have {100 * two['jaccard']:.0f} % of their all-shared neurons in common (Jaccard index, mean over "
        f"pairs of the first {min(ENOUGH, len(sharing))}), as many random neurons {100 * two['independent']:.0f} %",
        None if pd.isna(two["jaccard"]) else two["jaccard"] < 0.5,
        criterion="under half",
    )
