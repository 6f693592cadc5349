"""Scores of a replay: every variant on the same tiles, those after the first tenth of the flight plus the delay.

adapted      what the flight said at the time, before it could know the label (prequential)
frozen       a head fitted on as many labels as the learner used, all from the first tenth, then left alone
smoothed     `frozen` with the flight's output smoothing
all_labels   a head fitted on every label at once: the ceiling of these features
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.model import Model
from onboard.flight import Step, softmax
from onboard.frame import Frame
from onboard.learner import fit_head, head_logits
from onboard.tracks import Smoother
from onboard.truth import UNKNOWN, Truth

VARIANTS = ("adapted", "smoothed", "frozen", "all_labels")
WINDOWS = 10
RECENT_FRAMES = 10

Floats = NDArray[np.float64]


class Scores(msgspec.Struct, frozen=True):
    """accuracy and macro F1 of each variant, its accuracy in each tenth of the flight (None: nothing to score), and per
    frame how many tiles it got right of how many with truth.
    """

    accuracy: dict[str, float]
    macro_f1: dict[str, float]
    windows: dict[str, list[float | None]]
    hits: dict[str, list[tuple[int, int]]]


class Scorer:
    """Collects what a flight said and saw; `scores` at the end. Keeps packed features of tiles with truth."""

    def __init__(self, truth: Truth, rows: int, cols: int, ridge: float, seed: int) -> None:
        self._truth = truth
        self._shape = (rows, cols)
        self._ridge = ridge
        self._seed = seed
        self._steps: list[tuple[Step, NDArray[np.intp]]] = []

    def see(self, frame: Frame, step: Step) -> None:
        """Take one frame."""
        rows, cols = self._shape
        grid = self._truth.grid(frame)
        numbers = np.full(rows * cols, UNKNOWN, np.intp) if grid is None else grid.ravel().astype(np.intp)
        # the image itself is not kept: a flight of hours has to fit in memory
        result = msgspec.structs.replace(step.result, frame=msgspec.structs.replace(frame, image=_NO_IMAGE))
        self._steps.append((msgspec.structs.replace(step, result=result, asked=()), numbers))

    def recently(self) -> float:
        """Share of tiles that the flight got right in the last frames."""
        last = self._steps[-RECENT_FRAMES:]
        truth = np.stack([numbers for _, numbers in last])
        said = np.stack([step.result.classes for step, _ in last])
        return _accuracy(truth, said.astype(np.intp), truth >= 0) or 0.0

    def scores(self, model: Model, labels_used: int, delay: int) -> Scores:
        """Score all variants. `model` gives network and classes; `labels_used` is how many `frozen` gets."""
        truth = np.stack([numbers for _, numbers in self._steps])
        frames = len(truth)
        tenth = -(-frames // WINDOWS)
        scored = truth >= 0
        scored[: tenth + delay] = False
        early = truth >= 0
        early[tenth:] = False
        picked = np.zeros_like(early)
        places = np.argwhere(early)
        chosen = np.random.default_rng(self._seed).permutation(len(places))[:labels_used]
        picked[tuple(places[chosen].T)] = True
        said = {
            "adapted": np.stack([step.result.classes for step, _ in self._steps]).astype(np.intp),
            "all_labels": self._fit(model, truth, truth >= 0).argmax(axis=2),
        }
        frozen = self._fit(model, truth, picked)
        said["frozen"] = frozen.argmax(axis=2)
        smoother = Smoother(*self._shape)
        smooth = [smoother.step(p, step.motion) for p, (step, _) in zip(frozen, self._steps, strict=True)]
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
        seen = [step.features for step, _ in self._steps]  # unpacked frame by frame: 32 times larger as floats
        values = np.concatenate([f.values()[tiles] for f, tiles in zip(seen, picked, strict=True) if tiles.any()])
        weight, bias = fit_head(values, truth[picked], np.ones(len(values)), classes, self._ridge)
        fitted = model.with_tensors({"head.weight": weight, "head.bias": bias})
        return np.stack([softmax(head_logits(fitted, f.values())) for f in seen])


_NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


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
