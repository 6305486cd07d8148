"""Shows on the model at hand that what is read, edited and decoded here is what the model does.

A bridge holds its Hugging Face model, which can be run without TransformerLens for comparison (`models.unwrapped`): the
logits, what the down projection receives, and the logits under an edit are compared with it. A HookedTransformer is an
implementation of its own: there the MLP's output is compared with what its neurons write, and the logits with a
Hugging Face model that is given. Every function that runs a model asks for the checks that it depends on (`require`).
They are made once for each model, without the hooks that are on it.
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
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary, WeakSet

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models import decoding
from tl_neuronshare.models.layers import Site
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.packing import Packing
from tl_neuronshare.models.tokens import left_padded, padded_apart

Check = Literal[
    "logits",
    "post",
    "gate",
    "up",
    "edit post",
    "edit gate",
    "edit up",
    "unembedding",
    "padding",
    "cache",
    "decoding",
    "generate",
]
# Where these fail another way is taken, so that they refuse nothing.
_ADVISORY = ("padding", "cache", "generate")
# A text each of another length, in languages that most tokenizers know.
TEXTS = (
    "The capital of France is the city of Paris, and the river that flows through it is",
    "Вода кипит при ста градусах",
    "Zwei und drei sind",
    "法国的首都",
)
_LONGEST = 16  # tokens of a text
_N_NEW = 4
# How far two ways to compute the same thing may be apart, relative to the largest number.
_BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_SAFE = 16  # a margin this many times as large as what was seen between two ways cannot come of rounding


@dataclass(frozen=True)
class Outcome:
    """What a check found: a number and the bound that it must not exceed; None where nothing could be compared."""

    value: float
    bound: float
    note: str = ""
    passed: bool | None = None

    @classmethod
    def of(cls, value: float, bound: float, wrong: str) -> Outcome:
        """Passed where the value, which may be NaN, is within its bound; else with a note of what is wrong."""
        return cls(value, bound, "" if value <= bound else wrong, bool(value <= bound))


def verify(model: LensModel, *, texts: Sequence[str] | None = None, reference: nn.Module | None = None) -> pd.DataFrame:
    """Show on this model that what is read, edited and decoded here is what the model does.

    The functions that run a model do this by themselves, as far as they depend on it, and refuse a model that fails;
    this shows the numbers, and makes the checks anew. The model is left as found; hooks that are on it do not take
    part. A model that was loaded with `verify=False` is from then on checked like any other.

    Args:
        model: a HookedTransformer or TransformerBridge.
        texts: what to run, up to 32 texts and 16 tokens of each; by default four short texts in four languages. What
            other functions rely on are the checks with the default.
        reference: a Hugging Face model of the same weights, loaded with `attn_implementation="eager"`, to compare the
            logits with. A HookedTransformer holds none; for a bridge the default is the one inside it.

    Returns:
        A table with a row for each check: check, passed (missing where there is nothing to compare with), value, bound
        (what the value must not exceed), note. The checks:

        `logits`: they are the Hugging Face model's (relative to the largest). `post`, `gate`, `up`: each layer's hook
        fires once in the shape [row, position, neuron], and gives what the down projection receives (for `gate` and
        `up`: the two factors of that). `edit post` (and `gate`, `up`): zeroing neurons there changes the model by
        exactly what they write. `unembedding`: logits are the final norm of the residual stream, times the
        unembedding. `padding`: a row is not changed by longer rows beside it. `cache`: logits with the key-value cache
        are those without. `decoding`: our greedy tokens are the likeliest of a run without cache and padding (how many
        are not). `generate`: the same for the model's own `generate`, which nothing here uses.

        Where `padding` fails, only prompts of equal length share a batch; where `cache` fails, decoding runs the whole
        text for every token. Any other that fails refuses what depends on it.

    Raises:
        NeuronShareError: no TransformerLens model, or one whose neurons cannot be read at all; texts or a reference
            that are not what is asked for.

    Example:
        >>> table = verify(model)
        >>> bool(table["passed"].all())
        True
        >>> list(table["check"])[:4]  # without a gate, and so without its checks
        ['logits', 'post', 'edit post', 'unembedding']
    """
    models.check_model(model)
    _check_reference(reference)
    found = _Found(_state_of(model), _rows(model, texts))
    before = _KNOWN.get(model)
    if reference is None and before is not None and before.state == found.state and before.has_reference:
        found.outcomes["logits"], found.has_reference = before.outcomes["logits"], True
    _UNVERIFIED.discard(model)
    if texts is None:  # a user's own texts may be too few to rely on
        _KNOWN[model] = found
    rows = [
        {"check": name, **{field: getattr(outcome, field) for field in ("passed", "value", "bound", "note")}}
        for name in get_args(Check)
        if _applies(model, name)
        for outcome in [_outcome(model, name, found, reference)]
    ]
    if reference is not None:
        known = _found(model)
        known.outcomes["logits"], known.has_reference = found.outcomes["logits"], True
    table = pd.DataFrame(rows).astype({"passed": "boolean"})
    table.attrs.update(model=models.name_of(model), model_class=type(model).__name__, versions=_versions())
    return table


def require(model: LensModel, *names: str) -> None:
    """Refuse a model that fails one of these checks; each is made once for a model and found again after that.

    Raises:
        NeuronShareError: names the check, what it found, and what to do.

    Example:
        >>> require(model, "logits", "post")
    """
    if model in _UNVERIFIED:
        return
    for name in names:
        outcome = _outcome(model, name, _found(model))
        if outcome.passed is False:
            raise NeuronShareError(
                f"{models.name_of(model)} ({type(model).__name__}, {_versions()}) fails the check {name!r}, on which "
                f"this depends: {outcome.note} ({outcome.value:.2g}; the bound is {outcome.bound:.2g}). "
                "tl_neuronshare.verify(model) shows all checks. If you edited the model, load it anew; else another "
                "version of TransformerLens or transformers may be right."
            )


def do_not_verify(model: LensModel) -> None:
    """Take a model as it is: `require` asks nothing of it, and results say so."""
    _UNVERIFIED.add(model)


def is_verified(model: LensModel) -> bool:
    """Whether this model must pass the checks that a result depends on."""
    return model not in _UNVERIFIED


def packing(model: LensModel) -> Packing:
    """Which prompts may share a batch without changing one another, and what a forward pass costs."""
    pads = model in _UNVERIFIED or _passes(model, "padding")
    # On a GPU a pass takes about as long with one token as with thousands.
    return Packing(pads, models.rope_boundary(model), 128 if models.device_of(model).type == "cpu" else 4096)


def caches(model: LensModel) -> bool:
    """Whether decoding with the key-value cache was shown to be right."""
    return model not in _UNVERIFIED and _passes(model, "cache")


def noise(model: LensModel) -> float:
    """How far two logits must be apart, relative to the largest, to be told apart in spite of rounding."""
    if model in _UNVERIFIED:
        return torch.inf
    outcomes = [_outcome(model, name, _found(model)) for name in ("logits", "padding")]
    rounding = 8 * torch.finfo(models.dtype_of(model)).eps
    return _SAFE * max([rounding, *(outcome.value for outcome in outcomes if outcome.passed)])


def compare_with_its_source(model: LensModel, source: nn.Module) -> None:
    """Compare a model's logits with those of the Hugging Face model that it was made of, while that is there.

    Raises:
        NeuronShareError: they differ.
    """
    found = _KNOWN[model] = _Found(_state_of(model), _rows(model, None), has_reference=True)
    _outcome(model, "logits", found, source)
    require(model, "logits")


@dataclass
class _Found:
    """What was found of a model in a certain state."""

    state: tuple[Any, ...]
    rows: list[list[int]]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    has_reference: bool = False  # whether the logits were compared with a model that was given
    unwraps: bool | None = None  # whether the Hugging Face model inside has the same weights; None: not known yet


# For each model as long as it lives.
_KNOWN: WeakKeyDictionary[Any, _Found] = WeakKeyDictionary()
_UNVERIFIED: WeakSet[Any] = WeakSet()


def _found(model: LensModel) -> _Found:
    found = _KNOWN.get(model)
    if found is None or found.state != _state_of(model):
        found = _KNOWN[model] = _Found(_state_of(model), _rows(model, None))
    return found


def _state_of(model: LensModel) -> tuple[Any, ...]:
    """Where one of these changes, the checks are made anew: modules, dtype, device, whether weights are processed."""
    kinds = tuple(type(module).__name__ for module in model.modules())
    return hash(kinds), models.dtype_of(model), models.device_of(model), models.is_processed(model)


def _passes(model: LensModel, name: str) -> bool:
    return _outcome(model, name, _found(model)).passed is True


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("transformer_lens", "transformers"))


def _rows(model: LensModel, texts: Sequence[str] | None) -> list[list[int]]:
    """The tokens of some texts, of different lengths; any tokens at all where the tokenizer can read none."""
    models.check_model(model)
    given = TEXTS if texts is None else texts
    if not isinstance(given, list | tuple) or not 0 < len(given) <= 32 or not all(isinstance(t, str) for t in given):
        raise NeuronShareError(f"texts={texts!r}; give a list of texts, 32 at most.")
    longest = max(1, min(_LONGEST, _most_tokens(model) - _N_NEW))
    caps = (longest, 3 * longest // 4, longest // 2, longest // 4) if texts is None else [longest] * len(given)
    rows = [_tokens(model, text)[: max(1, cap)] for text, cap in zip(given, caps, strict=True)]
    any_tokens = [token % models.vocabulary_size(model) for token in range(1, longest + 1)]
    return [row for row in rows if row] or [any_tokens, any_tokens[: max(1, longest // 2)]]


def _most_tokens(model: LensModel) -> int:
    """How many a batch may have that is decoded."""
    return min(int(model.cfg.n_ctx), models.rope_boundary(model) or int(model.cfg.n_ctx))


def _tokens(model: LensModel, text: str) -> list[int]:
    """Of one text; none where the tokenizer cannot read it."""
    bos = models.resolve_prepend_bos(model, None) and models.knows_bos(model)
    try:
        return models.tokenise(model, [text], prepend_bos=bos)[0]
    except Exception:  # tokenizers raise whatever they like
        return []


def _check_reference(reference: Any) -> None:
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
    """Whether the model has what is checked: only gated MLPs have a gate and an up branch."""
    return name.rsplit(maxsplit=1)[-1] not in ("gate", "up") or models.is_gated(model)


def _outcome(model: LensModel, name: str, found: _Found, reference: nn.Module | None = None) -> Outcome:
    """What a check finds, or found before."""
    if not _applies(model, name):  # without a gate, `gate` is `post`
        name = name.replace("gate", "post")
    if name not in found.outcomes:
        if found.unwraps is None:
            found.unwraps = _unwraps(model)
        run = _Run(model, found.rows, found.unwraps, reference)
        with models.left_as_found(model), models.without_hooks(model):
            try:
                found.outcomes[name] = _CHECKS[name](run)
            except NeuronShareError as error:
                if name not in _ADVISORY and name.rsplit(maxsplit=1)[-1] not in ("gate", "up"):
                    raise
                found.outcomes[name] = Outcome.of(torch.inf, run.bound, str(error))
            except Exception as error:
                where = f"{models.name_of(model)}: the check {name!r} stopped with {type(error).__name__}: {error}"
                if name not in _ADVISORY:
                    raise NeuronShareError(f"{where}. Can this model run at all, as model(tokens)?") from error
                found.outcomes[name] = Outcome.of(torch.inf, run.bound, where)
    return found.outcomes[name]


class _Run:
    """A model, the rows to run, and what to compare it with."""

    def __init__(
        self, model: LensModel, rows: list[list[int]], unwraps: bool, reference: nn.Module | None = None
    ) -> None:
        self.model, self.rows, self.unwraps, self.reference = model, rows, unwraps, reference
        self.n_new = min(_N_NEW, max(0, _most_tokens(model) - max(map(len, rows))))
        self.bound = _BOUNDS.get(models.dtype_of(model), max(_BOUNDS.values()))

    def logits(self, row: Sequence[int]) -> Float[Tensor, "position vocabulary"]:
        """Of one row alone, at all its positions."""
        return _plain(models.last_logits(self.model, torch.tensor([row], device="cpu"), None, len(row))[0])

    def expected(self, row: Sequence[int]) -> Float[Tensor, "position vocabulary"]:
        """The same without TransformerLens where that can be had; else the model's own."""
        if not self.unwraps:
            return self.logits(row)
        with models.unwrapped(self.model) as hugging_face:
            return _logits_of(hugging_face, row)

    def values(self, row: Sequence[int], site: Site) -> list[Float[Tensor, "position neuron"]]:
        """The layers' values at all positions.

        Raises:
            NeuronShareError: a hook that does not fire once, or gives a tensor of another shape.
        """
        layers = models.neuron_layers(self.model, site)
        passes: dict[int, list[tuple[Tensor, ...]]] = {number: [] for number in range(len(layers))}

        def keep(number: int, tensors: tuple[Tensor, ...]) -> None:
            if not any(tensors[0] is seen[0] for seen in passes[number]):  # a hook point with two names calls twice
                passes[number].append(tensors)

        with models.reading(self.model, layers, keep) as run_once:
            run_once(torch.tensor([row], device="cpu"), None)
        for number, layer in enumerate(layers):
            if len(passes[number]) != 1:
                raise NeuronShareError(
                    f"{layer.name} fired {len(passes[number])} times in a forward pass, so that the neurons of "
                    f"{models.name_of(self.model)} cannot be read there; is its MLP shared between layers?"
                )
            if layer.shape(passes[number][0]) != (1, len(row)):
                raise NeuronShareError(layer.misfit(passes[number][0], (1, len(row))))
        return [_plain(layers[number].read(tensors, 0)) for number, (tensors,) in passes.items()]


