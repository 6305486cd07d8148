"""Models side by side: the types of neurons by depth, and the same model with its weights shuffled as a control.

    tl-neuronshare models                                                          # the built-in model
    tl-neuronshare models --model bigscience/bloom-560m --others bigscience/bloomz-560m

Writes models.csv, run.json, and the figure models as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse

import pandas as pd
import torch

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.inputs import categorise, load_model, load_prompts, short_name
from tl_neuronshare.cli.runs import Run, title_of
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.models.lens import LensModel


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and other models."""
    parser = arguments.parser(__name__, __doc__)
    arguments.add_others(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Categorise with every model, print the table, write it and the figure."""
    with Run(args) as run:
        results, shuffled = _first(run)
        _add_others(run, results)
        run.timed("categorise")
        run.record["sharing"] = {name: sharing.metadata for name, sharing in results.items()}
        table = ns.side_by_side(results, name="model")
        means = table.groupby(["model", "type"], sort=False)[["mean", "mismatched", "independent"]].mean()
        first = next(iter(results.values()))
        print(f"{first}\n\nTypes of neurons, percent (mean over inputs and layers), beside chance")
        print(means.round(2).to_string())
        run.table(table, "models")
        run.save(ns.plots.side_by_side(table, title=title_of(first)), "models")
        run.timed("table and figure")
        _compare(run, means.query("type == 'all-shared'").droplevel("type"), shuffled)


def _first(run: Run) -> tuple[dict[str, ns.NeuronSharing], str]:
    """Categorise with the model as it is and with shuffled weights; return the name of the latter too."""
    prompts, model = run.begin()
    sharing = categorise(run.args, model, prompts)
    name = short_name(sharing.metadata["model"])
    shuffled = f"{name}, shuffled"
    shuffle(model, run.args.seed)
    return {name: sharing, shuffled: categorise(run.args, model, prompts)}, shuffled


def _add_others(run: Run, results: dict[str, ns.NeuronSharing]) -> None:
    """Categorise with the models of --others, one at a time in memory."""
    prompts = load_prompts(run.args)
    run.record["others"] = []
    for given in run.args.others:
        model = load_model(run.args, model=given)
        texts = prompts.with_chat_template(model.tokenizer) if run.args.chat_template else prompts
        name = short_name(str(model.cfg.model_name))
        name = given if name in results else name
        if name in results:
            raise ns.NeuronShareError(f"--others {given}: that model is there already.")
        run.record["others"].append(fingerprint_of_weights(model))
        results[name] = categorise(run.args, model, texts)
        del model


def _compare(run: Run, all_shared: pd.DataFrame, shuffled: str) -> None:
    """Compare the results with what the paper found, and with a model that has learnt nothing."""
    texts = {
        name: f"{name} {row['mean']:.1f} % (mismatched examples {row['mismatched']:.1f} %)"
        for name, row in all_shared.iterrows()
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
