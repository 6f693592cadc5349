"""Learning in the air: a closed-form head over a replay memory, proposed to a gate. Knows no socket, file or clock.

The head is a class-balanced ridge regression onto +-1 targets, solved exactly whenever labels arrived, so that a
label that is taken back is really gone and the same labels give the same head. A label counts for its tile and, with
less weight, for the tiles of other frames that show the same ground. The memory keeps binary features and their
block scales. One label in five goes to the holdout first: it judges candidates before it is learned from.

What is fitted and who judges follow from the labels that are there, in their order, and from nothing else.
"""

import zlib
from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.bits import unpack_signs
from models.errors import ArtifactError
from models.model import Model
from models.network import HEAD_STEP
from onboard.config import Learning
from onboard.tracks import Path, centres, overlaps

HISTORY_FRAMES = 64
TEMPERATURE = 3.0
"""Sharpness of the probabilities: logits are this times the regression's outputs, which lie around -1..1."""
HOLDOUT_EVERY = 5
HOLDOUT_AFTER = 8
"""So many labels of a class are learned from before one is held out: early ones are worth too much to wait."""
MIN_OVERLAP = 0.5
RESERVE = 256
"""Samples of each class kept beyond those that are fitted: an undo gives their place back to them."""
GATE_P = 0.05
"""A candidate is refused when its losses on the holdout are this unlikely by chance (one-sided sign test)."""
GATE_TOP_SHARE = 0.98
"""A candidate that calls this share of the recent tiles one class is refused if the model in force does not."""
STATE_VERSION = 1


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

    `undo` is the id of a label that is taken back; then nothing else counts but the position.
    """

    position: int
    id: int
    frame: int
    tile: int
    answer: str
    bits: bytes
    scales: bytes
    undo: int = 0


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One entry of the replay memory: whose label, which class, how much it counts, and the packed features.

    own: it is the labelled tile itself, not a neighbour. judge: its label is one of the fifth that judge first.
    """

    label: int
    cls: int
    weight: float
    bits: bytes
    scales: bytes
    own: bool
    judge: bool


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
    samples: list[Sample]
    changed: bool
    updates: int
    rollbacks: int
    head_weight: bytes
    head_bias: bytes


