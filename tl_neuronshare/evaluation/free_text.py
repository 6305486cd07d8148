"""Score free text: how probable a model finds each text, with or without hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import texts_by_language
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.answers import Continuation
from tl_neuronshare.evaluation.scoring import HookMaker, Scorer
from tl_neuronshare.models import Hooks, LensModel, verification
from tl_neuronshare.running.loop import Loop, running
from tl_neuronshare.running.plan import BatchSize, Running


@explains
def perplexity(
    model: LensModel,
    texts: Mapping[str, Sequence[str]],
    *,
    fwd_hooks: Hooks | HookMaker | None = None,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the perplexity of texts in each language: exp of the mean negative log-probability of their tokens.

    The first token that is run is not predicted, so it does not count.

    Args:
        model: a HookedTransformer or TransformerBridge.
        texts: the texts of each language, which need not be parallel.
        fwd_hooks: as in `evaluate`. The examples are the texts of a language, counted from 0, and the first token of a
            text is its prompt.
        batch_size: as in `evaluate`.
        prepend_bos: as in `categorise`. With a BOS, the first token of the text itself counts too.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        A table with a row for each language. Columns: language; perplexity; log_prob (the mean over tokens, in nats);
        tokens; texts.

    Raises:
        NeuronShareError: there are no texts, a text has fewer than two tokens or more than the context, or a hook is
            unknown.

    Examples:
        >>> texts = {"en": ["Country code of Peru → PE"], "de": ["Ländercode von Peru → PE"]}
        >>> perplexity(model, texts)[["language", "perplexity", "tokens"]].round(2)
          language  perplexity  tokens
        0       en        3.46       5
        1       de        4.33       4
    """
    scored = FreeText(model, texts, Running(batch_size, prepend_bos))
    with running(model, "perplexity", n_rows=scored.n_rows, progress=progress) as loop:
        rows = []
        for language in scored.languages:
            log_probs, n_tokens = scored.log_probs(language, fwd_hooks, loop), int(scored.tokens[language].sum())
            mean = log_probs.sum().item() / n_tokens
            rows.append(
                {
                    "language": language,
                    "perplexity": torch.tensor(-mean, dtype=torch.float64, device="cpu").exp().item(),
                    "log_prob": mean,
                    "tokens": n_tokens,
                    "texts": len(log_probs),
                }
            )
    table = pd.DataFrame(rows)
    table.attrs["verified"] = verification.is_verified(model)
    return table


class FreeText:
    """Texts that are tokenised and batched once, and can then be scored under many hooks. See `perplexity`.

    Attributes:
        languages: the languages of the texts.
        texts: the texts of each language.
        how: how they are run.
        rows: for each language, the tokens of each text.
        tokens: for each language, how many tokens of each text are scored.
    """

    def __init__(self, model: LensModel, texts: Mapping[str, Sequence[str]], how: Running) -> None:
        self.model, self.how = model, how.on(model)
        models.require_architecture(
            model, "decoder", why="It does not predict each token of a text from those before it. Use a decoder."
        )
        verification.require(model, "logits")
        self.texts = texts_by_language("texts", texts)
        self.languages = list(texts)
        self.rows = {language: self._tokenised(language, of_language) for language, of_language in texts.items()}
        self.tokens: dict[str, Int[Tensor, " text"]] = {
            language: torch.tensor([len(tokens) - 1 for tokens in rows], device="cpu")
            for language, rows in self.rows.items()
        }
        self._scorers = {
            language: Scorer(
                model,
                language,
                [Continuation(number, tuple(row[:1]), tuple(row[1:])) for number, row in enumerate(rows)],
                self.how.batch_size,
            )
            for language, rows in self.rows.items()
        }

    def _tokenised(self, language: str, texts: Sequence[str]) -> list[list[int]]:
        rows = models.tokenised(self.model, texts, language, range(len(texts)), prepend_bos=self.how.prepend_bos)
        for number, tokens in enumerate(rows):
            if len(tokens) < 2:
                raise NeuronShareError(f"Language {language!r}, text {number}: one token leaves nothing to predict.")
        return rows

    @property
    def n_rows(self) -> int:
        """How many texts there are."""
        return sum(map(len, self.rows.values()))

    def log_probs(
        self, language: str, fwd_hooks: Hooks | HookMaker | None, loop: Loop, *, stage: str = ""
    ) -> Float[Tensor, " text"]:
        """Return the log-probability of each text, summed over its tokens but the first, in nats.

        Args:
            language: the language whose texts are scored.
            fwd_hooks: as in `perplexity`.
            loop: the loop that goes through the batches.
            stage: the name of this run in the loop's records.

        Raises:
            NeuronShareError: a log-probability is NaN.
        """
        log_probs = self._scorers[language].run(fwd_hooks, loop, stage=f"{stage}/{language}").log_probs
        if log_probs.isnan().any():
            raise NeuronShareError(
                f"Language {language!r}: the log-probability is NaN; check your hooks and the dtype."
            )
        return log_probs
