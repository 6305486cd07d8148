"""What a neuron contributes: pure functions of its value, its output weights and the unembedding.

Let m be a neuron's value, v its row of W_out, and E[y] the unembedding's column of a token y. The paper's two scores
are |m| |v|, how much the neuron writes, and m (v . E[y]), how much it pushes y. Both leave out the final norm.
`NormFormula` has two directions that can replace E[y] to take the norm into account. The same formula describes a norm
between the MLP and the residual stream, as in Gemma 2 and 3 and in OLMo 2 and 3: it then replaces v.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import count_true


@explains
def generation_impact(
    post: Float[Tensor, "*batch neuron"],
    W_out: Float[Tensor, "*#batch neuron d_model"],  # noqa: N803
) -> Float[Tensor, "*batch neuron"]:
    """Return how much each neuron writes to the residual stream: |m| times the length of its row of W_out.

    The result is a length in the residual stream, in at least float32. W_out belongs to one layer, or has leading axes
    that fit those of `post`, for example model.W_out [layer, neuron, d_model]. Use raw weights: folding and centring
    change the lengths of the rows by up to 8 %.

    Source: the paper's contribution score (arXiv 2406.09265v1).

    Examples:
        >>> generation_impact(torch.tensor([-2.0, 1.0]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([10.,  1.])
    """
    _require_neurons(post, W_out)
    return post.abs() * lengths(W_out)


def lengths(W_out: Float[Tensor, "*layers neuron d_model"]) -> Float[Tensor, "*layers neuron"]:  # noqa: N803
    """Return the length of each neuron's row of W_out, in at least float32.

    Examples:
        >>> lengths(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([5., 1.])
    """
    norms: Tensor = torch.linalg.vector_norm(W_out, dim=-1, dtype=torch.promote_types(W_out.dtype, torch.float32))
    return norms


@explains
def correctness_impact(
    post: Float[Tensor, "*batch neuron"],
    W_out: Float[Tensor, "*#batch neuron d_model"],  # noqa: N803
    unembedding: Float[Tensor, "*#batch d_model"],
) -> Float[Tensor, "*batch neuron"]:
    """Return how much each neuron pushes one token: m times (its row of W_out . the token's column of the unembedding).

    The result is in units of the token's logit as it would be without a final norm, in at least float32. `unembedding`
    is one token's column for the whole batch, or one for each row ([row, 1, d_model] where `post` is [row, layer,
    neuron]). W_out belongs to one layer, or has leading axes that fit those of `post`. Use raw weights. To take the
    final norm into account, give a direction of `NormFormula` instead of the unembedding.

    Source: the paper's effective score (arXiv 2406.09265v1).

    Examples:
        >>> W_out = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> correctness_impact(torch.tensor([-2.0, 1.0]), W_out, torch.tensor([1.0, 0.5]))
        tensor([-10.0000,   0.5000])
    """
    _require_neurons(post, W_out)
    if unembedding.ndim == 0 or W_out.shape[-1] != unembedding.shape[-1]:
        raise NeuronShareError(
            f"W_out writes to {W_out.shape[-1]} dimensions, and unembedding has shape {tuple(unembedding.shape)}; give "
            "both of one model."
        )
    return post * projected(W_out, unembedding)


def _require_neurons(post: Tensor, W_out: Tensor) -> None:  # noqa: N803
    """Refuse values and rows of different numbers of neurons."""
    if post.ndim == 0 or W_out.ndim < 2 or post.shape[-1] != W_out.shape[-2]:
        raise NeuronShareError(
            f"post has shape {tuple(post.shape)} and W_out {tuple(W_out.shape)}; give [..., neuron] and "
            "[..., neuron, d_model] of one layer."
        )


def projected(
    W_out: Float[Tensor, "*layers neuron d_model"],  # noqa: N803
    direction: Float[Tensor, "*batch d_model"],
) -> Float[Tensor, "*result neuron"]:
    """Return the dot product of each neuron's row of W_out with a direction, in at least float32.

    Examples:
        >>> projected(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([1.0, 0.5]))
        tensor([5.0000, 0.5000])
    """
    dtype = torch.promote_types(W_out.dtype, torch.float32)
    direction, rows = direction.to(dtype), W_out.to(dtype)
    return direction @ rows.T if rows.ndim == 2 else (rows @ direction.unsqueeze(-1)).squeeze(-1)


def largest(scores: Float[Tensor, "*batch neuron"], k: int) -> Bool[Tensor, "*batch neuron"]:
    """Mark the k largest scores of each row; among equal scores, those that come first.

    Examples:
        >>> largest(torch.tensor([1.0, 3.0, 1.0, 1.0]), 2)
        tensor([ True,  True, False, False])
    """
    least = scores.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    marked = scores >= least
    # Usually no score equals the least. On a GPU, waiting for this answer would take longer than ranking those that do.
    if scores.device.type != "cpu" or (count_true(marked) > k).any():
        above, equal = scores > least, scores == least
        marked = above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    return marked


@dataclass(frozen=True)
class NormFormula:
    """What a norm does to a vector r, without its bias: c(r) / s * w.

    Here w is the norm's weight, c(x) is x - mean(x) for a LayerNorm and x for an RMSNorm, and s = sqrt(mean(c(r)^2) +
    eps) is the scale. For the norm before the unembedding, a token's logit is (c(r) / s * w + bias) . E[y].

    Attributes:
        weight: one number for each coordinate, or 1 where the norm has no weight or it is folded.
        centres: whether the norm subtracts the mean, as a LayerNorm does.
        eps: the number that is added to the mean square.
        divides: whether there is a scale; without one, the formula multiplies by the weight, and 1 leaves r as it is.
    """

    weight: Float[Tensor, " d_model"] | float = 1.0
    centres: bool = True
    eps: float = 1e-5
    divides: bool = True

    @classmethod
    def times(cls, factor: float) -> NormFormula:
        """Return the formula that only multiplies; by 1, it is that of a model without a norm.

        Examples:
            >>> NormFormula.times(0.5)(torch.tensor([3.0, 1.0]))
            tensor([1.5000, 0.5000])
        """
        return cls(factor, centres=False, divides=False)

    @property
    def is_identity(self) -> bool:
        """Whether the formula leaves every vector as it is."""
        return not (self.divides or self.centres or isinstance(self.weight, Tensor)) and self.weight == 1

    def __call__(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the norm's output for a vector, without its bias.

        Examples:
            >>> NormFormula(weight=2.0, eps=0.0)(torch.tensor([3.0, 1.0]))
            tensor([ 2., -2.])
        """
        return self.weighted(residual) / self.scale(residual)

    def weighted(self, vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return what the norm makes of vectors, before they are divided by the scale.

        Examples:
            >>> NormFormula(weight=2.0).weighted(torch.tensor([3.0, 1.0]))
            tensor([ 2., -2.])
        """
        return self._centred(vectors) * self.weight

    def scale(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """Return the number by which the norm divides a vector.

        Examples:
            >>> NormFormula(eps=0.0).scale(torch.tensor([3.0, 1.0]))
            tensor([1.])
        """
        if not self.divides:
            return torch.ones_like(residual[..., :1])
        return (self._centred(residual).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def unscaled(self, unembedding: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the direction in which the dot product with a vector grows, before it is divided by the scale.

        Examples:
            >>> NormFormula(weight=2.0).unscaled(torch.tensor([1.0, 0.0]))
            tensor([ 1., -1.])
        """
        return self._centred(unembedding * self.weight)

    def frozen(
        self, unembedding: Float[Tensor, "*batch d_model"], residual: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Return the direction in which the logit grows if the scale stays as it is for this residual stream.

        Examples:
            >>> norm, r, y = NormFormula(weight=2.0), torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0])
            >>> bool(torch.isclose(norm.frozen(y, r) @ r, norm(r) @ y))
            True
        """
        return self.unscaled(unembedding) / self.scale(residual)

    def full(
        self, unembedding: Float[Tensor, "*batch d_model"], residual: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Return the logit's gradient at this residual stream, which includes the change of the scale.

        Examples:
            >>> norm, r, y = NormFormula(weight=2.0), torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0])
            >>> step = torch.tensor([1e-3, 0.0, 0.0])
            >>> torch.isclose(norm.full(y, r) @ step, (norm(r + step) - norm(r)) @ y, rtol=1e-2)
            tensor(True)
        """
        if not self.divides:
            return self.unscaled(unembedding)
        normalised = self._centred(residual) / self.scale(residual)
        along = (unembedding * self.weight * normalised).mean(-1, keepdim=True)
        return (self.unscaled(unembedding) - along * normalised) / self.scale(residual)

    def to(self, like: Tensor) -> NormFormula:
        """Return the same norm, with its weight on the device and in the dtype of a tensor."""
        return replace(self, weight=self.weight.to(like)) if isinstance(self.weight, Tensor) else self

    def _centred(self, vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return vectors - vectors.mean(-1, keepdim=True) if self.centres else vectors
