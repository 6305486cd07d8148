"""Checks on the user's own model that this package reads, edits and decodes what the model really computes.

A bridge holds its Hugging Face model, which can run without TransformerLens for comparison (`models.unwrapped`). The
logits, the input of the down projection, and the logits under an edit are compared with it. A HookedTransformer holds
no second implementation. There the MLP's output is compared with what its neurons write, and the logits with a Hugging
Face model that the user gives. Every function that runs a model requires the checks that it depends on (`require`).
Each check is made once for a model, without the hooks that are on it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import repeat
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary, WeakSet

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models import decoding
from tl_neuronshare.models.continuing import continuing
from tl_neuronshare.models.forward import arguments_of
from tl_neuronshare.models.inputs import Inputs, inputs_of
from tl_neuronshare.models.lens import Architecture, LensModel, nothing_installed
from tl_neuronshare.models.neurons import Site, hooked_module
from tl_neuronshare.models.packing import Packing

Check = Literal[
    "logits",
    "post",
    "gate",
    "up",
    "edit post",
    "edit gate",
    "edit up",
    "output",
    "unembedding",
    "padding",
    "cache",
    "continuations",
    "long continuations",
    "decoding",
    "generate",
]
# Checks of what only some architectures have. An encoder-decoder is decoded without a cache.
_OF_ARCHITECTURE: dict[str, tuple[Architecture, ...]] = {
    "unembedding": ("decoder",),
    "cache": ("decoder",),
    "continuations": ("decoder",),
    "generate": ("decoder",),
    "decoding": ("decoder", "encoder-decoder"),
}
# If these fail, the package works in a different way, so that they refuse nothing.
ADVISORY = ("padding", "cache", "continuations", "long continuations", "generate")
# Texts of different lengths, in languages that most tokenizers know.
TEXTS = (
    "The capital of France is the city of Paris, and the river that flows through it is",
    "Вода кипит при ста градусах",
    "Zwei und drei sind",
    "法国的首都",
)
_LONGEST = 16  # how many tokens of a text are run
_N_NEW = 4  # how many tokens are decoded
_WIDEST_WINDOW = 1024  # the widest window of attention beyond which texts are tried
# The largest difference allowed between two ways to compute the same thing, relative to the largest number.
_BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_SAFE = 16  # a difference this many times as large as the one seen between two ways cannot come from rounding


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check: a number and its bound. `passed` is None where there was nothing to compare with."""

    value: float
    bound: float
    note: str = ""
    passed: bool | None = None

    @classmethod
    def of(cls, value: float, bound: float, wrong: str) -> Outcome:
        """Return an outcome that passes if the value is within its bound, and else notes what is wrong; NaN fails."""
        return cls(value, bound, "" if value <= bound else wrong, bool(value <= bound))


@explains
def verify(model: LensModel, *, texts: Sequence[str] | None = None, reference: nn.Module | None = None) -> pd.DataFrame:
    """Check on this model that the package reads, edits and decodes what the model really computes.

    Functions that run a model make the checks that they depend on, and refuse a model that fails one. This function
    makes all checks again and shows the numbers. The model is left as it was; hooks that are on it do not take part.
    A model that was loaded with `verify=False` is from now on checked like any other.

    Args:
        model: a HookedTransformer or TransformerBridge.
        texts: the texts to run, up to 32, of which the first 16 tokens are used; by default four short texts in four
            languages. Other functions rely only on checks with the default.
        reference: a Hugging Face model with the same weights, loaded with `attn_implementation="eager"`, whose logits
            are compared. For a bridge the default is the model inside it; a HookedTransformer has no default.

    Returns:
        A table with a row for each check: check, passed (missing where there is nothing to compare with), value, bound
        (which the value must not exceed), note. These are the checks:

        `logits`: the logits are those of the Hugging Face model (value: the largest difference, relative to the largest
        logit). `post`, `gate`, `up`: each layer's hook fires once, with a tensor of [row, position, neuron] that holds
        the input of the down projection (for `gate` and `up`: its two factors). `edit post`, `edit gate`, `edit up`:
        setting neurons to zero there changes the model by exactly what they write. `output`: an MLP writes its neurons'
        values (in a mixture of experts, times routing weights) times W_out. `unembedding`: the logits are the
        final norm of the residual stream times the unembedding. `padding`: longer rows in a batch do not change a row.
        `cache`: the key-value cache does not change the logits. `continuations`: nor does it where prompts are run once
        for several texts that follow them. `long continuations`: the same beyond windows of attention of up to 1,024
        tokens. `decoding`: our greedy tokens are the likeliest ones of a run without cache and padding (value: how many
        are not). `generate`: the same for the model's own `generate`, which nothing here uses.

        If `padding` fails, only prompts of equal length share a batch; none do if these change one another too. If
        `cache` fails, decoding runs the whole text for every token. If `continuations` fails, each choice is run with
        its whole prompt; if `long continuations` fails, those beyond a window are. A failure of `generate` has no
        effect. If any other check fails, the functions that depend on it refuse the model.

    Raises:
        NeuronShareError: the model is not a TransformerLens model, or its neurons cannot be read at all; or the texts
            or the reference are not of the required kind.

    Examples:
        >>> table = verify(model)
        >>> bool(table["passed"].all())
        True
        >>> list(table["check"])[:4]  # this model has no gate, and so no checks of it
        ['logits', 'post', 'edit post', 'output']
    """
    models.check_model(model)
    _check_reference(reference)
    record = _Record(_state_of(model), _rows(model, texts))
    before = _RECORDS.get(model)
    if reference is None and before is not None and before.state == record.state and before.has_reference:
        record.outcomes["logits"], record.has_reference = before.outcomes["logits"], True
    _UNVERIFIED.discard(model)
    if texts is None:  # a user's own texts may be too few to rely on
        _RECORDS[model] = record
    rows = [
        {"check": name, **{field: getattr(outcome, field) for field in ("passed", "value", "bound", "note")}}
        for name in get_args(Check)
        if _applies(model, name)
        for outcome in [_outcome(model, name, record, reference)]
    ]
    if reference is not None:
        kept = _record_of(model)
        kept.outcomes["logits"], kept.has_reference = record.outcomes["logits"], True
    table = pd.DataFrame(rows).astype({"passed": "boolean"})
    table.attrs.update(model=models.name_of(model), model_class=type(model).__name__, versions=_versions())
    return table


