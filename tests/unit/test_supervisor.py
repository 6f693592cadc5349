"""The supervisor with real processes, which tell through a named pipe that they run."""

import logging
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from onboard import supervisor as module
from onboard.supervisor import RESTARTS_PER_MINUTE, Process, Supervisor

DEADLINE_S = 20.0
SLEEP = "exec sleep 60"


class Pipe:
    """A named pipe that children write lines to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "pipe"
        os.mkfifo(self.path)
        self._handle = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self._text = b""

    def line(self, timeout_s: float = DEADLINE_S) -> str | None:
        """The next line, or None when none comes in time."""
        while b"\n" not in self._text:
            if not select.select([self._handle], [], [], timeout_s)[0]:
                return None
            self._text += os.read(self._handle, 4096)
        line, self._text = self._text.split(b"\n", 1)
        return line.decode()

    def close(self) -> None:
        os.close(self._handle)


@pytest.fixture
def pipe(tmp_path):
    made = Pipe(tmp_path)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "WATCH_S", 0.01)


@pytest.fixture
def supervise():
    """Start a supervisor with these processes; it is closed at the end of the test."""
    made = []

    def start(*table: Process) -> Supervisor:
        made.append(Supervisor(table))
        made[-1].start()
        return made[-1]

    yield start
    for supervisor in made:
        supervisor.close()


def shell(name: str, pipe: Pipe, then: str, needed: bool = False) -> Process:
    """A process that writes its id to the pipe, and then does something."""
    return Process(name=name, command=("/bin/sh", "-c", f"echo $$ > {pipe.path}; {then}"), needed=needed)


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def has(supervisor: Supervisor, name: str, pid: int) -> bool:
    """Whether the supervisor comes to know this process; it may say so a little after the process itself does."""
    deadline = time.monotonic() + DEADLINE_S
    supervisor.wait(lambda: supervisor.pid(name) == pid or time.monotonic() > deadline)
    return supervisor.pid(name) == pid


def finish(supervisor: Supervisor) -> int:
    """`wait`, but not for ever."""
    deadline = time.monotonic() + DEADLINE_S
    status = supervisor.wait(lambda: time.monotonic() > deadline)
    assert time.monotonic() < deadline, "the supervisor went on waiting"
    return status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_killed_process_is_started_again(supervise, pipe, number):
    supervisor = supervise(shell("one", pipe, SLEEP))
    first = int(pipe.line())
    assert supervisor.pid("one") == first
    os.kill(first, number)
    second = int(pipe.line())
    assert second != first
    assert not alive(first)
    assert alive(second)
    assert has(supervisor, "one", second)
    assert supervisor.restarts == 1


def test_others_go_on_meanwhile(supervise, pipe):
    supervisor = supervise(shell("one", pipe, SLEEP), shell("two", pipe, SLEEP))
    pids = {int(pipe.line()), int(pipe.line())}
    assert pids == {supervisor.pid("one"), supervisor.pid("two")}
    two = supervisor.pid("two")
    os.kill(supervisor.pid("one"), signal.SIGKILL)
    again = int(pipe.line())
    assert has(supervisor, "one", again)
    assert supervisor.pid("two") == two
    assert supervisor.pid("nobody") is None


class Cycles(threading.Event):
    """Counts how often the watching thread has looked, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.told = threading.Condition()

    def wait(self, timeout=None):
        with self.told:
            self.count += 1
            self.told.notify_all()
        return super().wait(timeout)


def test_at_most_five_starts_a_minute(monkeypatch, pipe):
    supervisor = Supervisor([shell("mad", pipe, "exit 3")])
    supervisor._closing = cycles = Cycles()
    supervisor.start()
    try:
        for _ in range(RESTARTS_PER_MINUTE):
            assert pipe.line() is not None
        with cycles.told:
            later = cycles.count + 50
            assert cycles.told.wait_for(lambda: cycles.count >= later, DEADLINE_S)
        assert pipe.line(0) is None
        assert supervisor.restarts == RESTARTS_PER_MINUTE - 1
        assert supervisor.pid("mad") is None
        # a minute later: the clock is put forward, because waiting for it would take a minute
        now = time.monotonic
        monkeypatch.setattr(module.time, "monotonic", lambda: now() + 61)
        for _ in range(RESTARTS_PER_MINUTE):
            assert pipe.line() is not None
        assert supervisor.restarts == 2 * RESTARTS_PER_MINUTE - 1
    finally:
        supervisor.close()


