"""Dose and response: what a growing share of a type does when it is switched off, by impact and at random.

    tl-neuronshare dose-response                                   # the built-in model, its all-shared neurons
    tl-neuronshare dose-response --type partial-shared --shares 0.25 0.5 1

Of each layer the same share of the type's neurons is zeroed, those with the largest impact first or in a random order,
beside controls of the same size. Writes dose_response.csv, run.json, and the figure dose_response as PNG and PDF, to
the run folder.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd

import tl_neuronshare as ns
from tl_neuronshare import checks
from tl_neuronshare.ablation.controls import CONTROLS
from tl_neuronshare.ablation.dose import SHARES
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.arguments import add_options, given
from tl_neuronshare.cli.runs import Run, count_of_seeds, title_of, with_interval
from tl_neuronshare.evaluation.evaluating import Scoring
from tl_neuronshare.plots.drawing import LABELS

HEADING = "Accuracy and log-probability (nats), mean over languages; difference from the unablated model [95 %]"


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and those of the doses."""
    parser = arguments.parser(__name__, __doc__)
    parser.add_argument("--type", choices=LABELS, default=LABELS[0], help=f"which to ablate (default: {LABELS[0]})")
    parser.add_argument(
        "--shares", nargs="+", type=float, default=list(SHARES), metavar="SHARE", help="above 0, up to 1"
    )
    parser.add_argument(
        "--controls",
        nargs="*",
        choices=CONTROLS,
        default=["random-active", "magnitude"],
        help="default: random-active magnitude",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of each control (default: 3)")
    add_options(parser, Scoring)
    parser.set_defaults(scoring=None)
    return parser


def main(args: argparse.Namespace) -> None:
    """Categorise, ablate growing shares, print the table, write it and the figure."""
    if args.seeds < 1:
        raise ns.NeuronShareError(f"--seeds {args.seeds}: at least one draw is needed.")
    for each in args.shares:
        checks.share("--shares", each)
    with Run(args) as run:
        prompts, model, sharing = run.start(dealt=False)
        args.scoring = args.scoring or arguments.scoring_of(args, has_choices=prompts.choices is not None)
        table = ns.dose_response(
            model,
            prompts,
            sharing,
            type=args.type,
            shares=args.shares,
            controls=args.controls,
            seeds=range(args.seed, args.seed + args.seeds),
            batch_size=args.batch_size,
            **given(args, Scoring),
            **run.keeping("doses"),
        )
        run.record["study"] = table.attrs
        run.timed("study")
        overall = table[table["language"] == "all"]
        shown, notes = _shown(overall)
        print(f"{sharing}\n\n{args.type}: {HEADING}\n{shown.to_string(index=False)}", *notes, sep="\n")
        run.table(table, "dose_response")
        how = f"{args.type} zeroed, scoring {args.scoring}, {count_of_seeds(args.seeds)}"
        run.save(ns.plots.dose_response(table, title=title_of(sharing, how=how)), "dose_response")
        run.timed("table and figure")
        run.control(f"does it matter which of the {args.type} neurons are switched off first?", _said(overall))


def _shown(overall: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return what is printed: a row for each share and what was ablated, and the numbered notes."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for (share, ablated), of_dose in overall.groupby(["share", "ablated"], sort=False):
        of_metric = of_dose.set_index("metric")
        row = {"share": share, "ablated": ablated, "neurons/layer": f"{of_metric['neurons'].iloc[0]:.0f}"}
        for metric in ("accuracy", "log_prob"):
            each = of_metric.loc[metric]
            row[metric] = "" if pd.isna(each["value"]) else f"{each['value']:.2f}"
            row[f"{metric} difference"] = "" if ablated == "none" else with_interval(each, "difference", sign=True)
        note = of_metric["note"].iloc[0]
        notes += [f"[{len(notes) + 1}] {note}"] if note else []
        rows.append(row | {"examples": of_metric["examples"].iloc[0], "note": f"[{len(notes)}]" if note else ""})
    return pd.DataFrame(rows), notes


def _said(overall: pd.DataFrame) -> str:
    """Say what the smallest share does."""
    rows = overall[(overall["metric"] == "log_prob") & (overall["ablated"] != "none")]
    rows = rows.dropna(subset=["difference"])
    if rows.empty:
        return "cannot be said, since no neuron was switched off"
    first = rows[rows["share"] == rows["share"].min()]
    each = ", ".join(f"{row.ablated} {row.difference:+.2f}" for row in first.itertuples())
    return f"{100 * first['share'].iloc[0]:.0f} % of them change the answer's log-probability (nats): {each}"
