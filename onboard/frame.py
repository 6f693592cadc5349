"""What a source yields: a frame with its time and pose, or the reason why a frame could not be read.

All times are int64 nanoseconds since the Unix epoch in UTC where the source knows it (EXIF, a log), else since the
start of the recording; they never go backwards within one source.
"""

from collections.abc import Iterator
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray


class Pose(msgspec.Struct, frozen=True, kw_only=True):
    """Where the camera was. Degrees and metres; None where the source does not know.

    lat_deg, lon_deg are WGS 84; alt_m is above mean sea level, agl_m above take-off; yaw_deg is clockwise from
    north, 0..360; pitch_deg is 0 at the horizon and -90 straight down (the camera's, not the airframe's).
    """

    lat_deg: float | None = None
    lon_deg: float | None = None
    alt_m: float | None = None
    agl_m: float | None = None
    yaw_deg: float | None = None
    pitch_deg: float | None = None
    roll_deg: float | None = None


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One camera frame: image is uint8 (height, width, 3) in BGR order and is never written to.

    encoded: the compressed file that the image was read from, which `onboard.sources.pictures.decode` turns into
    exactly this image; None where there is none.
    """

    index: int
    t_ns: int
    name: str
    image: NDArray[np.uint8]
    pose: Pose
    encoded: bytes | None = None


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A frame that could not be read, and why."""

    name: str
    reason: str


class Source(Protocol):
    """Anything that yields frames. `open_source` makes one from a URI.

    `length` is the number of frames where it is known beforehand; `fps` the nominal rate; `live` says that frames
    that are not taken in time are lost (a camera). `first_ns` is the first frame's time, 0 where frames are live.
    `skipped` grows while iterating.
    """

    uri: str
    length: int | None
    fps: float | None
    live: bool
    first_ns: int
    skipped: list[Skipped]

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield frames in order. A frame that cannot be read goes to `skipped` and its index is not used again.

        Those before `start_s` seconds behind the first one may be left out, as far as that is less work.
        """
        ...

    def close(self) -> None:
        """Release the device or file; may be called twice."""
        ...
