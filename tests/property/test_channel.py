"""Two channels over a line that drops, doubles, reorders and delays, between processes that die and come back."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from link.channel import Channel
from link.codec import decode, encode
from link.messages import Label, Undo
from link.store import Store
from models.errors import LinkError


class Side:
    """A process. What its handler did is lost with it up to the last sync of its store, as memory is."""

    def __init__(self, folder, name):
        self.path = folder / f"{name}.sqlite"
        self.posted, self.got, self.lasting = [], [], 0
        self.line = []  # frames on their way to the other side, in any order
        self.start()

    def start(self):
        self.store = Store(self.path)
        self.channel = Channel(self.store, "other")

    def restart(self):
        self.store.close()
        del self.got[self.lasting :]
        self.start()

    def post(self, count):
        messages = [Label(id=len(self.posted) + i, query=0, answer="x" * (i % 3)) for i in range(count)]
        self.channel.post(*messages)
        self.posted += messages
        self.lasting = len(self.got)  # the same file is synced

    def take(self, frame, now_s, fails=False):
        def handler(message):
            if fails:
                raise ZeroDivisionError
            self.got.append(message)

        with contextlib.suppress(ZeroDivisionError):
            self.channel.incoming(frame, handler, now_s)

    def acknowledge(self):
        self.line += self.channel.acknowledge()
        self.lasting = len(self.got)


class Pair:
    def __init__(self, folder):
        self.now_s = 0.0
        self.sides = [Side(folder, "a"), Side(folder, "b")]

    def step(self, action, who, n):
        me, other = self.sides[who], self.sides[1 - who]
        match action:
            case "post":
                me.post(n % 5 + 1)
            case "send":
                me.line += me.channel.outgoing(self.now_s)
            case "later":
                self.now_s += (n % 8) ** 2
            case "arrive" | "arrive twice" | "arrive at failure" if me.line:
                frame = me.line.pop(n % len(me.line))
                other.take(frame, self.now_s, fails=action.endswith("failure"))
                if action.endswith("twice"):
                    me.line.append(frame)
            case "arrive in order":
                for frame in me.line:
                    other.take(frame, self.now_s)
                me.line.clear()
            case "drop" if me.line:
                me.line.pop(n % len(me.line))
            case "acknowledge":
                me.acknowledge()
            case "die":
                me.restart()
            case "reconnect":
                me.channel.reconnected()
        for side in self.sides:
            assert side.got == self.sides[side is self.sides[0]].posted[: len(side.got)]

    def settle(self):
        """A perfect line from now on: everything has to arrive within a bounded number of rounds."""
        for _ in range(100):
            for who in (0, 1):
                self.step("acknowledge", who, 0)
                self.step("send", who, 0)
                self.step("arrive in order", who, 0)
            self.now_s += 31.0
            if not any(side.channel.pending()[0] or side.line for side in self.sides):
                return
        raise AssertionError("it does not settle")

    def close(self):
        for side in self.sides:
            side.store.close()


ACTIONS = ("post", "send", "send", "later", "arrive", "arrive", "arrive twice", "arrive at failure", "arrive in order",
           "drop", "acknowledge", "acknowledge", "die", "reconnect")  # fmt: skip
BOOT_AFTER_BOOT = [  # the last message of one boot is lost, and must not be overtaken by the first one of the next
    ("post", 0, 1), ("die", 0, 0), ("post", 0, 0), ("send", 0, 0), ("arrive", 0, 0), ("acknowledge", 1, 0),
    ("arrive", 1, 0), ("send", 0, 0), ("drop", 0, 0), ("arrive", 0, 0),
]  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1), st.integers(0, 63)), max_size=80)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
@example(BOOT_AFTER_BOOT)
@example([("post", 0, 4), ("send", 0, 0), ("arrive", 0, 0), ("die", 1, 0), ("die", 0, 0), ("post", 0, 0)])
@example(
    [("post", 0, 4), ("send", 0, 0), ("arrive twice", 0, 0), ("acknowledge", 1, 0), ("die", 0, 0), ("arrive", 1, 0)]
)
@example([("post", 1, 0), ("send", 1, 0), ("arrive", 1, 0), ("post", 0, 0), ("die", 0, 0)])
def test_every_message_arrives_once_and_in_order(steps):
    folder = Path(tempfile.mkdtemp())
    pair = Pair(folder)
    try:
        for step in steps:
            pair.step(*step)
        pair.settle()
        a, b = pair.sides
        assert b.got == a.posted
        assert a.got == b.posted
        for side in pair.sides:
            assert side.store.moved_aside is None
            assert side.store.execute("SELECT COUNT(*) FROM outbox") == [(0,)]
    finally:
        pair.close()
        shutil.rmtree(folder)


def tagged(low, high):
    """Bytes that begin as a MessagePack array with a tag does, and go on anyhow."""
    head = st.builds(lambda size, tag: bytes([0x90 + size, tag]), st.integers(2, 15), st.integers(low, high))
    return st.builds(bytes.__add__, head, st.binary(max_size=60))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | tagged(0, 127))
def test_any_bytes_give_a_message_or_one_error(data):
    try:
        message = decode(data)
    except LinkError:
        return
    assert encode(decode(encode(message))) == encode(message)  # bytes, as NaN equals nothing


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40) | tagged(60, 70), max_size=20))
def test_no_bytes_break_a_channel(tmp_path, frames):
    with contextlib.ExitStack() as stack:
        store = Store(tmp_path / "store.sqlite")
        stack.callback(store.close)
        channel = Channel(store, "peer")
        channel.post(Undo(label=1))
        channel.outgoing(0.0)
        for frame in frames:
            with contextlib.suppress(LinkError):
                channel.incoming(frame, lambda message: None, 0.0)
        channel.acknowledge()
        assert not store.damaged
        assert store.losses == 0
