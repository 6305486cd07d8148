"""Load a model through TransformerLens with its raw weights: from the hub, a directory or a GGUF file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any, Literal, get_args

import torch

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import flag, path_of
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.launch import local_rank
from tl_neuronshare.models import points, verification
from tl_neuronshare.models.lens import (
    LensModel,
    architecture_of,
    has_hooked_transformer,
    nothing_installed,
    version_of_transformer_lens,
)

Backend = Literal["auto", "hooked", "bridge"]


@explains
def load_model(
    name_or_path: str | Path,
    *,
    backend: Backend = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    trust_remote_code: bool = False,
) -> LensModel:
    """Load a model with its raw weights, in which nothing is folded or centred.

    Args:
        name_or_path: a name on the Hugging Face hub, a local directory with a model and its tokenizer, or a .gguf file,
            which Transformers dequantises (package `gguf`).
        backend: `hooked` is a HookedTransformer (TransformerLens 3 only), `bridge` a TransformerBridge.
            `auto` is `hooked` on TransformerLens 3 for the names that HookedTransformer knows, unless it would run code
            that you did not trust. It is `bridge` for all other names, for local directories and files, and on
            TransformerLens 4.
        device: the device to put the model on; by default TransformerLens chooses (a GPU if there is one). Under
            `accelerate launch` or `torchrun`, the default is a GPU of its own for each process.
        dtype: the dtype of the weights; float32 by default.
        verify: whether every function that runs this model first makes the checks of `verify` that it depends on. A
            HookedTransformer that is made from a directory is compared with the Hugging Face model at once. False
            accepts the model as it is, at your own risk; the metadata of results then says `verified: False`.
        trust_remote_code: whether to run Python code that comes with the model. Some models need it, because
            Transformers does not know their architecture. Such code can do anything that you can do: read it first.

    Raises:
        NeuronShareError: the backend is unknown, `hooked` is asked for on TransformerLens 4 or for a file, there is
            nothing to load, the model comes with code that you did not trust, TransformerLens cannot make this model,
            a HookedTransformer computes something different from the model it was made from, or a launch has more
            processes than GPUs.

    Examples:
        >>> model = load_model(demo_directory, backend="bridge", device="cpu")
        >>> model.cfg.n_layers
        4
    """
    _check(name_or_path, backend, device, dtype, trust_remote_code=trust_remote_code, verify=verify)
    path = path_of("name_or_path", name_or_path)
    is_file = path.suffix.lower() == ".gguf" and not path.is_dir()
    if is_file and not path.is_file():
        raise NeuronShareError(f"There is no file {str(path)!r}; check the path.")
    if not path.exists() and (path.is_absolute() or str(name_or_path).startswith(("./", "../", "~"))):
        raise NeuronShareError(f"There is no directory {str(path)!r}; check the path.")
    if backend == "hooked" and (is_file or not has_hooked_transformer()):
        raise NeuronShareError(
            f'{path.name} is a GGUF file, which only a TransformerBridge can load; use backend="bridge".'
            if is_file
            else f"TransformerLens {version_of_transformer_lens()} no longer has HookedTransformer; "
            'use backend="bridge", or install "transformer_lens>=3.9,<4".'
        )
    # The absolute path, since TransformerLens has names of its own: gemma-3-270m would be a model on the hub.
    name = str(path.absolute() if path.exists() else name_or_path)
    is_hooked = (
        not is_file
        and has_hooked_transformer()
        and (
            backend == "hooked"
            or (backend == "auto" and _known_name(name) and (trust_remote_code or not _runs_code(name)))
        )
    )
    how: dict[str, Any] = {
        "device": _own_gpu() if device is None else device,
        "dtype": dtype or torch.float32,
        "trust_remote_code": trust_remote_code,
    }
    source: Any = None  # the Hugging Face model that a HookedTransformer was made from
    try:
        with nothing_installed():
            if is_file:
                model = _from_gguf(path, **how)
            elif is_hooked:
                model, source = (_hooked_from_directory if path.is_dir() else _hooked_by_name)(name, **how)
            else:
                model = _boot(name, **how)
    except NeuronShareError:
        raise
    except Exception as error:  # Transformers and TransformerLens raise all kinds
        what = "The file" if is_file else "The directory" if path.is_dir() else "The name"
        reason, advice = _explained(error, name, is_hooked=is_hooked)
        raise NeuronShareError(f"{what} {name!r} could not be loaded: {reason}\n{advice}") from error
    points.install(model)
    if not verify:
        verification.do_not_verify(model)
    elif source is not None:
        verification.compare_with_its_source(model, source)
    return model


def _check(name_or_path: Any, backend: Any, device: Any, dtype: Any, *, trust_remote_code: Any, verify: Any) -> None:
    """Refuse arguments of `load_model` that are not of the right kind."""
    if backend not in get_args(Backend):
        raise NeuronShareError(f"backend={backend!r} is unknown; use one of {', '.join(get_args(Backend))}.")
    if not isinstance(name_or_path, str | Path) or not str(name_or_path):
        raise NeuronShareError(f"name_or_path={name_or_path!r}; give a name on the hub, a directory or a .gguf file.")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise NeuronShareError(f"dtype={dtype!r} is unknown; give a floating-point one, such as torch.bfloat16.")
    flag("trust_remote_code", trust_remote_code)
    flag("verify", verify)
    if device is None:
        return
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise NeuronShareError(f"device={device!r} is unknown; give one of torch's, such as cpu or cuda.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise NeuronShareError(f"device={device!r}: there is no such device here; use cpu.")


def _own_gpu() -> torch.device | None:
    """Return this process's own GPU, if it is one of a launch on a machine with GPUs; else None."""
    number = local_rank()
    if number is None or not torch.cuda.is_available():
        return None
    n_gpus = torch.cuda.device_count()
    if number >= n_gpus:
        raise NeuronShareError(
            f"Process {number} of this launch has no GPU of its own, since there are {n_gpus}; start as many processes "
            "as there are GPUs, or give device=."
        )
    return torch.device("cuda", number)


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


