"""The bytes that questions may cost, over any stretch of time."""

import numpy as np
import pytest

from onboard.budget import SAVED_S, Budget


def fly(budget, times_s, sizes, wanted):
    """(time, size) of each question that is asked."""
    spent, sizes = [], iter(sizes)
    for t in times_s:
        for _ in range(budget.affords(int(t * 1e9), wanted)):
            size = next(sizes)
            budget.spend(size)
            spent.append((t, size))
    return spent


@pytest.mark.parametrize("rate", [50, 360, 5000, 200_000])
@pytest.mark.parametrize("seed", range(5))
def test_no_stretch_of_time_costs_more_than_came_in_was_saved_and_one_question(rate, seed):
    rng = np.random.default_rng((rate, seed))
    times = np.cumsum(rng.choice([0.03, 0.2, 1.0, 90.0], 800, p=[0.4, 0.4, 0.19, 0.01]))
    spent = fly(Budget(rate), times, rng.integers(200, 9000, 100_000), 8)
    when, sizes = (np.array(x) for x in zip(*spent, strict=True))
    total = np.concatenate([[0], np.cumsum(sizes)])
    for i in range(len(when)):
        cost = total[i + 1 :] - total[i]
        assert (cost <= rate * (when[i:] - when[i]) + rate * SAVED_S + sizes[: len(when)].max()).all()


def test_what_comes_in_is_used():
    times = np.arange(0, 600, 0.1)
    spent = fly(Budget(360), times, [5000] * 1000, 4)
    assert 360 * 600 <= sum(size for _, size in spent) <= 360 * (600 + SAVED_S) + 5000


def test_without_a_bound_all_are_afforded():
    budget = Budget(0)
    for t in range(100):
        assert budget.affords(t, 7) == 7
        budget.spend(10**9)


def test_time_that_stands_still_or_goes_back_brings_nothing():
    budget = Budget(100)
    assert budget.affords(10**12, 5) == 1
    budget.spend(10_000)
    assert [budget.affords(t, 5) for t in (10**12, 0, 10**9, 10**9)] == [0] * 4
    assert budget.affords(80 * 10**9, 5) == 1  # it runs on from where it went back to: 80 s bring 8,000 for the 7,000
