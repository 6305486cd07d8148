"""Across tokens: the neurons that no token of a prompt activates, and how often tokens activate each neuron.

    tl-neuronshare tokens                                    # the built-in model, on its prompts
    tl-neuronshare tokens --model DIRECTORY --texts FOLDER   # rates over free text, FOLDER/en.txt and so on

Writes never_activated.csv, rates.csv, run.json, and the figure never_activated as PNG and PDF, to the run folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

import tl_neuronshare as ns
from tl_neuronshare.cli import arguments
from tl_neuronshare.cli.runs import Run, title_of
from tl_neuronshare.models.layers import neuron_layers
from tl_neuronshare.models.lens import LensModel


def parser() -> argparse.ArgumentParser:
    """Make a parser for the shared arguments and free text."""
    parser = arguments.parser(__name__, __doc__)
    parser.add_argument("--texts", type=Path, metavar="FOLDER", help="LANGUAGE.txt of free text, a text a line")
    parser.set_defaults(position="any")
    return parser


def main(args: argparse.Namespace) -> None:
    """Categorise at every token, count, print the tables, write them and the figure."""
    if args.position != "any":
        raise ns.NeuronShareError(f"--position {args.position}: this looks at every token, which is any.")
    texts = _texts(args.texts) if args.texts else None
    with Run(args) as run:
        prompts, model, sharing = run.start(dealt=False)
        table = sharing.never_activated()
        rates = _rates(args, run, model, texts or dict(prompts.prompts))
        run.timed("rates")
        _show(sharing, table, rates)
        run.table(table, "never_activated")
        run.table(rates, "rates")
        run.save(ns.plots.never_activated(table, title=title_of(sharing)), "never_activated")
        run.timed("tables and figure")
        _compare(run, table[table["language"] == "all"], len(sharing))


def _texts(folder: Path) -> dict[str, Iterable[str]]:
    """Return each language's lines, which are read when they are needed."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise ns.NeuronShareError(f"--texts {folder}: there is no such folder, or no LANGUAGE.txt in it.")
    return {file.stem: _lines(file) for file in files}


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise ns.NeuronShareError(f"{str(file)!r} is not UTF-8 ({error}); save it so.") from error


def _rates(args: argparse.Namespace, run: Run, model: LensModel, texts: dict[str, Iterable[str]]) -> pd.DataFrame:
    """Return the mean rate by layer and language, and how many neurons no token or every token activates (percent)."""
    options = {"site": args.site, "threshold": args.threshold, "batch_size": args.batch_size}
    rates = ns.activation_rates(model, texts, **options, **run.keeping("rates"))
    widths = [layer.width for layer in neuron_layers(model, args.site)]
    return pd.DataFrame(
        {
            "layer": layer,
            "language": language,
            "rate": 100 * of_layer.mean().item(),
            "never": 100 * (of_layer == 0).double().mean().item(),
            "always": 100 * (of_layer == 1).double().mean().item(),
        }
        for layer, width in enumerate(widths)
        for language, of_layer in zip(texts, rates[:, layer, :width], strict=True)
    )


def _show(sharing: ns.NeuronSharing, table: pd.DataFrame, rates: pd.DataFrame) -> None:
    def of_languages(table: pd.DataFrame, values: str) -> str:
        languages = table["language"].unique()
        return str(table.pivot(index="layer", columns="language", values=values)[languages].round(2).to_string())

    print(f"{sharing}\n\nNeurons that no token of an input activates, percent of the layer (mean over inputs)")
    print(of_languages(table, "mean"))
    print("\nThat no token of any input activates")
    print(of_languages(table, "every"))
    print("\nTokens that activate a neuron, percent (mean over the layer's neurons)")
    print(of_languages(rates, "rate"))


def _compare(run: Run, overall: pd.DataFrame, n_inputs: int) -> None:
    """Compare the results with what the paper found."""
    run.found(
        "some neurons are activated by no token in any language (their share is only in the paper's figure)",
        f"{overall['mean'].min():.1f} to {overall['mean'].max():.1f} % of a layer for an average input, "
        f"{overall['every'].min():.1f} to {overall['every'].max():.1f} % for all {n_inputs} inputs",
        None,
    )
