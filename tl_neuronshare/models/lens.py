"""The parts of a TransformerLens model that the package uses, and the state that a model is in.

Both model classes work: `HookedTransformer` (TransformerLens 3) and `TransformerBridge` (3 and 4), which runs a Hugging
Face model inside.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tl_neuronshare.errors import NeuronShareError

Architecture = Literal["decoder", "encoder", "encoder-decoder"]


@runtime_checkable
class LensModel(Protocol):
    """The members of a model that the package uses; every HookedTransformer and TransformerBridge has them."""

    cfg: Any
    tokenizer: Any

    # Only for mypy: beartype would ask for it at each check, and TransformerLens 3's bridge then lists all its hooks.
    if TYPE_CHECKING:

        @property
        def hook_dict(self) -> Mapping[str, Any]:
            """Return every hook point by its name."""
            ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a forward pass."""
        ...

    def hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        """Install hook functions for as long as the context lasts."""
        ...

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tokens that the model generates after a prompt."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """Iterate over the model's weights."""
        ...

    def modules(self) -> Iterator[torch.nn.Module]:
        """Iterate over the model's modules."""
        ...


def has_hooked_transformer() -> bool:
    """Return whether the installed TransformerLens still has HookedTransformer, which 4.0 removed."""
    return int(version_of_transformer_lens().split(".")[0]) < 4


