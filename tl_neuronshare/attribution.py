"""How much a neuron contributes: pure functions of its value and its output weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def generation_impact(
    post: Float[Tensor, "*batch neuron"],
    W_out: Float[Tensor, "neuron d_model"],  # noqa: N803
) -> Float[Tensor, "*batch neuron"]:
    """How much each neuron writes to the residual stream: |m| times the length of its row of W_out.

    In the dtype of `post`, but at least float32. Use raw weights: folding and centring move the lengths of the rows by
    up to 8 %.

    Source: the paper's contribution score (arXiv 2406.09265v1).

    Example:
        >>> generation_impact(torch.tensor([-2.0, 1.0]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([10.,  1.])
    """
    norms: Tensor = torch.linalg.vector_norm(W_out, dim=-1, dtype=torch.promote_types(W_out.dtype, torch.float32))
    return post.abs() * norms
