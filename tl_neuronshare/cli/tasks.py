"""Patterns by task: the types of neurons for several tasks, and how far two inputs have the same all-shared neurons.

    tl-neuronshare tasks     # the built-in model: each kind of its facts is a task
    tl-neuronshare tasks --model DIRECTORY --task xnli --source xnli.test.tsv --also "mgsm --source mgsm"

Tasks are compared in the languages that all of them have. Writes tasks.csv, input_overlap.csv, run.json, and the
figures tasks and input_overlap as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse
import math
from functools import partial

import pandas as pd

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.inputs import categorise, load_also, report_of
from tl_neuronshare.cli.runs import BESIDE_CHANCE, Run, excess_of, title_of
from tl_neuronshare.running.loop import each_of

REASONING, RECALL = "xnli", "fact_probing"


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and other tasks."""
    parser = arguments.parser(__name__, __doc__)
    arguments.add_also(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Categorise the prompts of every task, print the tables, write them and the figures."""
    with Run(args) as run:
        prompts, model = run.begin()
        tasks = _in_common_languages(_tasks(args, prompts, model.tokenizer))
        shares = each_of(
            partial(categorise, args, model, task, **run.keeping(f"task {number}"))
            for number, task in enumerate(tasks.values())
        )
        results = dict(zip(tasks, shares, strict=True))
        run.timed("categorise")
        run.record["sharing"] = {name: sharing.metadata for name, sharing in results.items()}
        for name, sharing in results.items():
            run.say_how_it_was_read(sharing, name)
        table, overlap = ns.side_by_side(results, name="task"), ns.input_overlap(results)
        means = table.groupby(["task", "type"], sort=False)[["mean", *BESIDE_CHANCE]].mean()
        of_model = overlap[overlap["layer"] == "all"]
        first = next(iter(results.values()))
        _show(first.languages, means, of_model)
        run.table(table, "tasks")
        run.table(overlap, "input_overlap")
        sizes = [len(sharing) for sharing in results.values()]
        title = title_of(first, prompts=f"{len(tasks)} tasks", examples=f"{min(sizes)} to {max(sizes)}")
        run.save(ns.plots.side_by_side(table, title=title), "tasks")
        run.save(ns.plots.input_overlap(overlap, title=title), "input_overlap")
        run.timed("tables and figures")
        for name, sharing in results.items():
            rows = table[(table["task"] == name) & (table["type"] == "all-shared")]
            run.control(f"is more all-shared than the task alone would give? ({name})", excess_of(sharing, rows))
        _compare_types(run, means["mean"].unstack("type"))
        _compare_inputs(run, means["mean"].unstack("type")["all-shared"], of_model)


def _tasks(args: argparse.Namespace, prompts: ns.ParallelPrompts, tokenizer: object) -> dict[str, ns.ParallelPrompts]:
    """Return the task and those of --also; without these, return the task's kinds of examples as tasks."""
    if not args.also:
        frame = prompts.to_frame()
        kinds = frame["example"].astype(str).str.split("/").str[0]
        if not 1 < kinds.nunique() < len(prompts):
            print(f"{prompts.name} is one task; name others to compare it with, with --also.")
            return {prompts.name: prompts}
        names = dict.fromkeys(kinds.tolist())
        return {kind: ns.ParallelPrompts.from_frame(frame[kinds == kind], name=kind) for kind in names}
    others = load_also(args)
    for task in others.values():
        print(report_of(task))
    if args.chat_template:
        others = {name: task.with_chat_template(tokenizer) for name, task in others.items()}
    return {prompts.name: prompts, **others}


def _in_common_languages(tasks: dict[str, ns.ParallelPrompts]) -> dict[str, ns.ParallelPrompts]:
    first = next(iter(tasks.values()))
    languages = [name for name in first.languages if all(name in task.languages for task in tasks.values())]
    if len(languages) < 2:
        names = ", ".join(tasks)
        raise ns.NeuronShareError(f"The tasks {names} have {len(languages)} language(s) in common; two are needed.")
    return {name: task.select(languages) for name, task in tasks.items()}


def _show(languages: tuple[str, ...], means: pd.DataFrame, overlap: pd.DataFrame) -> None:
    print(f"\nLanguages: {', '.join(languages)}")
    print("\nTypes of neurons, percent (mean over inputs and layers), beside chance")
    print(means.round(2).to_string())
    print("\nHow far two inputs have the same all-shared neurons (Jaccard index, all layers)")
    print(overlap.drop(columns="layer").round(3).to_string(index=False))


def _compare_types(run: Run, means: pd.DataFrame) -> None:
    """Compare reasoning and recall with what the paper found."""
    reasoning, recall = (means[means.index.str.startswith(task)] for task in (REASONING, RECALL))
    claim = "reasoning (XNLI) has more all-shared neurons than fact probing, which has more partial-shared ones"
    if reasoning.empty or recall.empty:
        run.found(claim, "needs the tasks xnli and fact_probing; compared were " + ", ".join(means.index), None)
        return
    here = ", ".join(
        f"{task}: {row['all-shared']:.1f} % all-shared, {row['partial-shared']:.1f} % partial-shared"
        for task, row in pd.concat([reasoning, recall]).iterrows()
    )
    more = reasoning["all-shared"].min() > recall["all-shared"].max()
    fewer = reasoning["partial-shared"].max() < recall["partial-shared"].min()
    run.found(claim, here, more and fewer, criterion="both, in the mean over inputs and layers")


def _compare_inputs(run: Run, all_shared: pd.Series, overlap: pd.DataFrame) -> None:
    """Compare inputs of one task and of two tasks with what the paper found."""
    claim = "which neurons are shared changes with the task"
    if len(all_shared) < 2:
        run.found(claim, "needs a second task (--also)", None)
        return
    is_same = overlap["task"] == overlap["other"]
    (ours, ours_random), (theirs, theirs_random) = (
        overlap.loc[rows, ["jaccard", "independent"]].mean().tolist() for rows in (is_same, ~is_same)
    )
    above, theirs_above = ours - ours_random, theirs - theirs_random
    run.found(
        claim,
        f"all-shared from {all_shared.min():.1f} % ({all_shared.idxmin()}) to {all_shared.max():.1f} % "
        f"({all_shared.idxmax()}); mean Jaccard index of two inputs' all-shared neurons {ours:.3f} in one task (at "
        f"random {ours_random:.3f}), {theirs:.3f} between tasks (at random {theirs_random:.3f})",
        None if math.isnan(above + theirs_above) else above > theirs_above,
        criterion="two inputs of one task have more in common, beyond chance, than inputs of two tasks",
    )
