"""The ladder of chance: sharing that is planted is found as what it is, and indices equal those of sets."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare.results.ladder import RUNGS

LANGUAGES = ["en", "de", "th"]
PARTS = {rung.part for rung in RUNGS}
# What is found where neurons are shared for one reason only: everything about a fact is also what belongs to the fact.
FOUND = {
    "form": {"form"},
    "task": {"task"},
    "entity": {"entity", "fact"},
    "answer": {"answer", "fact"},
    "fact": {"fact"},
    "nothing": set(),
}


def facts_in_a_square(n_relations=4, n_subjects=12):
    """Every subject in every relation; three subjects have the same answer."""
    return pd.DataFrame(
        {"relation": f"r{relation}", "subject": f"s{subject}", "answer": f"r{relation} {subject // 3}"}
        for relation, subject in itertools.product(range(n_relations), range(n_subjects))
    )


def planted(reason, facts, *, seed=0, n_neurons=600):
    """A result in which each form, task, entity, answer or fact has neurons of its own in all languages, and noise."""
    generator = np.random.default_rng(seed)
    columns = {"form": [], "task": ["relation"], "entity": ["subject"], "answer": ["answer"], "fact": list(facts)}
    named = facts[columns.get(reason, [])].astype(str).agg("/".join, axis=1) if columns.get(reason) else facts.index * 0
    share = 0.0 if reason == "nothing" else 0.3
    own = {name: generator.random((2, n_neurons)) < share for name in named.unique()}
    noise = generator.random((len(facts), len(LANGUAGES), 2, n_neurons)) < 0.15
    activated = noise | np.stack([own[name] for name in named])[:, None]
    return ns.NeuronSharing.from_activated(torch.from_numpy(activated), languages=LANGUAGES)


@pytest.mark.parametrize("reason", FOUND)
@pytest.mark.parametrize("languages", ["different", "same"])
def test_what_is_planted_is_found_as_what_it_is(reason, languages):
    facts = facts_in_a_square()
    table = ns.overlap_ladder(planted(reason, facts), facts, paraphrase=planted(reason, facts))
    rows = table.query("languages == @languages and layer == 'all'").set_index("part")
    if languages == "same":  # the same noise too, so that the same fact is the same prompt
        rows = rows.drop(index="fact")
    for part, row in rows.iterrows():
        if part in FOUND[reason]:
            assert row["difference_low"] > 0.1, (part, row)
        else:
            assert abs(row["difference"]) < 0.01, (part, row)
            assert row["difference_low"] < 0.005
            assert row["difference_high"] > -0.005


def test_indices_are_those_of_sets():
    """Every pair, one by one, with as many partners as there are."""
    facts = facts_in_a_square(n_relations=2, n_subjects=6)
    sharing, other = planted("entity", facts, n_neurons=40), planted("entity", facts, seed=1, n_neurons=40)
    table = ns.overlap_ladder(sharing, facts, paraphrase=other, partners=100)
    sets = [
        [
            [{(0, n) for n in np.flatnonzero(prompt[0])}, {(1, n) for n in np.flatnonzero(prompt[1])}]
            for prompt in example
        ]
        for example in torch.cat([sharing.activated(), other.activated()]).numpy()
    ]
    records = facts.to_dict("records")
    for languages, rung, layer in itertools.product(("different", "same"), RUNGS, (0, 1, "all")):
        values = []
        for i, j in itertools.product(range(12), repeat=2):
            same = tuple(records[i][name] == records[j][name] for name in ("relation", "subject", "answer"))
            if same != rung.same:
                continue
            pairs = (
                itertools.permutations(range(3), 2)
                if languages == "different"
                else zip(range(3), range(3), strict=True)
            )
            indices = []
            for a, b in pairs:
                one, two = sets[i][a], sets[j if languages == "different" else 12 + j][b]
                one, two = (set.union(*one), set.union(*two)) if layer == "all" else (one[layer], two[layer])
                indices.append(len(one & two) / len(one | two))
            values.append(np.mean(indices))
        row = table.query("languages == @languages and rung == @rung.name and layer == @layer").squeeze()
        assert row["pairs"] == len(values)
        assert row["jaccard"] == pytest.approx(np.mean(values))
        assert row["low"] < row["jaccard"] < row["high"]


def test_a_difference_is_of_examples_that_have_both():
    """Only two examples have a subject in another relation; the rung below is that of these two alone."""
    facts = pd.DataFrame(
        {"relation": ["a"] * 6 + ["b"] * 6, "subject": [*"stuvwx", *"sqponm"], "answer": [*"ABCDEF", *"GHIJKL"]}
    )
    sharing = planted("task", facts, n_neurons=50)
    table = ns.overlap_ladder(sharing, facts, partners=100).query("layer == 'all'").set_index("rung")
    row = table.loc["the same subject"]
    assert row["examples"] == 2
    assert np.isnan(row["low"])  # of fewer than ten examples
    two = ns.overlap_ladder(sharing, facts.assign(subject=[*"sbcdef", *"sghijk"]), partners=100)
    assert two.query("layer == 'all' and rung == 'the same subject'")["difference"].item() == row["difference"]
    assert table.loc["the same answer", "pairs"] == 0
    assert np.isnan(table.loc["the same answer", "jaccard"])


N_NEURONS, N_RELATIONS, N_SUBJECTS, OF_ANSWER = 150, 4, 90, 3  # three subjects have the same answer


class World:
    """Facts of which each part has neurons of its own; examples are drawn from them, and some prompts are noisier."""

    def __init__(self, rng):
        n_answers, entity = N_SUBJECTS // OF_ANSWER, rng.beta(1, 6, size=(N_SUBJECTS, 1))
        self.form = rng.random(N_NEURONS) < 0.05
        self.task = rng.random((N_RELATIONS, N_NEURONS)) < 0.1
        self.entity = rng.random((N_SUBJECTS, N_NEURONS)) < entity
        self.answer = rng.random((N_RELATIONS, n_answers, N_NEURONS)) < 0.08
        self.fact = rng.random((N_RELATIONS, N_SUBJECTS, N_NEURONS)) < 0.05

    def activated(self, relation, subject, rng, n_languages=1):
        """What each example's prompts activate: example, language and neuron."""
        own = self.form | self.task[relation] | self.entity[subject]
        own |= self.answer[relation, subject // OF_ANSWER] | self.fact[relation, subject]
        noise = 0.03 + 0.14 * rng.random((len(relation), 1, 1))
        return own[:, None] | (rng.random((len(relation), n_languages, N_NEURONS)) < noise)

    def ladder(self, n_examples, rng):
        """The library's table, of examples drawn at random."""
        relation, subject = rng.integers(N_RELATIONS, size=n_examples), rng.integers(N_SUBJECTS, size=n_examples)
        answer = relation + N_RELATIONS * (subject // OF_ANSWER)
        facts = pd.DataFrame({"relation": relation, "subject": subject, "answer": answer})
        activated = torch.from_numpy(self.activated(relation, subject, rng, len(LANGUAGES))[:, :, None])
        sharing = ns.NeuronSharing.from_activated(activated, languages=LANGUAGES)
        return ns.overlap_ladder(sharing, facts).query("layer == 'all'").set_index("rung")

    def truth(self, rng, n_pairs=30_000):
        """The index of many pairs of each rung, and that of random neurons."""
        found = {}
        for rung in RUNGS:
            relation, other_relation = rng.integers(N_RELATIONS, size=(2, 60 * n_pairs))
            subject, other_subject = rng.integers(N_SUBJECTS, size=(2, 60 * n_pairs))
            if rung.same[0]:
                other_relation = relation
            if rung.same[1]:
                other_subject = subject
            elif rung.same[2]:
                other_subject = subject - subject % OF_ANSWER + other_subject % OF_ANSWER
            same = relation == other_relation, subject == other_subject
            same += (same[0] & (subject // OF_ANSWER == other_subject // OF_ANSWER),)
            fits = np.flatnonzero(np.all(np.stack(same) == np.array(rung.same)[:, None], axis=0))[:n_pairs]
            if all(rung.same):  # one prompt's two languages are as noisy as each other
                ours, theirs = np.moveaxis(self.activated(relation[fits], subject[fits], rng, 2), 1, 0)
            else:
                ours = self.activated(relation[fits], subject[fits], rng)[:, 0]
                theirs = self.activated(other_relation[fits], other_subject[fits], rng)[:, 0]
            sizes = ours.sum(1), theirs.sum(1)
            shared, by_chance = (ours & theirs).sum(1), sizes[0] * sizes[1] / N_NEURONS
            found[rung.name] = np.mean(shared / (sum(sizes) - shared))
            found.setdefault("random neurons", np.mean(by_chance / (sum(sizes) - by_chance)))
        return found


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """Over draws of a hundred examples from two worlds; few have a partner with the same subject or answer."""
    rng = np.random.default_rng(0)
    covered, n_runs = {rung.name: np.zeros(2) for rung in RUNGS}, 100
    for world in (World(rng), World(rng)):
        truth = world.truth(rng)
        for _ in range(n_runs):
            table = world.ladder(100, rng)
            for rung in RUNGS:
                row, value = table.loc[rung.name], truth[rung.name]
                difference = value - truth[rung.above]
                covered[rung.name] += (
                    row["low"] <= value <= row["high"],
                    row["difference_low"] <= difference <= row["difference_high"],
                )
    for name, times in covered.items():
        assert ((times / (2 * n_runs) >= 0.9) & (times / (2 * n_runs) <= 0.99)).all(), (name, covered)


def test_a_difference_is_of_the_same_examples_with_the_same_weights():
    """Relations differ in how much they share and in how many have the same answer; the answer itself adds nothing."""
    generator = np.random.default_rng(0)
    relation = np.repeat([0, 1], 20)
    facts = pd.DataFrame({"relation": relation, "subject": range(40)})
    facts["answer"] = [number % 2 if number < 20 else 2 + number % 10 for number in range(40)]
    own = np.stack([np.arange(400) < 120, (np.arange(400) >= 120) & (np.arange(400) < 130)])
    activated = own[relation][:, None] | (generator.random((40, 3, 400)) < 0.1)
    sharing = ns.NeuronSharing.from_activated(torch.from_numpy(activated[:, :, None]), languages=LANGUAGES)
    row = ns.overlap_ladder(sharing, facts).query("rung == 'the same answer' and layer == 'all'").squeeze()
    assert abs(row["difference"]) < 0.005
    assert row["difference_low"] < 0 < row["difference_high"]


def test_it_depends_on_the_seed_alone():
    facts = facts_in_a_square()
    sharing = planted("entity", facts, n_neurons=50)
    first, again, other = (ns.overlap_ladder(sharing, facts, partners=2, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


def test_bad_input(as_users_run_it):
    facts = facts_in_a_square(2, 6)
    sharing = planted("form", facts, n_neurons=20)
    with pytest.raises(ns.NeuronShareError, match="facts has 11 rows for 12 examples, and lacks no column"):
        ns.overlap_ladder(sharing, facts[:11])
    with pytest.raises(ns.NeuronShareError, match="lacks answer; give a table"):
        ns.overlap_ladder(sharing, facts.drop(columns="answer"))
    with pytest.raises(ns.NeuronShareError, match="facts has no answer in row 0; an unknown one would count as the sa"):
        ns.overlap_ladder(sharing, facts.assign(answer=None))
    with pytest.raises(ns.NeuronShareError, match="facts is a NoneType; give a table"):
        ns.overlap_ladder(sharing, None)
    with pytest.raises(ns.NeuronShareError, match="paraphrase is a str; give the NeuronSharing"):
        ns.overlap_ladder(sharing, facts, paraphrase="x")
    with pytest.raises(ns.NeuronShareError, match="prompts"):
        ns.facts_of(None)
    with pytest.raises(ns.NeuronShareError, match=r"partners=0"):
        ns.overlap_ladder(sharing, facts, partners=0)
    with pytest.raises(ns.NeuronShareError, match="The paraphrase has 4 examples and the result 12"):
        ns.overlap_ladder(sharing, facts, paraphrase=sharing[:4])
    few = ns.NeuronSharing.from_activated(sharing.activated()[:, :2], languages=["en", "de"])
    with pytest.raises(ns.NeuronShareError, match="The paraphrase has languages"):
        ns.overlap_ladder(sharing, facts, paraphrase=few)


def test_facts_of_prompts():
    prompts = ns.demo.prompts()[:3]
    assert ns.facts_of(prompts)["relation"].tolist() == ["language_code", "country_code", "continent"]
    named = ns.ParallelPrompts.from_frame(
        prompts.to_frame().assign(example=lambda frame: frame["example"].map(lambda name: name.replace("/", " ")))
    )
    with pytest.raises(ns.NeuronShareError, match="Example 'continent YT' does not say|does not say what it is about"):
        ns.facts_of(named)


def test_examples_with_the_same_words_are_left_out_of_the_same_language(animals):
    model = animals.lens("demo", "bridge")
    prompts = ns.demo.prompts()[:30].select(["en", "de"])
    texts = {
        language: [text if number < 10 else text.replace("→", "is →") for number, text in enumerate(of_language)]
        for language, of_language in prompts.prompts.items()
    }
    facts, sharing = ns.facts_of(prompts), ns.categorise(model, prompts)
    other = ns.categorise(model, ns.ParallelPrompts(texts, prompts.answers))
    table = ns.overlap_ladder(sharing, facts, paraphrase=other).query("rung == 'the same fact' and layer == 'all'")
    assert table.set_index("languages")["examples"].to_dict() == {"different": 30, "same": 20}
    expected = ns.overlap_ladder(sharing[10:], facts[10:], paraphrase=other[10:])
    alone = expected.query("rung == 'the same fact' and layer == 'all' and languages == 'same'")["jaccard"].item()
    assert table.set_index("languages")["jaccard"]["same"] == pytest.approx(alone)
    with pytest.raises(ns.NeuronShareError, match="The paraphrase has the same words as the result"):
        ns.overlap_ladder(sharing, facts, paraphrase=sharing)
