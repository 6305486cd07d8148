"""Ablation: what breaks when each type of neuron is switched off, beside controls of the same size.

    tl-neuronshare ablation                                            # the built-in model, nine languages
    tl-neuronshare ablation --scoring choice --seeds 5 --mode mean     # other ways to measure and to ablate
    tl-neuronshare ablation --generate                                 # also answers before and after
    tl-neuronshare ablation --model bigscience/bloom-560m --limit 100  # any model that TransformerLens supports
    tl-neuronshare ablation --task mgsm --source mgsm --languages en de th  # any other task
    tl-neuronshare ablation --masks runs/methods/demo-demo/masks_lape.safetensors  # neurons of each language

Without --scoring, facts of the built-in model are decoded (exact), since it ends its answers; mgsm is scored by
numbers; other prompts by their choices where they have some.

Types differ much in size, so that the study runs a second time with equally many neurons of each type (as many as the
smallest has in each layer) and with the controls random-active and other-example; --equal-size does only this, with all
controls.

--masks ablates masks that were found in a different way, such as those of the command methods, in place of the types.
If they have the names of languages, the run also says whether a language loses more than others without its own
neurons.

Writes ablation.csv, ablation_equal_size.csv, run.json (with --generate also answers.csv, with --masks
own_language.csv), and the figures ablation and ablation_equal_size as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

import tl_neuronshare as ns
from tl_neuronshare.ablation.controls import CONTROLS
from tl_neuronshare.ablation.own_language import OwnLanguage
from tl_neuronshare.ablation.replacing import Replacement
from tl_neuronshare.ablation.targets import Choice
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.arguments import add_options, given
from tl_neuronshare.cli.inputs import load_in_other_words
from tl_neuronshare.cli.runs import Run, count_of_seeds, title_of, with_interval
from tl_neuronshare.evaluation.evaluating import Scoring
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.plots.ablating import Metric
from tl_neuronshare.plots.drawing import LABELS
from tl_neuronshare.results.types import as_type
from tl_neuronshare.running.loop import each_of

LEGEND = """difference: from the unablated model. type - control: how much more the type loses than its control.
overlap: the share of the control's neurons that are of the type."""
AGAINST = ("vs_control", "vs_low", "vs_high")  # the columns that compare a type with a control
OF_VERDICT = ("random-active", "other-example")  # the controls that are nearest to the all-shared neurons
TITLES = {
    "accuracy": "All facts",
    "known_accuracy": "Known facts: what the unablated model answers rightly in a language",
}
SHOWN = 3  # examples whose answers are printed


def main(args: argparse.Namespace) -> None:
    """Categorise, ablate, print the table, write it and the figure."""
    if args.generate and args.scoring == "choice":
        raise ns.NeuronShareError("--generate shows answers that are decoded greedily: --scoring exact or number.")
    if args.seeds < 1:
        raise ns.NeuronShareError(f"--seeds {args.seeds}: at least one draw is needed.")
    if args.known_by and args.known != "all":
        raise ns.NeuronShareError(f"--known-by {' '.join(args.known_by)}: give --known all too.")
    if args.masks and args.types != list(LABELS):
        raise ns.NeuronShareError(f"--masks {args.masks}: masks take the place of --types; give one of the two.")
    for kind in (Replacement, Choice):
        kind(**given(args, kind))
    metric: Metric = "known_accuracy" if args.known == "language" else "accuracy"
    masks = _masks(args.masks) if args.masks else None
    with Run(args) as run:
        prompts, model, sharing = run.start(dealt=False)
        has_choices = prompts.choices is not None and not args.generate
        args.scoring = args.scoring or arguments.scoring_of(args, has_choices=has_choices)
        if args.known == "all":
            prompts, sharing = _known(args, run, model, prompts, sharing)
        own = OwnLanguage(prompts.languages)
        if masks:
            names = [*prompts.languages, *(name for name in masks if name not in prompts.languages)]
            masks = {name: masks[name] for name in names if name in masks}  # a file has them by the alphabet
            how: dict[str, Any] = {"controls": args.controls, "equal_size": args.equal_size, "types": list(masks)}
            table, answers = _study(args, run, model, prompts, masks, active=sharing, own=own, **how)
            of_equal_size = table
        else:
            table, of_equal_size, answers = _studies(args, run, model, prompts, sharing)
        run.record["study"] = table.attrs
        run.timed("study")
        print(f"{sharing}\n\n{_how(args)}\n{LEGEND}")
        _show(run, table, "ablation", metric, title=title_of(sharing, how=_how(args)))
        if of_equal_size is not table:
            print("\nWith as many neurons of each type as the smallest has in a layer")
            title = title_of(sharing, how=f"equal sizes, {_how(args)}")
            _show(run, of_equal_size, "ablation_equal_size", metric, title=title)
        run.timed("tables and figures")
        if args.generate:
            run.table(answers, "answers", index=True)
            print(f"\nAnswers of the first {SHOWN} examples, decoded greedily")
            print(answers.loc[list(prompts.examples[:SHOWN])].reset_index().to_string(index=False))
        if masks:
            _compare_own(run, table, own)
        else:
            _compare(run, table, of_equal_size, metric)


