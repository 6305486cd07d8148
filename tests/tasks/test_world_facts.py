"""The facts and their prompts: aligned, sound, seeded."""

from __future__ import annotations

import pytest

import tl_neuronshare as ns
from tl_neuronshare.tasks.world_facts import _CONTINENTS, LANGUAGES, RELATIONS, TEMPLATES, facts

ALL = facts()


def test_every_relation_has_a_template_in_every_language():
    for relation in RELATIONS:
        assert set(TEMPLATES[relation]) == set(LANGUAGES)
        blanks = 2 if relation == "sum" else 1
        assert all(template.count("{}") == blanks for template in TEMPLATES[relation].values())
    assert len({template for relation in RELATIONS for template in TEMPLATES[relation].values()}) == 9 * len(RELATIONS)


def test_facts_are_complete_and_have_labels_of_their_own():
    assert len({fact.label for fact in ALL}) == len(ALL) > 1400
    for fact in ALL:
        assert set(fact.subject) == set(fact.answer) == set(LANGUAGES)
        assert all(fact.answer.values())


KNOWN = {
    "country_code/DE": {"en": "DE", "zh": "DE"},
    "currency_code/JP": {"de": "JPY"},
    "currency/GB": {"en": "British Pound", "fr": "livre sterling"},
    "continent/BR": {"en": "Americas", "ru": "Америка", "zh": "美洲"},
    "official_language/TH": {"en": "Thai", "de": "Thailändisch", "vi": "Tiếng Thái"},
    "language_code/vi": {"tr": "vi"},
    "sum/7+8": {"es": "15"},
}


@pytest.mark.parametrize("label", KNOWN)
def test_facts_that_anybody_can_check(label):
    fact = next(fact for fact in ALL if fact.label == label)
    assert {language: fact.answer[language] for language in KNOWN[label]} == KNOWN[label]


def test_sums_are_right():
    for fact in ALL:
        if fact.relation == "sum":
            a, b = map(int, fact.key.split("+"))
            assert set(fact.answer.values()) == {str(a + b)}


def test_contested_facts_are_left_out():
    labels = {fact.label for fact in ALL}
    assert not labels & {"continent/RU", "continent/TR", "official_language/BE", "official_language/ZA"}
    assert not labels & {"currency/PA", "country_code/EU", "country_code/ZZ"}
    territories = [territory for members in _CONTINENTS.values() for territory in members.split()]
    assert len(territories) == len(set(territories))


def test_codes_and_sums_are_written_the_same_in_every_language_and_words_are_not():
    for relation in ("country_code", "currency_code", "language_code", "sum"):
        assert all(len(set(f.answer.values())) == 1 for f in ALL if f.relation == relation)
    for relation in ("currency", "continent", "official_language"):
        assert all(len(set(f.answer.values())) > 1 for f in ALL if f.relation == relation)


def test_prompts_have_answers_among_choices_that_differ():
    prompts = ns.tasks.world_facts(limit=150)
    assert len(prompts) == 150
    assert prompts.languages == LANGUAGES
    gold = set()
    for index in range(150):
        places = {prompts.choices[la][index].index(prompts.answers[la][index]) for la in LANGUAGES}
        assert len(places) == 1  # choice k means the same in every language
        gold |= places
        assert all(len(set(prompts.choices[la][index])) == 4 for la in LANGUAGES)
    assert gold == {0, 1, 2, 3}


def test_seed_and_limit():
    first, again, other = (ns.tasks.world_facts(limit=20, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.examples != other.examples
    assert ns.tasks.world_facts(limit=50, seed=1)[:20] == first
    assert len(ns.tasks.world_facts()) == len(ALL)


def test_choices_do_not_depend_on_the_languages_asked_for():
    nine, two = ns.tasks.world_facts(limit=10), ns.tasks.world_facts(limit=10, languages=["th", "en"])
    assert nine.select(["th", "en"]) == two


def test_ending():
    bare = ns.tasks.world_facts(limit=3, ending="")
    for language in ("en", "zh"):
        assert not any("→" in text for text in bare.prompts[language])
        assert all(text.startswith(" ") == (language == "en") for text in bare.answers[language])
        assert all(answer in row for answer, row in zip(bare.answers[language], bare.choices[language], strict=True))
    for text in ns.tasks.world_facts(limit=3, ending=" =").prompts["zh"]:
        assert text.endswith(" =")


FACTS = {
    "relation": ({"relations": ["capital"]}, "no relation 'capital'; it has country_code"),
    "no relation": ({"relations": []}, "No relation was asked for"),
    "a string of relations": ({"relations": "sum"}, "relations is the string 'sum'; put it in a list"),
    "language": ({"languages": ["en", "pt"]}, "no language 'pt'; it has en, de"),
    "limit": ({"limit": 0}, "limit is 0"),
    "choices": ({"n_choices": 6}, "n_choices is 6; it can be 2 to 5"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("options", "message"), FACTS.values(), ids=FACTS)
def test_options_of_world_facts(options, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.tasks.world_facts(**options)
