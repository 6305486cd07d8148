"""Attribution: what each type of neuron writes, and how much it pushes the right answer, by language and layer.

    tl-neuronshare attribution                                          # the built-in model, nine languages
    tl-neuronshare attribution --norm full --answer all --top-k 0.1     # other readings of the scores
    tl-neuronshare attribution --model bigscience/bloom-560m            # any model that TransformerLens supports

Writes attribution.csv, top_neurons.csv, run.json, and the figures top_shares, impact and correctness as PNG and PDF, to
the run folder.
"""

from __future__ import annotations

import argparse

import pandas as pd

import tl_neuronshare as ns
from tl_neuronshare.attribution.impacts import ImpactOptions
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.arguments import add_options, given
from tl_neuronshare.cli.runs import Run, title_of, with_interval
from tl_neuronshare.plots.drawing import LABELS
from tl_neuronshare.running.loop import each_of

SHOWN = 10  # of the top neurons
DIFFERENCE = (
    "Right minus wrong: the correctness impact for the answer minus that for the next fact's; the sum of each type's "
    "neurons in logits, and in percent"
)
READINGS = [f"{kind}_{sign}_share" for sign in ("positive", "absolute") for kind in ("mean", "pooled")]


def main(args: argparse.Namespace) -> None:
    """Categorise, attribute, print the tables, write them and the figures."""
    ImpactOptions(**given(args, ImpactOptions))
    if args.neurons < 1:
        raise ns.NeuronShareError(f"n={args.neurons}; give a number of neurons.")
    with Run(args) as run:
        prompts, model, sharing = run.start(dealt=False)
        options = given(args, ImpactOptions) | {"batch_size": args.batch_size}
        table, neurons = each_of(
            [
                lambda: ns.attribute(model, prompts, sharing, **options, **run.keeping("attribute")),
                lambda: ns.top_neurons(model, prompts, sharing, n=None, **options, **run.keeping("top")),
            ]
        )
        varies = neurons["always"] == ""
        of_one_type = neurons[~varies].head(args.neurons)
        neurons = neurons[varies].head(args.neurons)
        run.record["attribution"] = table.attrs
        run.timed("scores")
        top = f"{args.top_k} neurons" if isinstance(args.top_k, int) else f"{args.top_k:.1%}"
        correctness = _of_all(table, "correctness", *READINGS).query("layer == 'all'")
        difference = _of_all(table, "difference", "sum", *READINGS).query("layer == 'all'")
        print(f"{sharing}\n\nTop {top} of each layer by generation impact, percent that are of each type (mean of all)")
        print(_shown(_of_all(table, "generation", "top_share").set_index(["layer", "type"], drop=False)).to_string())
        print(f"\n{DIFFERENCE}")
        print(_shown(difference.set_index(["statistic", "type"], drop=False)).to_string())
        print("\nThe whole model's correctness impact, percent by type; for a wrong answer; and as many random neurons")
        print(_beside_controls(correctness).to_string())
        print(f"\nNeurons that are among the top for the most prompts; examples (of {len(sharing)}) by type")
        _print_neurons(neurons.drop(columns="always"))
        print("\nThe same of neurons that are of one type for every example: always on, if all-shared")
        _print_neurons(of_one_type)
        run.table(table, "attribution")
        top_neurons = pd.concat([neurons, of_one_type])
        run.table(top_neurons, "top_neurons")
        if args.page:
            beside = {"sharing": sharing, "prompts": prompts, "batch_size": args.batch_size}
            explored = ns.describe_neurons(model, top_neurons, token_by_token=True, **beside)
            run.show(explored, "neurons, one by one")
        title = title_of(sharing, how=f"answer: {args.answer}, norm: {args.norm}, top K: {top}")
        for name in ("top_shares", "impact", "correctness"):
            run.save(getattr(ns.plots, name)(table, title=title), name)
        run.timed("tables and figures")
        _compare(run, correctness, difference)


def _print_neurons(neurons: pd.DataFrame) -> None:
    print(neurons.head(SHOWN).round({"prompts": 1, "score": 3}).to_string(index=False) if len(neurons) else "none")


def _beside_controls(whole: pd.DataFrame) -> pd.DataFrame:
    """Return every reading of the whole model's share, beside that for a wrong answer and what chance gives."""
    shares = _shown(whole.set_index(["statistic", "type"], drop=False))
    others = whole.pivot(index="statistic", columns="type", values="other_answer").map("{:.1f}".format)
    for reading in READINGS:
        shares.loc[f"{reading}, wrong answer"] = others.loc[reading]
    shares.loc["chance"] = whole.set_index("type")["chance"].groupby(level=0).first().map("{:.1f}".format)
    return shares


def _compare(run: Run, whole: pd.DataFrame, difference: pd.DataFrame) -> None:
    """Compare the results with what the paper found."""
    means = difference[difference["statistic"] == "mean_absolute_share"].set_index("type")
    sums = difference[difference["statistic"] == "sum"].set_index("type")
    total = sums["value"].sum(skipna=False)
    all_shared = whole[whole["type"] == "all-shared"].set_index("statistic")
    values = all_shared["value"]
    is_unsure = all_shared["low"].isna().any() or pd.isna(total)
    run.found(
        "all-shared neurons make most of the contribution to the right answer (91.6 % for German XNLI; over which "
        "layers, and how averaged, is open)",
        f"{values.min():.1f} to {values.max():.1f} % by the four readings of the figure; as many random neurons "
        f"{all_shared['chance'].iloc[0]:.1f} %; for a wrong answer {all_shared['other_answer'].min():.1f} to "
        f"{all_shared['other_answer'].max():.1f} %; of what is pushed to the right answer more than to a wrong one, "
        f"{sums['value'].iloc[0]:.2f} of {total:.2f} logits",
        None if is_unsure else values.min() > 50 and 2 * sums["value"].iloc[0] > total > 0,
        criterion="over half of the impact by every reading, and over half of right minus wrong; at least ten examples",
    )
    run.control(
        "do they push the right answer, or any answer?",
        f"right minus wrong, in logits: {', '.join(f'{type} {text}' for type, text in _texts(sums).items())}. By "
        f"absolute values, all-shared neurons have {means['value'].iloc[0]:.1f} % of it, beside "
        f"{values['mean_absolute_share']:.1f} % of the impact on the right answer",
    )


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and those of attribution."""
    parser = arguments.parser(__name__, __doc__)
    add_options(parser, ImpactOptions)
    parser.add_argument(
        "--neurons", type=int, default=100, metavar="N", help="top neurons to write, of each kind (default: 100)"
    )
    return parser


def _of_all(table: pd.DataFrame, score: str, *statistics: str) -> pd.DataFrame:
    """Select the mean over languages of some statistics, in their order."""
    rows = table[(table["language"] == "all") & (table["score"] == score)]
    return pd.concat([rows[rows["statistic"] == statistic] for statistic in statistics])


def _texts(rows: pd.DataFrame) -> pd.Series:
    """Return values with their intervals as text: logits with two digits, and percent with one."""
    return rows.apply(lambda row: with_interval(row, digits=2 if row["statistic"] == "sum" else 1), axis=1)


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
    """Return values with their intervals as text, with a column for each type."""
    order = rows.index.get_level_values(0).unique()
    return _texts(rows).unstack("type").loc[order, list(LABELS)]
