"""Golden results of the built-in model, which every later version must reproduce.

    python tests/support/golden.py FOLDER    # write the results of this checkout to FOLDER

`tests/support/golden/` holds the results of the commit that `made.json` names. Types, masks, counts and predictions
must be exactly the same. Other numbers are exactly the same on one machine, and equal up to rounding between machines,
model classes and versions.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import tl_neuronshare as ns

HERE = Path(__file__).parent / "golden"
LANGUAGES = ("en", "de", "th", "zh")


def bits_of(tensor: torch.Tensor) -> str:
    """Return a hash of a tensor's shape and values."""
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes()).hexdigest()[:32]


def results(model: Any) -> dict[str, pd.DataFrame]:
    """Run every analysis of the built-in model on some of its prompts, and return tables."""
    prompts = ns.demo.prompts()[::16]
    few = prompts.select(LANGUAGES)
    sums = ns.demo.prompts()[7:30:2].select(LANGUAGES)
    sums = sums.from_frame(sums.to_frame().query("example.str.startswith('sum')"))
    sharing, some = ns.categorise(model, prompts, progress=False), ns.categorise(model, few, progress=False)
    kinds = {"first": sharing[:6], "last": sharing[6:]}
    tables = {
        "summary": sharing.summary(),
        "by_language": sharing.by_language(),
        "persistence": sharing.persistence(),
        "never_activated": ns.categorise(model, prompts, position="any", progress=False).never_activated(),
        "overlap": sharing.overlap().reset_index(),
        "language_overlap": ns.language_overlap(some, n_resamples=200),
        "side_by_side": ns.side_by_side(kinds, name="task"),
        "input_overlap": ns.input_overlap(kinds),
        "evaluate_choice": ns.evaluate(model, few, progress=False),
        "evaluate_exact": ns.evaluate(model, few, scoring="exact", progress=False),
        "evaluate_number": ns.evaluate(model, sums, scoring="number", progress=False),
        "perplexity": ns.perplexity(model, {la: few.prompts[la] for la in LANGUAGES}, progress=False),
        "top_neurons": ns.top_neurons(model, few, some, progress=False),
        "top_correct": ns.top_neurons(model, few, some, score="correctness", norm="full", n=50, progress=False),
    }
    for name, options in {"plain": {}, "full": {"answer": "all", "norm": "full"}, "frozen": {"norm": "frozen"}}.items():
        table = ns.attribute(model, few, some, n_resamples=200, progress=False, **options)
        tables[f"attribute_{name}"] = table.query("layer == 'all' or language == 'de'").reset_index(drop=True)
    predictions = []
    for name, options in {
        "plain": {},
        "exact": {"scoring": "exact", "types": ["all-shared", "specific"]},
        "mean": {"mode": "mean", "position": "last", "types": ["all-shared"], "controls": ["random"]},
        "resample": {"mode": "resample", "types": ["partial-shared"], "controls": ["random"], "layers": [1, 2]},
        "scale": {"mode": "scale", "values": 2.0, "equal_size": True, "controls": ["magnitude"]},
        "one_mask": {"one_mask": True, "types": ["all-shared", "non-activated"], "consistent": 0.4},
    }.items():

        def keep(type: str, ablated: str, seed: Any, table: pd.DataFrame, name: str = name) -> None:
            answers = table[["example", "language", "correct", "prediction"]].to_csv(index=False)
            digest = hashlib.sha256(answers.encode()).hexdigest()[:32]
            predictions.append({"study": name, "type": type, "ablated": ablated, "seed": str(seed), "digest": digest})

        tables[f"study_{name}"] = ns.ablation_study(
            model, few, some, seeds=[0, 1], n_resamples=200, on_run=keep, progress=False, **options
        )
    tables["predictions"] = pd.DataFrame(predictions)
    tables["bits"] = pd.DataFrame(
        [
            {"what": what, "bits": bits_of(tensor)}
            for what, tensor in {
                "types": sharing.types,
                "types at gate, any": ns.categorise(model, few, site="gate", position="any", progress=False).types,
                "types above 0.1": ns.categorise(model, few, threshold=[0.0, 0.1], progress=False)[0.1].types,
                "mismatched": sharing.mismatched(seed=3).types,
                "random_like": ns.random_like(sharing.mask("specific"), generator=torch.Generator().manual_seed(0)),
            }.items()
        ]
    )
    texts = {language: few.prompts[language] for language in LANGUAGES}
    rates = ns.activation_rates(model, texts, progress=False).rates
    means = ns.reference_values(model, few, progress=False)
    tables["means"] = pd.DataFrame(
        {
            "language": language,
            "layer": layer,
            "rate": rates[number, layer].mean().item(),
            "value": means[language][layer].double().mean().item(),
            "size": means[language][layer].double().abs().mean().item(),
        }
        for number, language in enumerate(LANGUAGES)
        for layer in range(4)
    )
    return tables


def write(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write each table to a CSV file, with all digits."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)


def read(folder: Path = HERE) -> dict[str, pd.DataFrame]:
    """Read the tables that `write` wrote."""
    return {
        file.stem: pd.read_csv(file, keep_default_na=False, na_values=[""]) for file in sorted(folder.glob("*.csv"))
    }


if __name__ == "__main__":
    write(results(ns.demo.load_model(device="cpu")), Path(sys.argv[1]))
