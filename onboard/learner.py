"""Learning in the air: a closed-form head over a replay memory, proposed to a gate. Knows no socket, file or clock.

The head is a class-balanced ridge regression onto +-1 targets, solved exactly whenever labels arrived, so that a
label that is taken back is really gone and the same labels give the same head. A label counts for its tile and, with
less weight, for the tiles of other frames that show the same ground. The memory keeps binary features and their
block scales. One ground patch in five goes to the holdout first: it judges candidates before it is learned from.
"""

from collections import deque
from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.engine import Features
from models.errors import ArtifactError
from models.model import Model
from models.network import HEAD_STEP
from onboard.config import Learning
from onboard.tracks import Path, centres, overlaps

HISTORY_FRAMES = 64
TEMPERATURE = 3.0
"""Sharpness of the probabilities: logits are this times the regression's outputs, which lie around -1..1."""
HOLDOUT_SHARE = 0.2
HOLDOUT_AFTER = 24
"""So many patches are learned from before the first one is held out: early labels are worth too much to wait."""
MIN_OVERLAP = 0.5
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


class Sample(msgspec.Struct, array_like=True):
    """One entry of the replay memory: whose label, which class, how much it counts, and the packed features."""

    label: int
    cls: int
    weight: float
    bits: bytes
    scales: bytes


class Update(msgspec.Struct, frozen=True):
    """The outcome of a step: a model for the flight, or the candidate's refusal (model None)."""

    model: Model | None
    verdict: Literal["learned", "refused"]
    why: str
    labels: int


class State(msgspec.Struct, array_like=True, kw_only=True):
    """Everything a learner must not forget, as it is kept on disk. `model_hash` is that of the model it left."""

    version: int
    base_hash: str
    model_hash: str
    boot: int
    frame: int
    position: int
    memory: list[Sample]
    holdout: list[list[Sample]]
    patches: int
    updates: int
    rollbacks: int
    head_weight: bytes
    head_bias: bytes


