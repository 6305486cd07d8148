"""Read tasks: sources, files read strictly, alignment by key, examples drawn and asked, and a report of all this.

Every task goes the same way: `check_task`, `local_path` or `hub_data`, `languages_of`, a table for each language
`by_key`, `drawn` for the examples that all languages have, and `build`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import pandas as pd

from tl_neuronshare import checks
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.prompts import ParallelPrompts, short_hash

if TYPE_CHECKING:
    from datasets import Dataset

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)
Languages = Sequence[str] | Literal["all"] | None
Instructions = Literal["english", "native"]
PAPER = ("en", "de", "es", "fr", "ru", "th", "tr", "vi", "zh")
REPORT_COLUMNS = ("language", "outcome", "reason", "count")
_SPACE = re.compile(r"\s*")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# How a question is put in each language: {} is the text.
QUESTION = {
    "bn": "প্রশ্ন: {}\nউত্তর:",
    "de": "Frage: {}\nAntwort:",
    "en": "Question: {}\nAnswer:",
    "es": "Pregunta: {}\nRespuesta:",
    "fr": "Question : {}\nRéponse :",
    "ja": "質問：{}\n答え：",
    "pt": "Pergunta: {}\nResposta:",
    "ru": "Вопрос: {}\nОтвет:",
    "sw": "Swali: {}\nJibu:",
    "te": "ప్రశ్న: {}\nసమాధానం:",
    "th": "คำถาม: {}\nคำตอบ:",
    "tr": "Soru: {}\nCevap:",
    "vi": "Câu hỏi: {}\nTrả lời:",
    "zh": "问题：{}\n答案：",
}


class Asked(NamedTuple):
    """How an example is asked in one language: its prompt, the answer, and the choices if there are any.

    `space` comes before answer and choices. By default it is a space, but nothing after full-width punctuation.
    """

    prompt: str
    answer: str
    choices: Sequence[str] = ()
    space: str | None = None

    def continuations(self) -> tuple[str, list[str]]:
        """Give the answer and the choices as they continue the prompt."""
        space = before_answer(self.prompt) if self.space is None else self.space
        return space + self.answer, [space + choice for choice in self.choices]


class Report:
    """Collect what a reader kept and dropped, and why."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, int]] = []

    def kept(self, language: str, reason: str, count: int) -> None:
        """Report how many rows were read, or how many examples were kept."""
        self._rows.append((language, "kept", reason, count))

    def dropped(self, language: str, reason: str, count: int) -> None:
        """Report how many rows or examples were dropped, if any."""
        if count:
            self._rows.append((language, "dropped", reason, count))

    def left_out(self, language: str, reason: str, count: int) -> None:
        """Report that a whole language was left out, and how many rows it had."""
        self._rows.append((language, "left out", reason, count))

    def noted(self, language: str, reason: str, count: int) -> None:
        """Report for how many of the examples that were kept something is worth knowing, if for any."""
        if count:
            self._rows.append((language, "noted", reason, count))

    def examples(self, count: int, *, limit: int | None, beyond: int) -> None:
        """Report how many examples are given, and how many more there were beyond the limit."""
        self.dropped("all", f"beyond the limit of {limit}", beyond)
        self.kept("all", "examples", count)

    def table(self) -> pd.DataFrame:
        """Make the table of `ParallelPrompts.report`: language (or all), outcome, reason, count."""
        return pd.DataFrame(self._rows, columns=list(REPORT_COLUMNS))


def check_task(*, limit: int | None, seed: int, one_of: Mapping[str, tuple[Any, Iterable[str]]] | None = None) -> None:
    """Refuse values that options of tasks cannot have; `one_of` gives for others the value and what it can be."""
    if limit is not None and not checks.is_count(limit):
        raise NeuronShareError(f"limit is {limit!r}; ask for at least one example, or leave it out for all.")
    checks.whole("seed", seed)
    for name, (value, known) in (one_of or {}).items():
        checks.one_of(name, value, known)


def local_path(source: str | Path, task: str, how_to_get: str) -> Path | None:
    """Find the file or folder that a source names; None if it can only be the name of a data set on the hub."""
    if not isinstance(source, (str, Path)) or not str(source).strip():
        raise NeuronShareError(f"{task}: source={source!r} is neither a path nor the name of a data set. {how_to_get}")
    try:
        path = Path(source).expanduser()
        is_there = path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise NeuronShareError(f"{task}: source={str(source)[:80]!r} is not a path ({error}). {how_to_get}") from error
    if path.is_file() or path.is_dir():
        return path
    if is_there:
        raise NeuronShareError(f"{task}: {str(path)!r} is neither a file nor a folder. {how_to_get}")
    if isinstance(source, Path) or not _HUB_NAME.fullmatch(source) or path.suffix in (".tsv", ".json", ".jsonl"):
        raise NeuronShareError(
            f"{task}: there is no file or folder {str(source)!r}, and a data set of the hub is called OWNER/NAME. "
            f"{how_to_get}"
        )
    return None


