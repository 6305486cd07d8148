"""Causal check: whether the scores of attribution rank neurons as switching them off does.

    tl-neuronshare causal-check                                         # the built-in model, nine languages
    tl-neuronshare causal-check --limit 50 --neurons 512                # more examples, every neuron
    tl-neuronshare causal-check --model bigscience/bloom-560m            # any model

Single neurons are zeroed, each alone, at the token that predicts the answer's first. What the answer loses by it is
compared with each score, as Spearman's correlation over the neurons of a layer, for each prompt.

Writes causal_check.csv, causal_check.png, causal_check.pdf and run.json to the run folder.
"""

from __future__ import annotations

import argparse

import pandas as pd

import tl_neuronshare as ns
from tl_neuronshare.attribution import causal
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.runs import Run, title_of, with_interval

HEADING = "Spearman's correlation of score and loss over the neurons of a layer, mean over prompts [95 %]"
MEANING = {
    "logit": "loss of the logit of the answer's first token",
    "log_prob": "loss of the log_prob of the answer's first token",
    "abs_logit": "size of the logit's loss, with the size of each score",
}


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and the number of neurons."""
    parser = arguments.parser(__name__, __doc__)
    parser.add_argument("--neurons", type=int, default=128, metavar="N", help="of each layer, at random (default: 128)")
    parser.set_defaults(limit=20)
    return parser


def main(args: argparse.Namespace) -> None:
    """Compare scores with switching neurons off; print the table, write it and the figure."""
    with Run(args) as run:
        prompts, model, sharing = run.start(dealt=False)
        table = causal.causal_check(
            model,
            prompts,
            sharing,
            n_neurons=args.neurons,
            seed=args.seed,
            batch_size=args.batch_size,
            **run.keeping("causal check"),
        )
        run.record["scores"] = table.attrs
        run.timed("causal check")
        print(f"{sharing}\n\n{HEADING}")
        for target, meaning in MEANING.items():
            print(f"\n{meaning}\n{_shown(table[(table['target'] == target) & (table['language'] == 'all')])}")
        run.table(table, "causal_check")
        how = f"{min(args.neurons, max(sharing.widths))} neurons a layer"
        run.save(ns.plots.causal_check(table, title=title_of(sharing, how=how)), "causal_check")
        run.timed("table and figure")


def _shown(rows: pd.DataFrame) -> str:
    """Return the correlations by layer and score, with intervals, as text."""
    texts = rows.assign(text=rows.apply(with_interval, axis=1)).pivot(index="layer", columns="score", values="text")
    return str(texts[rows["score"].unique()].to_string())
