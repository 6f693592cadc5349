"""The flight's desk: a thread for everything that may have to wait, so that a frame never does.

It keeps the label log, posts questions and deltas, hands the learner its work, turns what the learner gives back
into the next model, and keeps the model in force on disk. The flight puts frames and questions in and takes the
newest model out.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import zmq

from link.messages import Control, Delta, Label, Message, Mirror, Query, Reliable, Status, Undo, Welcome
from link.wire import Waker
from models import delta
from models.errors import ArtifactError, DeltaError, HadanetError
from models.model import Model
from onboard import durable, status
from onboard.labels import LABELS_FILE, LabelLog
from onboard.learner import HISTORY_FRAMES, Observation
from onboard.slots import CONTROL_FILE, Slots
from onboard.worker import SAVE_EVERY_FRAMES, Head, Ready, Work, learner_address

_log = logging.getLogger(__name__)

MAX_QUESTIONS = 4096
"""Questions that wait for the disk, at most; more are not asked, and counted."""
KEPT_FRAMES = HISTORY_FRAMES + SAVE_EVERY_FRAMES
"""Frames kept for the learner: one that was killed is given again what it saw before its last saved state."""
POLL_MS = 100
STATUS_EVERY_S = 2.0
LEARNER_SILENCE_S = 5.0
HELD_MODELS = 64
"""Learned models that wait to fly, at most; in the air the learner is seconds behind, not more."""
ORDER_S = 10.0
"""How long a replay waits for a model that it orders."""


Samples = Callable[[], tuple[bytes, bytes]]
"""Bits and scales of a tile, and of the tile turned; called in the desk's thread, which has the time for it."""


class Post(Protocol):
    """Where messages to the ground go: a `DroneLink`, or the loop-back of a replay."""

    def post(self, message: Message) -> None:
        """Hand a message over; never blocks."""
        ...


class Seen(msgspec.Struct, frozen=True):
    """A frame for the learner, and the position of the label log when it was taken."""

    observation: Observation
    position: int