def hub_data(
    source: str | Path, *, config: str | None, split: str, columns: Sequence[str], task: str, how_to_get: str
) -> Dataset:
    """Load a split of a data set with these columns, from the hub or from a local copy of its repository."""
    import datasets  # slow to import

    # Asking for a configuration downloads its other splits too, and XNLI's train split is huge. So the split's own
    # files are asked for first, by their names on the hub, and the configuration only where there are none.
    of_split = {"data_files": {split: f"{config}/{split}*"}} if config else {}
    # Without a network `datasets` knows a folder by its name only, and may give a different folder of that name.
    how = {"split": split, "download_mode": "force_redownload" if isinstance(source, Path) else None}
    try:
        try:
            data = datasets.load_dataset(str(source), **how, **of_split)
        except FileNotFoundError:
            data = datasets.load_dataset(str(source), config, **how)
    except Exception as error:  # what it raises depends on its version, and on why the network fails
        raise NeuronShareError(
            f"{task}: {str(source)!r} is not a file or folder in the original format, and could not be loaded as a "
            f"data set (configuration {config!r}, split {split!r}: {_first_line(error)}). {how_to_get}"
        ) from error
    if not len(data) or any(column not in data.column_names for column in columns):
        raise NeuronShareError(
            f"{task}: {str(source)!r} has {len(data)} rows with columns {', '.join(data.column_names)}; it needs "
            f"{', '.join(columns)}. {how_to_get}"
        )
    return data


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".split("\n", 1)[0].rstrip(".")


def text_of(path: Path) -> str:
    """Read a file's text, which must be UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise NeuronShareError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8; save the file as UTF-8."
        ) from error
    except OSError as error:
        raise NeuronShareError(f"{path}: it cannot be read ({error.strerror}).") from error


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Give each line that is not blank, after its place; lines end at line feeds only, since labels hold U+0085."""
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line.removesuffix("\r")


def json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Give the value of each line of a JSON-lines file, after its place."""
    for where, line in lines_of(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # also of a number with too many digits
            raise NeuronShareError(f"{where}: this is not JSON ({error}); is the line cut off?") from error
        yield where, value


def json_lines(path: Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Give the fields of each line of a JSON-lines file, after its place."""
    for where, value in json_values(path):
        yield where, fields(value, names, where)


def json_list(path: Path) -> Iterator[tuple[str, Any]]:
    """Give the entries of a file that is a single JSON list, each after the line on which it begins."""
    text, decoder = text_of(path), json.JSONDecoder()

    def line(place: int) -> str:
        return f"{path}, line {text.count(chr(10), 0, place) + 1}"

    def after_space(place: int) -> int:
        return _SPACE.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing too

    place = after_space(0)
    if text[place : place + 1] != "[":
        raise NeuronShareError(f"{line(place)}: this is not a JSON list; give the file in its original format.")
    while text[place] != "]":
        start = after_space(place + 1)
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            at = getattr(error, "pos", start)
            raise NeuronShareError(f"{line(at)}: this is not JSON ({error}); is the file cut off?") from error
        yield line(start), value
        place = after_space(end)
        if text[place : place + 1] not in ("]", ","):
            raise NeuronShareError(f"{line(place)}: the list does not go on here; is the file cut off?")
    if text[place + 1 :].strip():
        raise NeuronShareError(f"{line(place + 1)}: more comes after the list; give a single list.")


def fields(value: Any, names: Sequence[str], where: str) -> dict[str, str]:
    """Take the named fields of a JSON object, each of which must be a text that is not empty."""
    if not isinstance(value, dict):
        raise NeuronShareError(f"{where}: a {type(value).__name__} where an object with {', '.join(names)} belongs.")
    for name in names:
        if name not in value:
            raise NeuronShareError(f"{where}: no {name!r}; it has {', '.join(map(repr, value)) or 'nothing'}.")
        if not isinstance(value[name], str) or not value[name].strip():
            raise NeuronShareError(
                f"{where}: {name!r} is {value[name]!r}; give a text that is not empty, or drop this entry in every "
                "language."
            )
        if not checks.is_whole(value[name]):
            raise NeuronShareError(f"{where}: {name!r} holds half a character ({value[name]!r}); write it whole.")
    return {name: value[name].strip() for name in names}


def by_key(rows: Iterable[tuple[str, Key, Row]], language: str, report: Report) -> dict[Key, Row]:
    """Put rows into a table by their key, and report how many were read.

    The same row again counts once and is reported; a different row with the same key is refused.
    """
    table: dict[Key, Row] = {}
    places: dict[Key, str] = {}
    again = 0
    for where, key, row in rows:
        if key not in table:
            table[key], places[key] = row, where
        elif table[key] == row:
            again += 1
        else:
            raise NeuronShareError(
                f"{where}: {key} appears at {places[key]} too, and says something else there; keep one of them."
            )
    report.kept(language, "read", len(table) + again)
    report.dropped(language, "the same row again", again)
    return table


