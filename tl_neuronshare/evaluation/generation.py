"""Continue prompts greedily. Answers that follow from scoring already are not decoded again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from tl_neuronshare import models
from tl_neuronshare.evaluation.scoring import HookMaker, hooks_for, ragged, unragged
from tl_neuronshare.models import Hooks, LensModel, decoding, verification
from tl_neuronshare.running.loop import Loop
from tl_neuronshare.running.plan import Batch, BatchSize, Plan
from tl_neuronshare.running.shards import Record


class Generation:
    """Greedy answers to the prompts of one language, cut at an end token and at texts of `stop`.

    Args:
        model: the model that answers.
        language: the language of the prompts.
        prompts: the tokens of each prompt, if it is tokenised alone.
        examples: the labels of the examples, for messages.
        n_new: how many tokens an answer may have.
        stop: texts at which an answer ends.
        batch_size: how many prompts share a forward pass.

    Raises:
        NeuronShareError: a prompt with `n_new` new tokens is longer than the context.
    """

    def __init__(
        self,
        model: LensModel,
        language: str,
        prompts: Sequence[list[int]],
        examples: Sequence[Hashable],
        *,
        n_new: int,
        stop: Sequence[str],
        batch_size: BatchSize,
    ) -> None:
        self.model, self.language, self.prompts = model, language, prompts
        self.n_new, self.stop, self.batch_size = n_new, stop, batch_size
        self._ends = set(models.end_tokens(model))
        start = models.decoder_prompt(model) if models.architecture_of(model) == "encoder-decoder" else None
        for example, tokens in zip(examples, prompts, strict=True):
            where = f"Language {language!r}, example {example!r}"
            n_tokens = len(tokens if start is None else start) + n_new
            models.check_length(model, n_tokens, where, f"the prompt with {n_new} new tokens")

    def run(
        self, begun: Sequence[Sequence[int]], fwd_hooks: Hooks | HookMaker | None, loop: Loop, *, stage: str = ""
    ) -> list[str]:
        """Answer each prompt. Its answer is not decoded if the known first tokens are already a whole answer.

        Args:
            begun: the known first tokens of each answer; there may be none.
            fwd_hooks: as in `evaluate`.
            loop: the loop that goes through the batches.
            stage: the name of this run in the loop's records.
        """
        answers = [self._text(known[: self.n_new]) for known in begun]
        left = [example for example, text in enumerate(answers) if text is None]
        decoded = self._decoded(left, fwd_hooks, loop, stage=stage)
        for example, tokens in zip(left, decoded, strict=True):
            answers[example] = self._text(tokens)
        return [text or "" for text in answers]

    def tokens(self, loop: Loop, *, stage: str) -> list[list[int]]:
        """Decode the new tokens of each prompt, up to an end token, which is left out.

        Args:
            loop: the loop that goes through the batches.
            stage: the name of this run in the loop's records.
        """
        decoded = self._decoded(range(len(self.prompts)), None, loop, stage=stage)
        return [new[: self._end(new)] for new in decoded]

    def _decoded(
        self, left: Sequence[int], fwd_hooks: Hooks | HookMaker | None, loop: Loop, *, stage: str
    ) -> list[list[int]]:
        """The new tokens of some of the examples, whole batches at a time."""
        decoded: list[list[int]] = [[] for _ in left]
        packing = verification.packing(self.model)
        crosses = any(packing.crosses(len(self.prompts[example]), self.n_new) for example in left)
        plan = Plan(
            self.model,
            [self.prompts[example] for example in left],
            batch_size=self.batch_size,
            n_more=self.n_new,
            packing=replace(
                packing, pads=packing.pads and not crosses, tokens_a_pass=self.n_new * packing.tokens_a_pass
            ),
        )

        def decode(batch: Batch) -> Record:
            examples = [left[row] for row in batch.rows]
            with models.all_firing(self.model, hooks_for(fwd_hooks, self.language, examples, batch.tokens)):
                new = decoding.greedy(
                    self.model,
                    [self.prompts[example] for example in examples],
                    self.n_new,
                    cached=verification.caches(self.model) and not crosses,
                    is_finished=lambda row, tokens: self._text(tokens) is not None,
                )
            return ragged("new", new)

        def keep(rows: list[int], record: Record) -> None:
            for row, tokens in zip(rows, unragged("new", record), strict=True):
                decoded[row] = tokens

        loop(plan, decode, keep, stage=stage, shown=False)
        return decoded

    def _end(self, new: Sequence[int]) -> int | None:
        """Where the first end token is, if there is one."""
        return next((place for place, token in enumerate(new) if token in self._ends), None)

    def _text(self, new: Sequence[int]) -> str | None:
        """The text of new tokens, or None if it is not complete.

        It is complete at an end token, at a text of `stop`, or if it has as many tokens as it may have.
        """
        end = self._end(new)
        text: str = self.model.tokenizer.decode(new[:end])
        cuts = [place for cut in self.stop if (place := text.find(cut)) >= 0]
        if cuts:
            return text[: min(cuts)]
        return text if end is not None or len(new) >= self.n_new else None
