"""From a frame to the network's tiles: a grid of rows x cols over the whole image, row by row."""

from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import SourceError
from models.jit import kernel, without_broken_cache

Image = NDArray[np.uint8]
Floats32 = NDArray[np.float32]


def edges(length: int, parts: int) -> NDArray[np.intp]:
    """Pixel borders of `parts` nearly equal parts of 0..length; (parts + 1,)."""
    return np.round(np.linspace(0, length, parts + 1)).astype(np.intp)


def cut(image: Image, rows: int, cols: int, size: int, out: Image) -> Image:
    """Tiles of a BGR image (H, W, 3), resized by area, into `out` uint8 (rows * cols, size, size, 3); returns it.

    Raises SourceError for an image with fewer pixels than tiles along a side.
    """
    if image.shape[0] < rows or image.shape[1] < cols:
        raise SourceError(
            f"frames of {image.shape[1]} x {image.shape[0]} pixels are too small for {cols} x {rows} tiles; "
            "choose fewer rows and cols, or another camera mode"
        )
    ys, xs = edges(image.shape[0], rows), edges(image.shape[1], cols)
    if min(np.diff(ys).min(), np.diff(xs).min()) > size:
        down, across = _shares(image.shape[0], rows, size), _shares(image.shape[1], cols, size)
        _shrink(np.ascontiguousarray(image).reshape(len(image), -1), *down, *across, out)
        return out
    for r in range(rows):
        for c in range(cols):
            tile = image[ys[r] : ys[r + 1], xs[c] : xs[c + 1]]
            cv2.resize(tile, (size, size), dst=out[r * cols + c], interpolation=cv2.INTER_AREA)
    return out


def warm_up() -> None:
    """Compile what `cut` needs, or load it from the cache."""
    without_broken_cache(lambda: cut(np.zeros((2, 2, 3), np.uint8), 1, 1, 1, np.zeros((1, 1, 1, 3), np.uint8)))


@lru_cache(maxsize=8)
def _shares(length: int, parts: int, size: int) -> tuple[NDArray[np.intp], Floats32]:
    """Along one side of the image, what the pixels of all tiles are the means of: the first pixel (parts * size,), and
    the shares of it and the ones behind it (parts * size, n), zero where they lie outside."""
    borders = edges(length, parts)
    starts = np.concatenate([np.linspace(a, b, size, endpoint=False) for a, b in pairwise(borders)])
    widths = np.repeat(np.diff(borders) / size, size)
    first = np.floor(starts + 1e-9).astype(np.intp)
    pixel = first[:, None] + np.arange(int(np.ceil(widths.max())) + 1)
    inside = np.minimum(pixel + 1, (starts + widths)[:, None]) - np.maximum(pixel, starts[:, None])
    return first, np.where(inside > 1e-9, inside / widths[:, None], 0).astype(np.float32)


@kernel(fastmath={"contract"})
def _shrink(
    image: Image, top: NDArray[np.intp], down: Floats32, left: NDArray[np.intp], across: Floats32, out: Image
) -> None:
    """Means over areas: image uint8 (H, 3 W), `top`, `down` and `left`, `across` as of `_shares`; out as of `cut`.

    Several times as fast as OpenCV where the areas are no whole pixels, and the same but for its rounding.
    """
    size = out.shape[1]
    cols = len(left) // size
    width = image.shape[1]
    line = np.zeros(width + 3 * across.shape[1], np.float32)  # the last pixels have shares of zero beyond the border
    for y in range(len(top)):
        line[:width] = 0
        for k in range(down.shape[1]):
            share = down[y, k]
            if share > 0:
                row = image[top[y] + k]
                for x in range(width):
                    line[x] += share * np.float32(row[x])
        row_of_tiles, y_in_tile = divmod(y, size)
        for c in range(cols):
            pixels = out[row_of_tiles * cols + c, y_in_tile]
            for x in range(size):
                at = 3 * left[c * size + x]
                blue = green = red = np.float32(0)
                for k in range(across.shape[1]):
                    share = across[c * size + x, k]
                    blue += share * line[at]
                    green += share * line[at + 1]
                    red += share * line[at + 2]
                    at += 3
                pixels[x, 0], pixels[x, 1], pixels[x, 2] = np.rint(blue), np.rint(green), np.rint(red)


def one(image: Image, rows: int, cols: int, tile: int, size: int) -> Image:
    """One tile of a BGR image as `cut` gives it, but for the last rounding; (size, size, 3)."""
    ys, xs = edges(image.shape[0], rows), edges(image.shape[1], cols)
    r, c = divmod(tile, cols)
    seen = cv2.resize(image[ys[r] : ys[r + 1], xs[c] : xs[c + 1]], (size, size), interpolation=cv2.INTER_AREA)
    return seen.astype(np.uint8, copy=False)


def crop(image: Image, rows: int, cols: int, tile: int, size: int) -> Image:
    """The tile with half a tile around it, marked by a thin frame, as (size, size, 3): what an operator sees."""
    ys, xs = edges(image.shape[0], rows), edges(image.shape[1], cols)
    r, c = divmod(tile, cols)
    top, bottom, left, right = int(ys[r]), int(ys[r + 1]), int(xs[c]), int(xs[c + 1])
    my, mx = (bottom - top) // 2, (right - left) // 2
    around = image[max(0, top - my) : bottom + my, max(0, left - mx) : right + mx]
    padded = cv2.copyMakeBorder(
        around,
        max(0, my - top),
        max(0, bottom + my - image.shape[0]),
        max(0, mx - left),
        max(0, right + mx - image.shape[1]),
        cv2.BORDER_CONSTANT,
        value=(40, 40, 40),
    )
    view = cv2.resize(padded, (size, size), interpolation=cv2.INTER_AREA)
    a, b = round(size * 0.25), round(size * 0.75)
    cv2.rectangle(view, (a, a), (b, b), (255, 255, 255), 1)
    return view.astype(np.uint8, copy=False)


def jpeg(image: Image, quality: int) -> bytes:
    """JPEG bytes of a BGR image."""
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
