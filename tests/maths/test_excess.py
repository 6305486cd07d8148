"""The excess over mismatched examples: its variance by hand, and its intervals in simulations with known sharing."""

from __future__ import annotations

import numpy as np
import pytest

from tl_neuronshare.maths.excess import excess


def all_shared(activated):
    """How many neurons are activated in all languages, for each example of [example, language, neuron]."""
    return activated.all(1).sum(-1)


def drawn(activated, n_draws, rng):
    """Draws of mismatched examples, and by how many examples each language is moved."""
    n, n_languages, _ = activated.shape
    for _ in range(n_draws):
        offsets = [0, *rng.choice(np.arange(1, n), n_languages - 1, replace=False).tolist()]
        moved = [np.roll(activated[:, place], -offset, axis=0) for place, offset in enumerate(offsets)]
        yield all_shared(np.stack(moved, axis=1)), offsets


def by_hand(x, draws):
    """The same example by example and draw by draw, with numpy's own covariances."""
    n, n_draws, n_languages = len(x), len(draws), len(draws[0][1])
    of_examples = np.zeros((n_draws, n))
    for number, (rows, offsets) in enumerate(draws):
        for row in range(n):
            for offset in offsets:
                of_examples[number, (row + offset) % n] += rows[row]
    every = np.cov(np.vstack([x, of_examples]))
    of_pairs = [every[1 + a, 1 + b] for a in range(n_draws) for b in range(n_draws) if a != b]
    of_h, of_both = max(np.mean(of_pairs), 0), every[0, 1:].mean()
    rows = np.concatenate([each for each, _ in draws])
    left = max(rows.var() - of_h / n_languages, 0)
    deviation = np.sqrt(max(every[0, 0] - 2 * of_both + of_h + left / n_draws, 0) / n)
    difference = x.mean() - rows.mean()
    times = 1.96 + (1.96**3 + 1.96) / (4 * (n - 1))
    return difference, difference - times * deviation, difference + times * deviation


@pytest.mark.parametrize(("n", "n_languages", "n_draws"), [(10, 2, 2), (31, 3, 5), (5000, 4, 3)])
def test_the_formula_by_hand(n, n_languages, n_draws):
    rng = np.random.default_rng(n)
    activated = rng.random((n, n_languages, 60)) < rng.beta(2, 2, size=(n, 1, 1))
    x, draws = all_shared(activated), list(drawn(activated, n_draws, rng))
    found = excess(x[:, None], [(rows[:, None], offsets) for rows, offsets in draws])
    assert [each.item() for each in found] == pytest.approx(by_hand(x, draws), rel=1e-4)


def test_what_is_counted_apart_stays_apart():
    rng = np.random.default_rng(0)
    x, rows = rng.integers(9, size=(12, 2, 3)), [(rng.integers(9, size=(12, 2, 3)), [0, 2]) for _ in range(2)]
    found = excess(x, rows)
    for place in np.ndindex(2, 3):
        alone = excess(x[(..., *place)][:, None], [(each[(..., *place)][:, None], offsets) for each, offsets in rows])
        assert [each[place] for each in found] == pytest.approx([each.item() for each in alone])


def test_few_examples_have_no_interval_and_no_draws_nothing_to_compare():
    x = np.arange(9)[:, None]
    difference, low, high = excess(x, [(x, [0, 1]), (x, [0, 2])])
    assert difference.tolist() == [0]
    assert np.isnan([low, high]).all()
    ten = np.arange(10)[:, None]
    assert np.isnan(excess(ten, [(ten, [0, 1])])[1]).all()  # one draw says nothing of how draws agree


def simulated(n, n_languages, rng, task, entity, noise):
    """Neurons of the task are active in all prompts, others for one input in all languages, and others by chance."""
    of_input = rng.random((n, 1, len(task))) < 2 * entity * rng.beta(1, 3, size=(n, 1, 1))
    by_chance = rng.random((n, n_languages, len(task))) < noise * (0.5 + rng.random((n, 1, 1)))
    return task | of_input | by_chance


@pytest.mark.parametrize(
    ("n", "n_languages", "entity", "noise"),
    [(60, 2, 0.1, 0.3), (60, 4, 0.1, 0.3), (60, 9, 0.1, 0.8), (200, 9, 0.1, 0.8), (100, 4, 0.0, 0.5)],
)
def test_intervals_cover_the_truth(n, n_languages, entity, noise):
    """The truth: what one neuron is expected to be for one input and for different inputs, over inputs."""
    rng = np.random.default_rng(n + n_languages)
    task = rng.random(100) < 0.05
    level = rng.beta(1, 3, size=400_000)
    chance = np.minimum(noise * (0.5 + rng.random(400_000)), 1)
    # Of a neuron that is not of the task: all languages by the input, or else each by chance.
    same = 2 * entity * level + (1 - 2 * entity * level) * chance**n_languages
    one = 2 * entity * level + (1 - 2 * entity * level) * chance
    truth = (~task).sum() * (same.mean() - one.mean() ** n_languages)
    covered, n_runs = 0, 1000
    for _ in range(n_runs):
        activated = simulated(n, n_languages, rng, task, entity, noise)
        draws = [(rows[:, None], offsets) for rows, offsets in drawn(activated, 12, rng)]
        _, low, high = excess(all_shared(activated)[:, None], draws)
        covered += bool(low[0] <= truth <= high[0])
    assert 0.93 <= covered / n_runs <= 0.97, covered
