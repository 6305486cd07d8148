"""The ladder of chance: what two prompts share that have only form, task, entity or answer in common.

Two languages share neurons for the same fact. Some of them they would share for any fact, of any relation; some for any
fact of this relation; some for whatever is about this subject, or whatever has this answer. Each rung of the ladder
pairs facts that have one more thing in common, so that the difference of two rungs says what this thing adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import count
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.activation import count_bits
from tl_neuronshare.maths.chance import index_and_chance
from tl_neuronshare.maths.pairs import Pairs, interval_of_pairs
from tl_neuronshare.prompts import ParallelPrompts, require_prompts
from tl_neuronshare.results.identity import first_difference
from tl_neuronshare.results.sharing import NeuronSharing

_COLUMNS = ("relation", "subject", "answer")
_PAIRS = 32  # of examples whose bits are in memory at a time


class Rung(NamedTuple):
    """What two facts of a rung have in common, which part of sharing it adds, and to which rung.

    Attributes:
        name: the rung's name.
        same: for relation, subject and answer, whether the two facts have it in common.
        part: what the difference from the other rung measures.
        above: the name of that rung.
    """

    name: str
    same: tuple[bool, bool, bool]
    part: str
    above: str


RUNGS = (
    Rung("another relation", (False, False, False), "form", "random neurons"),
    Rung("another fact", (True, False, False), "task", "another relation"),
    Rung("the same subject", (False, True, False), "entity", "another relation"),
    Rung("the same answer", (True, False, True), "answer", "another fact"),
    Rung("the same fact", (True, True, True), "fact", "another fact"),
)


@explains
def facts_of(prompts: ParallelPrompts) -> pd.DataFrame:
    """Return each example's relation, subject and answer, for `overlap_ladder`.

    They are read off the examples' names, which are `relation/subject` (world_facts, the built-in prompts) or
    `relation/subject/answer` (fact_probing). Without an answer in the name, it is that of the first language.

    Returns:
        A table with a row for each example: relation, subject, answer.

    Raises:
        NeuronShareError: a name is not of this kind, or there are no answers.

    Examples:
        >>> facts_of(ns.demo.prompts()[:2])
                relation subject answer
        0  language_code      ar     ar
        1   country_code      CA     CA
    """
    require_prompts(prompts)
    rows = []
    for number, example in enumerate(prompts.examples):
        relation, *rest = str(example).split("/")
        if not 1 <= len(rest) <= 2 or (len(rest) == 1 and prompts.answers is None):
            raise NeuronShareError(
                f"Example {example!r} does not say what it is about as relation/subject or relation/subject/answer, "
                "with answers in the prompts; give overlap_ladder a table of your own."
            )
        answer = rest[1] if len(rest) == 2 else (prompts.answers or {})[prompts.languages[0]][number].strip()
        rows.append({"relation": relation, "subject": rest[0], "answer": answer})
    return pd.DataFrame(rows)


@explains
def overlap_ladder(
    sharing: NeuronSharing,
    facts: pd.DataFrame,
    *,
    paraphrase: NeuronSharing | None = None,
    partners: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how far prompts activate the same neurons if they have form, task, entity or answer in common.

    Each example is paired with up to `partners` others of each rung. Its prompt in one language is compared with the
    partner's in a different language, for every two languages, by the Jaccard index of their activated neurons.

    Args:
        sharing: the result of `categorise`.
        facts: what each example is about: a row for each, with the columns relation, subject and answer, such as
            `facts_of(prompts)` gives.
        paraphrase: what `categorise` found for the same facts in other words, with the same languages. Then the ladder
            also has rows of the same language: an example in the first wording, and its partner in the second. Examples
            that have the same words in both, in any language, are left out of these rows.
        partners: how many partners an example has at most.
        seed: the seed of their draw.

    Returns:
        A table with a row for each kind of pair (`languages`: different or same), rung and layer ("all" for all
        together). The rungs are: `another relation` (nothing in common but the form of a prompt), `another fact` of the
        same relation, `the same subject` in another relation, `the same answer` for another subject of the relation,
        and `the same fact` (in the same language: its paraphrase). Where one thing is in common, the others differ.

        `jaccard` is the mean over examples of each one's mean over its partners, from 0 to 1, `low` and `high` its 95 %
        interval, and `independent` the index of as many neurons drawn at random. `part` names what the rung has in
        common beyond the rung `above`: form, task, entity, answer or fact (the last is all that belongs to the fact:
        entity, answer and whatever else). `difference` is the index minus that of the rung above, the mean over the
        examples that have partners at both (so it is not the difference of two means of all examples);
        `difference_low` and `difference_high` are its 95 % interval. For `form` it is the index minus `independent`.
        `examples` and `pairs` say how many there are. The intervals say how far other examples of the same kind would
        give different means (see `maths.pairs`); they are NaN for fewer than ten examples. A rung without pairs has
        NaN.

    Raises:
        NeuronShareError: facts do not fit the examples, lack a column, or do not know something; the paraphrase
            measured something else, or has the same words for every example; a number is not one.

    Examples:
        >>> table = overlap_ladder(sharing, facts_of(ns.demo.prompts()[: len(sharing)]))
        >>> list(table["rung"].unique())[:2]
        ['another relation', 'another fact']
    """
    count("partners", partners)
    _check(sharing, facts, paraphrase)
    codes = np.stack([pd.factorize(facts[name])[0] for name in _COLUMNS])
    count("seed", seed, least=0)
    kinds: list[tuple[str, NeuronSharing, NDArray[np.integer]]] = [("different", sharing, np.arange(len(sharing)))]
    if paraphrase is not None:
        kinds.append(("same", paraphrase, _reworded(sharing, paraphrase)))
    rows = []
    for languages, other, among in kinds:
        found: dict[str, _Found] = {}
        for number, rung in enumerate(RUNGS):
            pairs = _pairs(codes, rung.same, among, partners=partners, seed=(seed, number))
            first, second = pairs.numpy()
            index, independent = (each.numpy() for each in _indices(sharing, other, pairs))
            found[rung.name] = _Found(Pairs(first, second, index), Pairs(first, second, independent))
            rows += [{"languages": languages, **row} for row in _rows(rung, found, sharing.n_layers)]
    return pd.DataFrame(rows)


