"""A stage in a thread of its own: nothing is lost, repeated or made too far ahead, and it always ends."""

import threading

import pytest

from onboard.ahead import ahead

WAIT_S = 20.0


@pytest.mark.parametrize("depth", [1, 3])
def test_order_is_kept(depth):
    with ahead(lambda: range(500), depth) as items:
        assert list(items) == list(range(500))


def test_none_and_falsehoods_are_items():
    with ahead(lambda: [None, 0, (), ""]) as items:
        assert list(items) == [None, 0, (), ""]


def test_it_is_made_in_another_thread_and_no_further_than_the_depth():
    made, threads, waiting = [], set(), threading.Event()

    def make():
        for n in range(100):
            threads.add(threading.current_thread())
            made.append(n)
            if n == 2:
                waiting.set()
            yield n

    with ahead(make, depth=2) as items:
        assert next(items) == 0
        assert waiting.wait(WAIT_S)  # one is taken, two are ahead
        threads.copy().pop().join(0.2)
        assert made == [0, 1, 2]
    assert threading.current_thread() not in threads
    assert not threads.pop().is_alive()


def test_what_the_thread_raises_comes_in_its_place():
    def make():
        yield 1
        raise OSError("the disk is gone")

    with ahead(make) as items:
        assert next(items) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(items)


def test_leaving_early_ends_the_thread_and_closes_what_it_reads():
    closed = threading.Event()

    def make():
        try:
            yield from range(10**9)
        finally:
            closed.set()

    before = threading.active_count()
    with ahead(make) as items, ahead(lambda: (n * 2 for n in items)) as doubled:
        assert [next(doubled) for _ in range(5)] == [0, 2, 4, 6, 8]
    assert closed.wait(WAIT_S)
    assert threading.active_count() == before


def test_two_stages_keep_order_and_end():
    with ahead(lambda: range(100)) as items, ahead(lambda: map(str, items)) as texts:
        assert list(texts) == [str(n) for n in range(100)]
