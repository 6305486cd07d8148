"""MGSM (Shi et al., ICLR 2023): 250 problems of school mathematics in eleven languages, each answered by a number."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple, get_args

from tl_neuronshare.arguments import explains
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.tasks import reading
from tl_neuronshare.tasks.reading import QUESTION, Instructions, Languages, Report

HOW_TO_GET = (
    "The original is github.com/google-research/url-nlp, folder mgsm, with mgsm_LANGUAGE.tsv: give that folder as "
    "source. Or download the data set where there is a network (hf download juletxara/mgsm --repo-type dataset "
    "--local-dir FOLDER), and give FOLDER."
)
# In the hub's data set every language is a configuration.
HUB_LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
_NUMBER = re.compile(r"-?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?")


class _Problem(NamedTuple):
    """A problem in one language: where it is, its question, and the number that answers it."""

    where: str
    question: str
    answer: str


@explains
def mgsm(
    source: str | Path = "juletxara/mgsm",
    *,
    instructions: Instructions = "native",
    languages: Languages = None,
    limit: int | None = None,
    seed: int = 0,
) -> ParallelPrompts:
    """Read problems of MGSM's test set, with the number that answers each; score them by `scoring="number"`.

    MGSM has no keys: problem i is the same in every language. Files are refused if an answer differs between languages,
    or if one has fewer problems. Lines that changed places and have the same answer cannot be detected.

    Args:
        source: the hub's data set or a local copy of its repository, or the original folder with `mgsm_LANGUAGE.tsv`.
        instructions: `native`, the words for question and answer in the problem's language, or `english`.
        languages: a list, `all` that the source has, or None for those of the paper's nine that it has: MGSM has no
            Turkish and no Vietnamese.
        limit: the most examples to give.
        seed: the seed of the order of examples.

    Returns:
        Prompts that end in the word for answer, without choices. Answers are numbers in digits, without separators. An
        example is labelled by its place in the file, from 1.

    Raises:
        NeuronShareError: no such source or language; a line in the wrong format, by file and number; languages that
            disagree on an answer or have different numbers of problems.

    Source: MGSM; the paper has no mathematics.

    Examples:
        >>> prompts = mgsm("mgsm", languages=["en", "de"], limit=1)
        >>> print(prompts.prompts["de"][0] + prompts.answers["de"][0])
        Frage: Ein Buch kostet 12 Euro. Was kosten 100 Bücher?
        Antwort: 1200
    """
    reading.check_task(limit=limit, seed=seed, one_of={"instructions": (instructions, get_args(Instructions))})
    report = Report()
    path = reading.local_path(source, "mgsm", HOW_TO_GET)
    if path and path.is_file():
        raise NeuronShareError(f"mgsm: {str(path)!r} is one language's file; give the folder. {HOW_TO_GET}")
    files = {file.stem.removeprefix("mgsm_"): file for file in sorted(path.glob("mgsm_*.tsv"))} if path else {}
    copied = sorted({file.parent.name for file in path.glob("*/test*")}) if path else []
    chosen = reading.languages_of("mgsm", languages, list(files) or copied or HUB_LANGUAGES, report)
    if instructions == "native":
        reading.check_wording("mgsm", chosen, QUESTION, 'instructions="english"')
    tables = {
        language: reading.by_key(
            _of_file(files[language]) if files else _of_data_set(path or source, language), language, report
        )
        for language in chosen
    }
    _check_parallel(tables)

    def ask(language: str, number: int) -> reading.Asked:
        problem = tables[language][number]
        wording = QUESTION[language if instructions == "native" else "en"]
        return reading.Asked(wording.replace("{}", problem.question), problem.answer)

    numbers = reading.drawn(tables, "mgsm", seed=seed, limit=limit, report=report)
    return reading.build("mgsm", chosen, numbers, ask, report=report)


def _of_file(path: Path) -> Iterator[tuple[str, int, _Problem]]:
    """The place of each problem of a file, its number from 1, and the problem."""
    for number, (where, line) in enumerate(reading.lines_of(path), 1):
        question, tab, answer = line.partition("\t")
        if not tab or not question.strip():
            raise NeuronShareError(f"{where}: no question, TAB and answer; is the line cut off?")
        if not _NUMBER.fullmatch(answer.strip()):
            raise NeuronShareError(f"{where}: the answer {answer!r} is not a number.")
        yield where, number, _Problem(where, question.strip(), _in_digits(answer.strip().replace(",", "")))


def _of_data_set(source: str | Path, language: str) -> Iterator[tuple[str, int, _Problem]]:
    """The same from a configuration of the hub's data set."""
    columns = ("question", "answer_number")
    rows = reading.hub_data(source, config=language, split="test", columns=columns, task="mgsm", how_to_get=HOW_TO_GET)
    for number, row in enumerate(rows):
        where = f"{source}, configuration {language!r}, row {number}"
        question = reading.fields(row, ("question",), where)["question"]
        answer = row["answer_number"]
        if isinstance(answer, bool) or not isinstance(answer, (int, float)) or not math.isfinite(answer):
            raise NeuronShareError(f"{where}: the answer_number is {answer!r}, which is not a number.")
        yield where, number + 1, _Problem(where, question, _in_digits(str(answer)))


def _in_digits(number: str) -> str:
    """A number without exponent and without superfluous zeros."""
    return f"{Decimal(number).normalize():f}"


def _check_parallel(tables: Mapping[str, Mapping[int, _Problem]]) -> None:
    """Refuse languages that do not have the same answers in the same order."""
    first, *others = tables
    for other in others:
        for ours, theirs in zip(tables[first].values(), tables[other].values(), strict=False):
            if ours.answer != theirs.answer:
                raise NeuronShareError(
                    f"mgsm: the answer is {ours.answer} at {ours.where}, and {theirs.answer} at {theirs.where}. "
                    "Problem i must be the same in every language: is a line missing, or are the files in a different "
                    "order?"
                )
        if len(tables[first]) != len(tables[other]):
            raise NeuronShareError(
                f"mgsm: {first!r} has {len(tables[first])} problems, {other!r} {len(tables[other])}. Problem i must be "
                "the same in every language: give whole files."
            )
