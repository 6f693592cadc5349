"""The station's end of the link: one socket for all drones, in the asyncio loop of its caller.

A drone is who its key says: the list of enrolled drones is read anew when its folder changes, so a drone that is
enrolled while the station runs may call at once, and one whose file is deleted is heard no more.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.asyncio
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from link.channel import Channel
from link.codec import decode
from link.keys import AllowList, StationKeys
from link.messages import PROTOCOL, Casual, Hello, Message, Welcome
from link.store import Store
from link.wire import ZAP_DOMAIN, Pump, Waker, set_options, wire_bytes
from models.errors import LinkError

BATCH = 64
"""Frames taken from the socket in one turn, before the loop's other tasks run and the disk is synced."""
TURN_S = 0.5
"""Longest pause between two turns."""
BLOCKED_S = 0.05
"""Pause before a socket without room is tried again."""
ZAP_ADDRESS = "inproc://zeromq.zap.01"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StationStats:
    """How the link to one drone is. Bytes are counted as in `link.drone.DroneStats`."""

    connected: bool
    last_seen_s: float | None
    """Unix time of the last frame in this run of the station, None before the first."""
    pending: int
    """Reliable messages that the drone has not acknowledged yet."""
    bytes_up: int
    bytes_down: int
    messages_up: int
    messages_down: int
    repeated: int
    dropped_casual: int
    rejected: int
    """Frames that were not understood, that claimed another name, or failed in their handler."""
    problem: str
    """What a person should know or do; else empty."""


class _Peer:
    """A drone as the station knows it. `route` is the connection it said Hello on, None while it is away."""

    def __init__(self, name: str, store: Store, send: Callable[["_Peer", bytes], bool]) -> None:
        self.name = name
        self.route: bytes | None = None
        self.fd = -1
        self.key = b""
        self.last_seen_s: float | None = None
        self.problem = ""
        self.bytes_up = self.bytes_down = self.messages_up = self.messages_down = 0
        self.dropped_casual = self.rejected = self.repeated_before = 0
        self._send = send
        self.open(store)

    def open(self, store: Store) -> None:
        self.channel = Channel(store, self.name)
        self.pump = Pump(self.channel, lambda frame: self._send(self, frame))


