"""Compute the scores of all neurons for all prompts, batch by batch and layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import floor
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.checks import Options, is_count, one_of, option
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.answers import Continuation, continuations
from tl_neuronshare.maths.activation import Number
from tl_neuronshare.maths.impact import NormFormula, lengths, projected
from tl_neuronshare.models import LensModel, NeuronLayer, OnDevices, verification
from tl_neuronshare.prompts import ParallelPrompts, require_prompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.running import provenance
from tl_neuronshare.running.loop import Keeping, Loop, running
from tl_neuronshare.running.plan import Batch, Plan, Running
from tl_neuronshare.running.shards import Record

Answer = Literal["first", "all"]
Norm = Literal["none", "frozen", "full"]
TOP_K = 800 / 16384  # the paper's: 800 of 16,384


def _as_top_k(name: str, value: Any) -> Number:
    """Check a number of neurons or, as a float, a share of the layer's neurons."""
    if is_count(value):
        return int(value)
    is_share = isinstance(value, Real) and not isinstance(value, Integral) and 0 < float(value) <= 1
    if not is_share:
        raise NeuronShareError(f"{name}={value!r}; give a number of neurons, at least 1, or a share, above 0.0 to 1.0.")
    return float(value)


def _top_k_argument(text: str) -> Number:
    return int(text) if text.isdigit() else float(text)


@dataclass(frozen=True)
class ImpactOptions(Options):
    """Which scores are computed, and how many neurons count as a layer's top; see `attribute`."""

    top_k: Number = option(
        TOP_K,
        _as_top_k,
        help="how many neurons of a layer count as its top, or (with a point) which share (default: the paper's, 800 "
        "of 16,384)",
        type=_top_k_argument,
        metavar="K",
    )
    answer: Answer = option(
        "first",
        partial(one_of, known=get_args(Answer)),
        help="which tokens of the answer are scored (default: first)",
        choices=get_args(Answer),
    )
    norm: Norm = option(
        "none",
        partial(one_of, known=get_args(Norm)),
        help="how the correctness impact treats the final norm (default: none)",
        choices=get_args(Norm),
    )

    def counts(self, widths: Sequence[int]) -> list[int]:
        """How many neurons count as the top of each layer.

        Raises:
            NeuronShareError: a layer has fewer neurons than that.
        """
        counts = []
        for layer, width in enumerate(widths):
            is_share = isinstance(self.top_k, float)
            counts.append(max(1, floor(self.top_k * width + 0.5)) if is_share else int(self.top_k))
            if counts[-1] > width:
                raise NeuronShareError(
                    f"top_k={self.top_k}: layer {layer} has only {width} neurons; give fewer, or a share such as 0.05."
                )
        return counts


