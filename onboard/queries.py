"""What to ask the operator: the tiles whose answers say most about what the camera sees now."""

from collections import deque
from typing import NamedTuple

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
LIKENESS = 0.2
"""How far an answer reaches: tiles are alike as exp((cosine - 1) / LIKENESS)."""
DOUBT = 0.5
"""A recent tile counts by (1 - the head's probability) to this power."""
FOLLOW = 0.05
"""Share of a new frame in the running mean of the features, which is taken off before they are compared."""


class _Recent(NamedTuple):
    """A frame's tiles: features less their mean, of length 1 (tiles, F), how little the head is sure of them, and how
    much they are like the likest one that was asked about, both (tiles,)."""

    unit: Floats32
    doubt: Floats32
    covered: Floats32


class Asker:
    """Chooses tiles to ask about; at most `share` of all tiles seen. Deterministic by seed.

    Three in four go to the tile that *covers* most: the sum, over the tiles of the recent frames, of what it is more
    like them than any tile that was asked about before, weighed by how little the head is sure of them (kernel herding
    with generalized coverage, Bae et al. 2024). One in four is drawn at random, so that a kind of ground that the
    features cannot tell apart is found all the same.
    """

    RANDOM_SHARE = 0.25

    def __init__(self, share: float, rows: int, cols: int, seed: int) -> None:
        self._share = share
        self._shape = (rows, cols)
        self._centres = centres(rows, cols)
        self._random = np.random.default_rng(seed)
        self._asked: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        self._like: deque[Floats32] = deque(maxlen=REMEMBERED)
        self._recent: deque[_Recent] = deque(maxlen=RECENT_FRAMES)
        self._mean: Floats32 | None = None
        self._tiles = 0
        self._count = 0
        self._forgone = 0

    def choose(
        self,
        frame: int,
        path: Path,
        values: Floats32,
        sure: Floats32,
        most: int | None = None,
    ) -> list[int]:
        """Tiles of this frame to ask about now; `path` must know the frame.

        values (tiles, F) are its features, sure (tiles,) the probabilities of what is said of them. most: no
        more than so many, however many are due.
        """
        rows, cols = self._shape
        unit = self._unit(values)
        self._recent.append(_Recent(unit, (1 - sure) ** DOUBT, self._covered(unit)))
        self._tiles += rows * cols
        wanted = int(self._share * self._tiles + 1e-9) - self._count - self._forgone
        if wanted <= 0:
            return []
        most = wanted if most is None else min(wanted, most)
        left = [int(tile) for tile in np.flatnonzero(self._fresh(frame, path))] if most else []
        likeness = [_alike(unit, seen.unit) for seen in self._recent] if left else []
        chosen: list[int] = []
        while left and len(chosen) < most:
            if self._random.random() >= self.RANDOM_SHARE:
                seen_and_like = zip(self._recent, likeness, strict=True)
                gain = sum(np.maximum(0, like[left] - seen.covered) @ seen.doubt for seen, like in seen_and_like)
                tile = left[int(np.argmax(gain))]
            else:
                tile = left[int(self._random.integers(len(left)))]
            left.remove(tile)
            chosen.append(tile)
            self._asked.append((frame, tile))
            self._like.append(unit[tile])
            for seen, like in zip(self._recent, likeness, strict=True):
                np.maximum(seen.covered, like[tile], out=seen.covered)
            self._count += 1
        self._forgone += max(0, wanted - len(chosen) - MAX_SAVED)
        return chosen

    def _unit(self, values: Floats32) -> Floats32:
        """Features less their running mean, of length 1."""
        mean: Floats32 = values.mean(axis=0)
        self._mean = mean if self._mean is None else (1 - FOLLOW) * self._mean + FOLLOW * mean
        centred = values - self._mean
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        unit: Floats32 = (centred / np.where(length > 0, length, 1)).astype(np.float32)
        return unit

    def _covered(self, unit: Floats32) -> Floats32:
        """How much each tile (n, F) is like the likest that was asked about, (n,)."""
        if not self._like:
            return np.zeros(len(unit), np.float32)
        covered: Floats32 = _alike(unit, np.array(self._like)).max(axis=1)
        return covered

    def _fresh(self, frame: int, path: Path) -> NDArray[np.bool_]:
        rows, cols = self._shape
        motions = path.motions([asked for asked, _ in self._asked], frame)
        places = [self._centres[tile] @ motions[asked].T for asked, tile in self._asked if asked in motions]
        if not places:
            return np.ones(rows * cols, np.bool_)
        fresh: NDArray[np.bool_] = overlaps(np.array(places), rows, cols).max(axis=0) <= SAME_GROUND
        return fresh


def _alike(a: Floats32, b: Floats32) -> Floats32:
    alike: Floats32 = np.exp((a @ b.T - 1) / np.float32(LIKENESS))
    return alike
