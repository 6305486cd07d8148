"""Compare sharing with how alike languages are: typology (URIEL, from lang2vec), family, script; a permutation test."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import count, names_of, one_of
from tl_neuronshare.errors import NeuronShareError

Features = Literal["syntax", "phonology", "inventory", "geography"]
# The files of lang2vec and the prefixes of their features. The typological files are those whose gaps are filled in
# from a language's nearest neighbours.
_SETS = {
    "syntax": ("feature_predictions.npz", "S_"),
    "phonology": ("feature_predictions.npz", "P_"),
    "inventory": ("feature_predictions.npz", "INV_"),
    "geography": ("geocoord_features.npz", ""),
}
_FAMILY = ("family_features.npz", "F_")
# Codes that have no family in URIEL, and codes of the same language, or of a close relative, that have one.
_WITH_FAMILY = {"nob": "nor", "nno": "nor", "lvs": "lav", "ltg": "lav", "ekk": "est", "que": "quz", "twi": "aka"}
_ISOLATES = ("eu", "eus", "bsk", "ain")  # languages that truly have no family
_FEWEST = 4  # languages; three have only six orders, so that no p-value could be below 1/6
_EXACT = 5040  # the most orders that are all tried: those of seven languages
_CHUNK = 1 << 22  # how many numbers are held at a time


@explains
def typological_similarity(languages: Sequence[str], *, features: Features = "syntax") -> pd.DataFrame:
    """Measure how alike languages are: the cosine of their URIEL vectors, from 0 (nothing in common) to 1.

    Needs lang2vec: `pip install "tl_neuronshare[typology]"`.

    Args:
        languages: ISO 639-1 or 639-3 codes, such as en or eng.
        features: `syntax`, `phonology` or `inventory` (of sounds), with gaps filled in as URIEL does (its `_knn` sets),
            or `geography` (distances to places on earth, which are alike for neighbours).

    Returns:
        A square table, languages as index and columns.

    Raises:
        NeuronShareError: lang2vec is missing, or a language or kind of features is unknown.

    Source: Littell et al., "URIEL and lang2vec" (EACL 2017).

    Examples:
        >>> typological_similarity(["en", "de", "th"]).round(2)
        language    en    de    th
        language
        en        1.00  0.90  0.64
        de        0.90  1.00  0.57
        th        0.64  0.57  1.00
    """
    languages = names_of("languages", languages)
    vectors = _vectors(languages, _SETS[one_of("features", features, get_args(Features))])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return _square(unit @ unit.T, languages)


@explains
def same_family(languages: Sequence[str]) -> pd.DataFrame:
    """Say whether two languages are of one family (in URIEL, which has Glottolog's families), as 1 or 0.

    Needs lang2vec: `pip install "tl_neuronshare[typology]"`. Where URIEL gives a family to only one code of a language
    (to `no`, but not to `nb`), the language's other codes have this family too.

    Raises:
        NeuronShareError: lang2vec is missing, a language is unknown, or URIEL does not know its family.

    Examples:
        >>> same_family(["en", "ru", "th"]).loc["en"].to_dict()
        {'en': 1.0, 'ru': 1.0, 'th': 0.0}
    """
    languages = names_of("languages", languages)
    vectors = _vectors(languages, _FAMILY)
    for language, families in zip(languages, vectors, strict=True):
        if not families.any() and language not in _ISOLATES:
            raise NeuronShareError(
                f"URIEL does not say of which family {language!r} is; use a different code of the language, or of one "
                "of its varieties, or leave it out."
            )
    shared = (vectors @ vectors.T > 0).astype(float)
    np.fill_diagonal(shared, 1)  # for isolates too
    return _square(shared, languages)


@explains
def same_script(languages: Sequence[str]) -> pd.DataFrame:
    """Say whether two languages are mostly written in one script, by the Unicode CLDR, as 1 or 0.

    Raises:
        NeuronShareError: the script of a language is not known.

    Examples:
        >>> same_script(["en", "vi", "ru"]).loc["en"].to_dict()
        {'en': 1.0, 'vi': 1.0, 'ru': 0.0}
    """
    languages = names_of("languages", languages)
    scripts = np.array([_script(language) for language in languages])
    return _square((scripts[:, None] == scripts).astype(float), languages)


@explains
def permutation_test(
    sharing: pd.DataFrame,
    similarity: pd.DataFrame,
    *,
    covariates: Mapping[str, pd.DataFrame] | None = None,
    n_permutations: int = 9999,
    seed: int = 0,
) -> dict[str, float | int]:
    """Test whether languages that are more alike share more: Spearman's correlation, permuted over languages.

    Pairs that have a language in common are not independent, so a test that treats them as independent gives p-values
    that are much too small. Here the names of one table's languages are permuted, rows and columns together (a Mantel
    test).

    Args:
        sharing: a square table, languages as index and columns, such as `NeuronSharing.overlap()`.
        similarity: a square table of the same languages, such as `typological_similarity`.
        covariates: tables of what should be held constant, such as {"script": same_script(languages)}; a linear fit on
            the covariates' ranks is subtracted from the ranks of both tables (a partial Mantel test).
        n_permutations: how many orders are drawn where there are more than 5,040. Of up to seven languages all orders
            are tried instead, and the p-value is exact.
        seed: the seed of the draws.

    Returns:
        spearman (NaN where one table, or what the covariates leave of it, is constant), p_value (two-sided), languages,
        pairs, permutations (how many of each there were).

    Raises:
        NeuronShareError: tables of different languages, fewer than four languages, numbers that are missing, or a table
            that is not symmetrical.

    Source: Mantel (1967); partial: Smouse, Long and Sokal (1986), by ranks.

    Examples:
        >>> languages = list(sharing.languages)
        >>> result = permutation_test(sharing.overlap(), same_script(languages), n_permutations=99)
        >>> result["languages"], result["pairs"], result["permutations"]
        (9, 36, 99)
    """
    if not isinstance(covariates, Mapping | None):
        raise NeuronShareError("covariates is not a mapping from names to tables; give one such as {'script': table}.")
    n_permutations, seed = count("n_permutations", n_permutations, such_as=9999), count("seed", seed, least=0)
    tables = {"sharing": sharing, "similarity": similarity, **(covariates or {})}
    languages = list(getattr(sharing, "index", ()))
    if len(set(languages)) < len(languages):
        raise NeuronShareError(f"A language appears twice in {languages}; give each once.")
    for name, table in tables.items():
        _check(name, table, languages)
    ranks, similar, *held = (_ranks(table.loc[languages, languages]) for table in tables.values())
    residual = _without(held, len(ranks))
    observed = _correlations(ranks.reshape(1, -1), residual, residual @ similar)[0]
    orders, exact = _orders(len(languages), n_permutations, seed)
    permuted = _permuted_correlations(ranks, orders, residual, residual @ similar)
    # An order that leaves nothing beside the covariates counts as extreme, so that p is not made too small.
    extreme = int((np.isnan(permuted) | (np.abs(permuted) >= abs(observed) - 1e-9)).sum())
    # The observed order is one of all orders; it is added to drawn ones, so that no p-value is 0.
    p_value = extreme / len(orders) if exact else (extreme + 1) / (len(orders) + 1)
    return {
        "spearman": float(observed),
        "p_value": float("nan") if np.isnan(observed) else p_value,
        "languages": len(languages),
        "pairs": len(ranks),
        "permutations": len(orders),
    }


def _ranks(table: pd.DataFrame) -> NDArray[np.float64]:
    """The ranks of a square table's pairs of languages."""
    values = table.to_numpy(float)[np.triu_indices(len(table), k=1)]
    return pd.Series(values).rank().to_numpy().astype(np.float64)