def _unwraps(model: LensModel) -> bool:
    """Whether a bridge's Hugging Face model has its weights: what changes them does not reach all modules inside."""
    return models.is_bridge(model) and not (models.is_processed(model) or models.is_edited(model))


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, in at least single precision."""
    return tensor.detach().to("cpu", torch.promote_types(tensor.dtype, torch.float32))


def _logits_of(hugging_face: nn.Module, row: Sequence[int]) -> Float[Tensor, "position vocabulary"]:
    device = next(parameter.device for parameter in hugging_face.parameters() if not parameter.is_meta)
    return _plain(hugging_face(torch.tensor([row], device=device)).logits[0])


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest number that is expected; NaN where only one of them is one."""
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())  # whoever gets such numbers is told elsewhere
    largest = theirs.nan_to_num(0, 0, 0).abs().max().clamp(min=1e-12)
    return ((ours - theirs).masked_fill(same, 0).abs().max() / largest).item()


def _centred(logits: Tensor) -> Tensor:
    """Without what is the same for all tokens, which says nothing and which processing takes away."""
    return logits - logits.mean(-1, keepdim=True)


def _check_logits(run: _Run) -> Outcome:
    if run.reference is None and not models.is_bridge(run.model):
        note = "a HookedTransformer holds no Hugging Face model to compare with; give reference="
        return Outcome(torch.nan, run.bound, note)
    if run.reference is not None:
        with models.left_as_found(run.reference):
            pairs = [(run.logits(row), _logits_of(run.reference, row)) for row in run.rows]
        if any(ours.shape != theirs.shape for ours, theirs in pairs):
            raise NeuronShareError(
                f"reference is another model: it knows {pairs[0][1].shape[-1]} tokens, "
                f"{models.name_of(run.model)} {pairs[0][0].shape[-1]}."
            )
    else:
        with models.unwrapped(run.model) as hugging_face:
            expected = [_logits_of(hugging_face, row) for row in run.rows]
        pairs = [(run.logits(row), theirs) for row, theirs in zip(run.rows, expected, strict=True)]
    value = max(_apart(_centred(ours), _centred(theirs)) for ours, theirs in pairs)
    if run.reference is None and not value <= run.bound and not run.unwraps:
        note = "the logits of a small random model of this architecture differ from the Hugging Face model's"
        return Outcome.of(_apart_of_twin(run), run.bound, note)
    return Outcome.of(value, run.bound, "the logits differ from the Hugging Face model's")


