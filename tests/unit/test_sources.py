"""Photos, videos and cameras: order, times, poses and damage, against independent readers."""

import io
import os
import struct
import threading
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.errors import SourceError
from onboard.frame import Pose
from onboard.sources import open_source

DATA = Path(os.environ.get("HADANET_DATA", Path(__file__).parents[2] / "../shared/data"))


def need(path: str) -> Path:
    if not (DATA / path).exists():
        pytest.skip("no shared data: set HADANET_DATA")
    return DATA / path


def picture(seed: int = 0, height: int = 48, width: int = 64):
    """A smooth colour picture, RGB, that survives JPEG nearly unchanged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def exif_block(original=None, subsec=None, offset=None, gps=None, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    inner = exif.get_ifd(0x8769)
    for tag, value in ((0x9003, original), (0x9291, subsec), (0x9011, offset)):
        if value is not None:
            inner[tag] = value
    if gps:
        exif.get_ifd(0x8825).update(gps)
    return exif


def jpeg(path: Path, xmp: bytes = b"", seed: int = 0, **fields) -> Path:
    Image.fromarray(picture(seed)).save(path, "JPEG", quality=95, exif=exif_block(**fields), xmp=xmp)
    return path


def ns(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e3) * 10**6


# --- photos ----------------------------------------------------------------------------------------------------------


def test_capture_time_orders_photos(tmp_path):
    jpeg(tmp_path / "a.jpg", original="2024:05:04 10:00:02", subsec="25")
    jpeg(tmp_path / "b.JPEG", original="2024:05:04 10:00:02", subsec="1")
    jpeg(tmp_path / "c.jpg", original="2024:05:04 10:00:01")
    jpeg(tmp_path / "d.jpg", original="2024:05:04 12:00:00", offset="+02:00")
    source = open_source(str(tmp_path))
    frames = list(source.frames())
    assert [frame.name for frame in frames] == ["d.jpg", "c.jpg", "b.JPEG", "a.jpg"]
    times = ["2024-05-04T10:00:00", "2024-05-04T10:00:01", "2024-05-04T10:00:02.100", "2024-05-04T10:00:02.250"]
    assert [frame.t_ns for frame in frames] == [ns(text) for text in times]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert (source.length, source.live, source.skipped, source.fps) == (4, False, [], 1.0)
    assert [frame.name for frame in source.frames()] == [frame.name for frame in frames], "it can be read again"


def test_gps_time_gives_the_zone(tmp_path):
    """The camera's clock gives the distances, the median distance to the coarse GPS times the zone."""
    for second, late in ((0, 0), (2, 0), (4, 1)):
        gps = {29: "2024:05:04", 7: (15.0, 0.0, float(second + late))}
        jpeg(tmp_path / f"{second}.jpg", original=f"2024:05:04 10:00:0{second}", gps=gps)
    times = [frame.t_ns for frame in open_source(str(tmp_path)).frames()]
    assert times == [ns(f"2024-05-04T15:00:0{second}") for second in (0, 2, 4)]


def test_a_photo_without_time_stays_behind_its_neighbour(tmp_path):
    jpeg(tmp_path / "IMG_1.jpg", original="2024:05:04 10:00:09")
    jpeg(tmp_path / "IMG_2.jpg", original="0000:00:00 00:00:00")
    jpeg(tmp_path / "IMG_3.jpg", original="2024:05:04 10:00:01")
    assert [frame.name for frame in open_source(str(tmp_path)).frames()] == ["IMG_3.jpg", "IMG_1.jpg", "IMG_2.jpg"]


def test_times_in_names_and_names_alone(tmp_path):
    named, plain = tmp_path / "named", tmp_path / "plain"
    named.mkdir()
    plain.mkdir()
    for name in ("2018080501004550Z.jpg", "x_2018080501004480.jpg", "2018080501004640Z.png"):
        Image.fromarray(picture()).save(named / name)
    frames = list(open_source(str(named)).frames())
    assert [frame.t_ns for frame in frames] == [ns(f"2018-08-05T01:00:{s}") for s in ("44.800", "45.500", "46.400")]
    for name in ("IMG_10.jpg", "IMG_9.jpg", "IMG_2.bmp", "2018998877665544.tif", "._IMG_1.jpg", "notes.txt"):
        with (plain / name).open("wb") as file:
            Image.fromarray(picture()).save(file, "TIFF" if name.endswith("tif") else "JPEG")
    source = open_source(str(plain))
    frames = list(source.frames())
    assert [f.name for f in frames] == ["2018998877665544.tif", "IMG_2.bmp", "IMG_9.jpg", "IMG_10.jpg"]
    assert [frame.t_ns for frame in frames] == [0, 10**9, 2 * 10**9, 3 * 10**9]
    assert source.fps == 1.0
    assert frames[0].pose == Pose()


