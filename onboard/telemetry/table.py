"""One table for everything that a flight's log says besides pictures: where, how high, how tilted, how fast, how full.

Each quantity is a `Series` of its own with its own times, because a log writes each at its own rate. Times are
nanoseconds on the log's own clock; `utc_ns` leads from there to UTC where the log knows it.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from onboard.frame import Pose

QUANTITIES: Mapping[str, str] = {
    "lat_deg": "latitude, WGS 84",
    "lon_deg": "longitude, WGS 84",
    "alt_m": "altitude above mean sea level",
    "agl_m": "altitude above take-off",
    "roll_deg": "airframe, right wing down is positive",
    "pitch_deg": "airframe, nose up is positive",
    "yaw_deg": "airframe, clockwise from north, 0..360",
    "camera_roll_deg": "camera, as in Pose",
    "camera_pitch_deg": "camera: 0 at the horizon, -90 straight down",
    "camera_yaw_deg": "camera, clockwise from north, 0..360",
    "speed_ms": "over ground",
    "battery_v": "voltage",
    "battery_share": "what is left, 0..1",
    "mode": "flight mode, as text",
}
"""The columns, and what they mean."""

ANGLES = frozenset(name for name in QUANTITIES if name.endswith(("roll_deg", "pitch_deg", "yaw_deg")))
"""Columns that are interpolated the short way around."""

REACH_NS = 2_000_000_000
"""A quantity is unknown further than this from its nearest entry."""


class Series(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One quantity over time.

    source: the message or field that it was read from, for example "GLOBAL_POSITION_INT.lat"; t_ns: int64 (N,), never
    falling; values: float64 (N,), all finite, or for `mode` text (N,).
    """

    source: str
    t_ns: NDArray[np.int64]
    values: NDArray[Any]

    def at(self, t_ns: int, angle: bool = False) -> float | None:
        """The value at a time, between two entries by a straight line; None where no entry is near (`REACH_NS`)."""
        after = int(np.searchsorted(self.t_ns, t_ns))
        near = [i for i in (after - 1, after) if 0 <= i < len(self.t_ns) and abs(int(self.t_ns[i]) - t_ns) <= REACH_NS]
        if len(near) < 2:
            return float(self.values[near[0]]) if near else None
        (t0, t1), (v0, v1) = (int(self.t_ns[i]) for i in near), (float(self.values[i]) for i in near)
        part = (t_ns - t0) / (t1 - t0) if t1 > t0 else 0.0
        step = (v1 - v0 + 180.0) % 360.0 - 180.0 if angle else v1 - v0
        return v0 + part * step


class Captures(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """When the camera was triggered, as the log tells it: t_ns int64 (N,) on its clock, and from which message."""

    source: str
    t_ns: NDArray[np.int64]


class Telemetry(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What one log says.

    uri: the file; kind: its format, for example "tlog"; series: quantity (a name of `QUANTITIES`) -> Series;
    alternatives: positions that the log has besides the one in `series`, for example the raw GPS beside the estimate,
    by source: then quantity -> Series; utc_ns: what to add to t_ns for UTC, None where the log does not know it;
    captures: the camera's triggers; residual_ms: where the log lies inside a video, how far its own stamps are from
    the video's clock; problems: damage, truncation and what was left out, a line each.
    """

    uri: str
    kind: str
    series: Mapping[str, Series]
    alternatives: Mapping[str, Mapping[str, Series]] = {}
    utc_ns: int | None = None
    captures: Captures | None = None
    residual_ms: float | None = None
    problems: tuple[str, ...] = ()

    def value(self, quantity: str, t_ns: int) -> float | None:
        """One quantity at a time on the log's clock; None where it is unknown."""
        series = self.series.get(quantity)
        return None if series is None else series.at(t_ns, quantity in ANGLES)

    def pose(self, t_ns: int) -> Pose:
        """Where the camera was at a time on the log's clock.

        Yaw, pitch and roll are the camera's where the log has them. Otherwise the camera is taken as fixed to the
        airframe and looking straight down: yaw is the airframe's, pitch -90 plus the airframe's, roll the airframe's.
        """
        yaw, pitch, roll = (self.value(f"camera_{name}_deg", t_ns) for name in ("yaw", "pitch", "roll"))
        if yaw is None:
            yaw = self.value("yaw_deg", t_ns)
        if pitch is None and (body := self.value("pitch_deg", t_ns)) is not None:
            pitch = body - 90.0
        if roll is None:
            roll = self.value("roll_deg", t_ns)
        return Pose(
            lat_deg=self.value("lat_deg", t_ns),
            lon_deg=self.value("lon_deg", t_ns),
            alt_m=self.value("alt_m", t_ns),
            agl_m=self.value("agl_m", t_ns),
            yaw_deg=None if yaw is None else yaw % 360.0,
            pitch_deg=pitch,
            roll_deg=roll,
        )


def series(source: str, t_ns: NDArray[Any] | list[int], values: NDArray[Any] | list[Any]) -> Series | None:
    """A `Series` of what can be used of two equally long columns: in the order of time, without entries that are not
    finite; None where nothing is left."""
    t = np.asarray(t_ns, np.int64)
    v = np.asarray(values) if len(values) and isinstance(values[0], str) else np.asarray(values, np.float64)
    if v.dtype.kind == "f":
        good = np.isfinite(v)
        t, v = t[good], v[good]
    if not len(t):
        return None
    order = np.argsort(t, kind="stable")
    return Series(source=source, t_ns=t[order], values=v[order])
