"""Recordings of ours read back: frames, what crossed between them, files of a flight, damage, and which are kept."""

import cv2
import msgspec
import numpy as np
import pytest

from link.messages import Delta, Label, Undo
from models import delta
from models.errors import SourceError
from onboard import retention
from onboard.config import Config
from onboard.detections import FrameResult
from onboard.frame import Frame, Pose
from onboard.recorder import Recorder
from onboard.sources import open_source
from onboard.sources.photos import PhotoSource
from onboard.sources.recording import Crossed, RecordingSource, is_recording
from tests.small_model import small_model

T0 = 1_700_000_000_123_456_789
STEP_NS = 10**8
CONFIG = msgspec.json.encode(Config(seed=7)).decode()
WHERE = {"lat_deg": 48.5, "lon_deg": 9.25, "alt_m": 431.5, "agl_m": 60.25, "yaw_deg": 350.0, "pitch_deg": -90.0}


def model(number):
    """One base model with head number `number`; 0 is the base."""
    base = small_model()
    head = base.tensors["head.weight"].copy()
    head[0, 0] += number
    return base.with_tensors({"head.weight": head, "head.bias": base.tensors["head.bias"]})


def change(old, new):
    payload = delta.encode(model(old), model(new))
    parent, result = (bytes.fromhex(model(n).hash) for n in (old, new))
    return Delta(parent=parent, result=result, frame=0, payload=payload)


def a_result(index, noise=False, size=(60, 80, 3)):
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, size).astype(np.uint8) if noise else np.full(size, index, np.uint8)
    pose = Pose(**WHERE, roll_deg=float(index)) if index % 2 == 0 else Pose()
    return FrameResult(
        frame=Frame(index=3 * index, t_ns=T0 + index * STEP_NS, name=f"{index}.jpg", image=image, pose=pose),
        rows=1,
        cols=2,
        classes=np.array([index % 3, 1], np.uint8),
        confidence=np.ones(2, np.float32),
        class_names=("a", "b", "c"),
    )


def recorder(folder, **options):
    about = {"config": CONFIG, "base_hash": model(0).hash, "position": "0"} | options.pop("metadata", {})
    return Recorder(folder, name="kite", metadata=about, base=model(0), min_free_bytes=0, exact=True, **options)


def fly(folder, frames, **options):
    """Record `frames` frames; what else to record behind frame i stands in `crossing[i]`."""
    crossing = options.pop("crossing", {})
    flying = recorder(folder, **options)
    for index in range(frames):
        flying.frame(a_result(index, noise=True), model(0))
        for message in crossing.get(index, ()):
            flying.message(f"/hadanet/{type(message).__name__.lower()}", message)
    flying.close()
    assert flying.stats.problem == ""
    return sorted(folder.glob("*.mcap"))


def test_frames_come_back_whole(tmp_path):
    (path,) = fly(tmp_path, 9)
    source = open_source(str(path))
    assert isinstance(source, RecordingSource)
    assert (source.length, source.live, source.recompressed, source.whole, source.problems) == (
        9,
        False,
        False,
        True,
        (),
    )
    assert source.fps == pytest.approx(10)
    assert source.config == Config(seed=7)
    for _ in range(2):  # a source can be read again
        frames = list(source.frames())
        assert len(frames) == 9
        for index, frame in enumerate(frames):
            right = a_result(index, noise=True).frame
            assert (frame.index, frame.t_ns, frame.name, frame.pose) == (
                right.index,
                right.t_ns,
                right.name,
                right.pose,
            )
            assert np.array_equal(frame.image, right.image)
    assert source.skipped == []
    telemetry = source.telemetry
    assert telemetry.series["lat_deg"].t_ns.tolist() == [T0 + i * STEP_NS for i in range(0, 9, 2)]
    assert telemetry.series["camera_roll_deg"].values.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert telemetry.pose(T0 + 4 * STEP_NS) == Pose(**WHERE, roll_deg=4.0)


