"""The SQLite file that keeps what a process sent and received over the link: its outbox and what it has handled.

Survives SIGKILL and loss of power at any moment, and its own damage: a drone must fly on.
"""

import contextlib
import logging
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.errors import LinkError

_logger = logging.getLogger(__name__)
_SCHEMA = (
    # AUTOINCREMENT, because an id must stay larger than all before it even when the table was empty in between
    "CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, peer TEXT NOT NULL,"
    " boot INTEGER NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL) STRICT",
    "CREATE INDEX IF NOT EXISTS outbox_peer ON outbox (peer)",
    # one row per process start of the peer that ever posted: small enough to keep for good
    "CREATE TABLE IF NOT EXISTS inbox (peer TEXT NOT NULL, boot INTEGER NOT NULL, seq INTEGER NOT NULL,"
    " PRIMARY KEY (peer, boot)) STRICT, WITHOUT ROWID",
)

_PROBES = ("SELECT id, peer, boot, seq, body FROM outbox", "SELECT peer, boot, seq FROM inbox")


class Store:
    """A SQLite file of one process, by default that of its channels: write-ahead log, full sync per commit, mode 0600.

    A damaged file is moved aside (`moved_aside` is its new path) and an empty one takes its place, because a drone must
    fly on. `boot` numbers this opening of the file. `upgrades` are the statements that bring a file of version n to
    version n + 1, from version 1 on; `schema` makes the newest. Raises LinkError where the file cannot be opened,
    written or moved, or another process has it open.
    """

    def __init__(
        self,
        path: Path,
        schema: Sequence[str] = _SCHEMA,
        probes: Sequence[str] = _PROBES,
        upgrades: Sequence[str] = (),
    ) -> None:
        self.path = path
        self._schema, self._probes, self._upgrades = schema, probes, upgrades
        self.boot = secrets.randbits(32)
        self.moved_aside: Path | None = None
        self.damaged = False
        """The file turned out damaged while in use: close it and open it again, which moves it aside."""
        self.losses = 0
        """How often a transaction was lost to an error; a channel then reads its state again."""
        try:
            self._open()
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise self._failed("cannot be opened", error) from error
            self._move_aside(str(error))
            try:
                self._open()
            except sqlite3.Error as again:
                raise self._failed("cannot be created", again) from again

    def execute(self, sql: str, args: Sequence[int | str | bytes] = ()) -> list[Any]:
        """Run one statement, within a transaction if it writes; `commit` makes it last. Raises LinkError."""
        try:
            if not self._db.in_transaction and not sql.startswith("SELECT"):
                self._db.execute("BEGIN IMMEDIATE")
            return self._db.execute(sql, args).fetchall()
        except sqlite3.Error as error:
            self._lost(error)
            raise self._failed("cannot be written", error) from error

    def commit(self) -> None:
        """Make everything executed so far durable. Raises LinkError, and then all of it is undone."""
        try:
            if self._db.in_transaction:
                self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._lost(error)
            raise self._failed("cannot be written", error) from error

    def close(self) -> None:
        """Close the file; what was not committed is undone. May be called twice."""
        self._db.close()

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(handle, 0o600)  # SQLite gives the log next to it the same mode
            finally:
                os.close(handle)
        except OSError as error:
            raise LinkError(f"{self.path}: cannot be opened for writing ({error.strerror}): choose another") from error
        self._db = sqlite3.connect(self.path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            # exclusive: a second daemon on the same file is an error to be told, and no shared memory file is needed
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
                self._db.execute(f"PRAGMA {pragma}")
            if (verdict := self._db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise _Damaged(verdict)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            newest = 1 + len(self._upgrades)
            if not 0 <= version <= newest:
                raise _Damaged(f"schema version {version} is unknown")
            if version < newest:  # else nothing is written: a file can be opened on a full disk
                self._db.execute("BEGIN IMMEDIATE")
                for statement in self._upgrades[version - 1 :] if version else self._schema:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={newest}")
                self._db.execute("COMMIT")
            # a table of the same name and other columns is no file of ours
            for probe in self._probes:
                self._db.execute(f"{probe} LIMIT 1").fetchall()
        except sqlite3.Error:
            self._db.close()
            raise

    def _move_aside(self, reason: str) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = self.path.with_name(f"{self.path.name}.corrupt-{stamp}-{self.boot:08x}")
        try:
            for suffix in ("-wal", "-shm", ""):
                if (part := Path(f"{self.path}{suffix}")).exists():
                    part.rename(f"{target}{suffix}")
        except OSError as error:
            raise LinkError(
                f"{self.path} is damaged ({reason}) and cannot be moved aside ({error.strerror}): move it away by hand"
            ) from error
        self.moved_aside = target
        _logger.error("%s is damaged (%s): moved to %s, going on with an empty one", self.path, reason, target)

    def _lost(self, error: sqlite3.Error) -> None:
        self.losses += 1
        self.damaged |= _is_damage(error)
        with contextlib.suppress(sqlite3.Error):  # closed, or rolled back already
            self._db.execute("ROLLBACK")

    def _failed(self, what: str, error: sqlite3.Error) -> LinkError:
        code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return LinkError(f"{self.path} is in use by another process: stop that one first")
        try:
            free = f"{shutil.disk_usage(self.path.parent).free / 1e6:.1f} MB free"
        except OSError:
            free = "free space unknown"
        return LinkError(
            f"{self.path} {what} ({error}); disk of {self.path.parent}: {free}. Make room or choose another folder"
        )


class _Damaged(sqlite3.DatabaseError):
    pass


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    # SQLITE_ERROR while opening: a table of ours exists with other columns
    damage = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
    return isinstance(error, _Damaged) or (code is not None and code & 0xFF in damage)
