"""The pipe reader with a real GStreamer, and a daemon whose CSI camera is one: death, silence, a part of a picture."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.errors import SourceError
from onboard.daemon import RETRY_S
from onboard.sources import csi, open_source, pipe
from onboard.sources.csi import launch
from onboard.sources.pipe import PipeSource
from tests.system.onboard_process import Daemon, child, until

if shutil.which("gst-launch-1.0") is None or shutil.which("gst-inspect-1.0") is None:
    pytest.skip("no GStreamer: apt install gstreamer1.0-tools gstreamer1.0-plugins-base", allow_module_level=True)

GST = shutil.which("gst-launch-1.0")
WIDTH, HEIGHT, FPS = 320, 240, 30
SIZE = WIDTH * HEIGHT * 3 // 2
RAW = f"video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate={FPS}/1"


def camera(*source, width=WIDTH, height=HEIGHT, wrap=()):
    elements = source or ("videotestsrc", "is-live=true", "pattern=smpte", "!", RAW)
    return PipeSource("test", "test", lambda fd: [*wrap, *launch(elements, fd)], width, height, FPS)


@pytest.fixture
def opened():
    with contextlib.ExitStack() as stack:

        def open_camera(*args, **options):
            source = camera(*args, **options)
            stack.callback(source.close)
            return source

        yield open_camera


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_pictures_are_those_that_gstreamer_makes(opened, tmp_path):
    """Against the same pattern, converted and stored without loss by GStreamer itself."""
    path = tmp_path / "pattern.png"
    pattern = ["videotestsrc", "pattern=smpte100", "num-buffers=1", "!", RAW]
    subprocess.run(
        ["gst-launch-1.0", "-q", *pattern, "!", "videoconvert", "!", "pngenc", "!", "filesink", f"location={path}"],
        check=True,
        timeout=60,
    )
    wanted = cv2.imread(str(path)).astype(int)
    source = opened("videotestsrc", "is-live=true", "pattern=smpte100", "!", RAW)
    frames = source.frames()
    seen = [next(frames) for _ in range(5)]
    for frame in seen:
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        # the bars, not their edges, where two converters may share colour out differently
        middle = [np.abs(frame.image[:, x] - wanted[:, x]).max() for x in range(WIDTH // 14, WIDTH, WIDTH // 7)]
        assert max(middle) <= 6
    assert [frame.index for frame in seen] == [0, 1, 2, 3, 4]
    assert all(np.diff([frame.t_ns for frame in seen]) > 0)


def test_a_camera_that_nobody_looks_at_drops_its_oldest_pictures(opened):
    """After a second in which nobody read, at most the pipe's content and two pictures are old."""
    source = opened()
    frames = source.frames()
    next(frames)
    time.sleep(1.0)
    old = pipe.PIPE_BYTES // SIZE + 3
    start, count = time.monotonic(), 0
    while time.monotonic() - start < 1.0:
        next(frames)
        count += 1
    assert count <= FPS + old + FPS // 2


def test_its_death_is_told_at_once(opened):
    source = opened()
    frames = source.frames()
    next(frames)
    os.kill(source._process.pid, signal.SIGKILL)
    with pytest.raises(SourceError, match="test: its program ended by signal 9"):
        list(frames)


def test_an_end_and_an_error_are_told_in_gstreamers_words(opened):
    source = opened("videotestsrc", "is-live=true", "num-buffers=3", "!", RAW)
    with pytest.raises(SourceError, match="test: its program ended with status 0"):
        list(source.frames())
    with pytest.raises(SourceError, match=r"its program ended with status 1; it said: .*no element .nosuchsrc"):
        opened("nosuchsrc", "!", RAW)


