"""Methods: the neurons that published methods find for each language, compared, and what breaks without them.

    tl-neuronshare methods                                            # the built-in model, on its own facts
    tl-neuronshare methods --model DIRECTORY --texts FOLDER           # free text: FOLDER/en.txt ..., a text a line
    tl-neuronshare methods --cross lape parallel --measure 50          # whose neurons are ablated, on how many texts
    tl-neuronshare methods --model DIRECTORY --texts FOLDER --answers 20  # in what language the model goes on

Every second text of a language is for finding neurons; the others, at most --measure of them, are for measuring what
is lost without these. Of a text the first 1,000 characters are read, and texts of fewer than four tokens are left out.
The types are those of the prompts of --task. lape and specific-related keep --share of all neurons for all languages
together; average-precision, transfer-from and transfer-to for each language; for bipartition it is the share of
overlaps below the bar; parallel has a share of its own. transfer-from and transfer-to need a model that adds what its
MLPs write unchanged; transfer-to also needs texts that are parallel, and takes English for the shared space, or without
English the first language. What a model does not allow is left out, and said.

With --answers the model goes on from the first half of texts, as it is, without the neurons of the text's language,
without as many random ones of the same layers, and steered: partial-shared neurons scaled up and specific ones down in
the last quarter of the layers. A detector says in what language.

Writes sizes.csv, agreement.csv, types.csv, cross_ablation.csv, answer_languages.csv, masks_METHOD.safetensors for each
method, run.json, and the figures methods and cross_ablation_METHOD as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import tl_neuronshare as ns
from tl_neuronshare import checks, models
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.runs import Run, count_of_seeds, title_of
from tl_neuronshare.errors import UnfinishedError
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.running.loop import each_of

Masks = dict[str, Tensor]
Texts = dict[str, list[str]]
METHODS = (
    *("lape", "specific-related", "average-precision", "bipartition", "parallel", "transfer-from", "transfer-to"),
)
LONGEST = 1000  # characters of a text that are read
SHORTEST = 4  # characters and tokens of a text, so that its half has some


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and those of the methods."""
    parser = arguments.parser(__name__, __doc__)
    parser.add_argument("--texts", type=Path, metavar="FOLDER", help="LANGUAGE.txt of free text, a text a line")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which (default: all)")
    parser.add_argument("--cross", nargs="*", choices=METHODS, help="whose neurons (default: the first of the methods)")
    parser.add_argument("--share", type=float, default=0.01, help="of neurons that is kept, see above (default: 0.01)")
    parser.add_argument("--measure", type=int, default=100, metavar="N", help="texts of a language (default: 100)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="draws of each control (default: 1)")
    parser.add_argument("--answers", type=int, default=0, metavar="N", help="texts that are continued (default: none)")
    return parser


def main(args: argparse.Namespace) -> None:
    """Find each method's neurons, compare them, ablate some of them, print and write the tables and figures."""
    with Run(args) as run:
        prompts, model, sharing = run.start(dealt=False)
        args.share, crossing = checks.share("--share", args.share), _crossing(args)
        finding, measuring = _texts(args, model, prompts)
        masks = _found(args, run, model, finding, sharing)
        run.timed("methods")
        tables = {
            "sizes": ns.methods.sizes(masks, is_neuron=sharing.is_neuron),
            "agreement": ns.methods.agreement(masks, is_neuron=sharing.is_neuron),
            "types": ns.methods.types(masks, sharing),
        }
        _show(sharing, tables)
        for name, table in tables.items():
            run.table(table, name)
        for method, of_method in masks.items():
            run.tensors(partial(ns.save_masks, of_method), f"masks_{method}")
        run.save(ns.plots.methods(*tables.values(), title=title_of(sharing)), "methods")
        run.timed("tables and figure")
        chosen = {method: masks[method] for method in crossing if method in masks}
        tables_of_methods = each_of(
            partial(
                ns.cross_ablation,
                model,
                measuring,
                of_method,
                seeds=range(args.seed, args.seed + args.seeds),
                batch_size=args.batch_size,
                **run.keeping(f"cross ablation of {method}"),
            )
            for method, of_method in chosen.items()
        )
        crossed = []
        for method, table in zip(chosen, tables_of_methods, strict=True):
            _say(run, table, method, _how(args, measuring))
            title = f"{method}: {title_of(sharing, how=_how(args, measuring))}"
            run.save(ns.plots.cross_ablation(table, title=title), f"cross_ablation_{method}")
            crossed.append(table.assign(method=method))
        if crossed:
            run.table(pd.concat(crossed, ignore_index=True), "cross_ablation")
        run.timed("cross-ablation")
        if args.answers:
            answers = _answers(args, model, prompts, measuring, chosen, sharing=sharing)
            run.table(answers, "answer_languages")
            _say_answers(run, answers)
            run.timed("answers")


def _crossing(args: argparse.Namespace) -> list[str]:
    """The methods whose neurons are ablated."""
    if args.cross is None:
        return list(args.methods[:1])
    if missing := [method for method in args.cross if method not in args.methods]:
        raise ns.NeuronShareError(f"--cross {missing[0]}: it is not one of --methods; name it there too.")
    return list(args.cross)


def _texts(args: argparse.Namespace, model: LensModel, prompts: ns.ParallelPrompts) -> tuple[Texts, Texts]:
    """The texts of each language for finding neurons and those for measuring what is lost."""
    checks.count("--measure", args.measure)
    if checks.count("--answers", args.answers, least=0) and args.texts is None:
        raise ns.NeuronShareError(f"--answers {args.answers} needs free text; name its folder with --texts.")
    texts: Texts = {}
    for language in prompts.languages:
        if args.texts is None:
            answers = prompts.answers[language] if prompts.answers is not None else [""] * len(prompts)
            texts[language] = list(map(add, prompts.prompts[language], answers))
            continue
        file = args.texts / f"{language}.txt"
        if not file.is_file():
            raise ns.NeuronShareError(
                f"--texts {args.texts}: there is no {file.name}; add it, or leave the language out with --languages."
            )
        lines = [line[:LONGEST] for line in file.read_text("utf-8-sig").split("\n") if line.strip()]
        n_tokens = map(len, models.tokenise(model, lines)) if lines else ()
        texts[language] = [line for line, n in zip(lines, n_tokens, strict=True) if min(n, len(line)) >= SHORTEST]
        if n_short := len(lines) - len(texts[language]):
            print(f"{file.name}: {n_short} of {len(lines)} texts are left out, being shorter than {SHORTEST} tokens.")
    for language, of_language in texts.items():
        if len(of_language) < 2:
            raise ns.NeuronShareError(
                f"Language {language!r} has {len(of_language)} texts that are long enough; give at least two, one for "
                "finding neurons and one for measuring."
            )
    finding = {language: of_language[::2] for language, of_language in texts.items()}
    return finding, {language: of_language[1::2][: args.measure] for language, of_language in texts.items()}


def _found(
    args: argparse.Namespace, run: Run, model: LensModel, texts: Texts, sharing: ns.NeuronSharing
) -> dict[str, Masks]:
    """The masks of each method; one that the model or the texts do not allow is left out, and said."""
    how: dict[str, Any] = {"batch_size": args.batch_size}
    n = max(1, round(args.share * int(sharing.is_neuron.sum())))
    measured = {"site": sharing.metadata["site"], **how}
    shared = "en" if "en" in sharing.languages else sharing.languages[0]

    def rates() -> ns.NeuronRates:
        options = {**measured, "threshold": args.threshold}
        return ns.activation_rates(model, texts, **options, **run.keeping("rates", dealt=False))

    works: Mapping[str, Callable[[], Masks]] = {
        "lape": lambda: ns.methods.lape(rates(), share=args.share),
        "specific-related": lambda: ns.methods.specific_related_general(rates(), share=args.share),
        "average-precision": lambda: ns.methods.average_precision(
            ns.reference_values(model, texts, each=True, position="all", **how), widths=sharing.widths, n=max(1, n // 2)
        ),
        "bipartition": lambda: ns.methods.bipartition(ns.value_histograms(model, texts, **how), share=args.share),
        "parallel": lambda: ns.methods.parallel_detection(model, texts, **how),
        "transfer-from": lambda: ns.methods.transfer_neurons(model, texts, direction="from shared", n=n, **how),
        "transfer-to": lambda: ns.methods.transfer_neurons(
            model, texts, direction="to shared", shared=shared, n=n, **how
        ),
    }

    def attempt(method: str) -> Masks:
        try:
            return works[method]()
        except UnfinishedError:
            raise
        except ns.NeuronShareError as error:
            print(f"Left out, {method}: {error}\n")
            run.control(f"the neurons of {method}", f"left out: {error}")
            return {}

    masks = {method: found for method in args.methods if (found := attempt(method))}
    if not masks:
        raise ns.NeuronShareError("No method gave any neurons; see above.")
    return masks


def _say(run: Run, table: pd.DataFrame, method: str, how: str) -> None:
    """Say what one method's cross-ablation shows."""
    own = table[table["ablated"] == table["measured"]]
    others = table[(table["ablated"] != table["measured"]) & (table["ablated"] != "none")]
    print(f"\n{method}: change of log-probability without a language's neurons, nats a token ({how})")
    plain = pd.concat([own, others])[lambda rows: rows["control"] == "none"]
    square = plain.pivot(index="ablated", columns="measured", values="difference")
    print(square.loc[own["ablated"].unique(), own["ablated"].unique()].round(3).to_string())

    def mean(rows: pd.DataFrame, control: str, column: str = "difference") -> float:
        return float(rows[rows["control"] == control][column].mean())

    controls = ", ".join(
        f"with the control {control} {mean(own, control):+.3f} there and {mean(others, control):+.3f} in others"
        for control in table["control"].unique()
        if control != "none"
    )
    run.control(
        f"does a language lose more than others without the neurons that {method} finds for it, and more than without "
        "as many others?",
        f"mean change of log-probability, nats a token: {mean(own, 'none'):+.3f} in that language and "
        f"{mean(others, 'none'):+.3f} in others; {controls}",
    )


def _answers(
    args: argparse.Namespace,
    model: LensModel,
    prompts: ns.ParallelPrompts,
    texts: Texts,
    masks: Mapping[str, Masks],
    *,
    sharing: ns.NeuronSharing,
) -> pd.DataFrame:
    """Count in what language the model goes on from the first half of texts, in each state that it is put in."""
    halves = {language: [text[: len(text) // 2] for text in of_language] for language, of_language in texts.items()}
    means = ns.reference_values(model, prompts, position="all", batch_size=args.batch_size)
    n_layers = len(sharing.widths)
    steered = partial(
        ns.methods.steering_hooks, model, means, alpha=1.0, layers=range(n_layers - max(1, n_layers // 4), n_layers)
    )
    tables = []

    def ask(method: str, state: str, language: str, hooks: Any = None) -> None:
        given = {language: halves[language][: args.answers]}
        how = {"candidates": prompts.languages, "batch_size": args.batch_size, "fwd_hooks": hooks}
        tables.append(ns.answer_languages(model, given, **how).assign(method=method, state=state))

    for language in prompts.languages:
        ask("none", "as it is", language)
        ask("steering", "steered", language, steered(language))
        for method, of_method in masks.items():
            mask = of_method.get(language)
            if mask is None or not mask.any():
                continue
            ask(method, "without its neurons", language, ns.ablation_hooks(model, mask))
            for seed in range(args.seed, args.seed + args.seeds):
                generator = torch.Generator().manual_seed(seed)
                random = ns.random_like(mask, generator=generator, within=sharing.is_neuron)
                ask(method, "without random neurons", language, ns.ablation_hooks(model, random))
    columns = ["method", "state", "language", "example", "answered", "confidence", "text"]
    return pd.concat(tables, ignore_index=True)[columns]


def _say_answers(run: Run, answers: pd.DataFrame) -> None:
    """Say in how many cases the model goes on in the language of the text."""
    answers = answers.assign(own=100 * (answers["answered"] == answers["language"]))
    print("\nThe model goes on in the language of the text, percent of the texts")
    shares = answers.pivot_table(index=["method", "state"], columns="language", values="own", sort=False)
    print(shares.round(0).astype("Int64").to_string())
    means = zip(shares.index.to_list(), shares.mean(axis=1), strict=True)
    said = ", ".join(
        f"{state}{'' if method in ('none', 'steering') else f' ({method})'} {share:.0f} %"
        for (method, state), share in means
    )
    run.control("does the model go on in the language of the text? (mean over languages)", said)


def _how(args: argparse.Namespace, texts: Texts) -> str:
    n_texts = max(map(len, texts.values()))
    return f"{n_texts} texts a language, {count_of_seeds(args.seeds)}"


def _show(sharing: ns.NeuronSharing, tables: Mapping[str, pd.DataFrame]) -> None:
    """Print what the tables say of all layers and languages."""
    sizes, agreement, types = (tables[name] for name in ("sizes", "agreement", "types"))
    print(f"{sharing}\n\nNeurons of each language")
    whole = sizes[sizes["layer"].astype(str) == "all"]
    print(whole.pivot(index="method", columns="language", values="neurons").loc[whole["method"].unique()].to_string())
    print("\nHow far methods agree: Jaccard index, by chance, and at most with their sizes (mean over languages)")
    shown = agreement[(agreement["language"] == "all") & (agreement["method"] != agreement["other"])]
    print(shown.drop(columns="language").round(3).to_string(index=False))
    print("\nTypes of the neurons, percent, and what chance gives (mean over languages)")
    means = types[types["language"] == "all"]
    print(means.pivot(index="method", columns="type", values=["percent", "chance"]).round(1).to_string())
