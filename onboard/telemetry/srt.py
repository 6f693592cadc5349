"""DJI's and Autel's telemetry in subtitles (.SRT): one cue per frame or per second, in the several styles of models.

Position, altitudes, speed and attitude are taken wherever a cue names them; what is not there stays unknown. Times are
the cues' own, from the video's start; where no cue has one, their dates count from the first. The dates that some
models write are in the pilot's time zone, so UTC is unknown.
"""

import codecs
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import av
import msgspec
import numpy as np

from models.errors import SourceError
from onboard.sources import media
from onboard.telemetry.table import Series, Telemetry, series

MAX_BYTES = 512 * 2**20
MAX_PROBLEMS = 20
NUMBER = r"([-+]?\d+(?:\.\d+)?)"
TIME = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{3})\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d{3})")
DATE = re.compile(r"(\d{4})[-.](\d{1,2})[-.](\d{1,2})\s+(\d{1,2}):(\d\d):(\d\d)(?:[,.](\d{3}))?")
FIELDS = {
    # [latitude: 41.4] [longitude: 2.2] [altitude: 117.0], [rel_alt: 10.0 abs_alt: 52.1]; some models write longtitude
    "lat_deg": re.compile(rf"latitude\s*:\s*{NUMBER}"),
    "lon_deg": re.compile(rf"longt?itude\s*:\s*{NUMBER}"),
    "alt_m": re.compile(rf"(?:abs_alt|altitude)\s*:\s*{NUMBER}"),
    # BAROMETER:1.9; Hb:1.9; H 85.80m
    "agl_m": re.compile(rf"(?:rel_alt\s*:|BAROMETER\s*:|\bHb\s*:|\bH(?=\s))\s*{NUMBER}"),
    "speed_ms": re.compile(rf"\bH\.S\s*:?\s*{NUMBER}\s*m/s"),
    **{
        f"camera_{turn}_deg": re.compile(rf"\b(?:gb|gimbal)_{turn}\s*:\s*{NUMBER}") for turn in ("yaw", "pitch", "roll")
    },
    **{f"{turn}_deg": re.compile(rf"\bdrone_{turn}\s*:\s*{NUMBER}") for turn in ("yaw", "pitch", "roll")},
}
GPS = re.compile(
    rf"GPS\s*\(\s*(?:([EW])\s*:\s*)?{NUMBER}\s*,\s*(?:([NS])\s*:\s*)?{NUMBER}\s*(?:,\s*{NUMBER}\s*([Mm])?\s*)?[,)]"
)
"""GPS(longitude, latitude, satellites); Autel's GPS(W: longitude, N: latitude, altitude m); and the Matrice 300's
GPS(latitude, longitude, altitude M)."""
TURNS = re.compile(rf"\b([FG])\.PRY\s*\(\s*{NUMBER}\D*?,\s*{NUMBER}\D*?,\s*{NUMBER}\D*?\)")
"""F.PRY (pitch, roll, yaw) of the airframe, G.PRY of the gimbal."""
LAT_RADIANS, LON_RADIANS = math.pi / 2, math.pi
"""Where all of a flight lies within so many degrees of 0, N 0, it is in radians: there is but sea."""


def read_srt(path: Path) -> Telemetry:
    """The telemetry of a subtitle file. t_ns counts from the video's start.

    Raises SourceError where the file cannot be read, or no cue of it holds a position or an altitude.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SourceError(f"{path}: larger than {MAX_BYTES >> 20} MiB, these are no subtitles")
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    return telemetry_of(str(path), _text(data))


def read_subtitles(path: Path) -> Telemetry:
    """The telemetry in the subtitle track of a video. t_ns counts from the video's start. Raises SourceError."""
    cues: list[str] = []
    problems: list[str] = []
    try:
        with media.opened(path) as container:
            if not container.streams.subtitles:
                raise SourceError(f"{path}: there are no subtitles in this video; give its log with ?log=FILE")
            stream = container.streams.subtitles[0]
            counted = stream.codec_context is not None and stream.codec_context.name == "mov_text"
            try:
                for packet in media.packets(container, stream):
                    data = bytes(packet)
                    data = data[2 : 2 + int.from_bytes(data[:2], "big")] if counted else data
                    if data and packet.pts is not None and packet.time_base is not None:
                        seconds, millis = divmod(max(0, round(packet.pts * packet.time_base * 1000)), 1000)
                        stamp = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{millis:03}"
                        cues.append(f"{stamp} --> {stamp}\n{data.decode(errors='replace')}\n\n")
            except av.FFmpegError as error:
                problems.append(f"truncated: the subtitles end early: {(error.strerror or '').lower()}")
    except av.FFmpegError as error:
        raise SourceError(f"{path}: cannot be read as a video: {(error.strerror or '').lower()}") from error
    found = telemetry_of(str(path), "".join(cues))
    return msgspec.structs.replace(found, kind="subtitles", problems=(*found.problems, *problems))


