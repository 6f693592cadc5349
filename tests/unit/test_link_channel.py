"""The channel's timers and order, and its file: damage, full disks, kills, and two processes at once."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap

import msgspec
import pytest

from link import channel as module
from link import store as store_module
from link.channel import REPEAT_MAX_S, WINDOW, WINDOW_BYTES, Channel
from link.codec import encode
from link.messages import Control, Delta, Label, Mirror, Status, Undo
from link.store import Store
from models.errors import LinkError


def label(number):
    return Label(id=number, query=number, answer="road")


class Side:
    """One end: its store, its channel and what its handler got."""

    def __init__(self, path, peer="peer"):
        self.path, self.peer = path, peer
        self.got = []
        self.reopen()

    def reopen(self):
        if hasattr(self, "store"):
            self.store.close()
        self.store = Store(self.path)
        self.channel = Channel(self.store, self.peer)

    def take(self, frames, now_s=0.0):
        for frame in frames:
            self.channel.incoming(frame, self.got.append, now_s)
        return self.channel.acknowledge()


@pytest.fixture
def sides(tmp_path):
    a, b = Side(tmp_path / "a.sqlite"), Side(tmp_path / "b.sqlite")
    yield a, b
    a.store.close()
    b.store.close()


def exchange(a, b, now_s=0.0):
    """Both ways over a perfect line until nothing moves."""
    while frames := a.channel.outgoing(now_s):
        a.take(b.take(frames, now_s), now_s)


def test_messages_arrive_in_order_and_leave_the_outbox(sides):
    a, b = sides
    sent = [label(i) for i in range(100)]
    a.channel.post(*sent)
    assert a.channel.pending() == (100, sum(len(encode(m)) for m in sent))
    exchange(a, b)
    assert b.got == sent
    assert a.channel.pending() == (0, 0)
    assert a.store.execute("SELECT COUNT(*) FROM outbox") == [(0,)]


def test_casual_messages_pass_unnumbered(sides):
    _, b = sides
    message = Mirror(model_hash=b"x", deltas=1)
    assert b.take([encode(message)]) == []
    assert b.got == [message]


def test_the_window_opens_with_acknowledgements_and_is_bounded(sides):
    a, b = sides
    a.channel.post(*map(label, range(200)))
    sizes = []
    while frames := a.channel.outgoing(0.0):
        sizes.append(len(frames))
        a.take(b.take(frames))
    assert sizes[:6] == [1, 2, 4, 8, 16, 32]
    assert max(sizes) == WINDOW


def test_the_window_is_bounded_in_bytes(sides):
    a, b = sides
    a.channel.post(*(Delta(parent=b"", result=b"", frame=i, payload=bytes(5000)) for i in range(40)))
    sizes = []
    while frames := a.channel.outgoing(0.0):
        sizes.append(sum(map(len, frames)))
        a.take(b.take(frames))
    assert max(sizes) < WINDOW_BYTES + 5100
    assert len(b.got) == 40


def test_the_repeat_timer_doubles_up_to_its_bound_and_sends_only_the_oldest(sides):
    a, b = sides
    a.channel.post(*map(label, range(64)))
    for _ in range(4):
        a.take(b.take(a.channel.outgoing(0.0)))
    in_flight = a.channel.outgoing(0.0)
    assert len(in_flight) == 16
    now, gaps = 0.0, []
    for _ in range(8):
        assert a.channel.outgoing(a.channel.next_s() - 0.001) == []
        gaps.append(a.channel.next_s() - now)
        now = a.channel.next_s()
        assert a.channel.outgoing(now) == in_flight[:1]
    assert gaps == [1, 2, 4, 8, 16, 30, 30, 30]
    assert gaps[-1] == REPEAT_MAX_S
    assert a.channel.repeated == 8


def test_reconnected_repeats_at_once(sides):
    a, b = sides
    a.channel.post(label(1))
    lost = a.channel.outgoing(0.0)
    assert a.channel.next_s() == 1.0
    a.channel.reconnected()
    assert a.channel.next_s() == 0.0
    assert a.channel.outgoing(0.0) == lost
    assert b.take(lost + lost) != []
    assert b.got == [label(1)]
    assert b.channel.duplicates == 1


def test_a_slow_line_is_not_flooded(sides):
    """Round trips of 8 s: after the first messages, nothing is sent again."""
    a, b = sides
    a.channel.post(*map(label, range(30)))
    now, line = 0.0, []
    repeated = []
    while a.channel.pending()[0]:
        line += [(now + 8.0, b.take([frame], now)) for frame in a.channel.outgoing(now)]
        soon = [t for t, _ in line] + ([a.channel.next_s()] if a.channel.next_s() else [])
        now = max(now, min(soon))
        due, line = [item for item in line if item[0] <= now], [item for item in line if item[0] > now]
        for _, acks in due:
            a.take(acks, now)
            repeated.append(a.channel.repeated)
    assert b.got == [label(i) for i in range(30)]
    assert repeated[0] == 3  # at 1, 3 and 7 s
    assert repeated[-1] <= 4


def test_a_gap_is_not_handled(sides):
    a, b = sides
    a.channel.post(*map(label, range(4)))
    a.take(b.take(a.channel.outgoing(0.0)))
    second, third = a.channel.outgoing(0.0)
    assert b.take([third]) == []
    assert b.channel.gaps == 1
    b.take([second, third])
    assert b.got == [label(0), label(1), label(2)]


def test_a_handler_that_raises_gets_the_message_again(sides):
    a, b = sides
    a.channel.post(label(0), label(1))

    def fail(message):
        raise KeyError(message)

    frames = a.channel.outgoing(0.0)
    with pytest.raises(KeyError):
        b.channel.incoming(frames[0], fail, 0.0)
    assert b.channel.acknowledge() == []
    exchange(a, b, now_s=1.0)
    assert b.got == [label(0), label(1)]


def test_what_was_handled_but_not_recorded_comes_again(sides):
    a, b = sides
    a.channel.post(label(0))
    b.channel.incoming(a.channel.outgoing(0.0)[0], b.got.append, 0.0)
    b.reopen()  # killed before `acknowledge`
    exchange(a, b, now_s=1.0)
    assert b.got == [label(0), label(0)]


def test_messages_of_earlier_boots_keep_their_numbers_and_go_first(sides):
    a, b = sides
    a.channel.post(label(0), label(1), label(2))
    lost = a.channel.outgoing(0.0)
    boot = a.store.boot
    a.reopen()
    assert a.store.boot != boot
    a.channel.post(label(3))
    assert a.channel.outgoing(0.0) == lost
    assert b.take(lost) != []
    exchange(a, b, now_s=40.0)
    assert b.got == [label(i) for i in range(4)]


def test_a_restored_card_neither_loses_nor_repeats(tmp_path, sides):
    """The drone's file is set back to an older state: what it still holds is known, what it posts is new."""
    a, b = sides
    a.channel.post(label(0), label(1))
    a.store.close()
    image = a.path.read_bytes()
    a.reopen()
    exchange(a, b)
    a.store.close()
    a.path.write_bytes(image)
    a.reopen()
    a.channel.post(label(2))
    exchange(a, b)
    assert b.got == [label(0), label(1), label(2)]
    assert a.channel.pending() == (0, 0)


