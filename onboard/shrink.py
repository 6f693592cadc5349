"""Smaller pictures: each pixel is the mean of the area that it covers in the large one.

The same as OpenCV's resizing by area but for a rounding here and there, in a part of its time where the areas are no
whole pixels, or where a picture becomes grey as well. Hot indices are uint64: Numba asks of every signed one whether
it is negative.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.jit import kernel, without_broken_cache

Image = NDArray[np.uint8]
Floats32 = NDArray[np.float32]
Pixels = NDArray[np.uint64]
Index = int | np.uint64
Borders = Sequence[int] | NDArray[np.intp]

BLUE, GREEN, RED = np.float32(0.114), np.float32(0.587), np.float32(0.299)
"""Of a grey pixel: ITU-R BT.601, as everywhere in OpenCV."""
ZERO, ONE, TWO, THREE = (np.uint64(i) for i in range(4))


def tiles(image: Image, ys: Borders, xs: Borders, out: Image) -> None:
    """The tiles between borders in a BGR image (H, W, 3), row by row, into `out` uint8 (tiles, S, S, 3).

    Each tile has at least S pixels along both sides.
    """
    size = out.shape[1]
    _tiles(_lines(image), *_shares(tuple(ys), size), *_shares(tuple(xs), size), out)


def grey(image: Image, width: int, height: int) -> Image:
    """A BGR image (H, W, 3) as a grey one (height, width), which is not larger along any side."""
    out = np.empty((height, width), np.uint8)
    _grey(_lines(image), *_shares((0, image.shape[0]), height), *_shares((0, image.shape[1]), width), out)
    return out


def warm_up() -> None:
    """Compile the kernels, or load them from the cache."""

    def use() -> None:
        some = np.zeros((2, 2, 3), np.uint8)
        tiles(some, (0, 2), (0, 2), np.zeros((1, 1, 1, 3), np.uint8))
        grey(some, 1, 1)

    without_broken_cache(use)


def _lines(image: Image) -> Image:
    return np.ascontiguousarray(image).reshape(len(image), -1)


@lru_cache(maxsize=8)
def _shares(borders: tuple[int, ...], size: int) -> tuple[Pixels, Floats32]:
    """Along one side of the image, what `size` pixels for each of the parts between borders are the means of: the first
    pixel (parts * size,), and the shares of it and the ones behind it (parts * size, n), zero where outside."""
    starts = np.concatenate([np.linspace(a, b, size, endpoint=False) for a, b in pairwise(borders)])
    widths = np.repeat(np.diff(borders) / size, size)
    first = np.floor(starts + 1e-9).astype(np.intp)
    count = max(1, int(np.ceil((starts + widths - first).max() - 1e-9)))
    pixel = first[:, None] + np.arange(count)
    inside = np.minimum(pixel + 1, (starts + widths)[:, None]) - np.maximum(pixel, starts[:, None])
    return first.astype(np.uint64), np.where(inside > 1e-9, inside / widths[:, None], 0).astype(np.float32)


@kernel(forceinline=True, fastmath={"contract"})
def _mean(image: Image, top: Pixels, down: Floats32, y: Index, line: Floats32) -> None:
    """Row y of the small image before it is narrowed: means over rows of the image, into line (>= 3 W,)."""
    width = image.shape[1]
    first, share = image[top[y]], down[y, ZERO]
    for x in range(width):
        line[x] = share * np.float32(first[x])
    for k in range(ONE, np.uint64(down.shape[1])):
        share = down[y, k]
        if share > 0:  # others may lie below the image
            row = image[top[y] + k]
            for x in range(width):
                line[x] += share * np.float32(row[x])


@kernel(fastmath={"contract"})
def _tiles(image: Image, top: Pixels, down: Floats32, left: Pixels, across: Floats32, out: Image) -> None:
    """`tiles` of an image (H, 3 W); the others as of `_shares`."""
    size = np.uint64(out.shape[1])
    cols = np.uint64(len(left)) // size
    line = np.zeros(image.shape[1] + 3 * across.shape[1], np.float32)  # shares of zero may lie beyond the border
    for y in range(np.uint64(len(top))):
        _mean(image, top, down, y, line)
        for c in range(cols):
            pixels = out[y // size * cols + c, y % size]
            for x in range(size):
                at = THREE * left[c * size + x]
                blue = green = red = np.float32(0)
                for k in range(np.uint64(across.shape[1])):
                    share = across[c * size + x, k]
                    blue += share * line[at]
                    green += share * line[at + ONE]
                    red += share * line[at + TWO]
                    at += THREE
                pixels[x, ZERO], pixels[x, ONE], pixels[x, TWO] = np.rint(blue), np.rint(green), np.rint(red)


@kernel(fastmath={"contract"})
def _grey(image: Image, top: Pixels, down: Floats32, left: Pixels, across: Floats32, out: Image) -> None:
    """`grey` of an image (H, 3 W); the others as of `_shares`."""
    width = image.shape[1] // 3
    line, greys = np.zeros(3 * width, np.float32), np.zeros(width + across.shape[1], np.float32)
    for y in range(np.uint64(len(top))):
        _mean(image, top, down, y, line)
        for x in range(width):
            greys[x] = BLUE * line[3 * x] + GREEN * line[3 * x + 1] + RED * line[3 * x + 2]
        pixels = out[y]
        for x in range(np.uint64(len(left))):
            grey = np.float32(0)
            for k in range(np.uint64(across.shape[1])):
                grey += across[x, k] * greys[left[x] + k]
            pixels[x] = np.rint(grey)
