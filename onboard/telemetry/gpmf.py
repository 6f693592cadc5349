"""GoPro's telemetry track (GPMF) inside an MP4: position, speed, attitude and battery, by the video's own clock.

A track is a row of payloads, each of which holds nested key-length-value records: a device (DEVC) has streams (STRM),
a stream has a few records about it (scale, type of its fields, time) and then its samples. Samples have no time of
their own in the video: those of a payload are spread over its duration. Where a stream stamps them by a clock of its
own, that clock is laid over the spread once for the whole track, which is steadier; what is left over is the residual.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from models.errors import SourceError
from onboard.sources import media
from onboard.telemetry.table import Series, Telemetry, series

MAX_DEPTH = 8
MAX_FIELDS = 1024
MAX_PROBLEMS = 20
FORMATS = {
    **{"b": "i1", "B": "u1", "s": ">i2", "S": ">u2", "l": ">i4", "L": ">u4"},
    **{"f": ">f4", "q": ">i4", "d": ">f8", "j": ">i8", "J": ">u8", "Q": ">i8"},
}
"""GPMF's types of numbers and NumPy's; `q` and `Q` are fixed point of 16 and 32 bits behind the point."""
SIZES = {kind: np.dtype(form).itemsize for kind, form in FORMATS.items()} | {"c": 1, "F": 4, "G": 16, "U": 16}
"""Bytes of all types: letters, keys, GUIDs and dates are no numbers."""
FIXED_POINT = {"q": 2.0**16, "Q": 2.0**32}
FIELD = re.compile(r"(.)(?:\[(\d{1,3})\])?", re.DOTALL)
"""A letter of TYPE, and how often it stands there: f[8]."""
INDEX = "a file that the camera could not close lacks its index, which a repair tool can make again"
FIX_2D, FIX_3D = 2, 3
SECONDS_TO_2000 = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp())

Columns = NDArray[np.float64]


class Payload(NamedTuple):
    """The data of one packet of the track, and when it holds in the video, in seconds."""

    begin_s: float
    length_s: float
    data: bytes


class Stream(NamedTuple):
    """One STRM of one payload: its records by key, and its samples (N, fields) with the scale applied."""

    payload: int
    key: str
    samples: Columns
    about: Mapping[str, "Record"]


class Record(NamedTuple):
    """A key-length-value record: type "" for nested ones; size of a sample and how many there are."""

    key: str
    type: str
    size: int
    repeat: int
    data: bytes


class _Damage(Exception):
    """A payload that does not follow its own lengths."""


def read_gpmf(path: Path) -> Telemetry:
    """The telemetry track of a video. t_ns counts from the video's first frame.

    Raises SourceError where the file cannot be read, has no such track, or none of its payloads holds a position.
    """
    payloads, problems = _payloads(path)
    streams: list[Stream] = []
    for number, payload in enumerate(payloads):
        try:
            for stream in _streams(number, payload.data):
                streams.append(stream)
        except _Damage as error:
            problems.append(f"damaged: telemetry at {payload.begin_s:.1f} s: {error}; the rest of this packet is lost")
    columns = _Reader(payloads, streams)
    table = columns.table()
    problems += columns.without_fix
    if not table and not columns.without_fix:
        raise SourceError(f"{path}: its telemetry track holds nothing that is known; is it a GoPro's or a Karma's?")
    return Telemetry(
        uri=str(path),
        kind="GPMF",
        series=table,
        alternatives=columns.alternatives,
        utc_ns=columns.utc_ns(),
        residual_ms=columns.residual_ms,
        problems=(*problems[:MAX_PROBLEMS], *([f"{len(problems)} problems in all"] * (len(problems) > MAX_PROBLEMS))),
    )


def _payloads(path: Path) -> tuple[list[Payload], list[str]]:
    """All payloads of the first track whose packets begin with DEVC."""
    problems: list[str] = []
    try:
        with media.opened(path) as container:
            if not container.streams:
                raise SourceError(f"{path}: {INDEX}")
            for stream in [stream for stream in container.streams if stream.type == "data"]:
                out: list[Payload] = []
                container.seek(0)
                try:
                    for packet in media.packets(container, stream):
                        data = bytes(packet)
                        if data and not out and not data.startswith(b"DEVC"):
                            break
                        if data and packet.pts is not None and packet.time_base is not None:
                            length = float((packet.duration or 0) * packet.time_base)
                            out.append(Payload(float(packet.pts * packet.time_base), length, data))
                except av.FFmpegError as error:
                    problems.append(f"truncated: the telemetry ends early: {(error.strerror or '').lower()}")
                if out:
                    promised = stream.frames
                    if promised and len(out) < promised:
                        problems.append(f"truncated: {len(out)} of {promised} packets of telemetry are there")
                    return out, problems
    except av.FFmpegError as error:
        raise SourceError(f"{path}: cannot be read as a video: {(error.strerror or '').lower()}; {INDEX}") from error
    raise SourceError(f"{path}: there is no telemetry of a GoPro or a DJI in this video; give its log with ?log=FILE")


# --- key, length, value -----------------------------------------------------------------------------------------------


def records(data: bytes) -> Iterator[Record]:
    """The records of a payload or of a nested one, in order. Raises an error of ours behind the last whole one."""
    at = 0
    while at + 8 <= len(data):
        key, kind, size, repeat = struct.unpack_from(">4scBH", data, at)
        length = size * repeat
        if key == b"\0\0\0\0":
            return  # padding
        if not key.isalnum() and not key.replace(b"_", b"").isalnum():
            raise _Damage(f"{key!r} is no key")
        if at + 8 + length > len(data):
            raise _Damage(f"{key.decode()} is longer than what is left")
        content = data[at + 8 : at + 8 + length]
        yield Record(key.decode(), "" if kind == b"\0" else kind.decode("latin-1"), size, repeat, content)
        at += 8 + -(-length // 4) * 4


def _streams(number: int, data: bytes, depth: int = 0) -> Iterator[Stream]:
    for record in records(data):
        if record.type or depth > MAX_DEPTH:
            continue
        if record.key != "STRM":
            yield from _streams(number, record.data, depth + 1)
            continue
        about: dict[str, Record] = {}
        for inner in records(record.data):
            about[inner.key] = inner
        if about:
            key, last = next(reversed(about.items()))
            yield Stream(number, key, _samples(last, about), about)


def _samples(record: Record, about: Mapping[str, Record]) -> Columns:
    """The samples of a record as float64 (N, fields), scaled; none where its type is not of numbers."""
    types = _types(record, about)
    sizes = [SIZES.get(t, 0) for t in types]
    if not types or not all(sizes) or sum(sizes) > record.size or (record.type != "?" and types[0] not in FORMATS):
        return np.zeros((0, 0))
    table = np.frombuffer(record.data[: len(record.data) // record.size * record.size], np.uint8)
    table = table.reshape(-1, record.size)
    out = np.full((len(table), len(types)), np.nan)
    for i, kind in enumerate(types):
        if kind in FORMATS:
            at = sum(sizes[:i])
            column = np.ascontiguousarray(table[:, at : at + sizes[i]]).view(FORMATS[kind])[:, 0]
            with np.errstate(invalid="ignore"):  # turned bits make numbers that are none
                out[:, i] = column.astype(np.float64) / FIXED_POINT.get(kind, 1.0)
    scale = _samples(about["SCAL"], {}) if "SCAL" in about and record.key != "SCAL" else np.ones((1, 1))
    divisors = scale.reshape(-1)
    if len(divisors) in (1, out.shape[1]) and np.all(divisors):
        out = out / divisors
    return out


def _types(record: Record, about: Mapping[str, Record]) -> str:
    """The type of each field of a sample, a letter each; "" where that is not said."""
    if record.type != "?":
        size = SIZES.get(record.type, 0)
        return record.type * (record.size // size) if size and record.size % size == 0 else ""
    text = about["TYPE"].data.split(b"\0")[0].decode("latin-1") if "TYPE" in about else ""
    types = "".join(letter * int(count or 1) for letter, count in FIELD.findall(text))
    return types if len(types) <= MAX_FIELDS else ""


# --- what the streams mean --------------------------------------------------------------------------------------------


class _Reader:
    """Columns of the table out of all streams of a track."""

    def __init__(self, payloads: list[Payload], streams: list[Stream]) -> None:
        self.payloads, self.streams = payloads, streams
        self.alternatives: dict[str, dict[str, Series]] = {}
        self.residual_ms: float | None = None
        self.without_fix: list[str] = []

    def table(self) -> dict[str, Series]:
        """Quantity -> series. The estimate of a Karma goes before raw GPS, GPS9 before GPS5."""
        positions = {
            "GLPI": self._columns("GLPI", {"lat_deg": 1, "lon_deg": 2, "alt_m": 3, "agl_m": 4}, stamp=0),
            "GPS9": self._columns("GPS9", {"lat_deg": 0, "lon_deg": 1, "alt_m": 2, "speed_ms": 3}, fix=8),
            "GPS5": self._columns("GPS5", {"lat_deg": 0, "lon_deg": 1, "alt_m": 2, "speed_ms": 3}),
            "GPRI": self._columns("GPRI", {"lat_deg": 1, "lon_deg": 2, "alt_m": 3, "speed_ms": 6}, stamp=0, fix=8),
        }
        found = [name for name, columns in positions.items() if "lat_deg" in columns]
        out: dict[str, Series] = dict(positions[found[0]]) if found else {}
        self.alternatives = {name: dict(positions[name]) for name in found[1:]}
        for columns in (
            self._columns("ATTD", {"roll_deg": 1, "pitch_deg": 2, "yaw_deg": 3}, stamp=0, factor=180 / np.pi),
            self._columns("VFRH", {"speed_ms": 1}),
            self._columns("KBAT", {"battery_v": 4, "battery_share": 14}),
            self._upright(),
        ):
            out |= {name: column for name, column in columns.items() if name not in out}
        if yaw := out.get("yaw_deg"):
            out["yaw_deg"] = Series(source=yaw.source, t_ns=yaw.t_ns, values=yaw.values % 360.0)
        if share := out.get("battery_share"):
            out["battery_share"] = Series(source=share.source, t_ns=share.t_ns, values=share.values / 100)
        return out

    def utc_ns(self) -> int | None:
        """What to add to the video's time for UTC, by the median over the payloads that say it."""
        offsets: list[float] = []
        for stream in self.streams:
            begin = self.payloads[stream.payload].begin_s
            if "GPSU" in stream.about and (utc := _gps_time(stream.about["GPSU"].data)) is not None:
                offsets.append(utc - begin)
            elif stream.key == "SYST" and stream.samples.shape[1:] == (2,) and len(stream.samples):
                offsets.append(float(stream.samples[0, 1]) - begin)
            elif stream.key == "GPS9" and stream.samples.shape[1:] == (9,) and len(stream.samples):
                days, seconds = stream.samples[0, 5:7]
                offsets.append(SECONDS_TO_2000 + days * 86_400 + seconds - begin)
        offsets = [offset for offset in offsets if offset > SECONDS_TO_2000]
        return round(float(np.median(offsets)) * 1e9) if offsets else None

    def _columns(
        self, key: str, fields: Mapping[str, int], stamp: int | None = None, fix: int | None = None, factor: float = 1.0
    ) -> dict[str, Series]:
        """Quantities of one kind of stream: fields by number. stamp: its own clock in seconds; fix: of the GPS."""
        least = max([*fields.values(), stamp or 0, fix or 0]) + 1
        own = [s for s in self.streams if s.key == key and s.samples.ndim == 2 and s.samples.shape[1] >= least]
        own = [s for s in own if len(s.samples)]
        if not own:
            return {}
        spread = np.concatenate([self._spread(s) for s in own])
        samples = np.concatenate([s.samples[:, : min(x.samples.shape[1] for x in own)] for s in own])
        good = np.ones(len(samples), bool)
        if fix is not None:
            good &= samples[:, fix] >= FIX_3D
        elif any("GPSF" in s.about for s in own):
            good &= np.concatenate([np.full(len(s.samples), _fix(s) >= FIX_2D) for s in own])
        if not good.all():
            self.without_fix.append(f"{key}: {np.sum(~good)} of {len(good)} positions without a fix are left out")
        if "lat_deg" in fields:
            lat, lon = samples[:, fields["lat_deg"]], samples[:, fields["lon_deg"]]
            good &= (np.abs(lat) <= 90) & (np.abs(lon) <= 180) & ((lat != 0) | (lon != 0))
        times = spread
        if stamp is not None:
            clock = samples[:, stamp]
            times = clock + np.median(spread - clock)
            good &= np.abs(times - spread) < 60.0  # a stamp that was damaged
            if good.any() and self.residual_ms is None:
                self.residual_ms = float(np.median(np.abs(times - spread)[good])) * 1e3
        t_ns = np.round(times[good] * 1e9).astype(np.int64)
        columns = {name: series(f"{key}.{name}", t_ns, samples[good, i] * factor) for name, i in fields.items()}
        return {name: column for name, column in columns.items() if column is not None}

    def _upright(self) -> dict[str, Series]:
        """Pitch and roll of the camera's body by its direction of gravity (HERO9 and later), whose axes are the
        camera's left, down and ahead; earlier ones write zeros. Where north is, no GoPro knows."""
        axes = self._columns("GRAV", {"left": 0, "down": 1, "ahead": 2})
        if len(axes) < 3 or len({len(column.t_ns) for column in axes.values()}) > 1:
            return {}
        left, down, ahead = (axes[name].values for name in ("left", "down", "ahead"))
        length = np.sqrt(left**2 + down**2 + ahead**2)
        good, t_ns = np.abs(length - 1) < 0.1, axes["down"].t_ns
        pitch = -np.degrees(np.arcsin(np.clip(ahead / np.where(good, length, 1), -1, 1)))
        turns = {"camera_pitch_deg": pitch, "camera_roll_deg": np.degrees(np.arctan2(-left, down))}
        made = {name: series(f"GRAV.{name}", t_ns[good], values[good]) for name, values in turns.items()}
        return {name: column for name, column in made.items() if column is not None}

    def _spread(self, stream: Stream) -> Columns:
        """Seconds in the video of a stream's samples, evenly over their payload."""
        begin, length, _ = self.payloads[stream.payload]
        count = len(stream.samples)
        return begin + length * np.arange(count) / count


def _fix(stream: Stream) -> int:
    record = stream.about.get("GPSF")
    return int.from_bytes(record.data[:4], "big") if record else FIX_3D


def _gps_time(data: bytes) -> float | None:
    """Seconds since the epoch of GPSU's yymmddhhmmss.sss."""
    try:
        text = data.decode("ascii").strip("\0 ")
        date = datetime.strptime(text[:12], "%y%m%d%H%M%S").replace(tzinfo=UTC)
        return date.timestamp() + float("0" + text[12:] if text[12:] else 0)
    except ValueError:
        return None