def version_of_transformer_lens() -> str:
    """Return the installed version of TransformerLens."""
    return version("transformer_lens")


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Keep TransformerLens from installing packages for as long as the context lasts.

    When a bridge of a model that also reads images is made, TransformerLens runs `pip install torchvision`, which may
    replace the user's torch. Without torchvision such a bridge has no processor for images, and reads text as before.
    """
    check_call = subprocess.check_call

    def refuse(command: Any, *args: Any, **options: Any) -> Any:
        if isinstance(command, list) and "install" in command:
            raise OSError(f"{' '.join(command)}: not run")
        return check_call(command, *args, **options)

    subprocess.check_call = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.check_call = check_call


def is_bridge(model: LensModel) -> bool:
    """Return whether the model is a TransformerBridge, which runs a Hugging Face model inside."""
    return hasattr(model, "original_model")


def check_model(model: object) -> None:
    """Refuse a value that is not a TransformerLens model, has no tokenizer, or is not a language model.

    Raises:
        NeuronShareError: one of these is the case; the message says which one, and what to load instead.
    """
    if not all(hasattr(model, name) for name in ("cfg", "hooks", "run_with_hooks")):
        raise NeuronShareError(
            f"A {type(model).__name__} is not a TransformerLens model; load one with tl_neuronshare.load_model(name), "
            "HookedTransformer.from_pretrained_no_processing(name) or TransformerBridge.boot_transformers(name)."
        )
    hugging_face = getattr(model, "original_model", None)
    what_it_reads = getattr(hugging_face, "main_input_name", "input_ids")
    if getattr(model, "tokenizer", None) is None and what_it_reads != "input_ids":
        raise NeuronShareError(
            f"{name_of(model)} ({type(hugging_face).__name__}) reads {what_it_reads.replace('_', ' ')} and no text; "
            "use a language model."
        )
    if getattr(model, "tokenizer", None) is None:
        raise NeuronShareError(f"{name_of(model)} has no tokenizer; give it one with model.set_tokenizer(...).")
    is_bidirectional = getattr(model.cfg, "attention_dir", "causal") != "causal"  # type: ignore[attr-defined]
    is_hooked_encoder = type(model).__name__.startswith("HookedEncoder")
    if is_hooked_encoder or (is_bidirectional and not hasattr(model, "original_model")):
        raise NeuronShareError(
            f"{name_of(model)} ({type(model).__name__}) is an encoder, which is read as a TransformerBridge only; load "
            'it with load_model(name, backend="bridge").'
        )


def architecture_of(model: LensModel) -> Architecture:
    """Return whether the model is a decoder, an encoder, or an encoder with a decoder.

    Examples:
        >>> architecture_of(model)
        'decoder'
    """
    hugging_face = getattr(model, "original_model", None)
    if hugging_face is None:
        return "decoder"
    config = hugging_face.config
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    # A BertLMHeadModel says that it can generate, but only `is_decoder` hides later tokens from earlier ones.
    is_bert = config.model_type in ("bert", "roberta") and not config.is_decoder
    return "encoder" if is_bert or not hugging_face.can_generate() else "decoder"


def require_architecture(model: LensModel, *allowed: Architecture, why: str) -> None:
    """Refuse a model whose architecture is not one of those that are allowed.

    Args:
        model: the model.
        allowed: the architectures that pass.
        why: why the others are refused, and what to do: whole sentences that follow the model's name and architecture.

    Raises:
        NeuronShareError: the model is of a different architecture.
    """
    if (architecture := architecture_of(model)) not in allowed:
        raise NeuronShareError(f"{name_of(model)} is an {architecture}. {why}")


def check_position(model: LensModel, position: object) -> None:
    """Refuse a position that the model does not have: `last` in an encoder, and `mask` in others.

    Elsewhere `last` is the token that predicts the answer. In an encoder, this is the mask token.

    Raises:
        NeuronShareError: the model is an encoder, and the position is `last`; or the model has no mask token.
    """
    is_mask = isinstance(position, str) and position == "mask"
    if is_mask and (architecture_of(model) != "encoder" or model.tokenizer.mask_token_id is None):
        raise NeuronShareError(
            f"{name_of(model)} fills in no mask token, so that it has no position='mask'; use any, all, or a negative "
            "index."
        )
    if isinstance(position, str) and position == "last" and architecture_of(model) == "encoder":
        raise NeuronShareError(
            f"{name_of(model)} is an encoder, in which no token predicts the answer, so that position='last' has no "
            "meaning; say which token is meant, such as by a negative index (-1 is the prompt's last token)."
        )


def stacks_of(model: LensModel) -> dict[str, Any]:
    """Return the model's lists of blocks by their names, the encoder's before the decoder's.

    Examples:
        >>> [(name, len(blocks)) for name, blocks in stacks_of(model).items()]
        [('blocks', 4)]
    """
    names = ("blocks", "encoder_blocks", "decoder_blocks")
    return {name: blocks for name in names if (blocks := nested(model, name)) is not None}


def blocks_of(model: LensModel) -> Iterator[tuple[str, Any]]:
    """Iterate over all blocks with their names, such as blocks.3, in the order of `stacks_of`."""
    for stack, blocks in stacks_of(model).items():
        for number, block in enumerate(blocks):
            yield f"{stack}.{number}", block


def block_of(model: LensModel, hook: str) -> Any:
    """Return the transformer block that contains a hook with a name such as blocks.3.hook_mlp_out."""
    stack, number, *_ = hook.split(".")
    return stacks_of(model)[stack][int(number)]


def nested(owner: Any, name: str) -> Any:
    """Return the attribute with this name, or None; a dot in the name leads to an attribute of an attribute."""
    try:
        for part in name.split("."):
            # A bridge keeps a reference to some tensors from when it was made, which may have been replaced since.
            path = getattr(owner, "_property_alias_registry", {}).get(part) if part in vars(owner) else None
            owner = attrgetter(path or part)(owner)
    # Bridges raise these for a part that does not exist, or that cannot be cut into heads (a ValueError).
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None
    return owner


def tensor_of(module: Any, name: str) -> Tensor | None:
    """Return the tensor with this name, or None; dots are as in `nested`."""
    value = nested(module, name)
    return value if isinstance(value, Tensor) else None


def dequantised(linear: Any) -> Tensor | None:
    """Return the weights of a quantised linear map as floating-point numbers, [input, output]; None if nobody can.

    They are those that the module computes with. A package's own function is only believed where some rows of its
    result are what the module gives for these inputs: bitsandbytes repacks weights that it later reads wrongly.
    """
    n_inputs = nested(linear, "in_features")
    if not isinstance(n_inputs, int):
        return None
    weights = _unpacked(linear)
    some = torch.arange(0, n_inputs, max(1, n_inputs // 8), device="cpu")
    expected = _rows_of(linear, some)
    if weights is not None and (weights[some].float() - expected).abs().max() <= 0.01 * expected.abs().max():
        return weights
    return torch.cat([_rows_of(linear, part) for part in torch.split(torch.arange(n_inputs, device="cpu"), 512)])


def _unpacked(linear: Any) -> Tensor | None:
    """Return the weights as the package that quantised them gives them, [input, output]."""
    try:
        if type(linear.weight).__module__.startswith("bitsandbytes"):
            from transformers.integrations.bitsandbytes import dequantize_bnb_weight

            weights: Tensor = dequantize_bnb_weight(linear.weight, state=getattr(linear, "state", None)).T
        else:
            weights = linear.weight.dequantize().T
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    return weights if weights.shape == (linear.in_features, linear.out_features) else None


def _rows_of(linear: Any, inputs: Tensor) -> Tensor:
    """Return what a linear map adds to its output for one unit of each of these inputs."""
    is_float = linear.weight.is_floating_point()
    dtype = linear.weight.dtype if is_float else getattr(linear, "compute_dtype", None) or torch.float32
    ones = torch.zeros(len(inputs) + 1, linear.in_features, dtype=dtype, device=linear.weight.device)
    ones[torch.arange(len(inputs), device="cpu"), inputs] = 1
    with torch.no_grad():
        outputs: Tensor = linear.forward(ones).float()  # not by a call, which would run the user's hooks
    return outputs[:-1] - outputs[-1]


def quantisation_of(model: LensModel) -> str | None:
    """Return how the model's weights are quantised, such as `torchao Int8Tensor`; None if they are not."""
    kinds = {
        f"{type(weight).__module__.split('.')[0]} {type(weight).__name__}"
        for weight in model.parameters()
        if type(weight) not in (torch.nn.Parameter, Tensor) or not weight.is_floating_point()
    }
    how = nested(model, "original_model.config.quantization_config")
    settings = how.to_dict() if hasattr(how, "to_dict") else how
    if not kinds or not isinstance(settings, dict):
        return ", ".join(sorted(kinds)) or None
    said = ", ".join(f"{name}={value}" for name, value in sorted(settings.items()) if isinstance(value, str | int))
    return f"{', '.join(sorted(kinds))} ({said})"


