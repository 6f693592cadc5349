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
    """numbers[first + r] for each r of `rows`."""
    return tuple(numbers[int(first) + int(r)] for r in rows)


def shift(rows: Rows, offset: Index) -> Rows:
    """Each row number plus `offset`."""
    return tuple(r + offset for r in rows)


def scale(rows: Rows, factor: Index) -> Rows:
    """Each row number times `factor`: where the row begins in a flat array."""
    return tuple(r * factor for r in rows)


def past(rows: Rows, count: Index, instead: Index) -> Rows:
    """The row numbers, but `instead` for the first `count` of them."""
    return tuple(row if i >= int(count) else instead for i, row in enumerate(rows))


def from_(first: Index, rows: Rows, step: Index) -> Rows:
    """first + r * step for each r of `rows`."""
    return tuple(int(first) + int(r) * int(step) for r in rows)


def load_bytes(array: NDArray[np.uint8], at: Index) -> Value:
    """One row of bytes: V * bytes of a flat array from `at` on."""
    return array[int(at) : int(at) + 4 * BACKEND.width][None]


def load_ints(array: NDArray[np.int32], at: Index) -> Value:
    """One row of integers: V * lanes of a flat array from `at` on."""
    return array[int(at) : int(at) + BACKEND.width][None]


def load_floats(array: Floats, at: Index) -> Value:
    """One row of floats: V * lanes of a flat array from `at` on."""
    return array[int(at) : int(at) + BACKEND.width][None]


def broadcast_words(words: NDArray[np.uint32], places: Rows, k: Index) -> Value:
    """One column of bytes: the 32-bit words[place + k], repeated, for each place."""
    items = [words[int(p) + int(k)] for p in places]
    return np.stack([np.full(BACKEND.width, item, "<u4").view(np.uint8) for item in items])


def broadcast_pixels(pixels: NDArray[np.uint8], places: Rows, k: Index) -> Value:
    """One column of bytes: the four of a flat array from place + k on, repeated, for each place."""
    return np.stack([np.tile(pixels[int(p) + int(k) : int(p) + int(k) + 4], BACKEND.width) for p in places])


def broadcast_floats(floats: Floats, places: Rows, k: Index) -> Value:
    """One column of floats: floats[place + k] for each place."""
    return np.stack([np.full(BACKEND.width, floats[int(p) + int(k)]) for p in places])


def broadcast_scales(words: NDArray[np.uint32], places: Rows, k: Index) -> Value:
    """One column of floats: those whose bits are words[place + k], for each place."""
    return np.stack([np.full(BACKEND.width, words[int(p) + int(k)].view(np.float32)) for p in places])


def float_bits(x: Any) -> Any:
    """The bits of a float, as a word."""
    return np.float32(x).view(np.uint32)


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


def dot_word(counter: Value, words: NDArray[np.uint32], places: Rows, k: Index, signs: Value, scales: Value) -> Value:
    """The counter after the words[place + k]: `dot` of how many of their bits differ from `signs`, by byte."""
    return dot(counter, popcount(broadcast_words(words, places, k) ^ signs), scales)


def dot_pair(
    counter: Value, words: NDArray[np.uint32], places: Rows, k: Index, signs: Value, more: Value, scales: Value
) -> Value:
    """The counter after the words[place + k] and [place + k + 1], which have the same scale at each place."""
    first, second = broadcast_words(words, places, k), broadcast_words(words, places, int(k) + 1)
    return dot(counter, popcount(first ^ signs) + popcount(second ^ more), scales)


def after(k: Index, value: Value) -> Index:
    """The index k, which the compiler may not use before it has the value."""
    return k


def repeat(total: Value, rows: Rows) -> Value:
    """The integers `total` (one row), a row for each of `rows`."""
    return total.repeat(len(rows), 0)


