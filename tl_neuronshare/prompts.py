"""Prompts that mean the same in several languages, aligned by example."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tl_neuronshare.errors import NeuronShareError

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("example", "language", "prompt")
OPTIONAL_COLUMNS = ("answer", "choices")


class ParallelPrompts:
    """The same examples in every language: `prompts[language][i]` means the same for all languages.

    Args:
        prompts: for each language its prompts, all languages in the same order of examples.
        answers: for each language the continuation that is right; prompt + answer is the whole text, so
            an answer begins with a space where the language puts one there.
        choices: for each language and example the candidate continuations, the answer among them.
        name: what to call this set in tables and metadata.
        examples: a label for each example, unique; 0, 1, 2 ... by default.
        report: what whoever read these kept and dropped, and why; a slice keeps the report of the whole.

    Raises:
        NeuronShareError: fewer than two languages, languages of different length, no examples, a prompt
            that is empty or not a string, a string where a list belongs, answers or choices that do not fit.

    Example:
        >>> prompts = ParallelPrompts({"en": ["Two and two is", "Red and"], "de": ["Zwei und zwei ist", "Rot und"]})
        >>> prompts
        ParallelPrompts(2 examples x 2 languages: en, de)
        >>> prompts[1:].prompts["de"]
        ('Rot und',)
    """

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
        labels = () if examples is None else tuple(examples)

        def label(index: int) -> Hashable:
            return labels[index] if index < len(labels) else index

        self.prompts = {language: _texts(texts, "prompt", language, label) for language, texts in prompts.items()}
        self.languages = tuple(self.prompts)
        lengths = {language: len(texts) for language, texts in self.prompts.items()}
        if len(set(lengths.values())) > 1:
            raise NeuronShareError(
                "The languages have different numbers of prompts: "
                + ", ".join(f"{language} {length}" for language, length in lengths.items())
                + ". Example i must mean the same in every language: align the lists, or use "
                "ParallelPrompts.from_frame, which aligns by the column 'example'."
            )
        self._length = next(iter(lengths.values()))
        if self._length == 0:
            raise NeuronShareError("prompts has no examples: every list is empty. Give at least one prompt a language.")
        self.name = name
        self.report = report
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

    def __getitem__(self, examples: slice) -> ParallelPrompts:
        """The selected examples, in all languages."""
        if not isinstance(examples, slice):
            raise NeuronShareError(f"{examples!r} selects no examples; use a slice, such as prompts[3:4].")
        return ParallelPrompts(
            {language: texts[examples] for language, texts in self.prompts.items()},
            self.answers and {language: texts[examples] for language, texts in self.answers.items()},
            self.choices and {language: rows[examples] for language, rows in self.choices.items()},
            self.name,
            examples=self.examples[examples],
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

    def select(self, languages: Sequence[str]) -> ParallelPrompts:
        """The same examples in some of the languages, in the order asked for.

        Raises:
            NeuronShareError: a language that is not there, or fewer than two.

        Example:
            >>> ParallelPrompts({"en": ["a"], "de": ["b"], "fr": ["c"]}).select(["fr", "en"]).languages
            ('fr', 'en')
        """
        unknown = [language for language in languages if language not in self.languages]
        if unknown:
            raise NeuronShareError(
                f"No prompts in {', '.join(map(repr, unknown))}; these have {', '.join(self.languages)}."
            )
        return ParallelPrompts(
            {language: self.prompts[language] for language in languages},
            self.answers and {language: self.answers[language] for language in languages},
            self.choices and {language: self.choices[language] for language in languages},
            self.name,
            examples=self.examples,
            report=self.report,
        )

    def with_chat_template(self, tokenizer: Any, *, system: str | None = None, **options: Any) -> ParallelPrompts:
        """Each prompt as the user's message of a chat, up to where the assistant begins to answer.

        Answers and choices begin as the template has it: mostly without the space that a plain prompt needs. The last
        token of every prompt is then the template's, the same in all languages.

        Args:
            tokenizer: the model's, such as `model.tokenizer`.
            system: a message that comes before the prompt.
            options: what else the template knows, such as `enable_thinking=False`.

        Raises:
            NeuronShareError: the tokenizer has no chat template, or it refuses the messages.

        Example:
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
                "The tokenizer has no chat template; that of a base model has none: use the prompts as they are."
            )
        before = [] if system is None else [{"role": "system", "content": system}]

        def rendered(prompt: str, *answer: dict[str, str], **how: bool) -> str:
            messages = [*before, {"role": "user", "content": prompt}, *answer]
            try:
                text: str = tokenizer.apply_chat_template(messages, tokenize=False, **how, **options)
            except Exception as error:  # whatever a template may raise
                raise NeuronShareError(f"The chat template refuses the messages: {error}") from error
            return text

        opened = {
            language: [rendered(text, add_generation_prompt=True) for text in texts]
            for language, texts in self.prompts.items()
        }
        try:
            whole = rendered("Q", {"role": "assistant", "content": "A"}, continue_final_message=True)
            space = whole.removeprefix(rendered("Q", add_generation_prompt=True)).removesuffix("A")
        except NeuronShareError:  # a template that cannot be continued says nothing of a space
            space = ""
        # Lines before an answer belong to the prompt, a space to the answer: tokenizers merge it with the first word.
        space = space if space.isspace() else ""
        end = space.rfind("\n") + 1
        lines, space = space[:end], space[end:]
        return ParallelPrompts(
            {language: [text + lines for text in texts] for language, texts in opened.items()},
            self.answers
            and {language: [space + text.lstrip() for text in texts] for language, texts in self.answers.items()},
            self.choices
            and {la: [[space + text.lstrip() for text in row] for row in rows] for la, rows in self.choices.items()},
            self.name,
            examples=self.examples,
            report=self.report,
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each example and language: example, language, prompt[, answer][, choices].

        Example:
            >>> print(ParallelPrompts({"en": ["Red and"], "de": ["Rot und"]}).to_frame().to_string(index=False))
             example language  prompt
                   0       en Red and
                   0       de Rot und
        """
        rows = []
        for index, example in enumerate(self.examples):
            for language in self.languages:
                row: dict[str, Any] = {
                    "example": example,
                    "language": language,
                    "prompt": self.prompts[language][index],
                }
                if self.answers is not None:
                    row["answer"] = self.answers[language][index]
                if self.choices is not None:
                    row["choices"] = list(self.choices[language][index])
                rows.append(row)
        return pd.DataFrame(rows)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, *, name: str = "") -> ParallelPrompts:
        """From a long table with columns example, language, prompt[, answer][, choices], in any order of rows.

        Examples and languages keep the order in which they first appear; rows are aligned by `example`.

        Raises:
            NeuronShareError: a column is missing, an example lacks a language, or a pair stands there twice.

        Example:
            >>> table = pd.DataFrame({"example": [7, 7], "language": ["en", "de"], "prompt": ["Red and", "Rot und"]})
            >>> ParallelPrompts.from_frame(table).prompts
            {'en': ('Red and',), 'de': ('Rot und',)}
        """
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
                f"Example {example!r} stands more than once in language {language!r} "
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
    def from_dataset(cls, dataset: Dataset, *, name: str = "") -> ParallelPrompts:
        """From a Hugging Face `datasets.Dataset` with the columns of `from_frame`.

        Raises:
            NeuronShareError: as `from_frame`, or for a DatasetDict (choose a split).

        Example:
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


def hashes_of(prompts: ParallelPrompts) -> list[str]:
    """For each example the hashes of its prompts in all languages, sorted, so that their order does not matter.

    Example:
        >>> one = ParallelPrompts({"en": ["Red and"], "de": ["Rot und"], "fr": ["Rouge et"]})
        >>> hashes_of(one) == hashes_of(one.select(["fr", "de", "en"]))
        True
        >>> are_of(hashes_of(one)[0], hashes_of(one.select(["fr", "en"]))[0])
        True
    """
    return [
        " ".join(
            sorted(short_hash(json.dumps([language, texts[index]])) for language, texts in prompts.prompts.items())
        )
        for index in range(len(prompts))
    ]


def are_of(hashes: str, others: str) -> bool:
    """Whether an example has the prompts that others are hashes of, and maybe more languages."""
    return set(others.split()) <= set(hashes.split())


def short_hash(text: str) -> str:
    """Sixteen hexadecimal digits that stand for a text.

    Example:
        >>> short_hash("Rot und")
        '96b6ee1101175c4c'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_list(texts: Any) -> Any:
    """Numpy arrays and pandas columns as the lists that they stand for."""
    return texts.tolist() if hasattr(texts, "tolist") else texts


def _texts(texts: Sequence[str], what: str, language: str, example: Callable[[int], Hashable]) -> tuple[str, ...]:
    """The texts as a tuple, each a string that is not empty; `example` names text i's example in messages."""
    if not isinstance(language, str):
        raise NeuronShareError(f"{language!r} is no name of a language; use a string such as 'en'.")
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
    return tuple(texts)


def require_prompts(prompts: object) -> None:
    """Refuse what is not a ParallelPrompts."""
    if not isinstance(prompts, ParallelPrompts):
        raise NeuronShareError(
            f"prompts is a {type(prompts).__name__}; make it ParallelPrompts({{language: [prompt, ...], ...}})."
        )
