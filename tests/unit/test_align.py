"""Clocks of logs and pictures against a truth that the test knows; poses on frames of real flights."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.errors import SourceError
from onboard.sources import open_source
from onboard.telemetry.align import align
from onboard.telemetry.table import Captures, Telemetry, series
from tests import flightlogs

FLIGHTS = Path(os.environ.get("HADANET_DATA", "../shared/data")) / "flights"
needs_flights = pytest.mark.skipif(not FLIGHTS.is_dir(), reason=f"no recorded flights at {FLIGHTS}")
S = 10**9


def log(triggers=(), utc_ns=None, residual_ms=None):
    columns = {"lat_deg": series("X.lat", [0, 10 * S], [1.0, 2.0]), "lon_deg": series("X.lon", [0, 10 * S], [1.0, 2.0])}
    captures = Captures(source="CAM", t_ns=np.sort(np.array(triggers, np.int64))) if len(triggers) else None
    return Telemetry(uri="x", kind="x", series=columns, utc_ns=utc_ns, captures=captures, residual_ms=residual_ms)


def irregular(count, seed):
    """Times of pictures, a second or two apart, as a camera with an interval timer and a pilot takes them."""
    return np.cumsum(np.random.default_rng(seed).uniform(0.8, 2.2, count) * S).astype(np.int64)


@pytest.mark.parametrize("seed", range(5))
def test_triggers_find_the_offset_through_lost_pictures_jitter_and_extra_triggers(seed):
    rng = np.random.default_rng(seed)
    times = irregular(60, seed)
    truth = 1234 * S + 567_000_000
    triggers = times - truth + rng.normal(0, 3e6, len(times)).astype(np.int64)
    kept = rng.random(len(times)) > 0.2
    extra = rng.uniform(triggers[0], triggers[-1], 6).astype(np.int64)
    found = align(times[kept], log([*triggers[rng.random(len(times)) > 0.1], *extra]), utc_ns=None)
    assert found.method == "triggers (CAM)"
    assert abs(found.offset_ns - truth) < 5e6
    assert found.residual_ms < 10
    assert found.matched >= 0.8 * kept.sum()


def test_regular_triggers_are_told_apart_by_the_clocks():
    """Each shift by one interval fits as well; UTC on both sides says which."""
    times = np.arange(30, dtype=np.int64) * 2 * S + 1000 * S
    found = align(times, log(times[3:-3] - 400 * S, utc_ns=401 * S), utc_ns=0)
    assert found.method == "triggers (CAM)"
    assert found.offset_ns == 400 * S


def test_triggers_of_another_flight_are_not_believed():
    found = align(irregular(40, 1), log(irregular(40, 2), utc_ns=7 * S), utc_ns=0)
    assert found.method == "UTC on both sides"
    assert found.offset_ns == 7 * S


def test_the_evidence_in_its_order():
    times = np.array([1, 2, 3]) * S
    assert align(times, log(), utc_ns=0, offset_s=2.5).offset_ns == 2.5 * S
    given = align(times, log(times - 2 * S), utc_ns=0, offset_s=2.01)
    assert (given.method, given.matched, given.residual_ms) == ("the given offset", 3, pytest.approx(10))
    inside = align(times, log(residual_ms=20.0), utc_ns=0, inside=True)
    assert (inside.method, inside.offset_ns, inside.residual_ms) == ("one clock", 0, 20.0)
    seconds = align(times, log(utc_ns=5 * S, residual_ms=20.0), utc_ns=0)
    assert (seconds.method, seconds.offset_ns, seconds.residual_ms) == ("UTC on both sides", 5 * S, 500.0)
    hundredths = align(times + 10_000_000, log(utc_ns=5 * S, residual_ms=20.0), utc_ns=0)
    assert hundredths.residual_ms == 20.0
    film = align(np.zeros(0, np.int64), log(utc_ns=105 * S), utc_ns=100 * S)
    assert (film.method, film.offset_ns, film.residual_ms) == ("UTC on both sides", 5 * S, 500.0)
    nothing = align(times, log(utc_ns=5 * S), utc_ns=None)
    assert (nothing.offset_ns, nothing.residual_ms) == (S, None)
    assert nothing.method.startswith("none")


def write_photos(folder, count, first_s=1_700_000_010):
    """Photos without EXIF whose names are their time in UTC and hundredths of a second, a second apart."""
    from datetime import UTC, datetime

    folder.mkdir(exist_ok=True)
    for i in range(count):
        stamp = datetime.fromtimestamp(first_s + i, UTC).strftime("%Y%m%d%H%M%S") + "25"
        cv2.imwrite(str(folder / f"{stamp}Z.png"), np.full((48, 64, 3), i, np.uint8))


def test_photos_get_their_poses_from_the_log_in_their_folder(tmp_path):
    pytest.importorskip("pymavlink")
    write_photos(tmp_path / "a", 5)
    (tmp_path / "a" / "flight.tlog").write_bytes(flightlogs.tlog())
    source = open_source(str(tmp_path / "a"))
    frames = list(source.frames())
    t, lat, lon, alt = flightlogs.track(400)
    assert source.alignment.method == "UTC on both sides"
    for i, frame in enumerate(frames):
        seconds = 5.25 + i - 0.009  # the vehicle booted 5 s before the log, which is 9 ms late by the median
        assert frame.pose.lat_deg == pytest.approx(np.interp(seconds, t, lat), abs=2e-6)
        assert frame.pose.lon_deg == pytest.approx(np.interp(seconds, t, lon), abs=2e-6)
        assert frame.pose.alt_m == pytest.approx(np.interp(seconds, t, alt), abs=0.02)
        # the gimbal's own attitude, not the vehicle's
        assert (frame.pose.yaw_deg + 180) % 360 - 180 == pytest.approx(0, abs=0.1)
        assert frame.pose.pitch_deg == pytest.approx(-60, abs=0.1)


def test_a_named_log_and_an_offset(tmp_path):
    write_photos(tmp_path / "a", 3)
    (tmp_path / "other.ulg").write_bytes(flightlogs.ulog())
    source = open_source(f"{tmp_path / 'a'}?log={tmp_path / 'other.ulg'}&offset=1699999990")
    assert source.alignment.method == "the given offset"
    frame = next(source.frames())
    t, lat, _, _ = flightlogs.track(400)
    assert frame.pose.lat_deg == pytest.approx(np.interp(19.25, t, lat), abs=2e-6)


@pytest.mark.parametrize(
    ("offset", "problems"),
    [
        ("1699999990", []),
        ("1699999900", ["o.ulg: this log ends 29 s before the first picture"]),
        ("1700000100", ["o.ulg: this log begins 88 s after the last picture"]),
    ],
)
def test_a_log_of_another_time_is_told(tmp_path, offset, problems):
    """A wrong offset or another flight's log would else give a flight without positions, and nobody knew why.

    Three pictures from 1,700,000,000.25 s on; the log's track is 80 s long and begins at -9 s of its own clock.
    """
    write_photos(tmp_path / "a", 3)
    (tmp_path / "o.ulg").write_bytes(flightlogs.ulog())
    source = open_source(f"{tmp_path / 'a'}?log={tmp_path / 'o.ulg'}&offset={offset}")
    told = [line for line in source.problems if "this log" in line]
    assert [line.partition(" and says")[0] for line in told] == problems
    assert any(frame.pose.lat_deg is not None for frame in source.frames()) == (not problems)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?log=nothing.ulg", "nothing.ulg: cannot be read"),
        ("?offset=3", "an offset belongs to a log"),
        ("?offset=soon", "offset=soon must be a number of seconds"),
        ("?offset=nan", "must be a number of seconds"),
        ("?fov=3", "behind the . there can stand"),
        ("?log=a&log=b", "behind the . there can stand"),
    ],
)
def test_parameters_that_make_no_sense(tmp_path, query, message):
    write_photos(tmp_path / "a", 1)
    with pytest.raises(SourceError, match=message):
        open_source(f"{tmp_path / 'a'}{query}")


@needs_flights
def test_the_gopros_frames_know_where_they_are():
    source = open_source(str(FLIGHTS / "karma" / "karma.mp4"))
    frames = [frame for i, frame in enumerate(source.frames()) if i % 60 == 0]
    assert source.alignment.residual_ms < 33
    assert all(33.125 < frame.pose.lat_deg < 33.127 and frame.pose.yaw_deg > 300 for frame in frames)
    assert frames[0].pose.lat_deg < frames[-1].pose.lat_deg


@needs_flights
def test_the_fixed_wings_photos_know_where_they_are():
    source = open_source(str(FLIGHTS / "cuav"))
    frames = list(source.frames())
    assert source.alignment.method == "UTC on both sides"
    assert source.alignment.residual_ms < 200
    assert len(frames) == 18
    assert all(frame.pose.lat_deg and frame.pose.agl_m and frame.pose.yaw_deg is not None for frame in frames)
