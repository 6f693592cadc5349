"""A flight of `onboard run`, whose learner runs behind its frames, replayed from what it recorded."""

import shutil

import msgspec
import pytest
from mcap.reader import make_reader

from onboard.config import Config
from onboard.flown import FlownFrame
from onboard.sim import SimSource
from onboard.sources.recording import RecordingSource
from onboard.worker import initial_model
from tests.system.ground_process import Ground
from tests.system.onboard_process import Daemon, Replay
from tests.system.test_daemon import Operator
from tests.system.test_recording_replay import recorded, same_flight

LIVE = "sim://?seed=3&frames=2000&fps=8&live=1&width=320&height=240&rows=3&cols=4"


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A flight of `onboard run` with a station, whose operator answers as the questions come; recorded in segments."""
    folder = tmp_path_factory.mktemp("live")
    ground = Ground(folder)
    ground.start()
    daemon = None
    try:
        ground.enroll()
        operator = Operator(ground, LIVE)
        daemon = Daemon(
            folder / "drone",
            LIVE,
            folder / "kestrel.toml",
            operator.sim.classes,
            {"rows": 3, "cols": 4},
            ask={"share": 0.1},
            record={"folder": str(folder / "recording"), "images": "exact", "max_mb": 3},
        )
        daemon.start()
        daemon.until(lambda s: s["link"] == "connected" and s["frame"] >= 0)
        operator.answer(24, daemon)
        status = daemon.until(lambda s: s["labels"] >= 24 and s["updates"] >= 3 and s["learner"] == "learning")
        assert daemon.stop() == 0
    finally:
        if daemon:
            daemon.kill()
        ground.stop(9)
    return folder, status


def test_a_live_flight_flies_again(live, tmp_path):
    folder, status = live
    files = sorted((folder / "recording").glob("*.mcap"))
    assert len(files) > 1
    first = recorded(folder / "recording")
    again = Replay(tmp_path / "again", folder / "recording", "--record", tmp_path / "rec").end()
    told = again["as_flown"]
    assert (told["tiles_differ"], told["missing"], told["taken"]) == (0, 0, 0)
    assert told["frames"] == again["frames"] == len(first["/hadanet/frame"])
    assert told["labels"] >= 24
    assert told["learned"] >= status["updates"] >= 3
    assert again["model_hash"] == told["model_hash"] == first["/hadanet/delta"][-1].result.hex()
    assert again["frames_skipped"] == []
    same_flight(first, recorded(tmp_path / "rec"))


def test_a_later_file_of_a_flight_stands_alone(live, tmp_path):
    """Retention took the first: the models come from the recording, not from learning."""
    folder, _ = live
    files = sorted((folder / "recording").glob("*.mcap"), key=lambda file: int(RecordingSource(file).about["segment"]))
    shutil.copy(files[-1], tmp_path / "last.mcap")
    source = RecordingSource(tmp_path / "last.mcap")
    assert not source.whole
    assert source.config == msgspec.json.decode(source.about["config"], type=Config)
    again = Replay(tmp_path / "again", tmp_path / "last.mcap", "--record", tmp_path / "rec").end()
    told = again["as_flown"]
    assert (told["missing"], told["learned"]) == (0, 0)
    last = [f.model for f in recorded_file(files[-1])]
    assert [f.model for f in recorded(tmp_path / "rec")["/hadanet/frame"]] == last
    assert last[0].hex() != initial_model("", SimSource(LIVE).classes).hash
    assert "files of this flight are missing" in " ".join(again["frames_skipped"])


def recorded_file(path):
    with path.open("rb") as stream:
        messages = make_reader(stream).iter_messages(topics=["/hadanet/frame"], log_time_order=False)
        return [msgspec.msgpack.decode(m.data, type=FlownFrame) for _, _, m in messages]
