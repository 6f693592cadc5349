"""Videos as people have them: more bits, other colours, odd sizes, one frame, no steady rate. FFmpeg's own pictures."""

from fractions import Fraction

import av
import numpy as np
import pytest

from onboard.sources import open_source

STEADY_MS = tuple(range(0, 1200, 100))
UNSTEADY_MS = (0, 100, 110, 400, 1000, 1001, 2000, 2100, 5000, 5100, 9000, 9100)
KINDS = {
    "444.mp4": ("libx264", "yuv444p", (320, 240), STEADY_MS),
    "10bit.mp4": ("libx264", "yuv420p10le", (320, 240), STEADY_MS),
    "grey.mkv": ("ffv1", "gray", (320, 240), STEADY_MS),
    "grey10.mkv": ("ffv1", "gray10le", (320, 240), STEADY_MS),
    "odd.mkv": ("libx264", "yuv444p", (315, 233), STEADY_MS),  # its lines are padded in memory
    "alpha.mov": ("qtrle", "argb", (66, 50), STEADY_MS),
    "pictures.avi": ("mjpeg", "yuvj422p", (320, 240), STEADY_MS),
    "tiny.mp4": ("libx264", "yuv420p", (16, 16), STEADY_MS),
    "one.mp4": ("libx264", "yuv420p", (320, 240), (0,)),
    "unsteady.mkv": ("libx264", "yuv420p", (320, 240), UNSTEADY_MS),
}


@pytest.mark.parametrize("name", KINDS)
def test_pictures_and_times(tmp_path, name):
    codec, pixels, (width, height), times_ms = KINDS[name]
    path = tmp_path / name
    picture = np.kron(np.random.default_rng(0).integers(0, 256, (30, 60, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = Fraction(1, 10 if codec == "mjpeg" else 1000)
        for number, time_ms in enumerate(times_ms):
            part = np.ascontiguousarray(picture[:height, 8 * number :][:, :width])
            frame = av.VideoFrame.from_ndarray(part, format="bgr24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with av.open(str(path)) as container:
        wanted = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    source = open_source(str(path))
    frames = list(source.frames())
    assert source.skipped == []
    assert [round(frame.t_ns * 1e-6) for frame in frames] == list(times_ms)
    for frame, image in zip(frames, wanted, strict=True):
        assert frame.image.shape == (height, width, 3)
        assert frame.image.flags.c_contiguous
        if codec == "mjpeg":  # read as JPEG files, whose colours are interpolated otherwise
            assert np.abs(frame.image.astype(int) - image).mean() < 8  # of another frame: 85
        else:
            assert np.array_equal(frame.image, image)


def test_a_slow_video_is_not_taken_for_cut_off(tmp_path):
    """A frame every two seconds: the last one is shown for as long."""
    path = tmp_path / "slow.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(1, 2), options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(6):
            picture = np.full((48, 64, 3), 40 * number, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        out.mux(stream.encode())
    source = open_source(str(path))
    assert [frame.t_ns for frame in source.frames()] == [number * 2 * 10**9 for number in range(6)]
    assert source.skipped == []