class Desk:
    """See the module. `model` is the newest model; the flight reads it between frames.

    `told` gives what others add to status.json, by key: how the link is, how the camera. `paused` says why
    the learner gets no work at present, "" where it does. `record` is called with every reliable message that crosses,
    from the thread that it crosses in. `held`: None where what was learned
    flies at once; in the replay of a recording the models that were learned, by hash, until `put_in_force`.
    `problems` says by file what cannot be kept at present, `model_problem` why
    not the newest model flew at the start. status_path: of status.json, by default in `state`.
    """

    def __init__(self, state: Path, base: Model, cols: int, post: Post, status_path: Path | None = None) -> None:
        self.model = base
        self.frozen = False
        self.updates = self.rollbacks = 0
        self.dropped_frames = self.dropped_questions = 0
        self.deltas: list[int] = []
        self.mirror_hash = ""
        self.told: dict[str, Callable[[], object]] = {}
        self.paused: Callable[[], str] = lambda: ""
        self.record: Callable[[Message], None] = lambda message: None
        self.held: dict[str, Model] | None = None
        self._base = base
        self._cols = cols
        self._post = post
        self.slots = Slots(state)
        self._control_path = state / CONTROL_FILE
        self.problems: dict[str, str] = {}
        self.model_problem = ""
        self._recall()
        self.log = LabelLog(state / LABELS_FILE, base.with_classes(("features",)).hash)
        self._address = learner_address(state)
        self._status_path = status_path or state / status.STATUS_FILE
        self._status = Status(frame=-1, t_ns=0)
        self._told_s = 0.0
        self._changed = threading.Condition()
        self._history: deque[Seen] = deque(maxlen=KEPT_FRAMES)
        self._questions: deque[tuple[Query, Samples]] = deque()
        self._controls: deque[Control] = deque()
        self._ordered: deque[tuple[Model, int, int, str]] = deque()
        self._position, self.answers = self.log.last()
        self._answered: deque[tuple[int, Label | Undo]] = deque(maxlen=MAX_QUESTIONS)
        self._taken = self._done = -1
        self._waiting: tuple[bytes, Ready] | None = None
        self._heard_s = 0.0
        self._closing = False
        self._waker = Waker()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    # --- for the flight's thread -------------------------------------------------------------------------------

    def frame(self, seen: Observation) -> int:
        """Hand a frame over for learning; the oldest that the learner has not taken is dropped and counted.

        Returns the position of the label log up to which labels go with this frame.
        """
        with self._changed:
            if len(self._history) == self._history.maxlen and self._history[0].observation.frame > self._taken:
                self.dropped_frames += 1
            position = self._position
            self._history.append(Seen(seen, position))
        self._waker.wake()
        return position

    def answered(self, position: int) -> list[Label | Undo]:
        """The answers up to a position of the label log, each told once."""
        told = []
        with self._changed:
            while self._answered and self._answered[0][0] <= position:
                told.append(self._answered.popleft()[1])
        return told

    def ask(self, query: Query, samples: Samples) -> None:
        """Hand a question over: it is written to the log, then posted. `samples` gives its tile's features, packed."""
        if len(self._questions) >= MAX_QUESTIONS:
            self.dropped_questions += 1
            return
        self._questions.append((query, samples))
        self._waker.wake()

    def tell(self, status: Status) -> None:
        """How the drone is now, for `onboard status`."""
        self._status = status

    def wait(self, frame: int, timeout_s: float) -> bool:
        """Wait until the learner is done with `frame`; False if it is not in time. For replays only."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._done >= frame or self._failure is not None, timeout_s)
        if self._failure is not None:
            raise RuntimeError("the desk's thread ended") from self._failure
        return done

    def wait_answers(self, count: int, timeout_s: float) -> bool:
        """Wait until so many answers were taken in all. For replays only."""
        with self._changed:
            return self._changed.wait_for(lambda: self.answers >= count, timeout_s)

    def wait_mirror(self, timeout_s: float) -> bool:
        """Wait until the station says that its mirror equals the model in force. For replays only."""
        with self._changed:
            return self._changed.wait_for(lambda: self.mirror_hash == self.model.hash, timeout_s)

    def put_in_force(self, model: Model, frame: int, labels: int, reason: str) -> bool:
        """Fly this model from now on, and wait until it does; the rest is what a Delta says. For replays only."""
        self._ordered.append((model, frame, labels, reason))
        self._waker.wake()
        with self._changed:
            return self._changed.wait_for(lambda: self.model.hash == model.hash or self._failure is not None, ORDER_S)

    @property
    def problem(self) -> str:
        """What cannot be kept at present, in a line; "" while all is well."""
        return "; ".join(filter(None, list(self.problems.values())))

    @property
    def learner(self) -> str:
        """The learner's state in a word: learning, frozen, resting (`paused`), or away."""
        if self.frozen:
            return "frozen"
        if self.paused():
            return "resting"
        return "learning" if time.monotonic() - self._heard_s < LEARNER_SILENCE_S else "away"

    # --- for the link's thread ---------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take a message from the ground; what is reliable is on disk, or done, when this returns."""
        if isinstance(message, Reliable):
            self.record(message)  # first: a frame that has the label then stands behind it in the recording
        if isinstance(message, Label | Undo):
            new = self.log.answered(message)
            position, _ = (
                self.log.last()
            )  # before the lock: the flight takes it for each frame and must not wait for a disk
            with self._changed:
                self.answers += new
                self._position = max(self._position, position)
                if new:
                    self._answered.append((self._position, message))
                self._changed.notify_all()
        elif isinstance(message, Control):
            self._controls.append(message)
            self._waker.wake()
            if message.action != "resync":
                self._keep(self._control_path, message.action.encode())
        elif isinstance(message, Mirror | Welcome):
            mirrored = message.model_hash if isinstance(message, Mirror) else message.mirror_hash
            with self._changed:
                self.mirror_hash = mirrored.hex()
                self._changed.notify_all()

    # --- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        learner: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        learner.linger = 0
        problem = ""
        try:
            learner.bind(self._address)
            poller = zmq.Poller()
            poller.register(self._waker.fileno(), zmq.POLLIN)
            poller.register(learner, zmq.POLLIN)
            while not self._closing or self._questions:
                ready = dict(poller.poll(POLL_MS))
                self._waker.clear()
                try:
                    self._turn(learner, learner in ready)
                    problem = ""
                except (HadanetError, msgspec.MsgspecError) as error:  # a full disk, a damaged message: it may pass
                    if str(error) != problem:
                        _log.error("%s", error)
                    problem = str(error)
        except Exception as error:  # noqa: BLE001 - the flight goes on; it says why learning ended
            _log.exception("learning ended by a fault of this program")
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            learner.close()

    def _turn(self, learner: "zmq.Socket[bytes]", spoke: bool) -> None:
        self._post_questions()
        while self._controls:
            self._control(self._controls.popleft())
        while self._ordered:
            self._fly(*self._ordered.popleft())
            with self._changed:
                self._changed.notify_all()
        if spoke:
            name, data = learner.recv_multipart()
            self._take(name, msgspec.msgpack.decode(data, type=Ready))
        self._give(learner)
        self._write_status()

    def _post_questions(self) -> None:
        while self._questions:
            query, samples = self._questions.popleft()
            problem = ""
            try:
                self.log.asked(query, self._cols, *samples())
                self._up(query)
            except HadanetError as error:
                self.dropped_questions += 1
                problem = f"questions are lost: {error}"
            self._say("questions", problem)

    def _take(self, name: bytes, told: Ready) -> None:
        self._heard_s = time.monotonic()
        frame = told.frame if told.boot == self.log.boot else -1
        self._waiting = (name, told)
        if told.position > self._position:  # the log took the place of a damaged one
            self.log.start_after(told.position)
            position, _ = self.log.last()
            with self._changed:
                self._position = position
        if frame <= self._done:
            return
        try:
            if told.head is not None and not self.frozen:
                model = self._with_head(told.head)
                if self.held is None:
                    self._fly(model, told.frame, told.head.labels, "learned")
                else:
                    self._hold(self.held, model)
            elif told.rollbacks > self.rollbacks:
                _log.info("a candidate was refused: %s", told.why)
        finally:
            with self._changed:
                self.updates, self.rollbacks = told.updates, told.rollbacks
                self._done = frame
                self._changed.notify_all()

    def _hold(self, held: dict[str, Model], model: Model) -> None:
        held[model.hash] = model
        while len(held) > HELD_MODELS:
            del held[next(iter(held))]

    def _with_head(self, head: Head) -> Model:
        weight, bias = np.frombuffer(head.weight, np.int16), np.frombuffer(head.bias, np.int16)
        shape = (len(head.classes), self.model.spec.feature_count)
        if weight.size != shape[0] * shape[1]:
            raise ArtifactError("the learner gave a head of another shape; it is refused")
        return self.model.with_tensors({"head.weight": weight.reshape(shape), "head.bias": bias}, head.classes)

    def _give(self, socket: zmq.Socket[bytes]) -> None:
        """Answer the learner's request with the next frame, if there is one."""
        if self._waiting is None or self.paused():
            return
        name, told = self._waiting
        frame = told.frame if told.boot == self.log.boot else -1
        with self._changed:
            seen = next((s for s in self._history if s.observation.frame > frame), None)
            if seen is None:
                return
            self._taken = max(self._taken, seen.observation.frame)
        labels = [given for given in self.log.since(told.position) if given.position <= seen.position]
        flying = "" if self.frozen else self.model.hash
        socket.send_multipart([name, msgspec.msgpack.encode(Work(told.request, seen.observation, labels, flying))])
        self._waiting = None

    def _control(self, message: Control) -> None:
        if message.action == "resync":
            self._send(self._base, self.model, -1, 0, "resync")
        elif message.action == "anchor":
            self.frozen = True
            self._fly(self._base, -1, 0, "anchor")
        else:
            self.frozen = message.action == "freeze"

    # --- the model in force ------------------------------------------------------------------------------------

    def _fly(self, model: Model, frame: int, labels: int, reason: str) -> None:
        """Put a model in force: what is streamed is what flies, so the drone applies its own delta."""
        if model.hash == self.model.hash:
            return
        self.model = self._send(self.model, model, frame, labels, reason)
        self._keep_model()

    def _send(self, old: Model, new: Model, frame: int, labels: int, reason: str) -> Model:
        payload = delta.encode(old, new)
        applied = delta.apply(old, payload)
        if applied.hash != new.hash:
            raise DeltaError("the delta codec lost something: this is a bug, the model stays as it is")
        self.deltas.append(len(payload))
        self._up(
            Delta(
                parent=bytes.fromhex(old.hash),
                result=bytes.fromhex(new.hash),
                frame=frame,
                payload=payload,
                labels=labels,
                reason=reason,  # type: ignore[arg-type]
            )
        )
        return applied

    def _up(self, message: Query | Delta) -> None:
        self._post.post(message)
        self.record(message)

    def _write_status(self) -> None:
        now = time.monotonic()
        if now - self._told_s < STATUS_EVERY_S:
            return
        self._told_s = now
        # learner and updates as of now: without frames nobody else would tell of them
        fields = msgspec.structs.asdict(self._status) | {
            "learner": self.learner,
            "labels": self.answers,
            "updates": self.updates,
            "rollbacks": self.rollbacks,
            "dropped_frames": self.dropped_frames,
            "dropped_questions": self.dropped_questions,
            "model_hash": self.model.hash,
            "mirror_hash": self.mirror_hash,
        }
        fields |= {key: tell() for key, tell in list(self.told.items())}  # others may join just now
        self._keep(self._status_path, status.encode(fields), sync=False)

    # --- on disk -----------------------------------------------------------------------------------------------

    def _recall(self) -> None:
        """What the operator last commanded, and the model that flew, if it is whole; else the base."""
        try:
            action = self._control_path.read_text(errors="replace")
        except FileNotFoundError:
            action = ""
        except OSError as error:
            _log.warning("%s: cannot be read: %s", self._control_path, error.strerror)
            action = ""
        self.frozen = action in ("freeze", "anchor")
        if action != "anchor":
            self.model = self.slots.last(self._base) or self._base
        if self.slots.problems:  # said for the whole flight: the slot itself is written over by the next model
            self.model_problem = f"{'; '.join(self.slots.problems)}; model {self.model.hash[:16]} flies"
        self._keep_model()  # so that this base model can be gone back to when its file is replaced

    def _keep_model(self) -> None:
        problem = ""
        try:
            self.slots.keep(self._base, self.model)
        except OSError as error:
            problem = f"{self.slots.folder}: the model cannot be kept: {error.strerror}"
        self._say("models", problem)

    def _keep(self, path: Path, data: bytes, sync: bool = True) -> None:
        """Replace a small file as a whole; a disk that refuses is told once, and the flight goes on without."""
        problem = ""
        try:
            durable.write(path, data, sync)
        except OSError as error:
            problem = f"{path}: cannot be written: {error.strerror}"
        self._say(path.name, problem)

    def _say(self, topic: str, problem: str) -> None:
        if problem and problem != self.problems.get(topic):
            _log.warning("%s", problem)
        self.problems[topic] = problem

    def close(self) -> None:
        """End the thread and close the log; questions that were handed over are posted first."""
        self._closing = True
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._waker.close()
        self.log.close()