def test_pose_from_gps_and_dji(tmp_path):
    gps = {1: "S", 2: (33.0, 30.0, 36.0), 3: "W", 4: (70.0, 15.0, 0.0), 5: b"\x01", 6: 12.5}
    attributes = (
        b'drone-dji:GimbalYawDegree="-90.50" drone-dji:GimbalPitchDegree="-89.90" drone-dji:RelativeAltitude="+40.1"'
    )
    elements = b"<drone-dji:GimbalYawDegree>+10.0</drone-dji:GimbalYawDegree><drone-dji:GimbalRollDegree>1.5</x>"
    wrapped = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description ' + attributes + b"/></x:xmpmeta>"
    jpeg(tmp_path / "1.jpg", gps=gps, xmp=wrapped)
    jpeg(tmp_path / "2.jpg", gps={**gps, 9: "V"}, xmp=elements)
    jpeg(tmp_path / "3.jpg", gps={1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0), 16: "T", 17: 370.0})
    jpeg(tmp_path / "4.jpg", gps={1: "N", 2: (91.0, 0.0, 0.0), 3: "E", 4: (4.0, 0.0, 0.0), 16: "M", 17: 10.0})
    jpeg(
        tmp_path / "5.jpg",
        xmp=b'drone-dji:GpsLatitude="22.5" drone-dji:GpsLongtitude="113.9" drone-dji:AbsoluteAltitude="+7"',
    )
    one, two, three, four, five = (frame.pose for frame in open_source(str(tmp_path)).frames())
    assert (one.lat_deg, one.lon_deg, one.alt_m) == (pytest.approx(-33.51), pytest.approx(-70.25), -12.5)
    assert (one.yaw_deg, one.pitch_deg, one.roll_deg, one.agl_m) == (269.5, -89.9, None, 40.1)
    assert (two.lat_deg, two.yaw_deg, two.roll_deg) == (None, 10.0, 1.5)
    assert (three.lat_deg, three.lon_deg, three.yaw_deg) == (None, None, 10.0), "0, 0 is no fix"
    assert (four.lat_deg, four.lon_deg, four.yaw_deg) == (None, None, None)
    assert (five.lat_deg, five.lon_deg, five.alt_m) == (22.5, 113.9, 7.0)


@pytest.mark.parametrize(
    ("make", "xmp", "turns"),
    [
        ("Parrot", "drone-parrot:CameraYawDegree='-90' drone-parrot:CameraPitchDegree='-80.5'", (270.0, -80.5, None)),
        (
            "SenseFly",
            "<Camera:Yaw>12</Camera:Yaw><Camera:Pitch>3.5</Camera:Pitch><Camera:Roll>-2</Camera:Roll>",
            (12, -86.5, -2),
        ),
        ("Autel Robotics", "Camera:Yaw='12' Camera:Pitch='-89.5' Camera:Roll='0'", (12.0, -89.5, 0.0)),
        ("DJI", "drone-dji:FlightYawDegree='+45.0' drone-dji:GimbalPitchDegree='-30'", (45.0, -30.0, None)),
    ],
)
def test_attitude_by_the_names_of_each_make(tmp_path, make, xmp, turns):
    exif = Image.Exif()
    exif[0x010F] = make
    Image.fromarray(picture()).save(tmp_path / "1.jpg", "JPEG", exif=exif, xmp=xmp.encode())
    pose = next(open_source(str(tmp_path)).frames()).pose
    assert (pose.yaw_deg, pose.pitch_deg, pose.roll_deg) == turns


def test_orientation_is_applied(tmp_path):
    plain = cv2.cvtColor(picture(), cv2.COLOR_RGB2BGR).astype(int)
    for value in range(1, 9):
        folder = tmp_path / str(value)
        folder.mkdir()
        jpeg(folder / "a.jpg", orientation=value)
        image = next(open_source(str(folder)).frames()).image
        independent = cv2.imread(str(folder / "a.jpg"))
        assert image.shape == independent.shape == ((48, 64, 3) if value < 5 else (64, 48, 3))
        assert image.flags.c_contiguous
        assert np.abs(image.astype(int) - independent).max() <= 3
        if value == 1:
            assert np.abs(image - plain).mean() < 5, "BGR, not RGB"


