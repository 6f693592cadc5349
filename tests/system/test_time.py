"""Flights of a computer without a clock of its own: it starts in 1970 and is set while it flies, back and forth.

The recording never jumps, and says what its times are in UTC once that is known.
"""

import itertools
import json
import time

import msgspec
import numpy as np
import pytest
from mcap.reader import make_reader

from onboard.clock import EARLIEST_S, STEP_NS, Utc
from onboard.flown import FRAME_TOPIC, UTC_TOPIC, FlownFrame, FlownUtc
from tests.system.ground_process import Ground
from tests.system.onboard_process import call
from tests.system.shifted_clock import ShiftedClock
from tests.system.test_boot import Drone

SOURCE = "sim://?seed=3&frames=4000&fps=8&live=1"


@pytest.fixture
def clock(tmp_path):
    """At a start 100 s into 1970."""
    return ShiftedClock(tmp_path, 100 - time.time())


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder))


def recorded(folder):
    """(log time, topic, data) of everything in the recording, in the order of the file."""
    (path,) = folder.glob("*.mcap")
    with path.open("rb") as file:
        return path, [
            (message.log_time, channel.topic, message.data)
            for _, channel, message in make_reader(file).iter_messages(log_time_order=False)
        ]


def test_a_clock_that_is_set_in_flight(tmp_path, clock):
    drone = Drone(tmp_path / "drone", SOURCE, record={"folder": str(tmp_path / "flights"), "min_free_mb": 0})
    drone.start(**clock.environment)
    try:
        status = drone.says(
            "clock", "the clock says 1970-01-01, and neither NTP nor the ground station told the time yet"
        )
        assert status["utc"] == "unknown"
        before = drone.flies_on(status)
        clock.set(0)  # NTP is there
        known = drone.until(lambda s: s["utc"].endswith(" by ntp") and s["problems"] == {})
        assert known["utc"][:13] in (time.strftime("%Y-%m-%d %H", time.gmtime(time.time() - s)) for s in (0, 60))
        assert known["pid"] == before["pid"]
        drone.flies_on(known)
        clock.set(-3600)  # somebody sets it an hour back, and right again
        drone.until(lambda s: s["utc"][:16] <= time.strftime("%Y-%m-%d %H:%M", time.gmtime(time.time() - 3500)))
        clock.set(0)
        again = drone.until(lambda s: s["utc"][:16] >= time.strftime("%Y-%m-%d %H:%M", time.gmtime(time.time() - 100)))
        drone.flies_on(again)
        code, shown, _ = call("status", "--config", drone.config, "--json")  # ages do not jump either
        assert (code, 0 <= json.loads(shown)["age_s"] < 60) == (0, True)
        flown_s = again["frame"] / 8 + 120
        assert drone.stop() == 0
    finally:
        drone.kill()
    path, messages = recorded(tmp_path / "flights")
    frames = [
        (at, msgspec.msgpack.decode(data, type=FlownFrame)) for at, topic, data in messages if topic == FRAME_TOPIC
    ]
    told = [msgspec.msgpack.decode(data, type=FlownUtc) for _, topic, data in messages if topic == UTC_TOPIC]
    times = np.array([frame.t_ns for _, frame in frames])
    assert [at for at, _ in frames] == list(times)
    assert len(times) > 40
    assert 100e9 <= times[0] < times[-1] < (100 + flown_s) * 1e9  # all of it in 1970
    assert (np.diff(times) > 0).all()
    assert np.diff(times).max() < 20e9  # a step is 56 years, or an hour
    assert [known.source for known in told] == ["ntp", "ntp", "ntp"]
    true_ns = [known.utc_ns for known in (told[0], told[2])]
    assert all(abs(ns - time.time_ns()) < 600e9 for ns in true_ns)
    assert abs((told[0].utc_ns - told[0].t_ns) - (told[2].utc_ns - told[2].t_ns)) < 2e9
    code, shown, _ = call("inspect", path, "--json")
    assert code == 0
    begins = json.loads(shown)["frames"]["begins"]
    assert begins[:10] == time.strftime("%Y-%m-%d", time.gmtime(true_ns[0] / 1e9 - 60))
    assert json.loads(shown)["frames"]["gap_count"] == 0


def test_the_station_tells_the_time(tmp_path, clock):
    """No NTP: Welcome brings the station's clock."""
    ground = Ground(tmp_path)
    ground.start()
    try:
        ground.enroll()
        drone = Drone(
            tmp_path / "drone",
            SOURCE,
            link={"keys": str(tmp_path / "kestrel.toml")},
            record={"folder": str(tmp_path / "flights"), "min_free_mb": 0},
        )
        drone.start(**clock.environment)
        try:
            status = drone.until(lambda s: s["utc"].endswith(" by ground"))
            assert status["utc"][:10] in (time.strftime("%Y-%m-%d", time.gmtime(time.time() - s)) for s in (0, 60))
            assert "clock" not in status["problems"]
            drone.flies_on(status)
            assert drone.stop() == 0
        finally:
            drone.kill()
    finally:
        ground.stop()
    _, messages = recorded(tmp_path / "flights")
    (told,) = [msgspec.msgpack.decode(data, type=FlownUtc) for _, topic, data in messages if topic == UTC_TOPIC]
    assert told.source == "ground"
    assert abs(told.utc_ns - time.time_ns()) < 120e9
    assert told.t_ns < 1000e9
    times = [at for at, topic, _ in messages if topic == FRAME_TOPIC]
    assert all(a < b for a, b in itertools.pairwise(times))


def test_what_is_known_only_gets_better(tmp_path, monkeypatch):
    """Without processes: who goes before whom. The real clock of this computer is the system's."""
    mark = tmp_path / "synchronized"
    utc = Utc(mark)
    utc.look()
    assert utc.known.source == "system"
    utc.hear(time.time_ns() + 10**10)
    assert utc.look()
    assert (utc.known.source, round(utc.known.offset_ns, -9)) == ("ground", 10**10)
    assert not utc.look()
    mark.touch()
    assert utc.look()
    assert utc.known.source == "ntp"
    assert abs(utc.known.offset_ns) < STEP_NS
    utc.hear(time.time_ns() + 10**10)
    assert not utc.look()
    assert utc.known.source == "ntp"
    utc.hear(EARLIEST_S * 10**9 - 1)  # a station without a clock tells nothing
    assert not utc.look()
    assert utc.problem() == ""
