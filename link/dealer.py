"""The drone's socket: a DEALER with CURVE that dials again after every kind of failure, and says what is wrong."""

import zmq
from zmq.utils.monitor import parse_monitor_message

from link.keys import DroneKeys
from link.wire import HEARTBEAT_S, SILENCE_S, Waker, set_options

RECONNECT_MIN_S, RECONNECT_MAX_S = 0.25, 10.0
"""Pause between attempts to reach a station that is away."""
BACKOFF_MIN_S, BACKOFF_MAX_S = 1.0, 30.0
"""Pause after a handshake that failed; it doubles up to the maximum, as each costs a thin link 900 bytes."""


class Dealer:
    """A connection to the station of `keys`, for use in one thread.

    `online` says that an authenticated connection stands; `problem` why not, where a person can do something about it.
    """

    def __init__(self, keys: DroneKeys) -> None:
        self.online = False
        self.problem = ""
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._dial_s = 0.0
        self._backoff_s = BACKOFF_MIN_S
        self._broken = 0  # handshakes in a row

    def poll(self, waker: Waker, *, for_room: bool, now_s: float, until_s: float) -> None:
        """Wait for a frame, a change of the connection, a wake, room to send if asked for, or `until_s`."""
        if self._socket is None and now_s >= self._dial_s:
            self._dial(now_s)
        poller = zmq.Poller()
        poller.register(waker.fileno(), zmq.POLLIN)
        if self._socket is not None and self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)
            poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if for_room and self.online else 0))
        else:
            until_s = min(until_s, self._dial_s)
        poller.poll(max(0, round((until_s - now_s) * 1000) + 1))  # +1: not a hair too early, again and again
        waker.clear()

    def changes(self, now_s: float) -> list[bool]:
        """The changes of `online` since the last call, in order; a loss and a new connection may both be in it."""
        changes = []
        while self._monitor is not None and self._monitor.poll(0):
            before = self.online
            event = parse_monitor_message(self._monitor.recv_multipart())
            self._handle(zmq.Event(event["event"]), event["value"], now_s)
            if self.online != before:
                changes.append(self.online)
        return changes

    def send(self, frame: bytes) -> bool:
        """Hand a frame to the socket; False where there is no connection or no room."""
        if self._socket is None or not self.online:
            return False
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """The next frame that has come, or None."""
        if self._socket is None:
            return None
        try:
            return b"".join(self._socket.recv_multipart(zmq.NOBLOCK))  # more than one part is no message of ours
        except zmq.Again:
            return None

    def close(self) -> None:
        """Close the socket at once, without sending what it still holds. May be called twice."""
        self._hang_up()
        self._context.destroy(linger=0)

    def _dial(self, now_s: float) -> None:
        sock = self._context.socket(zmq.DEALER)
        set_options(sock)
        sock.setsockopt(zmq.IMMEDIATE, 1)  # no queue for a connection that does not stand: the outbox is the queue
        sock.setsockopt(zmq.RECONNECT_IVL, round(RECONNECT_MIN_S * 1000))
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, round(RECONNECT_MAX_S * 1000))
        sock.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_S * 1000)
        sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_S * 1000)
        sock.setsockopt(zmq.HEARTBEAT_TTL, SILENCE_S * 1000)
        sock.setsockopt(zmq.CURVE_SERVERKEY, self._keys.station)
        sock.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
        sock.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        self._socket, self._monitor = sock, sock.get_monitor_socket()
        try:
            sock.connect(self._keys.address)
        except zmq.ZMQError as error:
            self._refused(now_s, f"{self._keys.address} cannot be called ({error}): correct it in the drone's file")

    def _hang_up(self) -> None:
        self.online = False
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=0)
        if self._monitor is not None:
            self._monitor.close(linger=0)
        self._socket = self._monitor = None

    def _handle(self, event: zmq.Event, value: int, now_s: float) -> None:
        address, name = self._keys.address, self._keys.name
        match event:
            case zmq.Event.HANDSHAKE_SUCCEEDED:
                self.online = True
                self.problem = ""
                self._backoff_s = BACKOFF_MIN_S
                self._broken = 0
            case zmq.Event.DISCONNECTED:
                self.online = False
            case zmq.Event.HANDSHAKE_FAILED_AUTH:
                self._refused(
                    now_s,
                    f"the station at {address} refuses drone '{name}' (code {value}): it is not on its list of drones, "
                    f"or with another key; enroll it there and copy the new file onto the drone",
                )
            case zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | zmq.Event.HANDSHAKE_FAILED_PROTOCOL:
                self._broken += 1
                self._refused(
                    now_s,
                    self.problem
                    if self._broken == 1  # once may be the line
                    else f"handshakes with {address} break off: most likely that station has another key than the one "
                    f"in the file of drone '{name}'; enroll the drone at that station, or correct the address",
                )
            case zmq.Event.CLOSED:
                self.problem = self.problem or f"the station at {address} cannot be reached: still calling"

    def _refused(self, now_s: float, problem: str) -> None:
        # ZeroMQ would never dial again after a refusal, and without any pause after a broken handshake
        self._hang_up()
        self.problem = problem
        self._dial_s = now_s + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
