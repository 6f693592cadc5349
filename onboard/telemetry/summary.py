"""What a flight's log amounts to: points, duration, distance, altitudes, gaps and jumps.

Distances are sums of great-circle steps between successive fixes. A gap is a step in time of more than GAP_FACTOR
times the median one; a jump is a step in space that would need more than JUMP_MS.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
from numpy.typing import NDArray

from onboard.telemetry.table import Series, Telemetry

EARTH_RADIUS_M = 6_371_008.8
"""Mean radius of the IUGG."""
GAP_FACTOR = 5.0
JUMP_MS = 100.0
TOLD = 20
"""Gaps and jumps that are told one by one, at most; all are counted."""

Floats = NDArray[np.float64]
Times = NDArray[np.int64]


class Gap(msgspec.Struct, frozen=True):
    """Nothing for `length_s` from `at_s` on, in seconds from the first entry."""

    at_s: float
    length_s: float


class Jump(msgspec.Struct, frozen=True):
    """A step of `distance_m` to the fix at `at_s`, in seconds from the first one, that would need `speed_ms`."""

    at_s: float
    distance_m: float
    speed_ms: float


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """One position over a flight.

    source: the message that it was read from; altitude: which one low_m, high_m and span_m are of, `alt_m` where there
    is one, else `agl_m`, else None. gaps and jumps hold the first TOLD of gap_count and jump_count.
    """

    source: str
    points: int
    duration_s: float
    distance_m: float
    altitude: str | None
    low_m: float | None
    high_m: float | None
    span_m: float | None
    gap_count: int
    gaps: list[Gap]
    jump_count: int
    jumps: list[Jump]


class Quantity(msgspec.Struct, frozen=True, kw_only=True):
    """One column of the telemetry: entries, their rate, from when to when on the log's clock, the message it is of."""

    source: str
    points: int
    rate_hz: float | None
    first_s: float
    last_s: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What `summarise` makes of a Telemetry; `begins`: the first entry's time in UTC (ISO 8601), where known."""

    uri: str
    kind: str
    begins: str | None
    quantities: dict[str, Quantity]
    position: Track | None
    alternatives: dict[str, Track]
    captures: Quantity | None
    problems: list[str]


def steps_m(lat_deg: Floats, lon_deg: Floats) -> Floats:
    """Great-circle distances between successive points (N,), by the haversine formula; (N - 1,).

    >>> steps_m(np.array([0.0, 0.0]), np.array([179.5, -179.5])).round()
    array([111195.])
    """
    lat, lon = np.radians(lat_deg), np.radians(lon_deg)
    half = np.sin(np.diff(lat) / 2) ** 2 + np.cos(lat[:-1]) * np.cos(lat[1:]) * np.sin(np.diff(lon) / 2) ** 2
    out: Floats = 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(half, 0, 1)))
    return out


def gaps(t_ns: Times) -> list[Gap]:
    """All gaps in times (N,) that never fall."""
    step = np.diff(t_ns)
    usual = _usual_ns(step)
    return [
        Gap(round(int(t_ns[i] - t_ns[0]) * 1e-9, 3), round(int(step[i]) * 1e-9, 3))
        for i in np.flatnonzero(step > GAP_FACTOR * usual)
    ]


def jumps(t_ns: Times, distance_m: Floats) -> list[Jump]:
    """All jumps among the steps (N - 1,) between fixes at times (N,).

    A log may give several fixes the same time: no step counts as shorter than the median one.
    """
    step = np.diff(t_ns)
    speed = distance_m / (np.maximum(step, _usual_ns(step)) * 1e-9)
    return [
        Jump(round(int(t_ns[i + 1] - t_ns[0]) * 1e-9, 3), round(float(distance_m[i]), 1), round(float(speed[i]), 1))
        for i in np.flatnonzero(speed > JUMP_MS)
    ]


def track(columns: Mapping[str, Series]) -> Track | None:
    """What the position in these columns (quantity -> Series) amounts to; None where there is none."""
    if "lat_deg" not in columns or "lon_deg" not in columns:
        return None
    t_ns, lat, lon = _together(columns["lat_deg"], columns["lon_deg"])
    if not len(t_ns):
        return None
    altitude = next((name for name in ("alt_m", "agl_m") if name in columns), None)
    low, high = (
        (float(columns[altitude].values.min()), float(columns[altitude].values.max())) if altitude else (None, None)
    )
    distance = steps_m(lat, lon)
    holes, leaps = gaps(t_ns), jumps(t_ns, distance)
    return Track(
        source=columns["lat_deg"].source,
        points=len(t_ns),
        duration_s=round(int(t_ns[-1] - t_ns[0]) * 1e-9, 3),
        distance_m=round(float(distance.sum()), 2),
        altitude=altitude,
        low_m=None if low is None else round(low, 2),
        high_m=None if high is None else round(high, 2),
        span_m=None if low is None or high is None else round(high - low, 2),
        gap_count=len(holes),
        gaps=holes[:TOLD],
        jump_count=len(leaps),
        jumps=leaps[:TOLD],
    )


def summarise(telemetry: Telemetry) -> Summary:
    """What a log amounts to."""
    tracks = {name: track(columns) for name, columns in telemetry.alternatives.items()}
    firsts = [int(column.t_ns[0]) for column in telemetry.series.values()]
    begins = None
    if telemetry.utc_ns is not None and firsts:
        begins = iso_time(min(firsts) + telemetry.utc_ns)
    captures = telemetry.captures
    return Summary(
        uri=telemetry.uri,
        kind=telemetry.kind,
        begins=begins,
        quantities={name: _quantity(column.source, column.t_ns) for name, column in telemetry.series.items()},
        position=track(telemetry.series),
        alternatives={name: found for name, found in tracks.items() if found},
        captures=_quantity(captures.source, captures.t_ns) if captures and len(captures.t_ns) else None,
        problems=list(telemetry.problems),
    )


def iso_time(utc_ns: int) -> str | None:
    """A UTC time in ISO 8601 to the millisecond; None beyond the years that a date can have.

    >>> iso_time(1_500_000_000_123_000_000)
    '2017-07-14T02:40:00.123Z'
    """
    try:
        date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=utc_ns // 10**6)
    except OverflowError:
        return None
    return date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _quantity(source: str, t_ns: Times) -> Quantity:
    span_s = int(t_ns[-1] - t_ns[0]) * 1e-9
    return Quantity(
        source=source,
        points=len(t_ns),
        rate_hz=round((len(t_ns) - 1) / span_s, 3) if span_s > 0 else None,
        first_s=round(int(t_ns[0]) * 1e-9, 3),
        last_s=round(int(t_ns[-1]) * 1e-9, 3),
    )


def _together(lat: Series, lon: Series) -> tuple[Times, Floats, Floats]:
    """Times, latitudes and longitudes of the fixes that have both."""
    if len(lat.t_ns) == len(lon.t_ns) and (lat.t_ns == lon.t_ns).all():
        return lat.t_ns, lat.values, lon.values
    t_ns, here, there = np.intersect1d(lat.t_ns, lon.t_ns, return_indices=True)
    return t_ns, lat.values[here], lon.values[there]


def _usual_ns(step: Times) -> float:
    """The median step of those that are one; 1 ns where there is none."""
    steps = step[step > 0]
    return float(np.median(steps)) if len(steps) else 1.0
