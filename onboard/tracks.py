"""Where a tile's ground was in other frames: chains of motions, overlap of tiles.

`onboard.registration` finds the motions; where it finds none, tracks start anew.
NumPy alone, so that the learner's process needs no more.

Positions are in *grid units*: x in 0..cols, y in 0..rows, so that a tile is a unit square around its centre.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]


@cache
def centres(rows: int, cols: int) -> Floats:
    """Homogeneous centres of the tiles, row by row, (rows * cols, 3); read-only."""
    y, x = np.mgrid[0:rows, 0:cols] + 0.5
    out = np.stack([x.ravel(), y.ravel(), np.ones(rows * cols)], axis=1)
    out.flags.writeable = False
    return out


def overlaps(points: Floats, rows: int, cols: int) -> Floats:
    """Share of a unit square around each point (n, >= 2) that lies in each tile; (n, rows * cols)."""
    gap = np.abs(points[:, None, :2] - centres(rows, cols)[None, :, :2])
    share: Floats = np.clip(1 - gap, 0, 1).prod(axis=2)
    return share


class Path:
    """Where the last `reach` frames lie towards each other, chained from their motions."""

    def __init__(self, reach: int) -> None:
        self._reach = reach
        self._frames: dict[int, tuple[int, Floats]] = {}
        self._segment = 0
        self._added = 0
        self._last: NDArray[Any] = np.eye(3)

    def add(self, frame: int, motion: Floats | None) -> None:
        """Append a frame and its motion to the one added before; None starts a new segment."""
        if motion is None:
            self._segment += 1
            self._last = np.eye(3)
        else:
            self._last = self._last @ motion
        self._frames[frame] = (self._segment, self._last)
        while len(self._frames) > self._reach:
            del self._frames[next(iter(self._frames))]
        self._added += 1
        if self._added % self._reach == 0:
            self._rebase()

    def _rebase(self) -> None:
        """Count this segment from its oldest frame here: a chain of a whole flight runs out of digits."""
        segment = {f: chain for f, (number, chain) in self._frames.items() if number == self._segment}
        back = np.linalg.inv(next(iter(segment.values())))
        self._frames |= {f: (self._segment, back @ chain) for f, chain in segment.items()}
        self._last = back @ self._last

    def frames(self) -> tuple[int, ...]:
        """The frames that are remembered, oldest first."""
        return tuple(self._frames)

    def motion(self, source: int, target: int) -> Floats | None:
        """(3, 3) from grid units of one frame to another's; None where they are not related or forgotten."""
        a, b = self._frames.get(source), self._frames.get(target)
        if a is None or b is None or a[0] != b[0]:
            return None
        motion: NDArray[Any] = np.linalg.solve(b[1], a[1])
        return motion

    def motions(self, sources: Sequence[int], target: int) -> dict[int, Floats]:
        """`motion` from each of several frames to one, by source; those that are not related are left out."""
        end = self._frames.get(target)
        found = {s: self._frames[s][1] for s in sources if end and s in self._frames and self._frames[s][0] == end[0]}
        if end is None or not found:
            return {}
        chains: NDArray[Any] = np.linalg.solve(end[1], np.stack(list(found.values())))
        return dict(zip(found, chains, strict=True))
