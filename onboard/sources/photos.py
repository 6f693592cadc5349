"""A folder of photos, in the order in which they were taken.

One clock orders the whole folder: the cameras' EXIF times if any photo has one, else times in the file names
(YYYYMMDDhhmmss and hundredths, UTC), else the names alone, one a second. EXIF times without a zone are moved to UTC by
the median distance to the GPS times of the same photos, which are right but coarse. Headers are read when the folder
is opened, pixels one photo at a time.
"""

import re
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec

from models.errors import SourceError
from onboard.frame import Frame, Pose, Skipped
from onboard.sources import exif
from onboard.sources.pictures import DAMAGE, decode, opened, reason

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
_NAME_TIME = re.compile(r"(?<!\d)(\d{16})(?!\d)")


class Photo(msgspec.Struct, frozen=True):
    """What a photo's header says."""

    path: Path
    t_ns: int
    pose: Pose


class PhotoSource:
    """The photos of one folder; subfolders and hidden files are left alone.

    `length` counts the photo files; one that cannot be decoded goes to `skipped` and keeps its index. `utc_ns` is 0
    where the times of the `photos` are UTC, None where there are only names.

    Raises
    ------
    SourceError
        The folder cannot be read or holds no photo.
    """

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)
        self.live = False
        self.skipped: list[Skipped] = []
        self.photos, fps = _in_order(_photo_files(folder))
        self.utc_ns: int | None = 0 if self.photos[0].t_ns else None
        self.fps: float | None = fps
        self.length: int | None = len(self.photos)
        self.first_ns = self.photos[0].t_ns

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield the photos in order from `start_s` on, decoding each when it is asked for."""
        for index, photo in enumerate(self.photos):
            if photo.t_ns < self.first_ns + round(start_s * 1e9):
                continue
            try:
                data = photo.path.read_bytes()
                image = decode(data)
            except DAMAGE as error:
                self.skipped.append(Skipped(name=photo.path.name, reason=reason(error)))
                continue
            yield Frame(index=index, t_ns=photo.t_ns, name=photo.path.name, image=image, pose=photo.pose, encoded=data)

    def close(self) -> None:
        """Nothing is held open between two photos."""


def _photo_files(folder: Path) -> list[Path]:
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
        paths = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
        below = [path for path in entries if not paths and path.is_dir()]
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read: {error.strerror or error}") from error
    if not paths:
        hint = f"; it has subfolders, give one of them, for example {min(below)}" if below else ""
        raise SourceError(f"{folder}: no photos in this folder ({' '.join(sorted(SUFFIXES))}){hint}")
    return sorted(paths, key=_natural)


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Order names by their numbers (IMG_9 before IMG_10), then letter by letter."""
    # Every odd part is digits, so numbers only ever meet numbers.
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part), "") if part.isdigit() and part.isascii() else (0, part) for part in parts], path.name


def _in_order(paths: list[Path]) -> tuple[list[Photo], float]:
    """Order the photos by the folder's clock and estimate their rate in frames per second."""
    headers = [_header(path) for path in paths]
    clocks = [clock for clock, _ in headers]
    to_utc = [c.gps_ns - c.camera_ns for c in clocks if not (c.zoned or c.gps_ns is None or c.camera_ns is None)]
    shift = round(statistics.median(to_utc)) if to_utc else 0
    times = [None if c.camera_ns is None else c.camera_ns + (0 if c.zoned else shift) for c in clocks]
    if all(t is None for t in times):
        times = [c.gps_ns for c in clocks]
    if all(t is None for t in times):
        times = [_name_time(path.stem) for path in paths]
    if all(t is None for t in times):
        times = [index * 10**9 for index in range(len(paths))]
    # A photo without a time stays behind its neighbour by name.
    last = next(t for t in times if t is not None)
    photos = []
    for path, t, (_, pose) in zip(paths, times, headers, strict=True):
        last = last if t is None else t
        photos.append(Photo(path=path, t_ns=last, pose=pose))
    photos.sort(key=lambda photo: photo.t_ns)  # stable: equal times stay in the order of names
    gaps = [b.t_ns - a.t_ns for a, b in pairwise(photos)]
    # The median overlooks turns and pauses; it is 0 where the clock knows whole seconds only and photos are faster.
    gap_ns = (statistics.median(gaps) or statistics.mean(gaps)) if gaps else 0
    return photos, 1e9 / gap_ns if gap_ns > 0 else 1.0


def _header(path: Path) -> tuple[exif.Clock, Pose]:
    try:
        with opened(path) as image:
            return exif.read(image)
    except DAMAGE:
        return exif.Clock(), Pose()  # decoding it will say why


def _name_time(stem: str) -> int | None:
    found = _NAME_TIME.search(stem)
    if not found:
        return None
    try:
        date = datetime.strptime(found[1][:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:  # sixteen digits that are no date
        return None
    return int(date.timestamp()) * 10**9 + int(found[1][14:]) * 10**7