@dataclass(frozen=True)
class LayerImpacts:
    """Both scores of a layer's neurons, and their types, for the examples of one batch, in one language.

    `other_answer` is the correctness impact for a wrong answer instead of the right one.
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
        places: for each language and example, the scored tokens and the tokens before them.
        sharing: the types.
        widths: how many neurons each layer has.
        top_k: how many neurons count as the top of each layer.
        record: how the scores are made, for the metadata of a result.
        warnings: what a user should know about these scores.

    Examples:
        >>> prompts = ns.demo.prompts()[:3].select(["en", "de"])
        >>> impacts = Impacts(model, prompts, ns.categorise(model, prompts), ImpactOptions(), Running())
        >>> largest = []
        >>> impacts.each(
        ...     lambda layer: {"largest": layer.correctness.amax(-1)},
        ...     lambda language, layer, examples, record: largest.append((language, layer, record["largest"].shape)),
        ...     task="scores",
        ... )
        >>> largest[0]
        ('en', 0, torch.Size([3]))
    """

    def __init__(
        self,
        model: LensModel,
        prompts: ParallelPrompts,
        sharing: NeuronSharing,
        options: ImpactOptions,
        how: Running,
    ) -> None:
        how = how.on(model)
        _require_answers(prompts, sharing)
        models.require_architecture(
            model,
            "decoder",
            why="The scores are of what MLPs write towards the unembedding. What an encoder writes does not reach it "
            "directly, and the decoder of an encoder-decoder is not scored here. Use a decoder.",
        )
        models.check_unembedding(model)
        verification.require(model, "logits", "post", "output", "unembedding")
        provenance.require_match(model, prompts, sharing, prepend_bos=how.prepend_bos)
        if not provenance.of_same_weights(model, sharing):
            raise NeuronShareError(
                f"The types were measured on different weights from those of {models.name_of(model)}; categorise with "
                "this model, loaded in the same way and dtype."
            )
        self.model, self.prompts, self.sharing, self.options = model, prompts, sharing, options
        self.layers = [layer.weighted() for layer in models.neuron_layers(model, "post")]
        self._added = models.added_through(model)
        pairs = zip(self.layers, self._added.formulas, strict=True)
        self._outputs = [_Output(number, *pair) for number, pair in enumerate(pairs)]
        self.widths = sharing.widths
        self.top_k = options.counts(self.widths)
        self.final_norm = models.final_norm(model) if options.norm != "none" else None
        self.places: dict[str, list[Continuation]] = {}
        self._others: dict[str, list[tuple[int, ...]]] = {}  # for each example, the answer of a different example
        self._plans: dict[str, Plan] = {}
        merged = [is_merged for language in prompts.languages for is_merged in self._prepare(language, how)]
        self.record = {
            **provenance.of_run(model, prompts, sharing),
            **options.record,
            "mlp_output": self._added.change or "added as it is",
            "top_k_of_layers": self.top_k,
            **how.record,
            "merged": sum(merged) / len(merged),
        }
        self.warnings = self._warnings()

    def _prepare(self, language: str, how: Running) -> list[bool]:
        """Tokenise one language, plan its batches, and return whether each prompt merges with its answer."""
        answers = (self.prompts.answers or {})[language]
        after = continuations(
            self.model, self.prompts, language, [[text] for text in answers], prepend_bos=how.prepend_bos
        )
        n_scored = None if self.options.answer == "all" else 1
        places = [Continuation(place.example, place.before, place.scored[:n_scored]) for place in after.each]
        self.places[language] = places
        self._others[language] = _other_answers([place.scored for place in places])
        self._plans[language] = Plan(
            self.model,
            [place.before for place in places],
            [place.scored[:-1] for place in places],
            batch_size=how.batch_size,
            n_more=1,  # the last token of the answer is predicted but not run
            per_token=sum(self.widths),
        )
        return after.merged

    def _warnings(self) -> list[str]:
        warnings = [provenance.processed_weights(self.record["weights"], "the scores")]
        if (what := self._added.unknown) is not None:
            warnings.append(
                f"{models.name_of(self.model)} {what}; the scores are of what the MLPs write, and not of what is added."
            )
        return [warning for warning in warnings if warning is not None]

    def each(
        self,
        step: Callable[[LayerImpacts], Record],
        keep: Callable[[str, int, list[int], Record], None],
        *,
        task: str,
        progress: bool = True,
        keeping: Keeping | None = None,
    ) -> None:
        """Reduce the scores language by language, batch by batch and layer by layer, and keep what is left of them.

        Args:
            step: reduces the scores of a layer; of each tensor that it gives, the first axis is the batch's rows, or
                what is summed over batches.
            keep: takes the language, the layer, the examples of a batch and what `step` gave for them.
            task: the name of the progress bar.
            progress: whether to show a progress bar.
            keeping: where records are kept.
        """
        n_rows = sum(map(len, self._plans.values()))

        def about() -> dict[str, Any]:
            neurons = provenance.hash_of_bits(self.sharing)
            return {"call": task, **provenance.of_prompts(self.model, self.prompts), **self.record, "neurons": neurons}

        with running(self.model, task, n_rows=n_rows, progress=progress, keeping=keeping, about=about) as loop:
            for language, plan in self._plans.items():
                loop.part(partial(self._of_language, language, plan, step, keep, loop))

    def _of_language(
        self,
        language: str,
        plan: Plan,
        step: Callable[[LayerImpacts], Record],
        keep: Callable[[str, int, list[int], Record], None],
        loop: Loop,
    ) -> None:
        tokens = sorted({token for place in self.places[language] for token in place.scored})
        pushes = _Pushes(self.model, tokens, self.options.norm, self.final_norm)

        def compute(batch: Batch) -> Record:
            of_layers = self._scored(batch, language=language, pushes=pushes)
            return {f"{layer.layer} {name}": tensor for layer in of_layers for name, tensor in step(layer).items()}

        def keep_layers(rows: list[int], record: Record) -> None:
            examples = [self.places[language][row].example for row in rows]
            of_layers: dict[int, Record] = {}
            for key, tensor in record.items():
                layer, name = key.split(" ", 1)
                of_layers.setdefault(int(layer), {})[name] = tensor
            for number, of_layer in sorted(of_layers.items()):
                keep(language, number, examples, of_layer)

        loop(plan, compute, keep_layers, stage=language)

    def _scored(self, batch: Batch, *, language: str, pushes: _Pushes) -> Iterator[LayerImpacts]:
        """Run one batch, and give the scores of each layer."""
        answers = [self.places[language][number].scored for number in batch.rows]
        # The row and the position that predict each scored token, and the token.
        row, position, token = torch.tensor(
            [(row, batch.end - 1 + k, token) for row, answer in enumerate(answers) for k, token in enumerate(answer)],
            device="cpu",
        ).T
        others = [self._others[language][number] for number in batch.rows]
        # A row without a wrong answer gets its own; its scores become NaN below.
        other_answers = [other or answer for other, answer in zip(others, answers, strict=True)]
        other_token = torch.tensor(
            [
                other[k % len(other)]
                for other, answer in zip(other_answers, answers, strict=True)
                for k in range(len(answer))
            ],
            device="cpu",
        )
        layers = [*self.layers, models.final_residual(self.model)] if self.final_norm else self.layers
        values = models.values_of(self.model, layers, batch, (row, position))
        residual = values.pop() if self.final_norm else None
        examples = [self.places[language][number].example for number in batch.rows]
        types = self.sharing.types_of(examples)
        mean = _MeanOverTokens(row, [len(answer) for answer in answers])
        without_other = torch.tensor([[not other] for other in others], device="cpu")
        is_missing = OnDevices(without_other) if without_other.any() else None
        places, other_places = pushes.places(token), pushes.places(other_token)
        largest: list[Float[Tensor, " row"]] = []  # each layer's largest score of each row, from 0
        for output, post in zip(self._outputs, values, strict=True):
            written = output.written(post)
            generation = mean(output.lengths_of(post, written))
            correctness = mean(pushes.impact(output, post, written, places, residual))
            other_answer = mean(pushes.impact(output, post, written, other_places, residual))
            # NaN where a score is NaN. This is one pass over the scores, where `isfinite` makes four.
            scores = (generation, correctness, other_answer)
            largest.append(sum(torch.linalg.vector_norm(each, torch.inf, dim=-1) for each in scores))
            if is_missing is not None:
                other_answer = other_answer.masked_fill(is_missing.on(post.device), torch.nan)
            of_layer = types[:, output.number, : output.layer.width].to(post.device)
            yield LayerImpacts(language, examples, output.number, generation, correctness, other_answer, of_layer)
        self._check_finite(largest, language, examples)

    def _check_finite(self, largest: Sequence[Float[Tensor, " row"]], language: str, examples: list[int]) -> None:
        """Refuse scores of which a layer's largest is not finite, once all layers are there: on a GPU, asking waits."""
        for layer, of_rows in enumerate(models.on_cpu(largest)):
            finite = of_rows.isfinite()
            if not finite.all():
                example = self.prompts.examples[examples[int(finite.int().argmin())]]
                raise NeuronShareError(
                    f"Language {language!r}, example {example!r}, layer {layer}: a score is NaN or infinite; load the "
                    "model in float32 or bfloat16, and check your hooks."
                )


