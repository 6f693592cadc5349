"""What both ends of the link share: socket options, the count of bytes, and the pump from a channel into a socket."""

import socket
from collections import deque
from collections.abc import Callable, Iterator

import zmq

from link.channel import Channel
from link.codec import encode
from link.messages import MAX_MESSAGE_BYTES, Casual

ZAP_DOMAIN = b"hadanet"
HEARTBEAT_S = 5
"""The drone pings and the station answers, 42 bytes up and 40 down: all that crosses when nothing happens."""
UNACKNOWLEDGED_S = 20
"""TCP gives a connection up when bytes, be it of a ping, stay unacknowledged for that long."""
SILENCE_S = 60
"""Either side gives a connection up when no whole message came for that long: the largest needs 4.4 kB/s to pass."""
MAX_QUEUED = 64
"""Frames in a socket's own queue, and casual messages that wait for room in it; then the oldest goes."""


def wire_bytes(size: int) -> int:
    """Bytes that a message frame of `size` bytes takes on the TCP stream: with 33 of CURVE and 2 or 9 of ZMTP.

    >>> wire_bytes(100), wire_bytes(222), wire_bytes(223)
    (135, 257, 265)
    """
    return size + 33 + (2 if size + 33 <= 255 else 9)


def set_options(sock: "zmq.Socket[bytes]") -> None:
    """The options that both ends have in common: small queues, bounded frames, and no waiting at the end."""
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, MAX_QUEUED)
    sock.setsockopt(zmq.RCVHWM, MAX_QUEUED)
    sock.setsockopt(zmq.MAXMSGSIZE, wire_bytes(MAX_MESSAGE_BYTES))
    sock.setsockopt(zmq.TCP_MAXRT, UNACKNOWLEDGED_S * 1000)


class Waker:
    """Ends a poll from outside: `fileno` becomes readable after `wake`, until `clear`."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """The file descriptor to poll for reading."""
        return self._reader.fileno()

    def wake(self) -> None:
        """End the poll, or the next one; from any thread, never blocks."""
        try:
            self._writer.send(b"\0")
        except BlockingIOError:
            pass  # it is readable enough
        except OSError:
            pass  # closed: nobody polls any more

    def clear(self) -> None:
        """Take back all wakes."""
        try:
            while self._reader.recv(4096):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close both ends; may be called twice."""
        self._reader.close()
        self._writer.close()


class Pump:
    """Moves what a channel has to say into a socket that may be full: acknowledgements, casual, then reliable messages.

    `send` takes a frame or returns False for no room; the frame is then offered again at the next turn.
    """

    def __init__(self, channel: Channel, send: Callable[[bytes], bool]) -> None:
        self.channel = channel
        self._send = send
        self._frames: deque[bytes] = deque()
        self._casual: deque[bytes] = deque()

    @property
    def blocked(self) -> bool:
        """Whether frames wait for room in the socket."""
        return bool(self._frames)

    def casual(self, message: Casual) -> bool:
        """Queue a casual message; False where the oldest one had to go for it. LinkError if it cannot be sent."""
        data = encode(message)
        full = len(self._casual) >= MAX_QUEUED
        if full:
            self._casual.popleft()
        self._casual.append(data)
        return not full

    def turn(self, now_s: float) -> None:
        """Send what can be sent now. Raises LinkError where the store cannot be written."""
        for frames in self._sources(now_s):
            self._frames.extend(frames)
            while self._frames:
                if not self._send(self._frames[0]):
                    return
                self._frames.popleft()

    def reset(self) -> None:
        """The connection is another, or gone: forget what was meant for it; the channel repeats what matters."""
        self._frames.clear()
        self._casual.clear()
        self.channel.reconnected()

    def _sources(self, now_s: float) -> Iterator[list[bytes]]:
        yield []  # first what is left from the last turn
        yield self.channel.acknowledge()
        casual = list(self._casual)
        self._casual.clear()
        yield casual
        yield self.channel.outgoing(now_s)
