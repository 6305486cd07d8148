"""Totals over examples that come in pieces: they have a fixed size, and are the same however the examples are cut.

Counts are added as whole numbers. Other numbers are added one example after the other, in the examples' order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Counts:
    """Sum counts of neurons and their squares over examples, and keep the least and the most.

    Examples:
        >>> counts = Counts()
        >>> counts.add(torch.tensor([[1], [3]]))  # example layer
        >>> counts.add(torch.tensor([[2]]))
        >>> {name: values.tolist() for name, values in counts.statistics([4]).items()}
        {'mean': [50.0], 'std': [20.41241452319315], 'min': [25.0], 'max': [75.0]}
    """

    def __init__(self) -> None:
        self._n = 0
        self._totals: tuple[Tensor, ...] = ()

    def add(self, counts: Int[Tensor, "example *name layer"]) -> None:
        """Add the counts of more examples."""
        total, squares, least, most = counts.sum(0), counts.square().sum(0), counts.amin(0), counts.amax(0)
        if self._n:
            total, squares = self._totals[0] + total, self._totals[1] + squares
            least, most = torch.minimum(self._totals[2], least), torch.maximum(self._totals[3], most)
        self._n += len(counts)
        self._totals = total, squares, least, most

    def statistics(self, widths: Sequence[int]) -> dict[str, Float[Tensor, "*name layer"]]:
        """Give mean, standard deviation (the population's), least and most in percent of each layer's width."""
        total, squares, least, most = self._totals
        exact, exact_squares = (values.numpy().astype(object) for values in (total, squares))
        # Python's integers have no limit, so that nothing is lost where the two are nearly the same.
        deviations = [math.sqrt(each) for each in (self._n * exact_squares - exact * exact).flat]
        values = {
            "mean": total.double() / self._n,
            "std": torch.tensor(deviations, dtype=torch.float64, device="cpu").reshape(total.shape) / self._n,
            "min": least.double(),
            "max": most.double(),
        }
        return {name: 100 * value / torch.tensor(widths, device="cpu") for name, value in values.items()}


class Means:
    """Average numbers over examples; NaN counts as missing.

    Attributes:
        n: how many numbers are averaged, of the shape of one example's numbers.

    Examples:
        >>> means = Means()
        >>> means.add(torch.tensor([[1.0, torch.nan], [2.0, torch.nan]], dtype=torch.float64))
        >>> means.add(torch.tensor([[3.0, torch.nan]], dtype=torch.float64))
        >>> means.means()
        tensor([2., nan], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.n = torch.zeros((), dtype=torch.long, device="cpu")
        self._total = torch.zeros((), dtype=torch.float64, device="cpu")

    def add(self, values: Float[Tensor, "example ..."]) -> None:
        """Add the numbers of more examples."""
        known = ~values.isnan()
        self.n = self.n + known.sum(0)
        values = values.double().masked_fill(~known, 0)
        self._total = one_after_the_other(np.add, self._total.expand(values.shape[1:]), values)

    def means(self) -> Float[Tensor, ...]:
        """Give the mean of all that were added; NaN where none was known."""
        return self._total / self.n


def one_after_the_other(
    operation: np.ufunc, start: Float[Tensor, ...], values: Float[Tensor, "example ..."]
) -> Float[Tensor, ...]:
    """Add (or multiply) the values of each example in turn to what there is; torch's own sums change with the shape.

    Examples:
        >>> one_after_the_other(np.multiply, torch.tensor([2.0]), torch.tensor([[3.0], [4.0]]))
        tensor([24.])
    """
    return torch.from_numpy(operation.accumulate(torch.cat([start[None], values]).numpy())[-1].copy())
