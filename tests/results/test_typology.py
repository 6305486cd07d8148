"""Typology and the permutation test, against brute force over all orders of the languages."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import tl_neuronshare as ns
from tl_neuronshare.results import typology

NINE = ["en", "de", "es", "fr", "ru", "th", "tr", "vi", "zh"]


def square(values, languages) -> pd.DataFrame:
    table = np.zeros((len(languages), len(languages)))
    table[np.triu_indices(len(languages), k=1)] = values
    return pd.DataFrame(table + table.T, index=languages, columns=languages)


def random_square(languages, seed, decimals=3) -> pd.DataFrame:
    n_pairs = len(languages) * (len(languages) - 1) // 2
    return square(np.random.default_rng(seed).random(n_pairs).round(decimals), languages)


def by_pairs(table: pd.DataFrame, order: list[str]) -> pd.Series:
    return pd.Series([table.loc[one, other] for one, other in itertools.combinations(order, 2)])


def spearman(one: pd.Series, other: pd.Series) -> float:
    return one.rank().corr(other.rank())


def partial(one: pd.Series, other: pd.Series, held: pd.Series) -> float:
    """The textbook's formula for one covariate."""
    r, a, b = spearman(one, other), spearman(one, held), spearman(other, held)
    return (r - a * b) / math.sqrt((1 - a**2) * (1 - b**2))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_covariate", [False, True])
def test_the_permutation_test_equals_brute_force(seed, with_covariate):
    languages = list("abcde")
    sharing, similarity = random_square(languages, seed), random_square(languages, seed + 10, decimals=1)  # with ties
    held = random_square(languages, seed + 20)
    covariates = {"held": held} if with_covariate else None

    def correlation(order):
        vectors = by_pairs(sharing, order), by_pairs(similarity, languages), by_pairs(held, languages)
        return partial(*vectors) if with_covariate else spearman(*vectors[:2])

    observed = correlation(languages)
    everywhere = [correlation(list(order)) for order in itertools.permutations(languages)]
    found = typology.permutation_test(sharing, similarity, covariates=covariates)
    assert found["spearman"] == pytest.approx(observed)
    assert found["p_value"] == pytest.approx(np.mean([abs(r) >= abs(observed) - 1e-9 for r in everywhere]))
    assert (found["languages"], found["pairs"], found["permutations"]) == (5, 10, 120)


def test_drawn_permutations_come_near_all_of_them(monkeypatch):
    languages = list("abcdefg")
    sharing, similarity = random_square(languages, 0), random_square(languages, 1)
    exact = typology.permutation_test(sharing, similarity)
    monkeypatch.setattr(typology, "_EXACT", 0)
    drawn = typology.permutation_test(sharing, similarity, n_permutations=4000)
    assert exact["permutations"] == 5040
    assert drawn["spearman"] == exact["spearman"]
    assert drawn["p_value"] == pytest.approx(exact["p_value"], abs=0.03)


def test_p_values_of_unrelated_tables_are_uniform_and_small_for_related_ones():
    languages = list("abcdefgh")
    p_values = [
        typology.permutation_test(
            random_square(languages, seed), random_square(languages, 1000 + seed), n_permutations=199
        )["p_value"]
        for seed in range(200)
    ]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.1
    assert 0.4 < np.mean(p_values) < 0.6
    table = random_square(languages, 0)
    found = typology.permutation_test(table, table**3, n_permutations=199)  # ranks are the same
    assert found["spearman"] == pytest.approx(1)
    assert found["p_value"] == pytest.approx(1 / 200)


def test_the_order_of_languages_does_not_matter():
    sharing, similarity = random_square(list("abcde"), 0), random_square(list("abcde"), 1)
    order = list("cadbe")
    expected = typology.permutation_test(sharing, similarity)
    assert typology.permutation_test(sharing, similarity.loc[order, order]) == pytest.approx(expected)
    assert typology.permutation_test(sharing.loc[order, order], similarity) == pytest.approx(expected)


def test_nothing_is_left_where_a_covariate_says_it_all():
    languages = list("abcde")
    sharing, similarity = random_square(languages, 0), random_square(languages, 1)
    found = typology.permutation_test(sharing, similarity, covariates={"itself": similarity})
    assert math.isnan(found["spearman"])
    assert math.isnan(found["p_value"])
    constant = square(np.ones(10), languages)
    assert math.isnan(typology.permutation_test(sharing, constant)["spearman"])


def test_orders_that_leave_nothing_do_not_make_p_smaller():
    """A covariate that some orders of the sharing table equal: there nothing is left to correlate."""
    languages = list("abcd")
    blocks = square([1, 0, 0, 0, 0, 1], languages)  # ab, cd
    other = square([0, 1, 0, 0, 1, 0], languages)  # ac, bd
    found = typology.permutation_test(blocks, random_square(languages, 3), covariates={"other": other})
    nothing = sum(
        np.array_equal(blocks.loc[list(order), list(order)].to_numpy(), other.to_numpy())
        for order in itertools.permutations(languages)
    )
    assert nothing == 8
    assert found["p_value"] >= 8 / 24


