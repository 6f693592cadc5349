"""The kernels of inference on `models.simd`: pack signs, binary convolution, float stem, moments over pixels.

Lanes are output channels: weights lie as (tile, step, width), so that one 32-bit word of activations meets a vector of
weight words and nothing is added across a vector. Each byte of a word, 8 inputs, has a weight scale of its own; a *run*
is a range of words that has one activation scale; `models.plan` cuts them. Agreeing signs are counted, times twice the
scale, on top of minus the sum of all scales: that is eq. 7 in integers.

Images are flat lists of pixels. Feature maps hold their channels padded to whole words; what stands in the padding is
finite and never counts. Packed ones have a border for the zero padding: its scales are zero, so its bits do not matter.
Hot indices are uint64: Numba asks of every signed one whether it is negative.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.jit import kernel
from models.simd import (
    BACKEND,
    WORD_BITS,
    Index,
    Rows,
    Value,
    as_floats,
    broadcast_floats,
    broadcast_words,
    dot,
    load_bytes,
    load_floats,
    load_ints,
    load_rows,
    load_word,
    multiply_add,
    no_floats,
    popcount,
    prelu,
    settle,
    shift,
    sign_bits,
    start,
    store_rows,
    take,
)

MAX_Q = 127
ROWS = BACKEND.rows
"""Output pixels that one pass over the weights serves."""
PANEL = 10 * ROWS
"""Output pixels that meet all weights before the next ones do: a tile of weights stays in the cache meanwhile."""

WIDTH, WORD, STEPS = np.uint64(BACKEND.width), np.uint64(WORD_BITS), np.uint64(BACKEND.steps)
ROW_NUMBERS = tuple(range(ROWS))
ONE, TWO = np.uint64(1), np.uint64(2)
OFFSET, GROUP, SOURCE, FIRST, LAST = (np.uint64(i) for i in range(5))  # columns of BinaryWeights.runs
GAIN, SHIFT, SLOPE = (np.uint64(i) for i in range(3))

Floats = NDArray[np.float32]
Words = NDArray[np.uint32]
Indices = NDArray[np.uint64]


class Window(NamedTuple):
    """Where a convolution reads: padded images as flat pixels.

    starts: (P,) first pixel of the window of each output pixel; numbers: (P,) 0, 1, 2, ...; image_pixels: pixels of
    a padded image; width, border: row length and border of a padded image.
    """

    starts: Indices
    numbers: Indices
    image_pixels: int
    width: int
    border: int


class Packing(NamedTuple):
    """How a pixel's floats become words: words[i] = signs of the 32 channels from source[i] on, under mask[i].

    shift: (1, padded channels), added before; channels: the real ones; beta: how many of them share a scale.
    """

    shift: Floats
    source: Indices
    mask: Words
    channels: int
    beta: int


class BinaryWeights(NamedTuple):
    """Weights of a binary convolution: T tiles of `BACKEND.width` output channels (padded), S steps and R runs.

    steps: uint8 (T, 2 * S, 4 * width), the inverted sign bits of a step, then twice the scale of each of its bytes;
    runs: (R, 5) pixel offset, activation group, first packed word, first and last + 1 step; base: int32 (T, R, width)
    minus the sum of all scales.
    """

    steps: NDArray[np.uint8]
    runs: Indices
    base: NDArray[np.int32]


@kernel(
    forceinline=True, fastmath={"reassoc"}
)  # order of a sum of terms that are all positive: costs a rounding, no more
def _mean_abs(x: Floats, row: np.uint64, in_shift: Floats, first: np.uint64, last: np.uint64) -> np.float32:
    total = np.float32(0)
    for c in range(first, last):
        total += abs(x[row, c] + in_shift[np.uint64(0), c])
    return total / np.float32(last - first)


@kernel()
def pack_activations(x: Floats, packing: Packing, size: int, window: Window, words: Words, scales: Floats) -> None:
    """Binarize x + shift (eq. 3, 4): x (N * size * size, padded C) -> words (padded pixels, W), scales (.., G).

    The borders of `words` and `scales` are not written.
    """
    channels, beta = np.uint64(packing.channels), np.uint64(packing.beta)
    side, border = np.uint64(size), np.uint64(window.border)
    for line in range(np.uint64(x.shape[0]) // side):
        image, y = line // side, line % side
        begin = image * np.uint64(window.image_pixels) + (y + border) * np.uint64(window.width) + border
        for column in range(side):
            p, target = line * side + column, begin + column
            for g in range(np.uint64(scales.shape[1])):
                first = g * beta
                scales[target, g] = _mean_abs(x, p, packing.shift, first, min(first + beta, channels))
            for i in range(np.uint64(words.shape[1])):
                c = packing.source[i]
                words[target, i] = sign_bits(load_word(x, p, c) + load_word(packing.shift, 0, c)) & packing.mask[i]


@kernel(forceinline=True)
def binary_sums(words: Words, scales: Floats, pixels: Rows, tile: Index, w: BinaryWeights) -> Value:
    """Eq. 7 for the windows that start at `pixels`, without s: floats, a row for each, the channels of one tile."""
    y = no_floats(pixels)
    for r in range(np.uint64(w.runs.shape[0])):
        here = shift(pixels, w.runs[r, OFFSET])
        n = start(load_ints(w.base, tile, r), pixels)
        source, first, last = w.runs[r, SOURCE], w.runs[r, FIRST], w.runs[r, LAST]
        for part in range(first, last, STEPS):
            for k in range(part, min(part + STEPS, last)):
                agree = broadcast_words(words, here, source + (k - first)) ^ load_bytes(w.steps, tile, TWO * k)
                n = dot(n, popcount(agree), load_bytes(w.steps, tile, TWO * k + ONE))
            n = settle(n)
        y = multiply_add(broadcast_floats(scales, here, w.runs[r, GROUP]), as_floats(n), y)
    return y


@kernel()
def binary_block(
    words: Words,
    scales: Floats,
    window: Window,
    w: BinaryWeights,
    shortcut: Floats,
    affine: Floats,
    out: Floats,
) -> None:
    """A whole block after packing: out (N * P, padded Cout) = prelu(gain * sums + shift + shortcut, slope).

    shortcut: (N * P, C), its channels repeated where it has fewer than `out`; affine: (3, T, width) gain, shift, slope.
    """
    per_image = window.starts.shape[0]
    repeat = np.uint64(shortcut.shape[1])
    for image in range(out.shape[0] // per_image):
        for panel in range(0, per_image, PANEL):
            for tile in range(np.uint64(w.steps.shape[0])):
                column = tile * WIDTH
                for p in range(panel, min(panel + PANEL, per_image), ROWS):
                    pixels = shift(take(window.starts, p, ROW_NUMBERS), image * window.image_pixels)
                    rows = shift(take(window.numbers, p, ROW_NUMBERS), image * per_image)
                    y = binary_sums(words, scales, pixels, tile, w)
                    y = multiply_add(y, load_floats(affine, GAIN, tile), load_floats(affine, SHIFT, tile))
                    y = prelu(y + load_rows(shortcut, rows, column % repeat), load_floats(affine, SLOPE, tile))
                    store_rows(y, out, rows, column)


@kernel()
def halve(x: Floats, size: int, out: Floats) -> None:
    """2x2 average pool of square images: (N * size * size, C) -> (N * (size/2)**2, C)."""
    half = size // 2
    for p in range(out.shape[0]):
        image, inside = p // (half * half), p % (half * half)
        top = image * size * size + (inside // half) * 2 * size + (inside % half) * 2
        for c in range(x.shape[1]):
            upper, lower = x[top, c] + x[top + 1, c], x[top + size, c] + x[top + size + 1, c]
            out[p, c] = (upper + lower) * np.float32(0.25)


@kernel()
def repeat_channels(x: Floats, channels: int, out: Floats) -> None:
    """out[:, c] = x[:, c % channels]: a shortcut whose channels do not fill whole words."""
    for p in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[p, c] = x[p, c % channels]


@kernel()
def normalise(tiles: NDArray[np.uint8], table: Floats, window: Window, out: Floats) -> None:
    """Tiles (N, S, S, 3) BGR -> padded flat pixels (.., 3) RGB by table (3, 256); the border is not written."""
    images, size = tiles.shape[0], tiles.shape[1]
    for image in range(images):
        for y in range(size):
            row = image * window.image_pixels + (y + window.border) * window.width + window.border
            for x in range(size):
                for c in range(3):
                    out[row + x, c] = table[c, tiles[image, y, x, 2 - c]]


@kernel()
def stem(pixels: Floats, window: Window, size: int, w: Floats, affine: Floats, out: Floats) -> None:
    """Float convolution of RGB, size x size: padded pixels (.., 3), w (T, size * size * 3, width) -> out (N * P, O).

    Affine (3, T, width) and PReLU included.
    """
    per_image = window.starts.shape[0]
    line = np.uint64(3 * size)
    for image in range(out.shape[0] // per_image):
        for p in range(0, per_image, ROWS):
            pixel = shift(take(window.starts, p, ROW_NUMBERS), image * window.image_pixels)
            rows = shift(take(window.numbers, p, ROW_NUMBERS), image * per_image)
            for tile in range(np.uint64(w.shape[0])):
                y = no_floats(pixel)
                for r in range(np.uint64(size)):
                    here = shift(pixel, r * np.uint64(window.width))
                    for k in range(line):
                        y = multiply_add(broadcast_floats(pixels, here, k), load_floats(w, tile, r * line + k), y)
                y = multiply_add(y, load_floats(affine, GAIN, tile), load_floats(affine, SHIFT, tile))
                store_rows(prelu(y, load_floats(affine, SLOPE, tile)), out, rows, tile * WIDTH)


@kernel()
def pool_moments(x: Floats, channels: int, per_image: int, epsilon: float, first: int, out: Floats) -> None:
    """Mean over pixels of each channel, then sqrt(variance + epsilon): x (N * per_image, C) -> out (>= N, F).

    Columns first .. first + 2 * channels - 1 of `out` are written; on the way they hold the sums.
    """
    for image in range(x.shape[0] // per_image):
        pixels = range(image * per_image, (image + 1) * per_image)
        mean, square = out[image, first : first + channels], out[image, first + channels : first + 2 * channels]
        mean[:] = 0
        square[:] = 0
        for p in pixels:
            for c in range(channels):
                mean[c] += x[p, c]
        for c in range(channels):
            mean[c] /= np.float32(per_image)
        for p in pixels:
            for c in range(channels):
                square[c] += (x[p, c] - mean[c]) ** 2
        for c in range(channels):
            square[c] = np.sqrt(square[c] / np.float32(per_image) + np.float32(epsilon))
