"""Patterns by task: the types of neurons for several tasks, and how far two inputs have the same all-shared neurons.

    python experiments/tasks.py     # the built-in model: each kind of its facts is a task
    python experiments/tasks.py --model DIRECTORY --task xnli --source xnli.test.tsv --also "mgsm --source mgsm"

Tasks are compared in the languages that all of them have. Writes tasks.csv, input_overlap.csv, run.json, and the
figures tasks and input_overlap as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse
import math

import pandas as pd

import arguments
import tl_neuronshare as ns

REASONING, RECALL = "xnli", "fact_probing"


def main() -> None:
    """Categorise the prompts of every task, print the tables, write them and the figures."""
    parser = arguments.parser(__doc__)
    arguments.add_also(parser)
    args = parser.parse_args()
    run, prompts, model = arguments.begin("tasks", args)
    tasks = _tasks(args, prompts, model.tokenizer)
    languages = [one for one in prompts.languages if all(one in task.languages for task in tasks.values())]
    if len(languages) < 2:
        names = ", ".join(tasks)
        raise ns.NeuronShareError(f"The tasks {names} have {len(languages)} language(s) in common; two are needed.")
    results = {name: arguments.categorise(args, model, task.select(languages)) for name, task in tasks.items()}
    run.timed("categorise")
    run.record["sharing"] = {name: sharing.metadata for name, sharing in results.items()}
    table = ns.side_by_side(results, name="task")
    overlap = ns.input_overlap(results)
    means = table.groupby(["task", "type"], sort=False)[["mean", "mismatched", "independent"]].mean()
    print(
        f"\nLanguages: {', '.join(languages)}\n\nTypes of neurons, percent (mean over inputs and layers), beside chance"
    )
    print(means.round(2).to_string())
    print("\nHow far two inputs have the same all-shared neurons (Jaccard index, all layers)")
    print(overlap[overlap["layer"] == "all"].drop(columns="layer").round(3).to_string(index=False))

    run.table(table, "tasks")
    run.table(overlap, "input_overlap")
    first = next(iter(results.values()))
    sizes = [len(sharing) for sharing in results.values()]
    title = arguments.title_of(first, prompts=f"{len(tasks)} tasks", examples=f"{min(sizes)} to {max(sizes)}")
    run.save(ns.plots.side_by_side(table, title=title), "tasks")
    run.save(ns.plots.input_overlap(overlap, title=title), "input_overlap")
    run.timed("tables and figures")
    _compare(run, means["mean"].unstack("type"), overlap[overlap["layer"] == "all"])
    run.finish()


def _tasks(args: argparse.Namespace, prompts: ns.ParallelPrompts, tokenizer: object) -> dict[str, ns.ParallelPrompts]:
    """The task that was asked for and those of --also; without these, its kinds of examples."""
    if not args.also:
        frame = prompts.to_frame()
        kinds = frame["example"].astype(str).str.split("/").str[0]
        if not 1 < kinds.nunique() < len(prompts):
            print(f"{prompts.name} is one task; name others to compare it with, with --also.")
            return {prompts.name: prompts}
        names = dict.fromkeys(kinds.tolist())
        return {kind: ns.ParallelPrompts.from_frame(frame[kinds == kind], name=kind) for kind in names}
    others = arguments.load_also(args)
    for found in others.values():
        print(arguments.report_of(found))
    if args.chat_template:
        others = {name: found.with_chat_template(tokenizer) for name, found in others.items()}
    return {prompts.name: prompts, **others}


def _compare(run: arguments.Run, means: pd.DataFrame, overlap: pd.DataFrame) -> None:
    """With what the paper found."""
    reasoning, recall = (means[means.index.str.startswith(task)] for task in (REASONING, RECALL))
    claim = "reasoning (XNLI) has more all-shared neurons than fact probing, which has more partial-shared ones"
    if len(reasoning) and len(recall):
        more = reasoning["all-shared"].min() > recall["all-shared"].max()
        fewer = reasoning["partial-shared"].max() < recall["partial-shared"].min()
        here = ", ".join(
            f"{task}: {row['all-shared']:.1f} % all-shared, {row['partial-shared']:.1f} % partial-shared"
            for task, row in pd.concat([reasoning, recall]).iterrows()
        )
        run.found(claim, here, more and fewer, criterion="both, in the mean over inputs and layers")
    else:
        run.found(claim, "needs the tasks xnli and fact_probing; compared were " + ", ".join(means.index), None)
    claim = "which neurons are shared changes with the task"
    if len(means) < 2:
        run.found(claim, "needs a second task (--also)", None)
        return
    low, high = means["all-shared"].idxmin(), means["all-shared"].idxmax()
    same, other = (overlap[(overlap["task"] == overlap["other"]) == is_same] for is_same in (True, False))
    (ours, ours_random), (theirs, theirs_random) = (
        rows[["jaccard", "independent"]].mean().tolist() for rows in (same, other)
    )
    above, theirs_above = ours - ours_random, theirs - theirs_random
    run.found(
        claim,
        f"all-shared from {means['all-shared'].min():.1f} % ({low}) to {means['all-shared'].max():.1f} % ({high}); "
        f"mean Jaccard index of two inputs' all-shared neurons {ours:.3f} in one task (at random {ours_random:.3f}), "
        f"{theirs:.3f} between tasks (at random {theirs_random:.3f})",
        None if math.isnan(above + theirs_above) else above > theirs_above,
        criterion="two inputs of one task have more in common, beyond chance, than inputs of two tasks",
    )


if __name__ == "__main__":
    arguments.run_main(main)
