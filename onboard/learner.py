"""Learning in the air: a closed-form head over a replay memory, proposed to a gate. Knows no socket, file or clock.

Whenever labels arrived the head is solved anew from all that is remembered, so that a label that is taken back is
really gone and the same labels give the same head. A label counts for its tile, for the tile turned by quarters, and
for the tiles of other frames that show the same ground. Where it is asked for, the surest tiles of the last frames
count as well, for the class that they seem to be (pseudo-labels). The newest labels judge what came of it, each by what
a head would say that was fitted without it: every label is learned from, and none judges itself.
"""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from link.messages import MAX_ANSWERS, MAX_CLASS_CHARS
from models.errors import ArtifactError
from models.model import Model
from onboard.config import Learning
from onboard.head import fit_and_judge, head_logits
from onboard.memory import Lesson, Memory, Packing, joined, products, rounded
from onboard.tracks import Path, centres, overlaps

HISTORY_FRAMES = 64
MIN_OVERLAP = 0.5
NEIGHBOUR = 0.5
"""Weight of a tile that shows the same ground in another frame, for each whole overlap; the labelled tile has 1."""
PSEUDO_FRAMES = 12
PSEUDO_SHARE = 0.3
"""Of the tiles of the last frames that seem to be of a class, so many are taken for it: the threshold is each class's
own."""
PSEUDO_MAX = 48
GATE_P = 0.05
"""A candidate is refused when its losses before the judges are this unlikely by chance (one-sided sign test)."""
GATE_TOP_SHARE = 0.98
"""A candidate that calls this share of the recent tiles one class is refused if the model in force does not."""
STATE_VERSION = 2

Floats32 = NDArray[np.float32]
Ints = NDArray[np.intp]


class Observation(msgspec.Struct, frozen=True, array_like=True):
    """What the flight tells of one frame: packed features of its tiles, and the motion to the frame before.

    bits: uint8 (tiles, F/8); scales: float16 (tiles, F/beta_f); motion: float64 (3, 3) in grid units; as raw bytes.
    Frames count from 0 at every start of the flight process, which `boot` numbers.
    """

    boot: int
    frame: int
    bits: bytes
    scales: bytes
    motion: bytes | None


class GivenLabel(msgspec.Struct, frozen=True, array_like=True):
    """A label with the features of its tile: position in the label log, id, frame (-1: of another boot) and tile.

    bits and scales are of one sample or several: the tile as it was seen, then turned. `undo` is the id of a label that
    is taken back; then nothing else counts but the position. wrong: the tile is not of class `answer`. new: `answer`
    may be a class that the model does not know yet.
    """

    position: int
    id: int
    frame: int
    tile: int
    answer: str
    bits: bytes
    scales: bytes
    undo: int = 0
    wrong: bool = False
    new: bool = False


class Update(msgspec.Struct, frozen=True):
    """The outcome of a step: a model for the flight, or the candidate's refusal (model None)."""

    model: Model | None
    verdict: Literal["learned", "refused"]
    why: str
    labels: int


class State(msgspec.Struct, array_like=True, kw_only=True):
    """Everything a learner must not forget, as it is kept on disk. `model_hash` is that of the model it left.

    Frames are not in it, they are too large to write again and again: the flight has them, and gives them once more.
    """

    version: int
    base_hash: str
    model_hash: str
    boot: int
    position: int
    lessons: list[Lesson]
    honest: dict[int, str]
    changed: bool
    updates: int
    rollbacks: int
    classes: tuple[str, ...]
    head_weight: bytes
    head_bias: bytes


