"""The key-value cache of both model classes: what tokens leave behind, so that those after them run without them.

Prompts are padded with a mask made from their lengths, which a HookedTransformer's cache keeps, and which is kept here
for a bridge's.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models.forward import forward
from tl_neuronshare.models.inputs import Inputs
from tl_neuronshare.models.lens import LensModel, device_of, is_bridge, name_of

# The kinds of layers of a Hugging Face cache that hold no more, or nothing, where a layer uses those of another one.
_KEYS_AND_VALUES = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}


@runtime_checkable
class Cache(Protocol):
    """The tokens that were run so far: called with more, it runs and keeps them."""

    def __call__(self, inputs: Inputs) -> Float[Tensor, "row position vocabulary"]:
        """Run tokens after those so far, keep them, and return their logits."""
        ...

    def of_rows(self, rows: Int[Tensor, " row"]) -> Cache:
        """Return the cache of these rows, of which each may be taken several times. It keeps no more tokens."""
        ...


@contextmanager
def empty_cache(model: LensModel, n_rows: int) -> Iterator[Cache]:
    """Give a cache without tokens. Forward passes of a bridge use it for as long as the context lasts."""
    if not is_bridge(model):
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        yield _HookedCache(model, TransformerLensKeyValueCache.init_cache(model.cfg, device_of(model), n_rows))
        return
    from transformers import DynamicCache

    cache = DynamicCache(config=model.original_model.config.get_text_config())  # type: ignore[attr-defined]
    with _by_its_old_name(model):
        yield _BridgeCache(model, cache, torch.ones(n_rows, 0, dtype=torch.long, device="cpu"))


class _HookedCache:
    """A HookedTransformer's cache, which keeps the mask of the tokens that it holds."""

    def __init__(self, model: LensModel, cache: Any) -> None:
        self.model, self.cache = model, cache

    def __call__(self, inputs: Inputs) -> Float[Tensor, "row position vocabulary"]:
        # Without a mask, a HookedTransformer with a cache makes its own mask from the padding token.
        masked = replace(inputs, mask=inputs.shown().long())
        logits: Tensor = forward(self.model, masked, past_kv_cache=self.cache)
        return logits

    def of_rows(self, rows: Int[Tensor, " row"]) -> _HookedCache:
        return _HookedCache(self.model, _RowsOfHooked(self.cache, rows))


class _RowsOfHooked:
    """Some rows of a HookedTransformer's cache. The tensors of these are made layer by layer, and not kept."""

    def __init__(self, cache: Any, rows: Int[Tensor, " row"]) -> None:
        self.cache, self.rows = cache, rows

    def __getitem__(self, layer: int) -> _RowsOfEntry:
        return _RowsOfEntry(self.cache[layer], self.rows)

    def append_attention_mask(self, mask: Tensor) -> Tensor:
        """Return the mask of the rows so far with that of new tokens."""
        before = _selected(self.cache.previous_attention_mask, self.rows)
        return torch.cat([before, mask.to(before.device)], dim=1)


class _RowsOfEntry:
    """Some rows of one layer of a HookedTransformer's cache."""

    def __init__(self, entry: Any, rows: Int[Tensor, " row"]) -> None:
        self.entry, self.rows = entry, rows

    @property
    def past_keys(self) -> Tensor:
        """The keys of the rows, of which the model needs only the shape."""
        return self.entry.past_keys[:1].expand(len(self.rows), -1, -1, -1)  # type: ignore[no-any-return]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the rows so far with those of new tokens."""
        before = _selected(self.entry.past_keys, self.rows), _selected(self.entry.past_values, self.rows)
        return torch.cat([before[0], keys], dim=1), torch.cat([before[1], values], dim=1)


class _BridgeCache:
    """The Hugging Face cache of a bridge, which needs the mask of all tokens so far."""

    def __init__(self, model: LensModel, cache: Any, mask: Int[Tensor, "row position"]) -> None:
        self.model, self.cache, self.mask = model, cache, mask
        parameters = inspect.signature(model.original_model.forward).parameters  # type: ignore[attr-defined]
        self.name = "cache" if "cache" in parameters else "past_key_values"

    def __call__(self, inputs: Inputs) -> Float[Tensor, "row position vocabulary"]:
        self.mask = torch.cat([self.mask, inputs.shown().long()], dim=1)
        options = {self.name: self.cache, "use_cache": True}
        logits: Tensor = forward(self.model, replace(inputs, mask=self.mask), **options)
        return logits

    def of_rows(self, rows: Int[Tensor, " row"]) -> _BridgeCache:
        for kind in {type(layer).__name__ for layer in self.cache.layers} - _KEYS_AND_VALUES:
            raise NeuronShareError(f"{name_of(self.model)} keeps more than its tokens' keys and values ({kind}).")
        cache = copy.copy(self.cache)
        cache.layers = [_rows_of_layer(layer, rows) for layer in self.cache.layers]
        return _BridgeCache(self.model, cache, self.mask[rows])


def _rows_of_layer(layer: Any, rows: Int[Tensor, " row"]) -> Any:
    """Return some rows of one layer of a Hugging Face cache. Their tensors are made when needed, and not kept."""

    def update(*args: Any, **options: Any) -> Any:
        selected = copy.copy(layer)
        selected.keys, selected.values = _selected(layer.keys, rows), _selected(layer.values, rows)
        return selected.update(*args, **options)

    of_rows = copy.copy(layer)
    of_rows.update = update
    return of_rows


def _selected(tensor: Tensor, rows: Int[Tensor, " row"]) -> Tensor:
    return tensor.index_select(0, rows.to(tensor.device))


@contextmanager
def _by_its_old_name(model: LensModel) -> Iterator[None]:
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
