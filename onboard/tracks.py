"""Where a tile's ground was in the last frame: registration of frames, overlap of tiles, smoothing along the ground.

A survey moves by a third of a frame between photos and turns by more than 90 degrees at its ends, so registration
matches ORB features and fits a similarity by RANSAC; pyramidal Lucas-Kanade loses such steps. A match with too few
inliers or an impossible scale is no match: tracks then start anew, and nothing is smoothed over a cut.

Positions are in *grid units*: x in 0..cols, y in 0..rows, so that a tile is a unit square around its centre.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from onboard.matching import match, warm_up

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
_View = tuple[Floats32, NDArray[np.uint8], Floats]

REGISTER_WIDTH_PX = 640
ORB_FEATURES = 800
ORB_SIDE_PX = 64
"""ORB looks no closer than 31 pixels to a border: a smaller image holds nothing for it."""
MIN_INLIERS = 20
MAX_STEP_SCALE = 1.4
PRIOR_FLOOR = 0.02
"""Added to a remembered probability, so that the past can be outvoted."""


class Registration:
    """Registers each frame to the one before it. Holds the last frame's features and the random seed of RANSAC."""

    def __init__(self, rows: int, cols: int) -> None:
        self._grid = (cols, rows)
        self._orb = cv2.ORB.create(ORB_FEATURES)
        warm_up()
        self._last: _View | None = None

    def step(self, image: NDArray[np.uint8]) -> Floats | None:
        """Motion (3, 3) from this frame's grid units to the last frame's, or None where they do not match."""
        last, self._last = self._last, self._look(image)
        if last is None or self._last is None:
            return None
        points, features, units = self._last
        mine, its = match(features, last[1])
        if len(mine) < MIN_INLIERS:
            return None
        here, there = points[mine], last[0][its]
        cv2.setRNGSeed(0)  # RANSAC draws from a global generator: the same frames give the same motion
        motion, inliers = cv2.estimateAffinePartial2D(here, there, method=cv2.RANSAC, ransacReprojThreshold=4)
        if motion is None or int(inliers.sum()) < MIN_INLIERS:
            return None
        if not 1 / MAX_STEP_SCALE < float(np.hypot(*motion[:, 0])) < MAX_STEP_SCALE:
            return None
        full: Floats = last[2] @ np.vstack([motion, [0, 0, 1]]) @ np.linalg.inv(units)
        return full

    def _look(self, image: NDArray[np.uint8]) -> _View | None:
        """Points, their features, and the matrix from pixels to grid units; None where there is nothing to see."""
        h, w = image.shape[:2]
        scale = min(1.0, REGISTER_WIDTH_PX / w)
        size = (round(w * scale), round(h * scale))
        if min(size) < ORB_SIDE_PX:
            return None
        gray = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
        points, found = self._orb.detectAndCompute(gray, None)
        features: Any = found  # None where there are no points, other than OpenCV's types say
        if features is None:
            return None
        pixels = np.asarray(cv2.KeyPoint.convert(points), np.float32)
        return pixels, features, np.diag([self._grid[0] / size[0], self._grid[1] / size[1], 1.0])


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
