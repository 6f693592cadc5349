"""ArduPilot's onboard log (.BIN, DataFlash), by a reader of our own: pymavlink's is under the GPL.

A log is a row of records: two bytes of head, a number, and fields whose layout a FMT record gave. Where bytes are
damaged, reading goes on at the next head that a known record follows.
"""

import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.errors import SourceError
from onboard.telemetry.table import Captures, Series, Telemetry, series

HEAD = b"\xa3\x95"
FMT, FMT_BYTES = 128, 89
TYPES: Mapping[str, tuple[str, float]] = {
    "a": ("V64", 1),
    "b": ("i1", 1),
    "B": ("u1", 1),
    "h": ("<i2", 1),
    "H": ("<u2", 1),
    "i": ("<i4", 1),
    "I": ("<u4", 1),
    "f": ("<f4", 1),
    "d": ("<f8", 1),
    "g": ("<f2", 1),
    "n": ("S4", 1),
    "N": ("S16", 1),
    "Z": ("S64", 1),
    "c": ("<i2", 1e-2),
    "C": ("<u2", 1e-2),
    "e": ("<i4", 1e-2),
    "E": ("<u4", 1e-2),
    "L": ("<i4", 1e-7),
    "M": ("u1", 1),
    "q": ("<i8", 1),
    "Q": ("<u8", 1),
}
"""ArduPilot's letters: NumPy's type, and what one unit of it is worth."""
WANTED = frozenset({"GPS", "POS", "AHR2", "ATT", "MODE", "BAT", "CURR", "CAM", "TRIG", "MNT", "ORGN"})
FIX_3D = 3
MAX_PROBLEMS = 20
GPS_EPOCH_S = 315_964_800
WEEK_S = 604_800
LEAP_SECONDS = ((1_483_228_800, 18), (1_435_708_800, 17), (1_341_100_800, 16), (0, 15))
"""UTC from which on GPS is so many seconds ahead of it."""
MODES = {
    "copter": (
        *(
            "STABILIZE",
            "ACRO",
            "ALT_HOLD",
            "AUTO",
            "GUIDED",
            "LOITER",
            "RTL",
            "CIRCLE",
            "",
            "LAND",
            "",
            "DRIFT",
            "",
            "SPORT",
        ),
        *(
            "FLIP",
            "AUTOTUNE",
            "POSHOLD",
            "BRAKE",
            "THROW",
            "AVOID_ADSB",
            "GUIDED_NOGPS",
            "SMART_RTL",
            "FLOWHOLD",
            "FOLLOW",
        ),
        *("ZIGZAG", "SYSTEMID", "AUTOROTATE", "AUTO_RTL", "TURTLE"),
    ),
    "plane": (
        *("MANUAL", "CIRCLE", "STABILIZE", "TRAINING", "ACRO", "FBWA", "FBWB", "CRUISE", "AUTOTUNE", "", "AUTO", "RTL"),
        *(
            "LOITER",
            "TAKEOFF",
            "AVOID_ADSB",
            "GUIDED",
            "INITIALISING",
            "QSTABILIZE",
            "QHOVER",
            "QLOITER",
            "QLAND",
            "QRTL",
        ),
        *("QAUTOTUNE", "QACRO", "THERMAL", "LOITER_ALT_QLAND", "AUTOLAND"),
    ),
}
"""Names of flight modes by number, "" where there is none."""
VEHICLES = ("plane", "copter", "rover", "sub", "blimp", "tracker")
"""As the texts of a log name them; of those without names above, modes keep their numbers."""
INSTANCES = ("I", "Inst", "Instance")
"""Fields that number the sensors of a kind."""


class _Layout:
    """How the records of one number are laid out."""

    def __init__(self, name: str, length: int, letters: str, labels: list[str]) -> None:
        self.name, self.length = name, length
        self.scales = {label: TYPES[letter][1] for label, letter in zip(labels, letters, strict=True)}
        formats = [TYPES[letter][0] for letter in letters]
        self.dtype = np.dtype({"names": labels, "formats": formats})
        if self.dtype.itemsize + 3 != length:
            raise ValueError("the fields do not fill the record")

    def __eq__(self, other: object) -> bool:
        """Whether records of both are read alike."""
        return isinstance(other, _Layout) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.name, self.length))


