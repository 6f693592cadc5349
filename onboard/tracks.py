"""Where a tile's ground was in other frames: chains of motions, overlap of tiles, smoothing along the ground.

`onboard.registration` finds the motions; where it finds none, tracks start anew and nothing is smoothed over the cut.
NumPy alone, so that the learner's process needs no more.

Positions are in *grid units*: x in 0..cols, y in 0..rows, so that a tile is a unit square around its centre.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]

PRIOR_FLOOR = 0.02
"""Added to a remembered probability, so that the past can be outvoted."""


def centres(rows: int, cols: int) -> Floats:
    """Homogeneous centres of the tiles, row by row, (rows * cols, 3)."""
    y, x = np.mgrid[0:rows, 0:cols] + 0.5
    return np.stack([x.ravel(), y.ravel(), np.ones(rows * cols)], axis=1)


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


class Smoother:
    """Adds what was believed of the same ground in the last frame to what the head says now.

    It is gated by the measured repeatability `rho`: the running share of tiles whose class equals that of their
    ground one frame before. At or below RHO_MIN, or where frames do not match, the output is the head's own.
    """

    STRENGTH = 0.4
    RHO_MIN = 0.6
    RHO_MEMORY = 0.9

    def __init__(self, rows: int, cols: int) -> None:
        self.rho = 1.0
        self._shape = (rows, cols)
        self._centres = centres(rows, cols)
        self._belief: Floats32 | None = None

    def step(self, probabilities: Floats32, motion: Floats | None) -> Floats32:
        """Probabilities (rows * cols, classes) of the head -> smoothed ones, of the same shape."""
        belief, out = self._belief, probabilities
        if motion is not None and belief is not None and belief.shape == probabilities.shape:
            places = (self._centres @ motion.T)[:, :2]
            known = np.all((places >= 0) & (places < self._shape[::-1]), axis=1)
            past = self._sample(belief, places)
            if known.any():
                repeats = float((past.argmax(1) == probabilities.argmax(1))[known].mean())
                self.rho = self.RHO_MEMORY * self.rho + (1 - self.RHO_MEMORY) * repeats
            if self.rho > self.RHO_MIN:
                mixed = probabilities * (past + PRIOR_FLOOR) ** self.STRENGTH
                mixed /= mixed.sum(axis=1, keepdims=True)
                out = np.where(known[:, None], mixed, probabilities)
        self._belief = out
        return out

    def _sample(self, belief: Floats32, places: Floats) -> Floats32:
        """The belief at places in grid units, bilinear between tile centres."""
        rows, cols = self._shape
        x = np.clip(places[:, 0] - 0.5, 0, cols - 1)
        y = np.clip(places[:, 1] - 0.5, 0, rows - 1)
        x0, y0 = x.astype(np.intp), y.astype(np.intp)
        x1, y1 = np.minimum(x0 + 1, cols - 1), np.minimum(y0 + 1, rows - 1)
        ax, ay = (x - x0)[:, None], (y - y0)[:, None]
        top = belief[y0 * cols + x0] * (1 - ax) + belief[y0 * cols + x1] * ax
        bottom = belief[y1 * cols + x0] * (1 - ax) + belief[y1 * cols + x1] * ax
        sampled: Floats32 = (top * (1 - ay) + bottom * ay).astype(np.float32)
        return sampled
