"""Which prompts may share a forward pass without changing one another, and what a pass costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tl_neuronshare.checks import is_count
from tl_neuronshare.models.lens import LensModel, nested


@dataclass(frozen=True)
class Packing:
    """Which prompts may share a batch without changing one another, and what a batch costs.

    Attributes:
        pads: whether prompts may be padded; if not, only prompts of equal length share a batch.
        boundary: the number of tokens above which the model computes a text, and its whole batch, differently; texts
            on different sides of it never share a batch. None where the model has no such boundary.
        tokens_a_pass: the fixed cost of a forward pass, as a number of tokens; it is added to the pass's own tokens.
        shares: whether prompts may share a batch at all.
    """

    pads: bool = True
    boundary: int | None = None
    tokens_a_pass: int = 128
    shares: bool = True

    def counting(self, n_more: int) -> Packing:
        """Return the same packing for sizes that include `n_more` tokens which the model does not run."""
        return replace(self, boundary=None if self.boundary is None else self.boundary + n_more)

    def are_long(self, n_tokens: int) -> bool:
        """Return whether a text of so many tokens is beyond the boundary."""
        return self.boundary is not None and n_tokens > self.boundary

    def crosses(self, n_tokens: int, n_more: int) -> bool:
        """Return whether `n_more` tokens take a text beyond the boundary."""
        return self.are_long(n_tokens + n_more) and not self.are_long(n_tokens)


def rope_boundary(model: LensModel) -> int | None:
    """Return the number of tokens above which whole batches are computed differently; None where there is none.

    Models with long RoPE have such a boundary, for example Phi-3.
    """
    config = nested(model, "original_model.config")
    rope = getattr(config.get_text_config(), "rope_parameters", None) if config is not None else None
    # Some models have one set of parameters for all layers, others one for each kind of layer.
    parameters = [rope, *(part for part in rope.values() if isinstance(part, dict))] if rope else []
    long_rope = [part for part in parameters if part.get("rope_type") == "longrope"]
    return min((int(part["original_max_position_embeddings"]) for part in long_rope), default=None)


def windows(model: LensModel) -> list[int]:
    """Return how many tokens attention reaches back in layers where it does not reach to the start; often none.

    Configurations name these windows and chunks in many ways, and some of the numbers may mean something else, which
    does no harm: a text that is longer than each of them is tried.
    """
    config = nested(model, "original_model.config")
    settings = {} if config is None else config.get_text_config().to_dict()
    named = [number for name, number in settings.items() if "window" in name or "chunk" in name]
    widths = [*named, nested(model, "cfg.window_size")]
    return sorted({width for width in widths if is_count(width) and width < model.cfg.n_ctx})