def test_broken_photos_are_skipped_with_the_reason(tmp_path, capfd):
    good = jpeg(tmp_path / "a.jpg").read_bytes()
    png = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(png, "PNG")
    cut = {f"b{i:02}.jpg": good[: len(good) * i // 20] for i in range(1, 20)}
    broken = {
        **cut,
        "c.jpg": b"",
        "d.jpg": b"this is text\n" * 100,
        "e.jpg": bytes(5000),
        "f.jpg": good[: len(good) // 2] + bytes(len(good)),
        "g.png": png.getvalue()[:6000],
        "h.png": png.getvalue()[:6000] + bytes(7000),
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "i.png")
    (tmp_path / "j.jpg").write_bytes(good + bytes(2000))
    jpeg(tmp_path / "k.jpg")
    (tmp_path / "l.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "m.jpg").mkdir()
    source = open_source(str(tmp_path))
    frames = list(source.frames())
    assert [frame.name for frame in frames] == ["a.jpg", "j.jpg", "k.jpg"]
    assert [frame.index for frame in frames] == [0, len(broken) + 2, len(broken) + 3], "a skipped photo keeps its index"
    reasons = {skipped.name: skipped.reason for skipped in source.skipped}
    assert list(reasons) == [*broken, "i.png"]
    assert all(reasons.values())
    assert "empty" in reasons["c.jpg"]
    assert reasons["d.jpg"] == reasons["e.jpg"] == "this is not an image"
    assert "truncated" in reasons["b15.jpg"]
    assert "zeros" in reasons["f.jpg"]
    assert "zeros" in reasons["h.png"]
    assert "8 bits" in reasons["i.png"]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=40), st.integers(0, 10**6))
def test_any_damage_gives_a_frame_or_a_reason(tmp_path_factory, changes, length):
    folder = tmp_path_factory.mktemp("photo")
    gps = {1: "S", 2: (33.0, 30.0, 36.0), 3: "W", 4: (70.0, 15.0, 0.0), 5: b"\x01", 6: 12.5, 29: "2024:05:04"}
    path = jpeg(
        folder / "a.jpg", original="2024:05:04 10:00:09", subsec="3", gps=gps, xmp=b"drone-dji:GimbalYawDegree='1'"
    )
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data) if place % 2 else place % 600] = value  # half of the hits in the header
    path.write_bytes(data[: length + 1])
    source = open_source(str(folder))
    frames = list(source.frames())
    assert len(frames) + len(source.skipped) == 1
    for frame in frames:
        assert frame.image.dtype == np.uint8
        assert frame.pose.lat_deg is None or -90 <= frame.pose.lat_deg <= 90
        assert frame.pose.yaw_deg is None or 0 <= frame.pose.yaw_deg < 360


def raw_exif(data: bytes) -> dict[int, tuple[int, int, int]]:
    """Naive TIFF walk: tag -> (type, count, offset of the value in `data`) of all three directories."""
    base = data.index(b"Exif\0\0") + 6
    order = "<" if data[base : base + 2] == b"II" else ">"
    size = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8}
    found: dict[int, tuple[int, int, int]] = {}
    todo = [struct.unpack_from(order + "I", data, base + 4)[0]]
    while todo:
        at = base + todo.pop()
        for entry in range(struct.unpack_from(order + "H", data, at)[0]):
            place = at + 2 + 12 * entry
            tag, kind, count = struct.unpack_from(order + "HHI", data, place)
            long = size.get(kind, 1) * count > 4
            found[tag] = (
                kind,
                count,
                base + struct.unpack_from(order + "I", data, place + 8)[0] if long else place + 8,
            )
            if tag in (0x8769, 0x8825):
                todo.append(struct.unpack_from(order + "I", data, place + 8)[0])
    return {**found, 0: (0, 0, order == "<")}


