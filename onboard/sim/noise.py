"""Random fields: the raw material of terrain, clouds and sensor noise."""

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]


def smooth(rng: np.random.Generator, height: int, width: int, cell: float) -> Field:
    """Return float32 (height, width) noise of standard deviation about 1 whose bumps are about `cell` pixels wide."""
    coarse = rng.standard_normal((int(height / cell) + 4, int(width / cell) + 4), np.float32)
    # Cubic interpolation of white noise loses some variance, the factor gives it back.
    scaled = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
    y, x = (int(cell * part) for part in rng.random(2))
    return np.asarray(scaled[y : y + height, x : x + width] * 1.35, np.float32)


def fractal(rng: np.random.Generator, height: int, width: int, cell: float, octaves: int) -> Field:
    """Return noise with `octaves` sizes of bumps, each half as wide and 0.6 times as high as the one before."""
    total = np.zeros((height, width), np.float32)
    gain = power = 0.0
    for octave in range(octaves):
        gain = 0.6**octave
        total += gain * smooth(rng, height, width, max(cell / 2**octave, 1.0))
        power += gain**2
    return np.asarray(total / np.float32(np.sqrt(power)), np.float32)


def periodic(
    rng: np.random.Generator, size: int, low: float, high: float, stretch: float = 1.0, slope: float = 1.0
) -> Field:
    """Return a float32 (size, size) field of standard deviation 1 that continues over its borders.

    Its waves are `low` to `high` pixels long, along x `stretch` times longer than along y, and fall in power with
    their frequency to the power of 2 * `slope`.
    """
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None, :] * stretch
    frequency = np.hypot(fx, fy).astype(np.float32)
    band = (frequency >= 1 / high) & (frequency <= 1 / low)
    spectrum = np.where(band, np.maximum(frequency, 1e-6) ** -slope, 0)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size), np.float32)) * spectrum, s=(size, size))
    field -= field.mean()
    return np.asarray(field / field.std(), np.float32)
