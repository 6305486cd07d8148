"""Counts of activated tokens: what is refused, files, sums, and the table against plain arithmetic."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns

EXPERTS = [None, (2, 2)]


def counted(seed=0, languages=("en", "de", "th"), widths=(3, 5), **options):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 40, (len(languages), len(widths), max(widths)), generator=generator)
    counts[:, torch.arange(max(widths)) >= torch.tensor(widths)[:, None]] = 0
    return ns.NeuronRates(counts, [40] * len(languages), languages=languages, widths=widths, **options)


def test_rates_are_shares_of_tokens_where_there_are_neurons():
    rates = counted(n_measured=2)
    assert rates.rates[:, 0, 3:].isnan().all()
    assert torch.equal(rates.rates[:, 1], rates.counts[:, 1].double() / 40)
    unmeasured = ns.NeuronRates(
        torch.zeros(1, 2, 4, dtype=torch.long), [7], languages=["en"], widths=[4, 4], n_measured=1
    )
    assert unmeasured.rates[:, 1].isnan().all()
    assert not unmeasured.rates[:, 0].isnan().any()
    assert list(unmeasured.by_language()["layer"]) == [0]


def test_the_table_against_plain_arithmetic():
    rates = counted(3)
    table = rates.by_language()
    assert len(table) == 2 * 3
    for _, row in table.iterrows():
        language, width = rates.languages.index(row["language"]), rates.widths[row["layer"]]
        shares = [count / 40 for count in rates.counts[language, row["layer"], :width].tolist()]
        assert row["rate"] == pytest.approx(100 * sum(shares) / width)
        assert row["never"] == pytest.approx(100 * shares.count(0) / width)
        assert row["always"] == pytest.approx(100 * shares.count(1) / width)


def test_files_keep_everything(tmp_path):
    rates = counted(experts=EXPERTS, hooks=["a", "b"], metadata={"site": "post", "texts": {"en": ["0"]}})
    rates.save(tmp_path / "rates.safetensors")
    again = ns.NeuronRates.load(tmp_path / "rates.safetensors")
    assert again == rates
    assert again.metadata == rates.metadata
    assert again.experts == (None, (2, 2))
    ns.save_masks({"a": torch.ones(1, 2, dtype=torch.bool)}, tmp_path / "masks.safetensors")
    with pytest.raises(ns.NeuronShareError, match="holds no rates"):
        ns.NeuronRates.load(tmp_path / "masks.safetensors")


def test_sums_join_languages_and_texts():
    one = counted(0, ("en", "de"), metadata={"texts": {"en": ["a"], "de": ["b"]}})
    two = counted(1, ("th", "de"), metadata={"texts": {"th": ["c"], "de": ["d"]}})
    both = one + two
    assert both.languages == ("en", "de", "th")
    assert both.tokens.tolist() == [40, 80, 40]
    assert torch.equal(both.counts[1], one.counts[1] + two.counts[1])
    assert torch.equal(both.counts[[0, 2]], torch.stack([one.counts[0], two.counts[0]]))
    assert both.metadata["texts"] == {"en": ["a"], "de": ["b", "d"], "th": ["c"]}
    assert both.select(["th", "en"]).metadata["texts"] == {"th": ["c"], "en": ["a"]}
    assert both.select(["th", "en"]).tokens.tolist() == [40, 40]
    assert sum([one, two]) == both
    with pytest.raises(TypeError):
        one + 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"counts": torch.zeros(2, 1, 3, dtype=torch.long)},
            r"The counts have shape \(2, 1, 3\) and the tokens \(2,\); 2 languages and",
        ),
        ({"tokens": [1]}, r"the tokens \(1,\); 2 languages and 1 layers of at most 2 neurons need"),
        ({"tokens": [1, 0]}, "Language 'de' has no token"),
        ({"counts": torch.full((2, 1, 2), 3), "tokens": [3, 2]}, "Language 'de': a neuron has 3 activated tokens of 2"),
        ({"counts": torch.full((2, 1, 2), -1)}, "counts are from 0 to the number of tokens"),
        ({"languages": ["en", "en"]}, "languages=.*; give a list of names of languages, each once"),
        ({"languages": ["en", "all"]}, "A language is called 'all'"),
        (
            {"counts": torch.full((2, 2, 2), 1), "widths": [2, 2], "n_measured": 1},
            "counts beyond the width of a layer, or in one that is not",
        ),
        ({"n_measured": 0}, "n_measured=0; give a number of layers, from 1 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    fitting = {"counts": torch.full((2, 1, 2), 1), "tokens": [4, 4], "languages": ["en", "de"], "widths": [2]}
    ns.NeuronRates(**fitting)
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.NeuronRates(**fitting | changes)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"widths": (3, 4)}, r"The counts have widths \(3, 5\) and \(3, 4\)"),
        ({"experts": EXPERTS}, "The counts have experts"),
        ({"metadata": {"site": "gate"}}, "The counts have site None and 'gate'"),
        ({"metadata": {"fingerprint": "0123-unknown"}}, "The counts have fingerprint of the weights '' and '0123'"),
    ],
)
def test_counts_of_different_things_do_not_add_up(other, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        counted() + counted(**other)
