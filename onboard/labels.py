"""The label log: what was asked, with the features of its tile, and every answer, durable and in order.

A learner that starts anew is given the answers again from here; an undo is one more entry.
"""

import threading
from pathlib import Path

from link.messages import Label, Query, Undo
from link.store import Store
from models.errors import LinkError
from onboard.learner import GivenLabel

LABELS_FILE = "labels.sqlite"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS asked (query INTEGER PRIMARY KEY, frame INTEGER NOT NULL, tile INTEGER NOT NULL,"
    " backbone TEXT NOT NULL, bits BLOB NOT NULL, scales BLOB NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS answers (position INTEGER PRIMARY KEY AUTOINCREMENT, id INTEGER NOT NULL,"
    " undo INTEGER NOT NULL, query INTEGER, answer TEXT NOT NULL, flags INTEGER NOT NULL DEFAULT 0,"
    " UNIQUE (id, undo)) STRICT",
)
_UPGRADES = ("ALTER TABLE answers ADD COLUMN flags INTEGER NOT NULL DEFAULT 0",)
_WRONG, _NEW = 1, 2
_PROBES = (
    "SELECT query, frame, tile, backbone, bits, scales FROM asked",
    "SELECT position, id, undo, query, answer, flags FROM answers",
)


class LabelLog:
    """Questions and answers in one SQLite file. Methods may be called from any thread. Raises LinkError (disk).

    `backbone` names what computes the features, such as a hash: those of another one mean nothing to this learner, and
    their answers come without features.
    """

    def __init__(self, path: Path, backbone: str = "") -> None:
        self._store = Store(path, schema=_SCHEMA, probes=_PROBES, upgrades=_UPGRADES)
        self._lock = threading.Lock()
        self._backbone = backbone
        self._boot = self._store.boot >> 1  # 31 bits, so that a query id fits the 63 bits of an SQLite integer

    @property
    def boot(self) -> int:
        """Number of this opening; the upper half of the ids of its queries."""
        return self._boot

    def asked(self, query: Query, cols: int, bits: bytes, scales: bytes) -> None:
        """Remember a question and the packed features of its tile."""
        row = (query.id, query.frame, query.row * cols + query.col, self._backbone, bits, scales)
        with self._lock:
            self._store.execute("INSERT OR IGNORE INTO asked VALUES (?, ?, ?, ?, ?, ?)", row)
            self._store.commit()

    def answered(self, message: Label | Undo) -> bool:
        """Store an answer or an undo; durable on return. False when it is known already."""
        if isinstance(message, Label):
            flags = _WRONG * message.wrong | _NEW * message.new
            row: tuple[int | str, ...] = (message.id, 0, message.query, message.answer, flags)
        else:
            row = (message.label, 1, 0, "", 0)
        if any(isinstance(number, int) and not 0 <= number < 2**63 for number in row):
            raise LinkError(f"an answer with a number beyond 63 bits is refused: {message}")
        sql = "INSERT OR IGNORE INTO answers (id, undo, query, answer, flags) VALUES (?, ?, ?, ?, ?) RETURNING position"
        with self._lock:
            new = bool(self._store.execute(sql, row))
            self._store.commit()
        return new

    def since(self, position: int) -> list[GivenLabel]:
        """Entries after `position`, in order. Answers to questions that were never asked here have no features."""
        sql = (
            "SELECT position, id, undo, query, answer, flags, frame, tile, bits, scales FROM answers"
            " LEFT JOIN (SELECT * FROM asked WHERE backbone = ?) USING (query) WHERE position > ? ORDER BY position"
        )
        with self._lock:
            rows = self._store.execute(sql, (self._backbone, position))
        return [self._given(*row) for row in rows]

    def _given(
        self,
        position: int,
        label: int,
        undo: int,
        query: int,
        answer: str,
        flags: int,
        frame: int | None,
        tile: int | None,
        bits: bytes | None,
        scales: bytes | None,
    ) -> GivenLabel:
        if undo:
            return GivenLabel(position, label, -1, 0, "", b"", b"", undo=label)
        if frame is None or tile is None or bits is None or scales is None:
            return GivenLabel(position, label, -1, 0, "", b"", b"")
        # frame numbers start again at every boot, so only questions of this one lie near its frames
        here = frame if query >> 32 == self._boot else -1
        return GivenLabel(
            position, label, here, tile, answer, bits, scales, 0, bool(flags & _WRONG), bool(flags & _NEW)
        )

    def last(self) -> tuple[int, int]:
        """Position of the newest entry (0: none), and how many entries there are."""
        with self._lock:
            position, count = self._store.execute("SELECT ifnull(max(position), 0), count(*) FROM answers")[0]
        return position, count

    def start_after(self, position: int) -> None:
        """Number all entries, those there and those to come, beyond `position`, which must lie behind them all.

        For a log that took the place of a damaged one: the learner has counted further already.
        """
        with self._lock:
            self._store.execute("UPDATE answers SET position = position + ?", (position,))
            self._store.execute("DELETE FROM sqlite_sequence WHERE name = 'answers'")
            self._store.execute(
                "INSERT INTO sqlite_sequence SELECT 'answers', ifnull(max(position), ?) FROM answers", (position,)
            )
            self._store.commit()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._store.close()
