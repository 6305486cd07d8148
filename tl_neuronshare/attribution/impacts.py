"""The scores of all neurons for all prompts, batch by batch and layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from tl_neuronshare import models
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.answers import Continuation, continuations
from tl_neuronshare.maths.impact import FinalNorm, generation_impact, projected
from tl_neuronshare.models import verification
from tl_neuronshare.models.lens import LensModel
from tl_neuronshare.models.tokens import padded_apart
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.running import provenance
from tl_neuronshare.running.plan import BatchSize, check_options, plan_batches

Answer = Literal["first", "all"]
Norm = Literal["none", "frozen", "full"]
TOP_K = 800 / 16384  # the paper's: 800 of 16,384


@dataclass(frozen=True)
class LayerImpacts:
    """Both scores of a layer's neurons, and their types, for some examples in one language.

    `other_answer` is the correctness impact for a wrong answer in place of the right one.
    """

    language: str
    examples: list[int]
    layer: int
    generation: Float[Tensor, "row neuron"]
    correctness: Float[Tensor, "row neuron"]
    other_answer: Float[Tensor, "row neuron"]
    types: UInt8[Tensor, "row neuron"]


class Impacts:
    """The scores of all neurons for all prompts, in batches that are planned once; options as in `attribute`.

    Attributes:
        places: for each language what is run, and which tokens are scored after it, for every example.
        widths: how many neurons each layer has.
        top_k: how many of them count as its top.
        record: for a result's metadata.

    Example:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> impacts = Impacts(model, prompts, ns.categorise(model, prompts))
        >>> one = next(impacts.each(desc="scores"))
        >>> one.language, sorted(one.examples), one.layer, one.correctness.shape
        ('en', [0, 1, 2], 0, torch.Size([3, 512]))
    """

    def __init__(
        self,
        model: LensModel,
        prompts: ParallelPrompts,
        sharing: NeuronSharing,
        *,
        top_k: Any = TOP_K,
        answer: Answer = "first",
        norm: Norm = "none",
        batch_size: BatchSize = "auto",
        prepend_bos: bool | None = None,
    ) -> None:
        check_options(prompts, batch_size, prepend_bos)
        _check_options(prompts, sharing, answer, norm)
        self.model, self.prompts = model, prompts
        self.layers = models.neuron_layers(model, "post")
        self.widths = sharing.widths
        models.check_unembedding(model)
        verification.require(model, "logits", "post", "unembedding")
        provenance.check_languages(prompts, sharing)
        provenance.check_prompts(prompts, sharing)
        provenance.check_layers(model, sharing)
        provenance.check_bos(model, sharing, prepend_bos)
        if not provenance.of_same_weights(model, sharing):
            raise NeuronShareError(
                f"The types were measured on other weights than those of {models.name_of(model)}; categorise with "
                "this model, loaded in the same way and dtype."
            )
        self.top_k = _top_counts(top_k, self.widths)
        self.types = sharing.types
        self.norm: Norm = norm
        self.final_norm = models.final_norm(model) if norm != "none" else None
        # For each language what is run before each token that is scored.
        self.places: dict[str, list[Continuation]] = {}
        self._others: dict[str, list[tuple[int, ...]]] = {}
        self._batches: dict[str, list[list[int]]] = {}
        merged: list[bool] = []
        for language, answers in (prompts.answers or {}).items():
            found = continuations(model, prompts, language, [[text] for text in answers], prepend_bos=prepend_bos)
            merged += found.merged
            self.places[language] = [
                Continuation(one.example, one.before, one.scored if answer == "all" else one.scored[:1])
                for one in found.each
            ]
            self._others[language] = _other_answers([one.scored for one in self.places[language]])
            self._batches[language] = plan_batches(
                [(len(one.before), len(one.scored)) for one in self.places[language]],
                batch_size,
                packing=verification.packing(model).counting_one_more(),
                n_ctx=model.cfg.n_ctx + 1,  # the last token of the answer is not run
                per_token=sum(self.widths),
            )
        self.record = provenance.of_run(model, prompts, sharing) | {
            "top_k": int(top_k) if isinstance(top_k, Integral) else float(top_k),
            "top_k_of_layers": self.top_k,
            "answer": answer,
            "norm": norm,
            "batch_size": batch_size if batch_size == "auto" else int(batch_size),
            "prepend_bos": models.resolve_prepend_bos(model, prepend_bos),
            "merged": sum(merged) / len(merged),
        }
        provenance.warn_of_processed_weights(self.record["weights"], "the scores", stacklevel=4)
        if (what := models.changes_mlp_output(model)) is not None:
            warnings.warn(
                f"{models.name_of(model)} {what}; the scores are of what the MLPs write, and not of what is added.",
                stacklevel=3,
            )

    @torch.no_grad()
    def each(self, *, desc: str, progress: bool = True) -> Iterator[LayerImpacts]:
        """Language by language, batch by batch, layer by layer."""
        n_batches = sum(map(len, self._batches.values()))
        with tqdm(total=n_batches, desc=desc, disable=not progress, delay=2) as bar:
            for language, batches in self._batches.items():
                tokens = sorted({token for one in self.places[language] for token in one.scored})
                pushes = _Pushes(self.model, tokens, self.norm, self.final_norm)
                for batch in batches:
                    yield from self._of_batch(language, batch, pushes)
                    bar.update()

    def _of_batch(self, language: str, batch: list[int], pushes: _Pushes) -> Iterator[LayerImpacts]:
        of_rows = [self.places[language][number] for number in batch]
        tokens, mask = padded_apart([one.before for one in of_rows], [one.scored[:-1] for one in of_rows])
        end = max(len(one.before) for one in of_rows)
        # Where each token that is scored is predicted: the row, the position, and the token.
        row, position, token = torch.tensor(
            [(row, end - 1 + k, token) for row, one in enumerate(of_rows) for k, token in enumerate(one.scored)],
            device="cpu",
        ).T
        others = [
            self._others[language][number] or of_one.scored for number, of_one in zip(batch, of_rows, strict=True)
        ]
        other_token = torch.tensor(
            [others[row][k % len(others[row])] for row, one in enumerate(of_rows) for k in range(len(one.scored))],
            device="cpu",
        )
        has_other = torch.tensor([[bool(self._others[language][number])] for number in batch], device="cpu")
        read = [*self.layers, models.final_residual(self.model)] if self.final_norm else self.layers
        values = models.values_of(self.model, read, tokens, mask, (row, position))
        residual = values.pop() if self.final_norm else None
        examples = [one.example for one in of_rows]
        n_tokens = torch.tensor([[len(one.scored)] for one in of_rows], device="cpu")
        for number, (layer, post) in enumerate(zip(self.layers, values, strict=True)):
            weights = models.output_weights(self.model, layer.hook).to(post.device)

            def mean(scores: Tensor, number: int = number) -> Tensor:
                """Over the tokens of each answer."""
                sums = scores.new_zeros(len(batch), scores.shape[-1]).index_add_(0, row.to(scores.device), scores)
                self._check_finite(sums, language, examples, number)
                return sums / n_tokens.to(sums.device)

            yield LayerImpacts(
                language,
                examples,
                number,
                generation=mean(generation_impact(post, weights)),
                correctness=mean(post * pushes.of(number, weights, token, residual)),
                other_answer=mean(post * pushes.of(number, weights, other_token, residual)).masked_fill(
                    ~has_other.to(post.device), torch.nan
                ),
                types=self.types[examples, number, : layer.width].to(post.device),
            )

    def _check_finite(self, scores: Tensor, language: str, examples: list[int], layer: int) -> None:
        finite = scores.isfinite().all(-1)
        if not finite.all():
            example = self.prompts.examples[examples[int(finite.int().argmin())]]
            raise NeuronShareError(
                f"Language {language!r}, example {example!r}, layer {layer}: a score is NaN or infinite; load the "
                "model in float32 or bfloat16, and check your hooks."
            )


class _Pushes:
    """How far each neuron's output goes in the direction of a token: v . E[y], seen through the final norm or not.

    Of each distinct token of a language's answers it is computed once for each layer, and kept for that language.
    """

    def __init__(self, model: LensModel, tokens: Sequence[int], norm: Norm, final_norm: FinalNorm | None) -> None:
        self.norm = norm
        self._number = {token: number for number, token in enumerate(tokens)}
        columns = models.unembedding(model, torch.tensor(tokens, device="cpu")).T
        self._unembedding = columns.to(torch.promote_types(columns.dtype, torch.float32))
        self.final_norm = final_norm and final_norm.to(self._unembedding)
        self._projected: dict[int, Tensor] = {}

    def of(
        self,
        layer: int,
        weights: Float[Tensor, "neuron d_model"],
        tokens: Tensor,
        residual: Float[Tensor, "place d_model"] | None,
    ) -> Float[Tensor, "place neuron"]:
        """For each place, which has a token to predict and a residual stream to predict it from."""
        numbers = torch.tensor([self._number[token] for token in tokens.tolist()], device="cpu")
        if self.final_norm is None or residual is None:
            return self._of_distinct(layer, weights, self._unembedding)[numbers]
        residual = residual.to(self._unembedding)
        if self.norm == "full":
            directions = self.final_norm.full(self._unembedding[numbers], residual)
            return projected(weights, directions.to(weights.device))
        pushes = self._of_distinct(layer, weights, self.final_norm.unscaled(self._unembedding))[numbers]
        return pushes / self.final_norm.scale(residual).to(pushes)

    def _of_distinct(self, layer: int, weights: Tensor, directions: Tensor) -> Float[Tensor, "token neuron"]:
        if layer not in self._projected:
            self._projected[layer] = projected(weights, directions.to(weights.device))
        return self._projected[layer]


def _other_answers(answers: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each answer the next after it that begins with another token, the first coming after the last; or none."""
    n = len(answers)
    return [
        next((other for k in range(1, n) if (other := answers[(i + k) % n])[0] != own[0]), ())
        for i, own in enumerate(answers)
    ]