def test_caliterra_against_a_naive_exif_reader():
    folder = need("flights/caliterra")
    frames = list(open_source(str(folder)).frames())
    assert len(frames) == 75
    local, utc = [], []
    for frame in frames:
        data = (folder / frame.name).read_bytes()
        tags = raw_exif(data)
        order = "<" if tags[0][2] else ">"

        def rationals(tag, data=data, tags=tags, order=order):
            _, count, at = tags[tag]
            pairs = struct.unpack_from(f"{order}{2 * count}I", data, at)
            return [Fraction(a, b) for a, b in zip(pairs[::2], pairs[1::2], strict=True)]

        d, m, s = rationals(2)
        assert frame.pose.lat_deg == pytest.approx(float(d + m / 60 + s / 3600), abs=1e-12)
        d, m, s = rationals(4)
        assert frame.pose.lon_deg == pytest.approx(-float(d + m / 60 + s / 3600), abs=1e-12)
        assert frame.pose.alt_m == pytest.approx(float(rationals(6)[0]))
        assert (frame.pose.yaw_deg, frame.pose.agl_m) == (None, None)
        taken = data[tags[0x9003][2] :][:19].decode()
        local.append(ns(taken.replace(":", "-", 2)))
        h, m, s = rationals(7)
        utc.append(ns("2014-10-19T00:00:00") + int(h * 3600 + m * 60 + s) * 10**9)
    t_ns = np.array([frame.t_ns for frame in frames])
    assert (np.diff(t_ns) == np.diff(local)).all(), "distances are those of the camera's clock"
    assert (np.diff(t_ns) >= 0).all()
    assert np.median(t_ns - np.array(utc)) == 0, "and the zone is GPS's"
    assert np.median(np.diff(t_ns)) == 2e9
    assert [frame.name for frame in frames] == sorted(path.name for path in folder.glob("*.jpg"))
    for frame in frames[::15]:
        assert np.abs(frame.image.astype(int) - cv2.imread(str(folder / frame.name))).mean() < 1


def test_cuav():
    source = open_source(str(need("flights/cuav")))
    frames = list(source.frames())
    assert len(frames) == source.length == 18
    assert frames[0].t_ns == ns("2018-08-05T01:00:44.800")
    assert frames[-1].t_ns - frames[0].t_ns == 14_780_000_000
    assert [f.name for f in frames] == sorted(f.name for f in frames)


# --- video -----------------------------------------------------------------------------------------------------------


