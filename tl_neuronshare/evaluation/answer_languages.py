"""In what language does a model answer? Greedy continuations, and a detector that says what language each is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tl_neuronshare import models
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import count, distinct, texts_by_language
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.evaluation.evaluating import as_stop
from tl_neuronshare.evaluation.generation import Generation
from tl_neuronshare.evaluation.scoring import HookMaker
from tl_neuronshare.models import Hooks, LensModel, verification
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.running.loop import running
from tl_neuronshare.running.plan import BatchSize, Running

UNCLEAR = "unclear"
_TAG = re.compile(r"</?\w[^<>]*(>|$)")  # the last one may be cut off


@explains
def answer_languages(
    model: LensModel,
    prompts: ParallelPrompts | Mapping[str, Sequence[str]],
    *,
    candidates: Sequence[str] | None = None,
    fwd_hooks: Hooks | HookMaker | None = None,
    max_new_tokens: int = 40,
    stop: Sequence[str] = (),
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Let a model go on from prompts, and count in which languages it does so.

    Call it without and with hooks, for example those of `ablation_hooks` for a language's neurons or of
    `methods.steering_hooks`, and compare the shares.

    Args:
        model: a HookedTransformer or TransformerBridge.
        prompts: the prompts of each language.
        candidates: the languages that the detector chooses from, as ISO 639-1 codes; by default those of the prompts.
            The fewer they are, the surer is its choice, and the more it must be one of them.
        fwd_hooks: as in `evaluate`.
        max_new_tokens: how many tokens to decode. The more, the surer is the detector.
        stop: texts at which a continuation is cut off.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        A table with a row for each prompt: language; example (its number); answered (the detected language, or
        `unclear` where the detector finds no language, as in an empty text, or numbers or tags alone); confidence (the
        detector's, from 0 to 1); text (the continuation). `pandas.crosstab(table["language"], table["answered"],
        normalize="index")` gives the shares.

    Raises:
        NeuronShareError: the detector is not installed or does not know a language, the model fails a check of
            `verify`, or a prompt with its continuation is too long.

    The detector is lingua, which tells short texts of 75 languages apart by n-grams, without a network, and always
    gives the same answer. It comes with `pip install "tl_neuronshare[detection]"`.

    Examples:
        >>> table = answer_languages(model, {"en": ["Country code of Peru →"]}, candidates=["en", "de"])
        >>> list(table.columns)
        ['language', 'example', 'answered', 'confidence', 'text']
    """
    how, n_new = Running(batch_size, prepend_bos).on(model), count("max_new_tokens", max_new_tokens)
    stop = as_stop("stop", stop)
    texts = texts_by_language("prompts", prompts.prompts if isinstance(prompts, ParallelPrompts) else prompts)
    detector = Detector(list(texts) if candidates is None else candidates)
    models.require_architecture(
        model, "decoder", "encoder-decoder", why="It gives no answer to a prompt. Use a decoder."
    )
    verification.require(model, "logits", "decoding")
    rows: list[dict[str, Any]] = []
    with running(model, "answers", n_rows=sum(map(len, texts.values())), progress=progress) as loop:
        for language, of_language in texts.items():
            examples = range(len(of_language))
            tokens = models.tokenised(model, of_language, language, examples, prepend_bos=how.prepend_bos)
            generation = Generation(
                model, language, tokens, examples, n_new=n_new, stop=stop, batch_size=how.batch_size
            )
            answers = generation.run([[] for _ in tokens], fwd_hooks, loop, stage=language)
            for example, text in zip(examples, answers, strict=True):
                answered, confidence = detector(text)
                rows.append(
                    {
                        "language": language,
                        "example": example,
                        "answered": answered,
                        "confidence": confidence,
                        "text": text,
                    }
                )
    return pd.DataFrame(rows)


class Detector:
    """Tell in which of some languages a text is. Tags of HTML, into which base models often fall, are left out.

    Args:
        candidates: the languages, as ISO 639-1 codes; at least two.

    Raises:
        NeuronShareError: the detector is not installed, or does not know a language.

    Examples:
        >>> Detector(["en", "de"])("Das ist ein Haus.")[0]
        'de'
    """

    def __init__(self, candidates: Sequence[str]) -> None:
        names = distinct("candidates", candidates, least=2, what="codes of languages")
        distinct("candidates", [str(name).lower() for name in names], what="codes of languages")
        try:
            import lingua
        except ImportError as error:
            raise NeuronShareError(
                'The language detector is not installed; run pip install "tl_neuronshare[detection]".'
            ) from error
        self._codes = {}
        for name in names:
            code = getattr(lingua.IsoCode639_1, str(name).upper(), None)
            if code is None:
                raise NeuronShareError(
                    f"The detector does not know the language {name!r}; name languages that it knows, as ISO 639-1 "
                    "codes, with candidates=."
                )
            self._codes[lingua.Language.from_iso_code_639_1(code)] = str(name)
        self._detector = lingua.LanguageDetectorBuilder.from_languages(*self._codes).build()

    def __call__(self, text: str) -> tuple[str, float]:
        """Return the language of a text, or `unclear`, and the confidence from 0 to 1."""
        first, second = self._detector.compute_language_confidence_values(_TAG.sub(" ", text))[:2]
        if first.value == second.value:  # where nothing in the text is of any language, all are equal
            return UNCLEAR, 0.0
        return self._codes[first.language], float(first.value)
