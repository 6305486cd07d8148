"""Whether the scores of attribution rank neurons as switching them off does."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tl_neuronshare import checks, models
from tl_neuronshare.ablation.hooks import ablation_hooks
from tl_neuronshare.attribution.impacts import ImpactOptions, Impacts, LayerImpacts, Norm
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.launch import warn
from tl_neuronshare.maths.bootstrap import Bootstrap
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.running import provenance
from tl_neuronshare.running.loop import Keeping, each_of, running
from tl_neuronshare.running.plan import Batch, BatchSize, Plan, Running, rows_that_fit
from tl_neuronshare.running.shards import Record

ByPlace = dict[tuple[int, str, int], Tensor]  # by example, language and layer: a number for each chosen neuron
_LOST = ("logit", "log_prob")
_TARGETS = (*_LOST, "abs_logit")
_RESAMPLES = 5000


def causal_check(
    model: LensModel,
    prompts: ParallelPrompts,
    sharing: NeuronSharing,
    *,
    n_neurons: int = 128,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    out: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare the scores of single neurons with what zeroing each of them alone does.

    A neuron is zeroed at the token that predicts the answer's first. What the answer's logit and its log-probability
    lose by it is compared with the neuron's correctness impact, without the final norm, with its scale frozen, and with
    its full derivative; and the size of the logit's loss with the sizes of these and with the generation impact.

    Args:
        model: a HookedTransformer or TransformerBridge, with raw weights in float32.
        prompts: those that `sharing` is of, or some of their languages, with answers.
        sharing: the types, from `categorise` with this model.
        n_neurons: of each layer, drawn at random; all where a layer has no more.
        seed: of the draw.
        batch_size: prompts in one forward pass, for the scores.
        out: as in `categorise`; the folder has a folder for each kind of score.
        shard: as in `categorise`.
        progress: whether to show a progress bar where it takes more than two seconds.

    Returns:
        A table with a row for each target (`logit` and `log_prob` of the answer's first token; `abs_logit` is the size
        of the logit's loss, compared with the size of each score), layer, score (the correctness impact by its `norm`:
        none, frozen, full; `generation` with `abs_logit` only, since it has no sign) and language (`all` is the mean
        over all prompts). `value` is Spearman's correlation over the neurons, the mean over prompts; `low` and `high`
        are its 95 % interval (bootstrap over examples). A prompt for which all neurons lose the same has no
        correlation and is left out; `prompts` says how many remain. `table.attrs` says how it was made.

    Raises:
        NeuronShareError: weights in half precision, in which a single neuron's effect is lost; fewer than two neurons;
            otherwise as `attribute`.

    Warns:
        UserWarning: as `attribute`.

    Examples:
        >>> prompts = ns.demo.prompts()[:1].select(["en", "de"])
        >>> table = causal_check(model, prompts, ns.categorise(model, prompts), n_neurons=16)
        >>> row = table.query("target == 'logit' and layer == 3 and score == 'full' and language == 'all'").iloc[0]
        >>> bool(row["value"] > 0.9)
        True
    """
    n_neurons = checks.count("n_neurons", n_neurons, least=2)
    seed = checks.whole("seed", seed)
    if (dtype := next(model.parameters()).dtype) not in (torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        raise NeuronShareError(
            f"The weights are {name}, in which a single neuron's effect is lost; load it in float32."
        )
    impacts = {
        norm: Impacts(model, prompts, sharing, ImpactOptions(norm=norm), Running(batch_size)) for norm in get_args(Norm)
    }
    for warning in impacts["none"].warnings:
        warn(warning)
    keeping, which = Keeping(out, shard), f"{n_neurons} neurons, seed {seed}"
    generator = torch.Generator().manual_seed(seed)
    chosen = [
        torch.randperm(width, generator=generator, device="cpu")[:n_neurons].sort().values for width in sharing.widths
    ]
    ablated = "ablated"  # a folder beside those of the norms
    keepings = keeping.divided([*impacts, ablated])
    scores, effects = each_of(
        [
            lambda: _scores(impacts, chosen, which, keepings, progress),
            lambda: _effects(model, impacts["none"], chosen, which=which, keeping=keepings[ablated], progress=progress),
        ]
    )
    table = _table(scores, effects, prompts)
    record = impacts["none"].record
    table.attrs.update(
        record | {"norm": list(impacts), "n_neurons": n_neurons, "seed": seed, "n_resamples": _RESAMPLES}
    )
    return table


def _scores(
    impacts: dict[str, Impacts], chosen: list[Tensor], which: str, keepings: dict[str, Keeping], progress: bool
) -> dict[str, ByPlace]:
    """The scores of the chosen neurons."""
    scores: dict[str, ByPlace] = {name: {} for name in (*impacts, "generation")}

    def of_chosen(layer: LayerImpacts) -> Record:
        neurons = chosen[layer.layer].to(layer.correctness.device)
        return {"correctness": layer.correctness[:, neurons], "generation": layer.generation[:, neurons]}

    def keep(language: str, layer: int, examples: list[int], record: Record, *, norm: str) -> None:
        for row, example in enumerate(examples):
            scores[norm][example, language, layer] = record["correctness"][row]
            scores["generation"][example, language, layer] = record["generation"][row]

    each_of(
        partial(
            of_norm.each,
            of_chosen,
            partial(keep, norm=norm),
            task=f"scores of {which}, norm {norm}",
            progress=progress,
            keeping=keepings[norm],
        )
        for norm, of_norm in impacts.items()
    )
    return scores


def _effects(
    model: LensModel,
    impacts: Impacts,
    chosen: list[Tensor],
    *,
    which: str,
    keeping: Keeping,
    progress: bool,
) -> dict[str, ByPlace]:
    """What each target loses when each chosen neuron alone is zeroed."""
    lost: dict[str, ByPlace] = {target: {} for target in _LOST}
    places = [(language, place) for language, of_language in impacts.places.items() for place in of_language]
    # One prompt a batch: it is run as many times as there are neurons to zero.
    plan = Plan(model, [place.before for _, place in places], batch_size=1)

    def ablate(batch: Batch) -> Record:
        (row,) = batch.rows
        answer = places[row][1].scored[0]
        n_rows = rows_that_fit((batch.tokens.shape[1], 1), "auto", per_token=model.cfg.d_vocab)
        losses: dict[str, list[Tensor]] = {target: [] for target in _LOST}
        before = _targets(model, batch.tokens, answer, [])
        for layer, neurons in enumerate(chosen):
            mask = torch.zeros(len(neurons), len(chosen), max(impacts.widths), dtype=torch.bool, device="cpu")
            mask[torch.arange(len(neurons), device="cpu"), layer, neurons] = True
            after = [
                _targets(
                    model, batch.tokens.expand(len(part), -1), answer, ablation_hooks(model, part, position="last")
                )
                for part in torch.split(mask, n_rows)
            ]
            for target in _LOST:
                losses[target].append(before[target] - torch.cat([part[target] for part in after]))
        return {target: torch.stack(of_layers)[None] for target, of_layers in losses.items()}

    def keep(rows: list[int], record: Record) -> None:
        for row, target in product(range(len(rows)), _LOST):
            language, place = places[rows[row]]
            for layer, loss in enumerate(record[target][row]):
                lost[target][place.example, language, layer] = loss

    def about() -> dict[str, Any]:
        of_prompts = provenance.of_prompts(model, impacts.prompts)
        return {"call": f"ablation of {which}", **of_prompts, "prepend_bos": impacts.record["prepend_bos"]}

    with running(model, "ablation", n_rows=len(plan), progress=progress, keeping=keeping, about=about) as loop:
        loop.part(partial(loop, plan, ablate, keep))
    return lost


def _targets(model: LensModel, tokens: Tensor, token: int, hooks: models.Hooks) -> dict[str, Tensor]:
    """The token's logit and log-probability after each row."""
    with models.hooked(model, hooks):
        logits = models.last_logits(model, models.Inputs(tokens), 1)[:, -1].float()
    return {"logit": logits[:, token].cpu(), "log_prob": logits.log_softmax(-1)[:, token].cpu()}


def _table(scores: dict[str, ByPlace], effects: dict[str, ByPlace], prompts: ParallelPrompts) -> pd.DataFrame:
    """The mean correlation over examples, by target, layer, score and language.

    Prompts for which all neurons lose the same have no correlation and are left out; `prompts` says how many remain.
    """
    bootstrap, rows = Bootstrap(_RESAMPLES), []
    n_layers = 1 + max(layer for _, _, layer in effects["logit"])
    for target, layer, score in product(_TARGETS, range(n_layers), scores):
        if score == "generation" and target != "abs_logit":
            continue  # it has no sign
        correlations = np.zeros((len(prompts), len(prompts.languages)))
        for example, column in np.ndindex(correlations.shape):
            place = (example, prompts.languages[column], layer)
            pair = scores[score][place], effects[target.removeprefix("abs_")][place]
            correlations[example, column] = _spearman(*(map(torch.abs, pair) if target.startswith("abs_") else pair))
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
