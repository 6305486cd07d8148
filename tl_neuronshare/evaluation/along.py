"""Types along a text: which neurons languages share at each of the prompt's last tokens, and while they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import count
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.generation import Generation
from tl_neuronshare.maths.activation import Number, as_threshold
from tl_neuronshare.models import LensModel, Site, verification
from tl_neuronshare.prompts import ParallelPrompts, require_prompts
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.running.loop import Loop, running
from tl_neuronshare.running.plan import Batch, BatchSize, Plan, Running
from tl_neuronshare.running.recording import RecordedPass, SharingRecorder
from tl_neuronshare.running.shards import Record


class AlongText(NamedTuple):
    """What `types_along` gives.

    Attributes:
        results: the types at each step: 0 is the prompt's last token, -1 the one before it, 1 the first new token.
            `side_by_side(results, name="step")` makes a table of them.
        tokens: a table with a row for each example, language and step: example, language, step, token (its text).
    """

    results: dict[int, NeuronSharing]
    tokens: pd.DataFrame


@explains
def types_along(
    model: LensModel,
    prompts: ParallelPrompts,
    *,
    before: int = 3,
    after: int = 5,
    site: Site | None = None,
    threshold: Number | str = 0.0,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> AlongText:
    """Categorise neurons at each of the prompts' last tokens, and at each token of greedy continuations.

    Languages are aligned by step: the last token of a prompt with the last tokens of its other languages, the first new
    token with their first ones. What stands at a step need not mean the same in every language, the less the further it
    is from the prompt's end; `mismatched` of `NeuronSharing.summary` says what different examples share there.

    Args:
        model: a HookedTransformer or TransformerBridge of a decoder.
        prompts: the same examples in at least two languages.
        before: how many of a prompt's tokens are read; each prompt must have as many.
        after: how many new tokens are decoded and read. A continuation ends at an end token; at later steps its example
            is left out, and a step that no example reaches is left out too.
        site: as in `categorise`.
        threshold: as in `categorise`.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Raises:
        NeuronShareError: the model or an option is unsuitable, a prompt has too few tokens, or with its continuation
            too many.

    Warns:
        UserWarning: no site is named, and the model is gated.

    Source: the paper's types, at more than one token; ours.

    Examples:
        >>> along = types_along(model, ns.demo.prompts()[9:10].select(["en", "zh"]), before=2, after=1)
        >>> list(along.results), along.tokens["token"].tolist()
        ([-1, 0, 1], [' 10', ' →', ' 22', ' 之和', ' →', ' 22'])
    """
    require_prompts(prompts)
    how, before, after = Running(batch_size, prepend_bos).on(model), count("before", before), count("after", after)
    threshold = as_threshold("threshold", threshold)
    models.require_architecture(model, "decoder", why="It does not continue a text. Use a decoder.")
    texts: list[list[int]] = []
    generations: dict[str, Generation] = {}
    for language, of_language in prompts.prompts.items():
        rows = models.tokenised(model, of_language, language, prompts.examples, prepend_bos=how.prepend_bos)
        _require_tokens(rows, before, language, prompts)
        texts += rows
        generations[language] = Generation(
            model, language, rows, prompts.examples, n_new=after, stop=(), batch_size=how.batch_size
        )
    steps = range(1 - before, after + 1)
    recorders = {
        step: SharingRecorder(
            model, prompts.languages, len(prompts), site=site, position=step - after - 1, threshold=threshold
        )
        for step in steps
    }
    recorders[0].warn_of_site()
    verification.require(model, "decoding")
    new: list[list[int]] = []
    with running(model, "types along texts", n_rows=len(texts), progress=progress) as loop:
        for language, generation in generations.items():
            new += generation.tokens(loop, stage=f"answers in {language}")
        _read(model, recorders, texts, new, how=how, loop=loop)
    reached = torch.tensor([len(tokens) for tokens in new], device="cpu").reshape(-1, len(prompts)).amin(0)
    results: dict[int, NeuronSharing] = {}
    for step, recorder in recorders.items():
        if (is_there := reached >= step).any():
            sharing = recorder.sharing(prompts=prompts)
            assert isinstance(sharing, NeuronSharing)  # there is one threshold
            results[step] = sharing[is_there]
    return AlongText(results, _tokens(model, prompts, texts, new, steps))


def _require_tokens(rows: Sequence[Sequence[int]], before: int, language: str, prompts: ParallelPrompts) -> None:
    """Refuse prompts that have too few tokens."""
    for example, row in zip(prompts.examples, rows, strict=True):
        if len(row) < before:
            raise NeuronShareError(
                f"Language {language!r}, example {example!r}: the prompt has {len(row)} tokens, and before={before}; "
                "ask for fewer, or leave the example out in every language."
            )


def _read(
    model: LensModel,
    recorders: Mapping[int, SharingRecorder],
    texts: Sequence[list[int]],
    new: Sequence[list[int]],
    *,
    how: Running,
    loop: Loop,
) -> None:
    """Record each step of the prompts with their continuations, in one pass for all steps.

    What comes after a continuation's end does not change what is before it, so that all rows have as many new tokens.
    """
    first = next(iter(recorders.values()))
    longest = max(recorders)
    rows = [text + (tokens + text[-1:] * longest)[:longest] for text, tokens in zip(texts, new, strict=True)]
    plan = Plan(model, rows, batch_size=how.batch_size)
    # A recorder numbers prompts example by example.
    numbers = torch.arange(len(rows), device="cpu").reshape(-1, len(first.languages)).T.flatten()
    passes: list[RecordedPass]  # those of the batch that is running

    def take(layer: int, tensors: tuple[Tensor, ...]) -> None:
        for each in passes:
            each.read(layer, tensors)

    def record(batch: Batch) -> Record:
        nonlocal passes
        passes = [RecordedPass(recorder, numbers[batch.rows], batch) for recorder in recorders.values()]
        run_once(batch)
        return {
            f"{key} at {step}": kept
            for step, recorder in recorders.items()
            for key, kept in recorder.bits.of(numbers[batch.rows]).items()
        }

    def keep(kept: list[int], of_batch: Record) -> None:
        for step, recorder in recorders.items():
            end = f" at {step}"
            of_step = {key.removesuffix(end): value for key, value in of_batch.items() if key.endswith(end)}
            recorder.bits.take(numbers[kept], of_step)

    with models.reading(model, first.layers, take) as run_once:
        loop(plan, record, keep, stage="types")


def _tokens(
    model: LensModel,
    prompts: ParallelPrompts,
    texts: Sequence[Sequence[int]],
    new: Sequence[Sequence[int]],
    steps: range,
) -> pd.DataFrame:
    """The text of the token at each step, where there is one."""
    places = [(language, example) for language in prompts.languages for example in prompts.examples]
    return pd.DataFrame(
        [
            {
                "example": example,
                "language": language,
                "step": step,
                "token": model.tokenizer.decode([tokens[step - 1] if step > 0 else text[step - 1]]),
            }
            for (language, example), text, tokens in zip(places, texts, new, strict=True)
            for step in steps
            if step <= len(tokens)
        ]
    )
