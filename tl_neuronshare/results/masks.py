"""Masks: boolean tensors over neurons, [layer, neuron] or [example, layer, neuron].

Masks are combined as tensors: `a | b`, `a & b`, `~a`. This module adds random and matched controls of the same size,
files, tables, and the neuron files of other tools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import count, distinct, is_count, names_of, path_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.launch import warn
from tl_neuronshare.maths.activation import count_true
from tl_neuronshare.maths.draws import NEAR, drawn, matched
from tl_neuronshare.results.files import read_tensors, write_tensors
from tl_neuronshare.results.routing import Experts, named

_KIND = "tl_neuronshare.masks/1"
# The order of the languages in the files of LAPE's authors.
_LAPE_LANGUAGES = ("en", "zh", "fr", "es", "vi", "id", "ja")


@explains
def random_like(
    mask: Bool[Tensor, "*batch layer neuron"],
    *,
    generator: torch.Generator,
    within: Bool[Tensor, "*#batch #layer neuron"] | None = None,
) -> Bool[Tensor, "*batch layer neuron"]:
    """Draw random neurons, as many in each layer (of each example) as the mask has; they may be the mask's own.

    Args:
        mask: the mask whose size the draw has.
        generator: a generator on the CPU, seeded by you.
        within: which neurons to draw from; all by default. Where layers are narrower than the widest, it must leave out
            places that are not neurons (`sharing.types != 255`).

    Raises:
        NeuronShareError: the mask is not boolean, or in some layer `within` has fewer neurons than are needed.

    Examples:
        >>> mask = torch.tensor([[True, True, False, False], [False, False, False, True]])
        >>> random_like(mask, generator=torch.Generator().manual_seed(0)).sum(-1)
        tensor([2, 1])
    """
    check_mask(mask)
    within = torch.ones_like(mask) if within is None else within
    check_mask(within)
    noise = torch.rand(mask.shape, generator=generator, dtype=torch.float32, device="cpu")
    return drawn(noise.to(mask.device), count_true(mask), within.to(mask.device))


@explains
def magnitude_matched_like(
    mask: Bool[Tensor, "*batch layer neuron"],
    impact: Float[Tensor, "*batch layer neuron"],
    *,
    generator: torch.Generator,
) -> Bool[Tensor, "*batch layer neuron"]:
    """Match each of the mask's neurons, in random order, with the unused neuron outside it that is nearest by impact.

    Args:
        mask: the mask whose neurons are matched, within their layer.
        impact: a number for each neuron, such as `generation_impact`; NaN where there is no neuron.
        generator: a generator on the CPU, seeded by you.

    Warns:
        UserWarning: some matches are not near (within a tenth); the warning says what share of them.

    Raises:
        NeuronShareError: the mask is not boolean, impact has a different shape, or a layer has fewer neurons
            outside the mask than in it.

    Examples:
        >>> mask = torch.tensor([[True, False, False, True]])
        >>> impact = torch.tensor([[1.0, 5.0, 1.05, 5.1]])
        >>> magnitude_matched_like(mask, impact, generator=torch.Generator())
        tensor([[False,  True,  True, False]])
    """
    check_mask(mask)
    if impact.shape != mask.shape:
        raise NeuronShareError(
            f"impact has shape {tuple(impact.shape)}, the mask {tuple(mask.shape)}; give one number for each neuron."
        )
    if not impact.isfinite()[mask.to(impact.device)].all():
        raise NeuronShareError(
            "impact is NaN or infinite for some of the mask's neurons; give finite numbers for these."
        )
    noise = torch.rand(mask.shape, generator=generator, dtype=torch.float32, device="cpu").to(impact.device)
    match, is_far = matched(noise, mask.to(impact.device), impact)
    if share := is_far.sum().item() / max(1, mask.sum().item()):
        warn(f"For {share:.1%} of the mask's neurons no unused neuron outside it has an impact within {NEAR:.0%}.")
    return match.to(mask.device)


def check_mask(mask: Any) -> None:
    """Refuse a mask that is not a boolean tensor over neurons."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim not in (2, 3):
        is_what = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise NeuronShareError(
            f"The mask is {is_what}; give a boolean tensor [layer, neuron] or [example, layer, neuron], "
            "such as sharing.mask('all-shared')."
        )


def scattered(
    chosen: Bool[Tensor, "language place"], is_neuron: Bool[Tensor, "layer neuron"], languages: Iterable[str]
) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """Return a mask for each language from choices among the real neurons, which are in order layer by layer.

    Examples:
        >>> is_neuron = torch.tensor([[True, False], [True, True]])
        >>> scattered(torch.tensor([[True, False, True]]), is_neuron, ["en"])["en"]
        tensor([[ True, False],
                [False,  True]])
    """
    nothing = torch.zeros_like(is_neuron)
    return {
        language: nothing.masked_scatter(is_neuron, of_language)
        for language, of_language in zip(languages, chosen, strict=True)
    }


