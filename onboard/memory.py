"""The replay memory: a lesson for each label, with the binary features of all that it speaks of; bounded, balanced.

A lesson is fitted as one row, the weighted mean of its tile as it was and turned, and of the tiles of other frames that
show the same ground. Rows are whole multiples of 1 / GRID, so that their products are exact in double precision: they
may be kept from tick to tick, and come out the same whenever and with whatever others they are computed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.bits import unpack_signs
from models.network import NetworkSpec

GRID = 256
RESERVE = 256
"""Lessons kept beyond those that are fitted: an undo gives their place back to them."""

Floats32 = NDArray[np.float32]
Floats = NDArray[np.float64]


class Lesson(msgspec.Struct, frozen=True, array_like=True):
    """A label: its id, the class that it says (or, if `wrong`, that it denies), and packed features with their weights.

    bits: uint8 (n, F/8), scales: float16 (n, F/beta_f), as raw bytes; weights: n of them.
    """

    label: int
    answer: str
    wrong: bool
    bits: bytes
    scales: bytes
    weights: tuple[float, ...]


class Packing:
    """How a network's features are packed; turns bytes into values without the kernels' compiler."""

    def __init__(self, spec: NetworkSpec) -> None:
        self._count = spec.feature_count
        self._beta = spec.beta_f or spec.feature_count
        self.bits_bytes = -(-self._count // 8)
        self.scales_bytes = 2 * -(-self._count // self._beta)

    def samples(self, bits: bytes, scales: bytes) -> int:
        """How many samples these are, 0 where they are of another network or not finite."""
        n, rest = divmod(len(bits), self.bits_bytes)
        whole = not rest and n > 0 and len(scales) == n * self.scales_bytes
        return n if whole and np.isfinite(np.frombuffer(scales, np.float16)).all() else 0

    def values(self, bits: bytes, scales: bytes) -> Floats32:
        """Feature values, float32 (n, F)."""
        b = np.frombuffer(bits, np.uint8).reshape(-1, self.bits_bytes)
        s = np.frombuffer(scales, np.float16).astype(np.float32).reshape(len(b), -1)
        return unpack_signs(b, self._count) * np.repeat(s, self._beta, axis=1)[:, : self._count]


def rounded(values: Floats32) -> Floats32:
    """Values on the grid of rows."""
    out: Floats32 = np.rint(values * np.float32(GRID)) / np.float32(GRID)
    return out


def products(a: Floats32, b: Floats32) -> Floats:
    """Products of rows (n, F) with rows (m, F), float64 (n, m): exact."""
    out: Floats = a.astype(np.float64) @ b.astype(np.float64).T
    return out


class Memory:
    """Lessons in the order of their labels. `size` are fitted at most, RESERVE more are remembered."""

    def __init__(self, packing: Packing, size: int) -> None:
        self.lessons: list[Lesson] = []
        self._packing = packing
        self._size = size
        self._rows: dict[int, Floats32] = {}
        self._known: list[int] = []
        self._gram: Floats = np.zeros((0, 0))

    def add(self, lesson: Lesson) -> None:
        """Remember a lesson; where there are too many, the oldest of the class that has most goes."""
        self.lessons.append(lesson)
        while len(self.lessons) > self._size + RESERVE:
            most = Counter(map(_group, self.lessons)).most_common(1)[0][0]
            self.lessons.remove(next(old for old in self.lessons if _group(old) == most))

    def remove(self, label: int) -> bool:
        """Forget a label; whether there was one."""
        left = [lesson for lesson in self.lessons if lesson.label != label]
        there = len(left) < len(self.lessons)
        self.lessons = left
        return there

    def chosen(self) -> list[Lesson]:
        """What is fitted, newest first: of each class the newest, as many of each as there is room for."""
        counts = Counter(map(_group, self.lessons))
        share = max(
            q for q in range(1, self._size + 1) if q == 1 or sum(min(n, q) for n in counts.values()) <= self._size
        )
        taken: Counter[tuple[str, bool]] = Counter()
        out = []
        for lesson in reversed(self.lessons):
            group = _group(lesson)
            taken[group] += 1
            if taken[group] <= share:
                out.append(lesson)
        return out

    def row(self, lesson: Lesson) -> Floats32:
        """The row that a lesson is fitted as, float32 (F,)."""
        row = self._rows.get(lesson.label)
        if row is None:
            weights = np.array(lesson.weights, np.float32)
            values = self._packing.values(lesson.bits, lesson.scales)
            row = self._rows[lesson.label] = rounded((weights[:, None] * values).sum(axis=0) / weights.sum())
        return row

    def rows(self, lessons: Sequence[Lesson]) -> tuple[Floats32, Floats]:
        """The rows of lessons, float32 (n, F), and their products (n, n); what was known from the last time is kept."""
        labels = [lesson.label for lesson in lessons]
        rows = np.stack([self.row(lesson) for lesson in lessons])
        place = {label: i for i, label in enumerate(self._known)}
        kept = [i for i, label in enumerate(labels) if label in place]
        fresh = [i for i, label in enumerate(labels) if label not in place]
        before = [place[labels[i]] for i in kept]
        gram = np.empty((len(rows), len(rows)))
        gram[np.ix_(kept, kept)] = self._gram[np.ix_(before, before)]
        gram[fresh] = products(rows[fresh], rows)
        gram[:, fresh] = gram[fresh].T
        self._known, self._gram = labels, gram
        self._rows = {label: self._rows[label] for label in labels}
        return rows, gram


def _group(lesson: Lesson) -> tuple[str, bool]:
    return lesson.answer, lesson.wrong


def joined(packed: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Bits and scales of several samples, end to end."""
    pairs = list(packed)
    return b"".join(bits for bits, _ in pairs), b"".join(scales for _, scales in pairs)