def require(model: LensModel, *names: str) -> None:
    """Refuse a model that fails one of these checks; each check is made once for a model and then remembered.

    Raises:
        NeuronShareError: a check fails; the message names it, its outcome, and what to do.

    Examples:
        >>> require(model, "logits", "post")
    """
    if model in _UNVERIFIED:
        return
    for name in names:
        outcome = _outcome(model, name, _record_of(model))
        if outcome.passed is False:
            raise NeuronShareError(
                f"{models.name_of(model)} ({type(model).__name__}, {_versions()}) fails the check {name!r}, which "
                f"is needed here: {outcome.note} ({outcome.value:.2g}; the bound is {outcome.bound:.2g}). "
                "tl_neuronshare.verify(model) shows all checks. If you edited the model, load it again; if not, try a "
                "different version of TransformerLens or transformers."
            )


def do_not_verify(model: LensModel) -> None:
    """Accept a model without checks: `require` then passes it, and the metadata of results says so."""
    _UNVERIFIED.add(model)


def is_verified(model: LensModel) -> bool:
    """Return whether this model must pass the checks that a result depends on."""
    return model not in _UNVERIFIED


def packing(model: LensModel) -> Packing:
    """Return which prompts may share a batch without changing one another, and what a forward pass costs."""
    pads = model in _UNVERIFIED or _passes(model, "padding")
    # On a GPU, a pass with one token takes about as long as one with thousands.
    tokens_a_pass = 128 if models.device_of(model).type == "cpu" else 4096
    return Packing(pads, models.rope_boundary(model), tokens_a_pass, shares=pads or _shares(model))


def _shares(model: LensModel) -> bool:
    """Return whether rows of one length do not change one another; a quantisation may look at a whole batch."""
    record = _record_of(model)
    if record.shares is None:
        longest = max(map(len, record.rows))
        rows = [(row * longest)[:longest] for row in record.rows]
        with models.left_as_found(model), models.without_hooks(model):
            record.shares = _check_padding(_Run(model, rows, unwraps=False)).passed is True
    return record.shares


def caches(model: LensModel) -> bool:
    """Return whether a check has shown that decoding with the key-value cache is right."""
    return model not in _UNVERIFIED and _applies(model, "cache") and _passes(model, "cache")


def shared_up_to(model: LensModel, n_tokens: int) -> int:
    """Return how long a prompt with a text after it may be, padding included, so that it can share the prompt's pass.

    It is 0 where no check has shown that prompts can be run once for all texts that follow them.

    Args:
        model: the model.
        n_tokens: how many tokens are needed; what holds beyond a window of attention is tried only where it matters.
    """
    if model in _UNVERIFIED or not _applies(model, "continuations") or not _passes(model, "continuations"):
        return 0
    windows = models.windows(model)
    if any(width < n_tokens for width in windows) and _passes(model, "long continuations"):
        windows = [width for width in windows if width > _WIDEST_WINDOW]
    return min([_most_tokens(model), *windows])


def noise(model: LensModel) -> float:
    """Return the difference, relative to the largest logit, above which two logits differ by more than rounding."""
    if model in _UNVERIFIED:
        return torch.inf
    outcomes = [_outcome(model, name, _record_of(model)) for name in ("logits", "padding")]
    rounding = 8 * torch.finfo(models.dtype_of(model)).eps
    return _SAFE * max([rounding, *(outcome.value for outcome in outcomes if outcome.passed)])


def compare_with_its_source(model: LensModel, source: nn.Module) -> None:
    """Refuse a model whose logits differ from those of the Hugging Face model that it was made from.

    The outcome is remembered, since the Hugging Face model exists only while the model is loaded.

    Raises:
        NeuronShareError: the logits differ.
    """
    record = _RECORDS[model] = _Record(_state_of(model), _rows(model, None), has_reference=True)
    outcome = _outcome(model, "logits", record, source)
    if outcome.passed is not True:
        raise NeuronShareError(
            f"The HookedTransformer that TransformerLens makes of {models.name_of(model)} is a different model "
            f"({_versions()}): {outcome.note} ({outcome.value:.2g}; the bound is {outcome.bound:.2g}). Use "
            'backend="bridge", which runs the Hugging Face model itself.'
        )