@explains
def save_masks(masks: Mapping[str, Bool[Tensor, "*batch layer neuron"]], path: str | Path) -> None:
    """Write masks, by name, to one safetensors file.

    Raises:
        NeuronShareError: a value that is not a mask, or no such directory.

    Examples:
        >>> masks = {"sun": torch.eye(2, dtype=torch.bool), "moon": torch.ones(1, 2, 3, dtype=torch.bool)}
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_masks(masks, f"{folder}/masks.safetensors")
        ...     list(load_masks(f"{folder}/masks.safetensors"))
        ['moon', 'sun']
    """
    if not isinstance(masks, Mapping) or not all(isinstance(name, str) for name in masks):
        raise NeuronShareError("masks is not a mapping from names to masks; give {'all-shared': mask, ...}.")
    for mask in masks.values():
        check_mask(mask)
    # Copies, since two masks may be views of one tensor, which safetensors refuses.
    write_tensors({name: mask.to("cpu", copy=True).contiguous() for name, mask in masks.items()}, path, kind=_KIND)


@explains
def load_masks(path: str | Path) -> dict[str, Bool[Tensor, "*batch layer neuron"]]:
    """Read what `save_masks` wrote: masks by name, in alphabetical order.

    Raises:
        NeuronShareError: no such file, a file of another kind, or a damaged one.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_masks({"sun": torch.eye(2, dtype=torch.bool)}, f"{folder}/masks.safetensors")
        ...     load_masks(f"{folder}/masks.safetensors")["sun"]
        tensor([[ True, False],
                [False,  True]])
    """
    return read_tensors(path, lambda masks, header: masks, kind=_KIND)


@explains
def mask_to_frame(mask: Bool[Tensor, "*batch layer neuron"], *, experts: Experts | None = None) -> pd.DataFrame:
    """List a mask's neurons in a table: layer, neuron, and before them example where the mask has that axis.

    Args:
        mask: the mask.
        experts: in a mixture of experts, `sharing.routing.experts`. The table then has two more columns, which name a
            neuron by its expert: `expert` and `index`, the neuron's place in it. The expert is -1 where every token
            uses the neuron: in a shared expert, whose index is counted from its first neuron, or in a dense layer.

    Raises:
        NeuronShareError: the mask is not one, or `experts` is for a different number of layers.

    Examples:
        >>> print(mask_to_frame(torch.tensor([[False, True], [True, False]])).to_string(index=False))
         layer  neuron
             0       1
             1       0
        >>> print(mask_to_frame(torch.tensor([[False, False, True, True]]), experts=[(2, 2)]).to_string(index=False))
         layer  neuron  expert  index
             0       2       1      0
             0       3       1      1
    """
    check_mask(mask)
    names = ("example", "layer", "neuron")[-mask.ndim :]
    frame = pd.DataFrame(mask.nonzero().numpy(force=True), columns=list(names))
    if experts is not None:
        _check_experts(experts, mask.shape[-2])
        for layer, of_layer in enumerate(experts):
            rows = frame["layer"] == layer
            parts = named(frame.loc[rows, "neuron"].to_numpy(), of_layer or (0, 0))
            frame.loc[rows, ["expert", "index"]] = np.stack([*parts.values()], axis=1)
        frame = frame.astype({"expert": "int64", "index": "int64"})
    return frame


def _check_experts(experts: Experts, n_layers: int) -> None:
    """Refuse what does not say for each layer how many experts it has and how many neurons each of them."""
    if not isinstance(experts, Sequence) or not all(
        layer is None or (isinstance(layer, Sequence) and len(layer) == 2 and all(is_count(n) for n in layer))
        for layer in experts
    ):
        raise NeuronShareError(f"experts is a {type(experts).__name__}; give sharing.routing.experts.")
    if len(experts) != n_layers:
        raise NeuronShareError(
            f"experts is for {len(experts)} layers, but there are {n_layers}; give sharing.routing.experts."
        )


def _place(row: Mapping[Any, Any], experts: Experts, d_mlp: int) -> int:
    """Return the place in its layer of a neuron that is named by its expert."""
    layer, expert, index = row["layer"], row["expert"], row["index"]
    if layer not in range(len(experts)):
        raise NeuronShareError(f"The table has layer {layer}; there are {len(experts)}, counted from 0.")
    n_experts, size = experts[layer] or (0, 0)
    beyond = n_experts * size  # where the neurons begin that every token uses
    if expert not in range(-1, n_experts) or index not in range(size if expert >= 0 else d_mlp - beyond):
        raise NeuronShareError(
            f"The table has neuron {index} of expert {expert} in layer {layer}, which has {n_experts} experts of "
            f"{size} neurons, counted from 0; expert -1 is for the neurons that every token uses."
        )
    return int(index + (beyond if expert < 0 else expert * size))


