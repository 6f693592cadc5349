"""A video or a folder of photos with the log that belongs to it: frames get the poses that their cameras did not write.

The log is the one that was named, the one inside a video, or the one that lies beside (`onboard.telemetry.read`).
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.errors import SourceError
from onboard.frame import Frame, Pose, Skipped, Source
from onboard.telemetry.align import Alignment, align
from onboard.telemetry.read import beside, read
from onboard.telemetry.table import Telemetry


class LoggedSource:
    """The frames of `source` with poses by the log's clock; what a frame knows of its own pose stays.

    times: int64 (N,) of its frames, where they are known before; utc_ns: what leads from them to UTC, None if unknown;
    inside: the log counts by the frames' own clock; offset_s: what the user says. `problems`: what is wrong with the
    log, and that it is of another time than the pictures.
    """

    def __init__(
        self,
        source: Source,
        telemetry: Telemetry,
        times: NDArray[np.int64],
        *,
        utc_ns: int | None,
        inside: bool,
        offset_s: float | None,
    ) -> None:
        self.uri, self.length, self.fps, self.live = source.uri, source.length, source.fps, source.live
        self.first_ns = source.first_ns
        self.skipped: list[Skipped] = source.skipped
        self.telemetry = telemetry
        self.alignment: Alignment = align(times, telemetry, utc_ns=utc_ns, inside=inside, offset_s=offset_s)
        self.problems = (*telemetry.problems, *_apart(_span(times, source), telemetry, self.alignment.offset_ns))
        self.pictures = source

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield the frames, each with what the log says of its moment."""
        for frame in self.pictures.frames(start_s):
            pose = self.telemetry.pose(frame.t_ns - self.alignment.offset_ns)
            yield msgspec.structs.replace(frame, pose=_filled(frame.pose, pose))

    def close(self) -> None:
        """Close the pictures."""
        self.pictures.close()


def _span(times: NDArray[np.int64], source: Source) -> tuple[int, int]:
    """Times of the first picture and, as far as the container tells, of the last one."""
    first, last = int(times[0]), int(times[-1])
    return first, max(last, first + round(source.length / source.fps * 1e9) if source.length and source.fps else last)


def _apart(span_ns: tuple[int, int], telemetry: Telemetry, offset_ns: int) -> Iterator[str]:
    """In words, that a log says nothing of the time of the pictures."""
    stamps = [time for column in telemetry.series.values() for time in (column.t_ns[0], column.t_ns[-1])]
    if not stamps:
        return
    early_s, late_s = (span_ns[0] - max(stamps) - offset_ns) * 1e-9, (min(stamps) + offset_ns - span_ns[1]) * 1e-9
    where = f"ends {early_s:,.0f} s before the first" if early_s > 0 else f"begins {late_s:,.0f} s after the last"
    if max(early_s, late_s) > 0:
        yield (
            f"{Path(telemetry.uri).name}: this log {where} picture and says nothing of any; "
            "is it another flight's, or the offset wrong?"
        )


def _filled(own: Pose, other: Pose) -> Pose:
    """`own`, with what it does not know from `other`. A position is taken whole, not mixed from two instruments."""
    if own.lat_deg is not None and own.lon_deg is not None:
        other = msgspec.structs.replace(other, lat_deg=own.lat_deg, lon_deg=own.lon_deg)
    known = {name: value for name, value in msgspec.structs.asdict(own).items() if value is not None}
    if "lat_deg" not in known or "lon_deg" not in known:
        known.pop("lat_deg", None)
        known.pop("lon_deg", None)
    return msgspec.structs.replace(other, **known)


def log_of(path: Path, named: str) -> tuple[Telemetry, bool] | None:
    """The log of a video or folder, and whether it counts by the video's clock; None where there is none.

    Raises SourceError where the log that the user named cannot be read; one that is only found is left out then.
    """
    if named:
        log = Path(named).expanduser()
        return read(log if log.is_absolute() or log.exists() else path.parent / log), _counts_along(log)
    if not path.is_dir():
        try:
            return read(path), True
        except SourceError:
            pass  # most videos have no telemetry inside
    found = beside(path)
    if found is None:
        return None
    try:
        return read(found), _counts_along(found)
    except SourceError:
        return None


def _counts_along(log: Path) -> bool:
    """Subtitles are timed by the video that they belong to."""
    return log.suffix.lower() == ".srt"
