"""Make hooks that replace neurons' values, for any run or generation of the user.

Each edit is a pure function of a layer's tensor. One wrapper (`_Ablation`) checks width, batch and positions, and puts
the new values where mask and position say. It makes a new tensor, so a tensor that was cached earlier stays as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import finite
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import Number, Position, as_position
from tl_neuronshare.models import verification
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.neurons import NeuronHook, NeuronLayer, Site
from tl_neuronshare.results.masks import check_mask

Mode = Literal["zero", "mean", "resample", "scale"]
Edit = Callable[[Tensor], Tensor]
# "all" includes generated tokens; the other positions are in the prompt.
AblationPosition = Literal["all", "last"] | int | Bool[Tensor, "batch pos"]


@explains
def ablation_hooks(
    model: LensModel,
    mask: Bool[Tensor, "layer neuron"] | Bool[Tensor, "batch layer neuron"],
    *,
    mode: Mode | Edit = "zero",
    values: Number | Float[Tensor, "layer neuron"] | Float[Tensor, "batch layer neuron"] | None = None,
    position: AblationPosition = "all",
    prompt_tokens: int | None = None,
    tokens: Int[Tensor, "batch pos"] | None = None,
    site: Site = "post",
) -> list[tuple[str, Callable[..., Tensor | None]]]:
    """Make hooks that replace the values of the mask's neurons, for `run_with_hooks`, `model.hooks` and `generate`.

    The hooks are a list of pairs of a hook's name and a function, so lists of hooks can be joined by `+`. Tensors are
    not edited in place.

    Args:
        model: the HookedTransformer or TransformerBridge that you will run.
        mask: which neurons are edited. Give one mask for all rows of the batch, or one for each row, in their order.
        mode: what replaces the values of the neurons.
            `zero`: the number 0.
            `mean` or `resample`: the numbers in `values`, such as `reference_values` makes.
            `scale`: their own values, multiplied by the number `values` (2 amplifies).
            A function: it gets the layer's tensor [batch, position, neuron] and returns a tensor of the same shape and
                dtype. Only the values of the mask's neurons are taken from it. In a mixture with an expert that every
                token uses, it is called once for that expert and once for the others, whose values are 0 meanwhile.
        values: for `mean` and `resample`, a number for each neuron, or for each neuron of each row. For `scale`, one
            number.
        position: at which tokens the neurons are edited. `all` means every token, also those that are generated. (In
            `categorise`, `all` means something else: a neuron must be active at every token.) The other positions are
            in the prompt and leave generated tokens as they are: `last` is the last token of the prompt; a negative
            index counts from its end (-1 is `last`); a boolean tensor chooses tokens of the (padded) prompt. Every
            prompt must have a token at a negative index; in a row that is too short, padding is edited instead.
        prompt_tokens: how many tokens the prompt has, left padding included. A hook cannot know this: with a key-value
            cache it sees for example 5 tokens, then 1, then 1, and without a cache 5, 6, 7. If it is None, `last` and
            negative indices count from the end of each call. After a prompt of one token, each later call of one token
            is taken to be a generated token.
        tokens: the tokens of the (padded) prompt. With position `all`, special tokens in it (BOS ...) are then not
            edited.
        site: `post`, the input of the down projection; in a gated MLP also `up` or `gate`. At `gate` only `zero` and
            `scale` are possible, which do the same as at `post`.

    Returns:
        Pairs of a hook's name and a function, for all layers.

    Raises:
        NeuronShareError: the mask has the wrong dtype or shape; a mode, position or site is unknown; or values are
            missing or do not fit. The hooks raise it if the batch or the layer does not have the size of the mask, or
            if a call is neither the prompt nor a step after it.

    Source: the paper's deactivation (arXiv 2406.09265v2) is `zero` at all positions.

    Examples:
        >>> mask = ns.categorise(model, ns.demo.prompts()[9:10], progress=False).mask("all-shared")[0]
        >>> prompt = ns.demo.prompts().prompts["en"][9]
        >>> for hooks in ([], ablation_hooks(model, mask), ablation_hooks(model, mask, mode="scale", values=2)):
        ...     logits = model.run_with_hooks(prompt, fwd_hooks=hooks)
        ...     print(prompt + model.tokenizer.decode(logits[0, -1].argmax()))
        Sum of 12 and 10 → 22
        Sum of 12 and 10 → 17
        Sum of 12 and 10 → 23
    """
    layers = layers_to_edit(model, site, mode)
    check_places(model, position, tokens is not None)
    text = None
    if tokens is not None:
        if not isinstance(tokens, Tensor) or tokens.ndim != 2:
            raise NeuronShareError(f"tokens is {_described(tokens)}; give the prompt's token ids [batch, position].")
        text = models.is_text(model, tokens)
    return hooks_at(
        layers,
        mask,
        mode=mode,
        values=values,
        position=position,
        prompt_tokens=prompt_tokens,
        text=text,
    )


def check_places(model: LensModel, position: Any, skips_special: bool) -> None:
    """Refuse positions that the hooks of an encoder cannot find: only its mask says where a prompt ends."""
    architecture = models.architecture_of(model)
    is_all = isinstance(position, str) and position == "all"
    if architecture == "encoder-decoder" and (skips_special or not is_all):
        raise NeuronShareError(
            f"{models.name_of(model)} is an encoder-decoder, whose encoder and decoder see different tokens, so that "
            'positions are of one of them only; use position="all", and edit special tokens too.'
        )
    if architecture == "encoder" and not (is_all or isinstance(position, Tensor)):
        raise NeuronShareError(
            f"{models.name_of(model)} is an encoder, whose prompts are padded on the right, so that a hook cannot know "
            'where they end; use position="all", or booleans [batch, position] that choose the tokens.'
        )


def hooks_at(
    layers: Sequence[NeuronLayer],
    mask: Bool[Tensor, "layer neuron"] | Bool[Tensor, "batch layer neuron"],
    *,
    mode: Mode | Edit,
    values: Any,
    position: AblationPosition,
    prompt_tokens: int | None,
    text: Bool[Tensor, "batch pos"] | None,
) -> list[tuple[str, Callable[..., Tensor | None]]]:
    """Make the hooks of `ablation_hooks` for given layers; `text` is True at prompt tokens that are not special."""
    check_mask(mask)
    widest = max(layer.width for layer in layers)
    if tuple(mask.shape[-2:]) != (len(layers), widest):
        raise NeuronShareError(
            f"The mask has shape {tuple(mask.shape)}; the model has {len(layers)} layers of {widest} neurons: "
            f"give {(len(layers), widest)}, or {('batch', len(layers), widest)} for one mask a row."
        )
    for number, layer in enumerate(layers):
        if layer.width < widest and mask[..., number, layer.width :].any():
            raise NeuronShareError(
                f"Layer {number} has {layer.width} neurons, but the mask has some beyond them; leave these out."
            )
    reference = _checked_values(mode, values, mask)
    places = _Places(position, prompt_tokens, text)
    if mask.ndim == 3 and places.n_rows not in (None, len(mask)):
        raise NeuronShareError(
            f"The mask has {len(mask)} rows, but the tokens or positions have {places.n_rows}; give the same number."
        )
    hooks: list[tuple[str, Callable[..., Tensor | None]]] = []
    for number, layer in enumerate(layers):
        masks = layer.split(mask[..., number, :])
        references = [None] * len(masks) if reference is None else layer.split(reference[..., number, :])
        start = 0
        for neurons, mask_of_hook, reference_of_hook in zip(layer.hooks, masks, references, strict=True):
            if reference_of_hook is not None:
                new: _NewValues = _Put(reference_of_hook)
            else:
                new = _Apply(mode, start, layer.width) if callable(mode) else _scaling(mode, values)
            hooks += _Ablation(neurons, mask_of_hook, new, places).hooks
            start += neurons.width
    return hooks


def layers_to_edit(model: LensModel, site: Site, mode: Mode | Edit) -> list[NeuronLayer]:
    """Find the layers to edit. A gate is edited at `post`, because its hook is before the activation function."""
    layers = models.neuron_layers(model, site)
    verification.require(model, "logits", f"edit {site}")
    if all(layer.is_editable for layer in layers):
        return layers
    if mode not in ("zero", "scale"):
        raise NeuronShareError(
            f"site={site!r} with mode={mode!r}: the gate is read before its activation function and can only be set to "
            'zero or scaled, which is the same at site="post"; use that site.'
        )
    return models.neuron_layers(model, "post")


def as_mode(name: str, value: Any) -> Mode | Edit:
    """A mode, checked: one of those with a name, or a function."""
    if not callable(value) and value not in get_args(Mode):
        raise NeuronShareError(f"{name}={value!r} is unknown; use one of {', '.join(get_args(Mode))}, or a function.")
    mode: Mode | Edit = value
    return mode


def _checked_values(mode: Any, values: Any, mask: Tensor) -> Tensor | None:
    """Check the mode and its values, and return the values of `mean` and `resample`; None for other modes."""
    if callable(mode) or mode == "zero":
        if values is not None:
            raise NeuronShareError(f"mode={mode!r} takes no values; leave them out, or choose mean, resample or scale.")
        return None
    if as_mode("mode", mode) == "scale":
        if not isinstance(values, Real) or isinstance(values, bool):
            raise NeuronShareError(f"mode='scale' needs a number as values, such as 2.0; got {_described(values)}.")
        finite("values", values, such_as="2.0")
        return None
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise NeuronShareError(
            f"mode={mode!r} needs values, a float tensor [layer, neuron] or [batch, layer, neuron] such as "
            f"reference_values makes; got {_described(values)}."
        )
    rows = () if mask.ndim == 2 and values.ndim == 2 else ((mask if mask.ndim == 3 else values).shape[0],)
    if tuple(values.shape) not in {tuple(mask.shape[-2:]), (*rows, *mask.shape[-2:])}:
        raise NeuronShareError(
            f"values have shape {tuple(values.shape)}, but the mask has {tuple(mask.shape)}; give one number for each "
            "neuron, or for each neuron of each row."
        )
    reference = values.to(mask.device)
    if not (reference.isfinite() | ~mask).all():
        raise NeuronShareError("values are NaN or infinite for some of the mask's neurons; give finite ones.")
    return reference


# The hook and its tensors -> new values, laid out as the last tensor is.
_NewValues = Callable[[NeuronHook, Sequence[Tensor]], Tensor]


def _scaling(mode: Any, values: Any) -> _NewValues:
    """The edit of `zero` and `scale`, as a pure function of a hook's tensors."""
    return partial(_scaled, factor=0.0 if mode == "zero" else float(values))


