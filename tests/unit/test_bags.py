"""Bags as `rosbags` and the MCAP library write them, whole, cut and with flipped bytes."""

import base64
import json
import math
import shutil
import sqlite3
from itertools import pairwise

import cv2
import numpy as np
import pytest
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.LocationFix_pb2 import LocationFix
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag1 import Reader as Bag1Reader
from rosbags.rosbag1 import Writer as Bag1Writer
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Bag2Writer
from rosbags.typesys import Stores, get_typestore

from models.errors import SourceError
from onboard.foxglove import timestamp
from onboard.sources import open_source
from onboard.sources.bagrecords import messages
from onboard.sources.bags import BagSource, is_bag, read_bag
from onboard.sources.mcaprecords import Problems

T0 = 1_700_000_000 * 10**9
FRAMES = 40
FRAME_NS = 10**8
FIX_NS = 2 * 10**8
KINDS = ("ros1", "ros1-bz2", "ros1-lz4", "sqlite", "mcap", "foxglove", "foxglove-zstd", "foxglove-lz4", "json")


def image(index):
    """A picture with its number in it, of 64 x 48 pixels."""
    y, x = np.mgrid[0:48, 0:64]
    out = np.stack([x * 4, y * 5, np.full_like(x, index * 6)], axis=-1) % 256
    return out.astype(np.uint8)


def jpeg(index):
    return cv2.imencode(".jpg", image(index))[1].tobytes()


def lat(t_ns):
    return 48.0 + (t_ns - T0) * 1e-14


