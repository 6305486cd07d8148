"""Causal check: whether the scores of attribution rank neurons as switching them off does.

    python experiments/causal_check.py                                         # the built-in model, nine languages
    python experiments/causal_check.py --limit 50 --neurons 512                # more examples, every neuron
    python experiments/causal_check.py --model bigscience/bloom-560m            # any model

Single neurons are zeroed, each alone, at the token that predicts the answer's first. What the answer's logit and its
log-probability lose by it is compared with the neuron's correctness impact, without the final norm, with its scale
frozen, and with its full derivative; and the size of the logit's loss (abs_logit) with the sizes of these and with the
generation impact: as Spearman's correlation over the neurons of a layer, for each prompt. In half precision a single
neuron's effect is lost in rounding: it is refused.

Writes causal_check.csv, causal_check.png, causal_check.pdf and run.json to the run folder.
"""

from __future__ import annotations

from itertools import product
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

import arguments
import tl_neuronshare as ns
from tl_neuronshare import models
from tl_neuronshare.attribution.impacts import Impacts, Norm
from tl_neuronshare.maths.bootstrap import Bootstrap
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.running.plan import AUTO_NUMBERS

LOST = ("logit", "log_prob")
SAID = {
    "logit": "loss of the logit of the answer's first token",
    "log_prob": "loss of the log_prob of the answer's first token",
    "abs_logit": "size of the logit's loss, with the size of each score",
}


def main() -> None:
    """Score, switch off, compare; print the table, write it and the figure."""
    parser = arguments.parser(__doc__)
    parser.add_argument("--neurons", type=int, default=128, metavar="N", help="of each layer, at random (default: 128)")
    parser.set_defaults(limit=20)
    args = parser.parse_args()
    if args.neurons < 2:
        raise ns.NeuronShareError(f"--neurons {args.neurons}: a correlation needs at least two.")
    if args.dtype != "float32":
        raise ns.NeuronShareError(f"--dtype {args.dtype}: a single neuron's effect is lost in rounding; use float32.")
    run, prompts, model, sharing = arguments.start("causal_check", args)
    generator = torch.Generator().manual_seed(args.seed)  # loading a model draws from the global one
    chosen = [torch.randperm(width, generator=generator)[: args.neurons].sort().values for width in sharing.widths]
    scores = {norm: Impacts(model, prompts, sharing, norm=norm, batch_size=args.batch_size) for norm in get_args(Norm)}
    found = _scores(scores, chosen)
    run.timed("scores")
    effects = _effects(model, scores["none"], chosen)
    run.timed("ablation")
    table = _table(found, effects, prompts)
    shown = table[table["language"] == "all"]
    print(
        f"{sharing}\n\nSpearman's correlation of score and loss over the neurons of a layer, mean over prompts [95 %]"
    )
    for target, rows in shown.groupby("target", sort=False):
        print(f"\n{SAID[target]}")
        texts = rows.assign(text=rows.apply(_with_interval, axis=1)).pivot(
            index="layer", columns="score", values="text"
        )
        print(texts[rows["score"].unique()].to_string())
    run.table(table, "causal_check")
    n_neurons = max(map(len, chosen))
    title = arguments.title_of(sharing, how=f"{n_neurons} neurons a layer")
    run.save(ns.plots.causal_check(table, title=title), "causal_check")
    run.timed("table and figure")
    run.finish(scores=scores["none"].record)


def _scores(impacts: dict[str, Impacts], chosen: list[Tensor]) -> dict[str, dict[tuple[int, str, int], Tensor]]:
    """By score, then by (example, language, layer): the chosen neurons' scores."""
    found: dict[str, dict[tuple[int, str, int], Tensor]] = {norm: {} for norm in impacts} | {"generation": {}}
    for norm, of_norm in impacts.items():
        for one in of_norm.each(desc=f"scores, norm {norm}"):
            neurons = chosen[one.layer]
            for row, example in enumerate(one.examples):
                key = (example, one.language, one.layer)
                found[norm][key] = one.correctness[row].cpu()[neurons]
                found["generation"][key] = one.generation[row].cpu()[neurons]
    return found


