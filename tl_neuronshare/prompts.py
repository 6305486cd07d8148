"""Prompts that mean the same in several languages, aligned by example."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from html import escape
from operator import eq
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import instance, is_whole, names_of, refuse_language_all, selected, writable
from tl_neuronshare.errors import NeuronShareError

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("example", "language", "prompt")
OPTIONAL_COLUMNS = ("answer", "choices")
_HASH = re.compile("[0-9a-f]{16}")
_SHOWN = 3  # the most examples that a notebook shows
_HASHES = 1 << 12  # how many examples' hashes are made texts at a time
# What selects examples: a slice, their numbers, or one boolean for each.
Selection = slice | Sequence[int] | NDArray[Any] | Tensor | pd.Series


class ParallelPrompts:
    """Hold the same examples in every language: `prompts[language][i]` means the same for all languages.

    Examples are selected by a slice (`prompts[3:5]`), by their numbers (`prompts[[0, 4]]`), by one boolean for each
    (`prompts[mask]`), or by a condition (`where`).

    Args:
        prompts: for each language its prompts, all languages in the same order of examples.
        answers: for each language the continuation that is right; prompt + answer is the whole text, so
            an answer begins with a space where the language puts one there.
        choices: for each language and example the candidate continuations, the answer among them.
        name: what to call this set in tables and metadata.
        examples: a label for each example, unique; 0, 1, 2 ... by default.
        report: what whoever read these kept and dropped, and why; a selection keeps the report of the whole.

    Raises:
        NeuronShareError: fewer than two languages, a language called "all", languages of different length, no examples,
            a prompt that is empty or not a string, a string where a list belongs, answers or choices that do not fit.

    Examples:
        >>> prompts = ParallelPrompts({"en": ["Two and two is", "Red and"], "de": ["Zwei und zwei ist", "Rot und"]})
        >>> prompts
        ParallelPrompts(2 examples x 2 languages: en, de)
        >>> prompts[1:].prompts["de"], prompts[[0]].prompts["de"]
        (('Rot und',), ('Zwei und zwei ist',))
    """

    @explains
    def __init__(
        self,
        prompts: Mapping[str, Sequence[str]],
        answers: Mapping[str, Sequence[str]] | None = None,
        choices: Mapping[str, Sequence[Sequence[str]]] | None = None,
        name: str = "",
        *,
        examples: Sequence[Hashable] | None = None,
        report: pd.DataFrame | None = None,
    ) -> None:
        labels = () if examples is None else tuple(examples)
        _check_languages(prompts)
        self.prompts = {
            language: _texts(texts, "prompt", language, lambda index: labels[index] if index < len(labels) else index)
            for language, texts in prompts.items()
        }
        self.languages = tuple(self.prompts)
        self._length = _common_length(self.prompts)
        self.name = writable("name", name)
        self.report = None if report is None else instance("report", report, pd.DataFrame)
        self.examples = tuple(range(self._length)) if examples is None else labels
        if len(self.examples) != self._length or len(set(self.examples)) != self._length:
            raise NeuronShareError(
                f"examples holds {len(self.examples)} labels, {len(set(self.examples))} of them different, "
                f"for {self._length} examples; give each example one label of its own."
            )
        self.answers = None if answers is None else self._answers(answers)
        self.choices = None if choices is None else self._choices(choices)

    def _matching(self, table: Mapping[str, Any], what: str) -> dict[str, Any]:
        """The table's rows in the order of the languages, with as many entries as there are examples."""
        if not isinstance(table, Mapping) or set(table) != set(self.languages):
            given = ", ".join(map(str, table)) if isinstance(table, Mapping) else f"a {type(table).__name__}"
            raise NeuronShareError(
                f"{what} is for {given}, but prompts is for {', '.join(self.languages)}; "
                f"give {what} for exactly the same languages."
            )
        rows = {language: as_list(table[language]) for language in self.languages}
        for language, entries in rows.items():
            if isinstance(entries, str) or not isinstance(entries, Sequence):
                raise NeuronShareError(f"{what}[{language!r}] is a {type(entries).__name__}; give a list.")
            if len(entries) != self._length:
                raise NeuronShareError(
                    f"{what}[{language!r}] has {len(entries)} entries for {self._length} prompts; give one for each."
                )
        return rows

    def _answers(self, answers: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
        return {
            language: _texts(texts, "answer", language, self.examples.__getitem__)
            for language, texts in self._matching(answers, "answers").items()
        }

    def _choices(self, choices: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, tuple[tuple[str, ...], ...]]:
        return {
            language: tuple(self._choices_of(language, index, row) for index, row in enumerate(rows))
            for language, rows in self._matching(choices, "choices").items()
        }

    def _choices_of(self, language: str, index: int, given: Sequence[str]) -> tuple[str, ...]:
        """One example's choices: at least two, all different, the answer among them."""
        where = f"Language {language!r}, example {self.examples[index]!r}"
        row = _texts(given, "choice", language, lambda _: self.examples[index])
        if len(row) < 2 or len(set(row)) < len(row):
            raise NeuronShareError(f"{where}: choices {list(row)}; give at least two, all different.")
        if self.answers is not None and self.answers[language][index] not in row:
            raise NeuronShareError(
                f"{where}: the answer {self.answers[language][index]!r} is not among the choices {list(row)}; "
                "add it, with the same leading space."
            )
        return row

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, examples: Selection) -> ParallelPrompts:
        """Select examples, in all languages, by a slice, a list of numbers, or one boolean for each example."""
        places = selected("prompts", len(self), examples)
        return self._rearranged(
            lambda table: {language: [rows[place] for place in places] for language, rows in table.items()},
            [self.examples[place] for place in places],
        )

    def _rearranged(
        self, rearrange: Callable[[Mapping[str, Any]], Mapping[str, Any]], examples: Sequence[Hashable]
    ) -> ParallelPrompts:
        """The same prompts, answers and choices with other examples or languages."""
        return ParallelPrompts(
            rearrange(self.prompts),
            self.answers and rearrange(self.answers),
            self.choices and rearrange(self.choices),
            self.name,
            examples=examples,
            report=self.report,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParallelPrompts) and self._content() == other._content()

    __hash__ = None  # type: ignore[assignment]  # compared by content, like a list

    def _content(self) -> tuple[Any, ...]:
        return self.prompts, self.answers, self.choices, self.name, self.examples

    def __repr__(self) -> str:
        name = f"{self.name}: " if self.name else ""
        size = f"{len(self)} examples x {len(self.languages)} languages"
        return f"ParallelPrompts({name}{size}: {', '.join(self.languages)})"

    def _repr_html_(self) -> str:
        shown = range(min(_SHOWN, len(self)))
        names = [f"{what}, example {self.examples[place]}" for place in shown for what in self._texts_of_examples()]
        rows = [
            [table[language][place] for place in shown for table in self._texts_of_examples().values()]
            for language in self.languages
        ]
        return f"<p>{escape(repr(self))}</p>" + pd.DataFrame(rows, self.languages, names).to_html(border=0)

    def _texts_of_examples(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The tables that have one text for each example."""
        return {"prompt": self.prompts} | ({} if self.answers is None else {"answer": self.answers})

    @explains
    def select(self, languages: Sequence[str]) -> ParallelPrompts:
        """Select languages, in the order asked for, with all examples.

        Raises:
            NeuronShareError: a language that is not there, or fewer than two.

        Examples:
            >>> ParallelPrompts({"en": ["a"], "de": ["b"], "fr": ["c"]}).select(["fr", "en"]).languages
            ('fr', 'en')
        """
        unknown = [language for language in names_of("languages", languages) if language not in self.languages]
        if unknown:
            raise NeuronShareError(
                f"No prompts in {', '.join(map(repr, unknown))}; these have {', '.join(self.languages)}."
            )
        return self._rearranged(lambda table: {language: table[language] for language in languages}, self.examples)

    @explains
    def where(self, condition: Callable[[dict[str, Any]], Any] | pd.DataFrame | Selection) -> ParallelPrompts:
        """Select the examples for which a condition holds.

        Args:
            condition: a function that is given an example as a dictionary with its label (`example`) and, by language,
                its `prompts`, `answers` and `choices` (None where there are none); a table of `evaluate`, of which the
                examples stay that the model answers rightly in every language; or a selection as in `prompts[...]`:
                numbers, or one boolean for each example.

        Raises:
            NeuronShareError: no example fulfils the condition, or a table lacks an example in some language.

        Examples:
            >>> prompts = ParallelPrompts({"en": ["Red and", "Two and two is"], "de": ["Rot und", "Zwei und zwei ist"]})
            >>> prompts.where(lambda row: len(row["prompts"]["en"]) > 10).prompts["de"]
            ('Zwei und zwei ist',)
        """
        if isinstance(condition, pd.DataFrame):
            return self[self._known(condition)]
        return self[[bool(condition(row)) for row in self._rows()] if callable(condition) else condition]

    def _known(self, table: pd.DataFrame) -> list[bool]:
        """Whether each example is answered rightly in every language, by a table of `evaluate`."""
        if missing := {"language", "example", "correct"} - set(table.columns):
            raise NeuronShareError(f"The table lacks the column {min(missing)}; give one that `evaluate` returned.")
        correct = dict(zip(zip(table["language"], table["example"], strict=True), table["correct"], strict=True))
        for language in self.languages:
            for label in self.examples:
                if (language, label) not in correct:
                    raise NeuronShareError(
                        f"The table lacks example {label!r} in language {language!r}; give that of these prompts."
                    )
        known = [all(correct[language, label] for language in self.languages) for label in self.examples]
        if not any(known):
            raise NeuronShareError(
                f"None of the {len(self)} examples is answered rightly in all {len(self.languages)} languages. Look at "
                "the table: if texts go on after a right answer, give choices, or stop= where it ends. Otherwise "
                "leave languages out, or count what is known in each (known_accuracy)."
            )
        return known

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Each example as a dictionary: its label, and by language its prompts, answers and choices."""
        tables = {"prompts": self.prompts, "answers": self.answers, "choices": self.choices}
        for place, label in enumerate(self.examples):
            yield {
                "example": label,
                **{
                    name: table and {language: rows[place] for language, rows in table.items()}
                    for name, table in tables.items()
                },
            }

    @explains
    def with_chat_template(self, tokenizer: Any, *, system: str | None = None, **options: Any) -> ParallelPrompts:
        """Make of each prompt the user's message of a chat, up to where the assistant begins to answer.

        Answers and choices begin as the template has it: mostly without the space that a plain prompt needs. The last
        token of every prompt is then the template's, the same in all languages.

        Args:
            tokenizer: the model's, such as `model.tokenizer`.
            system: a message that comes before the prompt.
            options: other options that the template knows, such as `enable_thinking=False`.

        Raises:
            NeuronShareError: the tokenizer has no chat template, or it refuses the messages.

        Examples:
            >>> from transformers import AutoTokenizer
            >>> tokenizer = AutoTokenizer.from_pretrained(demo_directory)
            >>> tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [answer]"
            >>> prompts = ParallelPrompts({"en": ["Red and"], "de": ["Rot und"]}, {"en": [" blue"], "de": [" blau"]})
            >>> chat = prompts.with_chat_template(tokenizer)
            >>> chat.prompts["de"][0] + chat.answers["de"][0]
            '[user] Rot und [answer]blau'
        """
        if not getattr(tokenizer, "chat_template", None):
            raise NeuronShareError(
                "The tokenizer has no chat template, as that of a base model has none; use the prompts as they are."
            )
        chat = _Chat(tokenizer, system, options)
        lines, space = chat.before_answer()
        return ParallelPrompts(
            {language: [chat.opened(text) + lines for text in texts] for language, texts in self.prompts.items()},
            self.answers
            and {language: [space + text.lstrip() for text in texts] for language, texts in self.answers.items()},
            self.choices
            and {la: [[space + text.lstrip() for text in row] for row in rows] for la, rows in self.choices.items()},
            self.name,
            examples=self.examples,
            report=self.report,
        )

    @explains
    def to_frame(self) -> pd.DataFrame:
        """Make a long table, with a row for each example and language.

        Its columns are example, language and prompt, and answer and choices where there are any.

        Examples:
            >>> print(ParallelPrompts({"en": ["Red and"], "de": ["Rot und"]}).to_frame().to_string(index=False))
             example language  prompt
                   0       en Red and
                   0       de Rot und
        """
        rows = []
        for place, example in enumerate(self.examples):
            for language in self.languages:
                row: dict[str, Any] = {"example": example, "language": language}
                row["prompt"] = self.prompts[language][place]
                if self.answers is not None:
                    row["answer"] = self.answers[language][place]
                if self.choices is not None:
                    row["choices"] = list(self.choices[language][place])
                rows.append(row)
        return pd.DataFrame(rows)

    @classmethod
    @explains
    def from_frame(cls, frame: pd.DataFrame, *, name: str = "") -> ParallelPrompts:
        """Read a long table with the columns example, language and prompt, its rows in any order.

        The columns answer and choices may be there too.

        Examples and languages keep the order in which they first appear; rows are aligned by `example`.

        Raises:
            NeuronShareError: a column is missing, an example lacks a language, or a pair of both appears twice.

        Examples:
            >>> table = pd.DataFrame({"example": [7, 7], "language": ["en", "de"], "prompt": ["Red and", "Rot und"]})
            >>> ParallelPrompts.from_frame(table).prompts
            {'en': ('Red and',), 'de': ('Rot und',)}
        """
        examples, languages = _labels_of(frame)
        indexed = frame.set_index(["language", "example"])

        def column(name: str) -> dict[str, list[Any]] | None:
            if name not in frame.columns:
                return None
            return {language: indexed[name].loc[language].reindex(examples).tolist() for language in languages}

        choices = column("choices")
        return cls(
            column("prompt") or {},
            column("answer"),
            choices and {language: [as_list(row) for row in rows] for language, rows in choices.items()},
            name,
            examples=examples,
        )

    @classmethod
    @explains
    def from_dataset(cls, dataset: Dataset, *, name: str = "") -> ParallelPrompts:
        """Read a Hugging Face `datasets.Dataset` with the columns of `from_frame`.

        Raises:
            NeuronShareError: as for `from_frame`, or for a DatasetDict (choose a split).

        Examples:
            >>> from datasets import Dataset
            >>> rows = {"example": [0, 0], "language": ["en", "de"], "prompt": ["Red and", "Rot und"]}
            >>> len(ParallelPrompts.from_dataset(Dataset.from_dict(rows)))
            1
        """
        if isinstance(dataset, Mapping):
            raise NeuronShareError(f"This is a set of splits ({', '.join(map(str, dataset))}); pass one of them.")
        if not hasattr(dataset, "to_pandas"):
            raise NeuronShareError(f"dataset is a {type(dataset).__name__}; give a datasets.Dataset.")
        return cls.from_frame(dataset.to_pandas(), name=name)


class _Chat:
    """A chat of one question, as a tokenizer's template writes it."""

    def __init__(self, tokenizer: Any, system: str | None, options: Mapping[str, Any]) -> None:
        self._tokenizer, self._options = tokenizer, options
        self._before = [] if system is None else [{"role": "system", "content": system}]

    def opened(self, question: str) -> str:
        """Write the question, up to where the assistant begins to answer."""
        return self._written({"role": "user", "content": question}, add_generation_prompt=True)

    def before_answer(self) -> tuple[str, str]:
        """Find what the template puts before an answer: lines, which belong to the prompt, and a space.

        The space belongs to the answer, since tokenizers merge it with the first word.
        """
        question, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
        try:
            whole = self._written(question, answer, continue_final_message=True)
            space = whole.removeprefix(self.opened("Q")).removesuffix("A")
        except NeuronShareError:  # a template that cannot be continued does not say what comes before an answer
            space = ""
        space = space if space.isspace() else ""
        end = space.rfind("\n") + 1
        return space[:end], space[end:]

    def _written(self, *messages: dict[str, str], **how: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                [*self._before, *messages], tokenize=False, **how, **self._options
            )
        except Exception as error:  # whatever a template may raise
            raise NeuronShareError(f"The chat template refuses the messages: {error}") from error
        return text


def _labels_of(frame: pd.DataFrame) -> tuple[list[Hashable], list[str]]:
    """The examples and the languages of a long table that has one row for each pair of them; refuse any other table."""
    if not isinstance(frame, pd.DataFrame):
        raise NeuronShareError(f"frame is a {type(frame).__name__}; give a pandas DataFrame.")
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise NeuronShareError(
            f"The table lacks the column(s) {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}. "
            f"It needs {', '.join(COLUMNS)}, and may have {', '.join(OPTIONAL_COLUMNS)}."
        )
    keys = frame[["example", "language"]]
    if keys.isna().to_numpy().any():
        row = int(keys.isna().any(axis=1).to_numpy().argmax())
        raise NeuronShareError(f"Row {row} of the table has no example or no language; fill it in or drop the row.")
    twice = keys[keys.duplicated()]
    if len(twice):
        example, language = next(twice.itertuples(index=False, name=None))
        raise NeuronShareError(
            f"Example {example!r} appears more than once in language {language!r} "
            f"({len(twice)} such rows); keep one row for each example and language."
        )
    examples, languages = keys["example"].unique().tolist(), keys["language"].unique().tolist()
    if len(frame) < len(examples) * len(languages):
        present = set(keys.itertuples(index=False, name=None))
        lacking = [(e, la) for e in examples for la in languages if (e, la) not in present]
        example, language = lacking[0]
        raise NeuronShareError(
            f"Example {example!r} has no row in language {language!r} ({len(lacking)} rows are missing in all); "
            "every example needs every language: add the rows or drop those examples."
        )
    return examples, languages


class PromptHashes(Sequence[str]):
    """Keep a hash of each prompt as a number of eight bytes, and give an example's hashes as one text on demand.

    Attributes:
        numbers: the hashes. Those of an example are in the order of their digits, whatever the order of languages.

    Examples:
        >>> hashes = PromptHashes.of(["00000000000000ff 96b6ee1101175c4c"])
        >>> hashes.numbers
        tensor([[                 255, -7586614765458858932]])
        >>> hashes[0]
        '00000000000000ff 96b6ee1101175c4c'
    """

    def __init__(self, numbers: Int[Tensor, "example language"]) -> None:
        self.numbers = numbers

    @classmethod
    def of(cls, texts: Sequence[str]) -> PromptHashes:
        """Read the texts of examples.

        Raises:
            NeuronShareError: a text that is not hashes, or examples of different languages.
        """
        if isinstance(texts, PromptHashes):
            return texts
        rows = [str(text).split() for text in texts]
        if len({len(row) for row in rows}) > 1 or not all(_HASH.fullmatch(word) for row in rows for word in row):
            raise NeuronShareError(
                "prompt_hashes are not the sixteen hexadecimal digits of each prompt, separated by spaces, an example "
                "each; give those that prompts.hashes_of makes."
            )
        if not rows:
            raise NeuronShareError("There are no prompt_hashes; give those of each example.")
        numbers = np.array([[int(word, 16) for word in row] for row in rows], dtype=np.uint64)
        return cls(_sorted(numbers.reshape(len(rows), -1)))

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> PromptHashes: ...
    def __getitem__(self, place: int | slice) -> str | PromptHashes:
        if isinstance(place, slice):
            return PromptHashes(self.numbers[place])
        return next(iter(PromptHashes(self.numbers[place][None])))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _HASHES):
            piece = self.numbers[start : start + _HASHES]
            for row in piece.numpy().astype(">u8"):  # the bytes in the order of the digits
                yield row.tobytes().hex(" ", 8)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PromptHashes):
            return torch.equal(self.numbers, other.numbers)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # compared by content, like a list


