"""`onboard inspect` on real files: what it counts, what it finds damaged, and what it draws."""

import json
import re
import sys
from io import StringIO

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rosbags.rosbag1 import Reader as Bag1Reader

from models.errors import HadanetError, SourceError
from onboard import inspect
from onboard.cli import main
from onboard.sim import SimSource
from onboard.telemetry.table import Captures, Series, Telemetry
from tests.unit.test_bags import write_ros1

SIM = "sim://?seed=3&frames=20&fps=2&width=64&height=64"


def video(path, times_ms):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        random = np.random.default_rng(0)
        for time_ms in times_ms:
            frame = av.VideoFrame.from_ndarray(random.integers(0, 256, (48, 64, 3), np.uint8), format="bgr24")
            frame.pts = time_ms // 40
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_simulated_flight():
    found, telemetry = inspect.inspect(SIM)
    source = SimSource(SIM)
    poses = [frame.pose for frame in source.frames()]
    frames, position = found.frames, found.telemetry.position
    assert (found.kind, found.truncated, found.problems) == ("simulated flight", False, [])
    assert (frames.count, frames.width, frames.height, frames.with_position) == (20, 64, 64, 20)
    assert (frames.duration_s, frames.rate_hz, frames.gap_count) == (9.5, 2.0, 0)
    assert frames.begins == found.telemetry.begins == "2026-06-01T17:20:00.000Z"
    assert (position.points, position.altitude) == (20, "alt_m")
    heights = [pose.alt_m for pose in poses]
    assert position.span_m == pytest.approx(max(heights) - min(heights), abs=0.01)
    north = np.diff([pose.lat_deg for pose in poses]) * 111_195
    east = np.diff([pose.lon_deg for pose in poses]) * 111_195 * np.cos(np.radians(poses[0].lat_deg))
    assert position.distance_m == pytest.approx(np.hypot(north, east).sum(), rel=1e-3)
    assert set(telemetry.series) >= {"lat_deg", "lon_deg", "alt_m", "agl_m", "camera_yaw_deg"}


def test_photos_with_a_gap_and_a_broken_one(tmp_path):
    for second in (0, 1, 2, 3, 4, 40, 41, 42):
        picture = np.full((12, 16, 3), second, np.uint8)
        cv2.imwrite(str(tmp_path / f"201801020304{second:02}00.png"), picture)
    (tmp_path / "2018010203044300.png").write_bytes(b"")
    found, telemetry = inspect.inspect(str(tmp_path))
    frames = found.frames
    assert (found.kind, found.telemetry, telemetry, found.alignment) == ("photos", None, None, None)
    assert (frames.count, frames.width, frames.height, frames.duration_s) == (8, 16, 12, 42.0)
    assert (frames.gap_count, frames.gaps[0].at_s, frames.gaps[0].length_s) == (1, 4.0, 36.0)
    assert frames.begins == "2018-01-02T03:04:00.000Z"
    assert frames.skipped == ["2018010203044300.png: the file is empty"]


def test_a_video_and_one_that_was_cut_off(tmp_path):
    whole = video(tmp_path / "whole.mkv", range(0, 4000, 40))
    found, _ = inspect.inspect(str(whole))
    assert (found.kind, found.truncated, found.frames.begins) == ("video", False, None)
    assert (found.frames.count, found.frames.duration_s, found.frames.rate_hz) == (100, 3.96, 25.0)
    assert [(stream.name, stream.kind) for stream in found.streams] == [("0 video", "h264")]
    cut = tmp_path / "cut.mkv"
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    found, _ = inspect.inspect(str(cut))
    assert 30 < found.frames.count < 70
    assert found.truncated
    assert any("ends after" in line for line in found.frames.skipped)


def test_our_own_recording(tmp_path, capsys):
    """Recorded by a replay, inspected as JSON: topics with counts, frames and positions."""
    assert main(["replay", SIM, "--record", str(tmp_path), "--label-rate", "0.01"]) == 0
    (path,) = tmp_path.glob("*.mcap")
    capsys.readouterr()
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["frames"]["count"], found["frames"]["with_position"]) == ("recording", 20, 20)
    counts = {stream["name"]: stream["count"] for stream in found["streams"]}
    assert counts["/camera"] == counts["/hadanet/detections"] == 20
    expected, _ = inspect.inspect(SIM)
    assert found["telemetry"]["position"]["distance_m"] == pytest.approx(
        expected.telemetry.position.distance_m, rel=0.01
    )
    assert found["telemetry"]["position"]["points"] == 20


def test_it_is_shown_as_tables():
    out = StringIO()
    found, _ = inspect.inspect(SIM)
    inspect.show(found, Console(file=out, width=160))
    text = out.getvalue()
    for words in ("20 of 64 x 64 pixels", "9.500 s at 2.00 a second", "lat_deg", "camera_pitch_deg", "truncated"):
        assert words in text
    distance = found.telemetry.position.distance_m
    assert re.search(rf"frames\s.*\b20\b.*\b9\.5\b.*{distance:.1f}", text)