class StationLink:
    """Takes calls from enrolled drones. Make and use it within one asyncio loop; nothing in it blocks but disk syncs.

    Parameters
    ----------
    keys
        The station's keys and its list of drones.
    folder
        Where the outbox lives, `folder`/link.sqlite; made if missing.
    address
        Where to listen, such as ``tcp://0.0.0.0:5555``; port 0 takes a free one, which `address` then tells.
    on_message
        Called with a drone's name and each new message from it. A reliable one is acknowledged after it returned, and
        comes again where it raised. It has to answer a Hello with ``post(drone, Welcome(...))``: the drone sends
        nothing else before.
    on_change
        Called with a drone's name when it connected, was lost, or has another problem.

    Raises
    ------
    LinkError
        The address cannot be listened at, or the outbox not be opened.
    """

    def __init__(
        self,
        keys: StationKeys,
        folder: Path,
        address: str,
        on_message: Callable[[str, Message], None],
        on_change: Callable[[str], None] = lambda drone: None,
    ) -> None:
        self.refused_calls = 0
        """Calls by keys that are not on the list."""
        self._allowed = AllowList(keys.folder)
        self._on_message = on_message
        self._on_change = on_change
        self._peers: dict[str, _Peer] = {}
        self._closing = False
        self._failures = 0  # of the disk
        self._ended = asyncio.Event()
        self._ended.set()
        self._store = Store(folder / "link.sqlite")
        self._waker = Waker()
        self._context = zmq.asyncio.Context()
        # `run` waits for these in the loop; the `_now` ones are the same sockets, used without waiting
        self._zap, self._router = self._context.socket(zmq.REP), self._context.socket(zmq.ROUTER)
        self._monitor = self._router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._zap_now: zmq.Socket[bytes] = zmq.Socket.shadow(self._zap.underlying)
        self._router_now: zmq.Socket[bytes] = zmq.Socket.shadow(self._router.underlying)
        self._monitor_now: zmq.Socket[bytes] = zmq.Socket.shadow(self._monitor.underlying)
        set_options(self._router_now)
        # Each connection gets a route made up here. ROUTER_HANDOVER stays off: with it a drone could take over another
        # one's route by claiming its id; and where no drone claims an id, none is refused for coming back.
        self._router_now.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router_now.setsockopt(zmq.CURVE_SERVER, 1)
        self._router_now.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        self._router_now.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        self._router_now.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        self._zap_now.bind(ZAP_ADDRESS)
        try:
            self._router_now.bind(address)
        except zmq.ZMQError as error:
            self._release()
            raise LinkError(
                f"{address}: cannot listen there ({error.strerror}): end the other station, or choose another port"
            ) from error
        self.address: str = self._router_now.getsockopt(zmq.LAST_ENDPOINT).decode().rstrip("\0")  # type: ignore[union-attr]

    async def run(self) -> None:
        """Serve until `close` is called or the task is cancelled."""
        self._ended.clear()
        try:
            while not self._closing:
                poller = zmq.asyncio.Poller()
                for source in (self._zap, self._monitor, self._router, self._waker.fileno()):
                    poller.register(source, zmq.POLLIN)
                try:
                    await poller.poll(round(self._wait_s() * 1000))
                    self._waker.clear()
                    self._turn()
                except LinkError as error:  # the disk; what was handled since the last sync comes again
                    self._failures += 1
                    if _worth_telling(self._failures):
                        _logger.error("%s (%d times so far)", error, self._failures)
                    self._repair()
                    await asyncio.sleep(TURN_S)
                await asyncio.sleep(0)  # where frames come without end, the loop's other tasks run too
        finally:
            self._release()
            self._ended.set()

    async def close(self) -> None:
        """End `run`, and let go of the port and the outbox. May be called twice."""
        self._closing = True
        self._waker.wake()
        await asyncio.wait_for(self._ended.wait(), timeout=10.0)
        self._release()

    def post(self, drone: str, message: Message) -> None:
        """Send a message to a drone. A reliable one is on disk on return; a casual one is lost if the drone is away.

        Raises LinkError where no such drone is enrolled, or the message cannot be sent or stored.
        """
        peer = self._peer(drone)
        if not isinstance(message, Casual):
            peer.channel.post(message)
        elif peer.route is None or not peer.pump.casual(message):
            peer.dropped_casual += 1
        self._waker.wake()

    @property
    def drones(self) -> list[str]:
        """The names of all enrolled drones."""
        return sorted(self._allowed.read().values())

    def connected(self, drone: str) -> bool:
        """Whether a connection stands on which the drone has said Hello."""
        return drone in self._peers and self._peers[drone].route is not None

    def stats(self, drone: str) -> StationStats:
        """How the link to a drone is. Raises LinkError where no such drone is enrolled."""
        peer = self._peer(drone)
        return StationStats(
            connected=peer.route is not None,
            last_seen_s=peer.last_seen_s,
            pending=peer.channel.pending()[0],
            bytes_up=peer.bytes_up,
            bytes_down=peer.bytes_down,
            messages_up=peer.messages_up,
            messages_down=peer.messages_down,
            repeated=peer.repeated_before + peer.channel.repeated,
            dropped_casual=peer.dropped_casual,
            rejected=peer.rejected,
            problem=peer.problem,
        )

    # --- one turn --------------------------------------------------------------------------------------------------

    def _wait_s(self) -> float:
        now_s, wait_s = time.monotonic(), TURN_S
        for peer in self._peers.values():
            if peer.route is None:
                continue
            if peer.pump.blocked:
                wait_s = min(wait_s, BLOCKED_S)
            elif (next_s := peer.channel.next_s()) is not None:
                wait_s = min(wait_s, max(0.0, next_s - now_s))
        return wait_s

    def _turn(self) -> None:
        self._answer_calls()
        names = self._allowed.read()  # behind the calls: whom one of them let in is among them
        for peer in list(self._peers.values()):
            if peer.route is not None and names.get(peer.key) != peer.name:
                self._lost(peer)  # its file was deleted or replaced while it was connected
        now_s = time.monotonic()
        for _ in range(BATCH):
            try:
                route, *parts = self._router_now.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            # Before the frame: its connection may have the descriptor of one that ended just now.
            self._note_losses()
            name = names.get(str(parts[0].get("User-Id")).encode())
            if name is not None:
                self._take(self._peer(name), route.bytes, parts, now_s)
        self._note_losses()
        self._store.commit()
        for peer in list(self._peers.values()):
            if peer.route is not None:
                peer.pump.turn(now_s)

    def _answer_calls(self) -> None:
        """ZAP, RFC 27: libzmq asks for each handshake whether this key may in, and as whom.

        The list is read after a call has come, so that a drone that was enrolled just before is not sent away.
        """
        while True:
            try:
                version, request, _, address, _, _, key, *_ = self._zap_now.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            text = z85.encode(key)
            if text in self._allowed.read():
                answer = [b"200", b"OK", text, b""]
            else:
                answer = [b"400", b"not enrolled", b"", b""]
                self.refused_calls += 1
                if _worth_telling(self.refused_calls):
                    _logger.warning(
                        "refused a call from %s: key %s is of no enrolled drone (%d calls refused so far)",
                        address.decode(errors="replace"),
                        text.decode(),
                        self.refused_calls,
                    )
            self._zap_now.send_multipart([version, request, *answer])

    def _take(self, peer: _Peer, route: bytes, parts: "list[zmq.Frame]", now_s: float) -> None:
        data = b"".join(part.bytes for part in parts)  # more than one part is no message of ours
        peer.last_seen_s = time.time()
        peer.bytes_up += wire_bytes(len(data))
        peer.messages_up += 1
        losses = self._store.losses

        def deliver(message: Message) -> None:
            if not isinstance(message, Hello) or self._greet(peer, message, route, parts[0]):
                self._on_message(peer.name, message)

        try:
            if route != peer.route and not isinstance(decode(data), Hello):
                raise LinkError("a message before Hello")
            peer.channel.incoming(data, deliver, now_s)
        except LinkError as error:
            if self._store.losses != losses:
                raise
            self._reject(peer, str(error))
        except Exception:  # a handler's bug must not end the link; the message comes again
            _logger.exception("a message from drone '%s' failed in its handler", peer.name)
            self._reject(peer, "a message failed in its handler; see the log")

    def _greet(self, peer: _Peer, hello: Hello, route: bytes, first: "zmq.Frame") -> bool:
        """Take the connection as the drone's present one; False where it speaks another protocol."""
        if hello.drone != peer.name:
            raise LinkError(f"it says that it is '{hello.drone[:40]}'")
        if route != peer.route:
            peer.route, peer.fd = route, int(first.get(zmq.SRCFD))
            peer.key = str(first.get("User-Id")).encode()
            peer.pump.reset()
            _logger.info("drone '%s' connected", peer.name)
        same = hello.protocol == PROTOCOL
        if not same:
            peer.pump.casual(Welcome(protocol=PROTOCOL, t_ns=time.time_ns(), mirror_hash=b""))
        peer.problem = (
            "" if same else f"it speaks protocol {hello.protocol}, this station {PROTOCOL}: update one of them"
        )
        self._tell(peer)
        return same

    def _reject(self, peer: _Peer, reason: str) -> None:
        peer.rejected += 1
        if _worth_telling(peer.rejected):
            _logger.warning("drone '%s': %s (%d rejected so far)", peer.name, reason, peer.rejected)
        if reason != peer.problem:
            peer.problem = reason
            self._tell(peer)

    def _note_losses(self) -> None:
        while self._monitor_now.poll(0):
            fd = parse_monitor_message(self._monitor_now.recv_multipart())["value"]
            for peer in list(self._peers.values()):
                if peer.route is not None and peer.fd == fd:
                    self._lost(peer)

    def _lost(self, peer: _Peer) -> None:
        peer.route, peer.fd = None, -1
        peer.pump.reset()
        _logger.info("drone '%s' is away", peer.name)
        self._tell(peer)

    def _send(self, peer: _Peer, frame: bytes) -> bool:
        if peer.route is None:
            return False
        try:
            self._router_now.send_multipart([peer.route, frame], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._lost(peer)
            return False
        peer.bytes_down += wire_bytes(len(frame))
        peer.messages_down += 1
        return True

    # --- state -----------------------------------------------------------------------------------------------------

    def _peer(self, drone: str) -> _Peer:
        if drone not in self._peers:
            if drone not in self._allowed.read().values():
                raise LinkError(f"no drone '{drone}' is enrolled: enroll it first")
            self._peers[drone] = _Peer(drone, self._store, self._send)
        return self._peers[drone]

    def _tell(self, peer: _Peer) -> None:
        try:
            self._on_change(peer.name)
        except Exception:  # as for messages
            _logger.exception("the handler for changes failed for drone '%s'", peer.name)

    def _repair(self) -> None:
        """Open a damaged file anew, which moves it aside."""
        if not self._store.damaged:
            return
        self._store.close()
        try:
            self._store = Store(self._store.path)
        except LinkError as error:
            _logger.error("%s", error)
            return
        for peer in self._peers.values():
            peer.repeated_before += peer.channel.repeated
            peer.open(self._store)

    def _release(self) -> None:
        if not self._router.closed:
            self._router.disable_monitor()
        for sock in (self._zap, self._router, self._monitor):
            sock.close(linger=0)
        self._context.term()
        self._store.close()
        self._waker.close()


def _worth_telling(count: int) -> bool:
    """The 1st, 10th, 100th ...: who sends rubbish without end must not fill the log."""
    return math.log10(count).is_integer()