def test_what_crossed_comes_with_the_frame_that_had_it(tmp_path):
    labels = [Label(id=n, query=n, answer="a") for n in range(1, 5)]
    flying = recorder(tmp_path, metadata={"position": "10"})
    flying.message("/hadanet/label", labels[0])
    flying.message("/hadanet/label", labels[0])  # sent twice: the label log takes it once
    flying.frame(a_result(0), model(0), 10)
    flying.message("/hadanet/label", labels[1])
    flying.message("/hadanet/undo", Undo(label=1))
    flying.frame(a_result(1), model(0), 12)
    flying.message("/hadanet/delta", change(0, 1))
    flying.frame(a_result(2), model(0), 12)  # it came, but was not yet in force
    flying.frame(a_result(3), model(1), 13)
    flying.message("/hadanet/label", labels[2])
    flying.frame(a_result(4), model(1), 14)
    flying.message("/hadanet/label", labels[3])
    flying.message("/hadanet/delta", change(1, 2))
    flying.close()
    source = RecordingSource(tmp_path)
    list(source.frames())
    assert source.crossed(None) == Crossed(None, (), ())  # nobody asked for it
    source.follow = True
    got = [source.crossed(frame.index) for frame in source.frames()]
    # 11 is the first label's position: the first frame did not have it yet
    assert [c.labels for c in got] == [(), (labels[0], labels[1]), (), (Undo(label=1),), (labels[2],)]
    assert [c.deltas for c in got] == [(), (), (change(0, 1),), (), ()]
    assert [c.model for c in got] == [model(n).hash for n in (0, 0, 0, 1, 1)]
    assert [c.detections.classes for c in got] == [bytes([i % 3, 1]) for i in range(5)]
    rest = source.crossed(None)
    assert (rest.labels, rest.deltas) == ((labels[3],), (change(1, 2),))
    list(source.frames())
    late = source.crossed(9)  # frames before it were passed over
    assert (late.labels, late.deltas) == ((labels[0], labels[1], Undo(label=1)), (change(0, 1),))


def test_files_of_a_flight(tmp_path):
    crossing = {i: [Label(id=i, query=i, answer="b")] for i in range(30)}
    files = fly(tmp_path, 30, max_file_bytes=100_000, crossing=crossing)
    assert len(files) > 3
    source = RecordingSource(tmp_path)
    assert source.length == 30
    frames = [frame.index for frame in source.frames()]
    assert frames == [3 * i for i in range(30)]
    # without the first one, as retention leaves it
    numbers = {int(RecordingSource(file).about["segment"]): file for file in files}
    assert sorted(numbers) == list(range(len(files)))
    numbers[0].unlink()
    source = RecordingSource(tmp_path)
    assert not source.whole
    assert "files of this flight are missing" in source.problems[0]
    left = [frame.index for frame in source.frames()]
    assert 0 < len(left) < 30
    assert left == frames[-len(left) :]
    assert [skipped.reason for skipped in source.skipped] == list(source.problems)