def _check(sharing: NeuronSharing, facts: pd.DataFrame, paraphrase: NeuronSharing | None) -> None:
    """Refuse facts and a paraphrase that do not fit the result."""
    for name, each in {"sharing": sharing, "paraphrase": sharing if paraphrase is None else paraphrase}.items():
        if not isinstance(each, NeuronSharing):
            raise NeuronShareError(f"{name} is a {type(each).__name__}; give the NeuronSharing that categorise found.")
    wanted = f"give a table with a row for each example and the columns {', '.join(_COLUMNS)}."
    if not isinstance(facts, pd.DataFrame):
        raise NeuronShareError(f"facts is a {type(facts).__name__}; {wanted}")
    missing = [name for name in _COLUMNS if name not in facts.columns]
    if missing or len(facts) != len(sharing):
        raise NeuronShareError(
            f"facts has {len(facts)} rows for {len(sharing)} examples, and lacks {', '.join(missing) or 'no column'}; "
            f"{wanted}"
        )
    unknown = facts[list(_COLUMNS)].isna().to_numpy()
    if unknown.any():
        row, column = (int(each[0]) for each in unknown.nonzero())
        raise NeuronShareError(
            f"facts has no {_COLUMNS[column]} in row {row}; an unknown one would count as the same as others, so leave "
            "such examples out."
        )
    if paraphrase is None:
        return
    difference = first_difference(sharing, paraphrase)
    if difference is not None:
        what, ours, theirs = difference
        raise NeuronShareError(
            f"The paraphrase has {what} {theirs!r}, the result {ours!r}; give results that measured the same."
        )
    if len(paraphrase) != len(sharing):
        raise NeuronShareError(
            f"The paraphrase has {len(paraphrase)} examples and the result {len(sharing)}; give the same facts in the "
            "same order."
        )


