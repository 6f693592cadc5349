"""Eq. 7 for one tile of output channels and a few windows: the inner loops."""

from models.jit import kernel
from models.kernels.table import (
    FOUR,
    LIMITED,
    LINE,
    ONE,
    ONE_RUN,
    PAIR_RUNS,
    PAIRS,
    SIX,
    STEPS,
    THREE,
    TWO,
    TWO_PAIR_RUNS,
    WIDTH,
    WORD_RUNS,
    ZERO,
    Bytes,
    Plan,
    Words,
)
from models.simd import (
    Index,
    Rows,
    Value,
    after,
    as_floats,
    broadcast_scales,
    dot_pair,
    dot_word,
    load_bytes,
    load_ints,
    multiply_add,
    no_floats,
    settle,
    start,
)


@kernel(forceinline=True, _nrt=False)
def _single(n: Value, words: Words, places: Rows, at: Index, steps: Bytes, line: Index) -> Value:
    """The counters after one word."""
    return dot_word(n, words, places, at, load_bytes(steps, line), load_bytes(steps, line + LINE))


@kernel(forceinline=True, _nrt=False)
def _double(n: Value, words: Words, places: Rows, at: Index, steps: Bytes, line: Index) -> Value:
    """The counters after a pair of words."""
    signs, more = load_bytes(steps, line), load_bytes(steps, line + LINE)
    return dot_pair(n, words, places, at, signs, more, load_bytes(steps, line + TWO * LINE))


@kernel(forceinline=True, _nrt=False)
def _run(
    n: Value, words: Words, places: Rows, at: Index, pairs: Index, singles: Index, steps: Bytes, line: Index
) -> Value:
    """The counters after a run, settled."""
    if LIMITED:
        for part in range(ZERO, pairs, PAIRS):
            for k in range(part, min(part + PAIRS, pairs)):
                n = _double(n, words, places, at + TWO * k, steps, line + THREE * LINE * k)
            n = settle(n)
        at, line = at + TWO * pairs, line + THREE * LINE * pairs
        for part in range(ZERO, singles, STEPS):
            for k in range(part, min(part + STEPS, singles)):
                n = _single(n, words, places, at + k, steps, line + TWO * LINE * k)
            n = settle(n)
        return n
    for k in range(pairs):
        n = _double(n, words, places, at + TWO * k, steps, line + THREE * LINE * k)
    at, line = at + TWO * pairs, line + THREE * LINE * pairs
    for k in range(singles):
        n = _single(n, words, places, at + k, steps, line + TWO * LINE * k)
    return n


@kernel(forceinline=True, _nrt=False)
def binary_sums(
    plan: Plan, words: Words, kind: Index, runs: Index, table: Index, places: Rows, line: Index, base: Index
) -> Value:
    """Eq. 7 for some windows, without s: floats, a row for each window, the channels of one tile.

    places: where the first pixels of the windows stand; line, base: where the tile's lines and sums begin. Runs of one
    step or two have loops of their own: what they count needs no registers that last.
    """
    ints, steps, indices = plan.ints, plan.bytes, plan.indices
    y = no_floats(places)
    if kind == ONE_RUN:
        at, group, pairs, singles = indices[table], indices[table + ONE], indices[table + TWO], indices[table + THREE]
        n = _run(start(load_ints(ints, base), places), words, places, at, pairs, singles, steps, line)
        return multiply_add(broadcast_scales(words, places, group), as_floats(n), y)
    for _ in range(runs):
        at, group, pairs, singles = indices[table], indices[table + ONE], indices[table + TWO], indices[table + THREE]
        n = start(load_ints(ints, base), places)
        if kind == WORD_RUNS:
            n = settle(_single(n, words, places, at, steps, line))
            line += TWO * LINE
        elif kind == PAIR_RUNS:
            n = settle(_double(n, words, places, at, steps, line))
            line += THREE * LINE
        elif kind == TWO_PAIR_RUNS:
            n = _double(n, words, places, at, steps, line)
            n = settle(_double(n, words, places, after(at, n) + TWO, steps, line + THREE * LINE))
            line += SIX * LINE
        else:
            n = _run(n, words, places, at, pairs, singles, steps, line)
            line += (THREE * pairs + TWO * singles) * LINE
        y = multiply_add(broadcast_scales(words, places, after(group, n)), as_floats(n), y)
        base += WIDTH
        table += FOUR
    return y