def _effects(model: LensModel, impacts: Impacts, chosen: list[Tensor]) -> dict[str, dict[tuple[int, str, int], Tensor]]:
    """By target, then by (example, language, layer): what it loses when each chosen neuron alone is zeroed."""
    lost: dict[str, dict[tuple[int, str, int], Tensor]] = {target: {} for target in LOST}
    places = [(language, one) for language, of_one in impacts.places.items() for one in of_one]
    for language, one in tqdm(places, desc="ablation"):
        before = _targets(model, torch.tensor([one.before]), one.scored[0], [])
        for layer, neurons in enumerate(chosen):
            mask = torch.zeros(len(neurons), len(chosen), max(impacts.widths), dtype=torch.bool)
            mask[torch.arange(len(neurons)), layer, neurons] = True
            parts = []
            for part in mask.split(max(1, AUTO_NUMBERS // model.cfg.d_vocab)):
                hooks = ns.ablation_hooks(model, part, position="last")
                parts.append(_targets(model, torch.tensor([one.before] * len(part)), one.scored[0], hooks))
            for target in LOST:
                after = torch.cat([part[target] for part in parts])
                lost[target][one.example, language, layer] = before[target] - after
    return lost


def _targets(model: LensModel, tokens: Tensor, token: int, hooks: models.Hooks) -> dict[str, Tensor]:
    """The token's logit and log-probability after each row."""
    with models.left_as_found(model), models.hooked(model, hooks):
        logits = models.last_logits(model, tokens, None, 1)[:, -1].float()
    return {"logit": logits[:, token].cpu(), "log_prob": logits.log_softmax(-1)[:, token].cpu()}


def _table(
    scores: dict[str, dict[tuple[int, str, int], Tensor]],
    effects: dict[str, dict[tuple[int, str, int], Tensor]],
    prompts: ns.ParallelPrompts,
) -> pd.DataFrame:
    """The mean correlation over examples, by target, layer, score and language.

    Prompts for which all neurons lose the same have no correlation and are left out; `prompts` says how many remain.
    """
    bootstrap, rows = Bootstrap(5000), []
    n_layers = 1 + max(layer for _, _, layer in effects["logit"])
    for target, layer, score in product(SAID, range(n_layers), scores):
        if score == "generation" and target != "abs_logit":
            continue  # it has no sign
        correlations = np.zeros((len(prompts), len(prompts.languages)))
        for place in np.ndindex(correlations.shape):
            key = (place[0], prompts.languages[place[1]], layer)
            pair = scores[score][key], effects[target.removeprefix("abs_")][key]
            correlations[place] = _spearman(*(map(torch.abs, pair) if target.startswith("abs_") else pair))
        for language in ("all", *prompts.languages):
            values = correlations if language == "all" else correlations[:, [prompts.languages.index(language)]]
            above, below = np.nansum(values, 1), (~np.isnan(values)).sum(1).astype(float)
            low, high = map(float, bootstrap.intervals(above, below))
            labels = {"target": target, "layer": layer, "score": score, "language": language}
            value = above.sum() / below.sum() if below.any() else np.nan
            rows.append(labels | {"value": value, "low": low, "high": high, "prompts": int(below.sum())})
    return pd.DataFrame(rows)


def _spearman(one: Tensor, other: Tensor) -> float:
    """The correlation of ranks, equal values sharing theirs; NaN where all of one are equal."""
    return float(pd.Series(one.numpy()).rank().corr(pd.Series(other.numpy()).rank()))


def _with_interval(row: pd.Series) -> str:
    return f"{row['value']:.2f}" + ("" if pd.isna(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]")


if __name__ == "__main__":
    arguments.run_main(main)
