"""A drifting stream of real photos: UC Merced's test photos as one strip of ground, panned over as by a drone.

Four photos of one class stand together, the groups in random order, so that tiles that are seen together are alike and
new classes come all along the way. The camera sways and turns a little; light, haze and blur drift along the flight.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.training.datasets import Dataset
from onboard.grid import edges
from onboard.truth import UNKNOWN

FRAMES = 240
WIDTH, HEIGHT = 640, 480
ROWS, COLS = 6, 8
CLASS_STEP = 2
"""Every second class: a drone is rarely asked to tell apart as many as 21."""
PHOTO_PX = 120
"""Side of a photo on the ground: one and a half tiles."""
GROUP = 2
ACROSS = 3
"""Groups side by side: a little wider than the picture."""
FILLED = 0.6
"""A tile belongs to the class that fills this part of it."""
LIGHT = ((1.0, 1.0, 1.0), (0.5, 0.58, 0.68))
"""Blue, green, red at the start and at the end."""
HAZE = (0.0, 0.35)
AIRLIGHT = (150.0, 148.0, 144.0)
BLUR_PX = (0.0, 1.6)
NOISE = (1.0, 5.0)
FIRST_LETTER = ord("A")

Image = NDArray[np.uint8]


def classes(data: Dataset) -> tuple[str, ...]:
    """The classes of the stream."""
    return data.class_names[::CLASS_STEP]


def strip(data: Dataset, seed: int) -> tuple[Image, Image]:
    """The ground as BGR (h, w, 3) and the place of each pixel's class in `classes` (h, w), from their test photos."""
    random = np.random.default_rng(seed)
    side = GROUP * PHOTO_PX
    groups: list[tuple[int, NDArray[np.intp]]] = []
    for number, name in enumerate(classes(data)):
        own = random.permutation(np.flatnonzero(data.test & (data.labels == data.class_names.index(name))))
        groups += [(number, part) for part in own[: len(own) // GROUP**2 * GROUP**2].reshape(-1, GROUP**2)]
    order = random.permutation(len(groups))
    down = len(groups) // ACROSS
    ground = np.empty((down * side, ACROSS * side, 3), np.uint8)
    truth = np.empty(ground.shape[:2], np.uint8)
    for place, group in enumerate(order[: down * ACROSS]):
        number, photos = groups[group]
        y, x = place // ACROSS * side, place % ACROSS * side
        truth[y : y + side, x : x + side] = number
        for i, photo in enumerate(photos):
            top, left = y + i // GROUP * PHOTO_PX, x + i % GROUP * PHOTO_PX
            small = cv2.resize(data.images[photo], (PHOTO_PX, PHOTO_PX), interpolation=cv2.INTER_AREA)
            ground[top : top + PHOTO_PX, left : left + PHOTO_PX] = small
    return ground, truth


def frame(ground: Image, truth: Image, index: int, seed: int) -> tuple[Image, Image]:
    """Frame `index` of FRAMES, BGR (HEIGHT, WIDTH, 3), and the class of each of its pixels."""
    part = index / (FRAMES - 1)
    sway = [np.sin(2 * np.pi * (index / wave + phase)) for wave, phase in ((31, 0.1), (23, 0.6), (41, 0.3))]
    x = ground.shape[1] / 2 + 14 * sway[0]
    y = len(ground) - HEIGHT / 2 - 20 - part * (len(ground) - HEIGHT - 40)
    turn = cv2.getRotationMatrix2D((x, y), 2.5 * sway[1], 1 + 0.03 * sway[2])
    turn[:, 2] += np.array([WIDTH / 2 - x, HEIGHT / 2 - y])
    size, border = (WIDTH, HEIGHT), cv2.BORDER_REFLECT
    image = cv2.warpAffine(ground, turn, size, flags=cv2.INTER_LINEAR, borderMode=border)
    pixels = cv2.warpAffine(truth, turn, size, flags=cv2.INTER_NEAREST, borderMode=border)
    if blur := BLUR_PX[0] + (BLUR_PX[1] - BLUR_PX[0]) * part:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    light = np.array(LIGHT[0]) * (1 - part) + np.array(LIGHT[1]) * part
    haze = HAZE[0] + (HAZE[1] - HAZE[0]) * part
    noise = np.random.default_rng((seed, index)).normal(0, NOISE[0] + (NOISE[1] - NOISE[0]) * part, image.shape)
    seen = (image * (1 - haze) + np.array(AIRLIGHT) * haze) * light + noise
    return np.clip(np.round(seen), 0, 255).astype(np.uint8), np.asarray(pixels, np.uint8)


def tiles(pixels: Image) -> NDArray[np.int16]:
    """The class of each tile (ROWS, COLS), UNKNOWN where none fills it."""
    ys, xs = edges(HEIGHT, ROWS), edges(WIDTH, COLS)
    grid = np.full((ROWS, COLS), UNKNOWN, np.int16)
    for row, col in np.ndindex(ROWS, COLS):
        counts = np.bincount(pixels[ys[row] : ys[row + 1], xs[col] : xs[col + 1]].ravel())
        if counts.max() >= FILLED * counts.sum():
            grid[row, col] = counts.argmax()
    return grid


def letters(classes: tuple[str, ...]) -> dict[str, str]:
    """Letter -> class in the file of truth: A, B, C and so on."""
    return {chr(FIRST_LETTER + number): name for number, name in enumerate(classes)}


def write(data: Dataset, folder: Path, seed: int = 0) -> Path:
    """The stream as a folder of photos; returns the file with its truth, in `letters`."""
    ground, truth = strip(data, seed)
    lines = ["frame,row,labels"]
    for index in range(FRAMES):
        image, pixels = frame(ground, truth, index, seed)
        name = f"{index:04d}.png"
        (folder / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
        for row, numbers in enumerate(tiles(pixels)):
            letters = "".join("?" if number == UNKNOWN else chr(FIRST_LETTER + number) for number in numbers)
            lines.append(f"{name},{row},{letters}")
    path = folder.with_suffix(".csv")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
