"""What flew, flies again from its recording: the same detections, the same models, at the same frames."""

import json
import shutil

import cv2
import msgspec
import numpy as np
import pytest
from mcap.reader import make_reader

from link import codec
from models import artifact
from onboard.flown import ARTIFACT, FlownFrame
from onboard.frame import Pose
from onboard.sim import SimSource
from onboard.sources.recording import RecordingSource
from tests.small_model import small_model
from tests.system.onboard_process import Replay, call

SIM = "sim://?seed=3&frames=24&width=320&height=240&rows=3&cols=4"
PHOTOS = 12


def recorded(folder):
    """Everything of interest in the recordings of a folder, by topic, in order; read by the MCAP library."""
    out = {}
    for path in sorted(folder.glob("*.mcap")):
        with path.open("rb") as stream:
            for _, channel, message in make_reader(stream).iter_messages(log_time_order=False):
                if channel.topic == "/hadanet/frame":
                    value = msgspec.msgpack.decode(message.data, type=FlownFrame)
                elif channel.topic.startswith("/hadanet/"):
                    value = codec.decode(message.data)
                else:
                    value = message.data
                out.setdefault(channel.topic, []).append(value)
    return out


def same_flight(first, second):
    """Compare two recordings: per frame name, time, pose, model in force, per tile class and confidence; the deltas."""
    assert first["/hadanet/detections"] == second["/hadanet/detections"]

    def told(frame):
        return msgspec.structs.replace(frame, position=0, picture="original")  # a state folder has positions of its own

    assert [told(f) for f in first["/hadanet/frame"]] == [told(f) for f in second["/hadanet/frame"]]
    assert first.get("/hadanet/delta", []) == second.get("/hadanet/delta", [])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of a simulated flight as JPEG and PNG files, and their truth."""
    folder = tmp_path_factory.mktemp("photos")
    sim = SimSource(SIM)
    lines = ["frame,row,labels"]
    for frame in list(sim.frames())[:PHOTOS]:
        name = f"{frame.index:02d}.{'png' if frame.index % 4 == 3 else 'jpg'}"
        cv2.imwrite(str(folder / name), frame.image)
        for row in range(3):
            numbers = [sim.truth.label((frame.index, ""), row, col) for col in range(4)]
            lines.append(f"{name},{row},{''.join('?' if n is None else 'abcdefgh'[n] for n in numbers)}")
    (folder / "truth.csv").write_text("\n".join(lines) + "\n")
    letters = ",".join(f"{letter}={name}" for letter, name in zip("abcdefgh", sim.classes, strict=False))
    return folder, ("--truth", folder / "truth.csv", "--classes", ",".join(sim.classes), "--letters", letters)


@pytest.fixture(scope="module")
def flights(tmp_path_factory, photos):
    """A simulated flight, one of photos, and one in JPEG, each recorded and then replayed from its recording."""
    folder = tmp_path_factory.mktemp("flights")
    extra = {
        "sim": (SIM, "--label-rate", "0.1"),
        "photos": (photos[0], "--label-rate", "0.2", "--label-delay", "1", "--seed", "5", *photos[1]),
        "jpeg": (SIM, "--label-rate", "0.1", "--record-images", "jpeg"),
    }
    for replay in [Replay(folder / n, s, "--record", folder / n / "rec", *more) for n, (s, *more) in extra.items()]:
        replay.end()
    again = {name: folder / f"{name}-again" for name in extra}
    for replay in [Replay(path, folder / n / "rec", "--record", path / "rec") for n, path in again.items()]:
        replay.end()
    return folder


def report(folder, name):
    return json.loads((folder / name / "report.json").read_text())


@pytest.mark.parametrize("name", ["sim", "photos"])
def test_a_recording_replays_with_what_flew(flights, name):
    first, again = report(flights, name), report(flights, f"{name}-again")
    assert first["updates"] > 2
    told = again["as_flown"]
    assert told["tiles_differ"] == told["missing"] == told["taken"] == 0
    assert (told["frames"], told["recompressed"]) == (first["frames"], False)
    assert told["learned"] == first["updates"] == again["updates"]
    assert told["model_hash"] == again["model_hash"] == first["model_hash"] != first["base_hash"]
    for key in ("frames", "classes", "labels_used", "questions", "delta_bytes", "mirror_hash", "seed"):
        assert again[key] == first[key], key
    same_flight(recorded(flights / name / "rec"), recorded(flights / f"{name}-again" / "rec"))


def test_photos_are_recorded_byte_by_byte(flights, photos):
    source = RecordingSource(flights / "photos" / "rec")
    frames = list(source.frames())
    assert [frame.name for frame in frames] == sorted(p.name for p in photos[0].iterdir() if p.suffix != ".csv")
    for frame in frames:
        data = (photos[0] / frame.name).read_bytes()
        assert frame.encoded == data
        assert np.array_equal(frame.image, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    assert [f.picture for f in recorded(flights / "photos" / "rec")["/hadanet/frame"]] == ["original"] * PHOTOS


def test_a_simulated_flight_is_recorded_pixel_by_pixel(flights):
    source = RecordingSource(flights / "sim" / "rec")
    for frame, right in zip(source.frames(), SimSource(SIM).frames(), strict=True):
        assert (frame.index, frame.name, frame.t_ns, frame.pose) == (right.index, right.name, right.t_ns, right.pose)
        assert frame.pose != Pose()
        assert np.array_equal(frame.image, right.image)


def test_pixels_that_jpeg_changed_are_told_and_the_models_fly_all_the_same(flights):
    first, again = report(flights, "jpeg"), report(flights, "jpeg-again")
    told = again["as_flown"]
    assert told["recompressed"]
    assert told["missing"] == 0
    assert told["learned"] + told["taken"] == first["updates"]
    assert told["model_hash"] == again["model_hash"] == first["model_hash"]
    models = [[f.model for f in recorded(flights / n / "rec")["/hadanet/frame"]] for n in ("jpeg", "jpeg-again")]
    assert models[0] == models[1]


def test_options_go_before_what_is_recorded(flights, tmp_path):
    recording = flights / "sim" / "rec"
    frozen = Replay(tmp_path / "frozen", recording, "--no-learning").end()
    assert (frozen["as_flown"], frozen["updates"], frozen["labels_used"]) == (None, 0, 0)
    assert frozen["model_hash"] == frozen["base_hash"] == report(flights, "sim")["base_hash"]
    assert frozen["tiles"] == report(flights, "sim")["tiles"]  # the recorded grid, all the same
    seeded = Replay(tmp_path / "seeded", recording, "--seed", "1", "--to", "2").end()
    assert (seeded["as_flown"], seeded["seed"]) == (None, 1)
    assert "flown as a new flight, without its recorded labels" in (tmp_path / "seeded" / "err.txt").read_text()


def test_a_part_of_a_recording(flights, tmp_path):
    """From the middle the models are those that flew, and the frames before it are passed over with their labels."""
    part = Replay(tmp_path / "part", flights / "sim" / "rec", "--from", "3", "--record", tmp_path / "rec").end()
    assert part["as_flown"]["missing"] == 0
    whole = {f.index: f.model for f in recorded(flights / "sim" / "rec")["/hadanet/frame"]}
    flown = recorded(tmp_path / "rec")["/hadanet/frame"]
    assert 8 < len(flown) < 24
    assert [f.model for f in flown] == [whole[f.index] for f in flown]
    assert part["model_hash"] == report(flights, "sim")["model_hash"]


def test_a_model_that_is_not_shipped_is_in_the_recording(tmp_path):
    path = tmp_path / "own.safetensors"
    artifact.save(small_model(("a", "b")), path)
    config = tmp_path / "onboard.toml"
    config.write_text(f'[model]\nartifact = "{path}"\nclasses = ["a", "b"]\n[camera]\nrows = 3\ncols = 4\n')
    (tmp_path / "photos").mkdir()
    for frame in list(SimSource(SIM).frames())[:4]:
        cv2.imwrite(str(tmp_path / "photos" / f"{frame.index}.jpg"), frame.image)
    options = ("--config", config, "--record", tmp_path / "rec")
    first = Replay(tmp_path / "first", tmp_path / "photos", *options).end()
    path.unlink()  # gone, as it is on another machine
    again = Replay(tmp_path / "again", tmp_path / "rec").end()
    assert again["base_hash"] == first["base_hash"] == initial_hash(tmp_path / "rec")
    assert again["as_flown"]["tiles_differ"] == 0
    assert again["as_flown"]["frames"] == 4
    (file,) = (tmp_path / "rec").glob("*.mcap")
    with file.open("rb") as stream:
        (attached,) = make_reader(stream).iter_attachments()
    assert attached.name == ARTIFACT


def initial_hash(recording):
    return RecordingSource(recording).about["base_hash"]


def test_several_flights_in_a_folder_are_told_apart(flights, tmp_path):
    for name in ("sim", "photos"):
        (file,) = (flights / name / "rec").glob("*.mcap")
        shutil.copy(file, tmp_path / f"{name}.mcap")
    status, _, err = call("replay", tmp_path)
    assert status == 1
    assert "recordings of 2 flights are in this folder; give a file" in err
    assert err.count("\n") == 1
