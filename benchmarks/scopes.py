"""`python -m benchmarks scopes`: would it pay to learn more in flight than the head?

`scales`: block scales, per-channel scales, shifts and slopes of the last block, its signs as they are; `signs`: its
signs, too. After each EVERY labels the last block takes STEPS straight-through steps on the labelled tiles and their
turns, from what the frozen blocks made of them (latent replay); then every feature that the learner has is taken anew,
which costs a flight more than it could spend, and the head is solved again. The labels judge, each left out, and what
gets more of them wrong is taken back. tick_ms: one step; update_s: all of it; refused: updates taken back.
"""

import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.learning import SEEDS, gain
from benchmarks.streams import Backbone, Conditions, Recorded, Stream, fly, record, streams
from models.engine import Engine, Features
from models.network import HEAD_STEP
from models.ondevice.trainer import Frozen, OnDevice
from onboard.learner import HISTORY_FRAMES, GivenLabel, Learner, Observation
from onboard.turned import QUARTERS, turns

EVERY = 16
STEPS = 3
BATCH = 40


class Labelled(NamedTuple):
    """A label, its class, its tile and the turns of it, and what the frozen blocks made of these."""

    given: GivenLabel
    answer: int
    tiles: NDArray[np.uint8]
    frozen: Frozen


class Retrained(Backbone):
    """The base model, whose last block learns."""

    scope: Literal["scales", "signs"] = "scales"
    rate = 0.01

    def __init__(self, seen: Recorded, seed: int) -> None:
        super().__init__(seen, seed)
        self.steps_ms: list[float] = []
        self.updates_s: list[float] = []
        self.refused = 0
        self._engine = Engine(self.model)
        self._device = OnDevice(self.model, first=len(self.model.spec.blocks) - 1, scope=self.scope)
        self._labelled: list[Labelled] = []
        self._done = 0
        self._random = np.random.default_rng((seed, 2))

    def features(self, index: int) -> Features:
        """By the model as it is now."""
        return self._engine.features(self.lit(index))

    def samples(self, index: int, tile: int, bits: bytes, scales: bytes) -> tuple[bytes, bytes]:
        """By the model as it is now."""
        return self._engine.features(self._turns(index, tile)).packed()

    def _turns(self, index: int, tile: int) -> NDArray[np.uint8]:
        return turns(self.seen.tiles[index][tile], self.seen.light[index], (0, *QUARTERS))

    def learn(self, learner: Learner, index: int, arrived: list[GivenLabel]) -> Learner:
        """Train the last block where there are enough new labels, and take every feature anew."""
        for given in arrived:
            if given.answer:
                tiles = self._turns(given.frame, given.tile)
                answer = self.seen.classes.index(given.answer)
                self._labelled.append(Labelled(given, answer, tiles, self._device.frozen(tiles)))
        if len(self._labelled) - self._done < EVERY or len({one.answer for one in self._labelled}) < 2:
            return learner
        self._done, start = len(self._labelled), time.perf_counter()
        before = self._device.latent[-1].copy(), {name: x.copy() for name, x in self._device.small[-1].items()}
        self._train(learner)
        model = self._device.trained().with_classes(self.seen.classes)
        engine = Engine(model)
        fresh = self._anew(learner, engine, index)
        self.updates_s.append(time.perf_counter() - start)
        if self._right(fresh) < self._right(learner):
            self.refused += 1
            self._device.latent[-1], self._device.small[-1] = before
            return learner
        self.model, self._engine = model, engine
        return fresh

    def _train(self, learner: Learner) -> None:
        """Steps under the head in force, each class as often as the others."""
        device, tensors = self._device, learner.model.tensors
        device.head, device.bias = (
            tensors[f"head.{name}"].astype(np.float32) * np.float32(HEAD_STEP) for name in ("weight", "bias")
        )
        answers = np.array([one.answer for one in self._labelled])
        chance = 1 / np.bincount(answers)[answers]
        size = min(BATCH, len(answers))
        for _ in range(STEPS):
            picked = self._random.choice(len(answers), size, replace=False, p=chance / chance.sum())
            turns = self._random.integers(1 + len(QUARTERS), size=size)
            pairs = [(self._labelled[i].frozen, turn) for i, turn in zip(picked, turns, strict=True)]
            batch = Frozen(*(np.stack([part[turn] for part, turn in own]) for own in _columns(pairs)))
            start = time.perf_counter()
            device.step(batch, answers[picked], self.rate)
            self.steps_ms.append((time.perf_counter() - start) * 1e3)

    def _anew(self, learner: Learner, engine: Engine, index: int) -> Learner:
        """A learner of the same labels, over features of the engine's model."""
        seen = self.seen
        fresh = type(learner)(engine.model, learner._settings, seen.rows, seen.cols)
        for frame in range(max(0, index + 1 - HISTORY_FRAMES), index + 1):
            motion = seen.motion[frame]
            raw = None if motion is None else motion.tobytes()
            fresh.observe(Observation(1, frame, *engine.features(self.lit(frame)).packed(), raw))
        for given, _, tiles, _ in self._labelled:
            bits, scales = engine.features(tiles).packed()
            fresh.label(msgspec.structs.replace(given, bits=bits, scales=scales))
        fresh.position = learner.position
        fresh.step()
        return fresh

    def _right(self, learner: Learner) -> int:
        """Judges that a head says right which was fitted without them."""
        truth = {one.given.id: one.given.answer for one in self._labelled}
        return sum(said == truth.get(label) for label, said in learner._honest.items())


class Signs(Retrained):
    """Signs of the last block, too."""

    scope = "signs"
    rate = 0.001


def _columns(pairs: list[tuple[Frozen, int]]) -> list[list[tuple[NDArray[np.floating], int]]]:
    return [[(frozen[column], turn) for frozen, turn in pairs] for column in range(len(Frozen._fields))]


SCOPES: dict[str, type[Backbone]] = {"head": Backbone, "scales": Retrained, "signs": Signs}


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """A row for each stream and scope; `quick` flies two seeds of the first stream."""
    with streams() as found:
        chosen = found[:1] if quick else found
        return [row for stream in chosen for row in _of_stream(stream, 2 if quick else SEEDS, progress)]


def _of_stream(stream: Stream, seeds: int, progress: Callable[[str], None]) -> list[dict[str, object]]:
    seen = record(stream)
    table: list[dict[str, object]] = []
    head: list[float] = []
    for scope, kind in SCOPES.items():
        flown = []
        for seed in range(seeds):
            progress(f"{stream.name}, {scope}, seed {seed}")
            flown.append(fly(seen, seed, Conditions(delay=stream.options.label_delay, backbone=kind)))
        own = [flight.macro_f1 for flight in flown]
        head = head or own
        more, half = gain(list(zip(own, head, strict=True)))
        score: dict[str, object] = {
            "stream": stream.name,
            "scope": scope,
            "macro_f1": round(float(np.mean(own)), 4),
            "spread": round(float(np.std(own, ddof=1)), 4),
        }
        if learned := [flight.backbone for flight in flown if isinstance(flight.backbone, Retrained)]:
            score |= {
                "difference": f"{more:+.3f} +- {half:.3f}",
                "tick_ms": round(float(np.median([ms for backbone in learned for ms in backbone.steps_ms])), 1),
                "update_s": round(float(np.median([s for backbone in learned for s in backbone.updates_s])), 2),
                "updates": sum(len(backbone.updates_s) for backbone in learned),
                "refused": sum(backbone.refused for backbone in learned),
            }
        table.append(score)
    return table
