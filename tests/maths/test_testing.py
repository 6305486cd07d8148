"""Adjusted p-values against the procedure as it is described: step up from the largest."""

from __future__ import annotations

import numpy as np
import pytest

from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.maths.testing import benjamini_hochberg


@pytest.mark.parametrize("seed", range(5))
def test_a_bar_on_adjusted_values_rejects_what_the_procedure_rejects(seed):
    rng = np.random.default_rng(seed)
    p = np.concatenate([rng.random(15), rng.random(6) / 100, [0.02, 0.02]])
    adjusted = benjamini_hochberg(p)
    for level in (0.01, 0.05, 0.1, 0.5):
        ranked = sorted(p)
        passing = [rank for rank, value in enumerate(ranked, 1) if value <= level * rank / len(p)]
        rejected = set(ranked[: max(passing)]) if passing else set()
        assert set(p[adjusted <= level + 1e-12]) == rejected


def test_false_discoveries_are_bounded():
    """Of 40 tests 30 have no effect; of what is called significant at a tenth, at most a tenth are of these."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        p = np.concatenate([rng.random(30), rng.random(10) ** 8])
        found = np.flatnonzero(benjamini_hochberg(p) <= 0.1)
        shares.append((found < 30).mean() if len(found) else 0.0)
    assert 0.04 < np.mean(shares) < 0.1


def test_missing_values_are_not_tests():
    assert benjamini_hochberg([]).tolist() == []
    assert benjamini_hochberg([0.2]).tolist() == [0.2]
    found = benjamini_hochberg([np.nan, 0.02, np.nan, 0.5])
    assert np.isnan(found[[0, 2]]).all()
    assert found[[1, 3]].tolist() == [0.04, 0.5]


def test_what_is_not_a_row_of_p_values_is_refused():
    for values in ([[0.1], [0.2]], [-0.1], [0.5, 2.0], 0.5):
        with pytest.raises(NeuronShareError, match="give numbers from 0 to 1"):
            benjamini_hochberg(np.array(values))
