"""PX4's log (.ulg) through pyulog, which reads the part of the file before any damage."""

import contextlib
import io
import logging
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import SourceError
from onboard.telemetry.table import Captures, Series, Telemetry, series

MAX_BYTES = 2 * 2**30
HEADER_BYTES = 16
KINDS = frozenset(b"BFIMPQARDLCSO")
"""Types of messages that the format knows."""
TOPICS = [
    *("vehicle_global_position", "vehicle_gps_position", "sensor_gps", "vehicle_local_position", "vehicle_attitude"),
    *("vehicle_status", "battery_status", "camera_capture", "camera_trigger", "gimbal_device_attitude_status"),
]
NEEDED = {"vehicle_global_position": {"lat", "lon"}}
FIX_3D = 3
EARLIEST_UTC_US = 10**15
"""2001: what is earlier is no time of a GPS."""
NAV_STATES = {
    **dict(enumerate(("MANUAL", "ALTCTL", "POSCTL", "MISSION", "LOITER", "RTL", "POSITION_SLOW"))),
    **{10: "ACRO", 12: "DESCEND", 13: "TERMINATION", 14: "OFFBOARD", 15: "STABILIZED", 17: "TAKEOFF", 18: "LAND"},
    **{19: "FOLLOW_TARGET", 20: "PRECLAND", 21: "ORBIT", 22: "VTOL_TAKEOFF"},
}

Fields = Mapping[str, NDArray[Any]]