def _apart_of_twin(run: _Run) -> float:
    """How far a small model of the same architecture is from its Hugging Face model, processed where this one is."""
    twin: Any
    twin, hugging_face = _small_twin(run.model)
    expected = [_centred(_logits_of(hugging_face, row)) for row in run.rows]
    if models.is_processed(run.model):
        twin.enable_compatibility_mode(disable_warnings=True)
    run = _Run(twin, run.rows, unwraps=False)
    return max(_apart(_centred(run.logits(row)), theirs) for row, theirs in zip(run.rows, expected, strict=True))


def _check_site(run: _Run, *, site: Site) -> Outcome:
    """Each layer's values against what Hugging Face's modules receive and give.

    Of a gate or an up branch that is not a module of its own it is enough that the product of the two is what the down
    projection receives.
    """
    apart = []
    for row in run.rows[:2]:
        ours = run.values(row, site)
        theirs = _inside(run, row, site) if run.unwraps else None
        if theirs is not None:
            apart.append(_furthest(ours, theirs))
        elif site != "post":
            factors = zip(run.values(row, "gate"), run.values(row, "up"), strict=True)
            apart.append(_furthest([gate * up for gate, up in factors], run.values(row, "post")))
        elif not run.unwraps:
            apart.append(_written(run, row, []))
        else:
            return Outcome.of(torch.inf, run.bound, "the down projection of its MLPs is not a module of its own")
    return Outcome.of(max(apart), run.bound, f"the values at {site!r} are not those that the model computes with")


