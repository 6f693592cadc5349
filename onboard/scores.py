"""Scores of a replay: every variant on the same tiles, those after the first tenth of the flight plus the delay.

adapted      what the flight said at the time, before it could know the label (prequential)
frozen       a head fitted on as many labels as the learner used, all from the first tenth, then left alone
smoothed     `frozen` with the flight's output smoothing, over neighbours if the flight's answers led to that in the end
all_labels   a head fitted on every label at once: the ceiling of these features

Memory is bounded: of a flight of more than MAX_FRAMES frames every second one is scored, then every fourth, and so on.
"""

from collections import deque

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.engine import Features
from models.model import Model
from onboard.flight import Step, softmax
from onboard.frame import Frame
from onboard.head import balanced, fit_head, head_logits, on_grid
from onboard.smoothing import Smoother
from onboard.thinned import Thinned
from onboard.truth import UNKNOWN, Truth

VARIANTS = ("adapted", "smoothed", "frozen", "all_labels")
WINDOWS = 10
RECENT_FRAMES = 10
MAX_FRAMES = 2048
"""Frames that are kept to be scored, at most: about 50 MB with the default grid and network."""
FIT_FRAMES = 16
"""Frames whose features are unpacked at a time: 32 times larger as floats."""

Floats = NDArray[np.float64]


class Scores(msgspec.Struct, frozen=True):
    """accuracy and macro F1 of each variant, its accuracy in each tenth of the flight (None: nothing to score), and per
    frame how many tiles it got right of how many with truth.
    """

    accuracy: dict[str, float]
    macro_f1: dict[str, float]
    windows: dict[str, list[float | None]]
    hits: dict[str, list[tuple[int, int]]]


class _Seen(msgspec.Struct, frozen=True):
    """A frame: its tiles' features, packed as the learner keeps them; what was said (tiles,), the truth (tiles,), and
    the motion to the kept frame before it."""

    bits: NDArray[np.uint8]
    scales: NDArray[np.float16]
    count: int
    beta: int
    said: NDArray[np.uint8]
    truth: NDArray[np.int16]
    motion: Floats | None

    def values(self) -> NDArray[np.float32]:
        """The features, float32 (tiles, F)."""
        return Features(self.bits, self.scales.astype(np.float32), self.count, self.beta).values()


def _join(before: _Seen, seen: _Seen) -> _Seen:
    """`seen`, its motion leading past `before` to the frame before that."""
    whole = None if before.motion is None or seen.motion is None else before.motion @ seen.motion
    return msgspec.structs.replace(seen, motion=whole)