def test_each_file_gives_every_model_that_flew_in_it(tmp_path):
    """A change may be the last message of one file, and in force only in the middle of the next."""
    flying = recorder(tmp_path, max_file_bytes=150_000)  # two frames
    flights = (0, 0, 0, 1, 1, 3, 3)
    changes = {1: [change(0, 1)], 5: [change(1, 2), change(2, 3)]}
    for index, flown in enumerate(flights):
        for one in changes.get(index, []):
            flying.message("/hadanet/delta", one)
        flying.frame(a_result(index, noise=True, size=(180, 180, 3)), model(flown))
    flying.close()
    seen = []
    for path in sorted(tmp_path.glob("*.mcap")):
        source = RecordingSource(path)
        source.follow = True
        known = {model(0).hash: model(0)}
        for frame in source.frames():
            crossed = source.crossed(frame.index)
            for one in crossed.deltas:
                if parent := known.get(one.parent.hex()):
                    known[one.result.hex()] = delta.apply(parent, one.payload)
            if head := source.head(crossed.model):
                known[crossed.model] = delta.apply(model(0), head)
            assert known[crossed.model].hash == crossed.model == model(flights[frame.index // 3]).hash
            seen.append((path, frame.index // 3))
    assert [index for _, index in seen] == list(range(len(flights)))
    assert [path for path, _ in seen][2] == [path for path, _ in seen][3] != [path for path, _ in seen][1]


def test_photos_go_before_recordings_that_lie_beside_them(tmp_path):
    fly(tmp_path, 2)
    assert isinstance(open_source(str(tmp_path)), RecordingSource)
    cv2.imwrite(str(tmp_path / "1.jpg"), np.zeros((8, 8, 3), np.uint8))
    assert isinstance(open_source(str(tmp_path)), PhotoSource)


def test_jpeg_is_told(tmp_path):
    flying = Recorder(tmp_path, name="kite", metadata={}, min_free_bytes=0)
    flying.frame(a_result(0))
    flying.close()
    source = RecordingSource(tmp_path)
    assert (source.recompressed, source.about["images"], source.config) == (True, "jpeg", None)


def test_what_is_no_recording_of_ours(tmp_path):
    (path,) = fly(tmp_path / "rec", 2)
    (tmp_path / "new").mkdir()
    newer = tmp_path / "new" / "newer.mcap"
    newer.write_bytes(path.read_bytes().replace(b"\x06\0\0\0format\x01\0\0\x001", b"\x06\0\0\0format\x01\0\0\x002"))
    with pytest.raises(SourceError, match=r"newer\.mcap: a recording of format '2', this program reads '1'"):
        RecordingSource(newer)
    (tmp_path / "x.mcap").write_bytes(b"no")
    assert not is_recording(tmp_path / "x.mcap")
    assert not is_recording(tmp_path)
    with pytest.raises(SourceError, match=r"x\.mcap: this is no MCAP file"):
        open_source(str(tmp_path / "x.mcap"))
    with pytest.raises(SourceError, match="this is no recording of ours"):
        RecordingSource(tmp_path)
    flying = recorder(tmp_path / "empty")
    flying.close()
    with pytest.raises(SourceError, match="not one whole frame"):
        open_source(str(tmp_path / "empty"))


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_cut_recording(tmp_path, share):
    (path,) = fly(tmp_path, 20)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    source = RecordingSource(path)
    frames = list(source.frames())
    assert len(frames) == source.length >= 20 * share - 5
    assert [frame.index for frame in frames] == [3 * i for i in range(len(frames))]
    assert any("truncated" in problem for problem in source.problems)
    assert [skipped.reason for skipped in source.skipped] == list(source.problems)


@pytest.mark.parametrize("seed", range(4))
def test_a_recording_with_flipped_bytes(tmp_path, seed):
    (path,) = fly(tmp_path, 20)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    rng = np.random.default_rng(seed)
    start = len(data) // 2 if seed % 2 else 0
    places = start + rng.choice(len(data) - start, (len(data) - start) // 100, replace=False)
    data[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
    path.write_bytes(data.tobytes())
    try:
        source = RecordingSource(path)
    except SourceError:
        assert not start  # the beginning, which says what it is, is damaged too
        return
    frames = list(source.frames())
    assert len(frames) >= 7
    assert source.skipped
    for frame in frames:
        right = a_result(frame.index // 3, noise=True).frame
        assert np.array_equal(frame.image, right.image)


# --- which are kept ------------------------------------------------------------------------------------------------


def keep(folder, name, size=1000):
    (folder / name).write_bytes(bytes(size))
    return folder / name


def test_the_oldest_of_our_own_go_first(tmp_path):
    old = [
        keep(tmp_path, "20240101T000000Z_kite_boot77.mcap"),
        keep(tmp_path, "20240101T000000Z_kite_boot77_2.mcap"),
        keep(tmp_path, "20240101T000000Z_kite_boot77_10.mcap"),
        keep(tmp_path, "20240102T000000Z_kite-2_boot5.mcap"),
    ]
    writing = keep(tmp_path, "20230101T000000Z_kite_boot1.mcap")
    others = [keep(tmp_path, n) for n in ("a.mcap", "20230101T000000Z_kite.mcap", "20230101T000000Z_kite_boot1.mcap.x")]
    (tmp_path / "20220101T000000Z_kite_boot1.mcap").symlink_to(others[0])
    (tmp_path / "20220102T000000Z_kite_boot1.mcap").mkdir()
    assert [kept.path for kept in retention.recordings(tmp_path)] == [writing, *old]
    assert retention.delete_oldest(tmp_path, writing) == old[:1]
    assert retention.delete_oldest(tmp_path, writing, keep_bytes=4000) == []
    assert retention.delete_oldest(tmp_path, writing, keep_bytes=2999) == old[1:3]
    assert retention.delete_oldest(tmp_path, writing, keep_bytes=1) == old[3:]
    assert retention.delete_oldest(tmp_path, writing) == []
    assert all(path.exists() for path in [writing, *others])


def test_all_recordings_together_are_bounded(tmp_path):
    foreign = keep(tmp_path, "20200101T000000Z_mine.mcap", 300_000)
    older = keep(tmp_path, "20200101T000000Z_kite_boot3.mcap", 300_000)
    flying = recorder(tmp_path, keep_bytes=400_000)
    for index in range(90):
        flying.frame(a_result(index, noise=True), model(0))
        flying.wait(10.0)
    flying.close()
    assert flying.stats.bytes > 1_000_000
    assert flying.stats.deleted > 5
    assert not older.exists()
    assert foreign.exists()
    assert sum(kept.size for kept in retention.recordings(tmp_path)) <= 400_000 + 120_000  # and the file just begun
    frames = [frame.index for frame in RecordingSource(tmp_path).frames()]
    assert len(frames) > 10
    assert frames == [3 * i for i in range(90)][-len(frames) :]


def test_names_keep_the_order_where_the_clock_is_wrong(tmp_path):
    keep(tmp_path, "29990101T000000Z_kite_boot9.mcap")
    files = fly(tmp_path, 1, boot=4)
    assert files[-1].name == "29990101T000001Z_kite_boot4.mcap"
    assert fly(tmp_path, 1, boot=4)[-1].name == "29990101T000001Z_kite_boot4_1.mcap"