def telemetry_of(uri: str, text: str) -> Telemetry:
    """The telemetry in the text of subtitles. Raises SourceError as `read_srt`, with the name `uri`."""
    columns: dict[str, tuple[list[int], list[float]]] = {}
    problems: list[str] = []
    count = 0
    for number, (begin_ns, words) in enumerate(_cues(text), 1):
        found = dict(_values(words))
        count += 1
        if not found:
            problems.append(f"damaged: cue {number} at {begin_ns * 1e-9:.3f} s holds no telemetry")
        for name, value in found.items():
            times, values = columns.setdefault(name, ([], []))
            times.append(begin_ns)
            values.append(value)
    if not columns:
        what = "it is empty" if not text.strip() else f"none of its {count} cues holds a position or an altitude"
        raise SourceError(f"{uri}: no telemetry: {what}; does the video have a log of another kind?")
    if _is_open(text):
        problems.append("truncated: the last cue is cut off")
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS - 1 :] = [f"damaged: {len(problems) - MAX_PROBLEMS + 1} more such cues"]
    made = {name: series(f"SRT.{name}", times, values) for name, (times, values) in columns.items()}
    table: dict[str, Series] = {name: column for name, column in made.items() if column is not None}
    if _in_radians(table):
        for name in ("lat_deg", "lon_deg"):
            table[name] = msgspec.structs.replace(table[name], values=np.degrees(table[name].values))
        problems.append("positions are written in radians, as some firmware does, and were converted")
    return Telemetry(uri=uri, kind="SRT", series=table, problems=tuple(problems))


def _text(data: bytes) -> str:
    """UTF-8, or UTF-16 where the file begins with its mark."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig", errors="replace")


def _in_radians(table: dict[str, Series]) -> bool:
    lat, lon = table.get("lat_deg"), table.get("lon_deg")
    if lat is None or lon is None:
        return False
    return bool(np.abs(lat.values).max() <= LAT_RADIANS and np.abs(lon.values).max() <= LON_RADIANS)


def _cues(text: str) -> Iterator[tuple[int, str]]:
    """Begin in nanoseconds and words of each cue that has both."""
    timed = TIME.search(text) is not None
    zero: datetime | None = None
    for block in _blocks(text):
        if found := TIME.search(block):
            hours, minutes, seconds, millis = (int(part) for part in found.groups()[:4])
            begin = ((hours * 60 + minutes) * 60 + seconds) * 1000 + millis
            yield begin * 10**6, block[found.end() :]
        elif not timed and (date := _date(block)) is not None:
            zero = zero or date
            yield round((date - zero).total_seconds() * 1e3) * 10**6, block


def _blocks(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n"))


def _date(block: str) -> datetime | None:
    found = DATE.search(block)
    if found is None:
        return None
    year, month, day, hour, minute, second, millis = (int(part or 0) for part in found.groups())
    try:
        return datetime(year, month, day, hour, minute, second, millis * 1000, UTC)
    except ValueError:
        return None


def _is_open(text: str) -> bool:
    """Whether the last cue is only the beginning of one like the cue before, or lacks a line or an end that it has."""
    shapes = [re.sub(NUMBER, "0", block).strip() for block in _blocks(text) if block.strip()]
    if len(shapes) < 2:
        return not text.endswith("\n")
    before, last = shapes[-2:]
    fewer = any(last.count(mark) < before.count(mark) for mark in ("\n", "</font>", "]", ")"))
    return last != before and (fewer or before.startswith(last))


def _values(words: str) -> Iterator[tuple[str, float]]:
    position: dict[str, float] = {}
    for name, pattern in FIELDS.items():
        if found := pattern.search(words):
            if name in ("lat_deg", "lon_deg"):
                position[name] = float(found[1])
            elif abs(float(found[1])) < 1e5:
                yield name, float(found[1])
    if found := GPS.search(words):
        east, first, north, second, third, metres = found.groups()
        position = {"lon_deg": float(first), "lat_deg": float(second)}
        if east:
            position = {"lon_deg": float(first) * (-1 if east == "W" else 1), "lat_deg": float(second)}
            position["lat_deg"] *= -1 if north == "S" else 1
        elif metres == "M" or abs(float(second)) > 90:
            position = {"lon_deg": float(second), "lat_deg": float(first)}
        if metres and float(third) != 0 and abs(float(third)) < 1e5:
            yield "alt_m", float(third)
    lat, lon = position.get("lat_deg"), position.get("lon_deg")
    if lat is not None and lon is not None and abs(lat) <= 90 and abs(lon) <= 180 and (lat, lon) != (0.0, 0.0):
        yield "lat_deg", lat
        yield "lon_deg", lon
    for who, pitch, roll, yaw in TURNS.findall(words):
        prefix = "camera_" if who == "G" else ""
        yield f"{prefix}pitch_deg", float(pitch)
        yield f"{prefix}roll_deg", float(roll)
        yield f"{prefix}yaw_deg", float(yaw) % 360.0
