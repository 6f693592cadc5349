"""Light, clouds, haze, motion blur and sensor noise: from the ground as it is to the frame that a camera gives.

During one flight the sun goes down: the light dims and turns warm, the air thickens, exposure times and noise grow.
"""

import math

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from onboard.sim.camera import FOCAL_PER_SIDE, View
from onboard.sim.noise import periodic

CLOUD_CELL_M = 1.0
CLOUD_SIDE = 512
WIND_M_PER_S = (4.0, 1.5)
NOISE_SIDE = 2048
COARSE = 8
"""Clouds, haze and vignetting are computed for every 8th pixel only."""
EXPOSURE_M = (0.1, 0.3)
"""Way flown while the shutter is open, at the start and at the end."""
HAZE_PER_M = (0.0015, 0.0065)
SUNLIGHT = ((1.2, 1.22, 1.22), (0.56, 0.64, 0.74))
"""Blue, green, red at the start and at the end."""
AIRLIGHT = ((190.0, 182.0, 172.0), (104.0, 112.0, 132.0))
NOISE_LEVEL = (2.2, 5.0)


class Weather(msgspec.Struct, frozen=True):
    """The random fields of one world: cloud shadow 0..1, sensor noise, and the amplitude of light's slow changes."""

    clouds: NDArray[np.float32]
    noise: NDArray[np.float32]
    phase: float

    @classmethod
    def make(cls, rng: np.random.Generator) -> "Weather":
        """Draw the fields from the state of `rng`."""
        clouds = np.clip(periodic(rng, CLOUD_SIDE, 16, 200, slope=1.8) * 1.6 - 0.9, 0, 1)
        noise = rng.standard_normal((NOISE_SIDE, NOISE_SIDE), np.float32)
        return cls(np.tile(clouds, (2, 2)), noise, float(rng.random()))


def expose(
    ground: NDArray[np.uint8],
    to_ground: NDArray[np.float64],
    seen: View,
    weather: Weather,
    progress: float,
    t_s: float,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Return the camera's frame, uint8 (height, width, 3).

    Parameters
    ----------
    ground : uint8 (height, width, 3)
        What is to be seen in the flat light of noon, BGR.
    to_ground : float64 (3, 3)
        From pixels of the image to metres east and south.
    seen : View
        The camera's place and attitude.
    weather : Weather
        The fields of this world.
    progress, t_s : float
        Part of the flight that is over, 0..1; seconds since its start.
    rng : Generator
        For this frame's noise.
    """
    height, width = ground.shape[:2]
    dusk = progress * progress * (3 - 2 * progress)
    blurred = _blur(ground, seen, width, height, _between(EXPOSURE_M, dusk))
    gain, haze = _light(to_ground, seen, weather, width, height, dusk, t_s)
    sunlight, airlight = (
        np.array(noon, np.float32) * np.float32(1 - dusk) + np.array(late, np.float32) * np.float32(dusk)
        for noon, late in (SUNLIGHT, AIRLIGHT)
    )
    sunlight *= np.float32(1 + 0.05 * math.sin(2 * math.pi * (t_s / 9 + weather.phase)))
    image = blurred.astype(np.float32)
    image *= cv2.resize(gain[..., None] * sunlight, (width, height), interpolation=cv2.INTER_LINEAR)
    image += cv2.resize(haze[..., None] * airlight, (width, height), interpolation=cv2.INTER_LINEAR)
    for channel in range(3):
        top, left = rng.integers(NOISE_SIDE - height), rng.integers(NOISE_SIDE - width)
        grain = weather.noise[top : top + height, left : left + width]
        image[..., channel] += grain * np.float32(_between(NOISE_LEVEL, dusk))
    return np.asarray(cv2.convertScaleAbs(np.maximum(image, 0, out=image)), np.uint8)


def _between(pair: tuple[float, float], part: float) -> float:
    return pair[0] + (pair[1] - pair[0]) * part


def _blur(ground: NDArray[np.uint8], seen: View, width: int, height: int, way_m: float) -> NDArray[np.uint8]:
    """Smear along the way flown, which is the image's vertical but for the crab angle."""
    length = way_m * FOCAL_PER_SIDE * max(width, height) / seen.agl_m
    reach = math.ceil(length / 2)
    if reach == 0:
        return ground
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    crab = math.radians(seen.crab_deg)
    for step in np.linspace(-length / 2, length / 2, 8 * reach):
        # Each sample is spread over its four neighbours.
        x, y = reach - step * math.sin(crab), reach + step * math.cos(crab)
        left, top = min(int(x), 2 * reach - 1), min(int(y), 2 * reach - 1)
        right, down = x - left, y - top
        kernel[top : top + 2, left : left + 2] += np.outer((1 - down, down), (1 - right, right))
    return np.asarray(cv2.filter2D(ground, -1, kernel / kernel.sum()), np.uint8)


def _light(
    to_ground: NDArray[np.float64], seen: View, weather: Weather, width: int, height: int, dusk: float, t_s: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what part of the ground's light arrives, and what part is haze; both for every `COARSE`-th pixel."""
    cols, rows = -(-width // COARSE), -(-height // COARSE)
    grow = np.diag([width / cols, height / rows, 1.0])
    shift = np.array([(t_s * speed / CLOUD_CELL_M) % CLOUD_SIDE for speed in WIND_M_PER_S])
    to_cloud = np.diag([1 / CLOUD_CELL_M, 1 / CLOUD_CELL_M, 1.0]) @ to_ground @ grow
    to_cloud = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]]) @ to_cloud
    shadow = cv2.warpPerspective(
        weather.clouds,
        to_cloud,
        (cols, rows),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    x = (np.arange(cols, dtype=np.float32) + 0.5) / cols - 0.5
    y = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / rows - 0.5
    scale = 1 / (FOCAL_PER_SIDE * max(width, height))
    off_axis = (x * (width * scale)) ** 2 + (y * (height * scale)) ** 2
    # Rays far from the axis go a longer way through the air, and lenses pass less of them.
    clear = np.exp(-_between(HAZE_PER_M, dusk) * seen.agl_m * np.sqrt(1 + off_axis))
    vignette = 1 / (1 + 0.35 * off_axis)
    gain = (1 - (0.5 - 0.25 * dusk) * shadow) * clear * vignette
    return gain.astype(np.float32), ((1 - clear) * vignette).astype(np.float32)
