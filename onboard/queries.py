"""What to ask the operator: few tiles, each of ground that was not asked about before."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from onboard.tracks import Path, centres, overlaps

Floats32 = NDArray[np.float32]

REMEMBERED = 256
"""Questions that are remembered, so that neither their ground nor their like is asked about again."""
SAME_GROUND = 0.3
"""A tile that overlaps an asked patch by more than this share shows the same ground."""
MAX_SAVED = 8
"""Questions that may be saved up while there is no fresh ground, so that an operator is not flooded afterwards."""
RECENT_FRAMES = 8
NEIGHBOURS = 40
"""A tile is typical by its mean similarity to so many tiles of the recent frames."""


class Asker:
    """Chooses tiles to ask about; at most `share` of all tiles seen. Deterministic by seed.

    The first questions, and half of those after them, go to tiles that are *typical and new*: similar to many tiles of
    the recent frames, and to none that was asked about (k-centre, weighted by density). The others are drawn at random,
    so that the holdout stays an unbiased judge. Choosing by margin was worse than chance on the flights at hand: it
    spends the labels on tiles that show two classes.
    """

    TYPICAL_FIRST = 24
    TYPICAL_SHARE = 0.5

    def __init__(self, share: float, rows: int, cols: int, seed: int) -> None:
        self._share = share
        self._shape = (rows, cols)
        self._centres = centres(rows, cols)
        self._random = np.random.default_rng(seed)
        self._asked: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        self._like: deque[Floats32] = deque(maxlen=REMEMBERED)
        self._recent: deque[Floats32] = deque(maxlen=RECENT_FRAMES)
        self._tiles = 0
        self._count = 0
        self._forgone = 0

    def choose(self, frame: int, path: Path, values: Floats32) -> list[int]:
        """Tiles of this frame to ask about now; `path` must know the frame, `values` (tiles, F) are its features."""
        rows, cols = self._shape
        length = np.linalg.norm(values, axis=1, keepdims=True)
        unit = (values / np.where(length > 0, length, 1)).astype(np.float32)
        self._recent.append(unit)
        self._tiles += rows * cols
        wanted = int(self._share * self._tiles + 1e-9) - self._count - self._forgone
        if wanted <= 0:
            return []
        left = [int(tile) for tile in np.flatnonzero(self._fresh(frame, path))]
        density = self._density(unit)
        chosen: list[int] = []
        while left and len(chosen) < wanted:
            if self._count < self.TYPICAL_FIRST or self._random.random() < self.TYPICAL_SHARE:
                tile = left[int((density[left] - self._nearest(unit[left])).argmax())]
            else:
                tile = left[int(self._random.integers(len(left)))]
            left.remove(tile)
            chosen.append(tile)
            self._asked.append((frame, tile))
            self._like.append(unit[tile])
            self._count += 1
        self._forgone += max(0, wanted - len(chosen) - MAX_SAVED)
        return chosen

    def _density(self, unit: Floats32) -> Floats32:
        """Mean cosine of each tile to the nearest tiles of the recent frames, its own among them."""
        similar = unit @ np.concatenate(self._recent).T
        nearest = min(NEIGHBOURS, similar.shape[1])
        density: Floats32 = np.partition(similar, -nearest, axis=1)[:, -nearest:].mean(axis=1)
        return density

    def _nearest(self, unit: Floats32) -> Floats32:
        """Cosine of each tile to the most similar one that was asked about."""
        if not self._like:
            return np.zeros(len(unit), np.float32)
        nearest: Floats32 = (unit @ np.array(self._like).T).max(axis=1)
        return nearest

    def _fresh(self, frame: int, path: Path) -> NDArray[np.bool_]:
        rows, cols = self._shape
        motions = path.motions([asked for asked, _ in self._asked], frame)
        places = [self._centres[tile] @ motions[asked].T for asked, tile in self._asked if asked in motions]
        if not places:
            return np.ones(rows * cols, np.bool_)
        fresh: NDArray[np.bool_] = overlaps(np.array(places), rows, cols).max(axis=0) <= SAME_GROUND
        return fresh