def _scaled(neurons: NeuronHook, tensors: Sequence[Tensor], *, factor: float) -> Tensor:
    """The values multiplied by a factor; zero also where they are infinite."""
    return tensors[-1] * factor if factor else tensors[-1].new_zeros(()).expand_as(tensors[-1])


def _described(values: Any) -> str:
    """Describe a value in messages; a tensor by its dtype and shape."""
    if isinstance(values, Tensor):
        return f"{values.dtype} of shape {tuple(values.shape)}"
    return "none" if values is None else repr(values)


class _Put:
    """Puts reference values at every position."""

    def __init__(self, values: Float[Tensor, "*batch neuron"]) -> None:
        self.values = rearrange(values, "... neuron -> (...) 1 neuron")
        self.has_rows = values.ndim == 2

    def __call__(self, neurons: NeuronHook, tensors: Sequence[Tensor]) -> Tensor:
        tensor, (n_rows, _) = tensors[-1], neurons.shape(tensors) or (0, 0)
        self.values = self.values.to(tensor.device)
        if self.has_rows and len(self.values) != n_rows:
            raise NeuronShareError(f"The values are for {len(self.values)} rows, but the batch has {n_rows}.")
        return neurons.like(self.values.to(tensor.dtype), tensors)

    def of_rows(self, rows: Int[Tensor, " row"]) -> _Put:
        """The values of a batch whose rows belong to these."""
        return _Put(self.values[rows, 0]) if self.has_rows else self