class Scorer:
    """Collects what a flight said and saw; `scores` at the end. Keeps packed features of tiles with truth."""

    def __init__(self, truth: Truth, rows: int, cols: int, ridge: float, seed: int) -> None:
        self._truth = truth
        self._shape = (rows, cols)
        self._ridge = ridge
        self._seed = seed
        self._frames = Thinned[_Seen](MAX_FRAMES, _join)
        self._recent: deque[_Seen] = deque(maxlen=RECENT_FRAMES)
        self._around = False

    def see(self, frame: Frame, step: Step) -> None:
        """Take one frame; its image is not kept."""
        rows, cols = self._shape
        grid = self._truth.grid(frame)
        truth = np.full(rows * cols, UNKNOWN, np.int16) if grid is None else grid.ravel().astype(np.int16)
        packed = step.features
        scales = packed.scales.astype(np.float16)
        seen = _Seen(packed.bits, scales, packed.count, packed.beta, step.result.classes, truth, step.motion)
        self._frames.add(seen)
        self._around = step.around
        self._recent.append(seen)

    def recently(self) -> float:
        """Share of tiles that the flight got right in the last frames."""
        truth = np.stack([seen.truth for seen in self._recent]).astype(np.intp)
        said = np.stack([seen.said for seen in self._recent]).astype(np.intp)
        return _accuracy(truth, said, truth >= 0) or 0.0

    def scores(self, model: Model, labels_used: int, delay: int) -> Scores:
        """Score all variants. `model` gives network and classes; `labels_used` is how many `frozen` gets."""
        kept = self._frames.items
        truth = np.stack([seen.truth for seen in kept]).astype(np.intp)
        frames = len(truth)
        tenth = -(-frames // WINDOWS)
        scored = truth >= 0
        scored[: tenth + -(-delay // self._frames.every)] = False
        early = truth >= 0
        early[tenth:] = False
        picked = np.zeros_like(early)
        places = np.argwhere(early)
        chosen = np.random.default_rng(self._seed).permutation(len(places))[:labels_used]
        picked[tuple(places[chosen].T)] = True
        said = {
            "adapted": np.stack([seen.said for seen in kept]).astype(np.intp),
            "all_labels": self._fit(model, truth, truth >= 0).argmax(axis=2),
        }
        frozen = self._fit(model, truth, picked)
        said["frozen"] = frozen.argmax(axis=2)
        smoother = Smoother(*self._shape)
        smoother.around = self._around
        smooth = [smoother.step(p, seen.motion) for p, seen in zip(frozen, kept, strict=True)]
        said["smoothed"] = np.stack(smooth).argmax(axis=2)
        parts = np.array_split(np.arange(frames), WINDOWS)
        return Scores(
            accuracy={v: _accuracy(truth, said[v], scored) or 0.0 for v in VARIANTS},
            macro_f1={v: macro_f1(truth[scored], said[v][scored], len(model.classes)) for v in VARIANTS},
            windows={v: [_accuracy(truth[p], said[v][p], truth[p] >= 0) for p in parts] for v in VARIANTS},
            hits={v: _hits(truth, said[v]) for v in VARIANTS},
        )

    def _fit(self, model: Model, truth: NDArray[np.intp], picked: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Probabilities (frames, tiles, classes) of a head fitted on the picked tiles."""
        classes = len(model.classes)
        if len(np.unique(truth[picked])) < 2:
            return np.full((*truth.shape, classes), 1 / classes, np.float32)
        seen = self._frames.items
        weight, bias = self._head(seen, truth, picked, classes)
        fitted = model.with_tensors({"head.weight": weight, "head.bias": bias})
        return np.stack([softmax(head_logits(fitted, f.values())) for f in seen])

    def _head(
        self, seen: list[_Seen], truth: NDArray[np.intp], picked: NDArray[np.bool_], classes: int
    ) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """`fit_head` on the picked tiles; where they are many, the same sums over a few frames at a time."""
        numbers, f = truth[picked], seen[0].count
        if len(numbers) <= f:
            values = np.concatenate([f.values()[tiles] for f, tiles in zip(seen, picked, strict=True) if tiles.any()])
            return fit_head(values, numbers, np.ones(len(values)), classes, self._ridge)
        present, offset, root, residual = balanced(numbers, np.ones(len(numbers)), classes)
        left, right, done = self._ridge * np.eye(f), np.zeros((f, len(present))), 0
        for start in range(0, len(seen), FIT_FRAMES):
            part = slice(start, start + FIT_FRAMES)
            values = np.concatenate([f.values()[tiles] for f, tiles in zip(seen[part], picked[part], strict=True)])
            rows = slice(done, done + len(values))
            a = values.astype(np.float64) * (root[rows] / np.sqrt(f))
            left += a.T @ a
            right += a.T @ residual[rows]
            done = rows.stop
        solution = np.asarray(np.linalg.solve(left, right), np.float64)
        return on_grid(solution, present, offset, classes)


def _accuracy(truth: NDArray[np.intp], said: NDArray[np.intp], where: NDArray[np.bool_]) -> float | None:
    return float((truth[where] == said[where]).mean()) if where.any() else None


def _hits(truth: NDArray[np.intp], said: NDArray[np.intp]) -> list[tuple[int, int]]:
    right, known = (truth == said).sum(axis=1).tolist(), (truth >= 0).sum(axis=1).tolist()
    return list(zip(right, known, strict=True))


def macro_f1(truth: NDArray[np.intp], said: NDArray[np.intp], classes: int) -> float:
    """Mean over the classes that occur in the truth of 2 TP / (2 TP + FP + FN).

    >>> macro_f1(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), 3)
    0.7333333333333334
    """
    scores = []
    for c in range(classes):
        if (truth == c).any():
            hit = int(((truth == c) & (said == c)).sum())
            scores.append(2 * hit / (int((truth == c).sum()) + int((said == c).sum())))
    return float(np.mean(scores)) if scores else 0.0
