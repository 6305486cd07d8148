"""Dose and response: what a growing share of a type's neurons does, in the order of their impact and at random."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.ablation.reference import values_at
from tl_neuronshare.ablation.study import ablation_study
from tl_neuronshare.ablation.targets import generator_of
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import distinct, share, whole
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.evaluating import ScoringName
from tl_neuronshare.maths.activation import count_true
from tl_neuronshare.maths.draws import drawn
from tl_neuronshare.models import LensModel
from tl_neuronshare.prompts import ParallelPrompts, require_prompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import NeuronType
from tl_neuronshare.running import provenance
from tl_neuronshare.running.loop import Keeping, each_of, running
from tl_neuronshare.running.plan import BatchSize, Running

ORDERS = {"impact": "by impact", "random": "at random"}  # and how a table names what they ablate
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


@explains
def dose_response(
    model: LensModel,
    prompts: ParallelPrompts,
    sharing: NeuronSharing,
    *,
    type: NeuronType | str = NeuronType.ALL_SHARED,
    shares: Sequence[float] = SHARES,
    controls: Sequence[str] = ("random-active", "magnitude"),
    seeds: Sequence[int] = range(3),
    scoring: ScoringName = "choice",
    length_normalised: bool = False,
    max_new_tokens: int | None = None,
    stop: Sequence[str] = ("\n",),
    n_resamples: int = 5000,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    out: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Zero a growing share of a type's neurons, in the order of their impact and at random, beside its controls.

    Of each layer and example the same share is zeroed, at all tokens, and a larger share includes a smaller one. The
    impact is the generation impact at the last prompt token, as a mean over languages.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompts: the prompts that were categorised, with answers, and choices if `scoring` is `choice`.
        sharing: the types, from `categorise`.
        type: which type's neurons are zeroed.
        shares: the shares, above 0 and up to 1.
        controls: as in `ablation_study`; each is as large as the share of the type. None of the type's neurons is a
            match of `magnitude`.
        seeds: each control is drawn once for each seed. The order at random is that of the first seed.
        scoring: as in `evaluate`.
        length_normalised: as in `evaluate`.
        max_new_tokens: as in `evaluate`.
        stop: as in `evaluate`.
        n_resamples: as in `ablation_study`.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`.
        out: as in `categorise`; the folder has a folder for each order.
        shard: as in `categorise`.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        A table with a row for each share, what was ablated, language and metric. Columns: share (0 for the unablated
        model); ablated (`by impact`, `at random`, or the name of a control); language, metric, value, difference, low,
        high, neurons, examples and note as in `ablation_study`. `table.attrs` says how the table was made.

    Raises:
        NeuronShareError: a share is not above 0 and at most 1; otherwise as `ablation_study`.

    Warns:
        UserWarning: as `ablation_study`.

    Source: ours.

    Examples:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> table = dose_response(model, prompts, ns.categorise(model, prompts), shares=[0.5, 1.0], seeds=[0])
        >>> sorted(table["ablated"].unique())
        ['at random', 'by impact', 'magnitude', 'none', 'random-active']
    """
    if not isinstance(sharing, NeuronSharing):
        kind = builtins.type(sharing).__name__
        raise NeuronShareError(f"sharing is a {kind}; give the NeuronSharing that categorise found for these prompts.")
    require_prompts(prompts)
    how, keeping = Running(batch_size, prepend_bos).on(model), Keeping(out, shard)
    shares = [share("shares", each) for each in distinct("shares", shares, what="shares, above 0 and up to 1")]
    seeds = [whole("seeds", seed) for seed in distinct("seeds", seeds, what="whole numbers")]
    provenance.require_match(model, prompts, sharing, prepend_bos=prepend_bos)
    mask = sharing.mask(type)
    ranks = {
        "impact": _impact(model, prompts, how, mask, progress=progress),
        "random": _at_random(prompts, mask, seeds[0]),
    }
    keepings = keeping.divided([*ORDERS])
    tables = each_of(
        partial(
            ablation_study,
            model,
            prompts,
            {f"{order} {each}": drawn(ranks[order], _count(mask, each), mask) for each in shares},
            controls=controls if order == "impact" else (),
            active=sharing if order == "impact" else None,
            spared=mask if order == "impact" else None,
            seeds=seeds,
            scoring=scoring,
            length_normalised=length_normalised,
            max_new_tokens=max_new_tokens,
            stop=stop,
            n_resamples=n_resamples,
            batch_size=batch_size,
            prepend_bos=prepend_bos,
            out=keepings[order].out,
            shard=keepings[order].shard,
            progress=progress,
        )
        for order in ORDERS
    )
    table = pd.concat([_named(tables[0]), _named(tables[1]).query("ablated != 'none'")])
    table = table.sort_values("share", kind="stable", ignore_index=True)
    table.attrs.update(tables[0].attrs | {"types": [_label(type)], "shares": shares, "orders": list(ORDERS)})
    return table


def _count(mask: Bool[Tensor, "example layer neuron"], share_of: float) -> Int[Tensor, "example layer"]:
    """How many of a layer's neurons are a share of them, rounded half up."""
    return (share_of * count_true(mask).double() + 0.5).floor().long()


def _label(type: NeuronType | str) -> str:
    return type.label if isinstance(type, NeuronType) else type


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Return a study's rows by share and what was ablated, instead of by the name of a mask."""
    columns = ["language", "metric", "value", "difference", "low", "high", "neurons", "examples", "note"]
    order, share_of = (table["type"].str.split(" ").str[place] for place in (0, -1))
    is_none = table["type"] == "none"
    named = pd.DataFrame(
        {
            "share": share_of.mask(is_none, "0").astype(float),
            "ablated": table["ablated"].mask(table["ablated"] == "type", order.map(ORDERS)),
        }
    )
    return pd.concat([named, table[columns]], axis=1)


def _impact(
    model: LensModel,
    prompts: ParallelPrompts,
    how: Running,
    mask: Bool[Tensor, "example layer neuron"],
    *,
    progress: bool,
) -> Float[Tensor, "example layer neuron"]:
    """Each neuron's generation impact at the last prompt token, as a mean over languages."""
    layers = [layer.weighted() for layer in models.neuron_layers(model, "post")]
    total = torch.zeros(mask.shape, dtype=torch.float32, device="cpu")
    n_rows = len(prompts) * len(prompts.languages)
    with running(model, "impact", n_rows=n_rows, progress=progress) as loop:
        for language, texts in prompts.prompts.items():
            total += values_at(model, layers, texts, language, index=-1, how=how, loop=loop).abs()
    for number, layer in enumerate(layers):
        total[:, number, : layer.width] *= layer.lengths.cpu() / len(prompts.languages)
    return total


def _at_random(
    prompts: ParallelPrompts, mask: Bool[Tensor, "example layer neuron"], seed: int
) -> Float[Tensor, "example layer neuron"]:
    """A random number for each neuron, which depends on the seed and the example alone."""
    generators = (generator_of(seed, "dose", "order", label) for label in prompts.examples)
    numbers = [torch.rand(mask.shape[1:], generator=each, dtype=torch.float32, device="cpu") for each in generators]
    return torch.stack(numbers)
