"""Sharing against how alike languages are: typology (URIEL, from lang2vec), family, script; a permutation test."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from itertools import permutations
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tl_neuronshare.errors import NeuronShareError

Features = Literal["syntax", "phonology", "inventory", "geography"]
# lang2vec's files and the prefixes of features; of the typological ones those without gaps, filled in from a language's
# nearest neighbours.
_SETS = {
    "syntax": ("feature_predictions.npz", "S_"),
    "phonology": ("feature_predictions.npz", "P_"),
    "inventory": ("feature_predictions.npz", "INV_"),
    "geography": ("geocoord_features.npz", ""),
}
_FAMILY = ("family_features.npz", "F_")
# Codes that have no family in URIEL, and others of the same language, or of one next to it, that do.
_WITH_FAMILY = {"nob": "nor", "nno": "nor", "lvs": "lav", "ltg": "lav", "ekk": "est", "que": "quz", "twi": "aka"}
_ISOLATES = ("eu", "eus", "bsk", "ain")  # which have none in truth
_FEWEST = 4  # languages: three have six orders, so that no p-value could be below 1/6
_EXACT = 5040  # orders that are all tried: those of seven languages
_CHUNK = 1 << 22  # numbers at a time


def typological_similarity(languages: Sequence[str], *, features: Features = "syntax") -> pd.DataFrame:
    """How alike languages are: the cosine of their URIEL vectors, from 0 (nothing in common) to 1.

    Needs lang2vec: `pip install "tl_neuronshare[typology]"`.

    Args:
        languages: ISO 639-1 or 639-3 codes, such as en or eng.
        features: `syntax`, `phonology` or `inventory` (of sounds), with gaps filled in as URIEL does (its `_knn` sets),
            or `geography` (distances to places on earth, alike for neighbours).

    Returns:
        A square table, languages as index and columns.

    Raises:
        NeuronShareError: lang2vec is missing, an unknown language or kind of features.

    Source: Littell et al., "URIEL and lang2vec" (EACL 2017).

    Example:
        >>> typological_similarity(["en", "de", "th"]).round(2)
        language    en    de    th
        language
        en        1.00  0.90  0.64
        de        0.90  1.00  0.57
        th        0.64  0.57  1.00
    """
    if features not in get_args(Features):
        raise NeuronShareError(f"features={features!r} is unknown; use one of {', '.join(get_args(Features))}.")
    vectors = _vectors(languages, _SETS[features])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return _square(unit @ unit.T, languages)


def same_family(languages: Sequence[str]) -> pd.DataFrame:
    """Whether two languages are of one family (in URIEL, which has Glottolog's families), as 1 or 0.

    Needs lang2vec: `pip install "tl_neuronshare[typology]"`. Where URIEL gives a family to one code of a language only
    (no, and not nb), that one serves.

    Raises:
        NeuronShareError: lang2vec is missing, an unknown language, or one whose family URIEL does not know.

    Example:
        >>> same_family(["en", "ru", "th"]).loc["en"].to_dict()
        {'en': 1.0, 'ru': 1.0, 'th': 0.0}
    """
    vectors = _vectors(languages, _FAMILY)
    for language, families in zip(languages, vectors, strict=True):
        if not families.any() and language not in _ISOLATES:
            raise NeuronShareError(
                f"URIEL does not say of which family {language!r} is; use another code of the language, or one of its "
                "varieties, or leave it out."
            )
    shared = (vectors @ vectors.T > 0).astype(float)
    np.fill_diagonal(shared, 1)  # of an isolate too
    return _square(shared, languages)


def same_script(languages: Sequence[str]) -> pd.DataFrame:
    """Whether two languages are mostly written in one script, by the Unicode CLDR, as 1 or 0.

    Raises:
        NeuronShareError: a language whose script is not known.

    Example:
        >>> same_script(["en", "vi", "ru"]).loc["en"].to_dict()
        {'en': 1.0, 'vi': 1.0, 'ru': 0.0}
    """
    scripts = np.array([_script(language) for language in languages])
    return _square((scripts[:, None] == scripts).astype(float), languages)


def permutation_test(
    sharing: pd.DataFrame,
    similarity: pd.DataFrame,
    *,
    covariates: Mapping[str, pd.DataFrame] | None = None,
    n_permutations: int = 9999,
    seed: int = 0,
) -> dict[str, float | int]:
    """Whether pairs of languages that are more alike share more: Spearman's correlation, tested over languages.

    Pairs that have a language in common are not independent, so that a p-value from as many independent pairs would be
    too small by far. Here the names of one table's languages are permuted, rows and columns together (a Mantel test).

    Args:
        sharing: square, languages as index and columns, such as `NeuronSharing.overlap()`.
        similarity: square, of the same languages, such as `typological_similarity`.
        covariates: tables of what is to be held constant, such as {"script": same_script(languages)}; ranks of both
            tables are taken relative to what a linear fit on the covariates' ranks gives (a partial Mantel test).
        n_permutations: how many are drawn where there are more than 5,040 orders; else (up to seven languages) all
            are tried, and the p-value is exact.
        seed: of the draws.

    Returns:
        spearman (NaN where one table, or what the covariates leave of it, is constant), p_value (two-sided), languages,
        pairs, permutations.

    Raises:
        NeuronShareError: other languages, fewer than four, numbers that are missing, a table that is not symmetrical.

    Source: Mantel (1967); partial: Smouse, Long and Sokal (1986), by ranks.

    Example:
        >>> languages = list(sharing.languages)
        >>> found = permutation_test(sharing.overlap(), same_script(languages), n_permutations=99)
        >>> found["languages"], found["pairs"], found["permutations"]
        (9, 36, 99)
    """
    if not isinstance(covariates, Mapping | None):
        raise NeuronShareError("covariates is no mapping from names to tables; give such as {'script': table}.")
    tables = {"sharing": sharing, "similarity": similarity, **(covariates or {})}
    languages = list(getattr(sharing, "index", ()))
    for name, table in tables.items():
        _check(name, table, languages)
    if isinstance(n_permutations, bool) or not isinstance(n_permutations, Integral) or n_permutations < 1:
        raise NeuronShareError(f"n_permutations={n_permutations!r}; give a number, such as 9999.")
    pairs = np.triu_indices(len(languages), k=1)
    ranks, *others = (
        pd.Series(table.loc[languages, languages].to_numpy(float)[pairs]).rank().to_numpy(float)
        for table in tables.values()
    )
    # What is left of a vector of ranks beside a constant and the covariates, as a projection.
    fixed = np.column_stack([np.ones(len(ranks)), *others[1:]])
    left = np.eye(len(ranks)) - fixed @ np.linalg.pinv(fixed)
    target = left @ others[0]
    square = np.zeros((len(languages), len(languages)))
    square[pairs] = ranks
    square += square.T
    observed = _correlations(ranks.reshape(1, -1).astype(float), left, target)[0]
    exact = math.factorial(len(languages)) <= _EXACT
    orders = (
        np.array(list(permutations(range(len(languages)))))
        if exact
        else np.random.default_rng(seed).permuted(np.tile(np.arange(len(languages)), (n_permutations, 1)), axis=1)
    )
    found = np.concatenate(
        [
            _correlations(square[some[:, pairs[0]], some[:, pairs[1]]], left, target)
            for some in np.array_split(orders, -(-orders.size * len(languages) // _CHUNK))
        ]
    )
    # Where an order leaves nothing beside the covariates, it counts as far, so that p is not made too small.
    as_far = int((np.isnan(found) | (np.abs(found) >= abs(observed) - 1e-9)).sum())
    # Among all orders is the observed one; beside drawn ones it is counted too, so that no p-value is 0.
    p_value = as_far / len(orders) if exact else (as_far + 1) / (len(orders) + 1)
    return {
        "spearman": float(observed),
        "p_value": float("nan") if np.isnan(observed) else p_value,
        "languages": len(languages),
        "pairs": len(ranks),
        "permutations": len(orders),
    }


def _correlations(
    ranks: NDArray[np.float64], left: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The correlation of each row of ranks with the target, both as the covariates leave them."""
    residuals = ranks @ left
    sizes = np.linalg.norm(residuals, axis=1) * np.linalg.norm(target)
    # What rounding leaves of a constant is no variation.
    constant = sizes <= 1e-9 * np.linalg.norm(ranks, axis=1) * max(1.0, np.linalg.norm(target))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(constant, np.nan, np.clip(residuals @ target / sizes, -1, 1))


def _check(name: str, table: Any, languages: list[str]) -> None:
    if not isinstance(table, pd.DataFrame):
        raise NeuronShareError(f"{name} is no table; give one with languages as index and columns.")
    if len(languages) < _FEWEST:
        raise NeuronShareError(f"{len(languages)} languages; a permutation test over languages needs {_FEWEST}.")
    if set(table.index) != set(languages) or set(table.columns) != set(languages) or len(table) != len(languages):
        raise NeuronShareError(
            f"{name} has the languages {', '.join(map(str, table.index))}, sharing {', '.join(map(str, languages))}; "
            "make both of the same."
        )
    try:
        values = table.loc[languages, languages].to_numpy(float)
    except (TypeError, ValueError) as error:
        raise NeuronShareError(f"{name} holds what is no number ({error}).") from error
    pairs = np.triu_indices(len(languages), k=1)
    if np.isnan(values[pairs]).any():
        raise NeuronShareError(f"{name} lacks numbers (NaN) for some languages; leave these out of all tables.")
    if not np.allclose(values[pairs], values.T[pairs]):
        raise NeuronShareError(f"{name} is not symmetrical; give one number for each pair of languages.")


def _vectors(languages: Sequence[str], features: tuple[str, str]) -> NDArray[np.float64]:
    """The URIEL vectors of languages, as rows.

    From the files that lang2vec brings: the module itself imports what setuptools 82 no longer has, and in a program
    that is started from the environment's folder of scripts, such as pytest, a script of the same name hides it.
    """
    try:
        folder = Path(str(distribution("lang2vec").locate_file("lang2vec/data")))
    except PackageNotFoundError as error:
        raise NeuronShareError(
            'URIEL comes with lang2vec, which is not installed: pip install "tl_neuronshare[typology]".'
        ) from error
    if isinstance(languages, str):
        raise NeuronShareError(f"languages={languages!r} is one text; give a list of codes.")
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
                "it out."
            )
        values: NDArray[np.float64] = file["data"][rows][:, columns, 0].astype(float)
    return values


def _script(language: str) -> str:
    from babel.core import get_global

    likely: str | None = get_global("likely_subtags").get(language.replace("-", "_"), None)
    likely = likely or get_global("likely_subtags").get(language.split("-", maxsplit=1)[0])
    if likely is None:
        raise NeuronShareError(f"The script of language {language!r} is not known; use an ISO 639-1 code such as en.")
    return next(part for part in likely.split("_") if len(part) == 4)


def _square(values: NDArray[np.float64], languages: Sequence[str]) -> pd.DataFrame:
    names = pd.Index(list(languages), name="language")
    return pd.DataFrame(values, index=names, columns=names)
