"""Recordings read back with the MCAP library's own reader and with types built from the schemas in the file."""

import json
import threading
from itertools import pairwise

import cv2
import msgspec
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from mcap.reader import make_reader
from mcap.records import Chunk, Message
from mcap.stream_reader import StreamReader, breakup_chunk

from link import codec
from link.messages import Delta, Detections, Label, Query
from models.errors import RecorderError
from onboard.detections import FrameResult
from onboard.flown import FlownFrame
from onboard.frame import Frame, Pose
from onboard.mcapfile import CHUNK_BYTES
from onboard.recorder import Recorder

T0 = 1_700_000_000_123_456_789
CLASSES = ("object", "road", "trees")


def a_frame(index, size=(60, 80), pose=None):
    """A smooth picture, which JPEG keeps well, brighter with each frame."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    image = np.stack([x * 2 % 256, y * 3 % 256, np.full_like(x, 10 * index % 256)], axis=-1).astype(np.uint8)
    return Frame(index=index, t_ns=T0 + index * 10**8, name=f"{index:04d}.jpg", image=image, pose=pose or Pose())


def a_result(index, **frame):
    return FrameResult(
        frame=a_frame(index, **frame),
        rows=2,
        cols=3,
        classes=np.array([0, 0, 1, 2, 2, 2], np.uint8),
        confidence=np.array([0.9, 0.95, 0.5, 0.99, 0.2, 0.9], np.float32),
        class_names=CLASSES,
    )


@pytest.fixture
def record(tmp_path):
    """A recorder factory that closes what it made."""
    made = []

    def make(**options):
        options = {"name": "kite", "metadata": {}, "min_free_bytes": 0} | options
        made.append(Recorder(tmp_path / "rec", **options))
        return made[-1]

    yield make
    for recorder in made:
        recorder.close()


def files(tmp_path):
    return sorted((tmp_path / "rec").glob("*.mcap"))


def decoded(path):
    """Topic -> (channel, schema, log time, message): protobuf by the schema in the file, msgpack by the codec."""
    out = {}
    with path.open("rb") as stream:
        for schema, channel, message in make_reader(stream, validate_crcs=True).iter_messages():
            if channel.message_encoding == "protobuf":
                pool = descriptor_pool.DescriptorPool()
                for file in descriptor_pb2.FileDescriptorSet.FromString(schema.data).file:
                    pool.Add(file)
                kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(schema.name))
                value = kind.FromString(message.data)
            elif schema.name == "hadanet.FlownFrame":
                value = msgspec.msgpack.decode(message.data, type=FlownFrame)
            else:
                value = codec.decode(message.data)
            out.setdefault(channel.topic, []).append((channel, schema, message, value))
    return out


def test_foxglove_conventions(tmp_path, record):
    pose = Pose(lat_deg=48.5, lon_deg=-9.25, alt_m=431.5, yaw_deg=90.0)
    recorder = record()
    results = [a_result(i, pose=pose) for i in range(3)]
    for result in results:
        recorder.frame(result)
    recorder.log("warning", "wind")
    recorder.close()
    topics = decoded(files(tmp_path)[0])
    expected = {
        "/camera": "foxglove.CompressedImage",
        "/camera/annotations": "foxglove.ImageAnnotations",
        "/gps": "foxglove.LocationFix",
        "/log": "foxglove.Log",
    }
    for topic, name in expected.items():
        channel, schema, _, _ = topics[topic][0]
        assert (schema.name, schema.encoding, channel.message_encoding) == (name, "protobuf", "protobuf")
    for topic in ("/camera", "/camera/annotations", "/gps", "/hadanet/detections"):
        assert [m.log_time for _, _, m, _ in topics[topic]] == [r.frame.t_ns for r in results]
        assert [m.sequence for _, _, m, _ in topics[topic]] == [1, 2, 3]
    for (_, _, _, picture), result in zip(topics["/camera"], results, strict=True):
        assert picture.timestamp.seconds * 10**9 + picture.timestamp.nanos == result.frame.t_ns
        assert (picture.format, picture.frame_id) == ("jpeg", "camera")
        image = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(image.astype(int) - result.frame.image).mean() < 4
    fix = topics["/gps"][0][3]
    assert (fix.latitude, fix.longitude, fix.altitude) == (48.5, -9.25, 431.5)
    assert fix.heading == pytest.approx(np.pi / 2)
    line = topics["/log"][0]
    assert (line[3].message, line[3].level, line[3].name) == ("wind", 3, "onboard")
    assert line[2].log_time == results[-1].frame.t_ns


def test_annotations_frame_the_tiles(tmp_path, record):
    recorder = record()
    recorder.frame(a_result(0))
    recorder.close()
    seen = decoded(files(tmp_path)[0])["/camera/annotations"][0][3]
    assert len(seen.points) == 6
    centres = [(np.mean([p.x for p in a.points]), np.mean([p.y for p in a.points])) for a in seen.points]
    assert np.allclose(centres, [(x, y) for y in (15, 45) for x in (13.5, 40, 66.5)])
    boxes = [(a.points[0].x, a.points[2].x) for a in seen.points]
    assert all(left[1] < right[0] for left, right in pairwise(boxes[:3]))
    assert all(a.type == 2 for a in seen.points)
    colours = [(a.outline_color.r, a.outline_color.g, a.outline_color.b) for a in seen.points]
    assert colours[0] == colours[1]
    assert len(set(colours)) == 3
    assert [t.text for t in seen.texts] == ["object", "trees"]  # once per run of sure tiles, none for 0.5


def test_our_messages_come_back(tmp_path, record):
    delta = Delta(parent=b"p" * 32, result=b"r" * 32, frame=3, payload=bytes(range(256)), labels=2)
    query = Query(
        id=1, frame=2, frame_name="a", t_ns=T0, row=0, col=1, track=4, guess=2, confidence=0.5, jpeg=b"\xff\xd8"
    )
    recorder = record()
    recorder.message("/hadanet/delta", delta, T0 + 5)
    recorder.message("/hadanet/query", query, T0 + 6)
    recorder.message("/hadanet/label", Label(id=9, query=1, answer="road"), T0 + 7)
    recorder.frame(a_result(0))
    recorder.close()
    topics = decoded(files(tmp_path)[0])
    assert topics["/hadanet/delta"][0][3] == delta
    assert topics["/hadanet/query"][0][3] == query
    channel, schema, message, label = topics["/hadanet/label"][0]
    assert label == Label(id=9, query=1, answer="road")
    assert (channel.message_encoding, schema.name, schema.encoding) == ("msgpack", "hadanet.Label", "jsonschema")
    assert message.log_time == T0 + 7
    documented = json.loads(schema.data)
    assert [place["title"] for place in documented["prefixItems"]] == [
        "tag",
        "id",
        "query",
        "answer",
        "wrong",
        "new",
    ]
    detections = topics["/hadanet/detections"][0][3]
    assert isinstance(detections, Detections)
    assert detections.classes == bytes([0, 0, 1, 2, 2, 2])
    assert detections.confidence[2] == 128


def test_metadata_and_name(tmp_path, record):
    record(boot=7, metadata={"config": "[camera]\nrows = 6\n", "model_hash": "ab" * 32}).close()
    (path,) = files(tmp_path)
    assert path.name.endswith("Z_kite_boot7.mcap")
    with path.open("rb") as stream:
        (entry,) = make_reader(stream).iter_metadata()
    assert entry.name == "hadanet"
    assert entry.metadata.pop("software").startswith("hadanet-uav")
    assert len(entry.metadata.pop("flight")) == 32
    assert [entry.metadata.pop(key) for key in ("format", "segment", "images")] == ["1", "0", "jpeg"]
    assert entry.metadata == {"config": "[camera]\nrows = 6\n", "model_hash": "ab" * 32}


def test_files_are_never_overwritten(tmp_path, record):
    for index in range(4):
        recorder = record()
        recorder.frame(a_result(index))
        recorder.close()
    found = [decoded(path)["/camera"][0][2].log_time for path in files(tmp_path)]
    assert sorted(found) == [T0 + i * 10**8 for i in range(4)]


def test_a_full_file_is_followed_by_the_next(tmp_path, record):
    recorder = record(max_file_bytes=100_000)
    for index in range(150):
        recorder.frame(a_result(index))
    recorder.close()
    paths = files(tmp_path)
    times = [m.log_time for path in paths for _, _, m, _ in decoded(path).get("/camera", [])]
    assert len(paths) > 2
    assert sorted(times) == [T0 + i * 10**8 for i in range(150)]
    assert all(path.stat().st_size < 250_000 for path in paths)
    assert recorder.stats.bytes == sum(path.stat().st_size for path in paths)


def test_chunks_are_small(tmp_path, record):
    recorder = record()
    for index in range(60):
        recorder.frame(a_result(index, size=(600, 800) if index % 10 == 0 else (60, 80)))
    recorder.close()
    with files(tmp_path)[0].open("rb") as stream:
        chunks = [r for r in StreamReader(stream, emit_chunks=True).records if isinstance(r, Chunk)]
    assert len(chunks) > 5
    for chunk in chunks:
        last = [r for r in breakup_chunk(chunk) if isinstance(r, Message)][-1]
        assert chunk.compression == ""
        assert chunk.uncompressed_size - len(last.data) <= CHUNK_BYTES


def test_frames_are_dropped_before_messages(tmp_path, record):
    """With the recorder's thread held its queue fills: the oldest frames go, and messages after the last frame."""
    held, release = threading.Event(), threading.Event()
    size = a_frame(0).image.nbytes + 512
    recorder = record(queue_bytes=4 * size)
    recorder._put("messages", 0, lambda file: held.set() or release.wait(60))
    assert held.wait(60)
    for index in range(10):
        recorder.message("/hadanet/label", Label(id=index, query=0, answer=""), T0 + index)
        recorder.frame(a_result(index))
    middle = recorder.stats
    assert (middle.frames_dropped, middle.messages_dropped) == (7, 0)
    for index in range(10, 200):
        recorder.message("/hadanet/label", Label(id=index, query=0, answer=""), T0 + index)
    release.set()
    recorder.close()
    kept = 4 * size // 512
    assert (recorder.stats.frames_dropped, recorder.stats.messages_dropped) == (10, 200 - kept)
    labels = [label.id for _, _, _, label in decoded(files(tmp_path)[0])["/hadanet/label"]]
    assert labels == list(range(200 - kept, 200))


