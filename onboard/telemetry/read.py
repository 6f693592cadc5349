"""A log of any known format as `Telemetry`, and the log that belongs to a video or a folder of photos."""

from pathlib import Path

from models.errors import SourceError
from onboard.sources.bags import is_bag, read_bag
from onboard.sources.photos import SUFFIXES as PHOTO_SUFFIXES
from onboard.sources.video import SUFFIXES as VIDEO_SUFFIXES
from onboard.telemetry.table import Telemetry

SUFFIXES = (".ulg", ".bin", ".tlog", ".srt")
"""Of logs, in the order in which they are taken where several lie beside a flight: what says most goes first."""
DATAFLASH, ULOG, MAVLINK = b"\xa3\x95", b"ULog\x01\x12\x35", (0xFE, 0xFD)
STAMP_BYTES = 8
"""Of a .tlog: the time before each message."""


def read(path: Path) -> Telemetry:
    """The telemetry in a log, in a video, or in the headers of a folder of photos, by what the file begins with.

    Raises SourceError where there is none, or the format is not known.
    """
    try:
        if path.is_dir() and not is_bag(path):
            from onboard.telemetry.photos import read_photos

            return read_photos(path)
        if is_bag(path):
            return read_bag(path)
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    # Each reader brings a library of its own, which no other flight needs.
    if head.startswith(DATAFLASH):
        from onboard.telemetry.dataflash import read_dataflash

        return read_dataflash(path)
    if head.startswith(ULOG):
        from onboard.telemetry.ulog import read_ulog

        return read_ulog(path)
    suffix = path.suffix.lower()
    if suffix == ".srt":
        from onboard.telemetry.srt import read_srt

        return read_srt(path)
    if suffix in VIDEO_SUFFIXES:
        return _in_video(path)
    if suffix == ".tlog" or (len(head) > STAMP_BYTES and head[STAMP_BYTES] in MAVLINK):
        from onboard.telemetry.tlog import read_tlog

        return read_tlog(path)
    raise SourceError(
        f"{path}: neither its name nor its first bytes say which log it is; there are ArduPilot's .bin, PX4's .ulg, "
        "MAVLink's .tlog, DJI's .srt, videos of GoPro or with DJI's subtitles, and photos"
    )


def _in_video(path: Path) -> Telemetry:
    """GoPro's track, or DJI's subtitles. Raises SourceError for the first where there is neither."""
    from onboard.telemetry.gpmf import read_gpmf
    from onboard.telemetry.srt import read_subtitles

    try:
        return read_gpmf(path)
    except SourceError:
        try:
            return read_subtitles(path)
        except SourceError:
            pass
        raise


def beside(path: Path) -> Path | None:
    """The log of a video or of a folder of photos: one with the same name, else the only log of its kind in the folder.

    For a video that is the folder it lies in, and only if no other video lies there.
    """
    folder = path if path.is_dir() else path.parent
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in SUFFIXES)
        others = [f for f in folder.iterdir() if f.suffix.lower() in VIDEO_SUFFIXES | PHOTO_SUFFIXES and f != path]
    except OSError:
        return None
    for suffix in SUFFIXES:
        named = [file for file in files if file.suffix.lower() == suffix and file.stem.lower() == path.stem.lower()]
        if named:
            return named[0]
    if path.is_dir() or not others:
        for suffix in SUFFIXES:
            own = [file for file in files if file.suffix.lower() == suffix]
            if len(own) == 1:
                return own[0]
    return None