def fit_head(
    features: NDArray[np.float32], classes: NDArray[np.intp], weights: NDArray[np.float64], count: int, ridge: float
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The head on its grid: int16 (count, F) and (count,), from features (n, F), classes (n,) and weights (n,).

    Solves min over W of sum_i w_i |W x_i / sqrt(F) + b - y_i|^2 + ridge |W|^2, in the samples' space when they are
    fewer than the features; y = +1 for the class and -1 for the others, b is the weighted mean of y. Weights of a class
    are divided by the root of their sum, half way between counting samples and counting classes, and then by their
    mean over all samples. A class without samples gets a bias below all others.
    Raises ArtifactError when the solution is not finite or leaves the grid.
    """
    n, f = features.shape
    present, offset, root, residual = balanced(classes, weights, count)
    a = features.astype(np.float64) * (root / np.sqrt(f))
    if n <= f:
        solution = a.T @ np.linalg.solve(a @ a.T + ridge * np.eye(n), residual)
    else:
        solution = np.linalg.solve(a.T @ a + ridge * np.eye(f), a.T @ residual)
    return on_grid(solution, present, offset, count)


def balanced(
    classes: NDArray[np.intp], weights: NDArray[np.float64], count: int
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The right side of `fit_head`: classes that are there (p,), their bias (p,), the roots of the balanced weights
    (n, 1), and the targets less the bias, times those roots (n, p)."""
    present = np.unique(classes)
    total = np.bincount(classes, weights, count)
    w = weights / np.sqrt(total[classes])
    w /= w.mean()
    targets = np.where(classes[:, None] == present, 1.0, -1.0)
    offset = w @ targets / w.sum()
    root = np.sqrt(w)[:, None]
    return present, offset, root, (targets - offset) * root


def on_grid(
    solution: NDArray[np.float64], present: NDArray[np.intp], offset: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The head that `fit_head` returns, from its solution (F, p). Raises ArtifactError as it does."""
    f = len(solution)
    weight = np.zeros((count, f))
    bias = np.full(count, -4.0)
    weight[present] = solution.T / np.sqrt(f)
    bias[present] = offset
    grid = np.round(np.column_stack([weight, bias]) * (TEMPERATURE / HEAD_STEP))
    if not np.isfinite(grid).all() or np.abs(grid).max() > np.iinfo(np.int16).max:
        raise ArtifactError("the head's weights left their grid")
    return grid[:, :-1].astype(np.int16), grid[:, -1].astype(np.int16)


def head_logits(model: Model, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (n, classes) of the model's head on feature values (n, F)."""
    weight = model.tensors["head.weight"].astype(np.float32)
    out: NDArray[np.float32] = (values @ weight.T + model.tensors["head.bias"].astype(np.float32)) * HEAD_STEP
    return out


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
        features, beta = model.spec.feature_count, model.spec.beta_f
        self._bits_bytes = -(-features // 8)
        self._scales_bytes = 2 * -(-features // (beta or features))
        self._path = Path(HISTORY_FRAMES)
        self._seen: dict[int, Observation] = {}
        self._samples: list[Sample] = []
        self._changed = False

    # --- what arrives ------------------------------------------------------------------------------------------

    def observe(self, seen: Observation) -> None:
        """Remember a frame, for labels of its ground that arrive later. Raises ArtifactError for another grid or model.

        After `restore` the frames around labels that are still under way have to be observed once more.
        """
        tiles = self._shape[0] * self._shape[1]
        if len(seen.bits) != tiles * self._bits_bytes or len(seen.scales) != tiles * self._scales_bytes:
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

        So does one of an unknown class, and one whose features are not finite or another model's.
        """
        if given.position <= self.position:
            return
        self.position = given.position
        if given.undo:
            left = [s for s in self._samples if s.label != given.undo]
            self._changed = self._changed or len(left) != len(self._samples)
            self._samples = left
        elif given.answer in self.model.classes and self._usable(given.bits, given.scales):
            cls = self.model.classes.index(given.answer)
            self._samples += self._with_neighbours(given, cls)
            self._evict(cls)
            self._changed = True

    def _usable(self, bits: bytes, scales: bytes) -> bool:
        whole = len(bits) == self._bits_bytes and len(scales) == self._scales_bytes
        return whole and bool(np.isfinite(np.frombuffer(scales, np.float16)).all())

    def _with_neighbours(self, given: GivenLabel, cls: int) -> list[Sample]:
        """The label's own sample first, then those of the same ground in the frames around it."""
        # by content: whether a label judges must not depend on the labels before it, which may be taken back
        judge = zlib.crc32(given.bits + given.scales) % HOLDOUT_EVERY == 0
        group = [Sample(given.id, cls, 1.0, given.bits, given.scales, True, judge)]
        rows, cols = self._shape
        settings = self._settings
        for frame, seen in self._seen.items():
            near = 0 < abs(frame - given.frame) <= settings.reach_frames and given.frame >= 0
            motion = self._path.motion(given.frame, frame) if near and settings.propagate else None
            if motion is None:
                continue
            share = overlaps((centres(rows, cols)[given.tile] @ motion.T)[None], rows, cols)[0]
            tile = int(share.argmax())
            bits = seen.bits[tile * self._bits_bytes :][: self._bits_bytes]
            scales = seen.scales[tile * self._scales_bytes :][: self._scales_bytes]
            if share[tile] > MIN_OVERLAP and self._usable(bits, scales):
                # rounded: the last digits depend on which frame the chain of motions is counted from
                weight = round(settings.propagate * float(share[tile]), 6)
                group.append(Sample(given.id, cls, weight, bits, scales, False, judge))
        return group

    def _evict(self, cls: int) -> None:
        """Bound the class: neighbours go before labels, old before new."""
        ranked = sorted((s for s in self._samples if s.cls == cls), key=lambda s: s.own)
        if surplus := {id(s) for s in ranked[: -self._settings.per_class - RESERVE]}:
            self._samples = [s for s in self._samples if id(s) not in surplus]

    def _split(self) -> tuple[list[Sample], list[Sample]]:
        """What is fitted, and the judges: of the labels that judge first the newest; they are not learned from yet."""
        holdout = self._settings.holdout
        known = [0] * len(self.model.classes)
        judges = []
        for sample in (s for s in self._samples if s.own):
            if sample.judge and known[sample.cls] >= HOLDOUT_AFTER:
                judges.append(sample)
            known[sample.cls] += 1
        judges = judges[-holdout:] if holdout else []
        waiting = {s.label for s in judges}
        memory = []
        for cls in range(len(self.model.classes)):
            there = [s for s in self._samples if s.cls == cls and s.label not in waiting]
            memory += sorted(there, key=lambda s: s.own)[-self._settings.per_class :]
        return memory, judges

    # --- learning ----------------------------------------------------------------------------------------------

    def step(self) -> Update | None:
        """Fit a candidate if labels came or went since the last step; the gate decides. None: nothing to do."""
        if not self._changed:
            return None
        self._changed = False
        memory, judges = self._split()
        labels = len({s.label for s in memory})
        try:
            if len({s.cls for s in memory}) < 2:
                candidate, why = self._base, ""  # nothing to tell apart, not yet or, after an undo, no longer
            else:
                candidate = self._candidate(memory)
                why = self._gate(candidate, judges)
        except (ArtifactError, np.linalg.LinAlgError) as error:
            why = str(error)
        if why:
            self.rollbacks += 1
            return Update(None, "refused", why, labels)
        if candidate.hash == self.model.hash:
            return None
        self.model = candidate
        self.updates += 1
        return Update(candidate, "learned", f"{labels} labels, {len(memory)} samples", labels)

    def _values(self, bits: Iterable[bytes], scales: Iterable[bytes]) -> NDArray[np.float32]:
        """As `models.engine.Features.values`, which would bring the kernels' compiler into the learner's process."""
        spec = self.model.spec
        count = spec.feature_count
        b = np.frombuffer(b"".join(bits), np.uint8).reshape(-1, self._bits_bytes)
        s = np.frombuffer(b"".join(scales), np.float16).astype(np.float32).reshape(len(b), -1)
        return unpack_signs(b, count) * np.repeat(s, spec.beta_f or count, axis=1)[:, :count]

    def _candidate(self, memory: list[Sample]) -> Model:
        values = self._values((s.bits for s in memory), (s.scales for s in memory))
        classes = np.array([s.cls for s in memory], np.intp)
        weights = np.array([s.weight for s in memory])
        weight, bias = fit_head(values, classes, weights, len(self.model.classes), self._settings.ridge)
        return self.model.with_tensors({"head.weight": weight, "head.bias": bias})

    def _gate(self, candidate: Model, judges: list[Sample]) -> str:
        """Why the candidate must not fly, or "" if it may."""
        if judges:
            values = self._values((s.bits for s in judges), (s.scales for s in judges))
            truth = np.array([s.cls for s in judges])
            now, then = (head_logits(m, values).argmax(1) == truth for m in (candidate, self.model))
            gains, losses = int((now & ~then).sum()), int((then & ~now).sum())
            if losses > gains and sign_test(gains, losses) < GATE_P:
                return f"worse on the holdout: {losses} lost, {gains} gained of {len(judges)}"
        if self._seen and len(self.model.classes) > 1 and self.updates:
            recent = list(self._seen.values())[-8:]
            values = self._values((o.bits for o in recent), (o.scales for o in recent))
            values = values[np.isfinite(values).all(axis=1)]
            said = [head_logits(m, values).argmax(1) for m in (candidate, self.model)]
            top = [np.bincount(classes).max(initial=0) / max(1, len(values)) for classes in said]
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
                samples=self._samples,
                changed=self._changed,
                updates=self.updates,
                rollbacks=self.rollbacks,
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
            classes = len(self.model.classes)
            head = {
                "head.weight": np.frombuffer(state.head_weight, np.int16).reshape(classes, -1),
                "head.bias": np.frombuffer(state.head_bias, np.int16),
            }
            model = self._base.with_tensors(head)
            sound = all(
                0 <= s.cls < classes and 0 < s.weight <= 1 and self._usable(s.bits, s.scales) for s in state.samples
            )
            if model.hash != state.model_hash or not sound:
                raise ValueError("it contradicts itself")
        except (msgspec.MsgspecError, ValueError, ArtifactError) as error:
            raise ArtifactError(f"the learner's state cannot be used: {error}; it starts anew") from error
        self.model, self.boot, self.position = model, state.boot, state.position
        self.frame, self._path, self._seen = -1, Path(HISTORY_FRAMES), {}
        self._samples, self._changed = state.samples, state.changed
        self.updates, self.rollbacks = state.updates, state.rollbacks


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
