"""Count how often each neuron is activated over free text, while the text streams by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import one_of, texts_by_language
from tl_neuronshare.launch import warn
from tl_neuronshare.maths.activation import Number, absolute, as_threshold
from tl_neuronshare.models import LensModel, Site, verification
from tl_neuronshare.models.fingerprint import fingerprint_of_weights
from tl_neuronshare.results.rates import NeuronRates
from tl_neuronshare.running import provenance
from tl_neuronshare.running.loop import Keeping, running
from tl_neuronshare.running.plan import BatchSize, Running
from tl_neuronshare.running.recording import refuse_quantiles_of_experts
from tl_neuronshare.running.tallying import Part, Tally, measured_layers, metadata_of, tallied


@explains
def activation_rates(
    model: LensModel,
    texts: Mapping[str, Iterable[Any] | Path],
    *,
    site: Site | None = None,
    threshold: Number | str = 0.0,
    part: Part = "whole",
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    out: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    progress: bool = True,
) -> NeuronRates:
    """Count how many of a language's tokens activate each neuron, in free text that need not be parallel.

    Only counts are kept, so there may be any amount of text. An iterator is read once, a few texts at a time. A text
    that is longer than the model's context is read in pieces, each without the text before it.

    Args:
        model: a HookedTransformer or TransformerBridge.
        texts: the texts of each language: a list or an iterator of strings, the path of a file with a text in each
            line, or a Hugging Face data set, also a streamed one, with a column `text`. A text may also be a pair of
            a prompt and an answer. Special tokens (BOS ...) are run but not counted.
        site: as in `categorise`.
        threshold: a neuron is activated if its value is above this number; or, such as "90%", above this quantile of
            its layer's values at that token.
        part: which tokens are counted: those of the whole text or, if texts are pairs, of the prompt or of the answer
            alone. The answer begins where prompt and answer, tokenised together, first differ from the prompt.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`, for every piece of text.
        out: as in `categorise`. The folder keeps the counts; the same call with more text at the end of a language's
            goes on from them.
        shard: as in `categorise`.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        The counts, which add up with those of other texts. In an encoder-decoder the texts are given to the encoder,
        and the decoder's layers are not measured.

    Raises:
        NeuronShareError: the model or an option is unsuitable, a language has only special tokens, or activations are
            NaN or infinite.

    Warns:
        UserWarning: no site is named, and the model is gated.

    Examples:
        >>> texts = {"en": ["Country code of Peru → PE", "Capital of Peru"], "de": ["Ländercode von Peru → PE"]}
        >>> found = activation_rates(model, texts)
        >>> found
        NeuronRates(tokens: en 12, de 5; 4 layers of 512 neurons)
        >>> found.rates.shape  # language layer neuron
        torch.Size([2, 4, 512])
    """
    how = Running(batch_size, prepend_bos).on(model)
    texts_by_language("texts", texts, lists=False)
    threshold = as_threshold("threshold", threshold)
    one_of("part", part, get_args(Part))
    why_name_a_site = models.why_name_a_site(model) if site is None else None
    if why_name_a_site is not None:
        warn(why_name_a_site)
    site = "post" if site is None else site
    every_layer = models.neuron_layers(model, site)
    layers = measured_layers(model, every_layer)
    verification.require(model, "logits", site)

    def about() -> dict[str, Any]:
        return {
            "call": "activation_rates",
            **provenance.describe(model),
            "fingerprint_of_weights": fingerprint_of_weights(model),
            **{"languages": list(texts), "site": site, "threshold": threshold, "counted": part, **how.record},
        }

    refuse_quantiles_of_experts(layers, [threshold])
    absent = 0.0 if isinstance(threshold, str) else min(0.0, threshold)  # what is not computed is not activated
    counted = Tally(lambda layer, values: (values > absolute(values, threshold)).sum(0)[:, None], absent=absent)
    with running(model, "activation rates", progress=progress, keeping=Keeping(out, shard), about=about) as loop:
        sums = tallied(model, layers, texts, counted, part=part, how=how, loop=loop)
        loop.clear()
    widths = [layer.width for layer in every_layer]
    return NeuronRates(
        sums.of_all(widths)[..., 0],
        sums.tokens,
        languages=list(texts),
        widths=widths,
        hooks=[layer.name for layer in every_layer],
        experts=[layer.experts for layer in every_layer],
        n_measured=len(layers),
        metadata={
            **metadata_of(
                model, how, site=site, site_chosen=why_name_a_site is None, threshold=threshold, counted=part
            ),
            "texts": {language: [of_texts] for language, of_texts in zip(texts, sums.hashes, strict=True)},
        },
    )
