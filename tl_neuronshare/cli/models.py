"""Models side by side: the types of neurons by depth, and the same model with its weights shuffled as a control.

    tl-neuronshare models                                                          # the built-in model
    tl-neuronshare models --model bigscience/bloom-560m --others bigscience/bloomz-560m

Writes models.csv, run.json, and the figure models as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import pandas as pd
import torch

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.inputs import categorise, load_model, load_prompts, short_name
from tl_neuronshare.cli.runs import BESIDE_CHANCE, Run, excess_of, title_of
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.models.lens import LensModel, name_of
from tl_neuronshare.running.loop import each_of


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and other models."""
    parser = arguments.parser(__name__, __doc__)
    arguments.add_others(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Categorise with every model, print the table, write it and the figure."""
    with Run(args) as run:
        results, shuffled = _results(run)
        run.timed("categorise")
        run.record["sharing"] = {name: sharing.metadata for name, sharing in results.items()}
        table = ns.side_by_side(results, name="model")
        means = table.groupby(["model", "type"], sort=False)[["mean", *BESIDE_CHANCE]].mean()
        first = next(iter(results.values()))
        print(f"{first}\n\nTypes of neurons, percent (mean over inputs and layers), beside chance")
        print(means.round(2).to_string())
        run.table(table, "models")
        run.save(ns.plots.side_by_side(table, title=title_of(first)), "models")
        run.timed("table and figure")
        _compare(run, table.query("type == 'all-shared'"), results, shuffled)


def _results(run: Run) -> tuple[dict[str, ns.NeuronSharing], str]:
    """Categorise with every model, one at a time in memory; return the name of the shuffled one too."""
    prompts, model = run.begin()
    names: list[str] = []

    def works() -> Iterator[Callable[[], ns.NeuronSharing]]:
        for name, of_name, texts in _models(run, prompts, model):
            if name in names:
                raise ns.NeuronShareError(f"--others {name}: that model is there already.")
            names.append(name)
            yield partial(categorise, run.args, of_name, texts, **run.keeping(f"model {len(names)}"))

    results = dict(zip(names, each_of(works()), strict=True))
    for name, sharing in results.items():
        run.say_how_it_was_read(sharing, name)
    return results, names[1]


def _models(
    run: Run, prompts: ns.ParallelPrompts, model: LensModel
) -> Iterator[tuple[str, LensModel, ns.ParallelPrompts]]:
    """Give the model as it is, with shuffled weights, and the models of --others, each with its name and prompts."""
    first = short_name(name_of(model))
    yield first, model, prompts
    shuffle(model, run.args.seed)
    yield f"{first}, shuffled", model, prompts
    del model
    plain = load_prompts(run.args)
    run.record["others"] = []
    for given in run.args.others:
        other = load_model(run.args, model=given)
        texts = plain.with_chat_template(other.tokenizer) if run.args.chat_template else plain
        name = short_name(name_of(other))
        run.record["others"].append(fingerprint_of_weights(other))
        yield given if name == first else name, other, texts
        del other


def _compare(run: Run, all_shared: pd.DataFrame, results: Mapping[str, ns.NeuronSharing], shuffled: str) -> None:
    """Compare the results with what the paper found, and with a model that has learnt nothing."""
    of_models = {name: all_shared[all_shared["model"] == name] for name in results}
    texts = {
        name: f"{name} {rows['mean'].mean():.1f} % ({excess_of(results[name], rows)})"
        for name, rows in of_models.items()
    }
    claim = "the patterns differ between models (which ones, but for BLOOM and BLOOMZ, is open)"
    learnt = [text for name, text in texts.items() if name != shuffled]
    run.found(claim, f"all-shared: {'; '.join(learnt)}", None)
    run.control("how much is shared where nothing was learnt?", f"all-shared: {'; '.join(texts.values())}")


def shuffle(model: LensModel, seed: int) -> None:
    """Permute the entries of every weight matrix, so that their distributions stay and what was learnt is gone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim >= 2:
                order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
                weights.copy_(weights.flatten()[order].view_as(weights))