def _runs_code(name: str) -> bool:
    """Return whether HookedTransformer runs the code that comes with the model of this name without being asked to."""
    from transformer_lens.loading_from_pretrained import NEED_REMOTE_CODE_MODELS, get_official_model_name

    return _known_name(name) and get_official_model_name(name).startswith(NEED_REMOTE_CODE_MODELS)


def _explained(error: Exception, name: str, *, is_hooked: bool) -> tuple[str, str]:
    """Return why a model could not be loaded, in one short paragraph, and what to do."""
    said = str(error)
    lens = f"TransformerLens {version_of_transformer_lens()}"
    if "trust_remote_code=True" in said:  # as an advice of Transformers
        return (
            "it comes with Python code of its own, which runs only if you trust it.",
            "Read that code, and load the model with load_model(..., trust_remote_code=True).",
        )
    if "Available architectures" in said or "Valid official model names" in said:  # followed by a list of hundreds
        unknown = "HookedTransformer does not know this name" if is_hooked else f"{lens} does not support {_kind(name)}"
        return f"{unknown}.", (
            'Use backend="bridge".' if is_hooked else "Use a different version of TransformerLens, or another model."
        )
    reason = shorten(said if isinstance(error, OSError | ImportError) else f"{type(error).__name__}: {said}", 400)
    if isinstance(error, ImportError):
        return reason, "Install the package that it names."
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return reason, "There is too little memory; use a smaller dtype, such as dtype=torch.bfloat16."
    if isinstance(error, OSError):
        return reason, (
            "Give a directory with config.json, weights and a tokenizer, a .gguf file (pip install gguf), or a name on "
            "the Hugging Face hub; without a network, download the model elsewhere (hf download NAME --local-dir DIR) "
            "and give DIR."
        )
    kind = "HookedTransformer" if is_hooked else "TransformerBridge"
    return f"{lens} cannot make a {kind} of it. {reason}", (
        'Use backend="bridge".'
        if is_hooked
        else "See whether the files are complete; if they are, use a different "
        "version of TransformerLens or Transformers."
    )


