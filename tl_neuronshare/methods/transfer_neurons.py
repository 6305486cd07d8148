"""Transfer neurons: neurons that move a text from its language's region of the residual stream, or back to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import count, layer_numbers, one_of, texts_by_language
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import neurons_of
from tl_neuronshare.models import LensModel, NeuronLayer, verification
from tl_neuronshare.results.masks import scattered
from tl_neuronshare.running.loop import Loop, running
from tl_neuronshare.running.plan import Batch, BatchSize, Plan, Running
from tl_neuronshare.running.shards import Record

Direction = Literal["to shared", "from shared"]
_EARLY = 20 / 32  # the share of the layers in which the authors look for neurons that move a text to the shared space


@explains
def transfer_neurons(
    model: LensModel,
    texts: Mapping[str, Sequence[str]],
    *,
    direction: Direction,
    shared: str = "en",
    n: int = 1000,
    layers: Sequence[int] | None = None,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """Find the neurons that move a language's texts most towards a centroid of the residual stream.

    Let h be the residual stream after a layer at a text's last token, without what the layer's neurons write; m the
    value of a neuron, v its row of W_out and c the centroid. The neuron's score is cos(h + m v, c) - cos(h, c), as a
    mean over the language's texts. The neurons with the highest scores are chosen.

    Args:
        model: a HookedTransformer or TransformerBridge of a decoder that adds what its MLPs write unchanged.
        texts: the texts of each language. To the shared space they must mean the same, in the same order.
        direction: `to shared` (the paper's type 1): the centroid is the mean residual stream of the language's texts
            and of those in the language `shared`. `from shared` (type 2): that of the language's texts alone.
        shared: the language whose part of the residual stream stands for a space that languages share.
        n: how many neurons are chosen.
        layers: in which layers; by default the first 5/8 for `to shared` and the others for `from shared`, which are
            20 and 12 of 32 as in the paper.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        A mask for each language; to the shared space for each language but `shared`.

    Raises:
        NeuronShareError: the model changes what its MLPs write before it adds it, or is not a decoder; texts are not
            parallel; or there are fewer neurons than asked for.

    Source: Tezuka and Inoue 2025 (arXiv 2509.17030), with the score by cosine. Where MLPs have a bias it is part of h.
    After the last layer the authors' code takes the residual stream behind the final norm, and this the one before.

    Examples:
        >>> texts = {"en": ["Country code of Peru →"], "de": ["Ländercode von Peru →"]}
        >>> masks = transfer_neurons(model, texts, direction="to shared", n=5)
        >>> {language: int(mask.sum()) for language, mask in masks.items()}
        {'de': 5}
    """
    how, n = Running(batch_size, prepend_bos).on(model), count("n", n)
    one_of("direction", direction, get_args(Direction))
    _check(model, texts, direction, shared)
    every_layer = [layer.weighted() for layer in models.neuron_layers(model, "post")]
    numbers = _layers(layers, len(every_layer), direction)
    is_chosen = neurons_of([layer.width for layer in every_layer])
    is_chosen[[number for number in range(len(every_layer)) if number not in numbers]] = False
    if n > is_chosen.sum():
        raise NeuronShareError(f"n={n}: layers {numbers} have only {int(is_chosen.sum())} neurons; give less.")
    moving = [language for language in texts if direction == "from shared" or language != shared]
    n_rows = sum(map(len, texts.values())) + sum(len(texts[language]) for language in moving)
    with running(model, "transfer neurons", n_rows=n_rows, progress=progress) as loop:
        residuals = _Residuals(model, texts, [every_layer[number] for number in numbers], how, loop)
        centroids = {language: residuals.mean(language) for language in texts}
        if direction == "to shared":
            centroids = {language: (centroids[language] + centroids[shared]) / 2 for language in moving}
        found = torch.stack([residuals.scores(language, centroids[language]) for language in moving])
    scores = torch.full((len(moving), *is_chosen.shape), -torch.inf, dtype=torch.float64, device="cpu")
    scores[:, numbers, : found.shape[-1]] = found
    order = scores[:, is_chosen].sort(stable=True, descending=True).indices[:, :n]
    chosen = torch.zeros(len(moving), int(is_chosen.sum()), dtype=torch.bool, device="cpu")
    return scattered(chosen.scatter(1, order, value=True), is_chosen, moving)


def gains(
    residual: Float[Tensor, "text d_model"],
    values: Float[Tensor, "text neuron"],
    W_out: Float[Tensor, "neuron d_model"],  # noqa: N803  # TransformerLens's name
    centroid: Float[Tensor, " d_model"],
) -> Float[Tensor, "text neuron"]:
    """Return how much nearer to the centroid each neuron alone moves the residual stream, as a difference of cosines.

    Source: Tezuka and Inoue 2025 (arXiv 2509.17030): cos(h + m v, c) - cos(h, c).

    Examples:
        >>> residual, W_out = torch.tensor([[3.0, 0.0]]), torch.eye(2)
        >>> gains(residual, torch.tensor([[5.0, 3.0]]), W_out, torch.tensor([0.0, 2.0]))
        tensor([[0.0000, 0.7071]])
    """
    length, direction = residual.norm(dim=-1, keepdim=True), centroid / centroid.norm()
    before = residual @ direction
    along = before[:, None] + values * (W_out @ direction)
    squares = length.square() + 2 * values * (residual @ W_out.T) + values.square() * W_out.square().sum(-1)
    after = along / squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()
    gain: Float[Tensor, "text neuron"] = after - before[:, None] / length
    return gain


def _check(model: LensModel, texts: Mapping[str, Sequence[str]], direction: Direction, shared: str) -> None:
    models.require_architecture(
        model, "decoder", why="The method follows a text through one stack of layers. Use a decoder."
    )
    verification.require(model, "logits", "post", "output")
    if (what := models.added_through(model).change) is not None:
        raise NeuronShareError(
            f"{models.name_of(model)} {what}: what one neuron adds to the residual stream depends on the others, and "
            "the method does not say how. Use a model that adds what its MLPs write."
        )
    texts_by_language("texts", texts)
    if direction == "from shared":
        return
    if shared not in texts or len(texts) < 2:
        raise NeuronShareError(
            f"direction='to shared' compares texts in {shared!r} with those of other languages; give both, or name a "
            "different language as shared."
        )
    for language, of_language in texts.items():
        if len(of_language) != len(texts[shared]):
            raise NeuronShareError(
                f"Language {language!r} has {len(of_language)} texts and {shared!r} {len(texts[shared])}; "
                "direction='to shared' needs parallel texts."
            )


def _layers(layers: Sequence[int] | None, n_layers: int, direction: Direction) -> list[int]:
    """The numbers of the layers in which neurons are looked for."""
    if layers is not None:
        return layer_numbers("layers", layers, n_layers=n_layers)
    n_early = round(_EARLY * n_layers)
    chosen = range(n_early) if direction == "to shared" else range(n_early, n_layers)
    return list(chosen) or list(range(n_layers))


class _Residuals:
    """Reads the residual stream after some layers, and what their neurons write, at the last token of texts."""

    def __init__(
        self,
        model: LensModel,
        texts: Mapping[str, Sequence[str]],
        layers: Sequence[NeuronLayer],
        how: Running,
        loop: Loop,
    ) -> None:
        self.model, self.layers, self.loop = model, layers, loop
        self.after = [models.residual_after(model, layer) for layer in layers]
        self.plans = {
            language: Plan(
                model,
                models.tokenised(model, of_language, language, range(len(of_language)), prepend_bos=how.prepend_bos),
                batch_size=how.batch_size,
            )
            for language, of_language in texts.items()
        }

    def mean(self, language: str) -> Float[Tensor, "layer d_model"]:
        """The mean residual stream over a language's texts."""
        d_model = self.model.cfg.d_model
        total = torch.zeros(len(self.layers), d_model, dtype=torch.float64, device="cpu")

        def compute(batch: Batch) -> Record:
            return {"residual": torch.stack([each.cpu() for each in self._residual(batch)], dim=1)}

        def keep(rows: list[int], record: Record) -> None:
            total.add_(record["residual"].double().sum(0))

        self.loop(self.plans[language], compute, keep, stage=f"mean/{language}")
        return total / len(self.plans[language])

    def _residual(self, batch: Batch) -> list[Float[Tensor, "row d_model"]]:
        return models.values_of(self.model, self.after, batch, -1)

    def scores(self, language: str, centroids: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer neuron"]:
        """Each neuron's mean gain over a language's texts; minus infinity where there is no neuron."""
        widths = [layer.width for layer in self.layers]
        total = torch.full((len(widths), max(widths)), -torch.inf, dtype=torch.float64, device="cpu")
        total[neurons_of(widths)] = 0

        def keep(rows: list[int], record: Record) -> None:
            for layer, width in enumerate(widths):
                total[layer, :width] += record[str(layer)].sum(0)

        self.loop(self.plans[language], partial(self._gains, centroids), keep, stage=f"gains/{language}")
        return total / len(self.plans[language])

    def _gains(self, centroids: Float[Tensor, "layer d_model"], batch: Batch) -> Record:
        """Each neuron's gain for the texts of a batch."""
        read = models.values_of(self.model, [*self.layers, *self.after], batch, -1)
        values, after = read[: len(self.layers)], read[len(self.layers) :]
        return {str(layer): found for layer, found in enumerate(self._each(values, after, centroids))}

    def _each(
        self, values: Sequence[Tensor], after: Sequence[Tensor], centroids: Float[Tensor, "layer d_model"]
    ) -> Iterator[Float[Tensor, "row neuron"]]:
        for layer, of_layer, residual, centroid in zip(self.layers, values, after, centroids, strict=True):
            weights = layer.W_out().to(of_layer)
            here = residual.to(of_layer)
            yield gains(here - of_layer @ weights, of_layer, weights, centroid.to(of_layer)).double()