def _inside(run: _Run, row: Sequence[int], site: Site, masks: Sequence[Tensor] = ()) -> list[Tensor] | None:
    """Of each layer what goes into or comes out of a Hugging Face module; None where it has no such module.

    With masks it is set to zero there, and what is returned are the logits.
    """
    layers = models.neuron_layers(run.model, site)
    places = [layer.source for layer in layers]
    seen: dict[int, Tensor] = {}

    def of_input(module: nn.Module, inputs: tuple[Tensor, ...], *, number: int) -> Any:
        new = of_output(module, inputs, inputs[0], number=number)
        return None if new is None else (new, *inputs[1:])

    def of_output(module: nn.Module, inputs: Any, tensor: Tensor, *, number: int) -> Tensor | None:
        seen[number] = _plain(tensor.reshape(len(row), -1))  # OPT's rows are all tokens in one list
        return tensor.masked_fill(masks[number].to(tensor.device), 0) if masks else None

    with models.unwrapped(run.model) as hugging_face, ExitStack() as stack:
        for number, place in enumerate(places):
            if place is None:
                return None
            module, is_input = place
            handle = (
                module.register_forward_pre_hook(partial(of_input, number=number))
                if is_input
                else module.register_forward_hook(partial(of_output, number=number))
            )
            stack.callback(handle.remove)
        logits = _logits_of(hugging_face, row)
    if len(seen) < len(layers) or any(seen[number].shape[-1] != layer.width for number, layer in enumerate(layers)):
        return None
    return [logits] if masks else [seen[number] for number in range(len(layers))]


