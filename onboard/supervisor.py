"""Starts the daemon's processes, watches them, and starts again what ended; one declarative table says which."""

import contextlib
import logging
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

_log = logging.getLogger(__name__)

RESTARTS_PER_MINUTE = 5
WATCH_S = 0.2
END_S = 10.0
"""How long a process may take to end when it is asked to; then it is killed."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. A process that ends is started again; `needed` says that the daemon ends without it.

    nice: how far it stands back behind us, 0 to 19. stdin: what it reads there, less than a pipe holds.
    """

    name: str
    command: tuple[str, ...]
    needed: bool = False
    nice: int = 0
    stdin: bytes = b""


def _environment() -> dict[str, str]:
    """Ours, but linear algebra on one thread: the others belong to the flight."""
    return {"OPENBLAS_NUM_THREADS": "1", **os.environ}


class _Child:
    def __init__(self, process: Process) -> None:
        self.process = process
        self.starts: deque[float] = deque(maxlen=RESTARTS_PER_MINUTE)
        self.popen: subprocess.Popen[bytes] | None = None
        self.given_up = False


class Supervisor:
    """Keeps the processes of a table running, at most RESTARTS_PER_MINUTE starts each; then waits for the minute.

    `restarts` counts all that came back. A process that exits with status 0 (done) or 1 (a user's mistake, which it has
    named) is finished and stays so.
    """

    def __init__(self, table: Sequence[Process]) -> None:
        names = [process.name for process in table]
        if len(set(names)) != len(names):
            raise ValueError(f"process names must be unique: {names}")
        self.restarts = 0
        self._children = [_Child(process) for process in table]
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start all processes and a thread that watches them."""
        for child in self._children:
            self._spawn(child)
        self._thread.start()

    def pid(self, name: str) -> int | None:
        """The process id of a running process."""
        for child in self._children:
            if child.process.name == name and child.popen is not None and child.popen.poll() is None:
                return child.popen.pid
        return None

    def wait(self, stop: Callable[[], bool]) -> int:
        """Until `stop` says so or a needed process is finished: its exit status, or 0."""
        while not stop():
            for child in self._children:
                if child.process.needed and child.given_up:
                    return child.popen.returncode if child.popen else 1
            self._closing.wait(WATCH_S)
        return 0

    def close(self) -> None:
        """Ask all processes to end, in reverse order of the table, and kill those that do not."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        for child in reversed(self._children):
            if child.popen is not None and child.popen.poll() is None:
                child.popen.terminate()
                try:
                    child.popen.wait(END_S)
                except subprocess.TimeoutExpired:
                    _log.warning("%s did not end in %g s and was killed", child.process.name, END_S)
                    child.popen.kill()
                    child.popen.wait()

    def _spawn(self, child: _Child) -> None:
        child.starts.append(time.monotonic())
        try:
            child.popen = subprocess.Popen(child.process.command, stdin=subprocess.PIPE, env=_environment())
            assert child.popen.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.popen.stdin as stdin:  # it ended before it read that
                stdin.write(child.process.stdin)
            if child.process.nice:
                nice = os.getpriority(os.PRIO_PROCESS, 0) + child.process.nice
                os.setpriority(os.PRIO_PROCESS, child.popen.pid, nice)
        except OSError as error:  # no memory, no process left: it may pass
            child.popen = None
            _log.error("%s cannot be started: %s", child.process.name, error)

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_S):
            for child in self._children:
                if child.given_up or (child.popen is not None and child.popen.poll() is None):
                    continue
                status = child.popen.returncode if child.popen is not None else None
                if status in (0, 1):
                    child.given_up = True
                    continue
                full = len(child.starts) == RESTARTS_PER_MINUTE
                if full and time.monotonic() - child.starts[0] < 60:
                    continue
                if status is not None:
                    _log.warning("%s ended with status %d and is started again", child.process.name, status)
                self.restarts += 1
                self._spawn(child)