@dataclass(frozen=True)
class _Output:
    """A layer's neurons, and the formula by which the model adds what they write to the residual stream."""

    number: int
    layer: NeuronLayer
    formula: NormFormula

    def written(self, post: Float[Tensor, "place neuron"]) -> Float[Tensor, "place d_model"] | None:
        """What all neurons write at each place; None where the formula has no scale, which depends on it."""
        return post @ self.layer.W_out().to(post) if self.formula.divides else None

    def scaled(
        self, scores: Float[Tensor, "place neuron"], written: Float[Tensor, "place d_model"] | None
    ) -> Float[Tensor, "place neuron"]:
        """Divide by the scale of the norm after the MLP, where there is one."""
        return scores if written is None else scores / self.formula.scale(written)

    def lengths_of(
        self, post: Float[Tensor, "place neuron"], written: Float[Tensor, "place d_model"] | None
    ) -> Float[Tensor, "place neuron"]:
        """The length of what each neuron adds to the residual stream, at a frozen scale."""
        return self.scaled(post.abs() * self._lengths.to(post.device), written)

    def projected(
        self, directions: Float[Tensor, "direction d_model"], device: torch.device
    ) -> Float[Tensor, "direction neuron"]:
        """The dot product of each neuron's row with directions that stand before the formula."""
        return projected(self.layer.W_out().to(device), directions.to(device))

    @cached_property
    def _lengths(self) -> Float[Tensor, " neuron"]:
        if self.formula.is_identity:
            return self.layer.lengths
        rows = self.layer.W_out().float()
        return lengths(self.formula.to(rows).weighted(rows))


