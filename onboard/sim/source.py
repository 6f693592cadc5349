"""`SimSource`: a simulated flight as a source of frames, with its ground truth."""

import math
import threading
import time
from collections.abc import Iterator
from functools import lru_cache

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from models.errors import SourceError
from onboard import clock
from onboard.frame import Frame, Pose, Skipped
from onboard.grid import edges
from onboard.sim.camera import GROUND_M, View, advance_m, homography, view
from onboard.sim.layout import BUILDING, CLASSES, RESOLUTION_M, lay_out
from onboard.sim.novel import NOVEL_CLASSES, add_rock
from onboard.sim.paint import paint
from onboard.sim.weather import Weather, expose
from onboard.sources.uri import Parameter, parse, split
from onboard.truth import UNKNOWN, Grid, Key, Truth

PARAMETERS = {
    "seed": Parameter(0, 0, 2**32 - 1, "the world and its weather"),
    "frames": Parameter(120, 1, 1_000_000, "length of the flight"),
    "start": Parameter(0, 0, 999_999, "number of the first frame to give"),
    "fps": Parameter(4.0, 0.1, 120.0, "frames per second"),
    "width": Parameter(640, 64, 1920, "pixels"),
    "height": Parameter(480, 64, 1920, "pixels"),
    "overlap": Parameter(0.75, 0.0, 0.99, "ground that a frame shares with the one before, as a part of it"),
    "rows": Parameter(6, 1, 64, "rows of tiles in the truth"),
    "cols": Parameter(8, 1, 64, "columns of tiles in the truth"),
    "novel": Parameter(0, 0, 1, "1: rock, a class more, lies in the second half of the flight"),
    "live": Parameter(0, 0, 1, "1: frames come by the clock, and those not taken in time are lost"),
}
EPOCH_NS = 1_780_334_400 * 10**9
"""Time of frame 0 of a flight that is not live: 2026-06-01 17:20 UTC."""
FILLED = 0.6
"""A tile belongs to the class that fills this part of it,"""
FILLED_BUILDING = 0.25
"""or to `building` from this part on."""


class World(msgspec.Struct, frozen=True):
    """One seed's land: orthophoto uint8 (h, w, 3), class numbers uint8 (h, w), weather, and how flights sway."""

    photo: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    weather: Weather
    phases: NDArray[np.float64]


@lru_cache(maxsize=1)
def world(seed: int, novel: bool = False) -> World:
    """Make the land of `seed`; takes about two seconds, the newest one is kept."""
    rng = np.random.default_rng(seed)
    layout = lay_out(rng)
    land = paint(layout, rng), layout.classes
    photo, classes = add_rock(*land, seed) if novel else land
    return World(photo, classes, Weather.make(rng), rng.random(9))


