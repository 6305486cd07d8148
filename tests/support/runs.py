"""Every run that can be kept and shared, what its result is to the last bit, and runs that are disturbed.

Tests compare runs that are undisturbed with those that are stopped, killed, split or short of memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pandas as pd
import torch

import tl_neuronshare as ns
from tl_neuronshare.attribution.causal import causal_check

Run = Callable[..., Any]
TEXTS = {
    "en": ["The sky is blue.", "Two and three make five, and that is that.", "A word", "One more text"] * 2,
    "zh": ["天空是蓝色的。", "二加三等于五", "中国很大，人也很多"],
    "de": ["Der Himmel ist blau."],
}

HOW = {"batch_size": 2, "progress": False}


def _sharing(model: Any, prompts: Any) -> ns.NeuronSharing:
    return ns.categorise(model, prompts, **HOW)


def _attribute(model: Any, prompts: Any, **options: Any) -> pd.DataFrame:
    options = HOW | {"n_resamples": 10, "top_k": 0.1} | options
    return ns.attribute(model, prompts, _sharing(model, prompts), **options)


def _study(model: Any, prompts: Any, **options: Any) -> list[Any]:
    """A study, with all that `on_run` was told."""
    told: list[str] = []
    defaults = {"seeds": [0, 1], "n_resamples": 10, "controls": ["random"], "types": ["all-shared", "specific"]}

    def on_run(*run: Any) -> None:
        told.append(repr([*run[:3], facts(run[3])]))

    table = ns.ablation_study(model, prompts, _sharing(model, prompts), on_run=on_run, **HOW | defaults | options)
    return [table, told]


def _thresholds(model: Any, prompts: Any, **options: Any) -> dict[float, ns.NeuronSharing]:
    return ns.categorise(model, prompts, position="any", threshold=[0, 0.1], **HOW | options)


def _top_neurons(model: Any, prompts: Any, **options: Any) -> pd.DataFrame:
    return ns.top_neurons(model, prompts, _sharing(model, prompts), top_k=0.1, **HOW | options)


def _causal_check(model: Any, prompts: Any, **options: Any) -> pd.DataFrame:
    return causal_check(model, prompts, _sharing(model, prompts), n_neurons=4, **HOW | options)


def _cross_ablation(model: Any, prompts: Any, **options: Any) -> pd.DataFrame:
    mask = torch.zeros(model.cfg.n_layers, model.cfg.d_mlp, dtype=torch.bool)
    masks = {"en": mask.clone(), "zh": mask}
    masks["en"][0, :9], masks["zh"][-1, 3:8] = True, True
    defaults = {"controls": ["random"], "seeds": [0, 1], "n_resamples": 10}
    return ns.cross_ablation(model, TEXTS, masks, **HOW | defaults | options)


# Each takes a model, prompts with answers and choices, and options: out, shard, and others of the function.
KEPT: dict[str, Run] = {
    "categorise": lambda model, prompts, **more: ns.categorise(model, prompts, **HOW | more),
    "thresholds": _thresholds,
    "rates": lambda model, prompts, **more: ns.activation_rates(model, TEXTS, **HOW | more),
    "attribute": _attribute,
    "attribute all": partial(_attribute, answer="all", norm="full"),
    "top neurons": _top_neurons,
    "causal check": _causal_check,
    "choice": lambda model, prompts, **more: ns.evaluate(model, prompts, **HOW | more),
    "exact": lambda model, prompts, **more: ns.evaluate(
        model, prompts, scoring="exact", max_new_tokens=3, **HOW | more
    ),
    "cross ablation": _cross_ablation,
    "study": partial(_study, controls=["magnitude", "random-active"]),
    "study mean": partial(_study, mode="mean", scoring="exact"),
    "study resample": partial(_study, mode="resample", seeds=[3]),
}
# These keep nothing, but the processes of a launch share them too.
SHARED: dict[str, Run] = KEPT | {
    "perplexity": lambda model, prompts, **more: ns.perplexity(model, TEXTS, **HOW | more),
    "cross ablation magnitude": partial(_cross_ablation, controls=["magnitude"]),
    "histograms": lambda model, prompts, **more: ns.value_histograms(model, TEXTS, n_bins=7, **HOW | more).counts,
    "transfer neurons": lambda model, prompts, **more: ns.methods.transfer_neurons(
        model, TEXTS, direction="from shared", n=9, **HOW | more
    ),
    "parallel detection": lambda model, prompts, **more: ns.methods.parallel_detection(
        model, TEXTS, share=0.3, **HOW | more
    ),
    "reference values": lambda model, prompts, **more: ns.reference_values(model, prompts, **HOW | more),
}


def facts(result: Any) -> str:
    """Everything that a result says, to the last bit: equal texts are equal results."""
    if isinstance(result, torch.Tensor):
        content = result.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{result.dtype}{tuple(result.shape)} {hashlib.sha256(content).hexdigest()}"
    if isinstance(result, ns.NeuronSharing | ns.NeuronRates):
        is_sharing = isinstance(result, ns.NeuronSharing)
        own = (
            [result.packed, result.types, list(result.prompt_hashes)] if is_sharing else [result.counts, result.tokens]
        )
        return facts([*own, result.widths, result.hooks, result.languages, {**result.metadata}])
    if isinstance(result, pd.DataFrame):
        return facts([result.to_dict("list"), list(map(str, result.dtypes)), dict(result.attrs)])
    if isinstance(result, Mapping):
        return "{" + ", ".join(f"{key!r}: {facts(value)}" for key, value in result.items()) + "}"
    if isinstance(result, list | tuple):
        return "[" + ", ".join(map(facts, result)) + "]"
    return repr(result)


class StoppedError(Exception):
    """A run is stopped."""


class Passes:
    """Counts the forward passes of a model, and stops a run before the next one.

    Attributes:
        done: how many there were.
        largest: how many tokens one of them had at most.
        longest: how many tokens a row had at most.
    """

    def __init__(
        self, limit: float, most_tokens: float, failure: Callable[[], Exception], stop: Callable[[], Exception]
    ) -> None:
        self.limit, self.most_tokens, self.failure, self.stop = limit, most_tokens, failure, stop
        self.done, self.largest, self.longest = 0, 0, 0

    def see(self, tokens: torch.Tensor) -> None:
        """Note a forward pass before it begins, or refuse it."""
        if self.done >= self.limit:
            raise self.stop()
        n_tokens = tokens.numel()
        if n_tokens > self.most_tokens:
            raise self.failure()
        self.done, self.largest = self.done + 1, max(self.largest, n_tokens)
        self.longest = max(self.longest, tokens.shape[1])


@contextmanager
def passes(
    model: Any,
    *,
    limit: float = float("inf"),
    most_tokens: float = float("inf"),
    failure: Callable[[], Exception] = torch.OutOfMemoryError,
    stop: Callable[[], Exception] = StoppedError,
) -> Iterator[Passes]:
    """Watch a model's forward passes, which are refused after `limit`, or where there are too many tokens.

    There is no hook, since the library takes hooks for the user's.
    """
    counted, embed = Passes(limit, most_tokens, failure, stop), model.embed.forward

    def forward(tokens: torch.Tensor, *more: Any, **options: Any) -> Any:
        counted.see(tokens)
        return embed(tokens, *more, **options)

    model.embed.__dict__["forward"] = forward  # a bridge would hand an attribute on to what it wraps
    try:
        yield counted
    finally:
        del model.embed.__dict__["forward"]
