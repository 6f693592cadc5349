"""A made-up scene for the learner: what tiles show, as packed features, and labels for them."""

import msgspec
import numpy as np

from models.binarize import block_scales
from models.bits import pack_signs
from models.engine import Features
from models.model import Model
from onboard.config import Learning
from onboard.head import head_logits
from onboard.learner import GivenLabel, Learner, Observation, State, Update
from onboard.memory import Lesson
from tests.small_model import small_model

ROWS, COLS = 3, 4
TILES = ROWS * COLS
CLASSES = ("a", "b", "c")
BETA = 4
STILL = np.eye(3)
AHEAD = np.array([[1.0, 0, 1], [0, 1, 0], [0, 0, 1]])
"""Column c of this frame was column c + 1 of the last one."""
BASE = small_model(CLASSES, channels=16, beta_f=BETA).with_classes(CLASSES)


def learner_of(base: Model = BASE, **changed: object) -> Learner:
    """A learner with ridge 1, no judges and no pseudo-labels, but for what is given."""
    settings = msgspec.structs.replace(Learning(ridge=1.0, judges=0, pseudo=0.0), **changed)
    return Learner(base, settings, ROWS, COLS)


class Scene:
    """Features of tiles: a direction for each class plus noise, packed. Numbers frames, labels and positions."""

    def __init__(self, features: int = 64, seed: int = 0, noise: float = 1.0) -> None:
        self.random = np.random.default_rng(seed)
        self.directions = self.random.normal(0, 1, (len(CLASSES), features))
        self.noise = noise
        self.frame = -1
        self.position = 0

    def pack(self, classes) -> tuple[np.ndarray, np.ndarray]:
        z = self.directions[classes] + self.noise * self.random.normal(0, 1, (len(classes), self.directions.shape[1]))
        z = z.astype(np.float32)
        return pack_signs(z), block_scales(z, BETA).astype(np.float16)

    def observation(self, truth=None, motion=STILL, boot=1) -> Observation:
        self.frame += 1
        truth = self.random.integers(0, len(CLASSES), TILES) if truth is None else truth
        bits, scales = self.pack(truth)
        raw = None if motion is None else np.asarray(motion, np.float64).tobytes()
        return Observation(boot, self.frame, bits.tobytes(), scales.tobytes(), raw)

    def label(self, cls: int, answer: str | None = None, frame: int = -1, tile: int = 0, id: int = 0) -> GivenLabel:
        """A label of a tile of class `cls` that says `answer` (the truth)."""
        self.position += 1
        bits, scales = self.pack([cls])
        answer = CLASSES[cls] if answer is None else answer
        return GivenLabel(self.position, id or self.position, frame, tile, answer, bits.tobytes(), scales.tobytes())

    def label_seen(self, seen: Observation, tile: int, cls: int) -> GivenLabel:
        """The label of a tile of an observed frame, with the features it had there."""
        self.position += 1
        bits = np.frombuffer(seen.bits, np.uint8).reshape(TILES, -1)[tile].tobytes()
        scales = np.frombuffer(seen.scales, np.float16).reshape(TILES, -1)[tile].tobytes()
        return GivenLabel(self.position, self.position, seen.frame, tile, CLASSES[cls], bits, scales)

    def undo(self, label: GivenLabel) -> GivenLabel:
        self.position += 1
        return GivenLabel(self.position, label.id, -1, 0, "", b"", b"", undo=label.id)

    def some_labels(self, count: int) -> list[GivenLabel]:
        return [self.label(i % len(CLASSES)) for i in range(count)]


def take(learner: Learner, *labels: GivenLabel) -> Update | None:
    for given in labels:
        learner.label(given)
    return learner.step()


def lessons(learner: Learner) -> list[Lesson]:
    """What the learner holds, as its state on disk says."""
    return msgspec.msgpack.decode(learner.state(), type=State).lessons


def accuracy(model: Model, scene: Scene, count: int = 600) -> float:
    truth = scene.random.integers(0, len(CLASSES), count)
    bits, scales = scene.pack(truth)
    values = Features(bits, scales.astype(np.float32), scene.directions.shape[1], BETA).values()
    return float((head_logits(model, values).argmax(1) == truth).mean())