def test_a_receiver_that_lost_its_file_goes_on_with_what_is_left(sides):
    a, b = sides
    a.channel.post(*map(label, range(6)))
    for _ in range(2):
        a.take(b.take(a.channel.outgoing(0.0)))
    assert a.channel.pending()[0] == 3
    b.store.close()
    b.path.unlink()
    b.reopen()
    exchange(a, b)
    assert b.got == [label(i) for i in range(6)]


def test_an_acknowledgement_that_was_made_up_takes_nothing(sides):
    a, b = sides
    a.channel.post(*map(label, range(5)))
    forged = pack(65, a.store.boot, 2**62)
    a.take([forged])
    assert a.channel.pending()[0] == 5
    (first,) = a.channel.outgoing(0.0)
    a.take([forged])
    assert a.channel.pending()[0] == 4  # the one that was sent
    b.take([first])
    exchange(a, b)
    assert b.got == [label(i) for i in range(5)]


def pack(*items):
    return msgspec.msgpack.encode(items)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        bytes(300_000),
        encode(label(1)),
        pack(65, -1, 1),
        pack(65, 2**32, 1),
        pack(65, 1, 0),
        pack(65, 1, 2**63),
        pack(64, 2**32, 1, True, b""),
        pack(64, 1, 1, 1, b""),
    ],
    ids=["empty", "garbage", "oversized", "bare label", "boot<0", "boot", "seq 0", "seq", "data boot", "head"],
)
def test_frames_of_another_protocol(sides, frame):
    _, b = sides
    with pytest.raises(LinkError, match="not a message of this protocol"):
        b.take([frame])
    assert b.got == []


