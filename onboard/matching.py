"""Which binary features of two images belong together: brute force over Hamming distances, in one pass."""

import numpy as np
from numpy.typing import NDArray

from models.jit import kernel, without_broken_cache

Bytes = NDArray[np.uint8]

MAX_POINTS = 1 << 16
"""A distance and a point's number share 32 bits."""

_ODD, _PAIRS, _NIBBLES, _BYTES = (np.uint64(int(digits * (16 // len(digits)), 16)) for digits in ("5", "3", "0F", "01"))
_1, _2, _4, _16, _56 = (np.uint64(n) for n in (1, 2, 4, 16, 56))


def match(here: Bytes, there: Bytes) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Matches between features uint8 (n, B) and (m, B), B a multiple of 8: numbers of each pair, ascending in `here`.

    Two points match that are the nearest to each other; of several as near, the first counts as the nearest.
    """
    n, m = len(here), len(there)
    if max(n, m) > MAX_POINTS:
        raise ValueError(f"at most {MAX_POINTS} points can be matched, not {max(n, m)}")
    if not n or not m:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    words = [np.ascontiguousarray(np.ascontiguousarray(side).view(np.uint64).T) for side in (here, there)]
    to_there, to_here = np.empty(n, np.uint32), np.empty(m, np.uint32)
    _nearest(words[0], words[1], to_there, to_here)
    chosen, back = (nearest & np.uint32(MAX_POINTS - 1) for nearest in (to_there, to_here))
    mutual = np.flatnonzero(back[chosen] == np.arange(n))
    return mutual, chosen[mutual].astype(np.intp)


def warm_up() -> None:
    """Compile the kernel, or load it from the cache."""
    some = np.zeros((1, 32), np.uint8)
    without_broken_cache(lambda: match(some, some))


@kernel()
def _nearest(
    here: NDArray[np.uint64], there: NDArray[np.uint64], to_there: NDArray[np.uint32], to_here: NDArray[np.uint32]
) -> None:
    """From words (B/8, n) and (B/8, m): distance << 16 | number of the nearest, to_there (n,) and to_here (m,)."""
    distance = np.empty(there.shape[1], np.uint64)
    to_here[:] = 0xFFFFFFFF
    for i in range(here.shape[1]):
        distance[:] = 0
        for word in range(here.shape[0]):
            mine = here[word, i]
            for j in range(there.shape[1]):
                x = mine ^ there[word, j]  # its bits are counted in parallel; LLVM knows the idiom
                x -= (x >> _1) & _ODD
                x = (x & _PAIRS) + ((x >> _2) & _PAIRS)
                x = (x + (x >> _4)) & _NIBBLES
                distance[j] += (x * _BYTES) >> _56
        nearest = np.uint32(0xFFFFFFFF)
        for j in range(there.shape[1]):
            far = np.uint32(distance[j] << _16)
            to_here[j] = min(to_here[j], far | np.uint32(i))
            nearest = min(nearest, far | np.uint32(j))
        to_there[i] = nearest
