"""Which recordings go when the disk has no room for more: the oldest of our own naming, and nothing else.

A recording's age is the time in its name. A drone without a battery for its clock flies in 1970 again and again, so a
new name's time never lies before those that are there.
"""

import logging
import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

_log = logging.getLogger(__name__)

_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"(\d{8}T\d{6}Z)_[A-Za-z0-9._-]{1,64}_boot(\d+)(?:_(\d+))?\.mcap")


class Kept(msgspec.Struct, frozen=True):
    """One recording on the disk: the time and the boot in its name, and its size in bytes."""

    path: Path
    time: str
    boot: str
    size: int


def recordings(folder: Path) -> list[Kept]:
    """The recordings in a folder, oldest first, known by their names; links are none. Raises OSError."""
    found = []
    for path in folder.iterdir():
        if name := _NAME.fullmatch(path.name):
            try:
                about = path.lstat()
            except FileNotFoundError:  # somebody else deletes too
                continue
            if stat.S_ISREG(about.st_mode):
                found.append(((name[1], name[2], int(name[3] or 0)), Kept(path, name[1], name[2], about.st_size)))
    return [kept for _, kept in sorted(found, key=lambda pair: pair[0])]


def stem(folder: Path, name: str, boot: int) -> str:
    """The beginning of a new recording's name: now, or behind the newest one there. Raises OSError."""
    time = f"{datetime.now(UTC):{_TIME}}"
    newest = max(recordings(folder), key=lambda kept: kept.time, default=None)
    if newest is not None and newest.time >= time:
        try:
            later = datetime.strptime(newest.time, _TIME) + timedelta(seconds=newest.boot != str(boot))
            time = f"{later:{_TIME}}"
        except (ValueError, OverflowError):  # somebody gave a file such a name
            pass
    return f"{time}_{name}_boot{boot}"


def delete_oldest(folder: Path, writing: Path | None, keep_bytes: int = 0) -> list[Path]:
    """Delete recordings, oldest first, until those left take at most `keep_bytes`; with 0 just the oldest.

    `writing` counts but stays. A file that cannot be deleted is passed over. Returns what was deleted; raises OSError.
    """
    there = recordings(folder)
    total, deleted = sum(kept.size for kept in there), []
    for kept in there:
        if keep_bytes and total <= keep_bytes:
            break
        if kept.path == writing:
            continue
        try:
            kept.path.unlink()
        except OSError as error:
            _log.warning("%s: an old recording that cannot be deleted: %s", kept.path, error.strerror)
            continue
        _log.info("%s: deleted, to make room for this flight's recording", kept.path)
        deleted.append(kept.path)
        total -= kept.size
        if not keep_bytes:
            break
    return deleted
