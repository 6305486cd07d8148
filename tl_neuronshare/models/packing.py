"""Which prompts may share a forward pass without changing one another, and what a pass costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tl_neuronshare.models.lens import LensModel, nested


@dataclass(frozen=True)
class Packing:
    """Which prompts may share a batch without changing one another, and what a batch costs.

    Attributes:
        pads: whether prompts may be padded at all; else only those of equal length share a batch.
        boundary: longer texts than this are computed otherwise, as whole batches, so that those on either side of it
            never share one; None where there is no such length.
        tokens_a_pass: a forward pass costs about as much as so many tokens, besides those that it has.
    """

    pads: bool = True
    boundary: int | None = None
    tokens_a_pass: int = 128

    def counting(self, n_more: int) -> Packing:
        """The same for sizes that count so many tokens which are not run."""
        return replace(self, boundary=None if self.boundary is None else self.boundary + n_more)

    def are_long(self, n_tokens: int) -> bool:
        """Whether so many tokens are beyond the boundary."""
        return self.boundary is not None and n_tokens > self.boundary

    def crosses(self, n_tokens: int, n_more: int) -> bool:
        """Whether a text gets beyond the boundary by so many more tokens."""
        return self.are_long(n_tokens + n_more) and not self.are_long(n_tokens)


def rope_boundary(model: LensModel) -> int | None:
    """Texts of more tokens than this are computed otherwise, whole batches at a time (long RoPE, as of Phi-3)."""
    config = nested(model, "original_model.config")
    given = getattr(config.get_text_config(), "rope_parameters", None) if config is not None else None
    of_layers = [given, *(part for part in given.values() if isinstance(part, dict))] if given else []
    of_long = [part for part in of_layers if part.get("rope_type") == "longrope"]
    return min((int(part["original_max_position_embeddings"]) for part in of_long), default=None)
