"""Measure neurons' values over prompts, as replacements for `mean` and `resample`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.ablation.hooks import position_index
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import flag, texts_by_language
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models import LensModel, NeuronLayer, Stack, verification
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.running.loop import Loop, running
from tl_neuronshare.running.plan import Batch, BatchSize, Plan, Running
from tl_neuronshare.running.shards import Record


@explains
def reference_values(
    model: LensModel,
    prompts: ParallelPrompts | Mapping[str, Sequence[str]],
    *,
    each: bool = False,
    position: Literal["all", "last"] | int = "last",
    site: Literal["post", "up"] = "post",
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> dict[str, Float[Tensor, "layer neuron"]] | dict[str, Float[Tensor, "example layer neuron"]]:
    """Measure the neurons' values over prompts, in each language, for the modes `mean` and `resample`.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompts: the prompts to run: ParallelPrompts, or texts by language, which need not be parallel.
        each: whether to return the values of each prompt instead of their mean. For `resample`, take the row of a
            different example.
        position: the token whose values are taken: the prompt's `last` token, or a negative index from its end. `all`
            takes the mean over all tokens of the prompt that are not special (BOS ...).
        site: `post`; in a gated MLP also `up`.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        For each language a float tensor [layer, neuron], or with `each` [prompt, layer, neuron]. If a layer is
        narrower than the widest layer, the rest of its row is 0.

    Raises:
        NeuronShareError: the model or an option is unsuitable, there are no texts, or a prompt is too short or too
            long.

    Examples:
        >>> means = reference_values(model, {"en": ["Country code of Peru →", "Country code of Chad →"]})
        >>> hooks = ablation_hooks(model, means["en"] > 1, mode="mean", values=means["en"])
        >>> means["en"].shape  # layer neuron
        torch.Size([4, 512])
    """
    how, each = Running(batch_size, prepend_bos).on(model), flag("each", each)
    texts = texts_by_language("prompts", prompts.prompts if isinstance(prompts, ParallelPrompts) else prompts)
    if site not in ("post", "up"):
        raise NeuronShareError(f"site={site!r} has no values that can be put there; use post or up.")
    models.check_position(model, position)
    index = None if position == "all" else position_index(position)
    layers = models.neuron_layers(model, site)
    verification.require(model, "logits", site)
    with running(model, "reference values", n_rows=sum(map(len, texts.values())), progress=progress) as loop:
        values = {
            language: values_at(model, layers, of_language, language, index=index, how=how, loop=loop)
            for language, of_language in texts.items()
        }
    return values if each else {language: of_language.mean(0) for language, of_language in values.items()}


def values_at(
    model: LensModel,
    layers: Sequence[NeuronLayer],
    texts: Sequence[str],
    language: str,
    *,
    index: int | None,
    how: Running,
    loop: Loop,
) -> Float[Tensor, "text layer neuron"]:
    """Measure the neurons' values for each text of a language.

    Args:
        model: the model to run.
        layers: the layers to read.
        texts: the texts.
        language: their language, for messages.
        index: the token whose values are taken, counted from the end; None for the mean over tokens.
        how: how the texts are run.
        loop: the loop that goes through the batches.
    """
    rows = models.tokenised(model, texts, language, range(len(texts)), prepend_bos=how.prepend_bos)
    width = max(layer.width for layer in layers)
    values = torch.zeros(len(rows), len(layers), width, dtype=torch.float32, device="cpu")

    def compute(batch: Batch) -> Record:
        of_layers = models.values_of(model, layers, batch, _places(model, batch, index, language))
        return {str(number): read for number, read in enumerate(of_layers)}

    def keep(rows: list[int], record: Record) -> None:
        for number in range(len(layers)):
            read = record[str(number)]
            values[rows, number, : read.shape[-1]] = read.to(values.dtype)

    loop(Plan(model, rows, batch_size=how.batch_size), compute, keep, stage=language)
    return values


def _places(
    model: LensModel, batch: Batch, index: int | None, language: str
) -> int | dict[Stack, Bool[Tensor, "row position"]]:
    """Where a batch's values are read: at the index or, if it is None, at all tokens that are not special.

    The decoder's prompt in an encoder-decoder has no text, so that there special tokens count.
    """
    places: dict[Stack, Bool[Tensor, "row position"]] = {}
    for stack in get_args(Stack):
        seen = batch.seen_by(stack)
        counted = places[stack] = seen.shown()
        if index is not None:
            if counted.sum(1).min() < -index:
                row = batch.rows[int(counted.sum(1).argmin())]
                whose = "its decoder prompt" if seen.source is not None else "it"
                raise NeuronShareError(
                    f"Language {language!r}, text {row}: {whose} has fewer than {-index} tokens, too few for "
                    f"position={index}; leave it out, or choose a position nearer to the end."
                )
        elif seen.source is None:
            places[stack] = counted & models.is_text(model, seen.tokens)
            if not places[stack].any(1).all():
                row = batch.rows[int(places[stack].any(1).int().argmin())]
                raise NeuronShareError(f"Language {language!r}, text {row}: it has only special tokens; leave it out.")
    return places if index is None else index