def read_ulog(path: Path) -> Telemetry:
    """The telemetry of a .ulg. t_ns counts from the start of the flight controller.

    Raises SourceError where the file cannot be read, is no ULog, or holds nothing of a flight before its damage.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SourceError(f"{path}: larger than {MAX_BYTES >> 30} GiB; cut it with ulog_extract before")
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    ends = _ends(data)
    problems = []
    log, end = _longest(data, ends)
    if log is None:
        raise SourceError(f"{path}: not a ULog file, or damaged from its beginning")
    if end < len(data):
        words = (
            "truncated: the last" if end == ends[-1] and len(data) - end < 2**16 + 3 else "damaged: the rest, the last"
        )
        problems.append(f"{words} {len(data) - end} of {len(data)} bytes cannot be read")
    if log.dropouts:
        lost = sum(dropout.duration for dropout in log.dropouts)
        problems.append(f"dropouts: the logger itself lost {lost} ms in {len(log.dropouts)} places")
    topics: dict[str, Fields] = {}
    for dataset in log.data_list:
        # a format that was damaged lacks fields: what it describes is left out
        whole = NEEDED.get(dataset.name, set()) | {"timestamp"} <= set(dataset.data)
        if whole and (dataset.multi_id == 0 or dataset.name not in topics):
            topics[dataset.name] = dataset.data
    reader = _Reader(topics)
    table, alternatives = reader.table()
    captures = reader.captures()
    if not table and captures is None:
        raise SourceError(f"{path}: no position, attitude or battery is in this log before its end or its damage")
    return Telemetry(
        uri=str(path),
        kind="ULog",
        series=table,
        alternatives=alternatives,
        utc_ns=reader.utc_ns(),
        captures=captures,
        problems=tuple(problems),
    )


def _ends(data: bytes) -> list[int]:
    """Where each whole message ends, up to the first one that the format does not know."""
    ends = [HEADER_BYTES]
    at = HEADER_BYTES
    while at + 3 <= len(data):
        size, kind = struct.unpack_from("<HB", data, at)
        at += 3 + size
        if kind not in KINDS or at > len(data):
            break
        ends.append(at)
    return ends


def _longest(data: bytes, ends: list[int]) -> tuple[Any, int]:
    """What pyulog makes of the longest beginning that it can read, and where that ends; None where it reads none."""
    good, bad = 0, len(ends)  # it reads up to ends[good - 1], but not up to ends[bad]
    found: tuple[Any, int] = (None, 0)
    probe = len(ends)
    while good < bad:
        log = _parse(data[: ends[probe - 1]])
        if log is not None:
            found, good = (log, ends[probe - 1]), probe
        else:
            bad = probe - 1
        probe = (good + bad + 1) // 2
        if probe <= good:
            break
    return found


def _parse(data: bytes) -> Any:
    """pyulog's log of these bytes, None where it fails; what it prints about damage is not for our users' eyes."""
    from pyulog import ULog

    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            return ULog(io.BytesIO(data), TOPICS, True)
    except Exception:  # noqa: BLE001  a parser of another's, on damaged bytes, raises whatever they make of it
        return None
    finally:
        logging.disable(logging.NOTSET)


class _Reader:
    """Columns of the table out of the topics."""

    def __init__(self, topics: Mapping[str, Fields]) -> None:
        self._topics = topics
        self._gps = "vehicle_gps_position" if "vehicle_gps_position" in topics else "sensor_gps"

    def table(self) -> tuple[dict[str, Series], dict[str, dict[str, Series]]]:
        """Quantity -> series: the estimate goes before GPS; and the other position."""
        positions = {"vehicle_global_position": self._estimate(), self._gps: self._raw()}
        found = [name for name, columns in positions.items() if "lat_deg" in columns]
        table = dict(positions[found[0]]) if found else {}
        speed = {name: column for name, column in positions[self._gps].items() if name == "speed_ms"}
        for columns in (self._local(), speed, self._attitude(), self._gimbal(), self._battery(), self._mode()):
            table |= {name: column for name, column in columns.items() if name not in table}
        return table, {name: positions[name] for name in found[1:]}

    def captures(self) -> Captures | None:
        """camera_capture says when a picture was taken; camera_trigger when it was asked for."""
        for name in ("camera_capture", "camera_trigger"):
            topic = self._topics.get(name)
            if topic is None:
                continue
            stamps = topic.get("timestamp_utc") if name == "camera_capture" else None
            times = topic["timestamp"].astype(np.int64) * 1000
            utc = self.utc_ns()
            if stamps is not None and utc is not None and np.all(stamps > EARLIEST_UTC_US):
                times = stamps.astype(np.int64) * 1000 - utc
            return Captures(source=name, t_ns=np.sort(times))
        return None

    def utc_ns(self) -> int | None:
        """By the median of the GPS's own time."""
        gps = self._topics.get(self._gps)
        if gps is None or "time_utc_usec" not in gps:
            return None
        utc, boot = gps["time_utc_usec"].astype(np.int64), gps["timestamp"].astype(np.int64)
        good = utc > EARLIEST_UTC_US
        return int(np.median(utc[good] - boot[good])) * 1000 if good.any() else None

    def _columns(
        self, name: str, values: Mapping[str, NDArray[Any] | None], good: NDArray[np.bool_] | None = None
    ) -> dict[str, Series]:
        times = self._topics[name]["timestamp"].astype(np.int64) * 1000
        good = np.ones(len(times), bool) if good is None else good
        good = good & (times > 0) & (times < 10**18)
        made = {q: series(f"{name}.{q}", times[good], v[good]) for q, v in values.items() if v is not None}
        return {quantity: column for quantity, column in made.items() if column is not None}

    def _placed(self, lat: NDArray[Any], lon: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(((lat != 0) | (lon != 0)) & (np.abs(lat) <= 90) & (np.abs(lon) <= 180), bool)

    def _estimate(self) -> dict[str, Series]:
        topic = self._topics.get("vehicle_global_position")
        if topic is None:
            return {}
        lat, lon = topic["lat"], topic["lon"]
        values = {"lat_deg": lat, "lon_deg": lon, "alt_m": topic.get("alt")}
        return self._columns("vehicle_global_position", values, self._placed(lat, lon))

    def _raw(self) -> dict[str, Series]:
        topic = self._topics.get(self._gps)
        if topic is None:
            return {}
        if {"latitude_deg", "longitude_deg"} <= set(topic):
            lat, lon, alt = topic["latitude_deg"], topic["longitude_deg"], topic.get("altitude_msl_m")
        elif not {"lat", "lon", "alt"} <= set(topic):
            return {}
        else:
            lat, lon, alt = topic["lat"] * 1e-7, topic["lon"] * 1e-7, topic["alt"] * 1e-3
        good = self._placed(lat, lon) & (topic.get("fix_type", np.full(len(lat), FIX_3D)) >= FIX_3D)
        return self._columns(
            self._gps, {"lat_deg": lat, "lon_deg": lon, "alt_m": alt, "speed_ms": topic.get("vel_m_s")}, good
        )

    def _local(self) -> dict[str, Series]:
        """Height above the origin, which is set at take-off, and speed; z points down."""
        topic = self._topics.get("vehicle_local_position")
        if topic is None or not {"z", "vx", "vy"} <= set(topic):
            return {}
        good = topic["z_valid"] > 0 if "z_valid" in topic else np.ones(len(topic["z"]), bool)
        return self._columns(
            "vehicle_local_position", {"agl_m": -topic["z"], "speed_ms": np.hypot(topic["vx"], topic["vy"])}, good
        )

    def _attitude(self) -> dict[str, Series]:
        return self._turns("vehicle_attitude", "")

    def _gimbal(self) -> dict[str, Series]:
        return self._turns("gimbal_device_attitude_status", "camera_")

    def _turns(self, name: str, prefix: str) -> dict[str, Series]:
        """Roll, pitch and yaw of a quaternion (w, x, y, z) from body to north, east, down."""
        topic = self._topics.get(name)
        if topic is None or not {f"q[{i}]" for i in range(4)} <= set(topic):
            return {}
        w, x, y, z = (topic[f"q[{i}]"].astype(np.float64) for i in range(4))
        roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
        pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1, 1))
        yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        turns = {"roll_deg": roll, "pitch_deg": pitch, "yaw_deg": yaw}
        degrees = {f"{prefix}{n}": np.degrees(v) for n, v in turns.items()}
        degrees[f"{prefix}yaw_deg"] %= 360.0
        return self._columns(name, degrees)

    def _battery(self) -> dict[str, Series]:
        topic = self._topics.get("battery_status")
        if topic is None:
            return {}
        volts, share = topic.get("voltage_v"), topic.get("remaining")
        good = (volts > 0) if volts is not None else None
        return self._columns("battery_status", {"battery_v": volts, "battery_share": share}, good)

    def _mode(self) -> dict[str, Series]:
        topic = self._topics.get("vehicle_status")
        if topic is None or "nav_state" not in topic:
            return {}
        texts = np.array([NAV_STATES.get(int(state), f"STATE_{int(state)}") for state in topic["nav_state"]])
        return self._columns("vehicle_status", {"mode": texts})
