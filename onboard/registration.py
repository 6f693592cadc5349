"""How a frame lies towards the one before it.

A survey moves by a third of a frame between photos and turns by more than 90 degrees at its ends, so registration
matches ORB features and fits a similarity by RANSAC; pyramidal Lucas-Kanade loses such steps. A match with too few
inliers or an impossible scale is no match. Motions are in the grid units of `onboard.tracks`.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from onboard import shrink
from onboard.matching import match, warm_up
from onboard.tracks import Floats, Floats32

_View = tuple[Floats32, NDArray[np.uint8], Floats]

REGISTER_WIDTH_PX = 640
ORB_FEATURES = 600
ORB_SIDE_PX = 64
"""ORB looks no closer than 31 pixels to a border: a smaller image holds nothing for it."""
MIN_INLIERS = 20
MAX_STEP_SCALE = 1.4


class Registration:
    """Registers each frame to the one before it. Holds the last frame's features and the random seed of RANSAC."""

    def __init__(self, rows: int, cols: int) -> None:
        self._grid = (cols, rows)
        self._orb = cv2.ORB.create(ORB_FEATURES, scoreType=cv2.ORB_FAST_SCORE)  # as good as Harris here, and faster
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
        gray = shrink.grey(image, *size) if scale < 1 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        points, found = self._orb.detectAndCompute(gray, None)
        features: Any = found  # None where there are no points, other than OpenCV's types say
        if features is None:
            return None
        pixels = np.asarray(cv2.KeyPoint.convert(points), np.float32)
        return pixels, features, np.diag([self._grid[0] / size[0], self._grid[1] / size[1], 1.0])