def _written(run: _Run, row: Sequence[int], hooks: models.Hooks) -> float:
    """How far each MLP's output is from what its neurons write, under hooks."""
    layers = models.neuron_layers(run.model, "post")
    values: dict[int, Tensor] = {}
    outputs: dict[tuple[int, str], Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor, *, number: int, name: str) -> None:
        outputs[number, name] = output

    with ExitStack() as stack:
        stack.enter_context(models.hooked(run.model, hooks))
        run_once = stack.enter_context(
            models.reading(run.model, layers, lambda number, read: values.update({number: layers[number].read(read)}))
        )
        for number, layer in enumerate(layers):
            for name, module in (("mlp", layer.mlp), ("down", models.nested(layer.mlp, "out"))):
                if isinstance(module, nn.Module):
                    hook = partial(keep, number=number, name=name)
                    stack.callback(module.register_forward_hook(hook).remove)
        run_once(torch.tensor([row], device="cpu"), None)
    # The down projection's where it is run as a module, since BLOOM's MLP adds the residual stream.
    ours = [outputs.get((number, "down"), outputs[number, "mlp"]) for number in range(len(layers))]
    expected = [values[number] @ layer.W_out() + layer.b_out() for number, layer in enumerate(layers)]
    return _furthest(map(_plain, ours), map(_plain, expected))