def _without(covariates: Sequence[NDArray[np.float64]], n_pairs: int) -> NDArray[np.float64]:
    """The projection that takes a constant and the covariates out of a vector of ranks."""
    fixed = np.column_stack([np.ones(n_pairs), *covariates])
    return np.eye(n_pairs) - fixed @ np.linalg.pinv(fixed)


def _orders(n_languages: int, n_permutations: int, seed: int) -> tuple[NDArray[np.intp], bool]:
    """Orders of the languages, one a row, and whether they are all that there are; otherwise they are drawn."""
    if math.factorial(n_languages) <= _EXACT:
        return np.array(list(permutations(range(n_languages)))), True
    rows = np.tile(np.arange(n_languages), (n_permutations, 1))
    return np.random.default_rng(seed).permuted(rows, axis=1), False


def _permuted_correlations(
    ranks: NDArray[np.float64],
    orders: NDArray[np.intp],
    residual: NDArray[np.float64],
    target: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The correlation for each order of the languages, some orders at a time."""
    n_languages = orders.shape[1]
    first, second = np.triu_indices(n_languages, k=1)
    square = np.zeros((n_languages, n_languages))
    square[first, second] = ranks
    square += square.T
    return np.concatenate(
        [
            _correlations(square[part[:, first], part[:, second]], residual, target)
            for part in np.array_split(orders, -(-orders.size * n_languages // _CHUNK))
        ]
    )


def _correlations(
    ranks: NDArray[np.float64], residual: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The correlation of each row of ranks with the target; covariates are taken out of both."""
    residuals = ranks @ residual
    sizes = np.linalg.norm(residuals, axis=1) * np.linalg.norm(target)
    # A constant leaves only what rounding makes of it, which is not variation.
    constant = sizes <= 1e-9 * np.linalg.norm(ranks, axis=1) * max(1.0, np.linalg.norm(target))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(constant, np.nan, np.clip(residuals @ target / sizes, -1, 1))


def _check(name: str, table: Any, languages: list[str]) -> None:
    """Refuse a table that is not square and symmetrical, of these languages, with a number for each pair."""
    if not isinstance(table, pd.DataFrame):
        raise NeuronShareError(f"{name} is not a table; give one with languages as index and columns.")
    if len(languages) < _FEWEST:
        raise NeuronShareError(f"sharing has {len(languages)} languages; a permutation test needs at least {_FEWEST}.")
    if set(table.index) != set(languages) or set(table.columns) != set(languages) or len(table) != len(languages):
        raise NeuronShareError(
            f"{name} has the languages {', '.join(map(str, table.index))}, sharing {', '.join(map(str, languages))}; "
            "make both of the same languages."
        )
    try:
        values = table.loc[languages, languages].to_numpy(float)
    except (TypeError, ValueError) as error:
        raise NeuronShareError(f"{name} holds a value that is not a number ({error}); give numbers only.") from error
    pairs = np.triu_indices(len(languages), k=1)
    if np.isnan(values[pairs]).any():
        raise NeuronShareError(f"{name} lacks numbers (NaN) for some languages; leave these out of all tables.")
    if not np.allclose(values[pairs], values.T[pairs]):
        raise NeuronShareError(f"{name} is not symmetrical; give one number for each pair of languages.")


def _vectors(languages: Sequence[str], features: tuple[str, str]) -> NDArray[np.float64]:
    """The URIEL vectors of languages, as rows.

    They are read from lang2vec's files. Its module imports what setuptools 82 no longer has, and in a program that is
    started from the environment's folder of scripts, such as pytest, a script of the same name hides it.
    """
    try:
        folder = Path(str(distribution("lang2vec").locate_file("lang2vec/data")))
    except PackageNotFoundError as error:
        raise NeuronShareError(
            'URIEL comes with lang2vec, which is not installed: pip install "tl_neuronshare[typology]".'
        ) from error
    name, prefix = features
    codes = json.loads((folder / "letter_codes.json").read_text("utf-8"))
    with np.load(folder / name) as file:
        known = {language: row for row, language in enumerate(file["langs"].tolist())}
        columns = [column for column, feature in enumerate(file["feats"].tolist()) if feature.startswith(prefix)]
        plain = [language.split("-")[0] for language in languages]  # zh-hans is zh
        given = [codes.get(language, language) for language in plain]
        rows = [known.get(_WITH_FAMILY.get(code, code) if features == _FAMILY else code) for code in given]
        if None in rows:
            raise NeuronShareError(
                f"Language {languages[rows.index(None)]!r} is not in URIEL; use an ISO 639 code such as en, or leave "
                "the language out."
            )
        values: NDArray[np.float64] = file["data"][rows][:, columns, 0].astype(float)
    return values


def _script(language: str) -> str:
    """The code of the script in which a language is mostly written."""
    from babel.core import get_global

    of_language, *others = language.replace("_", "-").split("-")
    named = [part.title() for part in others if len(part) == 4 and part.isalpha()]
    if named:
        return named[0]
    likely_subtags = get_global("likely_subtags")
    code = "_".join([of_language.lower(), *(part.upper() for part in others)])
    likely: str | None = likely_subtags.get(code) or likely_subtags.get(of_language.lower())
    if likely is None:
        raise NeuronShareError(f"The script of language {language!r} is not known; use an ISO 639-1 code such as en.")
    return next(part for part in likely.split("_") if len(part) == 4)


def _square(values: NDArray[np.float64], languages: Sequence[str]) -> pd.DataFrame:
    names = pd.Index(list(languages), name="language")
    return pd.DataFrame(values, index=names, columns=names)
