"""Average precision: neurons whose value tells the sentences of a language from all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import count, is_count, one_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import neurons_of
from tl_neuronshare.results.masks import scattered

Which = Literal["top", "bottom", "both"]
_CHUNK = 1 << 24  # values that are sorted at a time


@explains
def average_precision(
    values: Mapping[str, Float[Tensor, "sentence layer neuron"]],
    *,
    widths: Sequence[int],
    n: int = 1000,
    which: Which = "both",
) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """Find the neurons with the highest and the lowest average precision for each language.

    A neuron's value is a score for "this sentence is of the language". Its average precision is the mean, over the
    language's sentences, of the precision among all sentences with at least their value.

    Args:
        values: each neuron's mean over the tokens of each sentence, such as
            `reference_values(model, texts, each=True, position="all")` gives. Sentences need not be parallel.
        widths: how many neurons each layer has.
        n: how many neurons are chosen at the top and how many at the bottom.
        which: the top, the bottom or both.

    Returns:
        One mask for each language. A neuron may belong to several.

    Raises:
        NeuronShareError: there are fewer than two languages, the values do not fit each other or are not finite, or
            there are fewer neurons than asked for.

    Source: Kojima et al. 2024 (arXiv 2404.02431), after Suau et al. 2020. Of neurons with equal average precision, the
    first of the model are chosen.

    Examples:
        >>> values = {"en": torch.tensor([[[5.0, 1.0]], [[4.0, 0.0]]]), "de": torch.tensor([[[1.0, 1.0]]])}
        >>> average_precision(values, widths=[2], n=1, which="top")["en"]
        tensor([[ True, False]])
    """
    one_of("which", which, ("top", "bottom", "both"))
    is_neuron = _check(values, widths)
    n_asked = count("n", n) * (2 if which == "both" else 1)
    if n_asked > is_neuron.sum():
        raise NeuronShareError(f"n={n}, which={which!r}: there are only {int(is_neuron.sum())} neurons; give less.")
    found = torch.stack([precision[is_neuron] for precision in precisions(values).values()])
    chosen = torch.zeros_like(found, dtype=torch.bool)
    if which != "bottom":
        chosen.scatter_(1, found.sort(stable=True, descending=True).indices[:, :n], value=True)
    if which != "top":
        chosen.scatter_(1, found.sort(stable=True).indices[:, :n], value=True)
    return scattered(chosen, is_neuron, values)


def precisions(
    values: Mapping[str, Float[Tensor, "sentence layer neuron"]],
) -> dict[str, Float[Tensor, "layer neuron"]]:
    """Return each neuron's average precision for each language.

    Examples:
        >>> values = {"en": torch.tensor([[[5.0, 1.0]], [[4.0, 0.0]]]), "de": torch.tensor([[[1.0, 1.0]]])}
        >>> precisions(values)["en"]
        tensor([[1.0000, 0.5833]], dtype=torch.float64)
    """
    sizes = [len(of_language) for of_language in values.values()]
    first, shape = next(iter(values.values())), (len(values), *next(iter(values.values())).shape[1:])
    found = torch.zeros(shape, dtype=torch.float64, device="cpu").flatten(1)
    step = max(1, _CHUNK // sum(sizes))
    for start in range(0, first[0].numel(), step):
        part = torch.cat([each.flatten(1)[:, start : start + step].cpu() for each in values.values()])
        ranked, order = part.T.sort(-1, descending=True)  # neuron sentence
        last = _last_of_equal(ranked)
        for number, end in enumerate(torch.tensor(sizes).cumsum(0).tolist()):
            is_of = (order >= end - sizes[number]) & (order < end)
            # Sentences with equal values are all found at the last of them.
            precision = is_of.cumsum(-1, dtype=torch.float64).gather(-1, last) / (last + 1)
            found[number, start : start + step] = (precision * is_of).sum(-1) / sizes[number]
    return dict(zip(values, found.reshape(shape), strict=True))


def _last_of_equal(ranked: Float[Tensor, "neuron sentence"]) -> Tensor:
    """For each place, the last place with the same value."""
    n = ranked.shape[-1]
    places = torch.arange(n, device="cpu").expand(ranked.shape)
    is_last = torch.ones_like(ranked, dtype=torch.bool)
    is_last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    return places.where(is_last, n).flip(-1).cummin(-1).values.flip(-1)


def _check(values: Any, widths: Sequence[int]) -> Bool[Tensor, "layer neuron"]:
    """Refuse values that do not fit; return which places are neurons."""
    is_mapping = isinstance(values, Mapping) and all(isinstance(each, Tensor) for each in values.values())
    if not is_mapping or len(values) < 2:
        raise NeuronShareError("values has fewer than two languages; give {language: [sentence, layer, neuron]}.")
    if not isinstance(widths, Sequence) or not all(map(is_count, widths)):
        raise NeuronShareError(f"widths={widths!r}; give how many neurons each layer has, such as sharing.widths.")
    shape = (len(widths), max(widths, default=0))
    for language, of_language in values.items():
        if of_language.ndim != 3 or tuple(of_language.shape[1:]) != shape or not len(of_language):
            raise NeuronShareError(
                f"Language {language!r}: the values have shape {tuple(of_language.shape)}; layers of "
                f"{', '.join(map(str, widths))} neurons need (sentences, {shape[0]}, {shape[1]})."
            )
        if not of_language.isfinite().all():
            raise NeuronShareError(f"Language {language!r}: a value is NaN or infinite; give finite ones.")
    return neurons_of(widths)
