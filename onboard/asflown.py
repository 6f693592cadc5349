"""Flies a recording as it flew: each label and each change of the model comes at the frame at which it came.

The learner of the replay learns from the recorded labels, frame by frame, and what it learns waits until the recording
says that it was put in force: in the air the learner runs behind the frames. Where the replay cannot learn the same
(the recording begins in mid-flight, or the learner had labels of earlier flights), the recorded change is applied.
"""

import logging
from collections.abc import Callable

import msgspec
import numpy as np

from link.messages import Delta, Label, Undo
from models import delta
from models.errors import ArtifactError, DeltaError
from models.model import Model
from onboard.config import Config
from onboard.desk import Desk
from onboard.flight import Step
from onboard.frame import Frame
from onboard.sources.recording import RecordingSource

_log = logging.getLogger(__name__)

KEPT_MODELS = 16
"""Recorded models that are kept, because a later change may build on them."""


class AsFlownReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a replay kept to its recording.

    recompressed: the recorded pixels are not quite those that flew. labels: recorded ones that were given again.
    learned: changes of the model that the replay's learner came to by itself; taken: those that were taken from the
    recording. missing: frames that flew a model which neither could give. tiles_differ: tiles with another class than
    in the flight, of those of `frames` that the recording tells. model_hash: the one recorded last.
    """

    recompressed: bool
    labels: int
    learned: int
    taken: int
    missing: int
    frames: int
    tiles_differ: int
    model_hash: str


def can_learn(source: RecordingSource) -> bool:
    """Whether the recording has everything that the flight's learner knew."""
    about = source.about
    return source.whole and about.get("position") == "0" and about.get("model_hash") == about.get("base_hash")


def obstacle(config: Config, base: Model, source: RecordingSource) -> str:
    """Why a replay with this configuration is another flight than the recorded one, "" if it is not."""
    recorded = source.config
    if recorded is None:
        return "its configuration cannot be read by this version"
    mine, theirs = ((c.seed, c.camera.rows, c.camera.cols, c.model.classes, c.learn, c.ask) for c in (config, recorded))
    if mine != theirs:
        return "the command line asks for other settings"
    if base.hash != source.about.get("base_hash"):
        return "it flew another base model"
    return ""


class AsFlown:
    """Brings back what crossed in a recorded flight. `receive` is how a label reaches the desk, on this thread.

    Call `before` a frame is decided, `after` it, and `finish` behind the last.
    """

    def __init__(
        self, source: RecordingSource, desk: Desk, base: Model, receive: Callable[[Label | Undo], None]
    ) -> None:
        self._source, self._desk, self._base = source, desk, base
        self._receive = receive
        self._boot = int(source.about.get("boot", "0"))
        self._pending: list[Delta] = []
        self._known: dict[str, Model] = {}
        self._recorded = source.about.get("model_hash", "")
        self._detections: bytes | None = None
        self._labels = self._learned = self._taken = self._missing = self._frames = self._differ = 0
        source.follow = True
        desk.held = {}

    def before(self, frame: Frame) -> tuple[Label | Undo, ...]:
        """Give the labels that came by this frame, put its model in force. Returns the labels."""
        crossed = self._source.crossed(frame.index)
        self._detections = crossed.detections.classes if crossed.detections else None
        self._give(crossed.labels)
        self._pending += crossed.deltas
        if crossed.model:
            self._put_in_force(crossed.model, frame.name)
        return crossed.labels

    def after(self, step: Step) -> None:
        """Compare what was decided with what the flight decided."""
        if self._detections is not None and len(self._detections) == len(step.result.classes):
            self._frames += 1
            self._differ += int((np.frombuffer(self._detections, np.uint8) != step.result.classes).sum())

    def finish(self) -> AsFlownReport:
        """What was put in force behind the last frame."""
        crossed = self._source.crossed(None)
        self._pending += crossed.deltas
        if self._pending:
            self._put_in_force(self._pending[-1].result.hex(), "behind the last")
        return AsFlownReport(
            recompressed=self._source.recompressed,
            labels=self._labels,
            learned=self._learned,
            taken=self._taken,
            missing=self._missing,
            frames=self._frames,
            tiles_differ=self._differ,
            model_hash=self._recorded,
        )

    def _give(self, messages: tuple[Label | Undo, ...]) -> None:
        for message in messages:
            if isinstance(message, Label):
                # questions are numbered by boot, and this is another one; a question of an earlier boot is unknown here
                ours = message.query >> 32 == self._boot
                query = self._desk.log.boot << 32 | message.query & 0xFFFFFFFF if ours else 0
                message = msgspec.structs.replace(message, query=query)
            self._receive(message)
            self._labels += 1

    def _put_in_force(self, wanted: str, frame: str) -> None:
        """The model `wanted`, by way of all that the recording says came before it."""
        self._recorded = wanted
        if wanted == self._desk.model.hash:
            return
        path = [change.result.hex() for change in self._pending]
        if wanted in path:
            for change in self._pending[: path.index(wanted) + 1]:
                self._change(change)
            del self._pending[: path.index(wanted) + 1]
        if self._desk.model.hash != wanted and (model := self._told(wanted)) is not None:
            self._desk.put_in_force(model, -1, 0, "resync")
            self._taken += wanted != self._base.hash
        if self._desk.model.hash != wanted:
            if not self._missing:
                _log.warning("frame %s: the recording lacks the change to the model that flew from here on", frame)
            self._missing += 1

    def _change(self, change: Delta) -> None:
        result = change.result.hex()
        learned = self._desk.held.pop(result, None) if self._desk.held else None
        model = learned
        if result == self._base.hash:
            model = self._base
        elif model is None:
            model = self._applied(change)
        if model is None:
            return
        self._learned += learned is not None
        self._taken += learned is None
        self._known[result] = model
        while len(self._known) > KEPT_MODELS:
            del self._known[next(iter(self._known))]
        self._desk.put_in_force(model, change.frame, change.labels, change.reason)

    def _applied(self, change: Delta) -> Model | None:
        parent = change.parent.hex()
        now = self._desk.model
        known = {self._base.hash: self._base, now.hash: now} | self._known
        try:
            return delta.apply(known[parent], change.payload) if parent in known else None
        except (DeltaError, ArtifactError) as error:
            _log.warning("a recorded change of the model cannot be applied: %s", error)
            return None

    def _told(self, wanted: str) -> Model | None:
        """A model that needs no change to lead to it: the base, or one that the recording gives whole."""
        if wanted == self._base.hash:
            return self._base
        data = self._source.head(wanted)
        try:
            return None if data is None else delta.apply(self._base, data)
        except (DeltaError, ArtifactError) as error:
            _log.warning("the recorded model %s cannot be used: %s", wanted[:16], error)
            return None
