"""Parallel neuron detection: neurons that write much for each text of a language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import share as checked_share
from tl_neuronshare.checks import texts_by_language
from tl_neuronshare.maths.activation import neurons_of, widened
from tl_neuronshare.models import LensModel, OnDevices, verification
from tl_neuronshare.results.masks import scattered
from tl_neuronshare.running.loop import running
from tl_neuronshare.running.plan import Batch, BatchSize, Plan, Running
from tl_neuronshare.running.shards import Record


@explains
def parallel_detection(
    model: LensModel,
    texts: Mapping[str, Sequence[str]],
    *,
    share: float = 0.05,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """Find the neurons that are among those that write most for each text of a language.

    A neuron's score for a text is the length of all that the MLP no longer writes without it: with m its values at the
    text's tokens and v its row of W_out, |m| |v|. A neuron belongs to a language if it is among the share `share` of
    the model's neurons with the highest scores for every text of the language.

    In a gated MLP this is the score of a neuron's line in the up projection and of its line in the down projection:
    without either of them, the same is no longer written. So both are one neuron here.

    Args:
        model: a HookedTransformer or TransformerBridge of a decoder.
        texts: the texts of each language, which need not be parallel. The more there are, the fewer neurons are left.
        share: which share of all neurons counts as those that write most for a text.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`. Special tokens do not count.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        A mask for each language. Most of its neurons belong to other languages too: take those that belong to few with
        `by_number_of_languages`.

    Raises:
        NeuronShareError: the model is not a decoder, or an MLP has no W_out; there are no texts; or the share is not
            one.

    Source: Zhao et al. 2024, PLND (arXiv 2402.18815), feed-forward layers. They take a neuron whose score is above a
    number; a share of the neurons is our choice, since scores grow with a model's width. Of neurons with equal scores,
    the first of the model are chosen; one that writes nothing is never chosen.

    Examples:
        >>> texts = {"en": ["Country code of Peru →", "Country code of Chad →"], "de": ["Ländercode von Peru →"]}
        >>> masks = parallel_detection(model, texts, share=0.1)
        >>> int(masks["de"].sum())  # a tenth of 2,048 neurons
        205
    """
    how, share = Running(batch_size, prepend_bos).on(model), checked_share("share", share)
    texts_by_language("texts", texts)
    models.require_architecture(model, "decoder", why="The method is for the layers of a decoder.")
    verification.require(model, "logits", "post", "output")
    layers = [layer.weighted() for layer in models.neuron_layers(model, "post")]
    is_neuron = neurons_of([layer.width for layer in layers])
    n_top = max(1, round(share * int(is_neuron.sum())))
    chosen = torch.ones(len(texts), int(is_neuron.sum()), dtype=torch.bool, device="cpu")

    def compute(batch: Batch) -> Record:
        scores = _scores(model, layers, batch)
        top = scores.sort(stable=True, descending=True, dim=1).indices[:, :n_top]
        is_top = torch.zeros_like(scores, dtype=torch.bool).scatter(1, top, value=True)
        return {"is top": is_top & (scores > 0)}

    with running(model, "parallel detection", n_rows=sum(map(len, texts.values())), progress=progress) as loop:
        for number, (language, of_language) in enumerate(texts.items()):
            rows = models.tokenised(model, of_language, language, range(len(of_language)), prepend_bos=how.prepend_bos)

            def keep(places: list[int], record: Record, number: int = number) -> None:
                chosen[number] &= record["is top"].all(0)

            loop(Plan(model, rows, batch_size=how.batch_size), compute, keep, stage=language)
    return scattered(chosen, is_neuron, texts)


def _scores(model: LensModel, layers: Sequence[models.NeuronLayer], batch: Batch) -> Float[Tensor, "row neuron"]:
    """The score of each neuron for each text of a batch, layer by layer."""
    counted = OnDevices(models.is_text(model, batch.tokens) & batch.shown())
    found: dict[int, Tensor] = {}

    def read(layer: int, tensors: tuple[Tensor, ...]) -> None:
        values = widened(layers[layer].read(tensors).detach())
        mine = counted.on(values.device)[..., None]
        found[layer] = values.masked_fill(~mine, 0).norm(dim=1) * layers[layer].lengths.to(values)

    with models.reading(model, layers, read) as run_once:
        run_once(batch)
    return torch.cat([found[layer].cpu() for layer in range(len(layers))], dim=1)
