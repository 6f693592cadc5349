"""What the station must not forget: drones, questions, answers, deltas and where the drones have been.

One SQLAlchemy database, SQLite in the data folder by default. Every method is one transaction and is committed when
it returns, because the link acknowledges a message as soon as the station has taken it. Inserting the same message a
second time changes nothing. Answers are append only: an undo is a row of its own.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Select, Table, and_, create_engine, func, insert, select, update
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from ground import tables as t
from ground.rows import DroneRow, Given, QueryRow, Unsent, spoken
from link.messages import Delta, Detections, Hello, Query, Status
from models.errors import StationError

STATUS_EVERY_S = 30.0
"""The history keeps one status per drone and this many seconds."""
TRACK_STEP_DEG = 1.5e-5
"""A track point is kept when it is this far (about 1.7 m) from the last one, or older than `STATUS_EVERY_S`."""


class UnknownError(StationError):
    """A drone, question or answer that the station has never seen."""


class ConflictError(StationError):
    """An answer to a question that already has one."""


class StorageError(StationError):
    """The database cannot be opened, read or written."""


_QUERY_COLUMNS = [c for c in t.queries.c if c.name not in ("n", "jpeg")]


class Store:
    """The database of a station; used from one thread.

    Parameters
    ----------
    url
        Any SQLAlchemy URL, such as ``sqlite:///station.db`` or ``postgresql+psycopg://host/name``.

    Raises
    ------
    StorageError
        Where the database cannot be opened, or was written by another version.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine: Engine = create_engine(url)
        except (ArgumentError, ImportError) as error:
            raise StorageError(
                f"cannot use this database URL: {error}; give one such as sqlite:///station.db"
            ) from None
        if self._engine.dialect.name == "sqlite":
            t.prepare_sqlite(self._engine)
        with self._begin() as db:
            try:
                t.create(db)
            except StationError as error:
                raise StorageError(
                    f"the database {self._engine.url} {error}: use the station that wrote it, or give another --db"
                ) from None

    @classmethod
    def in_folder(cls, folder: Path) -> "Store":
        """Open ``station.db`` in `folder`, which is made (mode 0700) where it does not exist."""
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"cannot make the data folder {folder}: {error.strerror}") from None
        return cls(f"sqlite:///{folder / 'station.db'}")

    def close(self) -> None:
        """Close all connections; may be called twice."""
        self._engine.dispose()

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as db:
                yield db
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise StorageError(f"the database {self._engine.url} failed: {cause}") from error

    # --- drones -----------------------------------------------------------------------------------------------------

    def save_drone(self, name: str, hello: Hello) -> None:
        """Remember what the drone `name` said about itself."""
        row = {
            "boot": str(hello.boot),
            "base_hash": hello.base_hash,
            "model_hash": hello.model_hash,
            "classes": list(hello.classes),
            "rows": hello.rows,
            "cols": hello.cols,
            "seen_ns": time.time_ns(),
        }
        with self._begin() as db:
            _upsert(db, t.drones, {"name": name}, row)

    def save_model(self, name: str, model_hash: bytes, classes: Sequence[str]) -> None:
        """Remember the model and the classes that a delta led the drone `name` to."""
        with self._begin() as db:
            db.execute(
                update(t.drones)
                .where(t.drones.c.name == name)
                .values(model_hash=model_hash, classes=list(classes), seen_ns=time.time_ns())
            )

    def drones(self) -> list[DroneRow]:
        """All drones that ever called, by name."""
        with self._begin() as db:
            return [
                DroneRow(r.name, int(r.boot), r.base_hash, r.model_hash, tuple(r.classes), r.rows, r.cols, r.seen_ns)
                for r in db.execute(select(t.drones).order_by(t.drones.c.name))
            ]

    # --- questions --------------------------------------------------------------------------------------------------

    def add_query(self, drone: str, query: Query, guess: str) -> bool:
        """Store a question with its picture; `guess` is the name of the class. False where it was there already."""
        row = {c.name: getattr(query, c.name) for c in t.queries.c if c.name not in ("n", "drone", "id", "guess")}
        with self._begin() as db:
            return _insert_new(db, t.queries, {"drone": drone, "id": str(query.id)}, {**row, "guess": guess})

    def open_queries(self, drone: str, limit: int) -> list[QueryRow]:
        """The first `limit` questions of `drone` without an answer, in the order of their arrival."""
        wanted = _with_answers().where(t.queries.c.drone == drone, t.valid.c.id.is_(None)).order_by(t.queries.c.n)
        with self._begin() as db:
            return [_query_row(r) for r in db.execute(wanted.limit(limit))]

    def count_open(self, drone: str) -> int:
        """How many questions of `drone` have no answer."""
        wanted = _with_answers().where(t.queries.c.drone == drone, t.valid.c.id.is_(None))
        with self._begin() as db:
            return db.scalar(select(func.count()).select_from(wanted.subquery())) or 0

    def latest_queries(self, drone: str, limit: int) -> list[QueryRow]:
        """The last `limit` questions of `drone`, answered or not, oldest first."""
        wanted = _with_answers().where(t.queries.c.drone == drone).order_by(t.queries.c.n.desc()).limit(limit)
        with self._begin() as db:
            return [_query_row(r) for r in db.execute(wanted)][::-1]

    def answered(self, drone: str | None = None) -> list[QueryRow]:
        """All questions (of one drone) with an answer in force, in the order of the answers."""
        wanted = _with_answers().where(t.valid.c.id.is_not(None)).order_by(t.valid.c.id)
        if drone is not None:
            wanted = wanted.where(t.queries.c.drone == drone)
        with self._begin() as db:
            return [_query_row(r) for r in db.execute(wanted)]

    def recent_answers(self, drone: str, limit: int) -> list[QueryRow]:
        """The questions of `drone` that were answered last, the latest first."""
        wanted = _with_answers().where(t.queries.c.drone == drone, t.valid.c.id.is_not(None))
        with self._begin() as db:
            return [_query_row(r) for r in db.execute(wanted.order_by(t.valid.c.id.desc()).limit(limit))]

    def query(self, drone: str, query: int) -> QueryRow:
        """One question; UnknownError where there is none."""
        with self._begin() as db:
            row = db.execute(_with_answers().where(t.queries.c.drone == drone, t.queries.c.id == str(query))).first()
        if row is None:
            raise UnknownError(f"drone {drone!r} has not asked question {query}")
        return _query_row(row)

    def jpeg(self, drone: str, query: int) -> bytes:
        """The picture of a question; UnknownError where there is none."""
        with self._begin() as db:
            picture = db.scalar(
                select(t.queries.c.jpeg).where(t.queries.c.drone == drone, t.queries.c.id == str(query))
            )
        if picture is None:
            raise UnknownError(f"drone {drone!r} has not asked question {query}")
        return bytes(picture)

    # --- answers ----------------------------------------------------------------------------------------------------

    def add_label(self, drone: str, query: int, answer: str, wrong: bool = False, new: bool = False) -> int:
        """Store the answer to an open question and return its id, which grows with time and is unique (63 bits).

        Raises
        ------
        UnknownError
            Where `drone` has not asked this question.
        ConflictError
            Where it has an answer in force.
        """
        return self.add_labels([Given(drone, query, answer, wrong, new)])[0]

    def add_labels(self, answers: Sequence[Given]) -> list[int]:
        """Store answers, all or none; see `add_label`."""
        ids = []
        with self._begin() as db:
            newest = db.scalar(select(func.max(t.labels.c.id))) or 0
            for given in answers:
                drone, query = given.drone, given.query
                key = and_(t.queries.c.drone == drone, t.queries.c.id == str(query))
                if db.execute(select(t.queries.c.n).where(key).with_for_update()).first() is None:
                    raise UnknownError(f"drone {drone!r} has not asked question {query}")
                held = db.execute(_with_answers().where(key, t.valid.c.id.is_not(None))).first()
                if held is not None:
                    raise ConflictError(
                        f"question {query} of drone {drone!r} already has the answer {spoken(_query_row(held))}: "
                        "undo it first"
                    )
                newest = max(time.time_ns(), newest + 1)  # unique even when the clock steps back
                row = {**msgspec.structs.asdict(given), "query": str(query)}
                db.execute(insert(t.labels).values(id=newest, t_ns=time.time_ns(), sent=False, **row))
                ids.append(newest)
        return ids

    def undo_label(self, label: int) -> tuple[str, int]:
        """Take an answer back and return (drone, question); doing it twice changes nothing."""
        with self._begin() as db:
            row = db.execute(select(t.labels.c.drone, t.labels.c.query).where(t.labels.c.id == label)).first()
            if row is None:
                raise UnknownError(f"there is no answer {label} to take back")
            values = {"drone": row.drone, "t_ns": time.time_ns(), "sent": False}
            _insert_new(db, t.undos, {"label": label}, values)
        return row.drone, int(row.query)

    def unsent(self, drone: str, limit: int = 500) -> list[Unsent]:
        """Answers to `drone`, then undos, that were not handed to the link yet, oldest first."""
        waiting = select(t.labels).where(~t.labels.c.sent, t.labels.c.drone == drone).order_by(t.labels.c.id)
        with self._begin() as db:
            if found := db.execute(waiting.limit(limit)).all():
                return [Unsent(r.drone, r.id, int(r.query), r.answer, r.wrong, r.new) for r in found]
            # only now the undos: the drone must have heard of an answer before it is taken back
            undone = select(t.undos).where(~t.undos.c.sent, t.undos.c.drone == drone).order_by(t.undos.c.t_ns)
            return [Unsent(r.drone, r.label) for r in db.execute(undone.limit(limit))]

    def mark_sent(self, item: Unsent) -> None:
        """Note that the link has taken over `item`."""
        table, key = (t.undos, t.undos.c.label) if item.query is None else (t.labels, t.labels.c.id)
        with self._begin() as db:
            db.execute(update(table).where(key == item.label).values(sent=True))

    def count_labels(self, drone: str) -> int:
        """How many answers of `drone` are in force."""
        with self._begin() as db:
            return db.scalar(select(func.count()).select_from(t.valid).where(t.valid.c.drone == drone)) or 0

    def new_classes(self, drone: str) -> list[str]:
        """The classes that operators added for `drone` by an answer in force, in the order of their first one."""
        mine = select(t.valid.c.answer).where(t.valid.c.drone == drone, t.valid.c.new)
        with self._begin() as db:
            return list(db.scalars(mine.group_by(t.valid.c.answer).order_by(func.min(t.valid.c.id))))

    # --- models -----------------------------------------------------------------------------------------------------

    def add_delta(self, drone: str, base_hash: bytes, delta: Delta) -> None:
        """Store a delta that the mirror of `drone`, which started at `base_hash`, has applied."""
        row = {c.name: getattr(delta, c.name) for c in t.deltas.c if c.name not in ("n", "drone", "base_hash")}
        with self._begin() as db:
            db.execute(insert(t.deltas).values(drone=drone, base_hash=base_hash, **row))

    def has_delta(self, drone: str, delta: Delta) -> bool:
        """Whether this very delta was stored before."""
        with self._begin() as db:
            return (
                db.execute(
                    select(t.deltas.c.n).where(
                        t.deltas.c.drone == drone,
                        t.deltas.c.parent == delta.parent,
                        t.deltas.c.result == delta.result,
                        t.deltas.c.frame == delta.frame,
                    )
                ).first()
                is not None
            )

    def deltas(self, drone: str, base_hash: bytes) -> list[Delta]:
        """The stored deltas that lead from `base_hash` to the last known state, shortest way, in order."""
        with self._begin() as db:
            mine = and_(t.deltas.c.drone == drone, t.deltas.c.base_hash == base_hash)
            start = db.scalar(select(func.max(t.deltas.c.n)).where(mine, t.deltas.c.parent == base_hash))
            rows = db.execute(select(t.deltas).where(mine, t.deltas.c.n >= (start or 0)).order_by(t.deltas.c.n)).all()
        names = Delta.__struct_fields__
        return [Delta(**{name: getattr(row, name) for name in names}) for row in rows]

    # --- where and how the drones are -------------------------------------------------------------------------------

    def add_status(self, drone: str, status: Status) -> None:
        """Keep a status: at most one per `STATUS_EVERY_S`, and a track point where the drone has moved."""
        now = time.time_ns()
        with self._begin() as db:
            last = db.scalar(select(func.max(t.statuses.c.received_ns)).where(t.statuses.c.drone == drone))
            late = last is None or not 0 <= now - last < STATUS_EVERY_S * 1e9
            if late:
                body = {k: v for k, v in msgspec.structs.asdict(status).items() if k != "model_hash"}
                db.execute(insert(t.statuses).values(drone=drone, received_ns=now, body=body))
                db.execute(update(t.drones).where(t.drones.c.name == drone).values(seen_ns=now))
            _add_position(db, drone, status, always=late)

    def last_status(self, drone: str) -> Status | None:
        """The last status of the history (without a model hash)."""
        wanted = select(t.statuses.c.body).where(t.statuses.c.drone == drone).order_by(t.statuses.c.n.desc()).limit(1)
        with self._begin() as db:
            body = db.scalar(wanted)
        return None if body is None else Status(**body)

    def track(self, drone: str, limit: int) -> list[tuple[float, float]]:
        """The last `limit` track points (latitude, longitude in degrees), oldest first."""
        wanted = (
            select(t.positions.c.lat_deg, t.positions.c.lon_deg)
            .where(t.positions.c.drone == drone)
            .order_by(t.positions.c.n.desc())
            .limit(limit)
        )
        with self._begin() as db:
            return [(r.lat_deg, r.lon_deg) for r in db.execute(wanted)][::-1]

    def save_detections(self, drone: str, seen: Detections) -> None:
        """Keep the summary of the latest frame."""
        with self._begin() as db:
            _upsert(db, t.detections, {"drone": drone}, msgspec.structs.asdict(seen))

    def detections(self, drone: str) -> Detections | None:
        """The summary of the latest frame."""
        with self._begin() as db:
            row = db.execute(select(t.detections).where(t.detections.c.drone == drone)).first()
        return None if row is None else Detections(**{n: getattr(row, n) for n in Detections.__struct_fields__})