class _Apply:
    """Applies the user's function to the values of all neurons at all positions.

    Args:
        function: the user's function.
        start: where the hook's neurons begin in the layer.
        width: how many neurons the layer has. Those of its other hooks are 0, since they are computed apart.
    """

    def __init__(self, function: Edit, start: int, width: int) -> None:
        self.function, self.start, self.width = function, start, width

    def __call__(self, neurons: NeuronHook, tensors: Sequence[Tensor]) -> Tensor:
        own = slice(self.start, self.start + neurons.width)
        values = neurons.read(tensors)
        if neurons.width < self.width:
            part, values = values, values.new_zeros(*values.shape[:-1], self.width)
            values[..., own] = part
        new = self.function(values.clone())  # a copy, in case it edits in place
        if not isinstance(new, Tensor) or new.shape != values.shape or new.dtype != values.dtype:
            raise NeuronShareError(
                f"{neurons.name}: the function given as mode returned {_described(new)} for {_described(values)}; "
                "it must keep shape and dtype."
            )
        return neurons.like(new[..., own], tensors)


class _Places:
    """Decides which positions of a call to edit."""

    def __init__(self, position: Any, prompt_tokens: Any, text: Bool[Tensor, "batch pos"] | None) -> None:
        self.end = _as_count(prompt_tokens)
        self.of_prompt: Bool[Tensor, "batch pos"] | None = None  # True at the prompt's positions to edit
        self.after = position == "all" if isinstance(position, str) else False  # whether to edit generated tokens
        self.position: Any = None
        if isinstance(position, Tensor):
            if position.dtype != torch.bool or position.ndim != 2:
                raise NeuronShareError(
                    f"position is {_described(position)}; give booleans [batch, position], or a name."
                )
            self.of_prompt = position
        elif not self.after:
            self.position = position_index(position)
        if text is not None:
            if not self.after:
                raise NeuronShareError(
                    'Special tokens can be skipped only with position="all"; leave out tokens (or skip_special_tokens).'
                )
            self.of_prompt = text
        if self.of_prompt is not None:
            if self.end not in (None, self.of_prompt.shape[1]):
                raise NeuronShareError(
                    f"prompt_tokens={self.end}, but tokens or positions have length {self.of_prompt.shape[1]}; give "
                    "the same length."
                )
            self.end = self.of_prompt.shape[1]
        if self.position is not None and self.end is not None and self.position < -self.end:
            raise NeuronShareError(
                f"position={position!r} is before the first of the prompt's {self.end} tokens; choose a later one."
            )

    @property
    def n_rows(self) -> int | None:
        """How many rows the batch must have; None means any number."""
        return None if self.of_prompt is None else len(self.of_prompt)

    def chosen(
        self, n_rows: int, length: int, *, is_later: bool, hook: str
    ) -> Bool[Tensor, "#batch #position 1"] | None:
        """Choose the positions of a call to edit; None means none of them.

        Args:
            n_rows: how many rows the call has.
            length: how many tokens each row of the call has.
            is_later: whether this layer has already seen the prompt.
            hook: the hook's name, for messages.
        """
        everywhere = torch.ones(1, 1, 1, dtype=torch.bool, device="cpu")
        if self.of_prompt is None and self.position is None:
            return everywhere
        end = length if self.end is None else self.end
        if length < end and not (is_later and length == 1):
            raise NeuronShareError(
                f"{hook} gave {length} token(s), but the prompt has {end} (prompt_tokens): this is neither the prompt "
                "nor one token after it. Make hooks for each batch, with the length of its padded prompt."
            )
        if is_later and length == 1 and self.end is not None:  # a step with a key-value cache
            return everywhere if self.after else None
        if self.of_prompt is None:
            if end + self.position < 0:
                raise NeuronShareError(f"{hook} gave {length} tokens; there is no position {self.position} in them.")
            chosen = torch.zeros(1, length, dtype=torch.bool, device="cpu")
            chosen[0, end + self.position] = True
        else:
            if len(self.of_prompt) != n_rows:
                raise NeuronShareError(_other_batch(hook, n_rows, "tokens or positions", len(self.of_prompt)))
            generated = torch.full((n_rows, length - end), self.after, device="cpu")
            chosen = torch.cat([self.of_prompt.cpu(), generated], dim=1)
        return rearrange(chosen, "batch position -> batch position 1")


