"""The drone's end of the link: a thread that calls the station, and keeps on calling while the flight goes on."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from link.channel import Channel
from link.codec import encode
from link.dealer import Dealer
from link.keys import DroneKeys
from link.messages import PROTOCOL, Casual, Hello, Message, Reliable, Welcome
from link.store import Store
from link.wire import MAX_QUEUED, Pump, Waker, wire_bytes
from models.errors import LinkError

MAX_WAITING = 10_000
"""Reliable messages that wait in memory for the disk, at most; more are dropped and counted."""
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""The same in bytes."""
RETRY_MIN_S, RETRY_MAX_S = 1.0, 30.0
"""Pause after an unanswered Hello, or a failure of the disk; it doubles up to the maximum."""
UNANSWERED_S = 8.0
"""Pause at which unanswered Hellos become a problem to tell."""
BATCH = 64
"""Frames taken from the socket, and messages put on disk, in one turn."""
TURN_S = 5.0
"""Longest pause between two turns."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DroneStats:
    """How the link is.

    Bytes are those of the messages on the TCP stream with CURVE and ZMTP around them, as `wire_bytes` counts them:
    without handshakes (567 up, 301 down each), heartbeats (42 up, 40 down each) and the headers of TCP and IP.
    """

    connected: bool
    """The station answered Hello on the connection that stands."""
    pending: int
    """Reliable messages that the station has not acknowledged yet."""
    bytes_up: int
    bytes_down: int
    messages_up: int
    messages_down: int
    repeated: int
    dropped_casual: int
    dropped_reliable: int
    refused: int
    """Received messages that were not understood, or failed in their handler."""
    problem: str
    """What a person should know or do; else empty."""


class DroneLink:
    """Calls the station of `keys` from a thread of its own, and keeps what has to arrive in `folder`/outbox.sqlite.

    Parameters
    ----------
    keys
        Who this drone is, and where its station.
    folder
        Where the outbox lives; made if missing.
    hello
        Gives the Hello for a new connection, in the link's thread; `drone` and `boot` are filled in afterwards.
    on_message
        Called for each new message from the station, in the link's thread. A reliable one is acknowledged after it
        returned, and comes again where it raised, or the process died within it.

    Raises
    ------
    LinkError
        The outbox cannot be opened or written, or another process has it open.
    """

    def __init__(
        self, keys: DroneKeys, folder: Path, hello: Callable[[], Hello], on_message: Callable[[Message], None]
    ) -> None:
        self._keys = keys
        self._hello = hello
        self._on_message = on_message
        self._store = Store(folder / "outbox.sqlite")
        self._dealer = Dealer(keys)
        self._channel = Channel(self._store, "station")
        self._pump = Pump(self._channel, self._send)
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._lock = threading.Condition()  # for the next six
        self._waiting: deque[tuple[Reliable, int]] = deque()
        self._waiting_bytes = 0
        self._casual: deque[Casual] = deque()
        self._dropped_casual = self._dropped_reliable = 0
        self._closing = False
        self._welcomed = False
        self._hello_s, self._hello_pause_s = 0.0, RETRY_MIN_S
        self._store_s, self._store_pause_s = 0.0, RETRY_MIN_S
        self._stop = threading.Event()
        self._bytes_up = self._bytes_down = self._messages_up = self._messages_down = self._refused = 0
        self._repeated_before = 0  # by channels before this one
        self._problems = dict.fromkeys(("outbox", "store", "link", "answer"), "")

    # --- for any thread --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def post(self, message: Message) -> None:
        """Hand a message over; never blocks.

        A reliable one will reach the station, unless the disk fails until `MAX_WAITING` are exceeded. A casual one is
        sent if there is a connection with room for it. Raises LinkError for a message that cannot be sent at all, and
        after `close`.
        """
        size = len(encode(message))
        with self._lock:
            if self._closing:
                raise LinkError("the link is closed: nothing can be posted any more")
            if isinstance(message, Casual):
                if len(self._casual) >= MAX_QUEUED:
                    self._casual.popleft()
                    self._dropped_casual += 1
                self._casual.append(message)
            elif len(self._waiting) < MAX_WAITING and self._waiting_bytes + size <= MAX_WAITING_BYTES:
                self._waiting.append((message, size))
                self._waiting_bytes += size
            else:
                self._dropped_reliable += 1
                if self._dropped_reliable == 1:
                    _logger.error(
                        "%d messages wait for the disk (%s): new ones are lost", MAX_WAITING, self._store.path
                    )
        self._waker.wake()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the station has acknowledged every reliable message; False if it has not within the time."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._pending(), timeout_s)

    @property
    def stats(self) -> DroneStats:
        """How the link is now."""
        with self._lock:
            return DroneStats(
                connected=self._welcomed,
                pending=self._pending(),
                bytes_up=self._bytes_up,
                bytes_down=self._bytes_down,
                messages_up=self._messages_up,
                messages_down=self._messages_down,
                repeated=self._repeated_before + self._channel.repeated,
                dropped_casual=self._dropped_casual,
                dropped_reliable=self._dropped_reliable,
                refused=self._refused,
                problem="; ".join(filter(None, self._problems.values())),
            )

    def close(self) -> None:
        """Put what waits on disk and end the thread; `flush` first to wait for the station. May be called twice."""
        with self._lock:
            self._closing = True
        self._stop.set()
        self._waker.wake()
        if self._thread.ident is None:
            self._finish()
        else:
            self._thread.join(timeout=10.0)
            if self._thread.is_alive():
                _logger.error("the link's thread does not end: a message handler is stuck")

    def _pending(self) -> int:
        return len(self._waiting) + self._channel.pending()[0]

    # --- the link's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s = RETRY_MIN_S
        while not self._stop.is_set():
            try:
                self._turn()
            except LinkError as error:
                self._say("store", str(error))
                self._repair()
            except Exception:  # the thread's own boundary: the flight goes on, and so does the link
                _logger.exception("a bug in the link")
            else:
                self._say("store", "")
                pause_s = RETRY_MIN_S
                continue
            self._stop.wait(pause_s)
            pause_s = min(2 * pause_s, TURN_S)
        self._finish()

    def _finish(self) -> None:
        try:
            while self._waiting:
                self._store_batch()
        except LinkError as error:
            _logger.error("%d messages are lost: %s", len(self._waiting), error)
        self._dealer.close()
        self._store.close()
        self._waker.close()

    def _turn(self) -> None:
        now_s = time.monotonic()
        until_s = [now_s + TURN_S]
        if self._dealer.online and not self._welcomed:
            self._say_hello(now_s, until_s)
        if not self._welcomed:
            self._drop_casual()
        self._store_waiting(now_s, until_s)
        if self._welcomed:
            self._pump_out(now_s, until_s)
        with self._lock:
            if not self._pending():
                self._lock.notify_all()
        self._dealer.poll(self._waker, for_room=self._pump.blocked, now_s=now_s, until_s=min(until_s))
        now_s = time.monotonic()
        for online in self._dealer.changes(now_s):
            self._connection(online)
        self._say("link", self._dealer.problem)
        self._take(now_s)

    def _connection(self, online: bool) -> None:
        self._welcomed = False
        self._hello_s, self._hello_pause_s = 0.0, RETRY_MIN_S
        self._pump.reset()
        if not online:
            _logger.info("lost the station at %s", self._keys.address)

    def _say_hello(self, now_s: float, until_s: list[float]) -> None:
        """Hello until Welcome: what comes before is ignored by a station that does not know the connection yet."""
        if now_s >= self._hello_s:
            if self._hello_pause_s >= UNANSWERED_S and not self._problems["answer"]:
                self._say("answer", f"the station at {self._keys.address} takes the call but does not answer Hello")
            hello = msgspec.structs.replace(self._hello(), drone=self._keys.name, boot=self._store.boot)
            self._send(encode(hello))
            self._hello_s = now_s + self._hello_pause_s
            self._hello_pause_s = min(2 * self._hello_pause_s, RETRY_MAX_S)
        until_s.append(self._hello_s)

    def _pump_out(self, now_s: float, until_s: list[float]) -> None:
        with self._lock:
            casual = list(self._casual)
            self._casual.clear()
        for message in casual:
            if not self._pump.casual(message):
                self._dropped_casual += 1
        self._pump.turn(now_s)
        if not self._pump.blocked and (next_s := self._channel.next_s()) is not None:
            until_s.append(next_s)

    def _drop_casual(self) -> None:
        """Without a connection, casual messages are old news by the time there is one."""
        with self._lock:
            self._dropped_casual += len(self._casual)
            self._casual.clear()

    def _send(self, frame: bytes) -> bool:
        if not self._dealer.send(frame):
            return False
        self._bytes_up += wire_bytes(len(frame))
        self._messages_up += 1
        return True

    def _take(self, now_s: float) -> None:
        losses = self._store.losses
        for _ in range(BATCH):
            if (frame := self._dealer.receive()) is None:
                break
            self._bytes_down += wire_bytes(len(frame))
            self._messages_down += 1
            try:
                self._channel.incoming(frame, self._deliver, now_s)
            except LinkError as error:
                if self._store.losses != losses:
                    raise
                self._refused += 1
                _logger.error("a message from the station is left out: %s", error)
            except Exception:  # a handler's bug must not end the link; the message comes again
                self._refused += 1
                _logger.exception("a message from the station failed in its handler")
        self._store.commit()

    def _deliver(self, message: Message) -> None:
        if isinstance(message, Welcome):
            if message.protocol != PROTOCOL:
                self._say(
                    "answer",
                    f"the station at {self._keys.address} speaks protocol {message.protocol}, this drone {PROTOCOL}: "
                    "install the same version on both",
                )
                return
            self._say("answer", "")
            if not self._welcomed:
                _logger.info("connected to the station at %s", self._keys.address)
            self._welcomed = True
        self._on_message(message)

    def _store_waiting(self, now_s: float, until_s: list[float]) -> None:
        """Move a batch from memory to disk; where that fails go on with what is on disk, and try again later."""
        if self._waiting and now_s >= self._store_s:
            try:
                self._store_batch()
            except LinkError as error:
                if self._store.damaged:
                    raise
                self._say("outbox", str(error))
                self._store_s = now_s + self._store_pause_s
                self._store_pause_s = min(2 * self._store_pause_s, RETRY_MAX_S)
            else:
                self._say("outbox", "")
                self._store_pause_s = RETRY_MIN_S
        if self._waiting:
            until_s.append(self._store_s)

    def _store_batch(self) -> None:
        with self._lock:
            batch = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
        self._channel.post(*(message for message, _ in batch))
        with self._lock:
            for _, size in batch:
                self._waiting.popleft()
                self._waiting_bytes -= size

    def _repair(self) -> None:
        """Open a damaged file anew, which moves it aside."""
        if not self._store.damaged:
            return
        self._store.close()
        try:
            self._store = Store(self._store.path)
        except LinkError as error:
            self._say("store", str(error))
            return
        self._repeated_before += self._channel.repeated
        self._channel = Channel(self._store, "station")
        self._pump = Pump(self._channel, self._send)

    def _say(self, topic: str, problem: str) -> None:
        """Keep a problem for `stats`, and log it once."""
        if problem != self._problems[topic]:
            self._problems[topic] = problem
            if problem:
                _logger.warning("%s", problem)
