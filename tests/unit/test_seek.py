"""A part of a flight is found without decoding what lies before it, with the same frames and numbers."""

import contextlib

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from models.errors import SourceError
from onboard import foxglove
from onboard.sim import SimSource
from onboard.sources import open_source
from onboard.sources.bags import BagSource
from onboard.sources.pictures import decode
from onboard.sources.recording import RecordingSource
from onboard.sources.window import Window
from tests import flightlogs
from tests.unit.test_bags import write_ros1
from tests.unit.test_recording import fly

FRAMES, RATE, GOP = 150, 10, 15
VIDEOS = {
    "closed.mp4": ("libx264", {"bf": "2"}),
    "open.mp4": ("libx264", {"bf": "2", "x264-params": "open-gop=1"}),
    "a.mkv": ("libx264", {"bf": "2"}),
    "a.ts": ("libx264", {"bf": "2"}),
    "a.avi": ("mpeg4", {}),
    "late.mov": ("libx264", {"bf": "0"}),
    "pictures.avi": ("mjpeg", {}),
}


def video(path, codec, options, names=()):
    with av.open(str(path), "w") as out:
        out.metadata.update(names)
        stream = out.add_stream(codec, rate=RATE, options={"g": str(GOP), **options})
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        rng = np.random.default_rng(0)
        picture = rng.integers(0, 256, (48, 400, 3), np.uint8)
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:, number : number + 64]), format="bgr24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def told(frames):
    return [(frame.index, frame.t_ns, frame.name, frame.image.tobytes()) for frame in frames]


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("start_s", [0.4, 3.0, 7.55, 14.2])
def test_a_part_of_a_video_is_that_part(tmp_path, name, start_s):
    source = open_source(str(video(tmp_path / name, *VIDEOS[name])))
    whole = told(source.frames())
    assert len(whole) == FRAMES
    late = whole[0][1] + round(start_s * 1e9)
    assert told(Window(source, start_s).frames()) == [frame for frame in whole if frame[1] >= late]
    first = next(iter(source.frames(start_s)))
    assert first.t_ns <= late
    if name != "a.ts":  # its places are found by guessing, and where that fails all is decoded
        assert first.index >= start_s * RATE - 2 * GOP - RATE - 1, "decoded from the beginning"


def test_a_video_of_jpeg_files_keeps_their_bytes(tmp_path):
    """So a recording of it has the camera's own pictures; they are FFmpeg's, but for how it interpolates colours."""
    path = video(tmp_path / "a.avi", *VIDEOS["pictures.avi"])
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    frames = list(open_source(str(path)).frames())
    assert [frame.encoded for frame in frames] == packets
    assert foxglove.camera(frames[3], exact=True)[0].data == packets[3]
    assert foxglove.camera(frames[3], exact=True)[1] == "original"
    for frame, picture in zip(frames, pictures, strict=True):
        assert np.array_equal(frame.image, decode(frame.encoded))
        light = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(int) for image in (frame.image, picture)]
        assert np.abs(light[0] - light[1]).mean() < 2
    data = bytearray(path.read_bytes())
    torn = data.find(packets[5][:200])
    data[torn : torn + 200] = bytes(200)
    path.write_bytes(bytes(data))
    source = open_source(str(path))
    assert [frame.index for frame in source.frames()] == [n for n in range(FRAMES) if n != 5]
    assert [skipped.name for skipped in source.skipped] == ["5"]


def test_a_part_of_a_damaged_video_is_that_part(tmp_path):
    path = video(tmp_path / "a.mp4", *VIDEOS["closed.mp4"])
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(bytes(data))
    source = open_source(str(path))
    whole = told(source.frames())
    assert source.skipped
    assert len(whole) > FRAMES / 2
    assert told(Window(source, 10.0).frames()) == [frame for frame in whole if frame[1] >= 10 * 10**9]


def test_a_damaged_transport_stream_raises_nothing_else(tmp_path):
    """Bits that are turned make up streams behind the header, which PyAV does not expect."""
    data = video(tmp_path / "a.ts", *VIDEOS["a.ts"]).read_bytes()
    read = 0
    for seed in range(12):
        path = tmp_path / f"{seed}.ts"
        path.write_bytes(flightlogs.flipped(data, seed, (1e-4, 1e-3, 1e-2)[seed % 3]))
        with contextlib.suppress(SourceError):
            read += len(list(open_source(str(path)).frames()))
    assert read > FRAMES


def test_names_in_another_alphabet_are_no_obstacle(tmp_path):
    path = video(tmp_path / "a.mp4", *VIDEOS["closed.mp4"], {"title": "Ueberflug"})
    path.write_bytes(path.read_bytes().replace(b"Ueberflug", "\u00dcberflug!".encode("latin-1")))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert len(list(open_source(str(path)).frames())) == FRAMES


def test_a_video_and_a_log_without_a_common_clock_begin_together(tmp_path):
    """The log counts from a start long before, as a flight controller does."""
    log = flightlogs.DataFlash({"POS": ("QLLff", "TimeUS,Lat,Lng,Alt,RelHomeAlt")})
    rows = [log.record("POS", (900 + i) * 10**6, 480_000_000 + i * 1000, 90_000_000, 500.0, i) for i in range(20)]
    (tmp_path / "flight.bin").write_bytes(log.formats + b"".join(rows))
    source = open_source(str(video(tmp_path / "a.mp4", *VIDEOS["closed.mp4"])))
    assert source.alignment.method == "none: both are taken to begin together"
    assert source.alignment.unseen
    frames = list(source.frames())
    assert frames[0].pose.agl_m == 0
    assert frames[105].pose.agl_m == pytest.approx(10.5)


@pytest.mark.parametrize("kind", ["sim", "photos", "bag", "recording"])
def test_a_part_of_any_other_flight_is_that_part(tmp_path, kind):
    if kind == "sim":
        source = SimSource("sim://?seed=3&frames=12&fps=2&start=2&width=64&height=64&rows=2&cols=2")
    elif kind == "photos":
        for second in range(20):
            name = f"20240101120{second:03d}00.jpg"
            Image.fromarray(np.full((16, 16, 3), second * 9, np.uint8)).save(tmp_path / name)
        source = open_source(str(tmp_path))
    elif kind == "bag":
        source = BagSource(write_ros1(tmp_path / "a.bag"))
    else:
        fly(tmp_path, 20)
        source = RecordingSource(tmp_path)
    whole = told(source.frames())
    span_s = (whole[-1][1] - whole[0][1]) * 1e-9
    late = whole[0][1] + round(span_s / 2 * 1e9)
    part = told(Window(source, span_s / 2).frames())
    assert part == [frame for frame in whole if frame[1] >= late]
    assert 0 < len(part) < len(whole)