def _show(run: Run, table: pd.DataFrame, name: str, metric: Metric, *, title: str) -> None:
    """Print a study's tables of all and of known facts; write its table and its figure."""
    for each, heading in TITLES.items():
        shown, notes = _printed(table, each)
        if each == "known_accuracy":
            shown = shown.drop(columns="log_prob")  # of all facts
        print(f"\n{heading}\n{shown.to_string(index=False)}", *notes, sep="\n")
    run.table(table, name)
    run.save(ns.plots.ablation(table, metric=metric, title=title), name)


def _known(
    args: argparse.Namespace, run: Run, model: LensModel, prompts: ns.ParallelPrompts, sharing: ns.NeuronSharing
) -> tuple[ns.ParallelPrompts, ns.NeuronSharing]:
    """Keep the examples that the model answers rightly in every language, maybe in other words."""
    asked = load_in_other_words(args, prompts, args.known_by, model) if args.known_by else prompts
    options = given(args, Scoring) | run.keeping("known", dealt=False)
    known = prompts.where(ns.evaluate(model, asked, batch_size=args.batch_size, **options))
    how = f" asked with {' '.join(args.known_by)}" if args.known_by else ""
    print(f"The model knows {len(known)} of {len(prompts)} examples in every language{how}; these are studied.\n")
    return known, sharing[[prompts.examples.index(label) for label in known.examples]]


def _masks(file: Path) -> dict[str, Tensor]:
    """Load the masks that are ablated in place of types; those without neurons are left out."""
    masks = ns.load_masks(file)
    if none := [name for name, mask in masks.items() if not mask.any()]:
        print(f"Left out, since these masks have no neurons: {', '.join(none)}.\n")
    if len(none) == len(masks):
        raise ns.NeuronShareError(f"--masks {file}: no mask has any neuron; give others.")
    return {name: mask for name, mask in masks.items() if name not in none}