def _reworded(sharing: NeuronSharing, paraphrase: NeuronSharing) -> NDArray[np.integer]:
    """The examples that have other words in the paraphrase, in every language; all where the words are not known."""
    ours, theirs = sharing.prompt_hashes, paraphrase.prompt_hashes
    if ours is None or theirs is None:
        return np.arange(len(sharing))
    # An example's hashes are in no order of languages.
    pairs = zip(ours, theirs, strict=True)
    reworded = np.flatnonzero([set(first.split()).isdisjoint(second.split()) for first, second in pairs])
    if not len(reworded):
        raise NeuronShareError(
            "The paraphrase has the same words as the result, for every example in some language; give prompts that "
            "ask for the same facts in other words."
        )
    return reworded


def _pairs(
    codes: NDArray[np.integer],
    same: tuple[bool, bool, bool],
    among: NDArray[np.integer],
    *,
    partners: int,
    seed: tuple[int, int],
) -> Int[Tensor, "2 pair"]:
    """Find partners, with the given things in common, for each of some examples among these; draw them if many fit."""
    if all(same):
        return torch.from_numpy(among).repeat(2, 1)
    firsts, seconds = [], []
    for example in among.tolist():
        fits = np.all((codes[:, among] == codes[:, [example]]) == np.array(same)[:, None], axis=0)
        others = among[fits]
        if len(others) > partners:
            others = np.random.default_rng((*seed, example)).choice(others, partners, replace=False)
        firsts += [example] * len(others)
        seconds += others.tolist()
    return torch.tensor([firsts, seconds], dtype=torch.long, device="cpu")


def _indices(
    sharing: NeuronSharing, other: NeuronSharing, pairs: Int[Tensor, "2 pair"]
) -> tuple[Float[Tensor, "pair layer_and_all"], Float[Tensor, "pair layer_and_all"]]:
    """Each pair's index and what it would be at random, as means over languages: by layer, and last over all layers."""
    empty = torch.zeros(0, sharing.n_layers + 1, dtype=torch.float64, device="cpu")
    means = [(empty, empty)]
    for firsts, seconds in zip(*(torch.split(side, _PAIRS) for side in pairs), strict=True):
        if not len(firsts):
            continue
        ours = sharing.bits.at(firsts.tolist()) & sharing.packed_is_neuron
        theirs = other.bits.at(seconds.tolist()) & other.packed_is_neuron
        sizes, other_sizes = count_bits(ours).double(), count_bits(theirs).double()
        found = [
            index_and_chance(
                count_bits(ours[:, a] & theirs[:, b]).double(), sizes[:, a], other_sizes[:, b], sharing.widths
            )
            for a, b in _language_pairs(sharing, other, is_same_fact=bool((firsts == seconds).all()))
        ]
        index, chance = (torch.stack(each) for each in zip(*found, strict=True))
        means.append((index.nanmean(0), chance.nanmean(0)))
    return torch.cat([index for index, _ in means]), torch.cat([chance for _, chance in means])


def _language_pairs(sharing: NeuronSharing, other: NeuronSharing, *, is_same_fact: bool) -> Iterator[tuple[int, int]]:
    """Which languages of an example and of its partner are compared."""
    numbers = range(len(sharing.languages))
    if other is not sharing:
        return ((number, number) for number in numbers)
    return combinations(numbers, 2) if is_same_fact else permutations(numbers, 2)


@dataclass(frozen=True)
class _Found:
    """The indices of a rung's pairs, and what they would be at random: by layer, and over all layers."""

    index: Pairs
    independent: Pairs


def _rows(rung: Rung, found: dict[str, _Found], n_layers: int) -> Iterator[dict[str, object]]:
    """The rows of a rung, by layer and over all layers."""
    index, independent = found[rung.name].index, found[rung.name].independent
    value, low, high, examples = interval_of_pairs(index)
    base = found[rung.above].index if rung.above in found else independent
    difference, difference_low, difference_high, _ = interval_of_pairs(index, base)
    at_random, *_ = interval_of_pairs(independent)
    for place, layer in enumerate([*range(n_layers), "all"]):
        yield {
            "rung": rung.name,
            "layer": layer,
            "jaccard": value[place],
            "low": low[place],
            "high": high[place],
            "independent": at_random[place],
            "part": rung.part,
            "above": rung.above,
            "difference": difference[place],
            "difference_low": difference_low[place],
            "difference_high": difference_high[place],
            "examples": examples[place],
            "pairs": len(index.first),
        }
