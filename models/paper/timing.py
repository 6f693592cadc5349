"""Fair timing on a machine that others use too: contenders take turns, and their least disturbed turns are compared."""

import time
from collections.abc import Callable, Mapping

SLICE_S = 0.003
"""Each turn repeats a contender until about this long, after one call that is not counted and brings its data into the
caches: so short that on a busy machine some turns are not interrupted, so long that the clock's grain does not show."""


def race(contenders: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Seconds of one call of each contender: the best of `turns` rounds, in each of which all take a turn."""
    loops = {}
    for name, call in contenders.items():
        call()  # compiles, allocates, fills caches
        started = time.perf_counter()
        call()
        loops[name] = max(1, int(SLICE_S / max(time.perf_counter() - started, 1e-7)))
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, call in contenders.items():
            if loops[name] > 1:
                call()
            started = time.perf_counter()
            for _ in range(loops[name]):
                call()
            taken[name].append((time.perf_counter() - started) / loops[name])
    return {name: min(times) for name, times in taken.items()}
