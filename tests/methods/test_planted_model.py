"""Every method on a model in which known neurons fire for one language only: all of these are found, and none other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_neuronshare as ns
from support.speakers import FIRES, PLANTED, TEXTS, TO_ENGLISH, save_speakers

N, ALL = len(FIRES), sum(map(len, PLANTED.values()))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_speakers(tmp_path_factory.mktemp("speakers"))


@pytest.fixture
def speakers(directory, backend) -> Any:
    return ns.load_model(str(directory), backend=backend)


def neurons(masks):
    assert all(mask.shape == (1, N) and mask.dtype == torch.bool for mask in masks.values())
    return {language: set(mask[0].nonzero().flatten().tolist()) for language, mask in masks.items()}


def test_lape(speakers):
    rates = ns.activation_rates(speakers, TEXTS)
    assert neurons(ns.methods.lape(rates, share=ALL / N, quantile=0.5)) == PLANTED


def test_specific_related_general(speakers):
    rates = ns.activation_rates(speakers, TEXTS)
    found = ns.methods.specific_related_general(rates, share=ALL / N, quantile=0.5, weight=0.1)
    assert neurons(found) == PLANTED
    kinds = ns.methods.by_number_of_languages(found)
    assert neurons(kinds) == {"specific": set.union(*PLANTED.values()), "related": set(), "general": set()}


@pytest.mark.parametrize("language", PLANTED)
def test_average_precision(speakers, language):
    values = ns.reference_values(speakers, TEXTS, each=True, position="all")
    planted = PLANTED[language]
    found = ns.methods.average_precision(values, widths=[N], n=len(planted), which="top")
    assert neurons(found)[language] == planted


def test_bipartition(speakers):
    histograms = ns.value_histograms(speakers, TEXTS)
    n_pairs = 3 * N
    # Of the pairs of languages, a planted neuron has two without any overlap.
    assert neurons(ns.methods.bipartition(histograms, share=2 * ALL / n_pairs)) == PLANTED


def test_parallel_detection(speakers):
    found = ns.methods.parallel_detection(speakers, TEXTS, share=3 / N)
    assert neurons(found) == PLANTED  # a concept's neuron writes much for one text of each language, not for all


@pytest.mark.parametrize("n", [1, 2])
def test_transfer_neurons_from_the_shared_space(speakers, n):
    found = neurons(ns.methods.transfer_neurons(speakers, TEXTS, direction="from shared", n=n))
    for language, planted in PLANTED.items():
        assert len(found[language]) == n
        assert found[language] <= planted or n > len(planted)
    assert all(found[language] == PLANTED[language] for language in PLANTED if len(PLANTED[language]) == n)


def test_transfer_neurons_to_the_shared_space(speakers):
    found = ns.methods.transfer_neurons(speakers, TEXTS, direction="to shared", shared="en", n=1)
    assert neurons(found) == {language: {neuron} for language, neuron in TO_ENGLISH.items()}


def test_steering(speakers):
    """A language's specific neurons are scaled down and its partial-shared ones up, and no others."""
    texts = {"en": TEXTS["en"], "de": [*TEXTS["de"], "soleil"], "fr": TEXTS["fr"]}  # so that 2 and 4 fire in German too
    means = ns.reference_values(speakers, texts, position="all")
    steered = ns.methods.steered(means)
    assert neurons({language: of_language["specific"] for language, of_language in steered.items()}) == {
        "en": {0},
        "de": {1, 3},
        "fr": set(),
    }
    assert neurons({language: of_language["partial-shared"] for language, of_language in steered.items()}) == {
        "en": set(),
        "de": {2, 4},
        "fr": {2, 4},
    }
    hooks = ns.methods.steering_hooks(speakers, means, "de", alpha=2.0, layers=[0], beta=0.5, gamma=0.25)
    seen = {}
    name = hooks[0][0]

    def keep(values, hook):
        seen["values"] = values[0, -1].clone()

    for word in ("Sonne", "soleil", "sun"):
        speakers.run_with_hooks(word, fwd_hooks=[(name, keep)], prepend_bos=False)
        before = seen["values"]
        speakers.run_with_hooks(word, fwd_hooks=[*hooks, (name, keep)], prepend_bos=False)
        factors = torch.ones(N)
        factors[[1, 3]], factors[[2, 4]] = 0.5, 2.0
        torch.testing.assert_close(seen["values"], before * factors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "th"}, "language='th' has no means; use one of en, de, fr"),
        ({"means": {"en": torch.zeros(1, N)}}, "means has fewer than two languages"),
        ({"means": {"en": torch.zeros(1, N), "de": torch.zeros(2, N)}}, r"not a tensor \[layer, neuron\] of one shape"),
        ({"means": dict.fromkeys(("en", "de"), torch.zeros(5, 1, N))}, r"not a tensor \[layer, neuron\] of one shape"),
        ({"means": dict.fromkeys(("en", "de"), [0.0] * N)}, r"not a tensor \[layer, neuron\] of one shape"),
        ({"means": dict.fromkeys(("en", "de"), torch.zeros(2, N))}, "The means have shape .*, and the model needs"),
        ({"means": dict.fromkeys(("en", "de"), torch.full((1, N), torch.nan))}, "Language 'en': a mean is NaN"),
        ({"layers": [True]}, "layers="),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"layers": [1]}, "layers="),
    ],
)
def test_steering_that_cannot_be(as_users_run_it, directory, changes, message):
    model = ns.load_model(str(directory), backend="bridge", device="cpu")
    given = {"means": dict.fromkeys(("en", "de", "fr"), torch.zeros(1, N)), "language": "de", **changes}
    options = {"alpha": given.pop("alpha", 1.0), "layers": given.pop("layers", [0])}
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.methods.steering_hooks(model, given["means"], given["language"], **options)
