"""Examples of your own: a file with a row for each example and language."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import is_whole
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.tasks import reading
from tl_neuronshare.tasks.reading import Languages, Report

HOW_TO_GET = (
    "Give a file that ends in .csv, .tsv or .jsonl, in UTF-8, with the columns example, language and prompt, and "
    "answer and choices if there are any: a row for each example and language."
)
_NEEDED = ("example", "language", "prompt")
_BETWEEN = "|"


class _Row(NamedTuple):
    """An example in one language, as it is written in the file."""

    prompt: str
    answer: str
    choices: tuple[str, ...]


@explains
def table(
    source: str | Path, *, languages: Languages = None, limit: int | None = None, seed: int = 0
) -> ParallelPrompts:
    """Read prompts of your own from a table; score them by `choice` if there are choices, or by `exact` or `number`.

    The columns are `example` (what is the same in all languages), `language` and `prompt`, and, where there are any,
    `answer` and `choices`. Prompt and answer are used as they are written: the whole text is prompt + answer, so an
    answer begins with a space where the language puts one there. Choices have | between them, or are a list in JSON.

    Args:
        source: the file: .csv, .tsv, or .jsonl with an object in each line. Other columns are ignored.
        languages: a list of languages; None and `all` are those that the file has.
        limit: the most examples to give.
        seed: the seed of the order of examples.

    Raises:
        NeuronShareError: there is no such file or column; a row that is cut off, lacks a text, or says something else
            than another row of the same example and language, by file and line; or answers that are not among choices.

    Examples:
        >>> rows = ["example,language,prompt,answer", "1,en,Two and two is, four", "1,de,Zwei und zwei ist, vier"]
        >>> Path("sums.csv").write_text(chr(10).join(rows))
        85
        >>> table("sums.csv").answers
        {'en': (' four',), 'de': (' vier',)}
    """
    reading.check_task(limit=limit, seed=seed)
    path = reading.local_path(source, "table", HOW_TO_GET)
    if path is None or not path.is_file():
        raise NeuronShareError(f"table: {str(source)!r} is not a file. {HOW_TO_GET}")
    rows: dict[str, list[tuple[str, str, _Row]]] = {}
    for where, values in _rows(path):
        language, key, row = _read(values, where)
        rows.setdefault(language, []).append((where, key, row))
    report = Report()
    chosen = reading.languages_of("table", "all" if languages is None else languages, list(rows), report)
    tables = {language: reading.by_key(rows[language], language, report) for language in chosen}
    keys = reading.drawn(tables, "table", seed=seed, limit=limit, report=report)
    of = {language: [tables[language][key] for key in keys] for language in chosen}
    return ParallelPrompts(
        {language: [row.prompt for row in of_language] for language, of_language in of.items()},
        _given({language: [row.answer for row in of_language] for language, of_language in of.items()}),
        _given({language: [row.choices for row in of_language] for language, of_language in of.items()}),
        f"table/{path.stem}",
        examples=keys,
        report=report.table(),
    )


def _given(column: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]] | None:
    """A column that may be missing; where only some rows have it, ParallelPrompts refuses the others."""
    return column if any(any(cells) for cells in column.values()) else None


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The place of each row, and its cells by their column."""
    ending = path.suffix.lower()
    if ending == ".jsonl":
        for where, values in reading.json_values(path):
            if not isinstance(values, dict):
                raise NeuronShareError(f"{where}: a {type(values).__name__} where an object belongs. {HOW_TO_GET}")
            yield where, values
        return
    if ending not in (".csv", ".tsv"):
        raise NeuronShareError(f"table: {str(path)!r} ends in {ending!r}. {HOW_TO_GET}")
    text = io.StringIO(reading.text_of(path), newline="")
    lines = csv.DictReader(text, delimiter="," if ending == ".csv" else "\t", strict=True)
    where = f"{path}, line 1"
    try:
        for values in lines:
            where = f"{path}, line {lines.line_num}"
            if None in values or None in values.values():
                n_cells = sum(cell is not None for name, cell in values.items() if name is not None)
                n_cells += len(values.get(None) or ())
                raise NeuronShareError(
                    f"{where}: {n_cells} cells for {len(lines.fieldnames or ())} columns; put quotes round a text with "
                    "a comma or a new line, and leave no cell out."
                )
            yield where, values
    except csv.Error as error:
        raise NeuronShareError(f"{where} or after it: {error}; is a quotation mark left open?") from error


def _read(values: Mapping[str, Any], where: str) -> tuple[str, str, _Row]:
    """A row's language, its example, and what it asks."""
    for name in _NEEDED:
        if name not in values:
            there = ", ".join(map(str, values))
            raise NeuronShareError(f"{where}: there is no column {name!r}, only {there}. {HOW_TO_GET}")
    texts = {name: values[name] for name in (*_NEEDED, "answer") if values.get(name) is not None}
    if isinstance(texts.get("example"), int):
        texts["example"] = str(texts["example"])
    for name, text in texts.items():
        if not isinstance(text, str) or not (text.strip() or name == "answer"):
            raise NeuronShareError(f"{where}: {name!r} is {text!r}; give a text that is not empty.")
        if not is_whole(text):
            raise NeuronShareError(f"{where}: {name!r} holds half a character ({text!r}); write it whole.")
    given = values.get("choices") or ()
    choices = given.split(_BETWEEN) if isinstance(given, str) else given
    if not isinstance(choices, Sequence) or not all(isinstance(choice, str) for choice in choices):
        raise NeuronShareError(f"{where}: 'choices' is {given!r}; give texts with {_BETWEEN} between them, or a list.")
    row = _Row(texts["prompt"], texts.get("answer", ""), tuple(choices))
    return texts["language"].strip(), texts["example"].strip(), row