def _with_answers() -> Select[Any]:
    joined = t.queries.outerjoin(t.valid, and_(t.valid.c.drone == t.queries.c.drone, t.valid.c.query == t.queries.c.id))
    answer = (t.valid.c.answer, t.valid.c.wrong, t.valid.c.new)
    return select(*_QUERY_COLUMNS, t.valid.c.id.label("label"), *answer).select_from(joined)


def _query_row(row: Any) -> QueryRow:
    fields = row._asdict()
    flags = {name: bool(fields[name]) for name in ("wrong", "new")}  # NULL where there is no answer
    return QueryRow(**{**fields, **flags, "id": int(fields["id"])})


def _insert_new(db: Connection, table: Table, key: dict[str, Any], values: dict[str, Any]) -> bool:
    there = select(*table.primary_key).where(*(table.c[k] == v for k, v in key.items()))
    if db.execute(there).first():
        return False
    try:
        with db.begin_nested():
            db.execute(insert(table).values(**key, **values))
    except IntegrityError:
        if db.execute(there).first() is None:
            raise
        return False  # another process was faster
    return True


def _upsert(db: Connection, table: Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    if not _insert_new(db, table, key, values):
        db.execute(update(table).where(*(table.c[k] == v for k, v in key.items())).values(**values))


def _add_position(db: Connection, drone: str, at: Status, always: bool) -> None:
    """Add a track point where the drone has moved. Questions are no points of it: they lie where their tiles do."""
    if at.lat_deg is None or at.lon_deg is None:
        return
    points = select(t.positions).where(t.positions.c.drone == drone).order_by(t.positions.c.n.desc())
    last = db.execute(points.limit(1)).first()
    if last is None or always or max(abs(last.lat_deg - at.lat_deg), abs(last.lon_deg - at.lon_deg)) >= TRACK_STEP_DEG:
        values = {"drone": drone, "t_ns": at.t_ns, "lat_deg": at.lat_deg, "lon_deg": at.lon_deg}
        db.execute(insert(t.positions).values(**values))