def _furthest(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """Over layers; a NaN counts as furthest."""
    apart = [_apart(one, other) for one, other in zip(ours, theirs, strict=True)]
    return max(apart, key=lambda value: (math.isnan(value), value))


def _check_edit(run: _Run, *, site: Site) -> Outcome:
    """Half of each layer's neurons set to zero, here and where the model computes them."""
    layers = models.neuron_layers(run.model, "up" if site == "up" else "post")  # the gate is edited at `post`
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(layer.width, generator=generator, dtype=torch.float32, device="cpu") < 0.5 for layer in layers]

    def zero(tensor: Tensor, hook: Any, *, neurons: models.NeuronHook, mask: Tensor) -> Tensor:
        values = neurons.read(tensor)
        return neurons.write(tensor, torch.zeros_like(values), mask.to(tensor.device)[None, None])

    hooks = [
        (neurons.name, partial(zero, neurons=neurons, mask=part))
        for layer, mask in zip(layers, masks, strict=True)
        for neurons, part in zip(layer.hooks, layer.split(mask), strict=True)
    ]
    row = run.rows[0]
    if not run.unwraps:
        if site == "gate":
            return _check_site(run, site="gate")
        return Outcome.of(_written(run, row, hooks), run.bound, "the MLP's output is not what its edited neurons write")
    expected = _inside(run, row, site, masks)
    if expected is None:  # without a module of its own: where the product is right, so is the edit of a factor
        if (product := _check_site(run, site=site)).passed is not True:
            return product
        expected = _inside(run, row, "post", masks)
    if expected is None:
        return Outcome.of(torch.inf, run.bound, "the down projection of its MLPs could not be found in the model")
    with models.hooked(run.model, hooks):
        ours = run.logits(row)
    return Outcome.of(
        _apart(_centred(ours), _centred(expected[0])), run.bound, f"setting neurons to zero at {site!r} is another edit"
    )