def read_dataflash(path: Path) -> Telemetry:
    """The telemetry of a .BIN. t_ns counts from the start of the flight controller.

    Raises SourceError where the file cannot be read, or holds no record of a flight.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tables, texts, problems = _scan(data)
    except (OSError, ValueError) as error:
        reason = "it is empty" if isinstance(error, ValueError) else error.strerror or error
        raise SourceError(f"{path}: cannot be read: {reason}") from error
    reader = _Reader(tables, _vehicle(texts))
    table, alternatives = reader.table()
    captures = reader.captures()
    if not table and captures is None:
        raise SourceError(f"{path}: no position, attitude or battery is in this log; is it an ArduPilot .BIN?")
    return Telemetry(
        uri=str(path),
        kind="DataFlash",
        series=table,
        alternatives=alternatives,
        utc_ns=reader.utc_ns(),
        captures=captures,
        problems=tuple(problems),
    )


def _vehicle(texts: list[str]) -> str:
    """The kind of vehicle, by the first text that names one, as in "ArduPlane V4.5.7"."""
    named = (kind for text in texts for kind in VEHICLES if re.search(rf"(Ardu|APM:? ?){kind}", text, re.IGNORECASE))
    return next(named, "copter")


def _scan(data: mmap.mmap) -> tuple[dict[str, "_Table"], list[str], list[str]]:
    """The records that are wanted, by name; texts of messages; problems."""
    layouts: dict[int, _Layout] = {}
    raw: dict[str, bytearray] = {}
    latest: dict[str, _Layout] = {}
    texts: list[str] = []
    problems: list[str] = []
    at, size, lost_from = 0, len(data), -1
    while at + 3 <= size:
        number = data[at + 2]
        layout = layouts.get(number)
        length = FMT_BYTES if number == FMT else layout.length if layout else 0
        end = at + length
        good = length and data[at] == HEAD[0] and data[at + 1] == HEAD[1] and end <= size
        # A record is believed where the next one follows: two bytes alone turn up in any data.
        if not good or (end + 2 <= size and data[end : end + 2] != HEAD and lost_from >= 0):
            lost_from = at if lost_from < 0 else lost_from
            at = data.find(HEAD, at + 1)
            if at < 0:
                break
            continue
        if lost_from >= 0:
            problems.append(f"damaged: {at - lost_from} bytes at {lost_from} are no record")
            lost_from = -1
        body = data[at + 3 : end]
        if number == FMT:
            _learn(body, layouts)
        elif layout and layout.name in WANTED:
            if latest.setdefault(layout.name, layout) is layout:
                raw.setdefault(layout.name, bytearray()).extend(body)
        elif layout and layout.name == "MSG" and len(texts) < 64:
            texts.append(_text(layout, body))
        at = end
    if lost_from >= 0 or 0 <= at < size:
        begin = lost_from if lost_from >= 0 else at
        if any(data[begin:size]):  # logs end in zeros where the card was allocated ahead
            problems.append(f"truncated: the last {size - begin} bytes are no whole record")
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS - 1 :] = [f"damaged: {len(problems) - MAX_PROBLEMS + 1} more places"]
    tables = {n: _Table(np.frombuffer(bytes(rows), latest[n].dtype), latest[n].scales) for n, rows in raw.items()}
    return tables, texts, problems


def _text(layout: "_Layout", body: bytes) -> str:
    """What a MSG record says; the oldest have no time before it."""
    if "Message" not in layout.scales:
        return ""
    return bytes(np.frombuffer(body, layout.dtype)["Message"][0]).split(b"\0")[0].decode("ascii", "replace")


def _learn(body: bytes, layouts: dict[int, _Layout]) -> None:
    """Take a FMT record: number, length, name, letters, labels. One that makes no sense is left out."""
    number, length = body[0], body[1]
    name, letters, labels = (
        part.rstrip(b"\0").decode("ascii", "replace") for part in (body[2:6], body[6:22], body[22:86])
    )
    names = labels.split(",") if labels else []
    if name in WANTED | {"MSG"} or number not in layouts:
        try:
            if any(letter not in TYPES for letter in letters) or len(set(names)) < len(names):
                raise ValueError
            layout = _Layout(name, length, letters, names)
            if layouts.get(number) != layout:  # a log that was begun anew tells the same again
                layouts[number] = layout
        except ValueError:
            if length > 3:
                layouts[number] = _Opaque(name, length)


class _Opaque(_Layout):
    """Records that are skipped: only their length is known."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self.length = f"?{name}", length


class _Table(NamedTuple):
    """The records of one name, and what a unit of each field is worth."""

    rows: NDArray[Any]
    scales: Mapping[str, float]

    def has(self, *labels: str) -> bool:
        """Whether it has all of these fields."""
        return set(labels) <= set(self.scales)

    def values(self, label: str) -> NDArray[np.float64]:
        """A field in its unit."""
        with np.errstate(all="ignore"):  # turned bits make numbers that are none
            return self.rows[label].astype(np.float64) * self.scales[label]


