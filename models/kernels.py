"""The kernels of inference in plain Numba: pack signs, binary convolution, float stem, moments over pixels.

Lanes are output channels: weights lie as (tile, segment, LANES), so that one 16-bit word of activations meets a vector
of weight words and nothing is added across a vector. A *segment* is a word of sign bits under a mask that has one
weight scale q; a *run* is a range of segments that has one activation scale; `models.plan` cuts both. Segments are
counted in uint16 (`RUN_SEGMENTS` of them cannot overflow), runs are folded into float32 with their activation scale.

Images are flat lists of pixels with a border for the zero padding. Its scales are zero, so what its bits say does not
matter. Hot indices are uint64: Numba asks of every signed one whether it is negative.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.jit import LANES, kernel, local_floats, local_words, popcount

WORD_BITS = 16
ROWS = 4
"""Output pixels that one pass over the weights serves."""
MAX_Q = 127
RUN_SEGMENTS = 65535 // (WORD_BITS * MAX_Q)

U16 = np.uint64(WORD_BITS)
ROW0, ROW1, ROW2, ROW3 = (np.uint64(i) for i in range(ROWS))
OFFSET, GROUP, FIRST, LAST = (np.uint64(i) for i in range(4))  # columns of BinaryWeights.runs

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]
Integers = NDArray[np.int32]
Index = np.uint64
Indices = NDArray[np.uint64]


class Window(NamedTuple):
    """Where a convolution reads: padded images as flat pixels.

    starts: (P,) first pixel of the window of each output pixel; image_pixels: pixels of a padded image;
    width, border: row length and border of a padded image.
    """

    starts: Indices
    image_pixels: int
    width: int
    border: int


class BinaryWeights(NamedTuple):
    """Weights of a binary convolution: T tiles of LANES output channels (padded), S segments and R runs.

    bits, q: (T, S, LANES) sign words under their masks, and block scales; word, mask: (S,) of the activation;
    runs: (R, 4) pixel offset, activation group, first and last + 1 segment; base: (T, R, LANES) sum of q * length.
    """

    bits: Words
    q: Words
    word: Indices
    mask: Words
    runs: Indices
    base: Integers


class Affine(NamedTuple):
    """What follows a convolution, per output channel: prelu(gain * sum + shift + shortcut, slope)."""

    gain: Floats
    shift: Floats
    slope: Floats


@kernel(
    forceinline=True, fastmath={"reassoc"}
)  # order of a sum of terms that are all positive: costs a rounding, no more
def _mean_abs(x: Floats, row: Index, shift: Floats, first: Index, last: Index) -> np.float32:
    total = np.float32(0)
    for c in range(first, last):
        total += abs(x[row, c] + shift[c])
    return total / np.float32(last - first)


@kernel()
def pack_activations(
    x: Floats, in_shift: Floats, beta: int, size: int, window: Window, words: Words, scales: Floats
) -> None:
    """Binarize x + in_shift (eq. 3, 4): x (N * size * size, C) -> words (padded pixels, ceil(C/16)), scales (.., G).

    beta: channels that share a scale. The borders of `words` and `scales` are not written.
    """
    channels = np.uint64(x.shape[1])
    side, border = np.uint64(size), np.uint64(window.border)
    for line in range(np.uint64(x.shape[0]) // side):
        image, y = line // side, line % side
        start = image * np.uint64(window.image_pixels) + (y + border) * np.uint64(window.width) + border
        for column in range(side):
            p, target = line * side + column, start + column
            for g in range(np.uint64(scales.shape[1])):
                first = g * np.uint64(beta)
                scales[target, g] = _mean_abs(x, p, in_shift, first, min(first + np.uint64(beta), channels))
            for w in range(np.uint64(words.shape[1])):
                first, word = w * U16, np.uint32(0)
                for c in range(first, min(first + U16, channels)):
                    word |= np.uint32(np.uint32(x[p, c] + in_shift[c] < 0) << np.uint32(c - first))
                words[target, w] = word


@kernel(forceinline=True, fastmath={"contract"})  # a product and its sum may be rounded once instead of twice
def binary_sums(
    a: Words, scales: Floats, p0: Index, p1: Index, p2: Index, p3: Index, tile: int, w: BinaryWeights, sums: Floats
) -> None:
    """Eq. 7 for the windows that start at pixels p0..p3, without s: the channels of one tile into sums (4, O).

    All running values are local arrays of LANES: they end up in vector registers.
    """
    n0, n1, n2, n3 = local_words(), local_words(), local_words(), local_words()
    y0, y1, y2, y3 = local_floats(), local_floats(), local_floats(), local_floats()
    for o in range(LANES):
        y0[o], y1[o], y2[o], y3[o] = 0, 0, 0, 0
    for r in range(np.uint64(w.runs.shape[0])):
        offset, group, first, last = w.runs[r, OFFSET], w.runs[r, GROUP], w.runs[r, FIRST], w.runs[r, LAST]
        i0, i1, i2, i3 = p0 + offset, p1 + offset, p2 + offset, p3 + offset
        for o in range(LANES):
            n0[o], n1[o], n2[o], n3[o] = 0, 0, 0, 0
        for k in range(first, last):
            c, mask = w.word[k], w.mask[k]
            a0, a1, a2, a3 = a[i0, c] & mask, a[i1, c] & mask, a[i2, c] & mask, a[i3, c] & mask
            for o in range(LANES):
                bits, q = w.bits[tile, k, o], w.q[tile, k, o]
                n0[o] += np.uint16(q * popcount(bits ^ a0))
                n1[o] += np.uint16(q * popcount(bits ^ a1))
                n2[o] += np.uint16(q * popcount(bits ^ a2))
                n3[o] += np.uint16(q * popcount(bits ^ a3))
        d0, d1, d2, d3 = scales[i0, group], scales[i1, group], scales[i2, group], scales[i3, group]
        for o in range(LANES):
            base = w.base[tile, r, o]
            y0[o] += d0 * np.float32(np.int32(base - 2 * np.int32(n0[o])))
            y1[o] += d1 * np.float32(np.int32(base - 2 * np.int32(n1[o])))
            y2[o] += d2 * np.float32(np.int32(base - 2 * np.int32(n2[o])))
            y3[o] += d3 * np.float32(np.int32(base - 2 * np.int32(n3[o])))
    start = np.uint64(tile) * np.uint64(LANES)
    for o in range(np.uint64(LANES)):
        sums[ROW0, start + o], sums[ROW1, start + o] = y0[o], y1[o]
        sums[ROW2, start + o], sums[ROW3, start + o] = y2[o], y3[o]


@kernel(forceinline=True)
def _activate(
    sums: Floats, i: Index, shortcut: Floats, source: Index, affine: Affine, out: Floats, target: Index
) -> None:
    """out[target] = prelu(gain * sums[i] + shift + shortcut[source]), its channels repeated to the length of out."""
    channels, repeat = np.uint64(out.shape[1]), np.uint64(shortcut.shape[1])
    for first in range(np.uint64(0), channels, repeat):
        for c in range(min(repeat, channels - first)):
            o = first + c
            y = sums[i, o] * affine.gain[o] + affine.shift[o] + shortcut[source, c]
            out[target, o] = y if y >= 0 else y * affine.slope[o]


@kernel()
def binary_block(
    words: Words,
    scales: Floats,
    window: Window,
    w: BinaryWeights,
    shortcut: Floats,
    affine: Affine,
    sums: Floats,
    out: Floats,
) -> None:
    """A whole block after packing: out (N * P, Cout) from packed activations and the shortcut (N * P, Cin).

    sums: work space (4, T * LANES).
    """
    per_image = window.starts.shape[0]
    for image in range(out.shape[0] // per_image):
        origin, target = np.uint64(image * window.image_pixels), image * per_image
        for p in range(0, per_image, ROWS):
            # behind the last pixel the last one is computed again: same result, no second kernel for the rest
            n1, n2, n3 = min(p + 1, per_image - 1), min(p + 2, per_image - 1), min(p + 3, per_image - 1)
            p0, p1 = origin + window.starts[p], origin + window.starts[n1]
            p2, p3 = origin + window.starts[n2], origin + window.starts[n3]
            for tile in range(np.uint64(w.bits.shape[0])):
                binary_sums(words, scales, p0, p1, p2, p3, tile, w, sums)
            for i in range(ROWS):
                row = np.uint64(target + min(p + i, per_image - 1))
                _activate(sums, np.uint64(i), shortcut, row, affine, out, row)


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
def normalise(tiles: NDArray[np.uint8], table: Floats, window: Window, out: Floats) -> None:
    """Tiles (N, S, S, 3) BGR -> padded flat pixels (.., 3) RGB by table (3, 256); the border is not written."""
    images, size = tiles.shape[0], tiles.shape[1]
    for image in range(images):
        for y in range(size):
            row = image * window.image_pixels + (y + window.border) * window.width + window.border
            for x in range(size):
                for c in range(3):
                    out[row + x, c] = table[c, tiles[image, y, x, 2 - c]]


@kernel(forceinline=True, fastmath={"contract"})
def _stem_sums(
    pixels: Floats,
    p0: Index,
    p1: Index,
    p2: Index,
    p3: Index,
    window: Window,
    size: int,
    tile: int,
    w: Floats,
    sums: Floats,
) -> None:
    y0, y1, y2, y3 = local_floats(), local_floats(), local_floats(), local_floats()
    for o in range(LANES):
        y0[o], y1[o], y2[o], y3[o] = 0, 0, 0, 0
    k = np.uint64(0)
    for y in range(np.uint64(size)):
        for x in range(np.uint64(size)):
            at = y * np.uint64(window.width) + x
            for c in range(np.uint64(3)):
                x0, x1, x2, x3 = pixels[at + p0, c], pixels[at + p1, c], pixels[at + p2, c], pixels[at + p3, c]
                for o in range(LANES):
                    weight = w[tile, k, o]
                    y0[o] += x0 * weight
                    y1[o] += x1 * weight
                    y2[o] += x2 * weight
                    y3[o] += x3 * weight
                k += np.uint64(1)
    start = np.uint64(tile) * np.uint64(LANES)
    for o in range(np.uint64(LANES)):
        sums[ROW0, start + o], sums[ROW1, start + o] = y0[o], y1[o]
        sums[ROW2, start + o], sums[ROW3, start + o] = y2[o], y3[o]


@kernel()
def stem(pixels: Floats, window: Window, size: int, w: Floats, affine: Affine, sums: Floats, out: Floats) -> None:
    """Float convolution of RGB, size x size: padded pixels (.., 3), w (T, size * size * 3, LANES) -> out (N * P, O).

    Affine and PReLU included. sums: work space (4, T * LANES).
    """
    per_image = window.starts.shape[0]
    no_shortcut = np.zeros((1, out.shape[1]), np.float32)
    for image in range(out.shape[0] // per_image):
        origin, target = np.uint64(image * window.image_pixels), image * per_image
        for p in range(0, per_image, ROWS):
            n1, n2, n3 = min(p + 1, per_image - 1), min(p + 2, per_image - 1), min(p + 3, per_image - 1)
            p0, p1 = origin + window.starts[p], origin + window.starts[n1]
            p2, p3 = origin + window.starts[n2], origin + window.starts[n3]
            for tile in range(np.uint64(w.shape[0])):
                _stem_sums(pixels, p0, p1, p2, p3, window, size, tile, w, sums)
            for i in range(ROWS):
                row = np.uint64(target + min(p + i, per_image - 1))
                _activate(sums, np.uint64(i), no_shortcut, np.uint64(0), affine, out, row)


@kernel()
def pool_moments(x: Floats, per_image: int, epsilon: float, first: int, out: Floats) -> None:
    """Mean over pixels of each channel, then sqrt(variance + epsilon): x (N * per_image, C) -> out (>= N, F).

    Columns first .. first + 2 * C - 1 of `out` are written.
    """
    channels = x.shape[1]
    mean, square = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for image in range(x.shape[0] // per_image):
        pixels = range(image * per_image, (image + 1) * per_image)
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
            out[image, first + c] = mean[c]
            out[image, first + channels + c] = np.sqrt(square[c] / np.float32(per_image) + np.float32(epsilon))
