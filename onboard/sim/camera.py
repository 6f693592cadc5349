"""The simulated aircraft: where it is at each frame, and what its camera sees of the ground.

It flies six lanes up and down over the whole world, half of the flight on either side of the border between the two
regions. Frame numbers alone decide the place, so that any frame can be rendered without the ones before. World
coordinates are metres east and south of the north-west corner, and down.
"""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from onboard.sim.layout import HEIGHT_M, RESOLUTION_M, WIDTH_M

AGL_M = 32.0
FOCAL_PER_SIDE = 0.75
"""Focal length over the longer side of the image: 67 degrees of view."""
LANES = 6
TURN_RADIUS_M = 22.0
FIRST_LANE_M = HEIGHT_M / 2 - (LANES - 1) * TURN_RADIUS_M
LANE_START_M, LANE_END_M = 59.0, WIDTH_M - 59.0
LANE_M = LANE_END_M - LANE_START_M
TURN_M = math.pi * TURN_RADIUS_M
PATH_M = LANES * LANE_M + (LANES - 1) * TURN_M
ORIGIN_LAT_DEG, ORIGIN_LON_DEG, GROUND_M = 47.3712, 8.7425, 468.0
METRES_PER_DEGREE = 111_320.0

Matrix = NDArray[np.float64]


class View(msgspec.Struct, frozen=True):
    """Place and attitude of the camera: metres, degrees; `crab_deg` is from the way over ground to the image's top.

    `roll_deg` turns about the way ahead, right side down; `pitch_deg` is -90 straight down.
    """

    east_m: float
    south_m: float
    agl_m: float
    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    crab_deg: float

    @property
    def lat_deg(self) -> float:
        """WGS 84 latitude."""
        return ORIGIN_LAT_DEG - self.south_m / METRES_PER_DEGREE

    @property
    def lon_deg(self) -> float:
        """WGS 84 longitude."""
        return ORIGIN_LON_DEG + self.east_m / (METRES_PER_DEGREE * math.cos(math.radians(ORIGIN_LAT_DEG)))


def advance_m(overlap: float, width: int, height: int) -> float:
    """Return the way from one frame to the next at which they share `overlap` of the ground at `AGL_M`."""
    return (1 - overlap) * AGL_M * height / (FOCAL_PER_SIDE * max(width, height))


def view(along_m: float, phases: NDArray[np.float64]) -> View:
    """Return the view at `along_m` metres of flight past the border (negative before it).

    `phases` are nine numbers in 0..1 that make one flight sway differently from another.
    """
    east_m, south_m, course_deg = _place(along_m)
    sway = [math.sin(2 * math.pi * (along_m / wave_m + phase)) for wave_m, phase in zip(_WAVES_M, phases, strict=True)]
    crab_deg = 4 * sway[6] + 2 * sway[7]
    return View(
        east_m=east_m + 1.5 * sway[8],
        south_m=south_m,
        agl_m=AGL_M * (1 + 0.1 * sway[0] + 0.03 * sway[1]),
        yaw_deg=(course_deg + crab_deg) % 360.0,
        pitch_deg=-90.0 + 2.2 * sway[2] + 1.0 * sway[3],
        roll_deg=2.5 * sway[4] + 1.2 * sway[5],
        crab_deg=crab_deg,
    )


_WAVES_M = (610.0, 145.0, 97.0, 41.0, 83.0, 37.0, 330.0, 120.0, 210.0)


def _place(along_m: float) -> tuple[float, float, float]:
    """Return metres east, metres south and course in degrees at a distance along the lanes from their middle."""
    half = PATH_M / 2
    beyond, turned = abs(along_m), False
    if beyond > half:
        # A flight longer than the lanes goes back and forth on its side of the border, not closer to it than a lane.
        span = half - LANE_M
        laps, rest = divmod(beyond - half, span)
        turned = int(laps) % 2 == 0
        beyond = half - rest if turned else half - span + rest
    sign = math.copysign(1.0, along_m)
    lane, offset = divmod(min(max(half + sign * beyond, 0.0), PATH_M - 1e-6), LANE_M + TURN_M)
    south = FIRST_LANE_M + 2 * TURN_RADIUS_M * lane
    eastward = int(lane) % 2 == 0
    if offset <= LANE_M:
        east, course = LANE_START_M + offset, 90.0
    else:
        angle = (offset - LANE_M) / TURN_RADIUS_M
        east = LANE_END_M + TURN_RADIUS_M * math.sin(angle)
        south += TURN_RADIUS_M * (1 - math.cos(angle))
        course = 90.0 + math.degrees(angle)
    if not eastward:
        east, course = WIDTH_M - east, -course
    return east, south, course + 180.0 if turned else course


def homography(seen: View, width: int, height: int) -> Matrix:
    """Return the matrix (3, 3) from pixels of the orthophoto to pixels of an image of `width` by `height`."""
    yaw, pitch, roll = (math.radians(angle) for angle in (seen.yaw_deg, seen.pitch_deg + 90, seen.roll_deg))
    focal = FOCAL_PER_SIDE * max(width, height)
    # Rows of each rotation: the camera's right, image-down and forward axes; at rest right is east, down is south.
    turn = np.array([[math.cos(yaw), math.sin(yaw), 0], [-math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
    bank = np.array([[math.cos(roll), 0, math.sin(roll)], [0, 1, 0], [-math.sin(roll), 0, math.cos(roll)]])
    lens = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    to_camera = np.array([[1, 0, -seen.east_m], [0, 1, -seen.south_m], [0, 0, seen.agl_m]])
    to_metres = np.array([[RESOLUTION_M, 0, RESOLUTION_M / 2], [0, RESOLUTION_M, RESOLUTION_M / 2], [0, 0, 1]])
    return np.asarray(lens @ tilt @ bank @ turn @ to_camera @ to_metres)