class _Reader:
    """Columns of the table out of the records. Logs of before 2015 count milliseconds, in other fields."""

    def __init__(self, tables: Mapping[str, _Table], vehicle: str) -> None:
        self._tables, self._vehicle = tables, vehicle
        self._gps_s = self._gps_begin()

    def table(self) -> tuple[dict[str, Series], dict[str, dict[str, Series]]]:
        """Quantity -> series: the estimate goes before GPS; and the other positions."""
        place = {"lat_deg": "Lat", "lon_deg": "Lng", "alt_m": "Alt"}
        positions = {
            "POS": self._columns("POS", place | {"agl_m": "RelHomeAlt"}),
            "GPS": self._columns("GPS", place | {"agl_m": "RelAlt", "speed_ms": "Spd"}),
            "AHR2": self._columns("AHR2", place),
        }
        found = [name for name, columns in positions.items() if "lat_deg" in columns]
        table = dict(positions[found[0]]) if found else {}
        others = (
            {name: column for name, column in positions["GPS"].items() if name == "speed_ms"},
            self._columns("ATT", {"roll_deg": "Roll", "pitch_deg": "Pitch", "yaw_deg": "Yaw"}),
            self._columns("BAT", {"battery_v": "Volt", "battery_share": "RemPct"}),
            self._columns("CURR", {"battery_v": "Volt"}),
            self._columns("MNT", {"camera_roll_deg": "Roll", "camera_pitch_deg": "Pitch", "camera_yaw_deg": "YawE"}),
            self._modes(),
        )
        for columns in others:
            table |= {name: column for name, column in columns.items() if name not in table}
        for name in ("yaw_deg", "camera_yaw_deg", "battery_share"):
            if name in table:
                old = table[name]
                values = old.values / 100 if name == "battery_share" else old.values % 360.0
                table[name] = Series(source=old.source, t_ns=old.t_ns, values=values)
        return table, {name: positions[name] for name in found[1:]}

    def captures(self) -> Captures | None:
        """CAM says when a picture was taken; TRIG when it was asked for."""
        for name in ("CAM", "TRIG"):
            table = self._first(name)
            if table is None or not len(table.rows):
                continue
            if table.has("TimeUS"):
                return Captures(source=name, t_ns=np.sort(self._times(name, table)))
            if table.has("GPSTime", "GPSWeek") and self._gps_s is not None:
                seconds = table.values("GPSWeek") * WEEK_S + table.values("GPSTime") * 1e-3 - self._gps_s
                seconds = seconds[np.abs(seconds) < 1e9]
                return Captures(source=name, t_ns=np.sort(np.round(seconds * 1e9).astype(np.int64)))
        return None

    def utc_ns(self) -> int | None:
        """By the median of GPS week and milliseconds of all fixes."""
        if self._gps_s is None:
            return None
        begin = GPS_EPOCH_S + self._gps_s
        leap = next(leap for since, leap in LEAP_SECONDS if begin >= since)
        return round((begin - leap) * 1e9)

    def _gps_begin(self) -> float | None:
        """GPS time of the log's time 0, in seconds."""
        gps = self._first("GPS")
        if gps is None:
            return None
        week, millis = ("GWk", "GMS") if gps.has("GWk", "GMS") else ("Week", "TimeMS")
        if not gps.has(week, millis):
            return None
        good = self._good("GPS", gps)
        if not good.any():
            return None
        seconds = gps.values(week) * WEEK_S + gps.values(millis) * 1e-3 - self._times("GPS", gps) * 1e-9
        return float(np.median(seconds[good]))

    def _first(self, name: str) -> _Table | None:
        """The records of the first of several instances (the field I), which is the primary one."""
        table = self._tables.get(name)
        label = next((label for label in INSTANCES if table is not None and table.has(label)), None)
        if table is not None and label and len(table.rows):
            return table._replace(rows=table.rows[table.rows[label] == table.rows[label].min()])
        return table

    def _times(self, name: str, table: _Table) -> NDArray[np.int64]:
        """Nanoseconds since the start of the flight controller."""
        if table.has("TimeUS"):
            return table.rows["TimeUS"].astype(np.int64) * 1000
        label = "T" if name == "GPS" else "TimeMS"  # a GPS record's TimeMS is that of the GPS week
        return table.rows[label].astype(np.int64) * 10**6 if table.has(label) else np.zeros(len(table.rows), np.int64)

    def _columns(self, name: str, fields: Mapping[str, str]) -> dict[str, Series]:
        table = self._first(name)
        if table is None:
            return {}
        times, good = self._times(name, table), self._good(name, table)
        out: dict[str, Series] = {}
        for quantity, label in fields.items():
            if table.has(label) and table.rows.dtype[label].kind in "iuf":
                values = table.values(label)
                if name == "CURR" and table.rows.dtype[label].kind == "i" and table.scales[label] == 1:
                    values = values / 100  # old logs hold hundredths of a volt without saying so
                column = series(f"{name}.{label}", times[good], values[good])
                if column is not None:
                    out[quantity] = column
        return out

    def _good(self, name: str, table: _Table) -> NDArray[np.bool_]:
        """Records with a time and, where they say so, a position and a fix."""
        times = self._times(name, table)
        good = (times > 0) & (times < 10**18)
        if table.has("Lat", "Lng"):
            lat, lon = table.values("Lat"), table.values("Lng")
            good &= ((lat != 0) | (lon != 0)) & (np.abs(lat) <= 90) & (np.abs(lon) <= 180)
        if name == "GPS" and table.has("Status"):
            good &= table.rows["Status"] >= FIX_3D
        return np.asarray(good, bool)

    def _modes(self) -> dict[str, Series]:
        table = self._first("MODE")
        if table is None or not len(table.rows):
            return {}
        names = MODES.get(self._vehicle, ())
        numbers = [int(number) for number in table.rows["ModeNum" if table.has("ModeNum") else "Mode"]]
        texts = [names[n] if n < len(names) and names[n] else f"MODE_{n}" for n in numbers]
        column = series("MODE.Mode", self._times("MODE", table), texts)
        return {"mode": column} if column is not None else {}