class Learner:
    """Learns the head of `model` from late labels. Deterministic: the same calls give the same models.

    Call `observe` once a frame, `label` for what arrived, then `step`. `model` is what the learner holds in force.
    """

    def __init__(self, model: Model, settings: Learning, rows: int, cols: int) -> None:
        self.model = model
        self.position = 0
        self.boot = 0
        self.frame = -1
        self.updates = 0
        self.rollbacks = 0
        self._base = model
        self._base_hash = model.with_classes(model.classes).hash
        self._settings = settings
        self._shape = (rows, cols)
        self._packing = Packing(model.spec)
        self._memory = Memory(self._packing, settings.memory)
        self._honest: dict[int, str] = {}
        self._path = Path(HISTORY_FRAMES)
        self._seen: dict[int, Observation] = {}
        self._recent: dict[int, Floats32] = {}
        self._changed = False

    # --- what arrives ------------------------------------------------------------------------------------------

    def observe(self, seen: Observation) -> None:
        """Remember a frame, for labels of its ground that arrive later. Raises ArtifactError for another grid or model.

        After `restore` the frames around labels that are still under way have to be observed once more.
        """
        tiles = self._shape[0] * self._shape[1]
        wanted = tiles * self._packing.bits_bytes, tiles * self._packing.scales_bytes
        if (len(seen.bits), len(seen.scales)) != wanted:
            raise ArtifactError(
                f"frame {seen.frame} has another grid or another model's features than the learner was started with; "
                "start the daemon anew after a change of its configuration"
            )
        if seen.boot != self.boot:
            self.boot, self._path, self._seen = seen.boot, Path(HISTORY_FRAMES), {}
        motion = None if seen.motion is None else np.frombuffer(seen.motion).reshape(3, 3)
        self._path.add(seen.frame, motion)
        self._seen[seen.frame] = seen
        self.frame = seen.frame
        for old in self._seen.keys() - set(self._path.frames()):
            del self._seen[old]

    def label(self, given: GivenLabel) -> None:
        """Take a label, an "I don't know" (""), or an undo. A label that was taken already changes nothing.

        So does one of an unknown class that is not said to be new, and one whose features are not finite or another
        model's.
        """
        if given.position <= self.position:
            return
        self.position = given.position
        if given.undo:
            self._changed = self._memory.remove(given.undo) or self._changed
            self._honest.pop(given.undo, None)
        elif self._names(given) and self._packing.samples(given.bits, given.scales):
            lesson = self._lesson(given)
            self._memory.add(lesson)
            if self.updates and not given.wrong:
                said = head_logits(self.model, self._memory.row(lesson)[None]).argmax()
                self._honest[given.id] = self.model.classes[said]
            self._changed = True

    def _names(self, given: GivenLabel) -> bool:
        """Whether the answer names a class, a known one or one that may be added."""
        classes = self._classes()
        if given.answer in classes:
            return True
        name = given.answer
        proper = name.isprintable() and name == name.strip() and 0 < len(name) <= MAX_CLASS_CHARS
        return given.new and not given.wrong and proper and len(classes) < MAX_ANSWERS

    def _classes(self) -> tuple[str, ...]:
        """The base's classes, then the new ones that labels name, in the order of those labels."""
        named = {lesson.answer: None for lesson in self._memory.lessons if not lesson.wrong}
        return tuple(dict.fromkeys((*self._base.classes, *named)))

    def _lesson(self, given: GivenLabel) -> Lesson:
        """The tile's own samples, which weigh 1 together, and those of the same ground in the frames around it."""
        own = self._packing.samples(given.bits, given.scales)
        near = self._near(given)
        total = sum(weight for _, _, weight in near)
        part = min(1.0, self._settings.propagate / total) if total else 0.0
        bits, scales = joined([(given.bits, given.scales), *((b, s) for b, s, _ in near)])
        # rounded: the last digits depend on which frame the chain of motions is counted from
        weights = (*[1 / own] * own, *(round(part * weight, 6) for _, _, weight in near))
        return Lesson(given.id, given.answer, given.wrong, bits, scales, weights)

    def _near(self, given: GivenLabel) -> list[tuple[bytes, bytes, float]]:
        rows, cols = self._shape
        bits_bytes, scales_bytes = self._packing.bits_bytes, self._packing.scales_bytes
        found = []
        for frame, seen in self._seen.items():
            near = 0 < abs(frame - given.frame) <= self._settings.reach_frames and given.frame >= 0
            motion = self._path.motion(given.frame, frame) if near and self._settings.propagate else None
            if motion is None:
                continue
            share = overlaps((centres(rows, cols)[given.tile] @ motion.T)[None], rows, cols)[0]
            tile = int(share.argmax())
            bits, scales = (
                seen.bits[tile * bits_bytes :][:bits_bytes],
                seen.scales[tile * scales_bytes :][:scales_bytes],
            )
            if share[tile] > MIN_OVERLAP and self._packing.samples(bits, scales):
                found.append((bits, scales, round(NEIGHBOUR * float(share[tile]), 6)))
        return found

    # --- learning ----------------------------------------------------------------------------------------------

    def step(self) -> Update | None:
        """Fit a candidate if labels came or went since the last step; the gate decides. None: nothing to do."""
        if not self._changed:
            return None
        self._changed = False
        lessons = self._memory.chosen()
        honest: dict[int, str] = {}
        try:
            if len({lesson.answer for lesson in lessons}) < 2 and not any(lesson.wrong for lesson in lessons):
                candidate, why = self._base, ""  # nothing to tell apart, not yet or, after an undo, no longer
            else:
                recent = np.concatenate(self._last_values())
                candidate, honest = self._candidate(lessons, recent)
                why = self._gate(candidate, honest, recent)
        except (ArtifactError, np.linalg.LinAlgError) as error:
            why = str(error)
        if why:
            self.rollbacks += 1
            return Update(None, "refused", why, len(lessons))
        self._honest = honest
        if candidate.hash == self.model.hash:
            return None
        self.model = candidate
        self.updates += 1
        return Update(candidate, "learned", f"{len(lessons)} labels", len(lessons))

    def _candidate(self, lessons: list[Lesson], recent: Floats32) -> tuple[Model, dict[int, str]]:
        """A model from lessons, newest first, and what it says of the judges, each left out: class by label.

        recent: rows (m, F) of the tiles of the last frames.

        First from the labels alone; then with pseudo-labels, where there are any and the judges do not lose by them.
        """
        classes = self._classes()
        lessons = sorted(lessons, key=lambda lesson: lesson.wrong)  # judges come first, and must be sure themselves
        rows, gram = self._memory.rows(lessons)
        numbers = np.array([classes.index(lesson.answer) for lesson in lessons], np.intp)
        denied = np.array([lesson.wrong for lesson in lessons])
        n, judges = len(lessons), min(self._settings.judges, int((~denied).sum()))
        chosen, said = self._fit(rows, gram, numbers, denied, np.ones(n), judges, classes)
        values, guesses = self._pseudo(chosen, recent)
        if len(values):
            across, within = products(rows, values), products(values, values)
            pseudo, with_pseudo = self._fit(
                np.concatenate([rows, values]),
                np.block([[gram, across], [across.T, within]]),
                np.concatenate([numbers, guesses]),
                np.concatenate([denied, np.zeros(len(values), np.bool_)]),
                np.concatenate([np.ones(n), np.full(len(values), self._settings.pseudo * n / len(values))]),
                judges,
                classes,
            )
            right, before = with_pseudo == numbers[:judges], said == numbers[:judges]
            if (right & ~before).sum() >= (before & ~right).sum():
                chosen, said = pseudo, with_pseudo
        return chosen, {lesson.label: classes[c] for lesson, c in zip(lessons, said, strict=False)}

    def _fit(
        self,
        rows: Floats32,
        gram: NDArray[np.float64],
        numbers: Ints,
        denied: NDArray[np.bool_],
        weights: NDArray[np.float64],
        judges: int,
        classes: tuple[str, ...],
    ) -> tuple[Model, Ints]:
        """`fit_and_judge`, its head in a model."""
        ridge = self._settings.ridge
        weight, bias, said = fit_and_judge(rows, gram, numbers, denied, weights, len(classes), ridge, judges)
        return self._base.with_tensors({"head.weight": weight, "head.bias": bias}, classes), said

    def _pseudo(self, model: Model, values: Floats32) -> tuple[Floats32, Ints]:
        """The surest of these rows (n, F): rows (m, F), and their classes (m,)."""
        if not self._settings.pseudo or not len(values):
            return values[:0], np.zeros(0, np.intp)
        logits = head_logits(model, values)
        ranked = np.sort(logits, axis=1)
        margin, said = ranked[:, -1] - ranked[:, -2], logits.argmax(axis=1)
        share = min(PSEUDO_SHARE, PSEUDO_MAX / len(values))
        taken = []
        for cls in range(len(model.classes)):
            own = np.flatnonzero(said == cls)
            taken.append(own[np.argsort(-margin[own], kind="stable")[: int(share * len(own))]])
        sure = np.concatenate(taken)
        return values[sure], said[sure]

    def _last_values(self) -> list[Floats32]:
        """Rows of the tiles of the last frames, (tiles, F) each; those that are not finite are left out."""
        frames = list(self._seen)[-PSEUDO_FRAMES:]
        for frame in frames:
            if frame not in self._recent:
                values = rounded(self._packing.values(self._seen[frame].bits, self._seen[frame].scales))
                self._recent[frame] = values[np.isfinite(values).all(axis=1)]
        self._recent = {frame: self._recent[frame] for frame in frames}
        return [np.zeros((0, self.model.spec.feature_count), np.float32), *self._recent.values()]

    def _gate(self, candidate: Model, honest: dict[int, str], recent: Floats32) -> str:
        """Why the candidate must not fly, or "" if it may."""
        truth = {lesson.label: lesson.answer for lesson in self._memory.lessons}
        both = [(said, self._honest[label], truth[label]) for label, said in honest.items() if label in self._honest]
        gains = sum(now == right != then for now, then, right in both)
        losses = sum(then == right != now for now, then, right in both)
        if losses > gains and sign_test(gains, losses) < GATE_P:
            return f"worse before the judges: {losses} lost, {gains} gained of {len(both)}"
        if len(recent) and len(self.model.classes) > 1 and self.updates:
            said = [head_logits(m, recent).argmax(1) for m in (candidate, self.model)]
            top = [np.bincount(classes).max() / len(recent) for classes in said]
            if top[0] > GATE_TOP_SHARE >= top[1]:
                return f"calls {top[0]:.0%} of the last tiles one class"
        return ""

    # --- state -------------------------------------------------------------------------------------------------

    def state(self) -> bytes:
        """Everything to go on from, as MessagePack."""
        return msgspec.msgpack.encode(
            State(
                version=STATE_VERSION,
                base_hash=self._base_hash,
                model_hash=self.model.hash,
                boot=self.boot,
                position=self.position,
                lessons=self._memory.lessons,
                honest=self._honest,
                changed=self._changed,
                updates=self.updates,
                rollbacks=self.rollbacks,
                classes=self.model.classes,
                head_weight=self.model.tensors["head.weight"].tobytes(),
                head_bias=self.model.tensors["head.bias"].tobytes(),
            )
        )

    def restore(self, data: bytes) -> None:
        """Go on from `state`. Raises ArtifactError, unchanged, when it is damaged or of another model."""
        try:
            state = msgspec.msgpack.decode(data, type=State)
            if state.version != STATE_VERSION or state.base_hash != self._base_hash:
                raise ValueError("it belongs to another model or version")
            head = {
                "head.weight": np.frombuffer(state.head_weight, np.int16).reshape(len(state.classes), -1),
                "head.bias": np.frombuffer(state.head_bias, np.int16),
            }
            model = self._base.with_tensors(head, state.classes)
            if model.hash != state.model_hash or not all(map(self._sound, state.lessons)):
                raise ValueError("it contradicts itself")
        except (msgspec.MsgspecError, ValueError, ArtifactError) as error:
            raise ArtifactError(f"the learner's state cannot be used: {error}; it starts anew") from error
        self.model, self.boot, self.position = model, state.boot, state.position
        self.frame, self._path, self._seen, self._recent = -1, Path(HISTORY_FRAMES), {}, {}
        self._memory = Memory(self._packing, self._settings.memory)
        self._memory.lessons = state.lessons
        self._honest, self._changed = state.honest, state.changed
        self.updates, self.rollbacks = state.updates, state.rollbacks

    def _sound(self, lesson: Lesson) -> bool:
        samples = self._packing.samples(lesson.bits, lesson.scales)
        return samples == len(lesson.weights) > 0 and all(0 < weight <= 1 for weight in lesson.weights)


def sign_test(gains: int, losses: int) -> float:
    """Chance of at most `gains` heads in gains + losses fair throws.

    >>> sign_test(0, 5)
    0.03125
    """
    n = gains + losses
    row = 1
    total = 0
    for k in range(gains + 1):
        total += row
        row = row * (n - k) // (k + 1)
    return float(total / 2**n)