@dataclass
class _Record:
    """The outcomes of the checks of a model in one state."""

    state: tuple[Any, ...]
    rows: list[list[int]]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    has_reference: bool = False  # whether the logits were compared with a model that the user gave
    shares: bool | None = None  # whether rows of one length may share a batch; None: not known yet
    unwraps: bool | None = None  # whether the Hugging Face model inside has the same weights; None: not known yet


# They keep no model alive.
_RECORDS: WeakKeyDictionary[Any, _Record] = WeakKeyDictionary()
_UNVERIFIED: WeakSet[Any] = WeakSet()


def _record_of(model: LensModel) -> _Record:
    """Return the record of a model in its present state; a new one if the state has changed."""
    record = _RECORDS.get(model)
    if record is None or record.state != _state_of(model):
        record = _RECORDS[model] = _Record(_state_of(model), _rows(model, None))
    return record


def _state_of(model: LensModel) -> tuple[Any, ...]:
    """Return what the outcomes depend on: modules, dtype, device, whether weights are processed."""
    # Hook points compute nothing; those of experts are added when the neurons are first read.
    kinds = tuple(name for module in model.modules() if (name := type(module).__name__) != "HookPoint")
    is_compatible = getattr(model, "compatibility_mode", False)
    return hash(kinds), models.dtype_of(model), models.device_of(model), models.is_processed(model), is_compatible


def _passes(model: LensModel, name: str) -> bool:
    return _outcome(model, name, _record_of(model)).passed is True


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("transformer_lens", "transformers"))


