"""A reliable channel over anything that carries frames: order, no loss, no message twice, across restarts.

Knows no socket and no clock: frames come in and go out as bytes, the time is passed in. A `Channel` is the conversation
with one peer; the `Store` that makes it durable may serve many.

A reliable message is numbered within a boot (a random number, new at each process start, because a memory card may be
cloned or restored to an older state) and repeated until the peer's cumulative acknowledgement. The receiver handles a
boot's messages in order and records the number after the handler returned. A process that is killed between the two
handles these few again at its next start, so what a handler does must bear repetition: labels have numbers, deltas
have hashes.
"""

from collections import deque
from collections.abc import Callable
from typing import Annotated

import msgspec

from link.codec import decode, encode, refuse
from link.messages import MAX_MESSAGE_BYTES, Casual, Message, Reliable
from link.store import Store
from models.errors import LinkError

WINDOW = 32
"""At most this many messages are sent ahead of the acknowledgements."""
WINDOW_BYTES = 16 * 1024
"""Nor more bytes than this (one message always goes), so that casual ones do not queue behind them on a thin link."""
REPEAT_MIN_S, REPEAT_MAX_S = 1.0, 30.0
"""Bounds of the repeat timer; it doubles from one repetition to the next."""
MAX_PENDING = 100_000
"""Bound on messages that wait for one peer's acknowledgement; then `post` refuses."""
MAX_PENDING_BYTES = 64 * 1024 * 1024
"""The same in bytes."""

_Boot = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_Seq = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class _Data(msgspec.Struct, frozen=True, array_like=True, tag=64):
    """A numbered message. `head` says that the peer has acknowledged all numbers of this boot before it."""

    boot: _Boot
    seq: _Seq
    head: bool
    body: bytes


class _Ack(msgspec.Struct, frozen=True, array_like=True, tag=65):
    """Every message of `boot` up to `seq` was handled and recorded."""

    boot: _Boot
    seq: _Seq


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[_Data | _Ack | Casual] = msgspec.msgpack.Decoder(_Data | _Ack | Casual)


class _Entry(msgspec.Struct):
    """An unacknowledged message; `sent_s` is when it first went out in this process, None if it did not yet."""

    id: int
    boot: int
    seq: int
    body: bytes
    sent_s: float | None = None
    repeated: bool = False