@pytest.mark.parametrize("body", [b"\xc1", encode(Mirror(model_hash=b"", deltas=1))], ids=["garbage", "casual"])
def test_a_numbered_message_that_nobody_understands_does_not_block_the_next(sides, body):
    _, b = sides
    with pytest.raises(LinkError):
        b.take([pack(64, 5, 1, True, body)])
    assert b.take([pack(64, 5, 2, False, encode(label(2)))]) == [pack(65, 5, 2)]
    assert b.got == [label(2)]
    assert b.channel.refused == 1


def test_one_file_serves_many_peers(tmp_path):
    store = Store(tmp_path / "station.sqlite")
    channels = {name: Channel(store, name) for name in ("a", "b")}
    drones = {name: Side(tmp_path / f"{name}.sqlite") for name in channels}
    for name, channel in channels.items():
        channel.post(Undo(label=ord(name)), Control(action="freeze"))
    for name, drone in drones.items():
        while frames := channels[name].outgoing(0.0):
            for ack in drone.take(frames):
                channels[name].incoming(ack, drone.got.append, 0.0)
        assert drone.got == [Undo(label=ord(name)), Control(action="freeze")]
        drone.store.close()
    store.close()


def test_too_much_waiting_is_refused(sides, monkeypatch):
    a, _ = sides
    monkeypatch.setattr(module, "MAX_PENDING", 3)
    a.channel.post(*map(label, range(3)))
    with pytest.raises(LinkError, match=r"3 messages .* wait for 'peer'"):
        a.channel.post(label(3))
    monkeypatch.setattr(module, "MAX_PENDING", 100)
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", a.channel.pending()[1] + 1)
    with pytest.raises(LinkError, match="wait for 'peer'"):
        a.channel.post(label(3))


def test_a_message_that_cannot_be_sent_leaves_no_trace(sides):
    a, b = sides
    with pytest.raises(LinkError):
        a.channel.post(label(0), Undo(label="x"))
    assert a.channel.pending() == (0, 0)
    a.channel.post(label(1))
    exchange(a, b)
    assert b.got == [label(1)]


# --- the file ------------------------------------------------------------------------------------------------------


def filled(path, count=50):
    side = Side(path)
    side.channel.post(*(Delta(parent=b"", result=b"", frame=i, payload=os.urandom(300)) for i in range(count)))
    side.store.close()
    return path.read_bytes()


def test_the_files_are_private(tmp_path):
    side = Side(tmp_path / "new" / "outbox.sqlite")
    side.channel.post(label(1))
    assert {p.stat().st_mode & 0o777 for p in side.path.parent.iterdir()} == {0o600}
    assert side.path.parent.stat().st_mode & 0o777 == 0o700
    side.path.chmod(0o644)
    side.reopen()
    assert side.path.stat().st_mode & 0o777 == 0o600
    side.store.close()


def spoil_header(data):
    return b"not SQLite, but as long as it was" + data[33:]


def spoil_pages(data):
    return data[:4096] + os.urandom(len(data) - 4096)


def foreign(data):
    return b"\x00" * len(data)


