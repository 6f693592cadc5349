"""Pictures from a program that writes them raw into a pipe, one after another, all of one size: I420, 12 bits a pixel.

The program gets a pipe of its own for them, because what cameras' drivers print to the standard output would end up in
the middle of a picture. Its death, a picture that comes only in part, and silence are a `SourceError` each, with the
last thing that the program said; the flight then starts it again.
"""

import contextlib
import fcntl
import os
import select
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import SourceError
from onboard import clock
from onboard.frame import Frame, Pose, Skipped

FIRST_S = 15.0
"""How long the first picture may take: a camera's driver may start a service of its own."""
STALL_S = 3.0
"""How long any other may take."""
END_S = 2.0
"""How long the program may take to end; then it is killed."""
PIPE_BYTES = 1 << 20
"""As large as a user may make a pipe: fewer, larger reads."""
_WORDS_KEPT = 8


class PipeSource:
    """Frames of the program `command(fd)`, which writes I420 pictures of width x height pixels to file number fd.

    name: of the camera, for messages. width must be a multiple of 8, height even, so that no line is padded.

    Raises
    ------
    SourceError
        The program cannot be started or gives no first picture. While iterating: it ended, or gave a part of a
        picture, or none in STALL_S.
    """

    def __init__(
        self, uri: str, name: str, command: Callable[[int], Sequence[str]], width: int, height: int, fps: float
    ) -> None:
        self.uri = uri
        self.fps: float | None = fps
        self.length: int | None = None
        self.live = True
        self.first_ns = 0
        self.skipped: list[Skipped] = []
        self._name, self._shape = name, (height * 3 // 2, width)
        self._words: deque[str] = deque(maxlen=_WORDS_KEPT)
        self._closed = threading.Event()
        self._reading = threading.Lock()  # no read of a file number that is closed, and perhaps given away again
        self._pipe, write = os.pipe()
        os.set_blocking(self._pipe, False)
        with contextlib.suppress(OSError):  # beyond the bound of this user: the usual 64 KiB do
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        # it must not outlive a flight that is killed: it would hold the camera
        guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        try:
            self._process = subprocess.Popen(
                [*guard, *command(write)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._pipe)
            raise SourceError(f"{name}: its program cannot be started: {error.strerror}") from error
        finally:
            os.close(write)
        self._listener = threading.Thread(target=self._listen, name="camera-words", daemon=True)
        self._listener.start()
        try:
            self._first: NDArray[np.uint8] | None = self._read(FIRST_S)
        except SourceError:
            self.close()
            raise

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield frames until `close`."""
        index = 0
        while not self._closed.is_set():
            image = self._first if self._first is not None else self._read(STALL_S)
            self._first = None
            if image is None:
                return
            yield Frame(index=index, t_ns=clock.now_ns(), name=str(index), image=image, pose=Pose())
            index += 1

    def close(self) -> None:
        """End the program."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._reading:
            os.close(self._pipe)
        self._listener.join(END_S)

    def _read(self, timeout_s: float) -> NDArray[np.uint8] | None:
        """The next picture in BGR; None once this source was closed."""
        raw = np.empty(self._shape, np.uint8)
        got, deadline = 0, time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        with memoryview(raw.data).cast("B") as room:
            while got < len(room):
                left_s = deadline - time.monotonic()
                if self._closed.is_set():
                    return None
                if left_s <= 0:
                    part = f"; {got} of {len(room)} bytes of one came" if got else ""
                    raise SourceError(f"{self._name} gave no picture in {timeout_s:g} s{part}{self._said()}")
                with self._reading:
                    if self._closed.is_set() or not poll.poll(min(left_s, 0.5) * 1000):
                        continue
                    try:
                        count = os.readv(self._pipe, [room[got:]])
                    except BlockingIOError:
                        continue
                if count == 0:
                    raise SourceError(self._ended(got, len(room)))
                got += count
        return np.asarray(cv2.cvtColor(raw, cv2.COLOR_YUV2BGR_I420), np.uint8)

    def _ended(self, got: int, size: int) -> str:
        try:
            status = self._process.wait(END_S)
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
        except subprocess.TimeoutExpired:
            how = "its output, not itself"
        self._listener.join(END_S)
        part = f" in the middle of a picture, after {got} of {size} bytes" if got else ""
        return f"{self._name}: its program ended {how}{part}{self._said()}"

    def _said(self) -> str:
        """The last thing that the program said about an error, or else at all."""
        words = [line for line in self._words if line]
        errors = [line for line in words if "error" in line.lower()]
        return f"; it said: {(errors or words)[-1]}" if words else ""

    def _listen(self) -> None:
        """Take what the program prints, so that it never waits for a reader."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._words.append(line.decode(errors="replace").strip()[:300])
