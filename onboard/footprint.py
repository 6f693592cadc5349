"""Where on the ground a picture lies: the camera's footprint on flat ground, and the coordinate of each tile.

A pinhole without distortion; the ground is the plane at take-off height. Good enough to find a place again, not to
survey it.
"""

import math

import numpy as np
from numpy.typing import NDArray

from onboard.frame import Pose

FOV_DEG = 73.0
"""Horizontal field of view that is assumed where nobody says: a 24 mm lens on 35 mm film."""
FLATTEST_DEG = 5.0
"""Rays that meet the ground at a flatter angle are taken to miss it."""
METRES_PER_DEGREE = 111_195.0

Floats = NDArray[np.float64]


def ground(pose: Pose, fov_deg: float, width: int, height: int, x: Floats, y: Floats) -> Floats | None:
    """Latitude and longitude of pixels: x, y float64 (...) in pixels from the upper left corner -> (..., 2).

    NaN where a pixel's ray meets no ground. None where the pose lacks position, height, yaw or pitch; roll is 0
    where it is unknown.
    """
    lat, lon, above, yaw, pitch = pose.lat_deg, pose.lon_deg, pose.agl_m, pose.yaw_deg, pose.pitch_deg
    if lat is None or lon is None or above is None or yaw is None or pitch is None or above <= 0:
        return None
    focal = width / 2 / math.tan(math.radians(fov_deg) / 2)
    # Camera: right, down, forward. World: east, north, up.
    rays = np.stack([(x - width / 2) / focal, (y - height / 2) / focal, np.ones_like(x)], -1)
    right, down, forward = _axes(math.radians(yaw), math.radians(pitch), math.radians(pose.roll_deg or 0.0))
    world = rays @ np.stack([right, down, forward])
    world /= np.linalg.norm(world, axis=-1, keepdims=True)
    falls = -world[..., 2]
    hits = falls > math.sin(math.radians(FLATTEST_DEG))
    far = np.where(hits, above / np.where(hits, falls, 1.0), np.nan)
    north, east = world[..., 1] * far, world[..., 0] * far
    out_lat = lat + north / METRES_PER_DEGREE
    return np.stack([out_lat, lon + east / (METRES_PER_DEGREE * math.cos(math.radians(lat)))], -1)


def _axes(yaw: float, pitch: float, roll: float) -> tuple[Floats, Floats, Floats]:
    """Right, down and forward of the camera in east, north, up; pitch -90 degrees looks straight down."""
    forward = np.array([math.sin(yaw) * math.cos(pitch), math.cos(yaw) * math.cos(pitch), math.sin(pitch)])
    right = np.array([math.cos(yaw), -math.sin(yaw), 0.0])
    down = np.cross(forward, right)
    return right * math.cos(roll) + down * math.sin(roll), down * math.cos(roll) - right * math.sin(roll), forward


def tiles(pose: Pose, fov_deg: float, width: int, height: int, rows: int, cols: int) -> Floats | None:
    """Latitude and longitude of each tile's centre, (rows, cols, 2); as `ground`."""
    y, x = np.meshgrid((np.arange(rows) + 0.5) * height / rows, (np.arange(cols) + 0.5) * width / cols, indexing="ij")
    return ground(pose, fov_deg, width, height, x, y)


def outline(pose: Pose, fov_deg: float, width: int, height: int) -> Floats | None:
    """Latitude and longitude of the picture's corners, clockwise from the upper left, (4, 2); as `ground`."""
    x, y = np.array([0.0, width, width, 0.0]), np.array([0.0, 0.0, height, height])
    return ground(pose, fov_deg, width, height, x, y)
