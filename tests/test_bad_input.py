"""Options that many functions share are refused by each of them, and with the same words."""

from __future__ import annotations

import pytest

import tl_neuronshare as ns

pytestmark = pytest.mark.usefixtures("as_users_run_it")

RUNS = {
    "categorise": lambda model, prompts, sharing, **options: ns.categorise(model, prompts, **options),
    "activation_rates": lambda model, prompts, sharing, **options: ns.activation_rates(
        model, prompts.prompts, **options
    ),
    "reference_values": lambda model, prompts, sharing, **options: ns.reference_values(model, prompts, **options),
    "evaluate": lambda model, prompts, sharing, **options: ns.evaluate(model, prompts, **options),
    "perplexity": lambda model, prompts, sharing, **options: ns.perplexity(model, prompts.prompts, **options),
    "ablation_study": ns.ablation_study,
    "attribute": ns.attribute,
    "top_neurons": ns.top_neurons,
}
OF_RUNS = {
    "no prompt a batch": ({"batch_size": 0}, 'batch_size=0 is unknown; use "auto" or a number of prompts, at least 1'),
    "a word for a number": ({"batch_size": "many"}, "batch_size='many' is unknown; use \"auto\""),
    "a truth for a number": ({"batch_size": True}, "batch_size=True is unknown"),
    "a fraction for a number": ({"batch_size": 2.0}, "batch_size=2.0 is unknown"),
    "nothing for a number": ({"batch_size": None}, "batch_size=None is unknown"),
    "a number for a BOS": ({"prepend_bos": 1}, "prepend_bos=1 is unknown; use True, False, or None"),
    "a word for a BOS": ({"prepend_bos": "yes"}, "prepend_bos='yes' is unknown; use True, False, or None"),
}
INTERVALS = {
    "ablation_study": ns.ablation_study,
    "attribute": ns.attribute,
    "language_overlap": lambda model, prompts, sharing, **options: ns.language_overlap(sharing, **options),
}


@pytest.mark.parametrize("function", RUNS)
def test_batch_size_and_prepend_bos(ready, function):
    for options, message in OF_RUNS.values():
        with pytest.raises(ns.NeuronShareError, match=message):
            RUNS[function](*ready, **options)


@pytest.mark.parametrize("function", INTERVALS)
@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_numbers_of_resamples(ready, function, number):
    with pytest.raises(ns.NeuronShareError, match=f"n_resamples={number}; give a (whole )?number"):
        INTERVALS[function](*ready, n_resamples=number)


def test_a_study_is_refused_before_anything_is_run(ready):
    runs = []
    for options in ({"batch_size": 0}, {"prepend_bos": 1}, {"n_resamples": 0}):
        with pytest.raises(ns.NeuronShareError):
            ns.ablation_study(*ready, on_run=lambda *run: runs.append(run), **options)
    assert not runs
