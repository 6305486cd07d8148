"""The authors' notebooks, literally: single prompts, all activations kept, sets of neurons, and one product each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tl_neuronshare import models

TOP_K = 800 / 16384


def last_values(model: Any, layers: Sequence[Any], tokens: Tensor) -> Iterator[Tensor]:
    """Run one prompt with all activations kept, and give each layer's values at its last token."""
    _, cache = model.run_with_cache(tokens)
    for layer in layers:
        yield layer.read([cache[name] for name in layer.names], (0, -1))


def categorise(model: Any, prompts: Sequence[Tensor], *, n_languages: int) -> list[list[dict[str, float]]]:
    """The share of each type in each layer, for each example, whose prompts follow each other."""
    layers = models.neuron_layers(model, "post")
    shares = []
    with torch.no_grad():
        for start in range(0, len(prompts), n_languages):
            activated = [
                [set((values > 0).nonzero().flatten().tolist()) for values in last_values(model, layers, tokens)]
                for tokens in prompts[start : start + n_languages]
            ]
            shares.append(
                [
                    _shares([of_language[number] for of_language in activated], layer.width)
                    for number, layer in enumerate(layers)
                ]
            )
    return shares


def _shares(activated: Sequence[set[int]], width: int) -> dict[str, float]:
    """The share of each type among a layer's neurons."""
    shared, union = set.intersection(*activated), set.union(*activated)
    specific = set[int]()
    for number, own in enumerate(activated):
        specific |= own - set.union(*(other for place, other in enumerate(activated) if place != number))
    kinds = {
        "all-shared": shared,
        "partial-shared": union - shared - specific,
        "specific": specific,
        "non-activated": set(range(width)) - union,
    }
    return {label: len(neurons) / width for label, neurons in kinds.items()}


def attribute(
    model: Any,
    prompts: Sequence[Tensor],
    answers: Sequence[int],
    types: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> list[list[dict[str, float]]]:
    """Both scores of every neuron, reduced to the numbers of each type, for each prompt and layer.

    `answers` are the first tokens of the right answers, `types` the types [layer, neuron] of each prompt's example, and
    `weights` the output weights [d_mlp, d_model] of each layer.
    """
    layers = models.neuron_layers(model, "post")
    columns = models.unembedding(model, torch.tensor(sorted(set(answers)), device="cpu")).T
    column = dict(zip(sorted(set(answers)), columns, strict=True))
    numbers = []
    with torch.no_grad():
        for tokens, answer, type_of in zip(prompts, answers, types, strict=True):
            of_layers = []
            for number, values in enumerate(last_values(model, layers, tokens)):
                written = values[:, None] * weights[number]  # [d_mlp, d_model]
                of_layers.append(_numbers(written.norm(dim=-1), written @ column[answer], type_of[number]))
            numbers.append(of_layers)
    return numbers


def _numbers(contribution: Tensor, effect: Tensor, types: Tensor) -> dict[str, float]:
    """What the notebooks keep of a layer: for each type its share of the top, and mean, sum and largest score."""
    top = set(contribution.topk(max(1, int(TOP_K * len(contribution)))).indices.tolist())
    numbers = {}
    for type in range(4):
        chosen = types == type
        neurons = set(chosen.nonzero().flatten().tolist())
        numbers |= {
            f"top {type}": len(top & neurons) / len(top),
            f"mean {type}": contribution[chosen].mean().item(),
            f"sum {type}": contribution[chosen].sum().item(),
            f"largest effect {type}": effect[chosen].max().item() if neurons else float("nan"),
        }
    return numbers
