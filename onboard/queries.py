"""What to ask the operator: few tiles, each of ground that was not asked about before."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from onboard.tracks import Path, centres, overlaps

REMEMBERED = 256
SAME_GROUND = 0.3
"""A tile that overlaps an asked patch by more than this share shows the same ground."""


class Asker:
    """Chooses tiles to ask about; at most `share` of all tiles seen. Deterministic by seed.

    Every tile of fresh ground is equally likely. On the Caliterra flight this beat choosing by margin, and by margin
    times distance to memory: those spend the labels on tiles that are hard because they show two classes.
    """

    def __init__(self, share: float, rows: int, cols: int, seed: int) -> None:
        self._share = share
        self._shape = (rows, cols)
        self._centres = centres(rows, cols)
        self._random = np.random.default_rng(seed)
        self._asked: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        self._tiles = 0
        self._count = 0

    def choose(self, frame: int, path: Path) -> list[int]:
        """Tiles of this frame to ask about now; `path` must know the frame."""
        rows, cols = self._shape
        self._tiles += rows * cols
        wanted = int(self._share * self._tiles + 1e-9) - self._count
        if wanted <= 0:
            return []
        fresh = self._fresh(frame, path)
        order = self._random.permutation(np.flatnonzero(fresh))
        chosen: list[int] = []
        for tile in order[:wanted]:
            chosen.append(int(tile))
            self._asked.append((frame, int(tile)))
        self._count += len(chosen)
        return chosen

    def _fresh(self, frame: int, path: Path) -> NDArray[np.bool_]:
        rows, cols = self._shape
        places = [
            self._centres[tile] @ motion.T
            for asked, tile in self._asked
            if (motion := path.motion(asked, frame)) is not None
        ]
        if not places:
            return np.ones(rows * cols, np.bool_)
        fresh: NDArray[np.bool_] = overlaps(np.array(places), rows, cols).max(axis=0) <= SAME_GROUND
        return fresh