def mix(sums: Value, pixels: Value, weights: Value) -> Value:
    """The integers plus pixels (bytes 0..255, less 128 each where BACKEND.signed) times weights (bytes -127..127),
    four neighbours to a lane."""
    x = pixels.astype(np.int32) if not BACKEND.signed else pixels.view(np.int8).astype(np.int32)
    product = x * weights.view(np.int8).astype(np.int32)
    return sums + product.reshape(len(product), -1, 4).sum(-1, dtype=np.int32)


def settle(counter: Value) -> Value:
    """The same counter, ready for BACKEND.steps more of `dot`."""
    return counter


def as_floats(counter: Value) -> Value:
    """Integers, or what settled counters stand at, as floats."""
    return counter.astype(np.float32)


def multiply_add(x: Value, y: Value, z: Value) -> Value:
    """x * y + z, rounded once."""
    return (x.astype(np.float64) * y + z).astype(np.float32)


def prelu(x: Value, slope: Value) -> Value:
    """x where it is not negative, else x * slope."""
    return np.where(x >= 0, x, x * slope)


def middle(x: Value, y: Value) -> Value:
    """The mean of two floats."""
    return (x + y) * np.float32(0.5)


def absolute(x: Value) -> Value:
    """The floats without their signs."""
    return np.abs(x)


def load_rows(array: Floats, places: Rows, first: Index) -> Value:
    """Floats of a flat array from place + first on, V * lanes of them, a row for each place."""
    return np.stack([array[int(p) + int(first) : int(p) + int(first) + BACKEND.width] for p in places])


def prefetch(array: Floats, places: Rows, first: Index) -> None:
    """Have what `load_rows` would load fetched into the cache, and go on. Of a column that is not there, nothing."""


def store_rows(value: Value, array: Floats, places: Rows, first: Index) -> None:
    """Row after row of `value` -> V * lanes floats of a flat array from place + first on."""
    for p, line in zip(places, value, strict=True):
        array[int(p) + int(first) : int(p) + int(first) + BACKEND.width] = line


def load_word(array: Floats, at: Index) -> Value:
    """One row of 32 floats of a flat array, as many as a word has bits."""
    return array[int(at) : int(at) + 32][None]


def load_words(array: Floats, places: Rows, first: Index) -> Value:
    """32 floats of a flat array from place + first on, a row for each place."""
    return np.stack([array[int(p) + int(first) : int(p) + int(first) + 32] for p in places])


def no_words(rows: Rows) -> Value:
    """32 zeros, a row for each of `rows`."""
    return np.zeros((len(rows), 32), np.float32)


def sign_bits(x: Value) -> int:
    """The word whose bit i says that the i-th of 32 floats is negative; -0 and NaN are not."""
    return int(np.packbits(x < 0, bitorder="little").view("<u4")[0])


def store_signs(x: Value, words: NDArray[np.uint32], places: Rows, first: Index) -> None:
    """`sign_bits` of each row -> place + first of a flat array."""
    for p, row in zip(places, x, strict=True):
        words[int(p) + int(first)] = sign_bits(row)


def store_sums(x: Value, factor: Any, words: NDArray[np.uint32], places: Rows, first: Index) -> None:
    """The bits of the sum of the 32 floats of each row, times `factor` -> place + first of a flat array.

    Halves are added first: the same on every machine.
    """
    while x.shape[1] > 1:
        x = x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :]
    for p, row in zip(places, x, strict=True):
        words[int(p) + int(first)] = float_bits(row[0] * factor)


def evens(x: Value, y: Value) -> Value:
    """Of two words, the eights 0 and 2 of each: those of x and of y in turn."""
    x, y = (v.reshape(len(v), 4, 8) for v in (x, y))
    return np.concatenate([x[:, 0], y[:, 0], x[:, 2], y[:, 2]], axis=1)


def odds(x: Value, y: Value) -> Value:
    """Of two words, the eights 1 and 3 of each: those of x and of y in turn."""
    x, y = (v.reshape(len(v), 4, 8) for v in (x, y))
    return np.concatenate([x[:, 1], y[:, 1], x[:, 3], y[:, 3]], axis=1)