def _as_count(number: Any) -> int | None:
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
        raise NeuronShareError(
            f"prompt_tokens={number!r} is not a number of tokens; give the length of the padded prompt."
        )
    return int(number)


def position_index(position: Any) -> int:
    """The negative index that means the same as a position; "last" is -1."""
    if isinstance(position, str) and position != "last":
        raise NeuronShareError(f"position={position!r} is unknown here; use all, last or a negative index.")
    index: Position = as_position(position)
    return index if isinstance(index, int) else -1


def _other_batch(hook: str, n_rows: int, what: str, n_expected: int) -> str:
    return (
        f"{hook} gave {n_rows} rows, but {what} are for {n_expected}: nothing is broadcast. Make hooks for each batch; "
        "if a batch is expanded (beams, several sequences for one prompt), repeat the mask's rows in the same way."
    )


class _Ablation(models.Editing):
    """The function of one hook, which puts new values where mask and position say."""

    def __init__(
        self, neurons: NeuronHook, mask: Bool[Tensor, "*batch neuron"], new: _NewValues, places: _Places
    ) -> None:
        super().__init__(neurons.names, self._edited)
        self.neurons, self.new, self.places = neurons, new, places
        self.mask = rearrange(mask, "... neuron -> (...) 1 neuron")
        self.has_rows = mask.ndim == 2
        self.is_empty = not mask.any()
        self._has_seen_prompt = False

    @property
    def is_local(self) -> bool:
        """Whether the edit of a token depends on that token alone. For a user's own function this is not known."""
        return not isinstance(self.new, _Apply)

    def ends_at(self, prompt_tokens: int) -> bool:
        """Whether this hook assumes that the prompt has this many tokens, or does not need to know."""
        places = self.places
        return places.end == prompt_tokens or (places.end is None and places.position is None)

    def following(self, rows: Int[Tensor, " row"]) -> _Ablation:
        """The edit of tokens after the prompt, in a batch whose rows belong to these rows of the prompts."""
        edit = copy.copy(self)  # it shares the tensors that the hooks of its other points keep
        edit.edit = edit._edited
        edit.mask = self.mask[rows] if self.has_rows else self.mask
        edit.new = self.new.of_rows(rows) if isinstance(self.new, _Put) else self.new
        edit.places, edit.is_empty = _Places("all", None, None), self.is_empty or not self.places.after
        return edit

    def _edited(self, tensors: list[Tensor]) -> Tensor | None:
        tensor = tensors[-1]
        n_rows, length = self._size(tensors)
        chosen = self.places.chosen(n_rows, length, is_later=self._has_seen_prompt, hook=self.neurons.name)
        self._has_seen_prompt = True
        if chosen is None or self.is_empty:
            return None
        self.mask = self.mask.to(tensor.device)
        where = self.neurons.like(self.mask, tensors) & self.neurons.like(chosen.to(tensor.device), tensors)
        return torch.where(where, self.new(self.neurons, tensors), tensor)

    def _size(self, tensors: Sequence[Tensor]) -> tuple[int, int]:
        """How many rows and tokens the call has. The rows must be as many as the mask's."""
        shape = self.neurons.shape(tensors)
        if shape is None:
            raise NeuronShareError(NeuronLayer((self.neurons,)).misfit(tensors, ("any", "any")))
        if self.has_rows and len(self.mask) != shape[0]:
            raise NeuronShareError(_other_batch(self.neurons.name, shape[0], "the masks", len(self.mask)))
        return shape
