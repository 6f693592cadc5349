"""Recordings of processes that are killed, and on disks that are really full."""

import json
import os
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.records import Message, Metadata
from mcap.stream_reader import StreamReader

from onboard.detections import FrameResult
from onboard.frame import Frame, Pose
from onboard.recorder import Recorder

WAIT_S = 60
LOST_S = 2.0

# The flight loop of a child; argv: folder, frames, frames per second (0: no pause), bound on a file's size (0: none).
FLIGHT = """
import resource, sys, time
from pathlib import Path
from tests.system.test_recorder import a_result, finish_line
from onboard.recorder import Recorder

folder, frames, fps, limit = Path(sys.argv[1]), *map(int, sys.argv[2:])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
recorder = Recorder(folder, name="kite", metadata={"model_hash": "ab"}, min_free_bytes=0)
for index in range(frames):
    recorder.frame(a_result(index))
    recorder.log("info", f"frame {index}")
    print(index, time.monotonic_ns(), flush=True)
    if fps:
        time.sleep(1 / fps)
recorder.close()
print(finish_line(recorder), flush=True)
"""


def a_result(index, noise=False):
    image = np.full((48, 64, 3), index % 256, np.uint8)
    if noise:
        image = np.random.default_rng(index).integers(0, 256, (240, 320, 3)).astype(np.uint8)
    return FrameResult(
        frame=Frame(index=index, t_ns=index + 1, name=str(index), image=image, pose=Pose()),
        rows=1,
        cols=1,
        classes=np.zeros(1, np.uint8),
        confidence=np.ones(1, np.float32),
        class_names=("object",),
    )


def finish_line(recorder):
    stats = recorder.stats
    return json.dumps({name: getattr(stats, name) for name in stats.__struct_fields__})


def fly(folder, frames, fps=0, limit=0):
    root = Path(__file__).parents[2]
    arguments = [sys.executable, "-c", FLIGHT, str(folder), str(frames), str(fps), str(limit)]
    return subprocess.Popen(
        arguments, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def camera_times(folder):
    """Frame numbers in the one file there, read as a stream up to a torn end; and whether the end is a proper one."""
    (path,) = folder.glob("*.mcap")
    channels, times, named = {}, [], False
    with path.open("rb") as stream:
        try:
            for record in StreamReader(stream, validate_crcs=True).records:
                if hasattr(record, "topic"):
                    channels[record.id] = record.topic
                named |= isinstance(record, Metadata)
                if isinstance(record, Message) and channels[record.channel_id] == "/camera":
                    times.append(record.log_time - 1)
        except (McapError, ValueError, struct.error):
            return times, named, False
    return times, named, True


def test_a_kill_costs_two_seconds_at_most(tmp_path):
    """Frames are so few and small that no chunk fills in time: only the clock gets them onto the disk."""
    rng = np.random.default_rng(8)
    children = [fly(tmp_path / str(i), 10_000, fps=12) for i in range(8)]
    try:
        for i, child in enumerate(children):
            lines = [child.stdout.readline() for _ in range(int(rng.integers(30, 45)))]
            time.sleep(rng.uniform(0, 0.1))
            child.kill()
            lines += child.stdout.read().splitlines()
            child.wait(WAIT_S)
            handed_ns = [int(line.split()[1]) for line in lines]
            times, named, _ = camera_times(tmp_path / str(i))
            assert named
            assert times == list(range(len(times)))
            lost = handed_ns[len(times) :]
            assert not lost or lost[-1] - lost[0] <= LOST_S * 1e9
    finally:
        for child in children:
            child.kill()
            child.communicate(timeout=WAIT_S)


def test_a_file_cut_anywhere_is_read_up_to_the_cut(tmp_path):
    recorder = Recorder(tmp_path / "whole", name="kite", metadata={}, min_free_bytes=0)
    for index in range(60):
        recorder.frame(a_result(index, noise=True))
    recorder.close()
    (path,) = (tmp_path / "whole").glob("*.mcap")
    data = path.read_bytes()
    assert len(camera_times(tmp_path / "whole")[0]) == 60
    (tmp_path / "cut").mkdir()
    before = 0
    for cut in np.linspace(100, len(data) - 1, 60).astype(int):
        (tmp_path / "cut" / "cut.mcap").write_bytes(data[:cut])
        times, _, ended = camera_times(tmp_path / "cut")
        assert not ended
        assert times == list(range(len(times)))
        assert len(times) >= before
        before = len(times)
    assert before == 60


def test_a_file_size_limit_stops_the_recording_and_not_the_flight(tmp_path):
    child = fly(tmp_path, 3000, limit=500_000)
    out, err = child.communicate(timeout=WAIT_S)
    *frames, stats = out.decode().splitlines()
    assert child.returncode == 0, err.decode()
    assert len(frames) == 3000
    stats = json.loads(stats)
    (path,) = tmp_path.glob("*.mcap")
    assert stats["problem"] == f"recording stopped: {path}: File too large; the flight goes on"
    assert err.decode().count("recording stopped") == 1
    assert stats["frames"] + stats["frames_dropped"] == 3000
    times, named, ended = camera_times(tmp_path)
    assert named
    assert ended
    assert path.stat().st_size == stats["bytes"] <= 500_000
    assert 0 < len(times) <= stats["frames"] < 3000
    assert times == list(range(len(times)))


@contextmanager
def small_disk(folder, size):
    """A real file system of this size."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"mounting is not permitted here: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def until_stopped(recorder):
    """Fly until the recorder has stopped by itself, as a flight does: without waiting for it."""
    index, end = 0, time.monotonic() + WAIT_S
    while not recorder.stats.problem:
        assert time.monotonic() < end
        recorder.frame(a_result(index, noise=True))
        index += 1
    recorder.frame(a_result(index))
    recorder.log("info", "on we go")
    recorder.close()


def test_a_full_disk_stops_the_recording(tmp_path, caplog):
    with small_disk(tmp_path / "disk", 1 << 20) as folder:
        recorder = Recorder(folder / "rec", name="kite", metadata={}, min_free_bytes=0)
        until_stopped(recorder)
        times, named, ended = camera_times(folder / "rec")
        assert recorder.stats.problem.endswith("No space left on device; the flight goes on")
        assert [record.getMessage() for record in caplog.records] == [recorder.stats.problem]
        assert (named, ended) == (True, True)
        assert times
        assert times == sorted(times)


def test_a_nearly_full_disk_stops_it_with_a_whole_file(tmp_path):
    with small_disk(tmp_path / "disk", 8 << 20) as folder:
        recorder = Recorder(folder / "rec", name="kite", metadata={}, min_free_bytes=10**9, min_free_share=0.5)
        until_stopped(recorder)
        assert "MB free under" in recorder.stats.problem
        (path,) = (folder / "rec").glob("*.mcap")
        assert 3 << 20 < path.stat().st_size < 6 << 20
        with path.open("rb") as stream:
            statistics = make_reader(stream).get_summary().statistics
        assert statistics.message_count >= 3 * recorder.stats.frames > 0