class _MeanOverTokens:
    """The mean of scores over the tokens of each row's answer."""

    def __init__(self, row: Int[Tensor, " place"], n_tokens: Sequence[int]) -> None:
        self._is_single = set(n_tokens) == {1}
        self._row = OnDevices(row)
        self._n_tokens = OnDevices(torch.tensor(n_tokens, device="cpu")[:, None])

    def __call__(self, scores: Float[Tensor, "place neuron"]) -> Float[Tensor, "row neuron"]:
        if self._is_single:
            return scores
        n_tokens = self._n_tokens.on(scores.device)
        sums = scores.new_zeros(len(n_tokens), scores.shape[-1])
        return sums.index_add_(0, self._row.on(scores.device), scores) / n_tokens


class _Pushes:
    """How much each neuron's output pushes a token: v . E[y], with or without the final norm.

    For `none` and `frozen` this is computed once for each layer and distinct token of a language's answers. A norm
    after the MLP has its weight applied and its scale frozen; with `full`, its gradient is taken as well.
    """

    def __init__(self, model: LensModel, tokens: Sequence[int], norm: Norm, final_norm: NormFormula | None) -> None:
        self.norm = norm
        self._number = {token: number for number, token in enumerate(tokens)}
        columns = models.unembedding(model, torch.tensor(tokens, device="cpu")).T
        self._unembedding = columns.to(torch.promote_types(columns.dtype, torch.float32))
        self.final_norm = final_norm and final_norm.to(self._unembedding)
        self._projected: dict[int, Tensor] = {}

    def impact(
        self,
        output: _Output,
        post: Float[Tensor, "place neuron"],
        written: Float[Tensor, "place d_model"] | None,
        places: OnDevices,
        residual: Float[Tensor, "place d_model"] | None,
    ) -> Float[Tensor, "place neuron"]:
        """The neurons' values at each place times their pushes of its token.

        Args:
            output: the layer.
            post: the neurons' values.
            written: what they write together.
            places: which tokens, as the method `places` gives them.
            residual: the residual stream before the final norm; None where the norm is ignored.
        """
        if self.norm == "full" and self.final_norm is not None and residual is not None:
            residual = residual.to(self._unembedding)
            directions = self.final_norm.full(self._unembedding[places.on(residual.device)], residual).to(post)
            formula = output.formula.to(post)
            directions = formula.unscaled(directions) if written is None else formula.full(directions, written)
            return post * output.projected(directions, post.device)
        pushes = self._of_distinct(output, post.device)[places.on(post.device)]
        if self.final_norm is not None and residual is not None:
            pushes = pushes / self.final_norm.scale(residual.to(self._unembedding)).to(pushes)
        return output.scaled(post * pushes, written)

    def places(self, tokens: Int[Tensor, " place"]) -> OnDevices:
        """Where the tokens are among the distinct ones."""
        return OnDevices(torch.tensor([self._number[token] for token in tokens.tolist()], device="cpu"))

    def _of_distinct(self, output: _Output, device: torch.device) -> Float[Tensor, "token neuron"]:
        if output.number not in self._projected:
            directions = self._unembedding if self.final_norm is None else self.final_norm.unscaled(self._unembedding)
            directions = output.formula.to(directions).unscaled(directions)
            self._projected[output.number] = output.projected(directions, device)
        return self._projected[output.number]


def _other_answers(answers: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each answer, the next one that begins with a different token; empty if all begin with the same token.

    After the last answer the search goes on with the first.
    """
    n = len(answers)
    return [
        next((other for k in range(1, n) if (other := answers[(i + k) % n])[0] != own[0]), ())
        for i, own in enumerate(answers)
    ]


def _require_answers(prompts: ParallelPrompts, sharing: Any) -> None:
    require_prompts(prompts)
    if not isinstance(sharing, NeuronSharing):
        raise NeuronShareError(f"sharing is a {type(sharing).__name__}; give the NeuronSharing that categorise found.")
    if prompts.answers is None:
        raise NeuronShareError(
            f"{prompts!r} has no answers in any of {', '.join(prompts.languages)}; give "
            "ParallelPrompts(..., answers={language: [...]})."
        )
