"""A terrain that nobody saw before: rock, laid over the grass and fields of the southern half of a finished land.

It is drawn from a generator of its own, so that the land around it is the same with it and without.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from onboard.sim.layout import CLASSES, FIELD, HEIGHT, HEIGHT_M, PARCEL_COLS, PARCEL_ROWS, RESOLUTION_M, WIDTH, WIDTH_M
from onboard.sim.noise import fractal, smooth

NOVEL_CLASSES = (*CLASSES, "rock")
ROCK = len(CLASSES)
RADIUS_M = (13.0, 17.0)
_LIGHT, _DARK = np.array((176, 182, 188), np.float32), np.array((108, 112, 116), np.float32)
"""Blue, green, red of faces in the sun and of cracks."""


def add_rock(
    photo: NDArray[np.uint8], classes: NDArray[np.uint8], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The land with rock: orthophoto BGR (HEIGHT, WIDTH, 3) and class numbers (HEIGHT, WIDTH), as new arrays."""
    rng = np.random.default_rng((seed, ROCK))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    around = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    odd = int(rng.integers(2))  # every second parcel has rock in its middle, so that each flight meets it
    for row in range(PARCEL_ROWS // 2 + 1, PARCEL_ROWS):  # the row at the border is seen from its northern side
        for col in range(PARCEL_COLS):
            if (row + col) % 2 == odd:
                radius_m = rng.uniform(*RADIUS_M) + rng.uniform(0.5, 2.0) * np.cos(3 * around + rng.uniform(0, 6.3))
                x_m = (col + 0.5) * WIDTH_M / PARCEL_COLS + radius_m * np.cos(around)
                y_m = (row + 0.5) * HEIGHT_M / PARCEL_ROWS + radius_m * np.sin(around)
                edge = np.rint(np.stack([x_m, y_m], 1) / RESOLUTION_M).astype(np.int32)
                cv2.fillPoly(mask, [edge], 1)
    where = (mask > 0) & (classes <= FIELD)
    # Ridges of noise are cracks between blocks; their faces differ in slope and so in light.
    cracks = np.exp(-np.abs(fractal(rng, HEIGHT, WIDTH, 22, 2)) / 0.12)
    faces = np.round(smooth(rng, HEIGHT, WIDTH, 14) * 1.5) * 0.08 + 0.05 * smooth(rng, HEIGHT, WIDTH, 3)
    colour = (_LIGHT + (_DARK - _LIGHT) * cracks[where][:, None]) * (1 + faces[where])[:, None]
    photo, classes = photo.copy(), classes.copy()
    photo[where] = np.clip(colour, 0, 255).astype(np.uint8)
    classes[where] = ROCK
    return photo, classes