def test_alignment_jumps_and_triggers_are_told():
    """Of a log whose second fix lies a degree away; what no reader here gives is made by hand."""
    t = np.arange(4, dtype=np.int64) * 10**9
    columns = {
        name: Series(source="GPS.x", t_ns=t, values=np.array(values, np.float64))
        for name, values in (("lat_deg", [0, 1, 1, 1]), ("lon_deg", [0, 0, 0, 0]))
    }
    log = Telemetry(uri="x", kind="tlog", series=columns, captures=Captures(source="CAMERA_FEEDBACK", t_ns=t[:2]))
    found = inspect.Inspection(
        source="x",
        kind="photos",
        streams=[],
        frames=None,
        telemetry=inspect.summarise(log),
        alignment=inspect.Aligned(method="triggers", offset_s=1.25, residual_ms=12.34, matched=18, unseen=""),
        truncated=True,
        problems=["truncated: x [ends]"],
    )
    out = StringIO()
    inspect.show(found, Console(file=out, width=160))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert "alignment        triggers: residual 12.3 ms, 18 matched, offset 1.250 s" in lines
    assert "jumps            1, the first to 1.0 s: 111195 m" in lines
    assert "camera triggers  2, CAMERA_FEEDBACK" in lines
    assert "truncated: x [ends]" in lines


def test_the_picture(tmp_path):
    _, telemetry = inspect.inspect(SIM)
    inspect.draw(telemetry, SIM, tmp_path / "deep" / "track.png")
    with Image.open(tmp_path / "deep" / "track.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 500
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert (68, 1, 84) in colours  # the first and the last colour of the scale: the track begins and ends
    assert (253, 231, 37) in colours
    assert (11, 122, 59) in colours  # the altitude


def test_nothing_to_draw(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    assert main(["inspect", str(tmp_path), "--picture", str(tmp_path / "out" / "p.jpg.png")]) == 1
    assert "there is no position in it that could be drawn" in capsys.readouterr().err
    _, telemetry = inspect.inspect(SIM)
    with pytest.raises(HadanetError, match=r"let its name end in \.png"):
        inspect.draw(telemetry, SIM, tmp_path / "track.xyz")


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(HadanetError, match="needs matplotlib: pip install"):
        inspect.draw(None, "x", "x.png")


def test_what_cannot_be_inspected(tmp_path, capsys):
    with pytest.raises(SourceError, match="a camera has no end"):
        inspect.inspect(SIM + "&live=1")
    assert main(["inspect", str(tmp_path / "missing.mp4")]) == 1
    assert "there is no such file or folder" in capsys.readouterr().err


def test_a_bar_where_it_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(inspect, "SLOW_S", 0.0)
    with inspect.slowly("x[y]") as tick:
        tick(3, 7)
        tick(4, None)
    monkeypatch.setattr(inspect, "SLOW_S", 60.0)
    with inspect.slowly("z") as tick:
        tick(1, 1)
    assert "z" not in capsys.readouterr().err


def test_topics_of_a_ros1_bag(tmp_path, capsys):
    path = write_ros1(tmp_path / "a.bag")
    assert main(["inspect", str(path), "--json"]) == 0
    streams = {s["name"]: (s["kind"], s["count"]) for s in json.loads(capsys.readouterr().out)["streams"]}
    with Bag1Reader(path) as reader:
        assert streams == {name: (topic.msgtype, topic.msgcount) for name, topic in reader.topics.items()}


def test_a_bag_without_pictures_is_a_log(tmp_path, capsys):
    from rosbags.rosbag2 import Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    types, kind = store.types, "sensor_msgs/msg/NavSatFix"
    with Writer(tmp_path / "bag", version=9) as writer:
        connection = writer.add_connection("/fix", kind, typestore=store)
        for i in range(20):
            stamp = types["builtin_interfaces/msg/Time"](sec=1_700_000_000 + i, nanosec=0)
            message = types[kind](
                header=types["std_msgs/msg/Header"](stamp=stamp, frame_id="gps"),
                status=types["sensor_msgs/msg/NavSatStatus"](status=0, service=1),
                latitude=48.0 + i * 1e-5,
                longitude=9.0,
                altitude=400.0 + i,
                position_covariance=np.zeros(9),
                position_covariance_type=0,
            )
            writer.write(connection, (1_700_000_000 + i) * 10**9, store.serialize_cdr(message, kind))
    assert main(["inspect", str(tmp_path / "bag"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frames"] is None
    position = found["telemetry"]["position"]
    assert (position["points"], position["duration_s"], position["span_m"]) == (20, 19.0, 19.0)
    assert position["distance_m"] == pytest.approx(19 * 1.112, rel=0.01)
