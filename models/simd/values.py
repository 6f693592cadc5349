"""A small SIMD value type for Numba: blocks of vectors that add, xor and count as the formula is written.

A value is R rows of V vectors, and one of: bytes, 32-bit integers, floats, counters (see `models.simd.backend`).
Rows are the pixels that share one pass over the weights, columns the output channels. As in NumPy, a value of one row
or one column meets every row or column of the other. Each function below also works without Numba: there a value is a
NumPy array (R or 1, bytes or lanes), and that text is the meaning of the fast one, which `models.simd.lowering` emits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.simd.choice import BACKEND

Value = Any
"""A block of vectors in a kernel; a NumPy array without Numba."""
Floats = NDArray[np.float32]
Index = int | np.uint64
Rows = tuple[Any, ...]
"""Row numbers; a kernel reads from the length how many rows its values have."""

WORD_BITS = 32
"""Signs that are stored together, and the inputs of one 32-bit lane of bytes."""


def take(numbers: NDArray[np.uint64], first: Index, rows: Rows) -> Rows:
    """numbers[first + r] for each r of `rows`, the last of them again behind the end: a tuple as long as `rows`."""
    return tuple(numbers[min(int(first) + int(r), len(numbers) - 1)] for r in rows)


def shift(rows: Rows, offset: Index) -> Rows:
    """Each row number plus `offset`."""
    return tuple(r + offset for r in rows)


def scale(rows: Rows, factor: Index) -> Rows:
    """Each row number times `factor`: where the row begins in a flat array."""
    return tuple(r * factor for r in rows)


def load_bytes(array: NDArray[np.uint8], tile: Index, k: Index) -> Value:
    """One row of bytes: array[tile, k], with uint8 (T, S, V * bytes)."""
    return array[tile, k][None]


def load_ints(array: NDArray[np.int32], tile: Index, k: Index) -> Value:
    """One row of integers: array[tile, k], with int32 (T, R, V * lanes)."""
    return array[tile, k][None]


def load_floats(array: Floats, tile: Index, k: Index) -> Value:
    """One row of floats: array[tile, k], with float32 (T, S, V * lanes)."""
    return array[tile, k][None]


def broadcast_words(words: NDArray[np.uint32], rows: Rows, k: Index) -> Value:
    """One column of bytes: the 32-bit words[row, k], or words[row + k] of a flat array, repeated, for each row."""
    items = [words[r, k] if words.ndim == 2 else words[int(r) + int(k)] for r in rows]
    return np.stack([np.full(BACKEND.width, item, "<u4").view(np.uint8) for item in items])


def broadcast_floats(floats: Floats, rows: Rows, k: Index) -> Value:
    """One column of floats: floats[row, k], or floats[row + k] of a flat array, for each row."""
    items = [floats[r, k] if floats.ndim == 2 else floats[int(r) + int(k)] for r in rows]
    return np.stack([np.full(BACKEND.width, item) for item in items])


def no_floats(rows: Rows) -> Value:
    """Zeros, in BACKEND.columns columns, a row for each of `rows`."""
    return np.zeros((len(rows), BACKEND.width), np.float32)


def popcount(x: Value) -> Value:
    """One bits of each byte."""
    return np.unpackbits(x[..., None], axis=-1).sum(-1, dtype=np.uint8)


def start(total: Value, rows: Rows) -> Value:
    """Counters that stand at the integers `total` (one row), a row for each of `rows`."""
    return total.repeat(len(rows), 0)


def dot(counter: Value, counts: Value, scales: Value) -> Value:
    """The counter plus counts (bytes 0..8) times scales (bytes 0..254), four neighbours to a lane."""
    product = counts.astype(np.int32) * scales.astype(np.int32)
    return counter + product.reshape(len(product), -1, 4).sum(-1, dtype=np.int32)


def settle(counter: Value) -> Value:
    """The same counter, ready for BACKEND.steps more of `dot`."""
    return counter


def as_floats(counter: Value) -> Value:
    """What settled counters stand at, as floats."""
    return counter.astype(np.float32)


def multiply_add(x: Value, y: Value, z: Value) -> Value:
    """x * y + z, rounded once."""
    return (x.astype(np.float64) * y + z).astype(np.float32)


def prelu(x: Value, slope: Value) -> Value:
    """x where it is not negative, else x * slope."""
    return np.where(x >= 0, x, x * slope)


def absolute(x: Value) -> Value:
    """The floats without their signs."""
    return np.abs(x)


def load_rows(array: Floats, rows: Rows, first: Index) -> Value:
    """Floats array[row, first : first + V * lanes] for each row."""
    return np.stack([array[r, int(first) : int(first) + BACKEND.width] for r in rows])


def store_rows(value: Value, array: Floats, rows: Rows, first: Index) -> None:
    """Row after row of `value` -> array[row, first : first + V * lanes], for each of `rows`."""
    for r, line in zip(rows, value, strict=True):
        array[r, int(first) : int(first) + BACKEND.width] = line


def load_word(array: Floats, row: Index, first: Index) -> Value:
    """One row of the 32 floats array[row, first : first + 32], as many as a word has bits."""
    return array[row, int(first) : int(first) + 32][None]


def sign_bits(x: Value) -> int:
    """The word whose bit i says that the i-th of 32 floats is negative; -0 and NaN are not."""
    return int(np.packbits(x < 0, bitorder="little").view("<u4")[0])


def add_up(x: Value) -> Any:
    """The sum of 32 floats, halves first: the same on every machine."""
    line = x[0]
    while len(line) > 1:
        line = line[: len(line) // 2] + line[len(line) // 2 :]
    return line[0]