def _rows(model: LensModel, texts: Sequence[str] | None) -> list[list[int]]:
    """Return the tokens of the texts, cut to different lengths; arbitrary tokens if the tokenizer can read no text."""
    models.check_model(model)
    chosen = TEXTS if texts is None else texts
    if not isinstance(chosen, list | tuple) or not 0 < len(chosen) <= 32 or not all(isinstance(t, str) for t in chosen):
        raise NeuronShareError(f"texts={texts!r}; give a list of texts, 32 at most.")
    longest = max(1, min(_LONGEST, _most_tokens(model) - _N_NEW))
    caps = (longest, 3 * longest // 4, longest // 2, longest // 4) if texts is None else [longest] * len(chosen)
    rows = [_tokens(model, text)[: max(1, cap)] for text, cap in zip(chosen, caps, strict=True)]
    any_tokens = [token % models.vocabulary_size(model) for token in range(1, longest + 1)]
    return [row for row in rows if row] or [any_tokens, any_tokens[: max(1, longest // 2)]]


def _most_tokens(model: LensModel) -> int:
    """Return the length to which a batch may grow while it is decoded."""
    return min(int(model.cfg.n_ctx), models.rope_boundary(model) or int(model.cfg.n_ctx))


def _tokens(model: LensModel, text: str) -> list[int]:
    """Return the tokens of a text; no tokens if the tokenizer cannot read it."""
    bos = models.resolve_prepend_bos(model, None) and models.knows_bos(model)
    try:
        return models.tokenise(model, [text], prepend_bos=bos)[0]
    except Exception:  # a tokenizer may raise any error
        return []


def _check_reference(reference: Any) -> None:
    """Refuse a reference that is not a Hugging Face language model."""
    if reference is not None and (
        not isinstance(reference, nn.Module)
        or not hasattr(reference, "get_output_embeddings")
        or hasattr(reference, "original_model")
    ):
        raise NeuronShareError(
            f"reference is a {type(reference).__name__}; give a Hugging Face language model, such as "
            "AutoModelForCausalLM.from_pretrained(name, attn_implementation='eager')."
        )


def _applies(model: LensModel, name: str) -> bool:
    """Return whether a check applies to the model: only gated MLPs have a gate, only some models decode, and so on."""
    if name in _OF_ARCHITECTURE:
        return models.architecture_of(model) in _OF_ARCHITECTURE[name]
    if name == "long continuations":
        return _applies(model, "continuations") and any(width <= _WIDEST_WINDOW for width in models.windows(model))
    return name.rsplit(maxsplit=1)[-1] not in ("gate", "up") or models.is_gated(model)


def _outcome(model: LensModel, name: str, record: _Record, reference: nn.Module | None = None) -> Outcome:
    """Return the outcome of a check: the recorded one, or else that of making the check now."""
    if not _applies(model, name):  # in an MLP without a gate, `gate` is the same as `post`
        name = name.replace("gate", "post")
    if name not in record.outcomes:
        if record.unwraps is None:
            record.unwraps = _unwraps(model)
        run = _Run(model, record.rows, record.unwraps, reference)
        with models.left_as_found(model), models.without_hooks(model):
            try:
                record.outcomes[name] = _CHECKS[name](run)
            except NeuronShareError as error:
                if name not in ADVISORY and name.rsplit(maxsplit=1)[-1] not in ("gate", "up"):
                    raise
                record.outcomes[name] = Outcome.of(torch.inf, run.bound, str(error))
            except Exception as error:
                where = f"{models.name_of(model)}: the check {name!r} stopped with {type(error).__name__}: {error}"
                if name not in ADVISORY:
                    raise NeuronShareError(
                        f"{where}. Try whether model(tokens) runs without this package. If not, TransformerLens "
                        f"cannot run this model ({_versions()}); try a different version of either."
                    ) from error
                record.outcomes[name] = Outcome.of(torch.inf, run.bound, where)
    return record.outcomes[name]


class _Run:
    """A model, the rows to run, and the model to compare it with."""

    def __init__(
        self, model: LensModel, rows: list[list[int]], unwraps: bool, reference: nn.Module | None = None
    ) -> None:
        self.model, self.rows, self.unwraps, self.reference = model, rows, unwraps, reference
        self.n_new = min(_N_NEW, max(0, _most_tokens(model) - max(map(len, rows))))
        self.bound = _BOUNDS.get(models.dtype_of(model), max(_BOUNDS.values()))

    def alone(self, row: Sequence[int], new: Sequence[int] | None = None) -> Inputs:
        """Return the inputs of a row that is run alone, with new tokens after it.

        In an encoder-decoder the row is the source. There the new tokens are by default some of the row, so that the
        decoder runs more than its own prompt.
        """
        if models.architecture_of(self.model) == "encoder-decoder":
            return inputs_of(self.model, [row], [_answer_to(row) if new is None else new])
        return inputs_of(self.model, [[*row, *(new or ())]])

    def logits(self, row: Sequence[int], new: Sequence[int] | None = None) -> Float[Tensor, "position vocabulary"]:
        """Return the logits of a row that is run alone, at all its positions."""
        inputs = self.alone(row, new)
        return _on_cpu(models.last_logits(self.model, inputs, inputs.tokens.shape[1])[0])

    def expected(self, row: Sequence[int], new: Sequence[int] | None = None) -> Float[Tensor, "position vocabulary"]:
        """Return the same logits without TransformerLens; the model's own if no Hugging Face model has its weights."""
        if not self.unwraps:
            return self.logits(row, new)
        with models.unwrapped(self.model) as hugging_face:
            return _logits_of(hugging_face, self.alone(row, new))

    def values(self, row: Sequence[int], site: Site) -> list[Float[Tensor, "position neuron"]]:
        """Return the layers' values at all positions of a row that is run alone.

        Raises:
            NeuronShareError: a hook does not fire exactly once, or its tensor has an unexpected shape.
        """
        layers = models.neuron_layers(self.model, site)
        passes: dict[int, list[tuple[Tensor, ...]]] = {number: [] for number in range(len(layers))}

        def keep(number: int, tensors: tuple[Tensor, ...]) -> None:
            if not any(tensors[-1] is seen[-1] for seen in passes[number]):  # a hook point with two names calls twice
                passes[number].append(tensors)

        inputs = self.alone(row)
        with models.reading(self.model, layers, keep) as run_once:
            run_once(inputs)
        for number, layer in enumerate(layers):
            if len(passes[number]) != 1:
                raise NeuronShareError(
                    f"{layer.name} fired {len(passes[number])} times in a forward pass, so that the neurons of "
                    f"{models.name_of(self.model)} cannot be read there; is its MLP shared between layers?"
                )
            shape = (1, inputs.seen_by(layer.stack).tokens.shape[1])
            if layer.shape(passes[number][0]) != shape:
                given = tuple(passes[number][0][-1].shape)
                raise NeuronShareError(
                    f"{layer.name} of {models.name_of(self.model)} has a tensor of shape {given} where one of "
                    f"{(*shape, layer.width)} (rows, positions, neurons) belongs, so that its neurons cannot be read; "
                    "does the model pad texts by itself?"
                )
        return [_on_cpu(layers[number].read(tensors, 0)) for number, (tensors,) in passes.items()]


def _unwraps(model: LensModel) -> bool:
    """Return whether the Hugging Face model in a bridge has its weights; processing and edits do not reach it."""
    return models.is_bridge(model) and not (models.is_processed(model) or models.is_edited(model))


def _on_cpu(tensor: Tensor) -> Tensor:
    """Return the tensor on the CPU, in at least single precision."""
    return tensor.detach().to("cpu", torch.promote_types(tensor.dtype, torch.float32))


def _answer_to(row: Sequence[int]) -> Sequence[int]:
    """Return some tokens for the decoder of an encoder-decoder, which are fewer for shorter rows."""
    return row[: (len(row) + 1) // 2]


def _logits_of(hugging_face: nn.Module, inputs: Inputs) -> Float[Tensor, "position vocabulary"]:
    """Return a Hugging Face model's logits of a row that is run alone."""
    device = next(parameter.device for parameter in hugging_face.parameters() if not parameter.is_meta)
    tokens, named = arguments_of(inputs, device)
    return _on_cpu(hugging_face(tokens, **named).logits[0])


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest expected number; NaN if only one of two numbers is NaN."""
    # Two NaN are equal here; the functions that use the values refuse NaN.
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    largest = theirs.nan_to_num(0, 0, 0).abs().max().clamp(min=1e-12)
    return ((ours - theirs).masked_fill(same, 0).abs().max() / largest).item()


def _centred(logits: Tensor) -> Tensor:
    """Return logits minus their mean: what all tokens share has no effect, and processing removes it."""
    return logits - logits.mean(-1, keepdim=True)


def _check_logits(run: _Run) -> Outcome:
    """Compare the logits with those of the reference, or of the Hugging Face model inside a bridge."""
    if run.reference is None and not models.is_bridge(run.model):
        note = "a HookedTransformer holds no Hugging Face model to compare with; give one as reference"
        return Outcome(torch.nan, run.bound, note)
    if run.reference is not None:
        with models.left_as_found(run.reference):
            pairs = [(run.logits(row), _logits_of(run.reference, run.alone(row))) for row in run.rows]
        if any(ours.shape != theirs.shape for ours, theirs in pairs):
            raise NeuronShareError(
                f"reference is a different model: it has {pairs[0][1].shape[-1]} tokens, but "
                f"{models.name_of(run.model)} has {pairs[0][0].shape[-1]}; load the same model for both."
            )
        if (beyond := _beyond_the_rows(run)) is not None:
            return Outcome.of(torch.inf, run.bound, beyond)
    else:
        with models.unwrapped(run.model) as hugging_face:
            expected = [_logits_of(hugging_face, run.alone(row)) for row in run.rows]
        pairs = [(run.logits(row), theirs) for row, theirs in zip(run.rows, expected, strict=True)]
    value = _worst(_difference(_centred(ours), _centred(theirs)) for ours, theirs in pairs)
    if value <= run.bound and (later := _difference_of_later_tokens(run)) > run.bound:
        note = "what the decoder predicts depends on the tokens after it; is its start token taken for padding?"
        return Outcome.of(later, run.bound, note)
    if run.reference is None and not value <= run.bound and not run.unwraps:
        note = "the logits of a small random model of this architecture differ from the Hugging Face model's"
        return Outcome.of(_difference_of_twin(run), run.bound, note)
    return Outcome.of(value, run.bound, "the logits differ from the Hugging Face model's")


def _difference_of_later_tokens(run: _Run) -> float:
    """Return how much the logits of an encoder-decoder's prompt change where an answer follows; 0 for other models."""
    if models.architecture_of(run.model) != "encoder-decoder":
        return 0.0
    alone = [run.logits(row, ()) for row in run.rows]
    return _worst(
        _difference(_centred(run.logits(row)[: len(logits)]), _centred(logits))
        for row, logits in zip(run.rows, alone, strict=True)
    )


def _beyond_the_rows(run: _Run) -> str | None:
    """Return what a HookedTransformer computes differently for texts that are longer than the rows; None if nothing."""
    if models.is_bridge(run.model):
        return None
    config = models.nested(run.reference, "config")
    theirs = config.get_text_config() if hasattr(config, "get_text_config") else config
    window = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    local = [kind == "sliding_attention" and window is not None for kind in kinds]
    cfg = run.model.cfg
    ours = [kind == "local" for kind in cfg.attn_types or ()] if cfg.use_local_attn else [False] * cfg.n_layers
    if any(local) and window < cfg.n_ctx and (ours != local or cfg.window_size != window):
        return f"the Hugging Face model has a sliding window of {window} tokens in some layers, which this model lacks"
    rope = getattr(theirs, "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    changing = {part.get("rope_type") for part in parts} & {"dynamic", "longrope"}
    if changing:
        return f"the Hugging Face model's {changing.pop()} RoPE depends on a text's length, and this model's does not"
    return None


def _difference_of_twin(run: _Run) -> float:
    """Return the largest difference between a small random bridge of this architecture and its Hugging Face model."""
    twin: Any
    twin, hugging_face = _small_twin(run.model)
    expected = [_centred(_logits_of(hugging_face, run.alone(row))) for row in run.rows]
    if models.is_processed(run.model):
        twin.enable_compatibility_mode(disable_warnings=True)
    run = _Run(twin, run.rows, unwraps=False)
    return _worst(
        _difference(_centred(run.logits(row)), theirs) for row, theirs in zip(run.rows, expected, strict=True)
    )


def _check_site(run: _Run, *, site: Site) -> Outcome:
    """Compare each layer's values with what Hugging Face's modules receive and return.

    A gate or an up branch may not be a separate module. Then it is enough that the product of the two is the input of
    the down projection.
    """
    differences = []
    for row in run.rows[:2]:
        ours = run.values(row, site)
        theirs = _inside(run, row, site) if run.unwraps else None
        if theirs is not None:
            differences.append(_largest_difference(ours, theirs))
        elif site != "post":
            factors = zip(run.values(row, "gate"), run.values(row, "up"), strict=True)
            differences.append(_largest_difference([gate * up for gate, up in factors], run.values(row, "post")))
        elif not run.unwraps:
            differences.append(_difference_of_output(run, row, []))
        else:
            return Outcome.of(torch.inf, run.bound, "the down projection of its MLPs is not a separate module")
    return Outcome.of(
        _worst(differences), run.bound, f"the values at {site!r} are not those that the model computes with"
    )


def _inside(run: _Run, row: Sequence[int], site: Site, masks: Sequence[Tensor] = ()) -> list[Tensor] | None:
    """Return the input or output of each layer's Hugging Face module; None where a layer has no such module.

    With masks, these neurons are set to zero there, and the only tensor in the list is that of the logits.
    """
    layers = models.neuron_layers(run.model, site)
    alone = run.alone(row)
    with models.unwrapped(run.model) as hugging_face, ExitStack() as stack:
        seen = [
            [
                stack.enter_context(writer.watched(zeroed))
                for writer, zeroed in zip(layer.writers, _parts(layer, mask), strict=True)
            ]
            for layer, mask in zip(layers, masks or repeat(None, len(layers)), strict=True)
        ]
        logits = _logits_of(hugging_face, alone)
    if not all(len(values) == 1 for of_layer in seen for values in of_layer):
        return None
    values = [torch.cat([_on_cpu(tensor) for (tensor,) in of_layer], dim=-1) for of_layer in seen]
    expected = [(alone.seen_by(layer.stack).tokens.shape[1], layer.width) for layer in layers]
    if [tuple(tensor.shape) for tensor in values] != expected:
        return None
    return [logits] if masks else values


def _parts(layer: models.NeuronLayer, mask: Tensor | None) -> Sequence[Tensor | None]:
    """Return a mask of a layer's neurons in one part for each of its writers."""
    widths = [writer.width for writer in layer.writers]
    return [None for _ in widths] if mask is None else torch.split(mask, widths)


def _difference_of_output(run: _Run, row: Sequence[int], hooks: models.Hooks) -> float:
    """Return the largest difference, under hooks, between what each MLP writes and its neurons' values times W_out."""
    layers = [layer.weighted() for layer in models.neuron_layers(run.model, "post")]
    values: dict[int, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(models.hooked(run.model, hooks))
        run_once = stack.enter_context(
            models.reading(run.model, layers, lambda number, read: values.update({number: layers[number].read(read)}))
        )
        written = [[stack.enter_context(writer.written()) for writer in layer.writers] for layer in layers]
        run_once(run.alone(row))
    differences = []
    for number, layer in enumerate(layers):
        parts = torch.split(values[number], [writer.width for writer in layer.writers], dim=-1)
        for writer, part, (theirs,) in zip(layer.writers, parts, written[number], strict=True):
            ours = (part @ writer.W_out().to(part)).reshape(theirs.shape)
            differences.append(_difference(_on_cpu(theirs), _on_cpu(ours)))
    return _worst(differences)


def _largest_difference(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """Return the largest difference over the layers."""
    return _worst(_difference(our, their) for our, their in zip(ours, theirs, strict=True))


def _worst(differences: Iterable[float]) -> float:
    """Return the largest difference; NaN if one of them is NaN."""
    return max(differences, key=lambda difference: (math.isnan(difference), difference))


def _check_edit(run: _Run, *, site: Site) -> Outcome:
    """Set half of each layer's neurons to zero, by hooks and inside the Hugging Face model, and compare the logits."""
    layers = models.neuron_layers(run.model, "up" if site == "up" else "post")  # an edit of the gate is made at `post`
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(layer.width, generator=generator, dtype=torch.float32, device="cpu") < 0.5 for layer in layers]

    def zero(tensors: list[Tensor], *, neurons: models.NeuronHook, mask: Tensor) -> Tensor:
        return tensors[-1].masked_fill(neurons.like(mask.to(tensors[-1].device)[None, None], tensors), 0)

    hooks = [
        hook
        for layer, mask in zip(layers, masks, strict=True)
        for neurons, part in zip(layer.hooks, layer.split(mask), strict=True)
        for hook in models.Editing(neurons.names, partial(zero, neurons=neurons, mask=part)).hooks
    ]
    row = run.rows[0]
    if not run.unwraps:
        if site == "gate":
            return _check_site(run, site="gate")
        return Outcome.of(
            _difference_of_output(run, row, hooks), run.bound, "the MLP's output is not what its edited neurons write"
        )
    expected = _inside(run, row, site, masks)
    if expected is None:  # the site is not a separate module: if the product is right, so is the edit of a factor
        if (product := _check_site(run, site=site)).passed is not True:
            return product
        expected = _inside(run, row, "post", masks)
    if expected is None:
        return Outcome.of(torch.inf, run.bound, "the down projection of its MLPs is not found in the model")
    with models.hooked(run.model, hooks):
        ours = run.logits(row)
    return Outcome.of(
        _difference(_centred(ours), _centred(expected[0])),
        run.bound,
        f"setting neurons to zero at {site!r} has a different effect",
    )


def _check_output(run: _Run) -> Outcome:
    """Compare what each MLP writes with its neurons' values times W_out."""
    value = _difference_of_output(run, run.rows[0], [])
    # Kernels for quantised weights may also round the values that they multiply.
    bound = run.bound if models.quantisation_of(run.model) is None else max(run.bound, _BOUNDS[torch.float16])
    return Outcome.of(value, bound, "what the MLPs write is not their neurons' values times W_out")


def _check_unembedding(run: _Run) -> Outcome:
    """Check that the unembedding reads the final norm's output, and that their product is the logits.

    Differences between positions are compared, in which biases cancel.
    """
    norm, unembed = models.nested(run.model, "ln_final"), models.nested(run.model, "unembed")
    if not isinstance(unembed, nn.Module):
        return Outcome.of(torch.inf, run.bound, "the model has no unembedding")
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        seen[module] = inputs[0], output if isinstance(output, Tensor) else output[0]

    last = norm if isinstance(norm, nn.Module) else models.stacks_of(run.model)["blocks"][-1]
    row = max(run.rows, key=len)
    with ExitStack() as stack:
        for module in (last, unembed):
            stack.enter_context(hooked_module(module, keep))
        run.logits(row)
    normed, read, logits = (_on_cpu(tensor[0]) for tensor in (seen[last][1], *seen[unembed]))
    if normed.shape != read.shape or not _difference(read, normed) <= run.bound:
        return Outcome.of(torch.inf, run.bound, "what the unembedding reads is not what the final norm gives")
    tokens = torch.arange(0, logits.shape[-1], max(1, logits.shape[-1] // 512), device="cpu")
    expected = normed @ _on_cpu(models.unembedding(run.model, tokens))
    steps = [part - part.roll(1, 0) for part in (logits[:, tokens], expected)] if len(row) > 1 else [logits, expected]
    return Outcome.of(_difference(*steps), run.bound, "logits are not the final norm's output times the unembedding")


def _check_padding(run: _Run) -> Outcome:
    """Compare values and logits of rows in one batch, padded on either side, with those of each row alone.

    In half precision the neurons of experts are left out, since rounding sends some tokens to different experts.
    """
    is_half = torch.finfo(models.dtype_of(run.model)).bits < torch.finfo(torch.float32).bits
    try:
        layers = [layer for layer in models.neuron_layers(run.model, "post") if not (is_half and layer.experts)]
    except NeuronShareError:  # answers can be compared even if the model's neurons cannot be read
        layers = []
    rows = run.rows
    together = models.values_of(run.model, layers, inputs_of(run.model, rows), -1)
    differences = []
    for number, row in enumerate(rows):
        alone = models.values_of(run.model, layers, inputs_of(run.model, [row]), -1)
        pairs = ((_on_cpu(layer[number]), _on_cpu(own[0])) for layer, own in zip(together, alone, strict=True))
        differences += [_difference(ours, theirs) for ours, theirs in pairs]
    for prompts, answers in _ways_to_pad(run):
        inputs = inputs_of(run.model, prompts, answers)
        logits = models.last_logits(run.model, inputs, inputs.tokens.shape[1])
        for number, row in enumerate(rows):
            shown = inputs.shown()[number]
            expected = run.logits(row)
            differences.append(_difference(_on_cpu(logits[number])[shown][: len(expected)], expected))
    note = "longer prompts in a batch change the shorter ones; batches are of one length"
    return Outcome.of(_worst(differences), run.bound, note)


def _ways_to_pad(run: _Run) -> list[tuple[list[list[int]], list[list[int]] | None]]:
    """Return prompts and answers that are the rows: a decoder's are padded on the left, and on both sides."""
    halves = [(len(row) + 1) // 2 for row in run.rows]
    answers = [row[:half] for half, row in zip(halves, run.rows, strict=True)]
    if (architecture := models.architecture_of(run.model)) == "encoder-decoder":
        return [(run.rows, answers)]
    if architecture == "encoder":
        return [(run.rows, None)]
    return [(run.rows, None), (answers, [row[half:] for half, row in zip(halves, run.rows, strict=True)])]


def _check_cache(run: _Run) -> Outcome:
    """Compare the logits of some decoding steps with the cache and without it."""
    rows = run.rows if _passes(run.model, "padding") else run.rows[:1]
    forced = torch.tensor([run.rows[0][:1] * len(rows), run.rows[0][-1:] * len(rows)], device="cpu")
    steps: dict[bool, list[Tensor]] = {}
    for cached in (True, False):
        with decoding.next_logits(run.model, inputs_of(run.model, rows), cached=cached) as step:
            steps[cached] = [_on_cpu(step())]
            for token in forced:
                step.append(token)
                steps[cached].append(_on_cpu(step()))
    value = _largest_difference(steps[True], steps[False])
    note = "the key-value cache changes the logits; decoding runs the whole text for every token"
    return Outcome.of(value, run.bound, note)


def _check_continuations(run: _Run) -> Outcome:
    """Compare texts after prompts that are run once, and padded, with the logits of each whole text alone."""
    note = "texts that follow a prompt differ where it is run once for all of them; each is run with its whole prompt"
    if run.n_new == 0 or not _passes(run.model, "padding"):
        return Outcome.of(torch.inf, run.bound, note)
    texts = [run.rows[0][:1], run.rows[-1][-run.n_new :], run.rows[0][-2:][: run.n_new]]
    after = [*range(len(run.rows)), 0, 0]
    of_prompts = [texts[number % len(texts)] for number in range(len(after))]
    return Outcome.of(_difference_of_continuations(run, run.rows, after, of_prompts), run.bound, note)


def _check_long_continuations(run: _Run) -> Outcome:
    """Compare the same for two prompts, one longer than a window, the other so long that a text carries it beyond."""
    note = "texts beyond a window of attention differ where their prompt is run once; each is run with its whole prompt"
    if not _passes(run.model, "continuations"):
        return Outcome.of(torch.inf, run.bound, note)
    widest = max(width for width in models.windows(run.model) if width <= _WIDEST_WINDOW)
    text = run.rows[-1][-run.n_new :]
    n_tokens = [min(widest + more, _most_tokens(run.model) - run.n_new) for more in (8, 1 - len(text))]
    prompts = [(run.rows[0] * widest + text * 8)[: max(1, length)] for length in n_tokens]
    return Outcome.of(_difference_of_continuations(run, prompts, [0, 1], [text, text]), run.bound, note)


def _difference_of_continuations(
    run: _Run, prompts: Sequence[Sequence[int]], after: Sequence[int], texts: Sequence[Sequence[int]]
) -> float:
    """Return the largest difference in logits after prompts that are run once, and after every token of their texts."""
    with continuing(run.model, inputs_of(run.model, prompts)) as once:
        first, last = once.prompts(), len(texts) - 1
        # The last text runs by itself, on what the others have left.
        parts = [once.texts(after[where], texts[where]) for where in (slice(last), slice(last, None))]
    found = iter(torch.split(torch.cat(parts), [len(text) for text in texts]))
    differences = []
    for number, text in zip(after, texts, strict=True):
        ours = _on_cpu(torch.cat([first[number][None], next(found)]))
        whole = inputs_of(run.model, [[*prompts[number], *text]])
        differences.append(_difference(ours, _on_cpu(models.last_logits(run.model, whole, len(text) + 1)[0])))
    return _worst(differences)


def _check_decoding(run: _Run) -> Outcome:
    """Compare our greedy tokens with the likeliest ones of a run without cache, padding and TransformerLens."""
    cached = _passes(run.model, "cache")
    batches = [run.rows] if _passes(run.model, "padding") else [[row] for row in run.rows]
    new = [tokens for rows in batches for tokens in decoding.greedy(run.model, rows, run.n_new, cached=cached)]
    wrong = sum(_n_unlikely(run, row, tokens) for row, tokens in zip(run.rows, new, strict=True))
    return Outcome.of(float(wrong), 0.0, "decoded tokens are not the likeliest ones")


def _check_generate(run: _Run) -> Outcome:
    """Compare the tokens of the model's own `generate` with the likeliest ones, for one row."""
    row = run.rows[0]

    def n_wrong(**options: Any) -> int:
        with warnings.catch_warnings():  # about arguments that Transformers has renamed and TransformerLens still uses
            warnings.simplefilter("ignore")
            whole = run.model.generate(
                torch.tensor([row], device=models.device_of(run.model)),
                max_new_tokens=run.n_new,
                do_sample=False,
                stop_at_eos=False,
                prepend_bos=models.resolve_prepend_bos(run.model, None),
                return_type="tokens",
                verbose=False,
                **options,
            )
        return _n_unlikely(run, row, whole[0, len(row) :].tolist())

    wrong = n_wrong()
    note = "the model's own generate gives different tokens from greedy decoding; nothing here uses it"
    if wrong and not n_wrong(use_past_kv_cache=False):
        note += ", and generate(..., use_past_kv_cache=False) is right"
    return Outcome.of(float(wrong), 0.0, note)


def _n_unlikely(run: _Run, row: Sequence[int], new: Sequence[int]) -> int:
    """Count the new tokens that are less likely than another one at their place, by more than rounding."""
    logits = run.expected(row, new)[-len(new) - 1 : -1]
    chosen = logits.gather(-1, torch.tensor(new, device="cpu")[:, None])[:, 0]
    return int((logits.amax(-1) - chosen > run.bound * logits.abs().max()).sum())


_CHECKS: dict[str, Callable[[_Run], Outcome]] = {
    "logits": _check_logits,
    **{site: partial(_check_site, site=site) for site in get_args(Site)},
    **{f"edit {site}": partial(_check_edit, site=site) for site in get_args(Site)},
    "output": _check_output,
    "unembedding": _check_unembedding,
    "padding": _check_padding,
    "cache": _check_cache,
    "continuations": _check_continuations,
    "long continuations": _check_long_continuations,
    "decoding": _check_decoding,
    "generate": _check_generate,
}


def _small_twin(model: LensModel) -> tuple[LensModel, torch.nn.Module]:
    """Return a bridge of the same architecture with two random layers, and a copy of its Hugging Face model."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.original_model.config)  # type: ignore[attr-defined]
    text = config.get_text_config()
    text.num_hidden_layers = min(2, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hugging_face = AutoModelForCausalLM.from_config(
            config,
            attn_implementation="eager",
            dtype=torch.float32,
            trust_remote_code=bool(getattr(model.cfg, "trust_remote_code", False)),
        ).eval()
    alone = copy.deepcopy(hugging_face)
    how: dict[str, Any] = {"tokenizer": model.tokenizer, "device": "cpu", "dtype": torch.float32}
    with nothing_installed():
        twin = TransformerBridge.boot_transformers(str(config.name_or_path), hf_model=hugging_face, **how)
    return twin, alone
