"""The learner as a process, fed by the test in the flight's place over a real socket, and killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import zmq

from models import artifact
from onboard.config import Learning
from onboard.learner import Learner
from onboard.worker import STATUS_BUG, Ready, Setup, Work, Worker, initial_model, learner_address
from tests.scene import BASE, CLASSES, COLS, ROWS, Scene, learner_of

ROOT = Path(__file__).parent.parent.parent
DEADLINE_MS = 30_000
SETTINGS = Learning(ridge=1.0, judges=0, pseudo=0.0, cpu_share=1.0)


class Desk:
    """The flight's end of the socket, and the learner's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = learner_address(folder)
        self.socket = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(self.address)
        artifact.save(BASE, folder / "base.safetensors")
        self.process: subprocess.Popen[str] | None = None

    def setup(self, **changed) -> str:
        setup = Setup(
            address=self.address,
            state=str(self.folder / "learner.msgpack"),
            artifact=str(self.folder / "base.safetensors"),
            classes=CLASSES,
            rows=ROWS,
            cols=COLS,
            settings=SETTINGS,
        )
        return msgspec.json.encode(msgspec.structs.replace(setup, **changed)).decode()

    def start(self, parent: int | None = None, **changed) -> None:
        command = [
            sys.executable,
            "-m",
            "onboard.worker",
            self.setup(**changed),
            "--parent",
            str(parent or os.getpid()),
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def hear(self) -> tuple[bytes, Ready]:
        assert self.socket.poll(DEADLINE_MS), "the learner says nothing"
        name, data = self.socket.recv_multipart()
        return name, msgspec.msgpack.decode(data, type=Ready)

    def give(self, name: bytes, request: int, seen, labels=(), flying: str = BASE.hash) -> None:
        self.socket.send_multipart([name, msgspec.msgpack.encode(Work(request, seen, list(labels), flying))])

    def turn(self, name: bytes, told: Ready, seen, labels=(), flying: str = BASE.hash) -> Ready:
        """Give work, and wait for the answer to it; what is said again meanwhile is passed over."""
        self.give(name, told.request, seen, labels, flying)
        while True:
            _, answer = self.hear()
            if answer.request == told.request + 1:
                return answer

    def end(self) -> str:
        """Kill the learner; returns what it complained about."""
        assert self.process is not None
        self.process.kill()
        text = self.process.communicate(timeout=30)[1]
        self.process = None
        return text

    def close(self) -> None:
        if self.process is not None:
            self.end()
        self.socket.close()


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path)
    yield made
    made.close()


def flight(frames: int):
    """Frames and the labels that arrive with each."""
    scene, turns = Scene(seed=2), []
    seen = [scene.observation() for _ in range(frames)]
    for frame in range(frames):
        labels = [scene.label_seen(seen[max(0, frame - 2)], (5 * frame) % 12, frame % 3)] if frame else []
        turns.append((seen[frame], labels))
    return turns


def here(turns, upto: int) -> list[str]:
    """The hashes of a learner in this process after each frame."""
    learner, hashes = learner_of(), []
    for seen, labels in turns[:upto]:
        learner.observe(seen)
        for given in labels:
            learner.label(given)
        learner.step()
        hashes.append(learner.model.hash)
    return hashes


def test_a_process_learns_as_the_class_does_and_goes_on_when_killed(desk):
    turns = flight(30)
    hashes = here(turns, 30)
    desk.start()
    name, told = desk.hear()
    assert (told.request, told.frame, told.position, told.head) == (1, -1, 0, None)
    flying = BASE.hash
    for frame in range(20):
        told = desk.turn(name, told, *turns[frame], flying=flying)
        assert told.frame == frame
        if told.head is not None:
            flying = told.head.model_hash
        assert flying == hashes[frame]
    assert told.updates > 5
    assert desk.end() == ""  # killed with SIGKILL, at any moment

    desk.start()
    name, told = desk.hear()
    assert told.boot == 1
    assert told.frame == -1  # frames are not in its state: it wants them once more
    assert 0 < told.position < turns[20][1][0].position
    for frame in range(30):
        labels = [given for given in turns[frame][1] if given.position > told.position]
        told = desk.turn(name, told, turns[frame][0], labels, flying=flying)
        if told.head is not None and frame >= 20:  # the flight has what came of the frames before
            flying = told.head.model_hash
            assert flying == hashes[frame]
    assert flying == hashes[-1]
    assert desk.end() == ""


