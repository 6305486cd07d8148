"""Models side by side: the types of neurons by depth, and the same model with its weights shuffled as a control.

    python experiments/models.py                                                          # the built-in model
    python experiments/models.py --model bigscience/bloom-560m --others bigscience/bloomz-560m

Writes models.csv, run.json, and the figure models as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse

import torch

import arguments
import tl_neuronshare as ns
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.models.lens import LensModel


def main() -> None:
    """Categorise with every model, print the table, write it and the figure."""
    parser = arguments.parser(__doc__)
    arguments.add_others(parser)
    args = parser.parse_args()
    run, prompts, model = arguments.begin("models", args)
    first = arguments.categorise(args, model, prompts)
    name = arguments.short_name(first.metadata["model"])
    results = {name: first}
    plain, weights = arguments.load_prompts(args), []
    shuffled = f"{name}, shuffled"
    shuffle(model, args.seed)
    results[shuffled] = arguments.categorise(args, model, prompts)
    del model
    for given in args.others:
        other = arguments.load_model(argparse.Namespace(**{**vars(args), "model": given}))
        texts = plain.with_chat_template(other.tokenizer) if args.chat_template else plain
        name = arguments.short_name(str(other.cfg.model_name))
        name = given if name in results else name
        if name in results:
            raise ns.NeuronShareError(f"--others {given}: that model is there already.")
        weights.append(fingerprint_of_weights(other))
        results[name] = arguments.categorise(args, other, texts)
        del other
    run.timed("categorise")
    run.record["others"] = weights
    run.record["sharing"] = {name: sharing.metadata for name, sharing in results.items()}
    table = ns.side_by_side(results, name="model")
    means = table.groupby(["model", "type"], sort=False)[["mean", "mismatched", "independent"]].mean()
    print(f"{first}\n\nTypes of neurons, percent (mean over inputs and layers), beside chance")
    print(means.round(2).to_string())

    run.table(table, "models")
    run.save(ns.plots.side_by_side(table, title=arguments.title_of(first)), "models")
    run.timed("table and figure")
    shares = {
        name: f"{name} {row['mean']:.1f} % (mismatched examples {row['mismatched']:.1f} %)"
        for name, row in means.xs("all-shared", level="type").iterrows()
    }
    claim = "the patterns differ between models (which ones, but for BLOOM and BLOOMZ, is open)"
    learnt = [text for name, text in shares.items() if name != shuffled]
    run.found(claim, f"all-shared: {'; '.join(learnt)}", None)
    run.control("how much is shared where nothing was learnt?", f"all-shared: {'; '.join(shares.values())}")
    run.finish()


def shuffle(model: LensModel, seed: int) -> None:
    """Permute the entries of every weight matrix: their distributions stay, what was learnt is gone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim >= 2:
                order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
                weights.copy_(weights.flatten()[order].view_as(weights))


if __name__ == "__main__":
    arguments.run_main(main)
