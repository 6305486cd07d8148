"""Judge whether a model's answer is right."""

from __future__ import annotations

import unicodedata

from tl_neuronshare.evaluation.numerals import last_number

_SENTENCE_ENDS = ".,;:!?…。，、；：！？।؟،"


def is_right(prediction: str, answer: str, *, by_number: bool) -> bool:
    """Whether a prediction is the answer: both have the same last number, or the same text once it is normalised.

    Examples:
        >>> is_right("That makes 1,200.", "1200", by_number=True), is_right("paris.", " Paris", by_number=False)
        (True, True)
    """
    if by_number:
        return last_number(prediction) == last_number(answer)
    return normalised(prediction) == normalised(answer)


def normalised(text: str) -> str:
    """A text in one form of case, width and white space, without quotes or brackets around it or a sentence's end.

    Invisible characters (marks of direction, zero-width joiners, soft hyphens ...) are left out.

    Examples:
        >>> normalised(" „Ｐaris“.") == normalised("paris"), normalised("-.5 %"), normalised("C#")
        (True, '-.5 %', 'c#')
    """
    text = "".join(char for char in unicodedata.normalize("NFKC", text) if unicodedata.category(char) != "Cf")
    text = " ".join(text.casefold().split())
    around = "".join(char for char in set(text) if unicodedata.category(char) in ("Ps", "Pe", "Pi", "Pf")) + "\"' "
    return text.lstrip(around + "¿¡").rstrip(around + _SENTENCE_ENDS) or text
