"""What neurons' values are over prompts, to be put in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_neuronshare import models
from tl_neuronshare.ablation.hooks import _as_index
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.models import verification
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.tokens import left_padded, tokenised
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.running.plan import BatchSize, check_run_options, plan_batches


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
    """The neurons' values over prompts, in each language: what `mean` and `resample` put in their place.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompts: what to run: ParallelPrompts, or texts by language, which need not be parallel.
        each: the values of each prompt, for `resample` (take another example's row), in place of their mean.
        position: the prompt's `last` token, a negative index, or `all`: the mean over its tokens but special ones.
        site: `post` or, of gated MLPs, `up`.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`.
        progress: whether to show a progress bar where it takes more than two seconds.

    Returns:
        For each language a float tensor: [layer, neuron], or with `each` [prompt, layer, neuron]; 0 where a layer is
        narrower than the widest.

    Raises:
        NeuronShareError: an unsuitable model or option, no texts, or a prompt too short or long.

    Example:
        >>> means = reference_values(model, {"en": ["Country code of Peru →", "Country code of Chad →"]})
        >>> hooks = ablation_hooks(model, means["en"] > 1, mode="mean", values=means["en"])
        >>> means["en"].shape  # layer neuron
        torch.Size([4, 512])
    """
    texts = prompts.prompts if isinstance(prompts, ParallelPrompts) else prompts
    check_run_options(batch_size, prepend_bos)
    if not isinstance(texts, Mapping) or not texts or any(isinstance(t, str) or not len(t) for t in texts.values()):
        raise NeuronShareError("prompts is no ParallelPrompts and no mapping from language to texts; give some texts.")
    if site not in ("post", "up"):
        raise NeuronShareError(f"site={site!r} has no values to put there; use post or up.")
    index = None if position == "all" else _as_index(position)
    layers = models.neuron_layers(model, site)
    verification.require(model, "logits", site)
    special = torch.tensor(models.special_tokens(model), dtype=torch.long, device="cpu")
    widest = max(layer.width for layer in layers)
    found = {}
    for language, of_one in tqdm(texts.items(), desc="reference values", disable=not progress, delay=2):
        rows = tokenised(model, of_one, language, range(len(of_one)), prepend_bos=prepend_bos)
        values = torch.zeros(len(rows), len(layers), widest, dtype=torch.float32, device="cpu")
        for batch in plan_batches([(len(row),) for row in rows], batch_size, packing=verification.packing(model)):
            tokens, mask = left_padded([rows[row] for row in batch])
            counted = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
            if index is not None and counted.sum(1).min() < -index:
                row = batch[int(counted.sum(1).argmin())]
                raise NeuronShareError(f"Language {language!r}, text {row}: too short for position={position!r}.")
            if index is None:
                counted = counted & ~torch.isin(tokens, special)
                if not counted.any(1).all():
                    row = batch[int(counted.any(1).int().argmin())]
                    raise NeuronShareError(f"Language {language!r}, text {row}: nothing but special tokens.")
            for number, read in enumerate(
                models.values_of(model, layers, tokens, mask, counted if index is None else index)
            ):
                values[batch, number, : read.shape[-1]] = read.cpu()
        found[language] = values if each else values.mean(0)
    return found