@explains
def mask_from_frame(
    frame: pd.DataFrame,
    *,
    n_layers: int,
    d_mlp: int,
    n_examples: int | None = None,
    experts: Experts | None = None,
) -> Bool[Tensor, "*batch layer neuron"]:
    """Make a mask from a table with the columns layer and neuron; with `n_examples`, also example.

    With `experts` (`sharing.routing.experts`), the columns expert and index can take the place of neuron, as in the
    table of `mask_to_frame`.

    Raises:
        NeuronShareError: a column is missing, or a number is beyond the shape.

    Examples:
        >>> mask_from_frame(pd.DataFrame({"layer": [0, 1], "neuron": [1, 0]}), n_layers=2, d_mlp=2)
        tensor([[False,  True],
                [ True, False]])
    """
    columns = {"layer": count("n_layers", n_layers), "neuron": count("d_mlp", d_mlp)}
    if experts is not None and "neuron" not in frame and {"layer", "expert", "index"} <= set(frame):
        _check_experts(experts, n_layers)
        frame = frame.assign(neuron=[_place(row, experts, d_mlp) for row in frame.to_dict("records")])
    if n_examples is not None:
        columns = {"example": n_examples, **columns}
    elif "example" in frame:
        raise NeuronShareError(
            "The table has a column example; say n_examples=, or drop the column for one mask of all examples."
        )
    missing = [column for column in columns if column not in frame]
    if missing:
        raise NeuronShareError(
            f"The table lacks the column(s) {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}."
        )
    for column, size in columns.items():
        beyond = frame[~frame[column].isin(range(size))]
        if len(beyond):
            raise NeuronShareError(
                f"Row {beyond.index[0]} of the table has {column} {beyond[column].iloc[0]}; "
                f"there are {size}, counted from 0."
            )
    mask = torch.zeros(*columns.values(), dtype=torch.bool, device="cpu")
    mask[tuple(torch.tensor(frame[column].to_numpy(dtype="int64"), device="cpu") for column in columns)] = True
    return mask


@explains
def load_lape_neurons(
    path: str | Path, *, d_mlp: int, languages: Sequence[str] | None = None
) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """Read the language neurons that LAPE's authors publish (`MODEL.neuron.pth`), as one mask a language.

    Args:
        path: their file: a list of languages, each a list of layers, each a tensor of neurons.
        d_mlp: how many neurons a layer of that model has (BLOOM-7B 16384, LLaMA-2-7B 11008).
        languages: the languages' names, in the order of the file; en zh fr es vi id [ja] by default.

    Raises:
        NeuronShareError: no such file, a different number of languages, or neurons beyond d_mlp.

    Source: Tang et al. 2024 (arXiv 2402.16438). The file is read with `weights_only`: no code of it is run.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     torch.save([[torch.tensor([1])], [torch.tensor([0, 2])]], f"{folder}/X.neuron.pth")
        ...     load_lape_neurons(f"{folder}/X.neuron.pth", d_mlp=3, languages=["en", "zh"])["zh"]
        tensor([[ True, False,  True]])
    """
    d_mlp = count("d_mlp", d_mlp)
    path = path_of("path", path)
    if not path.is_file():
        raise NeuronShareError(f"There is no file {str(path)!r}; give a downloaded MODEL.neuron.pth.")
    try:
        neurons_of = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling may raise
        raise NeuronShareError(f"{str(path)!r} cannot be read ({error}); is it a MODEL.neuron.pth?") from error
    if not _is_lape(neurons_of):
        raise NeuronShareError(
            f"{str(path)!r} is not a list of languages, each a list of layers of neurons' numbers; give a "
            "MODEL.neuron.pth."
        )
    names = _LAPE_LANGUAGES[: max(6, len(neurons_of))] if languages is None else names_of("languages", languages)
    if len(names) != len(neurons_of):
        raise NeuronShareError(
            f"{str(path)!r} holds {len(neurons_of)} languages, and {len(names)} are named ({', '.join(names)}); "
            "name them with languages=[...], in the order of the file."
        )
    distinct("languages", names, what="names of languages")
    masks = {}
    for name, layers in zip(names, neurons_of, strict=True):
        mask = torch.zeros(len(layers), d_mlp, dtype=torch.bool, device="cpu")
        for layer, neurons in enumerate(layers):
            beyond = neurons[(neurons < 0) | (neurons >= d_mlp)]
            if len(beyond):
                raise NeuronShareError(
                    f"Language {name!r}, layer {layer}: neuron {int(beyond[0])} is beyond d_mlp={d_mlp}; "
                    "give the d_mlp of the model that the file is of."
                )
            mask[layer, neurons.long()] = True
        masks[name] = mask
    return masks


def _are_neurons(value: Any) -> bool:
    """Whether this is a plain tensor of whole numbers; an empty one may have any dtype."""
    is_plain = (
        isinstance(value, Tensor) and value.layout is torch.strided and value.ndim == 1 and not value.is_quantized
    )
    is_whole = is_plain and value.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return is_whole or (is_plain and not value.numel())


def _is_lape(value: Any) -> bool:
    """Whether this is a list of languages, each with as many layers, each layer a tensor of whole numbers."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(layers, list) and all(map(_are_neurons, layers)) for layers in value)
        and len({len(layers) for layers in value}) == 1
    )
