"""Languages: how far each two activate the same neurons, beside chance, and whether more alike languages share more.

    python experiments/languages.py                                # the built-in model, nine languages
    python experiments/languages.py --model DIRECTORY --task fact_probing --source mpararel_reviewed

How alike languages are comes from URIEL through lang2vec (pip install "tl_neuronshare[typology]"). Writes overlap.csv,
relatedness.csv, run.json, and the figures overlap and relatedness as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse
from typing import get_args

import pandas as pd

import arguments
import tl_neuronshare as ns
from tl_neuronshare.results.typology import Features

RELIABLE = 0.5
HELD = {"nothing": (), "script": ("script",), "family": ("family",), "script and family": ("script", "family")}


def main() -> None:
    """Categorise, compare languages, print the tables, write them and the figures."""
    parser = arguments.parser(__doc__)
    parser.add_argument("--permutations", type=int, default=9999, metavar="N", help="of languages (default: 9999)")
    args = parser.parse_args()
    run, _, _, sharing = arguments.start("languages", args)
    overlap = ns.language_overlap(sharing)
    square = sharing.overlap()
    overall = overlap[overlap["layer"] == "all"]
    print(f"{sharing}\n\nJaccard index of the neurons that two languages activate (all layers, mean over inputs)")
    print(square.round(3).to_string())
    print(f"\nMean over pairs: {_levels(overall)}")
    run.table(overlap, "overlap")
    title = arguments.title_of(sharing)
    run.save(ns.plots.language_overlap(overlap, title=title), "overlap")
    run.timed("overlap")
    run.control("do two languages share more neurons for one input than chance would give?", _levels(overall))
    claim = "how much two languages share and how alike they are do not fully agree"
    try:
        if len(sharing) < 2:
            raise ns.NeuronShareError("one input says nothing of how reliable sharing is.")
        similarity = {name: ns.typological_similarity(sharing.languages, features=name) for name in get_args(Features)}
        family, script = ns.same_family(sharing.languages), ns.same_script(sharing.languages)
        table = _relatedness(square, similarity, {"family": family, "script": script}, args)
    except ns.NeuronShareError as error:
        print(f"\nNot compared with how alike languages are: {error}")
        run.found(claim, f"not compared: {error}", None)
    else:
        print("\nSpearman's correlation of sharing and similarity over pairs of languages, tested over languages,")
        print("with what is held constant (p is not corrected for the number of tests)")
        print(table.round(3).to_string(index=False))
        run.table(table, "relatedness")
        alone = table[table["held"] == "nothing"].set_index("similarity")
        figure = ns.plots.relatedness(
            square,
            {f"{name} (cosine)": one for name, one in similarity.items()},
            family=family,
            tests={f"{name} (cosine)": alone.loc[name].to_dict() for name in similarity},
            title=title,
        )
        run.save(figure, "relatedness")
        typological = alone.drop(index="geography")
        # Two halves of the inputs: no measure of languages can go along with sharing better than sharing with itself.
        known = typological["spearman"].notna().all()
        ceiling = ns.permutation_test(sharing[::2].overlap(), sharing[1::2].overlap(), n_permutations=1)["spearman"]
        run.found(
            claim,
            "Spearman's correlation with similarity of "
            + ", ".join(
                f"{name} {row['spearman']:.2f} (p = {row['p_value']:.3f})" for name, row in typological.iterrows()
            ),
            typological["spearman"].max() < 0.9 * ceiling if known and ceiling > RELIABLE else None,
            criterion=f"every correlation under 0.9 of {ceiling:.2f}, that of sharing in two halves of the inputs "
            f"(if that is over {RELIABLE})",
        )
    run.timed("relatedness")
    run.finish()


def _levels(overall: pd.DataFrame) -> str:
    means = overall[["jaccard", "mismatched", "independent"]].mean()
    return (
        f"Jaccard index {means['jaccard']:.3f}; with mismatched examples {means['mismatched']:.3f}, of as many random "
        f"neurons {means['independent']:.3f}"
    )


def _relatedness(
    sharing: pd.DataFrame,
    similarity: dict[str, pd.DataFrame],
    covariates: dict[str, pd.DataFrame],
    args: argparse.Namespace,
) -> pd.DataFrame:
    """A row for each measure of similarity and what is held constant."""
    return pd.DataFrame(
        {
            "similarity": name,
            "held": held,
            **ns.permutation_test(
                sharing,
                table,
                covariates={one: covariates[one] for one in names},
                n_permutations=args.permutations,
                seed=args.seed,
            ),
        }
        for name, table in similarity.items()
        for held, names in HELD.items()
    )


if __name__ == "__main__":
    arguments.run_main(main)
