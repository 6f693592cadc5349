"""Smoothing what the head says: along the ground from frame to frame, and over neighbouring tiles where labels say that
it pays.

Neighbours often show the same class, but how often depends on the flight: on large fields they help much, where small
things lie side by side they harm. So each question remembers what would be said with and without them, and the answers
decide: by how likely either found them.
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from link.messages import Label, Undo
from onboard.tracks import centres

FLOOR = 0.02
"""Added to a probability of the past or of a neighbour, so that it can be outvoted."""
STRENGTH = 0.4
"""Power of what was believed of the ground before, and of what is said of each neighbour."""
RHO_MIN = 0.6
RHO_MEMORY = 0.9
AROUND_T = 2.5
"""Neighbours count while the mean log ratio of likelihoods is so many of its standard errors above 0."""
ANSWERS = 128
"""So many of the newest answers are counted."""
MIN_ANSWERS = 16
MAX_ASKED = 4096
"""Questions without an answer that are remembered."""

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]


class _Guess(NamedTuple):
    """Probabilities (classes,) of a tile without its neighbours, and with them."""

    classes: tuple[str, ...]
    alone: Floats32
    around: Floats32

    def for_around(self, answer: str, wrong: bool) -> float:
        """How much likelier an answer is with the neighbours: the logarithm of the ratio."""
        number = self.classes.index(answer)
        around, alone = (abs(wrong - float(p[number])) + FLOOR for p in (self.around, self.alone))
        return math.log(around / alone)


class Smoother:
    """Adds what was believed of the same ground in the last frame to what the head says now; see the module.

    The past is gated by the measured repeatability `rho`: the running share of tiles whose class equals that of their
    ground one frame before. At or below RHO_MIN, or where frames do not match, it does not count. The neighbours are
    gated by the answers: `around` says whether they count; who smooths without answers may set it.
    """

    def __init__(self, rows: int, cols: int) -> None:
        self.rho = 1.0
        self.around = False
        self._shape = (rows, cols)
        self._centres = centres(rows, cols)
        self._belief: Floats32 | None = None
        self._both: tuple[Floats32, Floats32] | None = None
        self._asked: dict[int, _Guess] = {}
        self._votes: deque[tuple[int, float]] = deque(maxlen=ANSWERS)

    def step(self, probabilities: Floats32, motion: Floats | None) -> Floats32:
        """Probabilities (rows * cols, classes) of the head -> smoothed ones, of the same shape."""
        alone = self._along(probabilities, motion)
        around = alone * self._neighbours(probabilities)
        around /= around.sum(axis=1, keepdims=True)
        self._both = alone, around
        self._belief = around if self.around else alone
        return self._belief

    # --- the neighbours' gate ----------------------------------------------------------------------------------

    def asked(self, query: int, tile: int, classes: tuple[str, ...]) -> None:
        """A question about a tile of the last frame."""
        if self._both is not None:
            self._asked[query] = _Guess(classes, *(said[tile] for said in self._both))
        if len(self._asked) > MAX_ASKED:
            del self._asked[next(iter(self._asked))]

    def answered(self, message: Label | Undo) -> None:
        """An answer, or one that is taken back."""
        if isinstance(message, Undo):
            self._votes = deque((vote for vote in self._votes if vote[0] != message.label), ANSWERS)
        else:
            guess = self._asked.pop(message.query, None)
            if guess is None or message.answer not in guess.classes:
                return
            self._votes.append((message.id, guess.for_around(message.answer, message.wrong)))
        votes = np.array([vote for _, vote in self._votes])
        enough = len(votes) >= MIN_ANSWERS
        self.around = enough and bool(votes.mean() > AROUND_T * votes.std() / np.sqrt(len(votes)))

    # --- what counts -------------------------------------------------------------------------------------------

    def _neighbours(self, probabilities: Floats32) -> Floats32:
        """The factor (rows * cols, classes) that the tiles above, below, left and right give."""
        rows, cols = self._shape
        told = ((probabilities + np.float32(FLOOR)) ** np.float32(STRENGTH)).reshape(rows, cols, -1)
        factor = np.ones_like(told)
        factor[1:] *= told[:-1]
        factor[:-1] *= told[1:]
        factor[:, 1:] *= told[:, :-1]
        factor[:, :-1] *= told[:, 1:]
        return factor.reshape(probabilities.shape)

    def _along(self, probabilities: Floats32, motion: Floats | None) -> Floats32:
        belief, out = self._belief, probabilities
        if motion is not None and belief is not None and belief.shape == probabilities.shape:
            places = (self._centres @ motion.T)[:, :2]
            known = np.all((places >= 0) & (places < self._shape[::-1]), axis=1)
            past = self._sample(belief, places)
            if known.any():
                repeats = float((past.argmax(1) == probabilities.argmax(1))[known].mean())
                self.rho = RHO_MEMORY * self.rho + (1 - RHO_MEMORY) * repeats
            if self.rho > RHO_MIN:
                mixed = probabilities * (past + FLOOR) ** STRENGTH
                mixed /= mixed.sum(axis=1, keepdims=True)
                out = np.where(known[:, None], mixed, probabilities)
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