def languages_of(task: str, asked: Languages, present: Sequence[str], report: Report) -> list[str]:
    """Choose the languages to read: those asked for, or all, or by default those of the paper's nine that are there.

    By default all are read where fewer than two of the paper's languages are there.
    """
    paper = [language for language in PAPER if language in present]
    if asked is None and len(paper) >= 2:
        for language in PAPER:
            if language not in present:
                report.left_out(language, "of the paper's languages, but not in the source", 0)
        return paper
    if asked is None or asked == "all":
        return _two(task, list(present), present)
    if isinstance(asked, str) or not isinstance(asked, Sequence):
        raise NeuronShareError(f"languages is {asked!r}; give a list such as ['en', 'de'], or 'all'.")
    if unknown := [language for language in asked if language not in present]:
        raise NeuronShareError(
            f"{task} has nothing in {', '.join(map(repr, unknown))} in this source; it has {', '.join(present)}."
        )
    if len(set(asked)) < len(asked):
        raise NeuronShareError(f"languages={list(asked)} names a language twice; name each once.")
    return _two(task, list(asked), present)


def check_wording(task: str, languages: Iterable[str], wording: Mapping[str, Any], instead: str) -> None:
    """Refuse languages for which a task has no words."""
    if unknown := [language for language in languages if language not in wording]:
        raise NeuronShareError(
            f"{task} has no words of its own in {', '.join(map(repr, unknown))}, only in {', '.join(wording)}. "
            f"Use {instead}, or other languages."
        )


def _two(task: str, chosen: list[str], present: Sequence[str]) -> list[str]:
    """The languages that were chosen, which must be at least two."""
    if len(chosen) < 2:
        raise NeuronShareError(
            f"{task}: {len(chosen)} language(s) ({', '.join(chosen)}); sharing is between languages, so at least two "
            f"are needed. This source has {', '.join(present) or 'none'}."
        )
    return chosen


def in_all_languages(tables: Mapping[str, Mapping[Key, Any]], task: str, report: Report) -> set[Key]:
    """Find the keys that every language has, and report how many rows of each language are dropped."""
    shared = set.intersection(*(set(table) for table in tables.values()))
    for language, table in tables.items():
        report.dropped(language, "not in every language", len(table) - len(shared))
    if not shared:
        sizes = ", ".join(f"{language} {len(table)}" for language, table in tables.items())
        raise NeuronShareError(f"{task}: no example is in every language ({sizes}); ask for fewer languages.")
    return shared


def in_order(keys: Iterable[Key], seed: int | str) -> list[Key]:
    """Sort keys by a hash of seed and key, so that each key has a place of its own.

    Unlike in a shuffle, the keys keep their order when other keys come or go.
    """
    return sorted(keys, key=lambda key: short_hash(f"{seed}/{key}"))


def drawn(
    tables: Mapping[str, Mapping[Key, Any]], task: str, *, seed: int, limit: int | None, report: Report
) -> list[Key]:
    """Draw at most `limit` of the examples that every language has, and report how many are left out."""
    keys = in_order(in_all_languages(tables, task, report), seed)
    report.examples(len(keys[:limit]), limit=limit, beyond=len(keys) - len(keys[:limit]))
    return keys[:limit]


def build(
    name: str,
    languages: Iterable[str],
    keys: Sequence[Key],
    ask: Callable[[str, Key], Asked],
    *,
    report: Report,
    answers_noted: bool = False,
) -> ParallelPrompts:
    """Ask each example in every language, and make parallel prompts of them.

    Args:
        name: what to call the prompts.
        languages: the languages, in their order.
        keys: the examples, in their order.
        ask: takes language and key, and says how the example is asked.
        report: what was kept and dropped so far.
        answers_noted: report which answers are the same in several languages, or appear in their prompt.
    """
    asked = {language: [ask(language, key) for key in keys] for language in languages}
    prompts = {language: [each.prompt for each in row] for language, row in asked.items()}
    continuations = {language: [each.continuations() for each in row] for language, row in asked.items()}
    answers = {language: [answer for answer, _ in row] for language, row in continuations.items()}
    choices = {language: [choices for _, choices in row] for language, row in continuations.items()}
    has_choices = any(each.choices for row in asked.values() for each in row)
    if answers_noted:
        _note_answers(prompts, answers, report)
    labels = [str(key) if isinstance(key, tuple) else key for key in keys]
    return ParallelPrompts(
        prompts, answers, choices if has_choices else None, name, examples=labels, report=report.table()
    )


def before_answer(prompt: str) -> str:
    """Give what comes between prompt and answer: a space, but nothing after full-width punctuation."""
    return "" if prompt.endswith(("：", "？", "。")) else " "


def _note_answers(prompts: Mapping[str, Sequence[str]], answers: Mapping[str, Sequence[str]], report: Report) -> None:
    """Report how many answers are written the same in several languages, and how many appear in their prompt."""
    texts = {language: [answer.strip() for answer in row] for language, row in answers.items()}
    for language, row in texts.items():
        others = [other for name, other in texts.items() if name != language]
        same = sum(any(text == other[index] for other in others) for index, text in enumerate(row))
        report.noted(language, "answer written as in another language", same)
        told = sum(text in prompt for text, prompt in zip(row, prompts[language], strict=True))
        report.noted(language, "answer stands in the prompt", told)
    same = sum(len(set(row)) == 1 for row in zip(*texts.values(), strict=True))
    report.noted("all", "answer written the same in every language", same)
