"""Draw neurons at random, or match them to others by impact: tensors in, tensors out."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import count_true, widened

NEAR = 0.1  # two impacts are near if they differ by at most this share of the sought impact


def drawn(
    noise: Float[Tensor, "*batch layer neuron"],
    count: Int[Tensor, "*batch layer"],
    within: Bool[Tensor, "*#batch #layer neuron"],
) -> Bool[Tensor, "*batch layer neuron"]:
    """Draw `count` neurons of each layer: those with the most noise among the neurons in `within`.

    Examples:
        >>> noise, within = torch.tensor([[0.9, 0.5, 0.7]]), torch.tensor([[False, True, True]])
        >>> drawn(noise, torch.tensor([1]), within)
        tensor([[False, False,  True]])
    """
    _check_enough(count, count_true(within).expand_as(count), "to draw from")
    noise = noise if within.all() else noise.masked_fill(~within, -1.0)
    places = noise.shape[-1] - rearrange(count, "... -> ... 1").clamp(min=1)
    marked = (noise >= _sorted(noise).gather(-1, places)) & (count > 0)[..., None]
    uneven = count_true(marked) != count  # neurons with equal noise, of which only some are drawn
    if uneven.any():
        order = noise[uneven].argsort(-1, descending=True)
        first = torch.arange(noise.shape[-1], device=noise.device) < count[uneven][:, None]
        marked[uneven] = torch.zeros_like(first).scatter(-1, order, first)
    return marked


def _sorted(noise: Float[Tensor, "*batch neuron"]) -> Float[Tensor, "*batch neuron"]:
    """Sort each row; on a CPU by numpy, which is many times faster than torch."""
    return torch.from_numpy(np.sort(noise.numpy())) if noise.device.type == "cpu" else noise.sort(-1).values


def matched(
    noise: Float[Tensor, "*batch layer neuron"],
    mask: Bool[Tensor, "*batch layer neuron"],
    impact: Float[Tensor, "*batch layer neuron"],
) -> tuple[Bool[Tensor, "*batch layer neuron"], Bool[Tensor, "*batch layer neuron"]]:
    """Return matches for a mask's neurons, and which of these have no match that is near.

    In each layer the mask's neurons choose in turn, the one with the most noise first. Each takes the unused neuron
    outside the mask whose impact is nearest to its own; of several, the one that comes first. All layers and examples
    are computed together.

    Examples:
        >>> mask, impact = torch.tensor([[True, False, False]]), torch.tensor([[1.0, 2.0, 4.0]])
        >>> matched(torch.rand(1, 3), mask, impact)
        (tensor([[False,  True, False]]), tensor([[ True, False, False]]))
    """
    count = count_true(mask)
    free = ~mask & impact.isfinite()
    _check_enough(count, count_true(free), "outside the mask")
    shape, width = mask.shape, mask.shape[-1]
    impacts, left = widened(impact).reshape(-1, width), count.flatten().numpy(force=True)
    n_turns = int(left.max(initial=0))
    choosing = noise.masked_fill(~mask, -1.0).reshape(-1, width).topk(n_turns).indices
    of_choosing = impacts.gather(-1, choosing)
    order, sought = choosing.numpy(force=True), of_choosing.double().numpy(force=True)
    matches, badly_matched = (np.zeros(impacts.shape, dtype=bool) for _ in range(2))
    unused = _Unused(impacts.masked_fill(~free.reshape(-1, width), torch.inf).cpu())
    starts = unused.places_of(of_choosing.cpu())
    for turn in range(n_turns):
        (rows,) = (left > turn).nonzero()  # those in which a neuron is left to choose
        seeker, value = order[rows, turn], sought[rows, turn]
        neuron, distance = unused.take_nearest(rows, value, starts[rows, turn])
        matches[rows, neuron] = True
        badly_matched[rows, seeker] = distance > NEAR * np.abs(value)

    def as_mask(marked: NDArray[np.bool_]) -> Bool[Tensor, "*batch layer neuron"]:
        return torch.from_numpy(marked).reshape(shape).to(mask.device)

    return as_mask(matches), as_mask(badly_matched)


class _Unused:
    """The neurons of each row that nobody has taken yet, sorted by impact.

    The place of a neuron that is taken leads to the next places on both sides, and `_free_place` shortens the ways that
    it goes. So the time to take one hardly grows with the number of neurons.

    Args:
        impacts: the impact of each neuron; infinite if it must not be taken.
    """

    def __init__(self, impacts: Float[Tensor, "row neuron"]) -> None:
        n_rows, width = impacts.shape
        ranked, by_impact = impacts.sort(stable=True)  # equal ones in the order of the neurons
        # One place more on either side, for "none".
        self._neuron = np.full((n_rows, width + 2), width, dtype=np.int32)
        self._impact = np.full((n_rows, width + 2), np.inf, dtype=ranked.numpy().dtype)
        self._neuron[:, 1:-1], self._impact[:, 1:-1], self._impact[:, 0] = by_impact, ranked, -np.inf
        places = np.arange(width + 2, dtype=np.int32)
        self._first_of_equal = np.zeros_like(self._neuron)
        np.multiply(self._impact[:, 1:] != self._impact[:, :-1], places[1:], out=self._first_of_equal[:, 1:])
        np.maximum.accumulate(self._first_of_equal, axis=-1, out=self._first_of_equal)
        self._above, self._below = (np.tile(places, (n_rows, 1)) for _ in range(2))

    def places_of(self, impacts: Float[Tensor, "row sought"]) -> NDArray[np.intp]:
        """The first place of each row with at least this impact."""
        places = torch.searchsorted(torch.from_numpy(self._impact), impacts)
        return places.clamp(max=self._impact.shape[-1] - 1).numpy()

    def take_nearest(
        self, rows: NDArray[np.intp], impact: NDArray[np.float64], start: NDArray[np.intp]
    ) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        """Take from each of these rows the neuron whose impact is nearest; return it, and how far its impact is off.

        `start` is what `places_of` gives for these impacts.
        """
        above = _free_place(self._above, rows, start)
        below = _free_place(self._below, rows, start - 1)
        below = _free_place(self._above, rows, self._first_of_equal[rows, below])
        places = np.stack([below, above])
        with np.errstate(invalid="ignore"):
            distance = np.abs(self._impact[rows, places] - impact)
        neuron = self._neuron[rows, places]
        is_above = (distance[1] < distance[0]) | ((distance[1] == distance[0]) & (neuron[1] < neuron[0]))
        taken = np.where(is_above, above, below)
        self._above[rows, taken], self._below[rows, taken] = taken + 1, taken - 1
        return np.where(is_above, neuron[1], neuron[0]), np.where(is_above, distance[1], distance[0])


def _free_place(
    following: NDArray[np.int32], rows: NDArray[np.intp], places: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Go from each row's place to the first that leads to itself; each other place on the way then leads farther."""
    while True:
        nearer: NDArray[np.integer] = following[rows, places]
        farther = following[rows, nearer]
        if (nearer == farther).all():
            return nearer
        following[rows, places] = places = farther


def _check_enough(count: Int[Tensor, "*batch layer"], available: Int[Tensor, "*batch layer"], where: str) -> None:
    """Refuse to take more neurons than there are."""
    short = count > available
    if short.any():
        *example, layer = (int(index) for index in short.nonzero()[0])
        place = (f"example {example[-1]}, " if example else "") + f"layer {layer}"
        raise NeuronShareError(
            f"{place}: {int(count[short][0])} neurons are needed, but only {int(available[short][0])} are {where}; "
            "use a different control, or fewer neurons."
        )
