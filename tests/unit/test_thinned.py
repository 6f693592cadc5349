"""Rows of bounded length, against slices of the whole."""

import pytest

from onboard.thinned import Thinned


@pytest.mark.parametrize("limit", [2, 4, 16])
def test_it_holds_every_so_many_of_all(limit):
    row = Thinned[int](limit)
    for n in range(300):
        row.add(n)
        assert row.items == list(range(0, n + 1, row.every))
        assert len(row.items) <= limit
        assert row.every == 1 or len(row.items) * 2 >= limit


@pytest.mark.parametrize("limit", [2, 6])
def test_what_is_left_out_is_joined(limit):
    """With + as the join, what is kept are the sums since the one kept before."""
    row = Thinned[int](limit, lambda a, b: a + b)
    for n in range(200):
        row.add(n)
        kept = range(0, n + 1, row.every)
        assert row.items == [sum(range(k - row.every + 1, k + 1)) if k else 0 for k in kept]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_an_odd_limit_is_refused(limit):
    with pytest.raises(ValueError, match="even number"):
        Thinned(limit)
