"""Thresholds: the types of neurons when activated means above 0, 0.1, ... 0.5, from one pass.

    python experiments/thresholds.py                                              # the built-in model, nine languages
    python experiments/thresholds.py --model DIRECTORY --thresholds 0 0.01 0.05   # for a model with smaller values

Writes thresholds.csv, run.json, and the figure thresholds as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import arguments
import tl_neuronshare as ns

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def main() -> None:
    """Categorise at every threshold, print the table, write it and the figure."""
    parser = arguments.parser(__doc__)
    parser.add_argument(
        "--thresholds", type=float, nargs="+", default=THRESHOLDS, metavar="T", help="default: the paper's, 0 to 0.5"
    )
    args = parser.parse_args()
    if args.threshold:
        raise ns.NeuronShareError(f"--threshold {args.threshold}: this takes several; say --thresholds.")
    run, prompts, model = arguments.begin("thresholds", args)
    results = arguments.categorise(args, model, prompts, threshold=args.thresholds)
    run.timed("categorise")
    run.record["sharing"] = {str(threshold): sharing.metadata for threshold, sharing in results.items()}
    table = ns.side_by_side(results, name="threshold")
    means = table.groupby(["threshold", "type"], sort=False)[["mean", "mismatched", "independent"]].mean()
    first = results[args.thresholds[0]]
    print(f"{first}\n\nTypes of neurons, percent (mean over inputs and layers), beside chance")
    print(means.unstack("type")[["mean", "mismatched"]].round(2).to_string())

    run.table(table, "thresholds")
    run.save(ns.plots.side_by_side(table, title=arguments.title_of(first)), "thresholds")
    run.timed("table and figure")
    of_type = means["mean"].unstack("type")
    run.found(
        "the patterns at thresholds from 0 to 0.5 (what they look like is only in the paper's figure)",
        f"all-shared {of_type['all-shared'].iloc[0]:.1f} % at {of_type.index[0]:g}, "
        f"{of_type['all-shared'].iloc[-1]:.1f} % at {of_type.index[-1]:g}; non-activated "
        f"{of_type['non-activated'].iloc[0]:.1f} and {of_type['non-activated'].iloc[-1]:.1f} %",
        None,
    )
    run.finish()


if __name__ == "__main__":
    arguments.run_main(main)
