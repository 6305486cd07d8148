"""Cross-lingual activation steering: neurons that some languages share are scaled up, those of one language down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare.ablation.hooks import ablation_hooks
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import finite, layer_numbers
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import Number
from tl_neuronshare.models import LensModel, neuron_layers
from tl_neuronshare.results.types import NeuronType, neuron_types

STEERED = (NeuronType.PARTIAL_SHARED, NeuronType.SPECIFIC)


@explains
def steering_hooks(
    model: LensModel,
    means: Mapping[str, Float[Tensor, "layer neuron"]],
    language: str,
    *,
    alpha: Number,
    layers: Sequence[int],
    beta: Number = 0.4,
    gamma: Number = 0.2,
    threshold: Number = 0.0,
) -> list[tuple[str, Callable[..., Tensor | None]]]:
    """Make hooks that steer a model towards what a language shares with others.

    The values of the language's partial-shared neurons are multiplied by 1 + alpha * beta, and those of its specific
    neurons by 1 - alpha * gamma, at every token. A neuron's type is that of its mean values: it is activated in a
    language if its mean there is above the threshold (see `steered`).

    Args:
        model: a HookedTransformer or TransformerBridge.
        means: each neuron's mean value in each language, over about a hundred inputs that mean the same:
            `reference_values(model, prompts, position="all")`.
        language: the language that is steered.
        alpha: how strongly; the paper tunes it for each language. 0 changes nothing.
        layers: the numbers of the layers that are steered; the paper takes some near the output.
        beta: the share of alpha by which partial-shared neurons are scaled up.
        gamma: the share of alpha by which specific neurons are scaled down.
        threshold: a neuron is activated in a language if its mean value is above this number.

    Returns:
        Hooks as from `ablation_hooks`, for `evaluate`, `run_with_hooks` and so on.

    Raises:
        NeuronShareError: the language has no means, the means do not fit the model, or an option cannot be used.

    Source: Pokharel et al. 2026, CLAS (arXiv 2601.16390).

    Examples:
        >>> means = ns.reference_values(model, ns.demo.prompts()[:5], position="all")
        >>> hooks = steering_hooks(model, means, "th", alpha=1.0, layers=[2, 3])
        >>> ns.evaluate(model, ns.demo.prompts()[:1].select(["en", "th"]), fwd_hooks=hooks)["correct"].tolist()
        [True, True]
    """
    alpha, beta, gamma = finite("alpha", alpha), finite("beta", beta), finite("gamma", gamma)
    widths = [layer.width for layer in neuron_layers(model, "post")]
    layers = layer_numbers("layers", layers, n_layers=len(widths))
    chosen = torch.zeros(len(widths), 1, dtype=torch.bool, device="cpu")
    chosen[layers] = True
    masks = steered(means, threshold=threshold)
    if language not in masks:
        raise NeuronShareError(f"language={language!r} has no means; use one of {', '.join(masks)}.")
    shape = (len(widths), max(widths))
    if tuple(means[language].shape) != shape:
        raise NeuronShareError(
            f"The means have shape {tuple(means[language].shape)}, and the model needs {shape}; measure them in it, "
            "with reference_values(model, prompts, position='all')."
        )
    hooks: list[tuple[str, Callable[..., Any]]] = []
    for type, factor in zip(STEERED, (1 + alpha * beta, 1 - alpha * gamma), strict=True):
        hooks += ablation_hooks(model, masks[language][type.label] & chosen, mode="scale", values=factor)
    return hooks


@explains
def steered(
    means: Mapping[str, Float[Tensor, "layer neuron"]], *, threshold: Number = 0.0
) -> dict[str, dict[str, Bool[Tensor, "layer neuron"]]]:
    """Return each language's partial-shared and specific neurons, by its mean values.

    A language has those neurons of a type that are activated in it, so that a specific neuron belongs to one language.

    Raises:
        NeuronShareError: there are fewer than two languages, or means that are not finite numbers of one shape [layer,
            neuron].

    Examples:
        >>> means = {"en": torch.tensor([[1.0, 1.0, -1.0]]), "de": torch.tensor([[1.0, -1.0, -1.0]])}
        >>> steered(means)["en"]["specific"]
        tensor([[False,  True, False]])
    """
    are_tensors = isinstance(means, Mapping) and all(isinstance(each, Tensor) for each in means.values())
    shapes = {tuple(each.shape) for each in means.values()} if are_tensors else set()
    if not are_tensors or len(means) < 2 or len(shapes) > 1 or len(*shapes) != 2:
        raise NeuronShareError(
            "means has fewer than two languages, or what is not a tensor [layer, neuron] of one shape for each; give "
            "what reference_values(model, prompts, position='all') returns."
        )
    for name, of_language in means.items():
        if not of_language.isfinite().all():
            raise NeuronShareError(f"Language {name!r}: a mean is NaN or infinite; give finite ones.")
    threshold = finite("threshold", threshold)
    activated = torch.stack([of_language.cpu() for of_language in means.values()]) > threshold
    types = neuron_types(activated)
    return {
        language: {type.label: (types == type) & of_language for type in STEERED}
        for language, of_language in zip(means, activated, strict=True)
    }