@pytest.mark.parametrize("status", [0, 1])
def test_a_process_that_is_done_is_not_started_again(supervise, pipe, status):
    supervisor = supervise(shell("flight", pipe, f"exit {status}", needed=True), shell("other", pipe, SLEEP))
    assert finish(supervisor) == status
    assert supervisor.restarts == 0
    assert supervisor.pid("flight") is None
    lines = {pipe.line(), pipe.line()}
    assert supervisor.pid("other") in {int(line) for line in lines}
    assert pipe.line(0) is None


def test_a_process_that_is_not_needed_may_end(supervise, pipe):
    supervisor = supervise(shell("learner", pipe, "exit 1"), shell("flight", pipe, SLEEP, needed=True))
    assert pipe.line()
    assert pipe.line()
    looked = iter([False] * 20)
    assert supervisor.wait(lambda: next(looked, True)) == 0
    assert supervisor.pid("flight") is not None
    assert supervisor.pid("learner") is None
    assert supervisor.restarts == 0


@pytest.mark.parametrize("status", [2, 70, 127])
def test_a_needed_process_that_failed_is_started_again(supervise, pipe, status):
    folder = pipe.path.parent
    once = f"test -e {folder}/once && {SLEEP}; touch {folder}/once; exit {status}"
    supervisor = supervise(shell("flight", pipe, once, needed=True))
    pipe.line()
    second = int(pipe.line())
    assert has(supervisor, "flight", second)
    assert supervisor.restarts == 1


def test_close_ends_all(supervise, pipe):
    supervisor = supervise(shell("one", pipe, SLEEP), shell("two", pipe, SLEEP))
    pids = [int(pipe.line()), int(pipe.line())]
    supervisor.close()
    assert not any(alive(pid) for pid in pids)
    supervisor.close()
    assert supervisor.restarts == 0


def test_close_kills_what_ignores_sigterm(supervise, pipe, monkeypatch, caplog):
    monkeypatch.setattr(module, "END_S", 0.2)
    code = (
        "import os, signal, sys; signal.signal(signal.SIGTERM, lambda *_: open(sys.argv[1], 'w').write('no\\n'));"
        "open(sys.argv[1], 'w').write(f'{os.getpid()}\\n');\nwhile True: signal.pause()"
    )
    supervisor = supervise(Process(name="stubborn", command=(sys.executable, "-c", code, str(pipe.path))))
    pid = int(pipe.line())
    with caplog.at_level(logging.WARNING):
        supervisor.close()
    assert pipe.line() == "no"  # it was asked first
    assert not alive(pid)
    assert "stubborn did not end in 0.2 s and was killed" in caplog.text


def test_a_process_that_cannot_be_started_is_tried_again(supervise, pipe, caplog, monkeypatch):
    """It does not take the others down, and comes up as soon as it can."""
    program = pipe.path.parent / "program"
    supervisor = supervise(Process(name="late", command=(str(program),)), shell("other", pipe, SLEEP))
    other = int(pipe.line())
    assert "late cannot be started" in caplog.text
    half = pipe.path.parent / "half"
    half.write_text(f"#!/bin/sh\necho $$ > {pipe.path}\n{SLEEP}\n")
    half.chmod(0o755)
    half.rename(program)
    now = time.monotonic  # five tries may have been used up meanwhile
    monkeypatch.setattr(module.time, "monotonic", lambda: now() + 61)
    assert has(supervisor, "late", int(pipe.line()))
    assert supervisor.pid("other") == other


def test_names_are_unique():
    with pytest.raises(ValueError, match="must be unique"):
        Supervisor([Process(name="a", command=("x",)), Process(name="a", command=("y",))])


def test_close_without_start():
    Supervisor([Process(name="a", command=("x",))]).close()
