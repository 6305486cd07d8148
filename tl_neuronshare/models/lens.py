"""What is used of a TransformerLens model, whichever class it is of, and what state it is in.

Both classes serve: `HookedTransformer` (TransformerLens 3) and `TransformerBridge` (3 and 4), which runs a Hugging Face
model inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError


@runtime_checkable
class LensModel(Protocol):
    """What is used of a TransformerLens model; any HookedTransformer or TransformerBridge fits."""

    cfg: Any
    tokenizer: Any
    blocks: Any

    if TYPE_CHECKING:  # TransformerLens 3's bridge makes it anew each time, and so for each check of a type too

        @property
        def hook_dict(self) -> Mapping[str, Any]:
            """Every hook point by name."""
            ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A forward pass."""
        ...

    def hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        """Hook functions for as long as the context lasts."""
        ...

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Tokens after a prompt."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """The model's weights."""
        ...

    def modules(self) -> Iterator[torch.nn.Module]:
        """The model's modules."""
        ...


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens still has HookedTransformer (4.0 removed it)."""
    return int(version_of_transformer_lens().split(".")[0]) < 4


def version_of_transformer_lens() -> str:
    """The installed version."""
    return version("transformer_lens")


def is_bridge(model: LensModel) -> bool:
    """Whether this is a TransformerBridge, which runs a Hugging Face model inside."""
    return hasattr(model, "original_model")


def check_model(model: object) -> None:
    """Refuse what is no TransformerLens model, has no tokenizer, or is no decoder.

    Raises:
        NeuronShareError: says which of the three, and what to load in its place.
    """
    if not all(hasattr(model, name) for name in ("cfg", "hooks", "run_with_hooks")):
        raise NeuronShareError(
            f"A {type(model).__name__} is no TransformerLens model; load one with tl_neuronshare.load_model(name), "
            "HookedTransformer.from_pretrained_no_processing(name) or TransformerBridge.boot_transformers(name)."
        )
    if getattr(model, "tokenizer", None) is None:
        raise NeuronShareError(f"{name_of(model)} has no tokenizer; give it one with model.set_tokenizer(...).")
    hugging_face = getattr(model, "original_model", None)
    decoder = (
        getattr(model.cfg, "attention_dir", "causal") == "causal"  # type: ignore[attr-defined]
        if hugging_face is None
        else hugging_face.can_generate() and not getattr(hugging_face.config, "is_encoder_decoder", False)
    )
    if not decoder:
        raise NeuronShareError(
            f"{name_of(model)} ({type(hugging_face or model).__name__}) is no decoder-only language model; "
            "encoders are not read yet."
        )


def block_of(model: LensModel, hook: str) -> Any:
    """The transformer block that a hook named blocks.N... is in."""
    return model.blocks[int(hook.split(".")[1])]


def nested(owner: Any, name: str) -> Any:
    """The attribute of this name (dots lead inwards), or None."""
    try:
        return attrgetter(name)(owner)
    except (AttributeError, NotImplementedError, TypeError):  # what bridges raise for what an architecture lacks
        return None


def tensor_of(module: Any, name: str) -> Tensor | None:
    """The tensor of this name (dots lead inwards), or None."""
    found = nested(module, name)
    return found if isinstance(found, Tensor) else None


def device_of(model: LensModel) -> torch.device:
    """Where the model takes its tokens."""
    parameter = next(model.parameters())
    # Weights that accelerate has offloaded are on the meta device between forward passes.
    return torch.device(model.cfg.device) if parameter.is_meta else parameter.device


def dtype_of(model: LensModel) -> torch.dtype:
    """Of its weights."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


@contextmanager
def loaded(module: torch.nn.Module) -> Iterator[None]:
    """The module's weights where they can be read: accelerate keeps offloaded ones on the meta device."""
    with ExitStack() as stack:
        for part in module.modules():
            if any(parameter.is_meta for parameter in part.parameters(recurse=False)) and hasattr(part, "_hf_hook"):
                hook: Any = part._hf_hook
                stack.callback(hook.post_forward, part, None)
                hook.pre_forward(part)
        yield


@contextmanager
def left_as_found(model: LensModel | torch.nn.Module) -> Iterator[None]:
    """Run without gradients and dropout, and put every module's training mode back, whatever happens."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def is_processed(model: LensModel) -> bool:
    """Whether norms are folded into the weights, or a bridge imitates a HookedTransformer."""
    if is_bridge(model):
        return bool(getattr(model, "compatibility_mode", False) or getattr(model, "_weights_processed", False))
    return str(model.cfg.normalization_type).endswith("Pre")


def is_edited(model: LensModel) -> bool:
    """Whether a bridge's attention weights were changed after it was made.

    It keeps copies of fused ones, split into query, key and value, so that the Hugging Face module does not change.
    """
    for module in model.modules():
        split = getattr(module, "split_qkv_matrix", None)
        original = nested(module, "original_component")
        if split is not None and original is not None:
            with loaded(module):
                for name, part in zip("qkv", split(original), strict=True):
                    if not torch.equal(part.weight, getattr(module, name).weight):
                        return True
    return False


def name_of(model: Any) -> str:
    """What to call the model in messages and metadata."""
    return str(getattr(model.cfg, "model_name", None) or type(model).__name__)
