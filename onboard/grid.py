"""From a frame to the network's tiles: a grid of rows x cols over the whole image, row by row."""

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import SourceError
from onboard import shrink
from onboard.shrink import Image


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
        shrink.tiles(image, ys, xs, out)
        return out
    for r in range(rows):
        for c in range(cols):
            tile = image[ys[r] : ys[r + 1], xs[c] : xs[c + 1]]
            cv2.resize(tile, (size, size), dst=out[r * cols + c], interpolation=cv2.INTER_AREA)
    return out


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