def _studies(
    args: argparse.Namespace, run: Run, model: LensModel, prompts: ns.ParallelPrompts, sharing: ns.NeuronSharing
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Run the study, and again at equal sizes; return both tables, and the answers of the first."""
    study = partial(_study, args, run, model, prompts, sharing)
    works = [partial(study, controls=args.controls, equal_size=args.equal_size, types=args.types)]
    found = sharing.times_of_types().sum((1, 2))
    types = [type for type in args.types if found[as_type(type)]]  # no type can be as large as one that has no neuron
    if not args.equal_size and len(types) > 1:
        nearest = [name for name in OF_VERDICT if name in args.controls]
        works.append(partial(study, controls=nearest, equal_size=True, types=types))
    (table, answers), *others = each_of(works)
    return table, others[0][0] if others else table, answers


def _study(
    args: argparse.Namespace,
    run: Run,
    model: LensModel,
    prompts: ns.ParallelPrompts,
    sharing_or_masks: ns.NeuronSharing | dict[str, Tensor],
    *,
    controls: list[str],
    equal_size: bool,
    types: list[str],
    active: ns.NeuronSharing | None = None,
    own: OwnLanguage | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run a study; return its table, and each prompt's answers before and without each type."""
    answers = prompts.to_frame()[["example", "language", "prompt", "answer"]].set_index(["example", "language"])

    def keep_answers(type: str, ablated: str, seed: int | None, table: pd.DataFrame) -> None:
        if ablated == "none" or (ablated == "type" and seed == args.seed):
            name = "before" if type == "none" else f"without {type}"
            answers[name] = table.set_index(["example", "language"])["prediction"]
        if own is not None:
            own.keep(type, ablated, seed, table)

    options = {name: value for kind in (Replacement, Scoring, Choice) for name, value in given(args, kind).items()}
    table = ns.ablation_study(
        model,
        prompts,
        sharing_or_masks,
        types=types,
        controls=controls,
        active=active,
        batch_size=args.batch_size,
        **options | {"equal_size": equal_size},
        values=args.factor if args.mode == "scale" else None,
        seeds=range(args.seed, args.seed + args.seeds),
        position=args.ablate,
        on_run=keep_answers,
        **run.keeping("study of equal sizes" if equal_size and not args.equal_size else "study"),
    )
    return table, answers


def _compare(run: Run, table: pd.DataFrame, of_equal_size: pd.DataFrame, metric: str) -> None:
    """Compare the results with what the paper found, at equal sizes."""
    overall, equal = (each[(each["language"] == "all") & (each["metric"] == metric)] for each in (table, of_equal_size))
    types = equal[equal["ablated"] == "type"].set_index("type").dropna(subset=["difference"])
    drops, claim = types["difference"], "switching off the all-shared neurons hurts by far the most"
    if "all-shared" not in drops or len(drops) < 2:
        run.found(claim, "needs the all-shared neurons and another type", None)
        return
    others, all_shared = drops.drop("all-shared"), types.loc["all-shared"]
    # Of too few examples there is no interval; with one that reaches 0 nothing was lost that could be compared.
    is_sure = all_shared["high"] < 0 or all_shared["low"] > 0
    run.found(
        claim,
        f"with {all_shared['neurons']:.0f} neurons of each type a layer, accuracy changes by {_changes(drops)}; "
        f"without others instead of the all-shared: {_instead(equal)}; at own sizes: {_sizes(overall)}",
        drops["all-shared"] < 0 and drops["all-shared"] <= 1.5 * others.min() if is_sure else None,
        criterion="at equal size, accuracy falls at least half as far again as without any other type; its interval "
        "leaves out 0",
    )
    controls = overall[(overall["type"] == "all-shared") & ~overall["ablated"].isin(["none", "type"])]
    known = controls.dropna(subset=["vs_control"])
    if len(known):
        texts = [f"{row['ablated']} {with_interval(row, *AGAINST, sign=True)}" for row in known.to_dict("records")]
        run.control(
            "do the all-shared neurons hurt more than as many others?", f"accuracy minus that of: {'; '.join(texts)}"
        )


def _compare_own(run: Run, table: pd.DataFrame, own: OwnLanguage) -> None:
    """Say whether a language loses more than others without its own neurons, if the masks have names of languages."""
    question = "does a language lose more than others without its own neurons, and more than without as many others?"
    if len(own.languages) < 2 or not set(own.languages) & set(table["type"]):
        run.control(question, "needs masks with names of languages, of which at least two are measured")
        return
    of_languages = own.table()
    # For some examples a control may have too few neurons to draw from: these are not ablated, and would count as kept.
    judged = table[table["metric"] == "accuracy"]
    partly = judged.loc[judged["examples"] < judged["examples"].max(), "ablated"].unique()
    of_languages = of_languages[~of_languages["ablated"].isin(partly)]
    print("\nChange of accuracy in the language whose neurons are ablated, and in others")
    print(of_languages.round(3).to_string(index=False))
    run.table(of_languages, "own_language")
    rows = of_languages.to_dict("records")
    texts = (
        f"{'its own neurons' if row['ablated'] == 'type' else row['ablated']}: {row['own']:+.3f} there and "
        f"{row['others']:+.3f} in others, difference {with_interval(row, 'difference', digits=3, sign=True)}"
        for row in rows
    )
    run.control(question, "; ".join(texts))


def _changes(drops: pd.Series) -> str:
    return ", ".join(f"{drop:+.2f} without the {type}" for type, drop in drops.items())


def _instead(overall: pd.DataFrame) -> str:
    """Say what the controls do that are nearest to the all-shared neurons."""
    rows = overall[(overall["type"] == "all-shared") & overall["ablated"].isin(OF_VERDICT)].dropna(
        subset=["difference"]
    )
    each = (f"{row['difference']:+.2f} ({row['ablated']})" for row in rows.to_dict("records"))
    return ", ".join(each) or "not known"


def _sizes(overall: pd.DataFrame) -> str:
    """Say what each type's ablation does at its own size, and how many neurons that is."""
    rows = overall[overall["ablated"] == "type"].dropna(subset=["difference"])
    each = (
        f"{row['difference']:+.2f} ({row['type']}, {row['neurons']:.0f} a layer)" for row in rows.to_dict("records")
    )
    return ", ".join(each)


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and those of the study."""
    parser = arguments.parser(__name__, __doc__)
    parser.add_argument(
        "--types", nargs="+", choices=LABELS, default=list(LABELS), help="which to ablate (default: all)"
    )
    parser.add_argument(
        "--masks", type=Path, metavar="FILE", help="masks of save_masks, which are ablated in place of the types"
    )
    parser.add_argument("--controls", nargs="*", choices=CONTROLS, default=list(CONTROLS), help="default: all")
    add_options(parser, Replacement)
    parser.add_argument("--factor", type=float, default=2.0, help="of --mode scale (default: 2)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of each control (default: 3)")
    add_options(parser, Scoring)
    # Which is the default depends on the prompts: see arguments.scoring_of.
    parser.set_defaults(scoring=None)
    parser.add_argument(
        "--ablate",
        type=arguments.ablated_position,
        default="all",
        help="at which tokens: all, last, or a negative index from the prompt's end (default: all)",
    )
    add_options(parser, Choice)
    parser.add_argument(
        "--known",
        choices=("all", "language", "none"),
        default="none",
        help="which facts are judged and drawn: those known in all languages, those known in each, or no matter "
        "(default)",
    )
    parser.add_argument(
        "--known-by",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="options of the task that ask for the same facts in other words, such as pattern=1, by which --known all "
        "decides what is known (default: the words that are studied, so that nothing can be gained)",
    )
    parser.add_argument("--generate", action="store_true", help="show answers before and after, side by side")
    return parser


def _how(args: argparse.Namespace) -> str:
    tokens = "all tokens" if args.ablate == "all" else f"the prompt's token {args.ablate}"
    return f"{args.mode} at {tokens}, scoring {args.scoring}, {count_of_seeds(args.seeds)}"


def _printed(table: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the means over languages, with a row for each type and control, and the numbered notes."""
    shown: list[dict[str, Any]] = []
    notes: list[str] = []
    for (type, ablated), rows in table[table["language"] == "all"].groupby(["type", "ablated"], sort=False):
        accuracy, log_prob = (rows[rows["metric"] == metric].iloc[0] for metric in (metric, "log_prob"))
        if accuracy["note"]:
            notes.append(f"[{len(notes) + 1}] {accuracy['note']}")
        shown.append(
            {
                "type": type,
                "ablated": ablated,
                "accuracy": _number(accuracy["value"]),
                "difference [95 %]": "" if type == "none" else with_interval(accuracy, "difference", sign=True),
                "type - control [95 %]": with_interval(accuracy, *AGAINST, sign=True),
                "log_prob": _number(log_prob["value"]),
                "neurons/layer": _number(accuracy["neurons"], digits=0),
                "examples": accuracy["examples"],
                "overlap": _number(accuracy["overlap"]),
                "note": f"[{len(notes)}]" if accuracy["note"] else "",
            }
        )
    return pd.DataFrame(shown), notes


def _number(value: float, *, digits: int = 2) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"