def _kind(name: str) -> str:
    """Return the architecture that a directory's config.json names; else `its architecture`."""
    try:
        config = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "its architecture"
    return ", ".join(config.get("architectures") or [str(config.get("model_type", "its architecture"))])


def _hooked_by_name(
    name: str, *, device: str | torch.device | None, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[LensModel, None]:
    """Load a HookedTransformer by its name on the hub; there is no Hugging Face model to compare it with.

    Raises:
        NeuronShareError: TransformerLens would run the model's own code, as it does for some names without being asked.
    """
    from transformer_lens import HookedTransformer

    if not trust_remote_code and _runs_code(name):
        raise NeuronShareError(
            f"TransformerLens {version_of_transformer_lens()} runs the Python code that comes with {name!r}, if there "
            'is any. Read that code and use trust_remote_code=True, or use backend="bridge".'
        )
    trust = {"trust_remote_code": True} if trust_remote_code else {}
    hooked = HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=dtype, **trust)
    hooked.generation_config = _generation_config(name)
    return hooked, None


def _hooked_from_directory(
    name: str, *, device: str | torch.device | None, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[LensModel, Any]:
    """Make a HookedTransformer from a directory, which TransformerLens refuses to do, and return it with its source.

    Raises:
        NeuronShareError: TransformerLens takes the model for a different architecture.
    """
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hugging_face = AutoModelForCausalLM.from_pretrained(
        name, dtype=dtype, attn_implementation="eager", trust_remote_code=trust_remote_code
    ).eval()
    # TransformerLens takes whatever has "llama" or "gemma" in its path for a certain model of that name.
    with TemporaryDirectory() as nameless:
        for file in (Path(name) / "config.json", *Path(name).glob("*.py")):
            shutil.copy(file, nameless)
        trust = {"trust_remote_code": True} if trust_remote_code else {}
        cfg = get_pretrained_model_config(nameless, device=device, dtype=dtype, **trust)
    cfg.model_name, cfg.tokenizer_name = Path(name).name, name
    architecture = type(hugging_face).__name__
    if cfg.original_architecture != architecture:
        raise NeuronShareError(
            f"TransformerLens {version_of_transformer_lens()} takes the directory {name!r} for a "
            f'{cfg.original_architecture}, but it holds a {architecture}; use backend="bridge".'
        )
    weights = get_pretrained_state_dict(name, cfg, hugging_face)
    hooked = HookedTransformer(cfg, AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code))
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


def _boot(name: str, *, device: str | torch.device | None, dtype: torch.dtype, trust_remote_code: bool) -> LensModel:
    """Load a bridge; if it has an encoder, its tokenizer gets back the special tokens that TransformerLens replaces."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    model: LensModel = TransformerBridge.boot_transformers(
        name, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    if model.tokenizer is not None and architecture_of(model) != "decoder":
        as_saved = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        if hasattr(as_saved, "backend_tokenizer"):  # only fast tokenizers have a post-processor
            model.tokenizer.backend_tokenizer.post_processor = as_saved.backend_tokenizer.post_processor
    return model


def _from_gguf(
    path: Path, *, device: str | torch.device | None, dtype: torch.dtype, trust_remote_code: bool
) -> LensModel:
    """Load the weights in a GGUF file into a bridge, dequantised."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    hugging_face = AutoModelForCausalLM.from_pretrained(
        **where, dtype=dtype, attn_implementation="eager", trust_remote_code=trust_remote_code
    ).eval()
    config = hugging_face.config
    config.architectures = [type(hugging_face).__name__]  # TransformerLens needs it, and the file does not name it
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are no longer quantised
    tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=trust_remote_code)
    model = TransformerBridge.boot_transformers(
        str(path), hf_model=hugging_face, tokenizer=tokenizer, device=device, dtype=dtype
    )
    model.cfg.model_name = path.stem
    return model  # type: ignore[no-any-return]
