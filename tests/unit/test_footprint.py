"""Footprints against rays traced by rotations, step by step, and against what anybody can check."""

import math

import numpy as np
import pytest

from onboard import footprint
from onboard.frame import Pose

DEGREE_M = 111_195.0


def pose(**more):
    return Pose(
        **{"lat_deg": 0.0, "lon_deg": 0.0, "agl_m": 100.0, "yaw_deg": 0.0, "pitch_deg": -90.0, "roll_deg": 0.0} | more
    )


def metres(points):
    """East and north of (0, 0)."""
    return points[..., ::-1] * DEGREE_M


def test_straight_down_the_middle_is_below_and_the_edges_are_where_the_lens_says():
    half = 100 * math.tan(math.radians(60) / 2)
    corners = metres(footprint.outline(pose(), 60, 400, 300))
    np.testing.assert_allclose(
        corners, [[-half, 0.75 * half], [half, 0.75 * half], [half, -0.75 * half], [-half, -0.75 * half]], atol=1e-6
    )
    tiles = metres(footprint.tiles(pose(), 60, 400, 300, 3, 5))
    assert tiles.shape == (3, 5, 2)
    np.testing.assert_allclose(tiles[1, 2], 0, atol=1e-9)


def test_yaw_turns_the_picture_clockwise():
    """Heading east, the upper edge of the picture lies in the east."""
    corners = metres(footprint.outline(pose(yaw_deg=90.0), 60, 400, 300))
    assert corners[0, 0] == pytest.approx(corners[1, 0])
    assert corners[0, 0] > 0
    assert corners[0, 1] > corners[1, 1]  # upper left is in the north


def traced(p, fov, width, height, x, y):
    """A pixel's ground point by rotation matrices, step by step: roll, then pitch, then yaw."""
    f = width / 2 / math.tan(math.radians(fov) / 2)
    ray = np.array([(x - width / 2) / f, 1.0, -(y - height / 2) / f])  # right, forward, up of a level camera
    roll, pitch, yaw = (math.radians(v) for v in (p.roll_deg, p.pitch_deg, p.yaw_deg))
    cr, sr = math.cos(roll), math.sin(roll)
    ray = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]]) @ ray  # right side down
    cp, sp = math.cos(pitch), math.sin(pitch)
    ray = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]) @ ray  # nose up
    cy, sy = math.cos(yaw), math.sin(yaw)
    ray = np.array([[cy, sy, 0], [-sy, cy, 0], [0, 0, 1]]) @ ray  # clockwise from north
    return ray[:2] * p.agl_m / -ray[2]


@pytest.mark.parametrize("seed", range(20))
def test_any_pose_against_rotations_by_hand(seed):
    rng = np.random.default_rng(seed)
    p = pose(
        agl_m=rng.uniform(5, 300),
        yaw_deg=rng.uniform(0, 360),
        pitch_deg=rng.uniform(-90, -60),
        roll_deg=rng.uniform(-15, 15),
    )
    x, y = rng.uniform(0, 640, 5), rng.uniform(0, 480, 5)
    found = metres(footprint.ground(p, 50, 640, 480, x, y))
    for point, u, v in zip(found, x, y, strict=True):
        np.testing.assert_allclose(point, traced(p, 50, 640, 480, u, v), rtol=1e-9, atol=1e-6)


def test_above_the_horizon_there_is_no_ground():
    corners = footprint.outline(pose(pitch_deg=-10.0), 60, 400, 300)
    assert np.isnan(corners[:2]).all()
    assert not np.isnan(corners[2:]).any()


def test_longitudes_are_longer_near_the_poles():
    there = footprint.outline(pose(lat_deg=60.0), 60, 400, 300)
    assert there[1, 1] == pytest.approx(2 * footprint.outline(pose(), 60, 400, 300)[1, 1])


@pytest.mark.parametrize("missing", ["lat_deg", "agl_m", "yaw_deg", "pitch_deg"])
def test_a_pose_that_is_not_complete_has_no_footprint(missing):
    assert footprint.outline(pose(**{missing: None}), 60, 400, 300) is None
    assert footprint.outline(pose(agl_m=-1.0), 60, 400, 300) is None