def _sorted(hashes: NDArray[np.uint64]) -> Int[Tensor, "example language"]:
    """Hashes in the order of their digits, as the signed numbers that torch and files know."""
    return torch.from_numpy(np.sort(hashes, axis=1).view(np.int64))


def hashes_of(prompts: ParallelPrompts) -> PromptHashes:
    """Hash each example's prompts in all languages; hashes are sorted, so that the order of languages does not matter.

    Examples:
        >>> prompts = ParallelPrompts({"en": ["Red and"], "de": ["Rot und"], "fr": ["Rouge et"]})
        >>> hashes_of(prompts) == hashes_of(prompts.select(["fr", "de", "en"]))
        True
        >>> are_of(hashes_of(prompts)[0], hashes_of(prompts.select(["fr", "en"]))[0])
        True
    """
    hashes = np.empty((len(prompts), len(prompts.languages)), dtype=np.uint64)
    for column, (language, texts) in enumerate(prompts.prompts.items()):
        numbers = (int(short_hash(json.dumps([language, text])), 16) for text in texts)
        hashes[:, column] = np.fromiter(numbers, np.uint64, len(texts))
    return PromptHashes(_sorted(hashes))


def are_of(hashes: str, others: str) -> bool:
    """Tell whether an example has the prompts that the other hashes stand for, and maybe more languages."""
    return set(others.split()) <= set(hashes.split())


