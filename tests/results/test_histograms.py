"""Histograms as a result: what is refused, and that a file holds all of it."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns

ONES = torch.ones(2, 2, 3, 4, dtype=torch.int32)


def test_a_file_holds_all_of_it(tmp_path):
    counts = ONES.clone()
    counts[:, 1, 2] = 0
    low = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, torch.nan]])
    histograms = ns.ValueHistograms(
        counts, low, low + 1, languages=["en", "de"], widths=[3, 2], metadata={"site": "gate"}
    )
    histograms.save(tmp_path / "histograms.safetensors")
    found = ns.ValueHistograms.load(tmp_path / "histograms.safetensors")
    assert (found.languages, found.widths, found.n_measured) == (("en", "de"), (3, 2), 2)
    assert found.metadata == {"site": "gate"}
    assert torch.equal(found.counts, counts)
    torch.testing.assert_close(found.high, low + 1, equal_nan=True)
    assert found.tokens.tolist() == [4, 4]
    assert found.shares.sum(-1).tolist() == [[[1, 1, 1], [1, 1, 0]]] * 2
    assert repr(found) == "ValueHistograms(tokens: en 4, de 4; 2 layers of 2/3 neurons; 4 bins)"


@pytest.mark.parametrize(
    ("counts", "changes", "message"),
    [
        (torch.ones(2, 2, 3, dtype=torch.int32), {}, r"The histograms have shape \(2, 2, 3\) and the ends"),
        (ONES, {"widths": [4, 3]}, r"layers of at most 4 neurons need \(2, 2, 4, 'bins'\) and \(2, 4\)"),
        (ONES, {"low": torch.zeros(2, 2)}, r"the ends of their bins \(2, 2\) and \(2, 3\)"),
        (ONES, {"languages": ["en", "en"]}, "languages=.*; give a list of names of languages, each once"),
        (ONES, {"languages": ["en", "all"]}, "all"),
        (0 * ONES, {}, "Language 'en': the neurons have values at 0 to 0 tokens"),
        (ONES + torch.eye(3, dtype=torch.int32)[:2, :, None], {}, "Language 'en': the neurons have values at"),
    ],
)
def test_bad_input(as_users_run_it, counts, changes, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.ValueHistograms(counts, **{"languages": ["en", "de"], "widths": [3, 3]} | changes)
