"""Messages and their bytes: a format that stays, and one error for everything that is not of it.

`python -m tests.unit.test_link_codec` writes the golden files anew; that is for a new message only, as drones in the
field speak the recorded bytes.
"""

import json
import typing
from pathlib import Path

import msgspec
import pytest

from link import messages
from link.codec import MAX_BODY_BYTES, decode, encode
from link.messages import (
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
from models.errors import LinkError

GOLDEN = Path(__file__).parent / "golden"
A, B = bytes(range(32)), bytes(range(32, 64))
SAMPLES = [
    Hello(protocol=1, drone="kite-7", boot=0xDEADBEEF, base_hash=A, model_hash=B, classes=("road", "träd"), rows=6,
          cols=8, t_ns=1_700_000_000_123_456_789),
    Status(frame=41, t_ns=5, lat_deg=-35.28, lon_deg=149.13, alt_m=612.5, yaw_deg=0.0, fps=29.5, latency_ms=31.25,
           dropped=3, labels=17, updates=4, rollbacks=1, learner="running", recorder="off", model_hash=B),
    Status(frame=0, t_ns=0),
    Detections(frame=7, t_ns=-1, rows=1, cols=3, classes=b"\x00\x01\x02", confidence=b"\xff\x80\x00"),
    Query(id=9, frame=7, frame_name="DSC0007.JPG", t_ns=123, row=5, col=7, track=70000, guess=-1, confidence=0.5,
          jpeg=b"\xff\xd8\xff\xd9", lat_deg=30.5, lon_deg=None),
    Delta(parent=A, result=B, frame=99, payload=b"\xd1\x00", labels=12, reason="rollback"),
    Welcome(protocol=1, t_ns=2**62, mirror_hash=A),
    Label(id=1, query=9, answer="object"),
    Label(id=2, query=10, answer=""),
    Label(id=3, query=11, answer="road", wrong=True),
    Label(id=4, query=12, answer="rock", new=True),
    Undo(label=1),
    Control(action="resync"),
    Mirror(model_hash=B, deltas=300),
    Problems(text="camera: no such camera"),
]  # fmt: skip


def twin(message):
    return {"type": type(message).__name__} | json.loads(msgspec.json.encode(msgspec.structs.asdict(message)))


def test_golden_bytes_of_every_message():
    lines = (GOLDEN / "messages.hex").read_text().splitlines()
    twins = json.loads((GOLDEN / "messages.json").read_text())
    assert {t["type"] for t in twins} == {kind.__name__ for kind in typing.get_args(Message)}
    assert len(lines) == len(twins) == len(SAMPLES)
    for line, fields, sample in zip(lines, twins, SAMPLES, strict=True):
        message = decode(bytes.fromhex(line))
        assert message == sample
        assert twin(message) == fields
        assert encode(sample).hex() == line


def pack(*items):
    """MessagePack by hand, for the few types needed here: the codec is not checked by its own library."""
    out = bytes([0x90 + len(items)])
    for item in items:
        if isinstance(item, bool):
            out += b"\xc3" if item else b"\xc2"
        elif isinstance(item, int):
            out += bytes([item]) if 0 <= item < 128 else b"\xd2" + item.to_bytes(4, "big", signed=True)
        elif isinstance(item, str):
            out += bytes([0xA0 + len(item.encode())]) + item.encode()
        else:
            out += bytes([0xC4, len(item)]) + item
    return out


def test_bytes_against_the_specification():
    assert encode(Label(id=3, query=4, answer="ja", new=True)) == pack(17, 3, 4, "ja", False, True)
    assert encode(Mirror(model_hash=b"\x01\x02", deltas=5)) == pack(20, b"\x01\x02", 5)


def test_older_and_newer_versions_are_read():
    older = pack(5, A, B, 7, b"\xd1")  # before `labels` and `reason`
    assert decode(older) == Delta(parent=A, result=B, frame=7, payload=b"\xd1")
    # recorded before `wrong` and `new`
    assert decode(bytes.fromhex("94110109a66f626a656374")) == Label(id=1, query=9, answer="object")
    assert decode(bytes.fromhex("9411020aa0")) == Label(id=2, query=10, answer="", wrong=False, new=False)
    assert decode(pack(18, 7, 1, "a field to come")) == Undo(label=7)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"\xc1", "invalid"),
        (pack(6, 1), "value 6"),
        (pack("x", 1), "str"),
        (pack(18), "length 2"),
        (pack(18, "one"), "int"),
        (pack(19, "explode"), "explode"),
        (pack(18, 7) + b"\x00", "trailing"),
        (b"\x94\x11\x01\x01\xa2\xff\xfe", "utf-8"),
        (b"\x93\x12\x07" + b"\x91" * 100_000, "recursion"),
        (b"\x92\x12\xc4", "truncated"),
        (b"\x80", "array"),
        (bytes(MAX_BODY_BYTES + 1), "larger"),
    ],
)
def test_bad_bytes(data, reason):
    with pytest.raises(LinkError, match=f"not a message.*{reason}"):
        decode(data)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: type(s).__name__)
def test_every_cut_is_refused(sample):
    data = encode(sample)
    for end in range(len(data)):
        with pytest.raises(LinkError):
            decode(data[:end])


@pytest.mark.parametrize(
    "message",
    [
        Undo(label="seven"),
        Undo(label=2**64),
        Control(action="explode"),
        Detections(frame=0, t_ns=0, rows=1, cols=1, classes=bytes(MAX_BODY_BYTES), confidence=b""),
        Hello(protocol=1, drone="x", boot=1, base_hash=A, model_hash=B, classes=(1,), rows=1, cols=1, t_ns=object()),
        Label(id=1, query=1, answer="\ud800"),
    ],
    ids=repr,
)
def test_what_the_other_side_would_refuse_is_not_sent(message):
    with pytest.raises(LinkError, match=f"a {type(message).__name__} cannot be sent"):
        encode(message)


def test_the_largest_message_goes():
    head = len(encode(Delta(parent=A, result=B, frame=0, payload=bytes(70_000)))) - 70_000
    message = Delta(parent=A, result=B, frame=0, payload=bytes(MAX_BODY_BYTES - head))
    assert len(encode(message)) == MAX_BODY_BYTES < messages.MAX_MESSAGE_BYTES
    assert decode(encode(message)) == message


def main():
    (GOLDEN / "messages.hex").write_text("".join(f"{encode(s).hex()}\n" for s in SAMPLES))
    (GOLDEN / "messages.json").write_text(json.dumps([twin(s) for s in SAMPLES], indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