def short_hash(text: str) -> str:
    """Shorten a text to sixteen hexadecimal digits that stand for it.

    Examples:
        >>> short_hash("Rot und")
        '96b6ee1101175c4c'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_list(texts: Any) -> Any:
    """Turn a numpy array or a pandas column into a list; leave everything else as it is."""
    return texts.tolist() if hasattr(texts, "tolist") else texts


def _check_languages(prompts: Any) -> None:
    """Refuse prompts that are not a mapping from at least two languages, none of them called "all"."""
    if not isinstance(prompts, Mapping):
        raise NeuronShareError(
            f"prompts is a {type(prompts).__name__}; give a mapping from each language to its list of prompts, "
            'such as {"en": [...], "de": [...]}.'
        )
    if len(prompts) < 2:
        raise NeuronShareError(
            f"prompts has {len(prompts)} language(s) ({', '.join(map(str, prompts))}); "
            "sharing is between languages, so give at least two."
        )
    refuse_language_all(prompts)


def _common_length(prompts: Mapping[str, Sequence[str]]) -> int:
    """The number of examples, which must be the same in every language and not 0."""
    lengths = {language: len(texts) for language, texts in prompts.items()}
    if len(set(lengths.values())) > 1:
        raise NeuronShareError(
            "The languages have different numbers of prompts: "
            + ", ".join(f"{language} {length}" for language, length in lengths.items())
            + ". Example i must mean the same in every language: align the lists, or use "
            "ParallelPrompts.from_frame, which aligns by the column 'example'."
        )
    length = next(iter(lengths.values()))
    if length == 0:
        raise NeuronShareError("prompts has no examples: every list is empty. Give at least one prompt a language.")
    return length


def _texts(texts: Sequence[str], what: str, language: str, example: Callable[[int], Hashable]) -> tuple[str, ...]:
    """The texts as a tuple, each a string that is not empty; `example` names text i's example in messages."""
    if not isinstance(language, str) or not is_whole(language):
        raise NeuronShareError(f"{language!r} is not the name of a language; use a string such as 'en'.")
    texts = as_list(texts)
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise NeuronShareError(
            f"Language {language!r}: a {type(texts).__name__} where a list of {what}s belongs; put it in a list."
        )
    for index, text in enumerate(texts):
        where = f"Language {language!r}, example {example(index)!r}"
        if not isinstance(text, str):
            raise NeuronShareError(f"{where}: the {what} {text!r} is a {type(text).__name__}; give a string.")
        if not text.strip():
            raise NeuronShareError(f"{where}: the {what} is empty; fill it in or drop that example in every language.")
        if not is_whole(text):
            raise NeuronShareError(f"{where}: the {what} holds half a character ({text!r}); write it whole.")
    return tuple(texts)


def require_prompts(prompts: object) -> None:
    """Refuse what is not a ParallelPrompts."""
    if not isinstance(prompts, ParallelPrompts):
        raise NeuronShareError(
            f"prompts is a {type(prompts).__name__}; make it ParallelPrompts({{language: [prompt, ...], ...}})."
        )
