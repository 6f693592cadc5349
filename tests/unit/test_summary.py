"""What a log amounts to, against sums by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest

from onboard.telemetry.summary import TOLD, Gap, Jump, gaps, iso_time, jumps, steps_m, summarise, track
from onboard.telemetry.table import Captures, Series, Telemetry

SECOND = 10**9


def series(t_ns, values, source="GPS.x"):
    return Series(source=source, t_ns=np.asarray(t_ns, np.int64), values=np.asarray(values, np.float64))


def by_vectors(lat, lon):
    """Distances from the angle between unit vectors, in plain Python."""
    points = [
        (math.cos(a) * math.cos(b), math.cos(a) * math.sin(b), math.sin(a))
        for a, b in zip(map(math.radians, lat), map(math.radians, lon), strict=True)
    ]
    total = 0.0
    for p, q in pairwise(points):
        cross = math.dist((0, 0, 0), np.cross(p, q))
        total += 6_371_008.8 * math.atan2(cross, sum(x * y for x, y in zip(p, q, strict=True)))
    return total


def test_distances_are_those_on_a_sphere():
    random = np.random.default_rng(0)
    lat, lon = random.uniform(-89, 89, 200), random.uniform(-180, 180, 200)
    assert steps_m(lat, lon).sum() == pytest.approx(by_vectors(lat, lon), rel=1e-9)
    lat, lon = 47 + np.cumsum(random.normal(0, 1e-6, 500)), 8 + np.cumsum(random.normal(0, 1e-6, 500))
    assert steps_m(lat, lon).sum() == pytest.approx(by_vectors(lat, lon), rel=1e-6)


def test_a_square_of_a_hundred_metres():
    side = 100 / 111_195.08
    lat = np.array([0, side, side, 0, 0]) + 60
    lon = np.array([0, 0, side, side, 0]) * 2  # cos 60° = 1/2
    t = np.arange(5) * 10 * SECOND
    found = track({"lat_deg": series(t, lat), "lon_deg": series(t, lon), "agl_m": series(t[:3], [0, 52.5, 12])})
    assert (found.points, found.duration_s) == (5, 40.0)
    assert found.distance_m == pytest.approx(400, rel=1e-4)
    assert (found.altitude, found.low_m, found.high_m, found.span_m) == ("agl_m", 0.0, 52.5, 52.5)
    assert (found.gaps, found.jumps, found.source) == ([], [], "GPS.x")


def test_the_altitude_above_the_sea_goes_first():
    t = [0, SECOND]
    columns = {name: series(t, values) for name, values in (("lat_deg", [1, 1]), ("lon_deg", [2, 2]))}
    assert track(columns).altitude is None
    columns |= {"agl_m": series(t, [0, 5]), "alt_m": series(t, [400, 430])}
    assert (track(columns).altitude, track(columns).span_m) == ("alt_m", 30.0)
    assert track({"lat_deg": columns["lat_deg"]}) is None


def test_gaps_are_longer_than_five_usual_steps():
    t = np.array([0, 1, 2, 3, 8, 9, 15, 16, 17]) * SECOND  # 5 s is five steps, 6 s is more
    assert gaps(t) == [Gap(9.0, 6.0)]
    assert gaps(t[:1]) == gaps(t[:0]) == []
    assert gaps(np.zeros(4, np.int64)) == []
    repeated = np.repeat(np.arange(10), 7) * SECOND  # seven entries a second, as some SRT files have
    assert gaps(repeated) == []


def test_jumps_need_more_than_a_hundred_metres_a_second():
    t = np.array([0, 1, 2, 4, 4, 5]) * SECOND
    distance = np.array([99.0, 101.0, 199.0, 50.0, 1000.0])
    assert jumps(t, distance) == [Jump(2.0, 101.0, 101.0), Jump(5.0, 1000.0, 1000.0)]
    assert jumps(t[:1], distance[:0]) == []


def test_more_gaps_than_can_be_told_are_counted():
    t = np.cumsum(np.where(np.arange(1000) % 9 == 8, 60, 1)) * SECOND
    found = track({"lat_deg": series(t, np.zeros(1000)), "lon_deg": series(t, np.zeros(1000))})
    assert (found.gap_count, len(found.gaps)) == (111, TOLD)


def test_fixes_without_a_partner_are_left_out():
    lat, lon = series([0, 1, 2, 3], [0, 0, 0, 0]), series([1, 3, 5], [0, 1, 2])
    assert (track({"lat_deg": lat, "lon_deg": lon}).points, track({"lat_deg": lat, "lon_deg": lon}).distance_m) == (
        2,
        111195.08,
    )
    assert track({"lat_deg": lat, "lon_deg": series([7], [0])}) is None


def test_a_summary_names_everything():
    t = np.arange(11) * SECOND // 5 + SECOND
    position = {"lat_deg": series(t, np.zeros(11), "POS.Lat"), "lon_deg": series(t, np.zeros(11), "POS.Lng")}
    raw = {"lat_deg": series(t[::5], np.zeros(3), "GPS.Lat"), "lon_deg": series(t[::5], np.zeros(3), "GPS.Lng")}
    mode = Series(source="MODE", t_ns=t[:1], values=np.array(["AUTO"]))
    telemetry = Telemetry(
        uri="a.bin",
        kind="dataflash",
        series={**position, "mode": mode},
        alternatives={"GPS": raw, "GPS2": {}},
        utc_ns=1_500_000_000 * SECOND,
        captures=Captures(source="CAM", t_ns=t[2:5]),
        problems=("truncated: the last message is cut off",),
    )
    found = summarise(telemetry)
    assert (found.begins, found.problems) == ("2017-07-14T02:40:01.000Z", ["truncated: the last message is cut off"])
    assert {name: (q.points, q.rate_hz, q.source) for name, q in found.quantities.items()} == {
        "lat_deg": (11, 5.0, "POS.Lat"),
        "lon_deg": (11, 5.0, "POS.Lng"),
        "mode": (1, None, "MODE"),
    }
    assert (found.position.points, found.alternatives.keys(), found.alternatives["GPS"].points) == (11, {"GPS"}, 3)
    assert (found.captures.points, found.captures.rate_hz, found.captures.source) == (3, 5.0, "CAM")
    assert summarise(Telemetry(uri="x", kind="y", series={})).position is None
    assert iso_time(2**63 - 1) == "2262-04-11T23:47:16.854Z"
    assert iso_time(2**70) is None
