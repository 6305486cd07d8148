"""Ablate the neurons of each language, and measure what that does to the text of every language.

The table that papers on language neurons print: rows are ablated languages, columns measured ones. Here each of its
numbers has those of controls beside it. A language whose neurons write much loses more than others whatever neurons
are taken, and many neurons break more than few.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.ablation.controls import Control, Draw, Itself, checked_draw, chosen_controls, drawable
from tl_neuronshare.ablation.hooks import Edit, Mode, ablation_hooks, as_mode
from tl_neuronshare.ablation.study import checked_weights, own_functions_refused
from tl_neuronshare.ablation.targets import Choice, Targets, given_masks
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import distinct, whole
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.free_text import FreeText
from tl_neuronshare.launch import warn
from tl_neuronshare.maths.activation import Number, count_true
from tl_neuronshare.maths.bootstrap import Bootstrap
from tl_neuronshare.models import Hooks, LensModel, verification
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.prompts import short_hash
from tl_neuronshare.running import provenance
from tl_neuronshare.running.loop import Keeping, Loop, running
from tl_neuronshare.running.plan import BatchSize, Running
from tl_neuronshare.running.tallying import Tally, tallied

_ALL_TEXTS = 0  # the only example of the targets: one mask is for all texts


@explains
def cross_ablation(
    model: LensModel,
    texts: Mapping[str, Sequence[str]],
    masks: Mapping[str, Bool[Tensor, "layer neuron"]],
    *,
    controls: Sequence[str] = ("random", "magnitude"),
    seeds: Sequence[int] = range(3),
    mode: Mode | Edit = "zero",
    values: Number | Mapping[str, Float[Tensor, "layer neuron"]] | None = None,
    layers: Sequence[int] | None = None,
    n_resamples: int = 5000,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    out: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the perplexity of each language's texts with each language's neurons ablated, beside controls.

    Args:
        model: a HookedTransformer or TransformerBridge, of a decoder.
        texts: the texts of each language, which need not be parallel. They should not be those that the neurons were
            found on.
        masks: the neurons of each language, such as `methods.lape` finds; other names are possible too.
        controls: which other neurons to ablate for comparison, drawn once for all texts.
            `random`: as many neurons in each layer, drawn from all neurons.
            `magnitude`: for each neuron of the mask, the neuron outside it with the nearest generation impact, as a
                mean over the tokens of the language's texts (of all languages, if the mask's name is not one of them).
            The other controls of `ablation_study` are not defined for free text; their rows say why.
        seeds: each control is drawn once for each seed. The results are averaged over seeds before anything else.
        mode: as in `ablation_hooks`, except `resample`. Neurons are edited at every token.
        values: for `scale`, a number; for `mean`, a tensor for each mask, such as `reference_values` gives.
        layers: the numbers of the layers in which neurons are ablated; all by default.
        n_resamples: how many resamples the bootstrap draws.
        batch_size: as in `evaluate`.
        prepend_bos: as in `categorise`.
        out: as in `categorise`; not together with a function as mode or a control of your own, which a folder cannot
            identify.
        shard: as in `categorise`.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        A table with a row for each mask, control and measured language. Columns: ablated (the mask's name; `none` is
        the unablated model); measured (the language of the texts); control (`none` for the mask itself); perplexity;
        log_prob (the mean over tokens, in nats); difference (of log_prob from the unablated model), with its 95 %
        interval low and high; vs_control (the mask's log_prob minus the control's, only in rows of controls), with its
        interval vs_low and vs_high; neurons (how many were ablated); overlap (the share of the control's neurons that
        are in the mask); tokens; texts; note.

        Intervals are percentile bootstraps over texts, paired by text; they need at least ten. If a control cannot be
        drawn, its numbers are NaN and `note` says why. `table.attrs` says how the table was made.

    Raises:
        NeuronShareError: a text is too short or too long, a mask has the wrong shape, or a control or option is
            unknown.

    Warns:
        UserWarning: the weights are folded or centred, and `magnitude` is among the controls.

    Examples:
        >>> texts = {"en": ["Country code of Peru → PE"], "de": ["Ländercode von Peru → PE"]}
        >>> masks = ns.methods.lape(ns.activation_rates(model, texts))
        >>> table = cross_ablation(model, texts, masks, controls=["random"], seeds=[0])
        >>> table[["ablated", "measured", "control"]].to_numpy().tolist()[:4]
        [['none', 'en', 'none'], ['none', 'de', 'none'], ['en', 'en', 'none'], ['en', 'de', 'none']]
    """
    how, keeping, bootstrap = Running(batch_size, prepend_bos), Keeping(out, shard), Bootstrap(n_resamples)
    kinds: list[Control] = [Itself(), *chosen_controls(controls)]
    own_functions_refused(keeping, mode, kinds)
    seeds = [whole("seeds", seed) for seed in distinct("seeds", seeds, what="whole numbers")]
    text = FreeText(model, texts, how)
    replacing = _Replacing(model, as_mode("mode", mode), values)
    targets = _targets(model, masks, Choice(layers=layers))
    replacing.check(list(targets.masks), tuple(targets.is_neuron.shape))
    record = {
        **provenance.describe(model),
        "texts": {language: short_hash(json.dumps(list(texts[language]))) for language in text.languages},
        "masks": provenance.hash_of_bits(masks),
        **{"controls": [kind.name for kind in kinds[1:]], "seeds": seeds, "mode": replacing.name},
        **{"layers": targets.layers, **how.on(model).record},
    }

    if any(mask.any() for mask in masks.values()):
        for warning in checked_weights(model, kinds, record["weights"]):
            warn(warning)

    def about() -> dict[str, Any]:
        hashes = {"fingerprint_of_weights": fingerprint_of_weights(model), "values": provenance.hash_of_values(values)}
        return {"call": "cross_ablation", **record, **hashes}

    draws = _Draws(text, targets, progress=progress)
    crossed = [_Crossed(name, kind, draws.of(name, kind, seeds)) for name in targets.masks for kind in kinds]
    n_runs = 1 + sum(len(each.drawn.masks) for each in crossed)
    with running(
        model, "cross ablation", n_rows=n_runs * text.n_rows, progress=progress, keeping=keeping, about=about
    ) as loop:
        unablated = _scores(text, loop, "none")
        for each in crossed:
            for seed, mask in each.drawn.masks.items():
                stage = f"{each.name}/{each.kind.name}/{seed}"
                each.runs.append(_scores(text, loop, stage, partial(replacing.hooks, each.name, mask)))
    table = pd.DataFrame(_rows(text, unablated, crossed, bootstrap))
    table.attrs.update({**record, "n_resamples": bootstrap.n_resamples, "verified": verification.is_verified(model)})
    return table


