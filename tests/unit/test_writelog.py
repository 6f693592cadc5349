"""The replayer of power cuts, on logs that are written here, entry by entry, from the format's description."""

import struct

import pytest

from tests.system import writelog

SECTOR = 512


def entry(sector, data=b"", flags=0, count=None):
    count = len(data) // SECTOR if count is None else count
    return struct.pack("<QQQQ", sector, count, flags, 0).ljust(SECTOR, b"\0") + data


def block(letter, sectors=1):
    return letter.encode() * (SECTOR * sectors)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log"
    header = struct.pack("<QQQI", 0x6A736677736872, 1, 0, SECTOR).ljust(SECTOR, b"\0")
    entries = [
        entry(0, block("a")),
        entry(1, block("b")),
        entry(0, flags=writelog.FLUSH),
        entry(2, block("c")),
        entry(0, flags=writelog.DISCARD, count=4),
        entry(3, block("d"), flags=writelog.FUA),
        entry(4, block("e")),
        entry(5, block("f", 4)),
    ]
    path.write_bytes(header + b"".join(entries))
    return path


def cards(log, tmp_path, cut, seeds=64):
    """What the card may hold after this cut: the letter of each sector."""
    found = set()
    for seed in range(seeds):
        card = tmp_path / "card"
        card.write_bytes(block("-", 9))
        gone, late = writelog.replay(log, card, cut, seed)
        assert 0 <= gone <= late
        found.add(card.read_bytes()[::SECTOR].decode())
    return found


def test_every_entry_is_read(log):
    sector, writes = writelog.read(log)
    assert (sector, len(writes)) == (SECTOR, 8)
    assert [write.sector for write in writes if write.count and not write.flags & writelog.DISCARD] == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]
    assert writes[-1].end == log.stat().st_size


def test_a_log_that_ends_in_the_middle(log):
    whole = log.read_bytes()
    for length in (len(whole) - 1, len(whole) - 4 * SECTOR - 1):
        log.write_bytes(whole[:length])
        assert len(writelog.read(log)[1]) == 7
    log.write_bytes(whole + bytes(3 * SECTOR))  # room that was never written
    assert len(writelog.read(log)[1]) == 8
    log.write_bytes(b"\0" * SECTOR)
    with pytest.raises(AssertionError, match="not a log of writes"):
        writelog.read(log)


def test_what_was_flushed_is_there_and_the_rest_may_be(log, tmp_path):
    assert cards(log, tmp_path, 0) == {"---------"}
    assert cards(log, tmp_path, 2) == {"ab-------", "-b-------", "a--------", "---------"}
    assert cards(log, tmp_path, 3) == {"ab-------"}
    assert cards(log, tmp_path, 4) == {"ab-------", "abc------"}


def test_a_forced_write_is_there_and_the_last_one_is_torn(log, tmp_path):
    assert cards(log, tmp_path, 6) == {"ab-d-----", "abcd-----"}
    torn = cards(log, tmp_path, 8, 256)
    assert {card[5:] for card in torn} == {"----", "f---", "ff--", "fff-", "ffff"}
    assert {card[:5] for card in torn} == {"ab-d-", "abcd-", "ab-de", "abcde"}


def test_a_cut_is_the_same_again(log, tmp_path):
    assert len(cards(log, tmp_path, 8, 1)) == 1
    assert writelog.lost(writelog.read(log)[1], 8, 5) == writelog.lost(writelog.read(log)[1], 8, 5)


def test_cuts_that_lose_nothing_are_known(log):
    """a b, flush, c, a discard, d at once on the card, e f."""
    assert writelog.unflushed(writelog.read(log)[1]) == [0, 1, 2, 0, 1, 1, 1, 2, 3]
