"""Pools and shortcuts with their gradients; of a maximum, only its place is kept."""

import numpy as np
from numpy.typing import NDArray

from models.network import Pool

Floats = NDArray[np.float32]


def _window(pool: Pool, i: int, side: int, out: int) -> tuple[slice, slice]:
    """Of window row i: the rows of the map that it meets, and the outputs whose window has them inside."""
    offset = i - pool.padding
    first = (max(-offset, 0) + pool.stride - 1) // pool.stride
    last = min(out - 1, (side - 1 - offset) // pool.stride)
    start = first * pool.stride + offset
    return slice(start, start + (last - first) * pool.stride + 1, pool.stride), slice(first, last + 1)


def pool_forward(x: Floats, pool: Pool) -> tuple[Floats, NDArray[np.uint8] | None]:
    """(n, H, W, C) -> the pooled map, and for a maximum the number of its place in the window, uint8."""
    n, side, _, c = x.shape
    out = pool.side(side)
    best = np.full((n, out, out, c), -np.inf, np.float32)
    place = np.zeros((n, out, out, c), np.uint8)
    if pool.kind == "mean":
        best[:] = 0
    for i in range(pool.size):
        rows, ys = _window(pool, i, side, out)
        for j in range(pool.size):
            columns, xs = _window(pool, j, side, out)
            part, own = x[:, rows, columns], best[:, ys, xs]
            if pool.kind == "mean":
                own += part
                continue
            larger = part > own
            own[larger] = part[larger]
            place[:, ys, xs][larger] = i * pool.size + j
    if pool.kind == "mean":
        return best / _counts(pool, side), None
    return best, place


def pool_backward(grad: Floats, place: NDArray[np.uint8] | None, pool: Pool, side: int) -> Floats:
    """Gradient of the map before the pool, (n, side, side, C)."""
    n, out, _, c = grad.shape
    back = np.zeros((n, side, side, c), np.float32)
    share = grad / _counts(pool, side) if place is None else grad
    for i in range(pool.size):
        rows, ys = _window(pool, i, side, out)
        for j in range(pool.size):
            columns, xs = _window(pool, j, side, out)
            part = share[:, ys, xs]
            if place is not None:
                part = part * (place[:, ys, xs] == i * pool.size + j)
            back[:, rows, columns] += part
    return back


def _counts(pool: Pool, side: int) -> Floats:
    """Pixels inside of each window, (out, out, 1)."""
    starts = np.arange(pool.side(side)) * pool.stride - pool.padding
    inside = np.minimum(starts + pool.size, side) - np.maximum(starts, 0)
    counts: Floats = (inside[:, None] * inside[None]).astype(np.float32)[..., None]
    return counts


def shortcut_backward(grad: Floats, side: int, channels: int) -> Floats:
    """Gradient of what `models.network.shortcut` read, (n, side, side, channels)."""
    n, out, _, c = grad.shape
    folded = np.zeros((n, out, out, channels), np.float32)
    for first in range(0, c, channels):
        part = grad[..., first : first + channels]
        folded[..., : part.shape[-1]] += part
    if side == out:
        return folded
    quarters: Floats = np.repeat(np.repeat(folded / np.float32(4), 2, axis=1), 2, axis=2)
    return quarters