# For each language, the log-probability of each text.
_LogProbs = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class _DrawnMasks:
    """The neurons that were drawn with each seed; none if they cannot be drawn, with the reason."""

    masks: dict[int, Bool[Tensor, "layer neuron"]]
    overlap: float
    note: str


class _Crossed:
    """One mask or control, and what its runs gave, one for each seed."""

    def __init__(self, name: str, kind: Control, drawn: _DrawnMasks) -> None:
        self.name, self.kind, self.drawn = name, kind, drawn
        self.runs: list[_LogProbs] = []

    def mean(self, language: str) -> NDArray[np.float64]:
        """The log-probability of each text of a language, as a mean over the seeds; NaN if nothing was run."""
        of_seeds = [run[language] for run in self.runs]
        return np.mean(of_seeds, axis=0) if of_seeds else np.array(np.nan)


def _targets(model: LensModel, masks: Any, choice: Choice) -> Targets:
    """Which neurons are ablated, after checking that the masks fit the model."""
    if not isinstance(masks, Mapping):
        raise NeuronShareError(f"masks is a {type(masks).__name__}; give {{language: mask}}.")
    widths = [layer.width for layer in models.neuron_layers(model, "post")]
    for name, mask in masks.items():
        if isinstance(mask, Tensor) and mask.ndim != 2:
            raise NeuronShareError(
                f"The mask {name!r} has shape {tuple(mask.shape)}; free text needs one mask for all texts, of shape "
                f"{(len(widths), max(widths))}."
            )
    return Targets(
        given_masks(masks, n_examples=1, widths=widths),
        [_ALL_TEXTS],
        widths,
        choice,
        unknown="the texts were not categorised",
    )