class Channel:
    """The conversation with `peer`. Every method may raise LinkError where the store cannot be written.

    Counters: `repeated` frames sent again, `duplicates` and `gaps` received and not handled, `refused` messages that
    were not understood and given up.
    """

    def __init__(self, store: Store, peer: str) -> None:
        self.store = store
        self.peer = peer
        self.repeated = self.duplicates = self.gaps = self.refused = 0
        self._seq = 0  # last number given in this boot
        self._pending = self._pending_bytes = 0
        self._window: deque[_Entry] = deque()  # the oldest unacknowledged messages
        self._loaded = 0  # id of the newest message that was read into the window
        self._sent = 0  # how many of the window are on their way
        self._room = 1  # how many may be
        self._repeat_s: float | None = None  # when the oldest is sent again
        self._interval_s = REPEAT_MIN_S
        self._slowest_s = 0.0  # smoothed time to an acknowledgement
        self._seen: dict[int, int] = {}  # boot of the peer -> last number handled
        self._owed: set[int] = set()  # boots of the peer to acknowledge
        self._losses = store.losses
        self._load()

    def post(self, *messages: Reliable) -> None:
        """Number the messages and put them into the outbox: durable on return, all or none.

        Raises LinkError where a message cannot be sent, too many wait already, or the disk is full.
        """
        self._reload_if_lost()
        bodies = [encode(message) for message in messages]
        size = sum(map(len, bodies))
        if self._pending + len(bodies) > MAX_PENDING or self._pending_bytes + size > MAX_PENDING_BYTES:
            raise LinkError(
                f"{self._pending} messages ({self._pending_bytes} bytes) wait for '{self.peer}' in {self.store.path}, "
                f"the most it takes: connect to it, or delete the file to give them up"
            )
        for offset, body in enumerate(bodies, 1):
            row = (self.peer, self.store.boot, self._seq + offset, body)
            self.store.execute("INSERT INTO outbox (peer, boot, seq, body) VALUES (?, ?, ?, ?)", row)
        self.store.commit()
        self._seq += len(bodies)
        self._pending += len(bodies)
        self._pending_bytes += size

    def outgoing(self, now_s: float, *, window: int = WINDOW) -> list[bytes]:
        """The frames to send now, for the first time or again.

        When nothing was acknowledged for the repeat timer's time, the oldest goes out again alone, and the window
        opens by as many as are then acknowledged: a slow link is not flooded with what is already on its way.
        """
        self._reload_if_lost()
        self._refill()
        if self._sent and self._repeat_s is not None and now_s >= self._repeat_s:
            self._sent, self._room = 0, 1
            self._repeat_s = None
            self._interval_s = min(2 * self._interval_s, REPEAT_MAX_S)
        frames = []
        while self._unsent(window):
            entry = self._window[self._sent]
            if entry.sent_s is None:
                entry.sent_s = now_s
            else:
                entry.repeated = True
                self.repeated += 1
            frames.append(_encoder.encode(_Data(entry.boot, entry.seq, self._sent == 0, entry.body)))
            self._sent += 1
        if self._sent and self._repeat_s is None:
            self._repeat_s = now_s + self._interval_s
        return frames

    def next_s(self) -> float | None:
        """When `outgoing` has something next, on its clock: 0 for at once, None for not before something happens."""
        self._reload_if_lost()
        self._refill()
        if self._unsent(WINDOW):
            return 0.0
        return self._repeat_s if self._sent else None

    def reconnected(self) -> None:
        """What was on its way is lost: `outgoing` repeats from the oldest message at once."""
        self._sent, self._room = 0, 1
        self._repeat_s = None
        self._interval_s = self._first_interval()
        for entry in self._window:
            entry.sent_s, entry.repeated = None, False

    def incoming(self, data: bytes, handler: Callable[[Message], None], now_s: float) -> None:
        """Take one frame; `handler` is called with a message that is new and next in order, or casual.

        A handler that raises leaves its message unacknowledged, so that it comes again. Raises LinkError where the
        frame is not of this protocol; a numbered one is given up then (it would not be better the next time).
        """
        self._reload_if_lost()
        frame = self._parse(data)
        if isinstance(frame, _Ack):
            self._acknowledged(frame, now_s)
        elif isinstance(frame, _Data):
            self._arrived(frame, handler)
        else:
            handler(frame)

    def acknowledge(self) -> list[bytes]:
        """Make durable what was handled since the last call, and give the acknowledgements to send for it.

        To be called after a batch of `incoming`: one sync to disk and one frame, however many messages came.
        """
        self.store.commit()
        self._reload_if_lost()
        frames = [_encoder.encode(_Ack(boot, self._seen[boot])) for boot in sorted(self._owed) if boot in self._seen]
        self._owed.clear()
        return frames

    def pending(self) -> tuple[int, int]:
        """How many messages, and how many bytes, wait for their acknowledgement."""
        return self._pending, self._pending_bytes

    # --- out -------------------------------------------------------------------------------------------------------

    def _unsent(self, window: int) -> bool:
        """Whether the next of the window may go. A boot's messages wait until those of the boot before arrived."""
        if self._sent >= min(len(self._window), self._room, window):
            return False
        return self._window[self._sent].boot == self._window[0].boot

    def _refill(self) -> None:
        size = sum(len(entry.body) for entry in self._window)
        while len(self._window) < min(WINDOW, self._pending) and (not self._window or size < WINDOW_BYTES):
            sql = "SELECT id, boot, seq, body FROM outbox WHERE peer = ? AND id > ? ORDER BY id LIMIT 1"
            ((id_, boot, seq, body),) = self.store.execute(sql, (self.peer, self._loaded))
            self._window.append(_Entry(id_, boot, seq, body))
            self._loaded = id_
            size += len(body)

    def _acknowledged(self, ack: _Ack, now_s: float) -> None:
        done: list[_Entry] = []
        while self._window:
            entry = self._window[0]
            # never sent, and yet acknowledged: from before a restart, or made up; it will be acknowledged again
            if entry.boot != ack.boot or entry.seq > ack.seq or entry.sent_s is None:
                break
            done.append(self._window.popleft())
        if not done:
            return
        self.store.execute("DELETE FROM outbox WHERE peer = ? AND id <= ?", (self.peer, done[-1].id))
        self._pending -= len(done)
        self._pending_bytes -= sum(len(entry.body) for entry in done)
        self._sent = max(0, self._sent - len(done))
        self._room = min(self._room + len(done), WINDOW)
        last = done[-1]
        if last.sent_s is not None and not last.repeated:  # else it is unknown which sending was meant
            taken_s = now_s - last.sent_s
            self._slowest_s = max(taken_s, 0.75 * self._slowest_s + 0.25 * taken_s)
            self._interval_s = self._first_interval()
        self._repeat_s = now_s + self._interval_s if self._sent else None

    def _first_interval(self) -> float:
        return min(max(REPEAT_MIN_S, 2 * self._slowest_s), REPEAT_MAX_S)

    # --- in --------------------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> _Data | _Ack | Casual:
        if len(data) > MAX_MESSAGE_BYTES:
            refuse(data, f"larger than {MAX_MESSAGE_BYTES} bytes")
        try:
            return _decoder.decode(data)
        except (ValueError, RecursionError) as error:
            refuse(data, str(error), error)

    def _arrived(self, frame: _Data, handler: Callable[[Message], None]) -> None:
        last = self._seen.get(frame.boot, 0)
        if frame.seq <= last:
            self.duplicates += 1
            self._owed.add(frame.boot)
            return
        # A head beyond the next number: the peer has acknowledgements that this side does not remember giving, because
        # its file was lost or restored. Those messages are gone at the peer; go on with what is there.
        if frame.seq != last + 1 and not frame.head:
            self.gaps += 1
            return
        try:
            message = decode(frame.body)
            if not isinstance(message, Reliable):
                refuse(frame.body, f"a numbered {type(message).__name__}")
        except LinkError:
            self.refused += 1
            self._record(frame)
            raise
        handler(message)
        self._record(frame)

    def _record(self, frame: _Data) -> None:
        self.store.execute("INSERT OR REPLACE INTO inbox VALUES (?, ?, ?)", (self.peer, frame.boot, frame.seq))
        self._seen[frame.boot] = frame.seq
        self._owed.add(frame.boot)

    # --- state -----------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Read the state from the store, at the start and after a transaction was lost."""
        sql = "SELECT COUNT(*), COALESCE(SUM(LENGTH(body)), 0) FROM outbox WHERE peer = ?"
        ((self._pending, self._pending_bytes),) = self.store.execute(sql, (self.peer,))
        self._seen = dict(self.store.execute("SELECT boot, seq FROM inbox WHERE peer = ?", (self.peer,)))
        self._window.clear()
        self._loaded = 0
        self._losses = self.store.losses
        self.reconnected()

    def _reload_if_lost(self) -> None:
        if self._losses != self.store.losses:
            self._load()