def fit_head(
    features: NDArray[np.float32], classes: NDArray[np.intp], weights: NDArray[np.float64], count: int, ridge: float
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The head on its grid: int16 (count, F) and (count,), from features (n, F), classes (n,) and weights (n,).

    Solves min sum_i w_i |W x_i + b - y_i|^2 + ridge |W|^2 in the samples' space when they are fewer than the
    features, y = +1 for the class and -1 for the others. Weights of a class are divided by the root of their sum, half
    way between counting samples and counting classes. A class without samples gets a bias below all others.
    Raises ArtifactError when the solution is not finite or leaves the grid.
    """
    n, f = features.shape
    present = np.unique(classes)
    total = np.bincount(classes, weights, count)
    w = weights / np.sqrt(total[classes])
    w /= w.mean()
    targets = np.where(classes[:, None] == present, 1.0, -1.0)
    offset = w @ targets / w.sum()
    root = np.sqrt(w)[:, None]
    a = features.astype(np.float64) * (root / np.sqrt(f))
    residual = (targets - offset) * root
    if n <= f:
        solution = a.T @ np.linalg.solve(a @ a.T + ridge * np.eye(n), residual)
    else:
        solution = np.linalg.solve(a.T @ a + ridge * np.eye(f), a.T @ residual)
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
        self._base_hash = model.with_classes(model.classes).hash
        self._settings = settings
        self._shape = (rows, cols)
        self._features = model.spec.feature_count
        self._beta = model.spec.beta_f
        self._path = Path(HISTORY_FRAMES)
        self._seen: dict[int, Observation] = {}
        self._memory: list[Sample] = []
        self._holdout: deque[list[Sample]] = deque()
        self._patches = 0
        self._changed = False

    # --- what arrives ------------------------------------------------------------------------------------------

    def observe(self, seen: Observation) -> None:
        """Remember a frame, for labels of its ground that arrive later."""
        if seen.boot != self.boot:
            self.boot, self._path, self._seen = seen.boot, Path(HISTORY_FRAMES), {}
        motion = None if seen.motion is None else np.frombuffer(seen.motion).reshape(3, 3)
        self._path.add(seen.frame, motion)
        self._seen[seen.frame] = seen
        self.frame = seen.frame
        for old in self._seen.keys() - set(self._path.frames()):
            del self._seen[old]

    def label(self, given: GivenLabel) -> None:
        """Take a label, an "I don't know" (""), or an undo. A label that was taken already changes nothing."""
        if given.position <= self.position:
            return
        self.position = given.position
        if given.undo:
            self._forget(given.undo)
        elif given.answer in self.model.classes:
            group = self._with_neighbours(given, self.model.classes.index(given.answer))
            self._patches += 1
            judges = self._patches > HOLDOUT_AFTER and self._patches % round(1 / HOLDOUT_SHARE) == 0
            if self._settings.holdout and judges:
                self._holdout.append(group)
                if len(self._holdout) > self._settings.holdout:
                    self._learn(self._holdout.popleft())
            else:
                self._learn(group)

    def _with_neighbours(self, given: GivenLabel, cls: int) -> list[Sample]:
        """The label's own sample first, then those of the same ground in the frames around it."""
        group = [Sample(given.id, cls, 1.0, given.bits, given.scales)]
        rows, cols = self._shape
        settings = self._settings
        for frame, seen in self._seen.items():
            near = 0 < abs(frame - given.frame) <= settings.reach_frames and given.frame >= 0
            motion = self._path.motion(given.frame, frame) if near and settings.propagate else None
            if motion is None:
                continue
            share = overlaps((centres(rows, cols)[given.tile] @ motion.T)[None], rows, cols)[0]
            tile = int(share.argmax())
            if share[tile] > MIN_OVERLAP:
                bits = np.frombuffer(seen.bits, np.uint8).reshape(rows * cols, -1)[tile]
                scales = np.frombuffer(seen.scales, np.float16).reshape(rows * cols, -1)[tile]
                weight = settings.propagate * float(share[tile])
                group.append(Sample(given.id, cls, weight, bits.tobytes(), scales.tobytes()))
        return group

    def _learn(self, group: list[Sample]) -> None:
        self._memory += group
        cls = group[0].cls
        same = [s for s in self._memory if s.cls == cls]
        if len(same) > self._settings.per_class:  # neighbours go before labels, old before new
            keep = sorted(range(len(same)), key=lambda i: (same[i].weight == 1.0, i))[-self._settings.per_class :]
            kept = [same[i] for i in sorted(keep)]
            self._memory = [s for s in self._memory if s.cls != cls] + kept
        self._changed = True

    def _forget(self, label: int) -> None:
        before = len(self._memory) + len(self._holdout)
        self._memory = [s for s in self._memory if s.label != label]
        self._holdout = deque(group for group in self._holdout if group[0].label != label)
        self._changed = self._changed or before != len(self._memory) + len(self._holdout)

    # --- learning ----------------------------------------------------------------------------------------------

    def step(self) -> Update | None:
        """Fit a candidate if labels arrived since the last step, and let the gate decide. None: nothing to do."""
        if not self._changed:
            return None
        self._changed = False
        if len({s.cls for s in self._memory}) < 2:
            return None
        labels = len({s.label for s in self._memory})
        try:
            candidate = self._candidate()
            why = self._gate(candidate)
        except (ArtifactError, np.linalg.LinAlgError) as error:
            why = str(error)
        if why:
            self.rollbacks += 1
            return Update(None, "refused", why, labels)
        if candidate.hash == self.model.hash:
            return None
        self.model = candidate
        self.updates += 1
        return Update(candidate, "learned", f"{labels} labels, {len(self._memory)} samples", labels)

    def _values(self, bits: Iterable[bytes], scales: Iterable[bytes]) -> NDArray[np.float32]:
        b = np.frombuffer(b"".join(bits), np.uint8).reshape(-1, -(-self._features // 8))
        s = np.frombuffer(b"".join(scales), np.float16).astype(np.float32)
        return Features(b, s.reshape(len(b), -1), self._features, self._beta).values()

    def _candidate(self) -> Model:
        values = self._values((s.bits for s in self._memory), (s.scales for s in self._memory))
        classes = np.array([s.cls for s in self._memory], np.intp)
        weights = np.array([s.weight for s in self._memory])
        weight, bias = fit_head(values, classes, weights, len(self.model.classes), self._settings.ridge)
        return self.model.with_tensors({"head.weight": weight, "head.bias": bias})

    def _gate(self, candidate: Model) -> str:
        """Why the candidate must not fly, or "" if it may."""
        if self._holdout:
            judges = [group[0] for group in self._holdout]
            values = self._values((s.bits for s in judges), (s.scales for s in judges))
            truth = np.array([s.cls for s in judges])
            now, then = (head_logits(m, values).argmax(1) == truth for m in (candidate, self.model))
            gains, losses = int((now & ~then).sum()), int((then & ~now).sum())
            if losses > gains and sign_test(gains, losses) < GATE_P:
                return f"worse on the holdout: {losses} lost, {gains} gained of {len(judges)}"
        if self._seen and len(self.model.classes) > 1 and self.updates:
            recent = list(self._seen.values())[-8:]
            values = self._values((o.bits for o in recent), (o.scales for o in recent))
            top = [np.bincount(head_logits(m, values).argmax(1)).max() / len(values) for m in (candidate, self.model)]
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
                frame=self.frame,
                position=self.position,
                memory=self._memory,
                holdout=list(self._holdout),
                patches=self._patches,
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
                raise ArtifactError("the learner's state belongs to another model or version; it starts anew")
            classes = len(self.model.classes)
            head = {
                "head.weight": np.frombuffer(state.head_weight, np.int16).reshape(classes, -1),
                "head.bias": np.frombuffer(state.head_bias, np.int16),
            }
            model = self.model.with_tensors(head)
            samples = state.memory + [s for group in state.holdout for s in group]
            self._values((s.bits for s in samples), (s.scales for s in samples))
            if model.hash != state.model_hash or any(not 0 <= s.cls < classes for s in samples):
                raise ArtifactError("the learner's state contradicts itself; it starts anew")
        except (msgspec.MsgspecError, ValueError) as error:
            raise ArtifactError(f"the learner's state is damaged: {error}; it starts anew") from error
        self.model, self.boot, self.frame, self.position = model, state.boot, state.frame, state.position
        self._memory, self._holdout, self._patches = state.memory, deque(state.holdout), state.patches
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