def test_one_bad_item_does_not_end_the_recording(tmp_path, record, caplog):
    recorder = record()
    recorder.message("/hadanet/label", Label(id="seven", query=0, answer=""), T0)
    recorder.message("/hadanet/label", Label(id=7, query=0, answer=""), -1)
    recorder.log("info", "before 1970", -5)
    recorder.message("/hadanet/label", Label(id=8, query=0, answer=""), T0)
    recorder.close()
    assert (recorder.stats.failed, recorder.stats.messages, recorder.stats.problem) == (3, 1, "")
    assert [label.id for _, _, _, label in decoded(files(tmp_path)[0])["/hadanet/label"]] == [8]
    assert len(caplog.records) == 1


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path, record, caplog):
    recorder = record(min_free_bytes=2**62, min_free_share=1.0)
    recorder.frame(a_result(0))
    recorder.log("info", "on we go")
    recorder.close()
    assert files(tmp_path) == []
    assert "MB free" in recorder.stats.problem
    assert (recorder.stats.frames_dropped, recorder.stats.messages_dropped) == (1, 1)
    assert [record.getMessage() for record in caplog.records] == [recorder.stats.problem]


def test_after_close_things_are_counted_as_dropped(record):
    recorder = record()
    recorder.frame(a_result(0))
    recorder.close()
    recorder.close()
    recorder.frame(a_result(1))
    assert (recorder.stats.frames, recorder.stats.frames_dropped) == (1, 1)


def test_where_it_cannot_record(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecorderError, match=r"cannot record to .*file/rec: Not a directory; choose another"):
        Recorder(tmp_path / "file" / "rec", name="kite", metadata={})
    with pytest.raises(RecorderError, match=r"cannot be named '\.\./kite'"):
        Recorder(tmp_path, name="../kite", metadata={})
