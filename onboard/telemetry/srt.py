"""DJI's telemetry in subtitles (.SRT): one cue per frame or per second, in the several styles of its models.

Position, altitudes, speed and attitude are taken wherever a cue names them; what is not there stays unknown. Times are
the cues' own, from the video's start. The dates that some models write are in the pilot's time zone, so UTC is unknown.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from models.errors import SourceError
from onboard.telemetry.table import Series, Telemetry, series

MAX_BYTES = 512 * 2**20
MAX_PROBLEMS = 20
NUMBER = r"([-+]?\d+(?:\.\d+)?)"
TIME = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{3})\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d{3})")
FIELDS = {
    # [latitude: 41.4] [longitude: 2.2] [altitude: 117.0], [rel_alt: 10.0 abs_alt: 52.1]; one model writes longtitude
    "lat_deg": re.compile(rf"latitude\s*:\s*{NUMBER}"),
    "lon_deg": re.compile(rf"longt?itude\s*:\s*{NUMBER}"),
    "alt_m": re.compile(rf"(?:abs_alt|altitude)\s*:\s*{NUMBER}"),
    # BAROMETER:1.9; Hb:1.9; H 85.80m
    "agl_m": re.compile(rf"(?:rel_alt\s*:|BAROMETER\s*:|\bHb\s*:|\bH(?=\s))\s*{NUMBER}"),
    "speed_ms": re.compile(rf"\bH\.S\s*:?\s*{NUMBER}\s*m/s"),
    "camera_yaw_deg": re.compile(rf"gb_yaw\s*:\s*{NUMBER}"),
    "camera_pitch_deg": re.compile(rf"gb_pitch\s*:\s*{NUMBER}"),
    "camera_roll_deg": re.compile(rf"gb_roll\s*:\s*{NUMBER}"),
}
GPS = re.compile(rf"\bGPS\s*\(\s*{NUMBER}\s*,\s*{NUMBER}\s*,")
"""GPS(longitude, latitude, satellites)."""
TURNS = re.compile(rf"\b([FG])\.PRY\s*\(\s*{NUMBER}\D*?,\s*{NUMBER}\D*?,\s*{NUMBER}\D*?\)")
"""F.PRY (pitch, roll, yaw) of the airframe, G.PRY of the gimbal."""


def read_srt(path: Path) -> Telemetry:
    """The telemetry of a subtitle file. t_ns counts from the video's start.

    Raises SourceError where the file cannot be read, or no cue of it holds a position or an altitude.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SourceError(f"{path}: larger than {MAX_BYTES >> 20} MiB, these are no subtitles")
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
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
        raise SourceError(f"{path}: no telemetry: {what}; does the video have a log of another kind?")
    if not text.endswith("\n") or _is_open(text):
        problems.append("truncated: the last cue is cut off")
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS - 1 :] = [f"damaged: {len(problems) - MAX_PROBLEMS + 1} more such cues"]
    made = {name: series(f"SRT.{name}", times, values) for name, (times, values) in columns.items()}
    table: dict[str, Series] = {name: column for name, column in made.items() if column is not None}
    return Telemetry(uri=str(path), kind="SRT", series=table, problems=tuple(problems))


def _cues(text: str) -> Iterator[tuple[int, str]]:
    """Begin in nanoseconds and words of each cue that has both."""
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        if found := TIME.search(block):
            hours, minutes, seconds, millis = (int(part) for part in found.groups()[:4])
            begin = ((hours * 60 + minutes) * 60 + seconds) * 1000 + millis
            yield begin * 10**6, block[found.end() :]


def _is_open(text: str) -> bool:
    """Whether the last cue lacks what the one before has: a line, a bracket or a tag."""
    blocks = [block for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip()) if block.strip()]
    if len(blocks) < 2:
        return False
    before, last = (re.sub(r"\d+", "0", block) for block in blocks[-2:])
    closing = (("</font>", "</font>"), ("[", "]"), ("(", ")"))
    return last.count("\n") < before.count("\n") or any(
        last.count(b) < before.count(b) for pair in closing for b in pair
    )


def _values(words: str) -> Iterator[tuple[str, float]]:
    position: dict[str, float] = {}
    for name, pattern in FIELDS.items():
        if found := pattern.search(words):
            if name in ("lat_deg", "lon_deg"):
                position[name] = float(found[1])
            elif abs(float(found[1])) < 1e5:
                yield name, float(found[1])
    if found := GPS.search(words):
        position = {"lon_deg": float(found[1]), "lat_deg": float(found[2])}
    lat, lon = position.get("lat_deg"), position.get("lon_deg")
    if lat is not None and lon is not None and abs(lat) <= 90 and abs(lon) <= 180 and (lat, lon) != (0.0, 0.0):
        yield "lat_deg", lat
        yield "lon_deg", lon
    for who, pitch, roll, yaw in TURNS.findall(words):
        prefix = "camera_" if who == "G" else ""
        yield f"{prefix}pitch_deg", float(pitch)
        yield f"{prefix}roll_deg", float(roll)
        yield f"{prefix}yaw_deg", float(yaw) % 360.0
