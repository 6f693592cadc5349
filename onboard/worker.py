"""The learner's process: takes work from the flight, gives models back. May be killed at any moment.

It *pulls*: `Ready` says which frame and label it has taken and what came of it, `Work` answers with the next frame
and the labels that arrived up to it. A `Ready` without an answer is sent again, so either side may restart; and since
`Work` says which model flies, a head is given again until it does, whichever of the two was killed in between.
"""

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
import zmq

from models import artifact
from models.errors import ArtifactError, HadanetError
from models.model import Model
from onboard.config import Learning
from onboard.learner import GivenLabel, Learner, Observation, Update

_log = logging.getLogger(__name__)

RETRY_MS = 1000
SAVE_EVERY_FRAMES = 8
"""The state is written after a change, but not more often than this: a card wears out by writing."""
MAX_REST_S = 2.0
"""However long a turn took, the learner looks up so often: its parent may be gone."""
STATUS_BUG = 70
"""Exit status after a fault of this program: other than after a user's mistake, the supervisor starts it again."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The head of a learned model as raw int16 bytes, the model's hash, how many labels it was learned from, and the
    classes of its rows."""

    weight: bytes
    bias: bytes
    model_hash: str
    labels: int
    classes: tuple[str, ...]


class Ready(msgspec.Struct, frozen=True, array_like=True):
    """Learner to flight: done with `frame`; `head` if it learned another than flies; `why` in words, counters."""

    request: int
    boot: int
    frame: int
    position: int
    head: Head | None
    why: str
    updates: int
    rollbacks: int


class Work(msgspec.Struct, frozen=True, array_like=True):
    """Flight to learner: answers the request of that number with one frame and the labels up to it.

    `flying` is the hash of the model in force.
    """

    request: int
    seen: Observation
    labels: list[GivenLabel]
    flying: str


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a learner process is started with, as JSON on its command line."""

    address: str
    state: str
    artifact: str
    classes: tuple[str, ...]
    rows: int
    cols: int
    settings: Learning


class Worker:
    """A learner with its state file. `work` is one turn; `ready` what to tell of it."""

    def __init__(self, learner: Learner, path: Path) -> None:
        self.learner = learner
        self.labels = 0
        """How many labels the model was learned from; 0 until the first update of this process."""
        self._path = path
        self._saved_frame = -SAVE_EVERY_FRAMES
        self._dirty = False
        try:
            learner.restore(path.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ArtifactError) as error:
            _log.warning("%s: %s", path, error)

    def work(self, work: Work) -> Update | None:
        """Take one frame with its labels, and learn."""
        learner = self.learner
        if work.seen.boot != learner.boot:
            self._saved_frame = -SAVE_EVERY_FRAMES  # the flight started anew and counts from zero
        learner.observe(work.seen)
        for given in work.labels:
            learner.label(given)
        update = learner.step()
        self.labels = update.labels if update and update.model else self.labels
        self._dirty = self._dirty or bool(work.labels)
        if self._dirty and work.seen.frame - self._saved_frame >= SAVE_EVERY_FRAMES:
            self._save(work.seen.frame)
        return update

    def _save(self, frame: int) -> None:
        partial = self._path.with_name(self._path.name + ".partial")
        try:
            partial.write_bytes(self.learner.state())
            partial.replace(self._path)
        except OSError as error:  # the label log has all that this would have kept
            _log.warning("%s: cannot be written: %s", self._path, error.strerror)
        self._saved_frame, self._dirty = frame, False


def ready(request: int, worker: Worker, update: Update | None = None, flying: str = "") -> Ready:
    """What to tell a flight with the model `flying` after a turn; nothing of the model while that is unknown ("")."""
    learner, head = worker.learner, None
    if learner.updates and flying not in ("", learner.model.hash):
        tensors = learner.model.tensors
        weight, bias = tensors["head.weight"].tobytes(), tensors["head.bias"].tobytes()
        head = Head(weight, bias, learner.model.hash, worker.labels, learner.model.classes)
    why = update.why if update else ""
    return Ready(request, learner.boot, learner.frame, learner.position, head, why, learner.updates, learner.rollbacks)


def serve(worker: Worker, address: str, parent: int, cpu_share: float = 1.0) -> None:
    """Pull work until the parent process is gone; rest after each turn, so that it stays at `cpu_share` of a core."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(address)
    decoder = msgspec.msgpack.Decoder(Work)
    request, told = 1, ready(1, worker)
    rested_s = 0.0
    while os.getppid() == parent:
        socket.send(msgspec.msgpack.encode(told))
        time.sleep(min(MAX_REST_S, max(0.0, rested_s - time.monotonic())))
        while socket.poll(RETRY_MS):
            work = decoder.decode(socket.recv())
            if work.request == request:
                rested_s, used_s = time.monotonic(), time.process_time()
                update = worker.work(work)
                request += 1
                told = ready(request, worker, update, work.flying)
                rested_s += (time.process_time() - used_s) / cpu_share
                break
    socket.close()


def main(argv: list[str] | None = None) -> int:
    """Start the learner process from the JSON of a `Setup`; only the flight calls this."""
    parser = argparse.ArgumentParser(prog="onboard-learner", description=__doc__)
    parser.add_argument("setup", help="a Setup as JSON")
    parser.add_argument("--parent", type=int, required=True, help="process that must be alive")
    args = parser.parse_args(argv)
    logging.basicConfig(format="learner: %(levelname)s: %(message)s", level=logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the flight decides when to end
    try:
        setup = msgspec.json.decode(args.setup, type=Setup)
        model = initial_model(setup.artifact, setup.classes)
        learner = Learner(model, setup.settings, setup.rows, setup.cols)
        serve(Worker(learner, Path(setup.state)), setup.address, args.parent, setup.settings.cpu_share)
    except HadanetError as error:
        sys.stderr.write(f"onboard: learner: {error}\n")
        return 1
    except Exception:  # noqa: BLE001 - the boundary of the process: Python itself would end with the status of a mistake
        _log.exception("a fault of this program")
        return STATUS_BUG
    return 0


def learner_address(state: Path) -> str:
    """Where the flight with this state folder meets its learner."""
    return f"ipc://{state / 'learner.ipc'}"


def initial_model(path: str, classes: tuple[str, ...]) -> Model:
    """The base model with these classes: its own head if they are its own, else one of zeros."""
    base = artifact.load(Path(path) if path else artifact.DEFAULT)
    return base if classes == base.classes else base.with_classes(classes)


if __name__ == "__main__":
    sys.exit(main())
