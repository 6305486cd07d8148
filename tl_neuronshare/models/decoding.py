"""Greedy decoding, token by token: with the key-value cache, or by running the whole text again for each token.

TransformerLens's own `generate` is not used, for two reasons. It finds padding by the padding token, which may also be
a prompt's BOS. And where Transformers renames an argument, as 5.24 did, a bridge loses its cache without a warning.
Here prompts are padded on the left with a mask made from their lengths, and the cache is used only where
`verification.caches` has shown that it is right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.models.inputs import Inputs, inputs_of
from tl_neuronshare.models.lens import LensModel


def greedy(
    model: LensModel,
    rows: Sequence[Sequence[int]],
    n_new: int,
    *,
    cached: bool,
    is_finished: Callable[[int, list[int]], bool] = lambda row, new: False,
) -> list[list[int]]:
    """Decode up to `n_new` tokens after each row, each time the likeliest next token.

    Hooks first see the rows, padded. Then they see one token at a time with the cache, and all tokens so
    far without it, as `ablation_hooks` expects. A finished row stays in the batch, so that the batch keeps its shape;
    the tokens after its end are not returned.

    Args:
        model: a HookedTransformer or TransformerBridge.
        rows: the prompts' tokens; of equal length where the model cannot be padded. An encoder-decoder encodes them,
            and what is decoded follows its decoder's own prompt.
        n_new: how many tokens to decode at most.
        cached: whether to use the key-value cache.
        is_finished: a function of a row's number and its new tokens that says whether the row needs no more tokens.

    Returns:
        Each row's new tokens.

    Example:
        >>> prompt = model.to_tokens("Sum of 12 and 10 →")[0].tolist()
        >>> model.tokenizer.decode(greedy(model, [prompt], 1, cached=True)[0])
        ' 22'
    """
    new: list[list[int]] = [[] for _ in rows]
    running = set(range(len(rows)))
    with next_logits(model, inputs_of(model, rows), cached=cached) as step:
        for _ in range(n_new):
            likeliest = step().argmax(-1).cpu()
            for row in sorted(running):
                new[row].append(int(likeliest[row]))
                if is_finished(row, new[row]):
                    running.remove(row)
            if not running:
                break
            step.append(likeliest)
    return new


class Step(Protocol):
    """A decoding in progress: called, it gives the logits after all tokens so far; `append` adds the next ones."""

    def __call__(self) -> Float[Tensor, "row vocabulary"]:
        """Return the logits after all tokens so far."""
        ...

    def append(self, new: Int[Tensor, " row"]) -> None:
        """Add each row's next token."""
        ...


@contextmanager
def next_logits(model: LensModel, inputs: Inputs, *, cached: bool) -> Iterator[Step]:
    """Give the `Step` that decodes after prompts, all of which end at the last position."""
    with ExitStack() as stack:
        stack.enter_context(models.last_positions_only(model, 1))
        if not cached:
            yield _Recomputing(model, inputs)
        elif models.is_bridge(model):
            stack.enter_context(_cache_by_its_old_name(model))
            yield _BridgeCache(model, inputs)
        else:
            yield _HookedCache(model, inputs)


class _Run:
    """The inputs and options of the next forward pass, which the kinds of steps below update in their own way."""

    def __init__(self, model: LensModel, inputs: Inputs, **options: Any) -> None:
        self.model, self.inputs, self.options = model, inputs, options

    def __call__(self) -> Float[Tensor, "row vocabulary"]:
        logits: Tensor = models.forward(self.model, self.inputs, **self.options)
        return logits[:, -1]


class _Recomputing(_Run):
    """A step that runs the whole text again for every token."""

    def append(self, new: Int[Tensor, " row"]) -> None:
        """Add each row's next token, which is run with all tokens before it."""
        tokens = torch.cat([self.inputs.tokens, new[:, None]], dim=1)
        self.inputs = replace(self.inputs, tokens=tokens, mask=_longer(self.inputs.mask))


class _HookedCache(_Run):
    """A step with a HookedTransformer's cache, which keeps the mask of the tokens that it holds."""

    def __init__(self, model: LensModel, inputs: Inputs) -> None:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        cache = TransformerLensKeyValueCache.init_cache(model.cfg, models.device_of(model), len(inputs))
        # Without a mask, a HookedTransformer with a cache makes its own mask from the padding token.
        super().__init__(model, replace(inputs, mask=inputs.shown().long()), past_kv_cache=cache)

    def append(self, new: Int[Tensor, " row"]) -> None:
        """Add each row's next token, which is run alone."""
        self.inputs = Inputs(new[:, None], torch.ones_like(new[:, None]))


class _BridgeCache(_Run):
    """A step with the Hugging Face cache of a bridge, which needs the mask of all tokens so far."""

    def __init__(self, model: LensModel, inputs: Inputs) -> None:
        from transformers import DynamicCache

        hugging_face = model.original_model  # type: ignore[attr-defined]
        name = "cache" if "cache" in inspect.signature(hugging_face.forward).parameters else "past_key_values"
        options = {name: DynamicCache(config=hugging_face.config.get_text_config()), "use_cache": True}
        super().__init__(model, replace(inputs, mask=inputs.shown().long()), **options)

    def append(self, new: Int[Tensor, " row"]) -> None:
        """Add each row's next token, which is run alone."""
        self.inputs = Inputs(new[:, None], _longer(self.inputs.mask))


def _longer(mask: Int[Tensor, "row position"] | None) -> Int[Tensor, "row longer"] | None:
    """Return the mask with one more position."""
    return None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)


@contextmanager
def _cache_by_its_old_name(model: LensModel) -> Iterator[None]:
    """Pass the cache to attention layers also under the name that TransformerLens reads.

    Transformers 5.24 passes it as `cache`, and TransformerLens up to 4.3 reads only `past_key_values`, and the cache
    would be lost. Layers that leave attention to Hugging Face's module need no second name.
    """
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    def rename(module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("cache") is None or "past_key_values" in options:
            return None
        return args, {**options, "past_key_values": options["cache"]}

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, AttentionBridge) and type(module).forward is not AttentionBridge.forward:
                stack.callback(module.register_forward_pre_hook(rename, with_kwargs=True).remove)
        yield
