"""The desk, with a socket of the test's own in the learner's place: what it gives, takes, keeps and tells."""

import json
import os
import threading
import time

import msgspec
import numpy as np
import pytest
import zmq

from link.messages import Control, Delta, Label, Query, Status, Undo
from link.mirror import Mirror
from models.errors import HadanetError
from onboard import desk as module
from onboard import status
from onboard.desk import KEPT_FRAMES, Desk
from onboard.learner import HISTORY_FRAMES, Observation
from onboard.worker import Head, Ready, Work, learner_address
from tests.small_model import small_model

WAIT_S = 20.0
BASE = small_model()
FEATURES = BASE.spec.feature_count
BITS, SCALES = bytes(FEATURES // 8), np.ones(FEATURES // 4, np.float16).tobytes()


class Ground:
    """Takes what the desk posts, and mirrors the model as a station does."""

    def __init__(self):
        self.mirror = Mirror(BASE)
        self.questions, self.deltas = [], []
        self.refuse = False

    def post(self, message):
        if self.refuse:
            raise HadanetError("the radio is broken")
        if isinstance(message, Delta):
            self.mirror.apply(message)
            self.deltas.append(message)
        elif isinstance(message, Query):
            self.questions.append(message.id)


class Learner:
    """The learner's end of the socket: `turn` tells and takes the answer."""

    def __init__(self, state):
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(learner_address(state))
        self.request = 0

    def tell(self, boot=0, frame=-1, position=0, head=None, updates=0, rollbacks=0):
        self.request += 1
        told = Ready(self.request, boot, frame, position, head, "", updates, rollbacks)
        self.socket.send(msgspec.msgpack.encode(told))

    def take(self, timeout_s=WAIT_S):
        if not self.socket.poll(timeout_s * 1000):
            return None
        work = msgspec.msgpack.decode(self.socket.recv(), type=Work)
        assert work.request == self.request
        return work

    def turn(self, *args, **told):
        self.tell(*args, **told)
        return self.take()


def head_of(value, labels=3, size=None):
    weight = np.full(size or (len(BASE.classes), FEATURES), value, np.int16)
    bias = np.zeros(len(BASE.classes), np.int16)
    return Head(weight.tobytes(), bias.tobytes(), "", labels, BASE.classes)


def model_of(value):
    weight = np.full((len(BASE.classes), FEATURES), value, np.int16)
    return BASE.with_tensors({"head.weight": weight, "head.bias": np.zeros(len(BASE.classes), np.int16)})


def query(number, boot):
    return Query(
        id=boot << 32 | number,
        frame=0,
        frame_name="0",
        t_ns=0,
        row=0,
        col=number,
        track=0,
        guess=0,
        confidence=0.5,
        jpeg=b"",
    )


class Rig:
    def __init__(self, state):
        self.state, self.open = state, []
        self.ground = Ground()

    def desk(self, start=True):
        desk = Desk(self.state, BASE, 4, self.ground)
        if start:
            desk.start()
        self.open.append(desk)
        return desk

    def learner(self):
        learner = Learner(self.state)
        self.open.append(learner.socket)
        return learner

    def restart(self, desk):
        desk.close()
        self.open.remove(desk)
        return self.desk()

    def until(self, condition):
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    for thing in made.open:
        thing.close()


def observe(desk, *frames):
    for frame in frames:
        desk.frame(Observation(desk.log.boot, frame, BITS, SCALES, None))


def test_frames_are_given_in_order_with_the_labels_that_were_there(rig):
    desk, learner = rig.desk(), rig.learner()
    boot = desk.log.boot
    desk.ask(query(1, boot), lambda: (BITS, SCALES))
    rig.until(lambda: len(rig.ground.questions) == 1)
    observe(desk, 0)
    desk.receive(Label(id=70, query=boot << 32 | 1, answer="b"))
    observe(desk, 1)
    first = learner.turn()
    assert (first.seen.frame, first.labels, first.flying) == (0, [], BASE.hash)  # it came after that frame
    second = learner.turn(boot=boot, frame=0)
    (given,) = second.labels
    assert second.seen.frame == 1
    assert (given.id, given.frame, given.tile, given.answer, given.bits) == (70, 0, 1, "b", BITS)
    learner.tell(boot=boot, frame=1, position=given.position)
    assert learner.take(0.3) is None
    observe(desk, 2)
    assert learner.take().labels == []


def test_a_request_that_is_sent_again_is_answered_again(rig):
    desk, learner = rig.desk(), rig.learner()
    observe(desk, 5)
    assert learner.turn().seen.frame == 5
    assert learner.turn().seen.frame == 5
    other = rig.learner()  # after a kill: another socket, which begins anew
    assert other.turn().seen.frame == 5


def test_frames_wait_in_a_bounded_queue(rig):
    desk = rig.desk(start=False)
    observe(desk, *range(KEPT_FRAMES + 7))
    assert desk.dropped_frames == 7
    desk.start()
    learner = rig.learner()
    assert learner.turn().seen.frame == 7
    observe(desk, KEPT_FRAMES + 7)  # pushes out one that was taken
    assert desk.dropped_frames == 7
    assert KEPT_FRAMES > HISTORY_FRAMES


def test_questions_wait_in_a_bounded_queue(rig, monkeypatch):
    monkeypatch.setattr(module, "MAX_QUESTIONS", 3)
    desk = rig.desk(start=False)
    for number in range(5):
        desk.ask(query(number, desk.log.boot), lambda: (BITS, SCALES))
    assert desk.dropped_questions == 2
    desk.start()
    rig.until(lambda: len(rig.ground.questions) == 3)


def test_questions_that_cannot_be_posted_are_counted_and_told_once(rig, caplog):
    rig.ground.refuse = True
    desk = rig.desk()
    for number in range(5):
        desk.ask(query(number, desk.log.boot), lambda: (BITS, SCALES))
    rig.until(lambda: desk.dropped_questions == 5)
    assert [r.getMessage() for r in caplog.records] == ["questions are lost: the radio is broken"]


def test_an_answer_counts_once(rig):
    desk = rig.desk()
    for _ in range(3):
        desk.receive(Label(id=7, query=1, answer="b"))
        desk.receive(Undo(label=7))
    assert desk.answers == 2
    assert desk.wait_answers(2, 0)
    assert not desk.wait_answers(3, 0.01)
    assert rig.restart(desk).answers == 2


def test_answers_are_told_once_with_the_frame_that_they_came_by(rig):
    desk = rig.desk(start=False)
    desk.receive(Label(id=7, query=1, answer="b"))
    first = desk.log.last()[0]
    desk.receive(Undo(label=7))
    desk.receive(Label(id=7, query=1, answer="b"))  # known already
    assert desk.answered(first - 1) == []
    assert desk.answered(first) == [Label(id=7, query=1, answer="b")]
    assert desk.answered(first) == []
    assert desk.answered(first + 10) == [Undo(label=7)]


def test_a_head_flies_is_streamed_and_comes_back_after_a_restart(rig):
    desk, learner = rig.desk(), rig.learner()
    boot = desk.log.boot
    observe(desk, 0, 1)
    learner.turn()
    work = learner.turn(boot=boot, frame=0, head=head_of(5), updates=1)
    assert work.flying == model_of(5).hash == desk.model.hash
    assert desk.wait(0, WAIT_S)
    assert not desk.wait(1, 0.01)
    (delta,) = rig.ground.deltas
    assert (delta.frame, delta.labels, delta.reason, delta.result.hex()) == (0, 3, "learned", desk.model.hash)
    assert (desk.deltas, desk.updates) == ([len(delta.payload)], 1)
    again = rig.restart(desk)
    assert again.model.hash == model_of(5).hash == rig.ground.mirror.model.hash


def test_a_learner_that_restarts_is_believed_only_when_it_has_caught_up(rig):
    desk, learner = rig.desk(), rig.learner()
    boot = desk.log.boot
    observe(desk, 0, 1, 2)
    for frame in (0, 1):
        learner.turn(boot=boot, frame=frame, head=head_of(frame + 5), updates=frame + 1)
    other = rig.learner()
    other.turn(boot=boot, frame=0, head=head_of(99), updates=9)  # an older state than what flies
    assert (desk.model.hash, desk.updates) == (model_of(6).hash, 2)
    other.tell(boot=boot, frame=2, head=head_of(7), updates=3)
    assert desk.wait(2, WAIT_S)
    assert (desk.model.hash, desk.updates) == (model_of(7).hash, 3)


def test_a_head_of_another_flight_is_taken_with_the_first_frame_of_this_one(rig):
    desk, learner = rig.desk(), rig.learner()
    observe(desk, 0)
    work = learner.turn(boot=desk.log.boot + 1, frame=40, head=head_of(5), updates=1)
    assert (work.seen.frame, work.flying, desk.model.hash) == (0, BASE.hash, BASE.hash)
    learner.tell(boot=desk.log.boot, frame=0, head=head_of(5), updates=1)
    assert desk.wait(0, WAIT_S)
    assert desk.model.hash == model_of(5).hash


@pytest.mark.parametrize("size", [(2, FEATURES), (3, 8)])
def test_a_head_of_another_shape_is_refused(rig, caplog, size):
    desk, learner = rig.desk(), rig.learner()
    for frame in range(3):
        observe(desk, frame)
        learner.tell(boot=desk.log.boot, frame=frame, head=head_of(5, size=size), updates=1)
        assert desk.wait(frame, WAIT_S)
    assert desk.model.hash == BASE.hash
    assert {r.getMessage() for r in caplog.records} == {"the learner gave a head of another shape; it is refused"}


def test_rubbish_on_the_socket_harms_nothing(rig, caplog):
    desk, learner = rig.desk(), rig.learner()
    observe(desk, 0)
    for data in (b"", b"\xc1", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode("x" * 1000)):
        learner.socket.send(data)
    assert learner.turn().seen.frame == 0
    assert caplog.records
    assert "Traceback" not in caplog.text


def test_freeze_and_resume(rig):
    desk, learner = rig.desk(), rig.learner()
    boot = desk.log.boot
    desk.receive(Control(action="freeze"))
    rig.until(lambda: desk.learner == "frozen")
    observe(desk, 0)
    assert learner.turn().flying == ""  # so that no head is sent in vain
    learner.tell(boot=boot, frame=0, head=head_of(5), updates=1)
    assert desk.wait(0, WAIT_S)
    assert desk.model.hash == BASE.hash
    desk = rig.restart(desk)
    assert desk.learner == "frozen"
    desk.receive(Control(action="resume"))
    rig.until(lambda: desk.learner != "frozen")
    assert rig.restart(desk).learner == "away"


def test_an_anchor_holds_over_a_restart_even_when_it_came_last(rig):
    desk, learner = rig.desk(), rig.learner()
    boot = desk.log.boot
    observe(desk, 0)
    learner.turn()
    learner.tell(boot=boot, frame=0, head=head_of(5), updates=1)
    assert desk.wait(0, WAIT_S)
    learned = {path: path.read_bytes() for path in (rig.state / "models").iterdir()}
    desk.receive(Control(action="anchor"))
    rig.until(lambda: rig.ground.deltas[-1].reason == "anchor")
    assert desk.model.hash == rig.ground.mirror.model.hash == BASE.hash
    desk.close()
    for path, data in learned.items():  # as if it was killed before it got to these files
        path.write_bytes(data)
    again = rig.desk()
    assert (again.model.hash, again.learner) == (BASE.hash, "frozen")


def test_a_resync_gives_a_fresh_mirror_everything(rig):
    desk, learner = rig.desk(), rig.learner()
    observe(desk, 0)
    learner.turn(boot=desk.log.boot + 1)
    learner.tell(boot=desk.log.boot, frame=0, head=head_of(5), updates=1)
    assert desk.wait(0, WAIT_S)
    rig.ground.mirror = Mirror(BASE)
    desk.receive(Control(action="resync"))
    rig.until(lambda: rig.ground.mirror.model.hash == desk.model.hash)
    assert rig.ground.deltas[-1].reason == "resync"
    assert not (rig.state / "control").exists()


@pytest.mark.parametrize("data", [b"", b"rubbish", bytes(10_000)])
def test_a_damaged_head_on_disk(rig, caplog, data):
    (rig.state / "models").mkdir()
    (rig.state / "models" / "0.slot").write_bytes(data)
    (rig.state / "control").write_bytes(data)
    desk = rig.desk()
    assert (desk.model.hash, desk.frozen) == (BASE.hash, False)
    assert "0.slot: cannot be used: it is damaged or cut off" in caplog.text
    assert desk.model_problem.endswith(f"model {BASE.hash[:16]} flies")


def test_a_disk_that_refuses_is_told_once_for_each_file(rig, caplog):
    (rig.state / "models").touch()
    (rig.state / "control.partial").mkdir()
    desk, learner = rig.desk(), rig.learner()
    for frame in range(3):
        observe(desk, frame)
        learner.tell(boot=desk.log.boot, frame=frame, head=head_of(frame + 1), updates=frame)
        assert desk.wait(frame, WAIT_S)
        desk.receive(Control(action="freeze"))
        desk.receive(Control(action="resume"))
    assert desk.model.hash == model_of(3).hash
    assert sorted(r.getMessage().rpartition("/")[2] for r in caplog.records) == [
        "control: cannot be written: Is a directory",
        "models: the model cannot be kept: File exists",
    ]


def test_the_status(rig, monkeypatch):
    monkeypatch.setattr(module, "STATUS_EVERY_S", 0.0)
    desk = rig.desk(start=False)
    observe(desk, *range(KEPT_FRAMES + 2))
    desk.told["link"] = lambda: "calling"
    desk.start()
    rig.until(lambda: (rig.state / "status.json").exists())
    early = status.read(rig.state / status.STATUS_FILE)
    assert (early["frame"], early["link"], early["learner"], early["dropped_frames"]) == (-1, "calling", "away", 2)
    assert (early["model_hash"], early["dropped_questions"], early["pid"]) == (BASE.hash, 0, os.getpid())
    desk.tell(Status(frame=9, t_ns=4, recorder="recording"))
    rig.until(lambda: status.read(rig.state / status.STATUS_FILE)["frame"] == 9)
    assert status.read(rig.state / status.STATUS_FILE)["recorder"] == "recording"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "there is no such file; is the daemon running"),
        ("{", "cannot be read"),
        ('{"pid": "x", "written_s": 1}', "cannot be read"),
        ('{"pid": 1}', "cannot be read"),
        (
            json.dumps({"pid": 2**22 + 1, "written_s": 1.0, "boot_id": status.boot_id()}),
            "the daemon is not running; it e",
        ),
        (json.dumps({"pid": os.getpid(), "written_s": 1.0, "boot_id": "x"}), "since this computer was started"),
    ],
)
def test_a_status_that_is_none(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    with pytest.raises(HadanetError, match=reason):
        status.read(tmp_path / status.STATUS_FILE)


def test_others_join_while_the_status_is_written(rig, monkeypatch):
    """The flight's thread adds its words when the desk's thread runs already; on a slow computer they meet."""
    monkeypatch.setattr(module, "STATUS_EVERY_S", 0.0)
    desk = rig.desk(start=False)
    desk.told["link"] = lambda: desk.told.setdefault("camera", lambda: "frames come")()
    desk.start()
    path = rig.state / "status.json"
    rig.until(lambda: path.exists() and json.loads(path.read_text()).get("camera") == "frames come")


def test_a_fault_of_the_desk_is_not_silent(rig, monkeypatch, caplog):
    desk = rig.desk(start=False)
    told = threading.Event()
    desk.told["link"] = lambda: told.set() or 1 / 0
    desk.start()
    assert told.wait(WAIT_S)
    with pytest.raises(RuntimeError, match="the desk's thread ended"):
        desk.wait(0, WAIT_S)
    assert "learning ended by a fault of this program" in caplog.text
