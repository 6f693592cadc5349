"""What a card holds after a power cut: qemu's log of writes and flushes (`blklogwrites`, the format of Linux's
dm-log-writes), replayed onto the card as it was before, up to a point, without what was not flushed yet.

A card may lose, or have done in any order, whatever was written since the last flush, and the write it was busy with
may be half done. So of the writes after the last flush a random part is left out, and the last one ends in the middle.
"""

import random
import struct
from pathlib import Path
from typing import NamedTuple

MAGIC, VERSION = 0x6A736677736872, 1
FLUSH, FUA, DISCARD = 1, 2, 4
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")


class Write(NamedTuple):
    """One entry: `count` sectors from `sector` on, whose content lies at `at` in the log; the entry ends at `end`."""

    sector: int
    count: int
    flags: int
    at: int
    end: int


def read(path: Path) -> tuple[int, list[Write]]:
    """(bytes of a sector, the entries), as far as the log was written when its machine was killed."""
    size, writes = path.stat().st_size, []
    with path.open("rb") as file:
        magic, version, _, sector = SUPER.unpack(file.read(SUPER.size))
        assert (magic, version) == (MAGIC, VERSION), f"{path}: not a log of writes"
        at = sector
        while at + sector <= size:
            file.seek(at)
            start, count, flags, _ = ENTRY.unpack(file.read(ENTRY.size))
            if not (start or count or flags):
                break  # room that was never written
            data = 0 if flags & DISCARD else count * sector
            if at + sector + data > size:
                break
            writes.append(Write(start, count, flags, at + sector, at + sector + data))
            at += sector + data
    return sector, writes


def unflushed(writes: list[Write]) -> list[int]:
    """How many writes a card may lose in a cut behind the first n entries, for n from 0 to all."""
    counts = [0]
    for write in writes:
        loose = write.count > 0 and not write.flags & (FUA | DISCARD)
        counts.append(0 if write.flags & FLUSH else counts[-1] + loose)
    return counts


def lost(writes: list[Write], cut: int, seed: int) -> tuple[set[int], int]:
    """Of the first `cut` entries: numbers of those that the card lost, and how many sectors of the last one it has."""
    flushed = max((n for n in range(cut) if writes[n].flags & FLUSH), default=-1)
    choose = random.Random(seed)
    late = [n for n in range(flushed + 1, cut) if writes[n].count and not writes[n].flags & (FUA | DISCARD)]
    gone = {n for n in late if choose.random() < 0.5}
    last = late[-1] if late and late[-1] == cut - 1 else -1
    return gone - {last}, choose.randrange(writes[last].count + 1) if last >= 0 else -1


def replay(log: Path, card: Path, cut: int, seed: int) -> tuple[int, int]:
    """Turn `card`, as it was when the log began, into what it holds after a cut behind the first `cut` entries.

    Returns how many writes it lost, and how many were not flushed.
    """
    sector, writes = read(log)
    gone, part = lost(writes, cut, seed)
    flushed = max((n for n in range(cut) if writes[n].flags & FLUSH), default=-1)
    with log.open("rb") as source, card.open("r+b") as target:
        for number, write in enumerate(writes[:cut]):
            if number in gone or write.flags & DISCARD or not write.count:
                continue
            count = part if number == cut - 1 and part >= 0 else write.count
            source.seek(write.at)
            target.seek(write.sector * sector)
            target.write(source.read(count * sector))
    return len(gone), sum(1 for write in writes[flushed + 1 : cut] if write.count)