def _top_counts(top_k: Any, widths: Sequence[int]) -> list[int]:
    """How many neurons are the top of each layer."""
    is_count = isinstance(top_k, Integral) and not isinstance(top_k, bool) and int(top_k) >= 1
    is_share = not is_count and isinstance(top_k, Real) and not isinstance(top_k, Integral) and 0 < float(top_k) <= 1
    if not (is_count or is_share):
        raise NeuronShareError(f"top_k={top_k!r}; give a number of neurons, at least 1, or a share, above 0.0 to 1.0.")
    counts = [int(top_k) if is_count else max(1, floor(float(top_k) * width + 0.5)) for width in widths]
    for layer, (count, width) in enumerate(zip(counts, widths, strict=True)):
        if count > width:
            raise NeuronShareError(
                f"top_k={top_k}: layer {layer} has {width} neurons only; give fewer, or a share such as 0.05."
            )
    return counts


def _check_options(prompts: ParallelPrompts, sharing: Any, answer: Any, norm: Any) -> None:
    if not isinstance(sharing, NeuronSharing):
        raise NeuronShareError(f"sharing is a {type(sharing).__name__}; give the NeuronSharing that categorise found.")
    for name, value, known in (("answer", answer, get_args(Answer)), ("norm", norm, get_args(Norm))):
        if value not in known:
            raise NeuronShareError(f"{name}={value!r} is unknown; use one of {', '.join(known)}.")
    if prompts.answers is None:
        raise NeuronShareError(
            f"{prompts!r} has no answers, in none of {', '.join(prompts.languages)}; give "
            "ParallelPrompts(..., answers={language: [...]})."
        )