def test_a_picture_that_comes_only_in_part(opened, tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(bytes(2 * SIZE + 1000))
    source = opened("filesrc", f"location={path}", "blocksize=1000000")
    frames = source.frames()
    got = []
    with pytest.raises(SourceError, match=f"in the middle of a picture, after 1000 of {SIZE} bytes"):
        got.extend(frames)
    path.write_bytes(bytes(10))
    with pytest.raises(SourceError, match=f"in the middle of a picture, after 10 of {SIZE} bytes"):
        opened("filesrc", f"location={path}")


def test_silence_is_told_and_ends(opened, monkeypatch):
    monkeypatch.setattr(pipe, "STALL_S", 0.5)
    source = opened()
    frames = source.frames()
    next(frames)
    os.kill(source._process.pid, signal.SIGSTOP)
    with pytest.raises(SourceError, match=r"test gave no picture in 0\.5 s"):
        list(frames)
    source.close()
    assert source._process.returncode == -signal.SIGKILL  # a process that is stopped does not hear anything else
    monkeypatch.setattr(pipe, "FIRST_S", 0.5)
    with pytest.raises(SourceError, match=r"gave no picture in 0\.5 s"):
        PipeSource("test", "test", lambda fd: ["sleep", "100"], WIDTH, HEIGHT, FPS)


def test_what_a_driver_prints_is_not_in_a_picture(opened):
    chatty = ("sh", "-c", 'echo "GST_ARGUS: Creating output stream"; exec "$@"', "sh")
    source = opened("videotestsrc", "is-live=true", "pattern=white", "!", RAW, wrap=chatty)
    frame = next(source.frames())
    assert frame.image.min() >= 250
    os.kill(source._process.pid, signal.SIGKILL)
    with pytest.raises(SourceError, match="it said: GST_ARGUS: Creating output stream"):
        list(source.frames())


def test_a_program_that_is_not_there():
    with pytest.raises(SourceError, match="test"):
        PipeSource("test", "test", lambda fd: ["/no/such/program"], WIDTH, HEIGHT, FPS)


def test_a_killed_flight_leaves_no_camera_behind(tmp_path):
    """The camera's program ends with the process that started it, even one that writes nothing any more."""
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv")
    code = f"""
        import time
        from onboard.sources.csi import launch
        from onboard.sources.pipe import PipeSource
        elements = ["videotestsrc", "is-live=true", "!", "{RAW}"]
        source = PipeSource("a", "a", lambda fd: launch(elements, fd), {WIDTH}, {HEIGHT}, {FPS})
        print(source._process.pid, flush=True)
        time.sleep(60)
    """
    flight = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    try:
        pid = int(flight.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        flight.kill()
        until(lambda: not is_alive(pid), "the camera's program is still there")
    finally:
        flight.kill()
        flight.wait()
        flight.stdout.close()


# --- csi:// ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def jetson(tmp_path, monkeypatch):
    """GStreamer as on a Jetson: its camera's elements are there, and are played by those that every GStreamer has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "gst-inspect-1.0": '[ "$2" = nvarguscamerasrc ] && exit 0\nexec {real} "$@"',
        "gst-launch-1.0": """
            echo "GST_ARGUS: Creating output stream"
            for word; do
                shift
                case "$word" in
                    nvarguscamerasrc) set -- "$@" videotestsrc is-live=true pattern=ball;;
                    sensor-id=0) ;;
                    sensor-id=*) echo "Error: no such camera" >&2; exit 1;;
                    nvvidconv) set -- "$@" videoconvert;;
                    *) set -- "$@" "$(echo "$word" | sed 's/(memory:NVMM)//')";;
                esac
            done
            exec {real} "$@"
        """,
    }
    for name, text in scripts.items():
        path = folder / name
        path.write_text("#!/bin/sh\n" + textwrap.dedent(text).strip().replace("{real}", shutil.which(name)) + "\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_the_camera_of_a_jetson(jetson):
    source = open_source("csi://0?width=640&height=480&fps=20")
    try:
        assert (source.live, source.fps) == (True, 20)
        frame = next(source.frames())
        assert frame.image.shape == (480, 640, 3)
    finally:
        source.close()
    with pytest.raises(SourceError, match="csi://1: its program ended with status 1; it said: Error: no such camera"):
        open_source("csi://1")


def test_without_any_way_to_a_camera_it_says_what_to_install(monkeypatch):
    if csi._has("libcamerasrc") or csi._has("nvarguscamerasrc"):
        pytest.skip("this computer can read such cameras")
    with pytest.raises(SourceError, match=r"csi://0: nothing here can read such a camera: .*gstreamer1\.0-libcamera"):
        open_source("csi://0")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SourceError, match=r"gstreamer1\.0-tools; see docs/drone\.md"):
        open_source("csi://0")


def test_a_daemon_takes_its_camera_back_after_death_and_silence(jetson, tmp_path):
    daemon = Daemon(tmp_path / "drone", "csi://0?width=640&height=480&fps=10", learn={"enabled": False})
    daemon.start()

    def program():
        flight = child(daemon.process.pid, "onboard.daemon")
        return flight and child(flight, GST)

    try:
        before = daemon.until(lambda s: s["camera"] == "frames come" and s["frame"] > 5)
        assert before["problems"] == {}
        os.kill(program(), signal.SIGKILL)
        lost = daemon.until(lambda s: "camera" in s["problems"])
        assert "its program ended by signal 9" in lost["problems"]["camera"]
        again = daemon.until(lambda s: s["frame"] > lost["frame"] + 5 and not s["problems"])
        os.kill(program(), signal.SIGSTOP)
        silent = daemon.until(lambda s: "camera" in s["problems"])
        assert f"gave no picture in {pipe.STALL_S:g} s" in silent["problems"]["camera"]
        daemon.until(lambda s: s["frame"] > silent["frame"] + 5 and not s["problems"])
        assert again["pid"] == before["pid"]
        last = program()
        assert daemon.stop() == 0
        until(lambda: not is_alive(last), "the camera's program is still there")
    finally:
        daemon.kill()
    errors = [line for line in daemon.err.read_text().splitlines() if "ERROR" in line]
    assert len(errors) == 2, errors
    assert f"(trying again every {RETRY_S:g} s)" in errors[0]