def device_of(model: LensModel) -> torch.device:
    """Return the device on which the model takes its tokens."""
    parameter = next(model.parameters())
    # Weights that accelerate has offloaded are on the meta device between forward passes.
    return torch.device(model.cfg.device) if parameter.is_meta else parameter.device


def dtype_of(model: LensModel) -> torch.dtype:
    """Return the dtype of the model's weights."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


@contextmanager
def loaded(module: torch.nn.Module) -> Iterator[None]:
    """Load the weights that accelerate has offloaded from a module, for as long as the context lasts."""
    with ExitStack() as stack:
        for part in module.modules():
            if any(parameter.is_meta for parameter in part.parameters(recurse=False)) and hasattr(part, "_hf_hook"):
                hook: Any = part._hf_hook
                stack.callback(hook.post_forward, part, None)
                hook.pre_forward(part)
        yield


# The thread that runs each model: hooks of one thread would see the values of another's prompts.
_THREADS: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_CHOOSING = threading.Lock()


@contextmanager
def left_as_found(model: LensModel | torch.nn.Module) -> Iterator[None]:
    """Run without gradients and dropout, and restore every module's training mode, also after an error.

    Raises:
        NeuronShareError: a different thread runs the same model.
    """
    own = threading.get_ident()
    with _CHOOSING:
        is_inner = model in _THREADS
        if _THREADS.setdefault(model, own) != own:
            raise NeuronShareError(
                "A different thread runs this model, and its hooks would see both threads' prompts; run one after the "
                "other, or load the model once for each thread."
            )
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
        if not is_inner:
            del _THREADS[model]


def is_processed(model: LensModel) -> bool:
    """Return whether norms are folded into the weights; a bridge's compatibility mode may or may not do that."""
    if is_bridge(model):
        return bool(getattr(model, "_weights_processed", False))
    return str(model.cfg.normalization_type).endswith("Pre")


def is_edited(model: LensModel) -> bool:
    """Return whether a bridge's attention weights were changed after it was made.

    Where the query, key and value weights are fused in one tensor, a bridge keeps them as split copies. An edit changes
    the copies and not the Hugging Face module.
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
    """Return the model's name for messages and metadata."""
    return str(getattr(model.cfg, "model_name", None) or type(model).__name__)
