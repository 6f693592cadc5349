"""The tables of the station's database, and how SQLite is opened."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    event,
    false,
    insert,
    select,
    update,
)
from sqlalchemy.schema import CreateColumn

from models.errors import StationError

SCHEMA = 2
BUSY_S = 10.0
"""How long a transaction waits for another process (`ground labels`) to finish its own."""

meta = MetaData()
_Serial = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER counts up by itself in SQLite
_Id = String(20)  # query ids use all 64 bits, one more than a signed column holds

schema = Table("schema", meta, Column("version", Integer, primary_key=True, autoincrement=False))
drones = Table(
    "drones",
    meta,
    Column("name", String(64), primary_key=True),
    Column("boot", _Id, nullable=False),
    Column("base_hash", LargeBinary(32), nullable=False),
    Column("model_hash", LargeBinary(32), nullable=False),
    Column("classes", JSON, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("cols", Integer, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
)
queries = Table(
    "queries",
    meta,
    Column("n", _Serial, primary_key=True),
    Column("drone", String(64), nullable=False),
    Column("id", _Id, nullable=False),
    Column("frame", BigInteger, nullable=False),
    Column("frame_name", String, nullable=False),
    Column("t_ns", BigInteger, nullable=False),
    Column("row", Integer, nullable=False),
    Column("col", Integer, nullable=False),
    Column("track", BigInteger, nullable=False),
    Column("guess", String, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("lat_deg", Float),
    Column("lon_deg", Float),
    Column("jpeg", LargeBinary, nullable=False),
    UniqueConstraint("drone", "id"),
)
labels = Table(
    "labels",
    meta,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("drone", String(64), nullable=False),
    Column("query", _Id, nullable=False, index=True),
    Column("answer", String, nullable=False),
    Column("t_ns", BigInteger, nullable=False),
    Column("sent", Boolean, nullable=False, index=True),
    Column("wrong", Boolean, nullable=False, server_default=false()),
    Column("new", Boolean, nullable=False, server_default=false()),
)
undos = Table(
    "undos",
    meta,
    Column("label", BigInteger, primary_key=True, autoincrement=False),
    Column("drone", String(64), nullable=False),
    Column("t_ns", BigInteger, nullable=False),
    Column("sent", Boolean, nullable=False, index=True),
)
positions = Table(
    "positions",
    meta,
    Column("n", _Serial, primary_key=True),
    Column("drone", String(64), nullable=False, index=True),
    Column("t_ns", BigInteger, nullable=False),
    Column("lat_deg", Float, nullable=False),
    Column("lon_deg", Float, nullable=False),
)
statuses = Table(
    "statuses",
    meta,
    Column("n", _Serial, primary_key=True),
    Column("drone", String(64), nullable=False, index=True),
    Column("received_ns", BigInteger, nullable=False),
    Column("body", JSON, nullable=False),
)
detections = Table(
    "detections",
    meta,
    Column("drone", String(64), primary_key=True),
    Column("frame", BigInteger, nullable=False),
    Column("t_ns", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("cols", Integer, nullable=False),
    Column("classes", LargeBinary, nullable=False),
    Column("confidence", LargeBinary, nullable=False),
)
deltas = Table(
    "deltas",
    meta,
    Column("n", _Serial, primary_key=True),
    Column("drone", String(64), nullable=False, index=True),
    Column("base_hash", LargeBinary(32), nullable=False),
    Column("parent", LargeBinary(32), nullable=False),
    Column("result", LargeBinary(32), nullable=False),
    Column("frame", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("labels", Integer, nullable=False),
    Column("reason", String(16), nullable=False),
)


# The answer in force of a question: the one that was not taken back. At most one exists, `add_label` sees to it.
valid = (
    select(labels.c.id, labels.c.drone, labels.c.query, labels.c.answer, labels.c.wrong, labels.c.new)
    .where(~select(undos.c.label).where(undos.c.label == labels.c.id).exists())
    .subquery("valid")
)

_ADDED = {1: (labels.c.wrong, labels.c.new)}
"""What each version of the database lacks of the next one; with defaults, so that old rows keep their meaning."""


def create(db: Connection) -> None:
    """Make the tables of an empty database, and bring those of an older version up to date.

    Raises StationError where a newer station wrote it.
    """
    meta.create_all(db)
    version = db.scalar(select(schema.c.version).with_for_update())  # another process may be at it
    if version is None:
        db.execute(insert(schema).values(version=SCHEMA))
        return
    while version in _ADDED:
        for column in _ADDED[version]:
            text = CreateColumn(column).compile(dialect=db.dialect)
            db.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {text}")
        version += 1
        db.execute(update(schema).values(version=version))
    if version != SCHEMA:
        raise StationError(f"has version {version}, this station needs {SCHEMA}")


def prepare_sqlite(engine: Engine) -> None:
    """Make SQLite durable, patient, and its transactions as strict as a server's."""

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(BUSY_S * 1000)}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # an answer outlives a power cut
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # IMMEDIATE: what a transaction has read stays true until it writes, also against `ground labels`
        connection.exec_driver_sql("BEGIN IMMEDIATE")
