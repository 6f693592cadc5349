"""The station: what drones say goes in, what operators answer goes out, and every drone's model is mirrored.

`Station` knows no socket and no page. It is called from one thread (the event loop): `receive` by the link for every
message, `answer`, `undo` and `control` by the page, `tick` once a second.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import msgspec

from ground.answers import check_answer
from ground.checks import check_detections, check_hello, check_integers, check_problems, check_query, check_status
from ground.rows import DroneRow, Given, Unsent
from ground.store import StorageError, Store, UnknownError
from link.messages import (
    HASH_BYTES,
    PROTOCOL,
    Control,
    Delta,
    Detections,
    Hello,
    Label,
    Message,
    Mirror,
    Problems,
    Query,
    Status,
    Undo,
    Welcome,
)
from link.mirror import Mirror as ModelMirror
from link.station import StationLink
from models.errors import ArtifactError, DeltaError, HadanetError, LinkError, StationError
from models.model import Model

RESYNC_EVERY_S = 5.0
"""A drone is asked for its whole model at most this often."""
RESYNC_PATIENCE_S = 10.0
"""How long a mirror may differ with no delta arriving before the station asks; doubled up to `RESYNC_LONGEST_S`."""
RESYNC_LONGEST_S = 600.0
MAX_TRACK_POINTS = 2000
MAX_MAP_QUERIES = 1000
NOTICES = 20

Action = Literal["freeze", "resume", "anchor", "resync"]
FindBase = Callable[[bytes, tuple[str, ...]], Model]
"""The base model with a hash, for a drone that tells these classes apart; raises ArtifactError."""

log = logging.getLogger("ground")


@dataclass
class _Live:
    """What is known of a drone beyond its row in the database."""

    row: DroneRow
    mirror: ModelMirror | None = None
    no_mirror: str = ""
    problem: str = ""  # as the drone says
    status: Status | None = None
    seen: Detections | None = None
    notices: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=NOTICES))
    refused: int = 0
    resynced: float = -math.inf
    differs_since: float | None = None  # on the station's clock; None while the mirror is equal
    ask_at: float = 0.0
    patience: float = RESYNC_PATIENCE_S


class Station:
    """Takes messages in, gives answers out.

    Parameters
    ----------
    store
        The database; the station's state survives with it.
    find_base
        Finds the model that a drone's deltas start from.
    clock
        Seconds that never go back, for the limits on resynchronising.
    """

    def __init__(self, store: Store, find_base: FindBase, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._find_base = find_base
        self._clock = clock
        self._link: StationLink | None = None
        self._listeners: list[Callable[[str, str], None]] = []
        self._drones = {row.name: self._revive(row) for row in store.drones()}

    def attach(self, link: StationLink) -> None:
        """Send through `link` from now on, first of all what a crash kept back."""
        self._link = link
        self._hand_over()

    def listen(self, listener: Callable[[str, str], None]) -> None:
        """Call `listener(kind, drone)` after every change; kind is drone, query, label or seen."""
        self._listeners.append(listener)

    # --- from the drones --------------------------------------------------------------------------------------------

    def receive(self, drone: str, message: Message) -> None:
        """Take a message of a drone whose key the link has checked.

        Returns when it is on disk. A message that makes no sense is refused with a notice on the page and not asked
        for again; a StorageError leaves it with the link, which will offer it again.
        """
        try:
            if isinstance(message, Hello):
                self._on_hello(drone, message)
                return
            live = self._live(drone)
            match message:
                case Query():
                    self._on_query(live, message)
                case Delta():
                    self._on_delta(live, message)
                case Status():
                    self._on_status(live, message)
                case Problems():
                    live.problem = check_problems(message)
                    self._tell("drone", drone)
                case Detections():
                    self._on_detections(live, message)
                case _:
                    raise LinkError(f"a drone does not send {type(message).__name__}")
        except StorageError:
            raise
        except HadanetError as error:
            log.warning("%s: refused %s: %s", drone, type(message).__name__, error)
            if (known := self._drones.get(drone)) is not None:
                known.refused += 1
                self._notice(known, f"refused a {type(message).__name__.lower()}: {error}")

    def changed(self, drone: str) -> None:
        """Tell the page that a drone came or went."""
        self._tell("drone", drone)

    def _on_hello(self, drone: str, hello: Hello) -> None:
        check_hello(hello)
        self._store.save_drone(drone, hello)
        row = next(row for row in self._store.drones() if row.name == drone)
        live = self._drones.get(drone)
        if live is None or live.row.base_hash != row.base_hash or live.mirror is None:
            fresh = self._revive(row)
            if live is not None:
                fresh.notices.extendleft(reversed(live.notices))
            self._drones[drone] = live = fresh
        if live.mirror is not None and row.classes != live.mirror.model.classes:  # the base's, and a delta added some
            row = msgspec.structs.replace(row, classes=live.mirror.model.classes)
            self._store.save_model(drone, row.model_hash, row.classes)
        live.row = row
        live.patience = RESYNC_PATIENCE_S
        mirror_hash = b"" if live.mirror is None else live.mirror.hash
        self._post(drone, Welcome(protocol=PROTOCOL, t_ns=time.time_ns(), mirror_hash=mirror_hash))
        self._tell("drone", drone)

    def _on_query(self, live: _Live, query: Query) -> None:
        query = check_query(query, live.row.rows, live.row.cols)
        classes = live.row.classes
        guess = classes[query.guess] if 0 <= query.guess < len(classes) else ""
        if self._store.add_query(live.row.name, query, guess):
            self._tell("query", live.row.name)

    def _on_delta(self, live: _Live, delta: Delta) -> None:
        check_integers(delta)
        name, base = live.row.name, live.row.base_hash
        if live.mirror is None:  # kept, so that the mirror can follow once the base model is there
            self._store.add_delta(name, base, delta)
            self._tell("drone", name)
            return
        again = live.mirror.hash != delta.parent != base and self._store.has_delta(name, delta)
        if not again:
            try:
                live.mirror.apply(delta)
            except DeltaError as error:
                live.differs_since = -math.inf  # no need to wait and see
                live.ask_at = self._clock() + live.patience
                self._resync(live, f"a delta does not fit the mirror: {error}")
                return
            try:
                self._store.add_delta(name, base, delta)
                self._store.save_model(name, delta.result, live.mirror.model.classes)
            except StorageError:
                self._mirror(live)  # back to what is on disk
                raise
            live.row = msgspec.structs.replace(
                live.row, model_hash=delta.result, classes=tuple(live.mirror.model.classes)
            )
            live.differs_since, live.patience = None, RESYNC_PATIENCE_S
        self._post(name, Mirror(model_hash=live.mirror.hash, deltas=live.mirror.applied))
        self._tell("drone", name)

    def _on_status(self, live: _Live, status: Status) -> None:
        status = check_status(status)
        if len(status.model_hash) == HASH_BYTES:
            live.row = msgspec.structs.replace(live.row, model_hash=status.model_hash)
        live.status = status
        self._store.add_status(live.row.name, status)
        self._tell("drone", live.row.name)

    def _on_detections(self, live: _Live, seen: Detections) -> None:
        check_detections(seen)
        live.seen = seen
        self._store.save_detections(live.row.name, seen)
        self._tell("seen", live.row.name)

    # --- from the operators -----------------------------------------------------------------------------------------

    def answer(self, given: Given) -> int:
        """Store an operator's answer, send it, and return its label id.

        Raises
        ------
        UnknownError, ConflictError
            Where the question does not exist or has an answer in force.
        StationError
            Where `ground.answers.check_answer` refuses it.
        """
        given = check_answer(given, self._live(given.drone).row.classes, self._pending(given.drone))
        label = self._store.add_labels([given])[0]
        self._tell("label", given.drone)
        self._hand_over()
        return label

    def judge(self, drone: str, query: int, right: bool) -> int:
        """Answer that the drone's guess is right (then it is its class) or wrong; see `answer`.

        Raises StationError where the drone made no guess.
        """
        self._live(drone)
        guess = self._store.query(drone, query).guess
        if not guess:
            raise StationError(f"question {query} of drone {drone!r} has no guess to be right or wrong: answer a class")
        return self.answer(Given(drone, query, guess, wrong=not right))

    def undo(self, label: int) -> None:
        """Take an answer back here and on the drone; its question is open again. Twice is the same as once."""
        drone, _ = self._store.undo_label(label)
        self._tell("label", drone)
        self._hand_over()

    def control(self, drone: str, action: str) -> None:
        """Command a drone: freeze, resume, anchor or resync."""
        live = self._live(drone)
        if action not in get_args(Action):
            raise StationError(f"there is no action {action!r}: use one of {', '.join(get_args(Action))}")
        if self._link is None:
            raise StationError("the station is not listening to drones yet: try again in a moment")
        self._link.post(drone, Control(action=action))  # type: ignore[arg-type]  # checked against the same Literal
        self._notice(live, f"told to {action}")

    def tick(self) -> None:
        """Once a second: hand over what other processes stored, and ask for models that stay different."""
        self._hand_over()
        for live in self._drones.values():
            if live.mirror is None or live.mirror.hash == live.row.model_hash:
                live.differs_since = None
                continue
            now = self._clock()
            if live.differs_since is None:
                live.differs_since, live.ask_at = now, now + live.patience
                self._tell("drone", live.row.name)
            elif now >= live.ask_at and self._connected(live.row.name):
                live.patience = min(2 * live.patience, RESYNC_LONGEST_S)  # a thin link needs long for a whole model
                live.ask_at = now + live.patience
                self._resync(live, "its model differs from the mirror and no delta explains it")

    # --- for the page -----------------------------------------------------------------------------------------------

    def drones(self) -> list[str]:
        """The names of all drones that ever called."""
        return sorted(self._drones)

    def describe(self, drone: str) -> dict[str, Any]:
        """How a drone is, ready for JSON; numbers above 53 bits are text."""
        live = self._live(drone)
        status, row, store = live.status or Status(frame=0, t_ns=0), live.row, self._store
        mirror = b"" if live.mirror is None else live.mirror.hash
        equal = mirror == row.model_hash
        early = live.differs_since is None or self._clock() - live.differs_since < RESYNC_PATIENCE_S
        return {
            "name": drone,
            "connected": self._connected(drone),
            "seen_s": round(row.seen_ns / 1e9, 3),
            "classes": row.classes,
            "pending": self._pending(drone),
            "rows": row.rows,
            "cols": row.cols,
            "status": {k: v for k, v in msgspec.structs.asdict(status).items() if k not in ("model_hash", "t_ns")},
            "heard": live.status is not None,
            "model_hash": row.model_hash.hex(),
            "base_hash": row.base_hash.hex(),
            "mirror_hash": mirror.hex(),
            "mirror_equal": equal,
            "mirror": "equal" if equal else "none" if not mirror else "behind" if early else "differs",
            "no_mirror": live.no_mirror,
            "problem": live.problem,
            "deltas": 0 if live.mirror is None else live.mirror.applied,
            "labels": store.count_labels(drone),
            "open": store.count_open(drone),
            "link": self._describe_link(drone),
            "refused": live.refused,
            "notices": [{"t_s": round(when, 3), "text": text} for when, text in live.notices],
        }

    def describe_map(self, drone: str) -> dict[str, Any]:
        """Where a drone has been and where it asked: [latitude, longitude], [.., .., class or null, id].

        The class is null while the question is open, and "" where no answer says which one it is.
        """
        asked = [q for q in self._store.latest_queries(drone, MAX_MAP_QUERIES) if q.lat_deg is not None]
        return {
            "track": self._store.track(drone, MAX_TRACK_POINTS),
            "asked": [[q.lat_deg, q.lon_deg, "" if q.wrong else q.answer, str(q.id)] for q in asked],
        }

    def describe_seen(self, drone: str) -> dict[str, Any] | None:
        """The summary of the latest frame: class numbers and confidences (0..1) row by row."""
        seen = self._live(drone).seen
        if seen is None:
            return None
        return {
            "frame": seen.frame,
            "rows": seen.rows,
            "cols": seen.cols,
            "classes": list(seen.classes),
            "confidence": [round(c / 255, 3) for c in seen.confidence],
        }

    # --- inside -----------------------------------------------------------------------------------------------------

    def _live(self, drone: str) -> _Live:
        try:
            return self._drones[drone]
        except KeyError:
            raise UnknownError(f"no drone {drone!r} has called this station") from None

    def _pending(self, drone: str) -> list[str]:
        """New classes of a drone that no delta has confirmed."""
        return [name for name in self._store.new_classes(drone) if name not in self._live(drone).row.classes]

    def _revive(self, row: DroneRow) -> _Live:
        live = _Live(row, status=self._store.last_status(row.name), seen=self._store.detections(row.name))
        self._mirror(live)
        return live

    def _mirror(self, live: _Live) -> None:
        """Build the mirror from the base model and the stored deltas."""
        live.mirror, live.no_mirror = None, ""
        try:
            base = self._find_base(live.row.base_hash, live.row.classes)
        except ArtifactError as error:
            live.no_mirror = str(error)
            log.warning("%s: no mirror: %s", live.row.name, error)
            return
        live.mirror = ModelMirror(base)
        for delta in self._store.deltas(live.row.name, live.row.base_hash):
            try:
                live.mirror.apply(delta)
            except DeltaError as error:  # from a time without base model; the drone will be asked for everything
                log.warning("%s: a stored delta does not apply: %s", live.row.name, error)
                break

    def _resync(self, live: _Live, why: str) -> None:
        now = self._clock()
        if now - live.resynced < RESYNC_EVERY_S:
            return
        live.resynced = now
        log.warning("%s: resync: %s", live.row.name, why)
        self._notice(live, f"asked for its whole model: {why}")
        self._post(live.row.name, Control(action="resync"))

    def _hand_over(self) -> None:
        """Give the link every answer and undo that it does not have yet; they stay stored until it took them."""
        for drone in self._drones if self._link is not None else ():
            while items := self._store.unsent(drone):
                try:
                    for item in items:
                        self._link_one(item)
                except LinkError as error:
                    log.warning("%s: an answer waits: %s", drone, error)
                    break  # the next tick tries again

    def _link_one(self, item: Unsent) -> None:
        if item.query is None or item.answer is None:
            self._post(item.drone, Undo(label=item.label))
        else:
            label = Label(id=item.label, query=item.query, answer=item.answer, wrong=item.wrong, new=item.new)
            self._post(item.drone, label)
        self._store.mark_sent(item)

    def _post(self, drone: str, message: Message) -> None:
        if self._link is not None:
            self._link.post(drone, message)

    def _connected(self, drone: str) -> bool:
        return self._link is not None and self._link.connected(drone)

    def _describe_link(self, drone: str) -> dict[str, Any]:
        try:
            stats = None if self._link is None else self._link.stats(drone)
        except LinkError as error:  # its keys were taken away
            return {"up": 0, "down": 0, "pending": 0, "problem": str(error)}
        if stats is None:
            return {"up": 0, "down": 0, "pending": 0, "problem": ""}
        return {"up": stats.bytes_up, "down": stats.bytes_down, "pending": stats.pending, "problem": stats.problem}

    def _notice(self, live: _Live, text: str) -> None:
        live.notices.append((time.time(), text))
        self._tell("drone", live.row.name)

    def _tell(self, kind: str, drone: str) -> None:
        for listener in self._listeners:
            listener(kind, drone)
