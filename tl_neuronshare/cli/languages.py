"""Languages: how far each two activate the same neurons, beside chance, and whether more alike languages share more.

    tl-neuronshare languages                                # the built-in model, nine languages
    tl-neuronshare languages --model DIRECTORY --task fact_probing --source mpararel_reviewed

How alike languages are comes from URIEL through lang2vec (pip install "tl_neuronshare[typology]"). Writes overlap.csv,
relatedness.csv, run.json, and the figures overlap and relatedness as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse
from typing import Any, get_args

import pandas as pd

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.runs import Run, title_of
from tl_neuronshare.maths.testing import benjamini_hochberg
from tl_neuronshare.results.typology import Features

RELIABLE = 0.5
HELD = {"nothing": (), "script": ("script",), "family": ("family",), "script and family": ("script", "family")}
CLAIM = "how much two languages share and how alike they are do not fully agree"


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and those of the test."""
    parser = arguments.parser(__name__, __doc__)
    parser.add_argument("--permutations", type=int, default=9999, metavar="N", help="of languages (default: 9999)")
    return parser


def main(args: argparse.Namespace) -> None:
    """Categorise, compare languages, print the tables, write them and the figures."""
    with Run(args) as run:
        _, _, sharing = run.start()
        overlap = ns.language_overlap(sharing)
        levels = _levels(overlap[overlap["layer"] == "all"])
        print(f"{sharing}\n\nJaccard index of the neurons that two languages activate (all layers, mean over inputs)")
        print(sharing.overlap().round(3).to_string())
        print(f"\nMean over pairs: {levels}")
        run.table(overlap, "overlap")
        run.save(ns.plots.language_overlap(overlap, title=title_of(sharing)), "overlap")
        run.timed("overlap")
        run.control("do two languages share more neurons for one input than chance would give?", levels)
        try:
            similarity, table = _relatedness(sharing, args)
        except ns.NeuronShareError as error:
            print(f"\nNot compared with how alike languages are: {error}")
            run.found(CLAIM, f"not compared: {error}", None)
        else:
            print("\nSpearman's correlation of sharing and similarity over pairs of languages, tested over languages,")
            print("with what is held constant; adjusted: by Benjamini and Hochberg, for the number of tests")
            print(table.round(3).to_string(index=False))
            run.table(table, "relatedness")
            run.save(_figure(sharing, similarity, table), "relatedness")
            _compare(run, sharing, table)
        run.timed("relatedness")


def _levels(overall: pd.DataFrame) -> str:
    means = overall[["jaccard", "mismatched", "independent"]].mean()
    return (
        f"Jaccard index {means['jaccard']:.3f}; with mismatched examples {means['mismatched']:.3f}, of as many random "
        f"neurons {means['independent']:.3f}"
    )


def _relatedness(sharing: ns.NeuronSharing, args: argparse.Namespace) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Measure how alike languages are; test each measure, with a row for each thing that is held constant."""
    if len(sharing) < 2:
        raise ns.NeuronShareError("one input says nothing of how reliable sharing is.")
    similarity = {name: ns.typological_similarity(sharing.languages, features=name) for name in get_args(Features)}
    covariates = {"family": ns.same_family(sharing.languages), "script": ns.same_script(sharing.languages)}
    shared = sharing.overlap()

    def test(measure: pd.DataFrame, names: tuple[str, ...]) -> dict[str, float]:
        held = {name: covariates[name] for name in names}
        return ns.permutation_test(shared, measure, covariates=held, n_permutations=args.permutations, seed=args.seed)

    table = pd.DataFrame(
        {"similarity": name, "held": held, **test(measure, names)}
        for name, measure in similarity.items()
        for held, names in HELD.items()
    )
    table.insert(list(table.columns).index("p_value") + 1, "adjusted", benjamini_hochberg(table["p_value"].to_numpy()))
    return similarity, table


def _alone(table: pd.DataFrame) -> pd.DataFrame:
    """Return the tests in which nothing is held constant, by measure."""
    return table[table["held"] == "nothing"].set_index("similarity")


def _figure(sharing: ns.NeuronSharing, similarity: dict[str, pd.DataFrame], table: pd.DataFrame) -> Any:
    return ns.plots.relatedness(
        sharing.overlap(),
        {f"{name} (cosine)": measure for name, measure in similarity.items()},
        family=ns.same_family(sharing.languages),
        tests={f"{name} (cosine)": row.to_dict() for name, row in _alone(table).iterrows()},
        title=title_of(sharing),
    )


def _compare(run: Run, sharing: ns.NeuronSharing, table: pd.DataFrame) -> None:
    """Compare the results with what the paper found."""
    typological = _alone(table).drop(index="geography")
    # Two halves of the inputs: no measure of languages can go along with sharing better than sharing with itself.
    known = typological["spearman"].notna().all()
    ceiling = ns.permutation_test(sharing[::2].overlap(), sharing[1::2].overlap(), n_permutations=1)["spearman"]
    run.found(
        CLAIM,
        "Spearman's correlation with similarity of "
        + ", ".join(
            f"{name} {row['spearman']:.2f} (p = {row['p_value']:.3f}, adjusted {row['adjusted']:.3f})"
            for name, row in typological.iterrows()
        ),
        typological["spearman"].max() < 0.9 * ceiling if known and ceiling > RELIABLE else None,
        criterion=f"every correlation under 0.9 of {ceiling:.2f}, that of sharing in two halves of the inputs "
        f"(if that is over {RELIABLE})",
    )