@pytest.mark.parametrize("spoil", [spoil_header, spoil_pages, foreign, lambda d: d[:5000], lambda d: d[: len(d) // 2]])
def test_a_damaged_file_is_moved_aside(tmp_path, spoil, caplog):
    path = tmp_path / "outbox.sqlite"
    spoilt = spoil(filled(path))
    path.write_bytes(spoilt)
    side = Side(path)
    assert side.store.moved_aside.name.startswith("outbox.sqlite.corrupt-")
    assert side.store.moved_aside.read_bytes() == spoilt
    assert "damaged" in caplog.text
    side.channel.post(label(1))
    assert side.channel.pending()[0] == 1
    side.store.close()


@pytest.mark.parametrize("sql", ["CREATE TABLE outbox (x)", "PRAGMA user_version = 77", "PRAGMA user_version = 1"])
def test_a_file_of_something_else_is_moved_aside(tmp_path, sql):
    path = tmp_path / "outbox.sqlite"
    other = sqlite3.connect(path)
    other.execute(sql)
    other.commit()
    other.close()
    store = Store(path)
    assert store.moved_aside is not None
    store.close()


def test_damage_during_use_is_told(sides):
    a, _ = sides
    a.channel.post(*(Delta(parent=b"", result=b"", frame=i, payload=bytes(3000)) for i in range(50)))
    a.reopen()
    with a.path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(8192)
        file.write(os.urandom(size - 8192))
    a.store.execute("PRAGMA shrink_memory")  # what is cached is not read again
    with pytest.raises(LinkError, match=r"a\.sqlite cannot be written .*MB free"):
        a.store.execute("SELECT SUM(LENGTH(body)), COUNT(seq) FROM outbox WHERE peer > ''")
    assert a.store.damaged
    a.reopen()
    assert a.store.moved_aside is not None


def test_a_file_that_cannot_be_moved_aside_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(b"x" * 4096)

    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(store_module.Path, "rename", refuse)
    with pytest.raises(LinkError, match=r"is damaged .* move it away by hand"):
        Store(path)


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LinkError, match="cannot be opened for writing"):
        Store(tmp_path / "file" / "outbox.sqlite")


def test_a_second_process_is_refused(sides):
    a, _ = sides
    code = "import sys, pathlib; from link.store import Store; Store(pathlib.Path(sys.argv[1]))"
    run = subprocess.run([sys.executable, "-c", code, a.path], capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 1
    assert "is in use by another process: stop that one first" in run.stderr


FULL_DISK = """
    import pathlib, resource, signal, sys
    from link.channel import Channel
    from link.messages import Delta
    from link.store import Store
    from models.errors import LinkError

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = pathlib.Path(sys.argv[1])
    channel = Channel(Store(path), "peer")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1))
    posted = 0
    try:
        while True:
            channel.post(Delta(parent=b"", result=b"", frame=posted, payload=bytes(5000)))
            posted += 1
    except LinkError as error:
        print(error)
    assert channel.pending()[0] == posted > 10, posted
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, -1))
    channel.store.close()
    channel = Channel(Store(path), "peer")  # a process that starts on a full disk
    assert channel.pending()[0] == posted
    assert len(channel.outgoing(0.0)) == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    channel.post(Delta(parent=b"", result=b"", frame=posted, payload=bytes(5000)))
    print(posted + 1)
"""


def test_a_full_disk(tmp_path):
    path = tmp_path / "outbox.sqlite"
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    message, posted = run.stdout.splitlines()
    assert f"{path} cannot be written" in message
    assert f"disk of {tmp_path}: " in message
    side, other = Side(path), Side(tmp_path / "other.sqlite")
    assert side.store.moved_aside is None
    exchange(side, other)
    assert [m.frame for m in other.got] == list(range(int(posted)))
    side.store.close()
    other.store.close()


POSTER = """
    import pathlib, sys
    from link.channel import Channel
    from link.messages import Undo
    from link.store import Store

    channel = Channel(Store(pathlib.Path(sys.argv[1])), "peer")
    for number in range(int(sys.argv[2]), 10**9):
        channel.post(Undo(label=number))
        print(number, flush=True)
"""


def test_kills_at_any_moment_lose_nothing_that_was_posted(tmp_path):
    path, told = tmp_path / "outbox.sqlite", []
    for turn in range(4):
        start = told[-1] + 100 if told else 0
        command = [sys.executable, "-c", textwrap.dedent(POSTER), str(path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout:
                told.append(int(line))
                if told[-1] - start >= 7 + 13 * turn:
                    break
            child.send_signal(signal.SIGKILL)
            told.extend(int(line) for line in child.stdout if line.endswith("\n"))
    a, b = Side(path), Side(tmp_path / "b.sqlite")
    assert a.store.moved_aside is None
    exchange(a, b)
    got = [m.label for m in b.got]
    assert got == sorted(set(got))
    assert set(told) <= set(got)
    assert len(got) <= len(told) + 4  # posted, but killed before it could say so
    a.store.close()
    b.store.close()


def test_status_needs_no_store(sides):
    _, b = sides
    b.take([encode(Status(frame=1, t_ns=1))])
    assert b.store.execute("SELECT COUNT(*) FROM inbox") == [(0,)]
