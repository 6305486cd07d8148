r"""Ladder: what languages share by the form, the task, the entity, the answer, and by the fact itself.

    tl-neuronshare ladder                                                    # the built-in model, nine languages
    tl-neuronshare ladder --model DIRECTORY --task fact_probing --source mpararel_reviewed \
        --options relations=P30,P36 --paraphrase pattern=0                   # and in other words

The prompts must be of several relations, about subjects that several of them have in common. With --paraphrase the
facts are also asked in other words, to compare them in one language. Writes ladder.csv, run.json, and the figure
ladder as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse
from functools import partial

import pandas as pd

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.inputs import categorise, load_in_other_words
from tl_neuronshare.cli.runs import Run, title_of, with_interval
from tl_neuronshare.running.loop import each_of

HEADING = "Jaccard index of the neurons that two prompts activate, all layers, and what each part adds [95 %]"


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and the other words."""
    parser = arguments.parser(__name__, __doc__)
    parser.add_argument(
        "--paraphrase",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="options of the task that ask for the same facts in other words, such as pattern=1",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Categorise, compare facts that have more and more in common, print the table, write it and the figure."""
    with Run(args) as run:
        prompts, model = run.begin()
        wordings = [prompts]
        if args.paraphrase:
            wordings.append(load_in_other_words(args, prompts, args.paraphrase, model))
        facts = ns.facts_of(prompts)
        sharing, *paraphrase = each_of(
            partial(categorise, args, model, wording, **run.keeping(f"wording {number}"))
            for number, wording in enumerate(wordings)
        )
        run.timed("categorise")
        run.record["sharing"] = sharing.metadata
        run.say_how_it_was_read(sharing)
        table = ns.overlap_ladder(sharing, facts, paraphrase=paraphrase[0] if paraphrase else None, seed=args.seed)
        overall = table[table["layer"] == "all"]
        print(f"{sharing}\n\n{HEADING}\n{_shown(overall).to_string(index=False)}")
        run.table(table, "ladder")
        run.save(ns.plots.overlap_ladder(table, title=title_of(sharing)), "ladder")
        run.timed("table and figure")
        run.control("what of the sharing of one fact belongs to the fact?", _said(overall))


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what is printed: indices and differences with their intervals as text."""
    return pd.DataFrame(
        {
            "languages": rows["languages"],
            "two prompts of": rows["rung"],
            "index": rows.apply(with_interval, value="jaccard", digits=3, axis=1),
            "random neurons": rows["independent"].map("{:.3f}".format),
            "part": rows["part"],
            "minus": rows["above"],
            "difference": _differences(rows),
            "examples": rows["examples"],
        }
    )


def _differences(rows: pd.DataFrame) -> pd.Series:
    """Return what each part adds, with its interval, as text."""
    columns = ("difference", "difference_low", "difference_high")
    return rows.apply(lambda row: with_interval(row, *columns, digits=3), axis=1)


def _said(overall: pd.DataFrame) -> str:
    """Say in a line what the rungs are, for two languages."""
    rows = overall[overall["languages"] == "different"]
    indices = "; ".join(f"{row.rung} {row.jaccard:.3f}" for row in rows.itertuples() if row.pairs)
    parts = "; ".join(f"{part} {text}" for part, text in zip(rows["part"], _differences(rows), strict=True) if text)
    return f"Jaccard index in two languages of {indices}. What each part adds: {parts}"