class SimSource:
    """A flight over a world made from a seed: ``sim://?seed=0&frames=120``; `PARAMETERS` lists the rest.

    A frame depends on the URI and its number alone, not on the frames that were read before.

    Raises
    ------
    SourceError
        A parameter is unknown or out of its bounds.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.skipped: list[Skipped] = []
        place, query = split(uri)
        if place:
            raise SourceError(f"{uri}: '{place}' has no meaning here; write sim://?seed=0&frames=120")
        values = parse(uri, query, PARAMETERS)
        self.seed, self.frame_count, self.start, self.width, self.height, self.rows, self.cols = (
            int(values[name]) for name in ("seed", "frames", "start", "width", "height", "rows", "cols")
        )
        if self.start >= self.frame_count:
            raise SourceError(f"{uri}: start={self.start} lies behind the last frame, {self.frame_count - 1}")
        self.fps: float | None = float(values["fps"])
        self.live = bool(values["live"])
        self.first_ns = 0 if self.live else EPOCH_NS + round(self.start * 1e9 / float(values["fps"]))
        novel = bool(values["novel"])
        self.classes = NOVEL_CLASSES if novel else CLASSES
        self.length: int | None = self.frame_count - self.start
        self.truth = Truth(self.classes, self.rows, self.cols, range(self.frame_count), self._grid)
        self._rate = float(values["fps"])
        self._advance_m = advance_m(values["overlap"], self.width, self.height)
        self._closed = threading.Event()
        self._world = world(self.seed, novel)
        self._last: tuple[int, Grid] | None = None

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield frames from `start` on, and from `start_s` seconds behind it; live ones when their time has come,
        leaving out those that are past."""
        zero_ns = clock.now_ns() - round(self.start * 1e9 / self._rate) if self.live else EPOCH_NS
        began_s = time.monotonic()
        index = self.start + math.ceil(start_s * self._rate - 1e-9)
        while index < self.frame_count and not self._closed.is_set():
            if self.live:
                due = self.start + (time.monotonic() - began_s) * self._rate
                if due < index:
                    self._closed.wait((index - due) / self._rate)
                    continue
                index = max(index, int(due))
                if index >= self.frame_count:
                    return
            yield self.render(index, zero_ns)
            index += 1

    def close(self) -> None:
        """End iterating, also one that waits for its next frame."""
        self._closed.set()

    def render(self, index: int, zero_ns: int = EPOCH_NS) -> Frame:
        """Return frame number `index`; `zero_ns` is the time of frame 0."""
        seen = self._view(index)
        to_image = homography(seen, self.width, self.height)
        size = (self.width, self.height)
        ground = cv2.warpPerspective(
            self._world.photo, to_image, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        to_metres = np.diag([RESOLUTION_M, RESOLUTION_M, 1.0]) @ np.linalg.inv(to_image)
        image = expose(
            np.asarray(ground, np.uint8),
            to_metres,
            seen,
            self._world.weather,
            index / max(self.frame_count - 1, 1),
            index / self._rate,
            np.random.default_rng((self.seed, index)),
        )
        pose = Pose(
            lat_deg=seen.lat_deg,
            lon_deg=seen.lon_deg,
            alt_m=GROUND_M + seen.agl_m,
            agl_m=seen.agl_m,
            yaw_deg=seen.yaw_deg,
            pitch_deg=seen.pitch_deg,
            roll_deg=seen.roll_deg,
        )
        return Frame(
            index=index, t_ns=zero_ns + round(index * 1e9 / self._rate), name=str(index), image=image, pose=pose
        )

    def _view(self, index: int) -> View:
        return view((index - self.frame_count / 2) * self._advance_m, self._world.phases)

    def class_map(self, index: int) -> NDArray[np.uint8]:
        """Return the class number of each pixel of frame `index`, uint8 (height, width)."""
        to_image = homography(self._view(index), self.width, self.height)
        size = (self.width, self.height)
        flags, border = cv2.INTER_NEAREST, cv2.BORDER_REFLECT
        return np.asarray(
            cv2.warpPerspective(self._world.classes, to_image, size, flags=flags, borderMode=border), np.uint8
        )

    def _grid(self, key: Key) -> Grid | None:
        """Return the truth of a frame number, None for a name and beyond the flight."""
        if not isinstance(key, int) or not 0 <= key < self.frame_count:
            return None
        last = self._last  # read once: another thread may put a new one
        if last is None or last[0] != key:
            last = self._last = (key, tile_classes(self.class_map(key), self.rows, self.cols))
        return last[1]


def tile_classes(pixels: NDArray[np.uint8], rows: int, cols: int) -> Grid:
    """Return the class number of each tile, int16 (rows, cols), `UNKNOWN` where none fills it."""
    height, width = pixels.shape
    row_of = np.repeat(np.arange(rows), np.diff(edges(height, rows)))
    col_of = np.repeat(np.arange(cols), np.diff(edges(width, cols)))
    tile = row_of[:, None] * cols + col_of
    known = len(NOVEL_CLASSES)
    counts = np.bincount((tile * known + pixels).ravel(), minlength=rows * cols * known)
    parts = counts.reshape(rows, cols, known) / counts.reshape(rows, cols, -1).sum(2, keepdims=True)
    grid = np.where(parts.max(2) >= FILLED, parts.argmax(2), UNKNOWN).astype(np.int16)
    grid[parts[..., BUILDING] >= FILLED_BUILDING] = BUILDING
    return grid