def test_what_is_not_answered_is_said_again(desk):
    """The flight was away, or answered something else: the same request comes again, and nothing is learned twice."""
    turns = flight(4)
    desk.start()
    name, told = desk.hear()
    _, again = desk.hear()
    assert again == told
    desk.give(name, told.request + 7, *turns[0])  # the answer to a request that was never made
    _, again = desk.hear()
    assert again == told
    for _ in range(2):
        desk.give(name, told.request, *turns[0])
    _, after = desk.hear()
    assert (after.request, after.frame) == (2, 0)
    assert desk.turn(name, after, *turns[1]).request == 3


def test_a_learner_without_its_parent_ends(desk):
    """As after the death of the supervisor: nobody would ever end it."""
    desk.start(parent=1)
    assert desk.process is not None
    assert desk.process.wait(30) == 0


def test_mistakes_have_status_1_and_faults_another(desk):
    desk.start(artifact=str(desk.folder / "no.safetensors"))
    assert desk.process is not None
    text = desk.process.communicate(timeout=30)[1]
    assert desk.process.returncode == 1
    assert text == f"onboard: learner: {desk.folder}/no.safetensors: cannot be read: No such file or directory\n"
    desk.start()
    name, _ = desk.hear()
    desk.socket.send_multipart([name, b"\xc1 not a message"])
    text = desk.process.communicate(timeout=30)[1]
    assert desk.process.returncode == STATUS_BUG
    assert "a fault of this program" in text
    assert "Traceback" in text
    desk.process = None


def test_another_grid_is_a_mistake_that_is_named(desk):
    """The configuration was changed under a running daemon, and its flight started anew."""
    desk.start(rows=ROWS + 1)
    name, told = desk.hear()
    desk.give(name, told.request, *flight(1)[0])
    assert desk.process is not None
    text = desk.process.communicate(timeout=30)[1]
    assert desk.process.returncode == 1
    assert "start the daemon anew after a change of its configuration" in text
    desk.process = None


def test_a_learner_ends_when_asked(desk):
    desk.start()
    desk.hear()
    assert desk.process is not None
    desk.process.send_signal(signal.SIGINT)  # Ctrl-C goes to all; the flight decides when to end
    desk.hear()
    desk.process.terminate()
    assert desk.process.wait(30) == -signal.SIGTERM


# --- the state file ---------------------------------------------------------------------------------------------------


def worker(path: Path) -> Worker:
    return Worker(Learner(BASE, SETTINGS, ROWS, COLS), path)


def test_the_state_is_saved_after_a_change_but_not_at_each(tmp_path):
    path = tmp_path / "state"
    one = worker(path)
    writes = []
    for frame, (seen, labels) in enumerate(flight(40)):
        before = path.stat().st_mtime_ns if path.exists() else 0
        one.work(Work(frame, seen, labels if frame < 20 else [], ""))
        if path.exists() and path.stat().st_mtime_ns != before:
            writes.append(frame)
    assert writes == [1, 9, 17, 25]
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    again = worker(path)
    assert again.learner.model.hash == one.learner.model.hash
    assert again.learner.position == one.learner.position


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x90"])
def test_a_damaged_state_starts_anew_and_says_so(tmp_path, content, caplog):
    path = tmp_path / "state"
    path.write_bytes(content)
    assert worker(path).learner.model is BASE
    assert f"{path}: the learner's state cannot be used" in caplog.text


def test_a_state_that_cannot_be_written_does_not_stop_learning(tmp_path, caplog):
    one = worker(tmp_path / "no" / "state")
    for frame, (seen, labels) in enumerate(flight(10)):
        one.work(Work(frame, seen, labels, ""))
    assert one.learner.updates > 3
    assert "cannot be written" in caplog.text


def test_the_base_model_takes_the_configured_classes(tmp_path):
    path = tmp_path / "m.safetensors"
    artifact.save(BASE, path)
    assert initial_model(str(path), CLASSES).hash == BASE.hash
    assert initial_model(str(path), ("x", "y")).classes == ("x", "y")
    assert initial_model("", ("x", "y")).spec == artifact.load(artifact.DEFAULT).spec


def test_the_learner_keeps_to_its_share_of_a_core(desk):
    """Given work without a pause for some seconds; by the system's own account of its time."""
    share = 0.05
    turns = flight(40)
    desk.start(settings=msgspec.structs.replace(SETTINGS, cpu_share=share))
    name, told = desk.hear()

    def used_s() -> float:
        user, system = Path(f"/proc/{desk.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    told = desk.turn(name, told, *turns[0])  # imports and first calls are over
    began, before, frame = time.monotonic(), used_s(), 1
    while time.monotonic() - began < 4 and frame < len(turns):
        told = desk.turn(name, told, *turns[frame])
        frame += 1
    spent, passed = used_s() - before, time.monotonic() - began
    print(f"{frame} frames, {spent:.2f} s of {passed:.1f} s")
    assert spent <= 2 * share * passed + 0.05