class _Draws:
    """Draws the neurons of masks and controls, which are the same for all texts."""

    def __init__(self, text: FreeText, targets: Targets, *, progress: bool) -> None:
        self.text, self.targets, self._progress = text, targets, progress

    def of(self, name: str, kind: Control, seeds: Sequence[int]) -> _DrawnMasks:
        """Draw once for each seed; the mask itself only once."""
        can_be_drawn = drawable(kind, self.targets, name)
        if not can_be_drawn.examples.all():
            return _DrawnMasks({}, np.nan, can_be_drawn.why_not)
        mask, masks, sums = self.targets.ablated(name, seeds[0], [_ALL_TEXTS]), {}, dict[str, float]()
        for seed in seeds[:1] if kind.name == Itself.name else seeds:
            draw = Draw(self.targets, name, kind.name, seed, name, [_ALL_TEXTS], mask, partial(self._impact, name))
            drawn = checked_draw(kind, draw)
            masks[seed] = drawn.mask[0]
            shared = drawn.mask & self.targets.whole(name, [_ALL_TEXTS])
            measures = {"neurons": drawn.mask, "shared": shared, **drawn.measures}
            for what, numbers in measures.items():
                sums[what] = sums.get(what, 0.0) + numbers.double().sum().item()
        return _DrawnMasks(masks, sums["shared"] / sums["neurons"], kind.note(sums))

    def _impact(self, name: str) -> Float[Tensor, "row layer neuron"]:
        """Each neuron's mean generation impact over the tokens of a language's texts, or of all languages'."""
        impacts = self._impacts
        impact = impacts[name] if name in impacts else torch.stack([*impacts.values()]).mean(0)
        return impact[None].masked_fill(~self.targets.is_neuron, torch.nan)

    @cached_property
    def _impacts(self) -> dict[str, Float[Tensor, "layer neuron"]]:
        """Each neuron's mean generation impact in the unablated model, for each language."""
        model, text = self.text.model, self.text
        layers = [layer.weighted() for layer in models.neuron_layers(model, "post")]
        absolute = Tally(lambda layer, values: values.abs().sum(0)[:, None], dtype=torch.float64)
        with running(model, "mean impacts", progress=self._progress) as loop:
            sums = tallied(model, layers, text.texts, absolute, part="whole", how=text.how, loop=loop)
        lengths = torch.zeros(self.targets.is_neuron.shape, dtype=torch.float64, device="cpu")
        for number, layer in enumerate(layers):
            lengths[number, : layer.width] = layer.lengths.cpu()
        means = sums.numbers[..., 0] / sums.tokens[:, None, None] * lengths
        return dict(zip(text.languages, means.float(), strict=True))


