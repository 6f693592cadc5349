"""Light and haze evened out before the network sees a tile: dusk and mist must not look like another kind of ground.

Per channel, the mean of a frame is brought to the network's grey and its deviation half of the way (in powers) to that
of the photos it was trained on. Both are followed over some frames, so that a single frame of dark forest stays dark.
A table of 256 entries per channel does it: integers in, integers out, the same on every processor.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]

FOLLOW = 0.2
"""Share of a new frame in the running mean and deviation."""
CONTRAST = 0.5
"""The power of the ratio of deviations: 0 leaves contrast alone, 1 fixes it. Whole, it takes away what tells bare
ground from forest; none of it leaves the haze."""
DEVIATION = 42.0
"""Of the grey values of aerial photos in good light (UC Merced, all channels)."""
MIN_DEVIATION = 2.0
"""A frame of one colour has nothing to be stretched."""


class Exposure:
    """Follows the light of a flight; `step` gives the table for each frame in turn.

    grey: the mean of each channel that is to be reached.
    """

    def __init__(self, grey: tuple[int, int, int]) -> None:
        self._grey = np.array(grey, np.float64)
        self._moments: Floats | None = None

    def step(self, tiles: Image) -> Image:
        """The table (1, 256, 3) for `apply`, after a look at this frame's tiles, uint8 (n, S, S, 3)."""
        now = np.array(cv2.meanStdDev(tiles.reshape(-1, tiles.shape[2], 3)), np.float64).reshape(2, 3)
        self._moments = now if self._moments is None else (1 - FOLLOW) * self._moments + FOLLOW * now
        mean, deviation = self._moments
        gain = (DEVIATION / np.maximum(MIN_DEVIATION, deviation)) ** CONTRAST
        values = (np.arange(256.0)[:, None] - mean) * gain + self._grey
        table: Image = np.clip(np.rint(values), 0, 255).astype(np.uint8)[None]
        return table


def apply(table: Image, tiles: Image) -> None:
    """Put tiles uint8 (n, S, S, 3) through a table, in place."""
    flat = tiles.reshape(-1, tiles.shape[2], 3)
    cv2.LUT(flat, table, dst=flat)