def video(path: Path, times_ms=tuple(range(0, 2000, 40)), codec="libx264", options=None) -> Path:
    """Write a clip of moving pictures with these times; the middle pixel of frame i is about 5 * i grey."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 10
        stream.codec_context.max_b_frames = 2 if path.name.startswith("b") else 0
        for i, ms in enumerate(times_ms):
            image = picture(1, 96, 128) // 4
            image[24:72, 32:96] = 5 * i
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_frames_and_their_own_times(tmp_path, name):
    times = [0, 40, 80, 200, 240, 1000, 1033, 1500]
    path = video(tmp_path / name, times)
    source = open_source(str(path))
    frames = list(source.frames())
    assert [round(frame.t_ns / 1e6) for frame in frames] == times
    assert [(frame.index, frame.name) for frame in frames] == [(i, str(i)) for i in range(8)]
    assert [int(frame.image[48, 64].mean()) for frame in frames] == pytest.approx([5 * i for i in range(8)], abs=4)
    assert (source.skipped, source.live, source.uri) == ([], False, str(path))
    assert source.length in (None, 8)
    independent = cv2.VideoCapture(str(path))
    for frame in frames:
        assert np.abs(frame.image.astype(int) - independent.read()[1]).mean() < 3
    assert len(list(source.frames())) == 8, "it can be read again"


def test_a_turned_video_is_upright(tmp_path):
    data = bytearray(video(tmp_path / "a.mp4", [0, 40]).read_bytes())
    unit = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    at = data.index(unit, data.index(b"tkhd"))
    for turn, matrix in {
        "right": (0, 65536, -65536, 0),
        "half": (-65536, 0, 0, -65536),
        "left": (0, -65536, 65536, 0),
    }.items():
        a, b, c, d = matrix
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path = tmp_path / f"{turn}.mp4"
        path.write_bytes(data)
        image = next(open_source(str(path)).frames()).image
        independent = cv2.VideoCapture(str(path)).read()[1]
        assert image.shape == independent.shape == ((96, 128, 3) if turn == "half" else (128, 96, 3))
        assert np.abs(image.astype(int) - independent).mean() < 3


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "b.mp4"])
def test_a_damaged_video_gives_what_is_left(tmp_path, name):
    """All frames before the damage come, then the gap is put down."""
    path = video(tmp_path / name, options={"movflags": "faststart"} if name.endswith("mp4") else None)
    whole = list(open_source(str(path)).frames())
    data = path.read_bytes()
    assert len(whole) == 50
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(data[: len(data) * 7 // 10])
    source = open_source(str(cut))
    frames = list(source.frames())
    assert 20 < len(frames) < 45
    for a, b in zip(whole, frames, strict=False):
        assert (a.t_ns, a.name) == (b.t_ns, b.name)
        assert (a.image == b.image).all()
    if name != "a.ts":  # a transport stream has no length that it could fall short of
        assert source.skipped
        assert source.skipped[-1].name == str(len(frames) + len(source.skipped) - 1)
        assert "of 2.0 s" in source.skipped[-1].reason
    holed = bytearray(data)
    middle = len(data) // 2
    holed[middle : middle + 300] = np.random.default_rng(0).integers(0, 256, 300, np.uint8).tobytes()
    path.write_bytes(holed)
    source = open_source(str(path))
    frames = list(source.frames())
    assert source.skipped
    assert 30 <= len(frames) < 50
    assert frames[-1].t_ns == whole[-1].t_ns, "it goes on behind the damage"
    before = int(source.skipped[0].name)
    assert [frame.name for frame in frames[:before]] == [frame.name for frame in whole[:before]]
    assert [frame.index for frame in frames] == sorted({frame.index for frame in frames})
    at = {frame.t_ns: frame.image for frame in whole}
    assert all((at[frame.t_ns] == frame.image).all() for frame in frames), "no frame that the decoder made up"


def test_what_is_no_video(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mov").write_bytes(b"")
    (tmp_path / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(100_000))
    good = video(tmp_path / "good.mp4").read_bytes()
    (tmp_path / "no_index.mp4").write_bytes(good[: len(good) // 2])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name in ("text.mp4", "empty.mov", "noise.mkv", "no_index.mp4"):
        with pytest.raises(SourceError, match=name.replace(".", r"\.")):
            open_source(str(tmp_path / name))
    with pytest.raises(SourceError, match=r"sound\.mp4: there is no video in this file, only audio"):
        open_source(str(tmp_path / "sound.mp4"))


def test_closing_ends_a_video(tmp_path):
    source = open_source(str(video(tmp_path / "a.mp4")))
    frames = source.frames()
    next(frames)
    closer = threading.Thread(target=source.close)
    closer.start()
    closer.join(5)
    assert list(frames) == []
    source.close()


def test_karma():
    path = need("flights/karma/karma.mp4")
    source = open_source(str(path))
    assert source.fps == pytest.approx(30000 / 1001)
    count, last = 0, 0
    for frame in source.frames():
        assert frame.t_ns == pytest.approx(count * 1001 / 30000 * 1e9, abs=2)
        assert frame.t_ns >= last
        count, last = count + 1, frame.t_ns
    assert (count, source.length, source.skipped) == (362, 362, [])


# --- URIs and cameras ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "names no source"),
        ("a\0b", "names no source"),
        ("http://drone/stream", "no source of the kind 'http://'"),
        ("http://name:secret@drone/stream", "http://...@drone/stream: there is no source"),
        ("rtsp://name:secret@127.0.0.1:9/stream", "rtsp://...@127.0.0.1:9/stream: cannot be opened"),
        ("csi://front", "csi://front: give the camera's number, as in csi://0"),
        ("csi://", "give the camera's number"),
        ("csi://8", "give the camera's number"),
        ("csi://0?width=1001", "width must be a multiple of 8 and height even, not 1001 x 720"),
        ("csi://0?height=721", "width must be a multiple of 8 and height even, not 1280 x 721"),
        ("csi://0?flip=1", "there is no parameter 'flip'"),
        ("/no/such/flight", "/no/such/flight: there is no such file or folder"),
        ("x" * 5000, "cannot be opened"),
        ("v4l2:///dev/video_none", "/dev/video_none: there is no such camera; see ls /dev/video*"),
        ("v4l2://video0", "full path"),
        ("v4l2:///dev/null?width=wide", "width=wide"),
        ("v4l2:///dev/null?depth=8", "no parameter 'depth'"),
        ("v4l2:///dev/null", "/dev/null is no camera"),
        ("/dev/null", "v4l2:///dev/null"),
        ("file://[", "no source of the kind"),
        ("v4l2://[", "not a URI"),
    ],
)
def test_uris_that_cannot_be_opened(uri, says):
    with pytest.raises(SourceError) as error:
        open_source(uri)
    assert says in str(error.value)


def test_paths_that_cannot_be_opened(tmp_path):
    with pytest.raises(SourceError, match="no photos in this folder"):
        open_source(str(tmp_path))
    inside = tmp_path / "100MEDIA"
    inside.mkdir()
    with pytest.raises(SourceError, match=r"give one of them, for example .*100MEDIA"):
        open_source(str(tmp_path))
    photo = jpeg(inside / "a.jpg")
    with pytest.raises(SourceError, match="give the folder"):
        open_source(str(photo))
    with pytest.raises(SourceError, match="is not a device"):
        open_source(f"v4l2://{photo}")
    (tmp_path / "log.bin").write_bytes(b"x")
    with pytest.raises(SourceError, match="neither a folder nor a video"):
        open_source(str(tmp_path / "log.bin"))