def test_families_and_scripts():
    family, script = typology.same_family(NINE), typology.same_script(NINE)
    indo_european = {"en", "de", "es", "fr", "ru"}
    latin = {"en", "de", "es", "fr", "tr", "vi"}
    for one, other in itertools.product(NINE, NINE):
        assert family.loc[one, other] == (one == other or {one, other} <= indo_european)
        assert script.loc[one, other] == (one == other or {one, other} <= latin)


def test_a_script_is_read_from_the_code_whatever_its_case(as_users_run_it):
    script = typology.same_script(["zh-Hans", "zh-hans", "zh-hant", "ms-arab", "ms", "ar", "sr-latn", "zh-TW"])
    alike = [{"zh-Hans", "zh-hans"}, {"zh-hant", "zh-TW"}, {"ms-arab", "ar"}, {"ms", "sr-latn"}]
    for one, other in itertools.product(script.index, script.index):
        assert script.loc[one, other] == any({one, other} <= same for same in alike)
    with pytest.raises(ns.NeuronShareError, match=r"languages=\[1, 2\]; give a list of names"):
        typology.same_script([1, 2])


@pytest.mark.slow
def test_vectors_are_those_of_lang2vec(tmp_path):
    """Its own function, in a process of its own, with a stand-in for what setuptools no longer has."""
    some = ["en", "fr", "ru", "th"]  # it reads the whole file for each
    (tmp_path / "pkg_resources.py").write_text(
        "import importlib.resources as r\n"
        "def resource_filename(package, path):\n    return str(r.files('lang2vec') / path)\n"
    )
    sets = {"syntax": "syntax_knn", "phonology": "phonology_knn", "inventory": "inventory_knn"}
    code = (
        "import json, sys\nfrom lang2vec.lang2vec import get_features\n"
        f"print(json.dumps([get_features({some}, name) for name in sys.argv[1:]]))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, *sets.values(), "fam"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    *found, family = json.loads(said)
    for features, vectors in zip(sets, found, strict=True):
        table = typology.typological_similarity(some, features=features)
        for one, other in itertools.product(some, some):
            a, b = np.array(vectors[one]), np.array(vectors[other])
            assert table.loc[one, other] == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), abs=1e-6)
    places = typology.typological_similarity(some, features="geography")
    assert places.loc["en", "fr"] > places.loc["en", "ru"] > places.loc["en", "th"]
    related = typology.same_family(some)
    for one, other in itertools.combinations(some, 2):
        assert related.loc[one, other] == (np.array(family[one]) @ np.array(family[other]) > 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: typology.same_family("en"), "languages='en'; give a list of names"),
        (lambda: typology.permutation_test({}, random_square(list("abcd"), 1)), "sharing is not a table"),
        (
            lambda: typology.permutation_test(
                random_square(list("abcd"), 0).astype(str) + "x", random_square(list("abcd"), 1)
            ),
            "sharing holds a value that is not a number",
        ),
        (
            lambda: typology.permutation_test(
                random_square(list("abcd"), 0), random_square(list("abcd"), 1), covariates=[]
            ),
            "covariates is not a mapping",
        ),
        (lambda: typology.typological_similarity(["en", "xx"]), "Language 'xx' is not in URIEL"),
        (lambda: typology.typological_similarity(["en"], features="colour"), "features='colour' is unknown"),
        (lambda: typology.same_script(["en", "nonsense"]), "The script of language 'nonsense' is not known"),
        (
            lambda: typology.permutation_test(random_square(list("abc"), 0), random_square(list("abc"), 1)),
            "3 languages; a permutation test needs at least 4",
        ),
        (
            lambda: typology.permutation_test(random_square(list("abcd"), 0), random_square(list("abce"), 1)),
            "similarity has the languages a, b, c, e, sharing a, b, c, d",
        ),
        (
            lambda: typology.permutation_test(
                random_square(list("abcd"), 0).replace(0.637, math.nan), random_square(list("abcd"), 1)
            ),
            "sharing lacks numbers",
        ),
        (
            lambda: typology.permutation_test(
                random_square(list("abcd"), 0), random_square(list("abcd"), 1), n_permutations=0
            ),
            "n_permutations=0",
        ),
    ],
)
def test_bad_input(as_users_run_it, make, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        make()


def test_without_lang2vec_the_extra_is_named(monkeypatch):
    def missing(name):
        raise typology.PackageNotFoundError(name)

    monkeypatch.setattr(typology, "distribution", missing)
    with pytest.raises(ns.NeuronShareError, match=r'pip install "tl_neuronshare\[typology\]"'):
        typology.same_family(["en", "de"])


def test_languages_whose_code_has_no_family_in_uriel():
    """Their row is all zeros; they were of no family at all, and are of that of another code of the same language."""
    languages = ["en", "nb", "no", "nn", "lvs", "lv", "ekk", "et", "fi", "qu", "eu"]
    found = ns.same_family(languages)
    indo_european = ["en", "nb", "no", "nn", "lvs", "lv"]
    families = {**dict.fromkeys(indo_european, "Indo-European"), **dict.fromkeys(["ekk", "et", "fi"], "Uralic")}
    for one in languages:
        for other in languages:
            expected = families.get(one, one) == families.get(other, other)  # Quechua and Basque are alone here
            assert found.loc[one, other] == expected, (one, other)
    with pytest.raises(ns.NeuronShareError, match="does not say of which family 'vo' is"):
        ns.same_family(["en", "vo"])