class _Replacing:
    """Makes the hooks that replace the values of a mask's neurons."""

    def __init__(self, model: LensModel, mode: Mode | Edit, values: Any) -> None:
        self.model, self.mode, self.values = model, mode, values
        if mode == "resample":
            raise NeuronShareError(
                "mode='resample' takes the values of other examples of the same prompts, which free text does not "
                "have; use zero, mean or scale."
            )

    @property
    def name(self) -> str:
        """The mode, for the metadata of a result."""
        return self.mode if isinstance(self.mode, str) else getattr(self.mode, "__name__", "function")

    def check(self, names: Sequence[str], shape: tuple[int, ...]) -> None:
        """Refuse values that lack a mask's, before anything is run."""
        if self.mode == "mean":
            given = self.values if isinstance(self.values, Mapping) else {}
            missing = [name for name in names if name not in given]
            if missing:
                raise NeuronShareError(
                    f"mode='mean': values has none for {', '.join(missing)}; give {{name: tensor}} for each of the "
                    "masks, such as reference_values makes."
                )
        for name in names:
            self.hooks(name, torch.zeros(shape, dtype=torch.bool, device="cpu"))

    def hooks(self, name: str, mask: Bool[Tensor, "layer neuron"]) -> Hooks:
        """Return the hooks that ablate the neurons of a mask or of its control."""
        values = self.values[name] if self.mode == "mean" else self.values
        return ablation_hooks(self.model, mask, mode=self.mode, values=values)


def _scores(text: FreeText, loop: Loop, stage: str, hooks: Callable[[], Hooks] | None = None) -> _LogProbs:
    """The log-probability of each text under hooks; a language that other processes have not done yet is left out."""
    found = {}
    for language in text.languages:
        log_probs = loop.part(partial(text.log_probs, language, hooks and hooks(), loop, stage=stage))
        if log_probs is not None:
            found[language] = log_probs.numpy()
    return found


def _rows(
    text: FreeText, unablated: _LogProbs, crossed: Sequence[_Crossed], bootstrap: Bootstrap
) -> Iterator[dict[str, Any]]:
    """Make the rows of `cross_ablation`."""
    of_masks = {each.name: each for each in crossed if each.kind.name == Itself.name}
    for language in text.languages:
        labels = {"ablated": "none", "measured": language, "control": "none"}
        yield _row(text, labels, unablated[language], {"difference": 0.0, "neurons": 0})
    for each in crossed:
        is_mask = each is of_masks[each.name]
        for language in text.languages:
            log_probs, tokens = each.mean(language), text.tokens[language].numpy()
            rest: dict[str, Any] = {"note": each.drawn.note}
            if each.runs:
                rest |= _compared(log_probs - unablated[language], tokens, bootstrap, ("difference", "low", "high"))
                sizes = [int(count_true(mask).sum()) for mask in each.drawn.masks.values()]
                rest["neurons"] = np.mean(sizes)
            if each.runs and not is_mask:
                against = of_masks[each.name].mean(language) - log_probs
                rest |= _compared(against, tokens, bootstrap, ("vs_control", "vs_low", "vs_high"))
                rest["overlap"] = each.drawn.overlap
            control = "none" if is_mask else each.kind.name
            yield _row(text, {"ablated": each.name, "measured": language, "control": control}, log_probs, rest)


def _compared(
    differences: NDArray[np.float64], tokens: NDArray[np.int64], bootstrap: Bootstrap, names: tuple[str, str, str]
) -> dict[str, float]:
    """A difference of texts' log-probabilities a token, with the ends of its interval, under these names."""
    low, high = map(float, bootstrap.intervals(differences, tokens))
    return dict(zip(names, (differences.sum() / tokens.sum(), low, high), strict=True))


def _row(
    text: FreeText, labels: dict[str, str], log_probs: NDArray[np.float64], rest: dict[str, Any]
) -> dict[str, Any]:
    """Make a row in which all numbers that are not given are missing."""
    language = labels["measured"]
    tokens = int(text.tokens[language].sum())
    mean = float(log_probs.sum() / tokens)
    missing = ("difference", "low", "high", "vs_control", "vs_low", "vs_high", "neurons", "overlap")
    return {
        **labels,
        **{"perplexity": float(np.exp(-mean)), "log_prob": mean, **dict.fromkeys(missing, np.nan)},
        **{"tokens": tokens, "texts": len(text.rows[language]), "note": "", **rest},
    }
