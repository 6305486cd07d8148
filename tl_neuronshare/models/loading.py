"""Load a model through TransformerLens with its raw weights: from the hub, a directory or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, get_args

import torch

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models import verification
from tl_neuronshare.models.lens import LensModel, architecture_of, has_hooked_transformer, version_of_transformer_lens

Backend = Literal["auto", "hooked", "bridge"]


def load_model(
    name_or_path: str | Path,
    *,
    backend: Backend = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
) -> LensModel:
    """Load a model with its raw weights, in which nothing is folded or centred.

    Args:
        name_or_path: a name on the Hugging Face hub, a local directory with a model and its tokenizer, or a .gguf file,
            which Transformers dequantises (package `gguf`).
        backend: `hooked` is a HookedTransformer (TransformerLens 3 only), `bridge` a TransformerBridge.
            `auto` is `hooked` on TransformerLens 3 for the names that HookedTransformer knows, and `bridge` for all
            other names, for local directories and files, and on TransformerLens 4.
        device: the device to put the model on; by default TransformerLens chooses (a GPU if there is one).
        dtype: the dtype of the weights; float32 by default.
        verify: whether every function that runs this model first makes the checks of `verify` that it depends on. A
            HookedTransformer that is made from a directory is compared with the Hugging Face model at once. False
            accepts the model as it is, at your own risk; the metadata of results then says `verified: False`.

    Raises:
        NeuronShareError: the backend is unknown, `hooked` is asked for on TransformerLens 4 or for a file, there is
            nothing to load, or a HookedTransformer computes something different from the model it was made from.

    Example:
        >>> model = load_model(demo_directory, backend="bridge", device="cpu")
        >>> model.cfg.n_layers
        4
    """
    if backend not in get_args(Backend):
        raise NeuronShareError(f"backend={backend!r} is unknown; use one of {', '.join(get_args(Backend))}.")
    if not isinstance(name_or_path, str | Path) or not str(name_or_path):
        raise NeuronShareError(f"name_or_path={name_or_path!r}; give a name on the hub, a directory or a .gguf file.")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise NeuronShareError(f"dtype={dtype!r} is unknown; give one of torch's, such as torch.bfloat16.")
    path = Path(name_or_path).expanduser()
    is_file = path.suffix.lower() == ".gguf" and not path.is_dir()
    if is_file and not path.is_file():
        raise NeuronShareError(f"There is no file {str(path)!r}; check the path.")
    if backend == "hooked" and (is_file or not has_hooked_transformer()):
        raise NeuronShareError(
            f'{path.name} is a GGUF file, which only a TransformerBridge can load; use backend="bridge".'
            if is_file
            else f"TransformerLens {version_of_transformer_lens()} no longer has HookedTransformer; "
            'use backend="bridge", or install "transformer_lens>=3.9,<4".'
        )
    name = str(path if path.exists() else name_or_path)
    dtype = dtype or torch.float32
    source: Any = None  # the Hugging Face model that a HookedTransformer was made from
    try:
        if is_file:
            model = _from_gguf(path, device=device, dtype=dtype)
        elif has_hooked_transformer() and (backend == "hooked" or (backend == "auto" and _known_name(name))):
            model, source = _load_hooked(name, local=path.is_dir(), device=device, dtype=dtype)
        else:
            model = _boot(name, device=device, dtype=dtype)
    except NeuronShareError:
        raise
    except (OSError, ValueError, ImportError) as error:
        what = "The file" if is_file else "The directory" if path.is_dir() else "The name"
        raise NeuronShareError(
            f"{what} {name!r} could not be loaded: {shorten(str(error), 500)}\n"
            "Give a directory with config.json, weights and a tokenizer, a .gguf file (pip install gguf), or a name on "
            "the Hugging Face hub; without a network, download the model elsewhere (hf download NAME --local-dir DIR) "
            "and give DIR."
        ) from error
    if not verify:
        verification.do_not_verify(model)
    elif source is not None:
        verification.compare_with_its_source(model, source)
    return model


def _known_name(name: str) -> bool:
    """Return whether HookedTransformer knows this name; a local directory with this name goes first."""
    from transformer_lens.loading_from_pretrained import get_official_model_name

    if Path(name).is_dir():
        return False
    try:
        get_official_model_name(name)
    except ValueError:
        return False
    return True


def _load_hooked(
    name: str, *, local: bool, device: str | torch.device | None, dtype: torch.dtype
) -> tuple[LensModel, Any]:
    """Load a HookedTransformer, and return it with the Hugging Face model that it was made from, where there is one.

    TransformerLens loads names on the hub. It refuses directories, so that here the weights are converted step by step.
    """
    from transformer_lens import HookedTransformer

    if not local:
        hooked = HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=dtype)
        hooked.generation_config = _generation_config(name)
        return hooked, None
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        cfg = get_pretrained_model_config(name, device=device, dtype=dtype)
    except (AttributeError, KeyError, NotImplementedError) as error:
        raise NeuronShareError(
            f"TransformerLens {version_of_transformer_lens()} cannot make a HookedTransformer from the directory "
            f"{name!r}: it converts this architecture by its name on the hub only. "
            'Use backend="bridge", or give the name.'
        ) from error
    hugging_face = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation="eager").eval()
    weights = get_pretrained_state_dict(name, cfg, hugging_face)
    hooked = HookedTransformer(cfg, AutoTokenizer.from_pretrained(name))
    if cfg.positional_embedding_type == "alibi":  # TransformerLens would warn that there is no W_pos
        weights["pos_embed.W_pos"] = hooked.pos_embed.W_pos
    hooked.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    hooked.generation_config = hugging_face.generation_config
    return hooked, hugging_face


def _generation_config(name: str) -> Any:
    """Return the hub's settings for generation, which name the tokens that end an answer; None where it has none."""
    from transformer_lens.loading_from_pretrained import get_official_model_name
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(get_official_model_name(name))
    except OSError:
        return None


def _boot(name: str, *, device: str | torch.device | None, dtype: torch.dtype) -> LensModel:
    """Load a bridge; if it has an encoder, its tokenizer gets back the special tokens that TransformerLens replaces."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    model: LensModel = TransformerBridge.boot_transformers(name, device=device, dtype=dtype)
    if architecture_of(model) != "decoder":
        as_saved = getattr(AutoTokenizer.from_pretrained(name), "backend_tokenizer", None)
        if as_saved is not None:  # only fast tokenizers have a post-processor
            model.tokenizer.backend_tokenizer.post_processor = as_saved.post_processor
    return model


def _from_gguf(path: Path, *, device: str | torch.device | None, dtype: torch.dtype) -> LensModel:
    """Load the weights in a GGUF file into a bridge, dequantised."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    hugging_face = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, attn_implementation="eager").eval()
    config = hugging_face.config
    config.architectures = [type(hugging_face).__name__]  # TransformerLens needs it, and the file does not name it
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are no longer quantised
    model = TransformerBridge.boot_transformers(
        str(path), hf_model=hugging_face, tokenizer=AutoTokenizer.from_pretrained(**where), device=device, dtype=dtype
    )
    model.cfg.model_name = path.stem
    return model  # type: ignore[no-any-return]