def _check_unembedding(run: _Run) -> Outcome:
    """What the final norm gives is what the unembedding reads, and this times the unembedding are the logits.

    Two positions are compared, so that biases fall out.
    """
    norm, unembed = models.nested(run.model, "ln_final"), models.nested(run.model, "unembed")
    if not isinstance(unembed, nn.Module):
        return Outcome.of(torch.inf, run.bound, "it has no unembedding")
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        seen[module] = inputs[0], output if isinstance(output, Tensor) else output[0]

    last = norm if isinstance(norm, nn.Module) else run.model.blocks[-1]
    row = max(run.rows, key=len)
    with ExitStack() as stack:
        for module in (last, unembed):
            stack.callback(module.register_forward_hook(keep).remove)
        run.logits(row)
    given, read, logits = (_plain(tensor[0]) for tensor in (seen[last][1], *seen[unembed]))
    if given.shape != read.shape or not _apart(read, given) <= run.bound:
        return Outcome.of(torch.inf, run.bound, "what the unembedding reads is not what the final norm gives")
    tokens = torch.arange(0, logits.shape[-1], max(1, logits.shape[-1] // 512), device="cpu")
    expected = given @ _plain(models.unembedding(run.model, tokens))
    steps = [part - part.roll(1, 0) for part in (logits[:, tokens], expected)] if len(row) > 1 else [logits, expected]
    return Outcome.of(_apart(*steps), run.bound, "logits are not the final norm's output times the unembedding")


def _check_padding(run: _Run) -> Outcome:
    """Rows of different length in one batch, padded on either side, against each alone: values and logits."""
    try:
        layers = models.neuron_layers(run.model, "post")
    except NeuronShareError:  # a model without neurons that can be read answers all the same
        layers = []
    rows = run.rows
    together = models.values_of(run.model, layers, *left_padded(rows), -1)
    logits = models.last_logits(run.model, *left_padded(rows), 1)[:, -1]
    halves = [(row[: (len(row) + 1) // 2], row[(len(row) + 1) // 2 :]) for row in rows]
    tokens, mask = padded_apart([before for before, _ in halves], [after for _, after in halves])
    apart, end = models.last_logits(run.model, tokens, mask, tokens.shape[1]), max(len(before) for before, _ in halves)
    values = []
    for number, row in enumerate(rows):
        alone = models.values_of(run.model, layers, torch.tensor([row], device="cpu"), None, -1)
        expected = run.logits(row)
        ours = [logits[number], *(layer[number] for layer in together)]
        values.append(_furthest(map(_plain, ours), map(_plain, [expected[-1], *(layer[0] for layer in alone)])))
        n_before, n_after = (len(half) for half in halves[number])
        values.append(_apart(_plain(apart[number, end - n_before : end + n_after]), expected))
    note = "prompts are changed by longer ones beside them; batches are of one length"
    value = max(values, key=lambda value: (math.isnan(value), value))
    return Outcome.of(value, run.bound, note)


def _check_cache(run: _Run) -> Outcome:
    """The logits of some steps with the cache against those without."""
    rows = run.rows if _passes(run.model, "padding") else run.rows[:1]
    forced = torch.tensor([run.rows[0][:1] * len(rows), run.rows[0][-1:] * len(rows)], device="cpu")
    steps: dict[bool, list[Tensor]] = {}
    for cached in (True, False):
        with decoding.next_logits(run.model, *left_padded(rows), cached=cached) as step:
            steps[cached] = [_plain(step())]
            for token in forced:
                step.append(token)
                steps[cached].append(_plain(step()))
    value = _furthest(steps[True], steps[False])
    note = "the key-value cache changes the logits; decoding runs the whole text for every token"
    return Outcome.of(value, run.bound, note)


def _check_decoding(run: _Run) -> Outcome:
    """Our greedy tokens against the likeliest ones of a run without cache, padding and TransformerLens."""
    cached = _passes(run.model, "cache")
    batches = [run.rows] if _passes(run.model, "padding") else [[row] for row in run.rows]
    new = [one for rows in batches for one in decoding.greedy(run.model, rows, run.n_new, cached=cached)]
    wrong = sum(_n_unlikely(run, row, tokens) for row, tokens in zip(run.rows, new, strict=True))
    return Outcome.of(float(wrong), 0.0, "tokens that are decoded are not the likeliest ones")


def _check_generate(run: _Run) -> Outcome:
    """The model's own `generate`, of one row."""
    row = run.rows[0]

    def n_wrong(**options: Any) -> int:
        with warnings.catch_warnings():  # of names that TransformerLens uses and Transformers renamed
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
    note = "the model's own generate gives other tokens than greedy decoding; nothing here uses it"
    if wrong and not n_wrong(use_past_kv_cache=False):
        note += ", and generate(..., use_past_kv_cache=False) is right"
    return Outcome.of(float(wrong), 0.0, note)


def _n_unlikely(run: _Run, row: Sequence[int], new: Sequence[int]) -> int:
    """How many of the new tokens are not the likeliest after those before them, by more than rounding."""
    logits = run.expected([*row, *new])[len(row) - 1 : -1]
    chosen = logits.gather(-1, torch.tensor(new, device="cpu")[:, None])[:, 0]
    return int((logits.amax(-1) - chosen > run.bound * logits.abs().max()).sum())


_CHECKS: dict[str, Callable[[_Run], Outcome]] = {
    "logits": _check_logits,
    **{site: partial(_check_site, site=site) for site in get_args(Site)},
    **{f"edit {site}": partial(_check_edit, site=site) for site in get_args(Site)},
    "unembedding": _check_unembedding,
    "padding": _check_padding,
    "cache": _check_cache,
    "decoding": _check_decoding,
    "generate": _check_generate,
}


def _small_twin(model: LensModel) -> tuple[LensModel, torch.nn.Module]:
    """A bridge of the same architecture with two random layers, and its Hugging Face model apart from it."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.original_model.config)  # type: ignore[attr-defined]
    text = config.get_text_config()
    text.num_hidden_layers = min(2, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hugging_face = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    alone = copy.deepcopy(hugging_face)
    twin = TransformerBridge.boot_transformers(
        str(config.name_or_path), hf_model=hugging_face, tokenizer=model.tokenizer, device="cpu", dtype=torch.float32
    )
    return twin, alone