def events():
    """(time, what): pictures at 10 Hz, positions and attitudes at 5 Hz, in the order of time."""
    frames = [(T0 + i * FRAME_NS, "image", i) for i in range(FRAMES)]
    fixes = [(T0 + i * FIX_NS, "fix", i) for i in range(FRAMES // 2)]
    return sorted(frames + fixes)


def ros_messages(store, ros1):
    """(topic, type, time, message) as of ROS: two cameras, a fix and an Imu that looks 30 degrees right of north."""
    types = store.types
    header, stamp = types["std_msgs/msg/Header"], types["builtin_interfaces/msg/Time"]
    half = math.radians(60) / 2
    for number, (t_ns, what, i) in enumerate(events()):
        about = {"seq": number} if ros1 else {}
        head = header(stamp=stamp(sec=t_ns // 10**9, nanosec=t_ns % 10**9), frame_id="map", **about)
        if what == "image":
            data = np.frombuffer(jpeg(i), np.uint8)
            kind = "sensor_msgs/msg/CompressedImage"
            yield "/small/compressed", kind, t_ns, types[kind](header=head, format="jpeg", data=data)
            kind = "sensor_msgs/msg/Image"
            big = np.hstack([image(i), image(i)])
            padded = np.pad(big.reshape(48, -1), ((0, 0), (0, 8)))  # rows are longer than their pixels
            made = types[kind](
                header=head,
                height=48,
                width=128,
                encoding="rgb8",
                is_bigendian=0,
                step=padded.shape[1],
                data=padded[:, :].reshape(-1),
            )
            yield "/camera", kind, t_ns, made
        else:
            kind = "sensor_msgs/msg/NavSatFix"
            status = types["sensor_msgs/msg/NavSatStatus"](status=0 if i else -1, service=1)
            yield (
                "/fix",
                kind,
                t_ns,
                types[kind](
                    header=head,
                    status=status,
                    latitude=lat(t_ns),
                    longitude=9.0,
                    altitude=400.0 + i,
                    position_covariance=np.zeros(9),
                    position_covariance_type=0,
                ),
            )
            kind = "sensor_msgs/msg/Imu"
            vector = types["geometry_msgs/msg/Vector3"](x=0.0, y=0.0, z=0.0)
            turned = types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=math.sin(half), w=math.cos(half))
            made = types[kind](
                header=head,
                orientation=turned,
                orientation_covariance=np.zeros(9),
                angular_velocity=vector,
                angular_velocity_covariance=np.zeros(9),
                linear_acceleration=vector,
                linear_acceleration_covariance=np.zeros(9),
            )
            yield "/imu", kind, t_ns, made
            for topic, value in (("/mavros/global_position/rel_alt", 50.0 + i), ("/other", 7.0)):
                yield topic, "std_msgs/msg/Float64", t_ns, types["std_msgs/msg/Float64"](data=value)


def write_ros1(path, compression=None):
    store = get_typestore(Stores.ROS1_NOETIC)
    writer = Bag1Writer(path)
    writer.chunk_threshold = 100_000
    if compression:
        writer.set_compression(compression)
    with writer:
        connections = {}
        for topic, kind, t_ns, message in ros_messages(store, True):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(connections[topic], t_ns, store.serialize_ros1(message, kind))
    return path


def write_ros2(path, plugin):
    store = get_typestore(Stores.ROS2_HUMBLE)
    with Bag2Writer(path, version=9, storage_plugin=plugin) as writer:
        connections = {}
        for topic, kind, t_ns, message in ros_messages(store, False):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(connections[topic], t_ns, store.serialize_cdr(message, kind))
    return path


def write_foxglove(path, compression, encoding="protobuf"):
    with path.open("wb") as stream:
        writer = McapWriter(stream, chunk_size=5_000, compression=compression)
        writer.start()
        names = {"image": "foxglove.CompressedImage", "fix": "foxglove.LocationFix"}
        schema = "jsonschema" if encoding == "json" else "protobuf"
        ids = {what: writer.register_schema(name, schema, b"{}") for what, name in names.items()}
        channels = {what: writer.register_channel(f"/{what}", encoding, number) for what, number in ids.items()}
        for t_ns, what, i in events():
            time = {"sec": t_ns // 10**9, "nsec": t_ns % 10**9}
            if encoding == "json":
                fields = {"timestamp": time, "frame_id": "x"}
                if what == "image":
                    fields |= {"data": base64.b64encode(jpeg(i)).decode(), "format": "jpeg"}
                else:
                    fields |= {"latitude": lat(t_ns) if i else 0, "longitude": 9.0 if i else 0, "altitude": 400.0 + i}
                data = json.dumps(fields).encode()
            elif what == "image":
                data = CompressedImage(timestamp=timestamp(t_ns), data=jpeg(i), format="jpeg").SerializeToString()
            else:
                place = (lat(t_ns), 9.0) if i else (0.0, 0.0)  # a receiver without a fix
                fix = LocationFix(timestamp=timestamp(t_ns), latitude=place[0], longitude=place[1], altitude=400.0 + i)
                data = fix.SerializeToString()
            writer.add_message(channels[what], t_ns, data, t_ns)
        writer.finish()
    return path


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bags")
    fox = {"foxglove": CompressionType.NONE, "foxglove-zstd": CompressionType.ZSTD, "foxglove-lz4": CompressionType.LZ4}
    return {
        "ros1": write_ros1(folder / "a.bag"),
        "ros1-bz2": write_ros1(folder / "b.bag", Bag1Writer.CompressionFormat.BZ2),
        "ros1-lz4": write_ros1(folder / "c.bag", Bag1Writer.CompressionFormat.LZ4),
        "sqlite": write_ros2(folder / "sqlite", StoragePlugin.SQLITE3),
        "mcap": write_ros2(folder / "mcap", StoragePlugin.MCAP),
        "json": write_foxglove(folder / "json.mcap", CompressionType.ZSTD, "json"),
    } | {name: write_foxglove(folder / f"{name}.mcap", packed) for name, packed in fox.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_times_and_positions(bags, kind):
    path = bags[kind]
    assert is_bag(path)
    source = BagSource(path)
    frames = list(source.frames())
    assert (source.length, source.skipped, source.problems) == (FRAMES, [], ())
    assert source.fps == pytest.approx(10)
    assert [frame.index for frame in frames] == list(range(FRAMES))
    assert [frame.t_ns for frame in frames] == [T0 + i * FRAME_NS for i in range(FRAMES)]
    for i, frame in enumerate(frames):
        if source.topic == "/camera":  # the larger one; its pixels are red, green, blue
            assert np.array_equal(frame.image[:, :64], image(i)[:, :, ::-1])
            assert frame.encoded is None
        else:
            assert np.array_equal(frame.image, cv2.imdecode(np.frombuffer(jpeg(i), np.uint8), 1))
            assert frame.encoded == jpeg(i)
    assert source.topic == ("/camera" if "ros" in kind or kind in ("sqlite", "mcap") else "/image")
    telemetry = source.telemetry
    fixes = telemetry.series["lat_deg"]
    assert len(fixes.t_ns) == FRAMES // 2 - 1  # the first is none
    assert telemetry.utc_ns == 0
    for frame in frames[2:-1]:
        assert frame.pose.lat_deg == pytest.approx(lat(frame.t_ns), abs=1e-9)
        assert frame.pose.alt_m == pytest.approx(400 + (frame.t_ns - T0) / FIX_NS)
    if source.topic == "/camera":
        assert telemetry.series["yaw_deg"].values == pytest.approx(np.full(FRAMES // 2, 30.0))
        assert telemetry.series["pitch_deg"].values == pytest.approx(np.zeros(FRAMES // 2))
        assert telemetry.series["agl_m"].values == pytest.approx(50 + np.arange(FRAMES // 2))
    assert len(read_bag(path).series["alt_m"].values) == FRAMES // 2 - 1


def test_another_topic(bags):
    source = BagSource(bags["ros1"], "/small/compressed")
    frames = list(source.frames())
    assert len(frames) == FRAMES
    assert frames[7].encoded == jpeg(7)
    with pytest.raises(SourceError, match=r"the topic /imu has no pictures but sensor_msgs/msg/Imu; topics with"):
        BagSource(bags["ros1"], "/imu")
    with pytest.raises(SourceError, match=r"/nose is not there; topics with pictures: /camera, /small/compressed"):
        BagSource(bags["ros1"], "/nose")


def test_our_walk_of_a_ros1_bag_gives_what_rosbags_gives(bags):
    for kind in ("ros1", "ros1-bz2", "ros1-lz4"):
        with Bag1Reader(bags[kind]) as reader:
            theirs = [(c.topic, c.msgtype, t, bytes(data)) for c, t, data in reader.messages()]
        problems = Problems()
        ours = [(m.topic.name, m.topic.kind, m.t_ns, m.data) for m in messages(bags[kind], problems)]
        assert sorted(ours) == sorted(theirs)
        assert [m[2] for m in ours] == [m[2] for m in theirs]
        assert problems.lines() == ()


def damaged(path, folder, damage):
    """A copy of a bag with `damage(bytes)` done to its one file of messages; what to open, and that file."""
    if path.is_dir():
        copy = folder / path.name
        shutil.copytree(path, copy)
        (file,) = [f for f in copy.iterdir() if f.suffix in (".db3", ".mcap")]
    else:
        copy = file = folder / path.name
    original = (path / file.name if path.is_dir() else path).read_bytes()
    file.write_bytes(damage(original))
    return copy


def pieces(path):
    """What a bag gives: the source and its frames; None where it is refused in words."""
    try:
        source = BagSource(path)
    except SourceError:
        return None
    frames = list(source.frames())
    assert all(a.t_ns <= b.t_ns for a, b in pairwise(frames))
    assert [s.reason for s in source.skipped if s.name == path.name] == list(source.problems)
    return source, frames


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_cut_bag_gives_what_lies_before_the_cut(bags, tmp_path, kind, share):
    whole = list(BagSource(bags[kind]).frames())
    source, frames = pieces(damaged(bags[kind], tmp_path, lambda data: data[: int(len(data) * share)]))
    assert any("truncated" in problem for problem in source.problems), source.problems
    chunk = 6  # frames that a chunk holds, and an index at the end has its share of the bytes
    assert len(frames) >= FRAMES * share - chunk
    assert frames
    for frame, right in zip(frames, whole, strict=False):
        if frame.t_ns == right.t_ns:
            assert np.array_equal(frame.image, right.image)
    assert [frame.t_ns for frame in frames] == [frame.t_ns for frame in whole[: len(frames)]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flipped_bytes_end_in_frames_or_in_words(bags, tmp_path, kind, seed):
    def flip(data, start, share=0.01):
        rng = np.random.default_rng(seed)
        out = np.frombuffer(data, np.uint8).copy()
        places = start + rng.choice(len(out) - start, int((len(out) - start) * share), replace=False)
        out[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
        return out.tobytes()

    pieces(damaged(bags[kind], tmp_path, lambda data: flip(data, 0)))
    (tmp_path / "few").mkdir()
    pieces(damaged(bags[kind], tmp_path / "few", lambda data: flip(data, 0, 0.0002)))
    # with the first half sound, what lies there comes out
    (tmp_path / "half").mkdir()
    source, frames = pieces(damaged(bags[kind], tmp_path / "half", lambda data: flip(data, len(data) // 2)))
    assert source.problems
    assert frames


def test_a_message_that_is_damaged_costs_only_itself(bags, tmp_path):
    path = damaged(bags["sqlite"], tmp_path, lambda data: data)
    (file,) = path.glob("*.db3")
    with sqlite3.connect(file) as base:
        (camera,) = base.execute("SELECT id FROM topics WHERE name = '/camera'").fetchone()
        rows = base.execute("SELECT id FROM messages WHERE topic_id = ? ORDER BY id", (camera,)).fetchall()
        base.execute("UPDATE messages SET data = substr(data, 1, 500) WHERE id = ?", rows[5])
    base.close()
    source = BagSource(path)
    frames = list(source.frames())
    assert [frame.index for frame in frames] == [i for i in range(FRAMES) if i != 5]
    assert [skipped.name for skipped in source.skipped] == ["5"]


def test_times_that_cannot_be_are_left_out(tmp_path):
    path = tmp_path / "times.mcap"
    with path.open("wb") as stream:
        writer = McapWriter(stream)
        writer.start()
        schema = writer.register_schema("foxglove.CompressedImage", "protobuf", b"")
        channel = writer.register_channel("/image", "protobuf", schema)
        for t_ns in (T0, 2**63 + 5, T0 + 10**9):
            own = CompressedImage(timestamp=timestamp(7), data=jpeg(1), format="jpeg")  # of a clock that was never set
            writer.add_message(channel, t_ns, own.SerializeToString(), t_ns)
        writer.finish()
    source = BagSource(path)
    assert [frame.t_ns for frame in source.frames()] == [T0, T0 + 10**9]
    assert source.problems == ("times.mcap: damaged: a message of /image has a time of 9223372036854775813 ns",)


def test_raw_pictures_of_foxglove(tmp_path):
    path = tmp_path / "raw.mcap"
    with path.open("wb") as stream:
        writer = McapWriter(stream)
        writer.start()
        schema = writer.register_schema("foxglove.RawImage", "protobuf", b"")
        channel = writer.register_channel("/raw", "protobuf", schema)
        for i, (encoding, pixels) in enumerate(
            [
                ("bgr8", image(3)),
                ("rgb8", image(3)[:, :, ::-1]),
                ("mono8", image(3)[:, :, 0]),
                ("rgba8", cv2.cvtColor(image(3), cv2.COLOR_BGR2RGBA)),
                ("32FC1", image(3)),
            ]
        ):
            raw = RawImage(
                timestamp=timestamp(T0 + i),
                width=64,
                height=48,
                encoding=encoding,
                step=pixels[0].size,
                data=pixels.tobytes(),
            )
            writer.add_message(channel, T0 + i, raw.SerializeToString(), T0 + i)
        writer.finish()
    source = BagSource(path)
    frames = list(source.frames())
    for frame in (frames[0], frames[1], frames[3]):
        assert np.array_equal(frame.image, image(3))
    assert np.array_equal(frames[2].image, np.repeat(image(3)[:, :, :1], 3, axis=2))
    assert [s.reason for s in source.skipped] == ["pixels of the kind '32FC1' cannot be read here"]
    assert (source.telemetry.series, frames[0].pose.lat_deg) == ({}, None)
    with pytest.raises(SourceError, match="no positions in this bag"):
        read_bag(path)


def test_what_is_no_bag(tmp_path):
    for name in ("a.bag", "a.db3", "a.mcap"):
        (tmp_path / name).write_bytes(b"what is this?" * 100)
        with pytest.raises(SourceError, match=f"{name}: .*(not a ROS|no MCAP)"):
            BagSource(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match=r"no ROS 2 bag"):
        BagSource(tmp_path / "folder")
    assert not is_bag(tmp_path / "folder")
    (tmp_path / "folder" / "x.db3.zstd").write_bytes(b"")
    with pytest.raises(SourceError, match=r"unpack its files first: zstd -d x\.db3\.zstd"):
        BagSource(tmp_path / "folder")


def test_by_their_uri(bags):
    assert open_source(str(bags["ros1"])).topic == "/camera"
    assert open_source(f"{bags['ros1']}?topic=/small/compressed").topic == "/small/compressed"
    assert isinstance(open_source(str(bags["sqlite"])), BagSource)
    assert isinstance(open_source(str(bags["json"])), BagSource)
    with pytest.raises(SourceError, match=r"behind the \? there can stand.* topic"):
        open_source(f"{bags['ros1']}?tonic=/camera")
    with pytest.raises(SourceError, match=r"no such file or folder"):
        open_source(f"{bags['ros1']}x?topic=/camera")
