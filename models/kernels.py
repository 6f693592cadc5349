"""The kernels of inference on `models.simd`: pack signs, binary convolution, float stem, moments over pixels.

Lanes are output channels: weights lie as (tile, step, width), so that one 32-bit word of activations meets a vector of
weight words and nothing is added across a vector. Each byte of a word, 8 inputs, has a weight scale of its own; a *run*
is a range of words that has one activation scale; `models.plan` cuts them. Agreeing signs are counted, times twice the
scale, on top of minus the sum of all scales: that is eq. 7 in integers.

Images are flat lists of pixels. Feature maps hold their channels padded to whole words; what stands in the padding is
finite and never counts. Packed ones have a border for the zero padding: its scales are zero, so its bits do not matter.
Hot indices are uint64: Numba asks of every signed one whether it is negative. `_nrt=False`: no kernel makes an array,
so nothing is gained by counting references to those that come in, which takes longer than a short sum.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.jit import kernel
from models.simd import (
    BACKEND,
    UNLIMITED,
    WORD_BITS,
    Index,
    Rows,
    Value,
    absolute,
    add_up,
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
    scale,
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
PANEL = 20 * ROWS
"""Output pixels that meet all weights before the next ones do: a tile of weights stays in the cache meanwhile."""

WIDTH, STEPS, WORD_LENGTH = np.uint64(BACKEND.width), np.uint64(BACKEND.steps), np.uint64(WORD_BITS)
LIMITED = BACKEND.steps != UNLIMITED
ROW_NUMBERS = tuple(range(ROWS))
ONE, TWO = np.uint64(1), np.uint64(2)
WORD, GROUP, COUNT, LENGTH = (np.uint64(i) for i in range(4))  # columns of BinaryWeights.spans
GAIN, SHIFT, SLOPE = (np.uint64(i) for i in range(3))

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]
Indices = NDArray[np.uint64]


class Window(NamedTuple):
    """Where a convolution reads: padded images as flat pixels.

    starts: (P,) first pixel of the window of each output pixel; numbers: (P,) 0, 1, 2, ...; inside: where each pixel of
    the image without its border stands; image_pixels: pixels of a padded image; width: its row length.
    """

    starts: Indices
    numbers: Indices
    inside: Indices
    image_pixels: int
    width: int


class Packing(NamedTuple):
    """How a feature map becomes words: words[i] = signs of the 32 channels from source[i] on, under mask[i].

    shift: (1, padded channels), added before; channels: the real ones; beta: how many of them share a scale;
    inside, image_pixels: where the pixels go, as in the window of the convolution that reads them.
    """

    shift: Floats
    source: Indices
    mask: Words
    inside: Indices
    image_pixels: int
    channels: int
    beta: int


class BinaryWeights(NamedTuple):
    """Weights of a binary convolution: T tiles of `BACKEND.width` output channels (padded), S steps and R runs.

    steps: uint8 (T, 2 * S, 4 * width), the inverted sign bits of a step, then twice the scale of each of its bytes;
    spans: (., 4) runs of equal length in one tap: their first packed word and activation scale, counted from the
    window's first pixel, how many runs, and steps of each;
    base: int32 (T, R, width) minus the sum of all scales.
    """

    steps: Bytes
    spans: Indices
    base: NDArray[np.int32]
    places: Indices
    groups: Indices


@kernel(forceinline=True, _nrt=False)
def _pack(
    x: Floats, origin: Index, packing: Packing, first: Index, last: Index, target: Index, words: Words, scales: Floats
) -> None:
    """Binarize pixels first .. last - 1 of an image (eq. 3, 4) that begins at `origin` of x and `target` of words.

    One function with all loops: per pixel, a call of another one would count references of its arrays.
    """
    in_shift, source, mask, inside = packing.shift, packing.source, packing.mask, packing.inside
    channels, beta = np.uint64(packing.channels), np.uint64(packing.beta)
    groups, count = np.uint64(scales.shape[1]), np.uint64(words.shape[1])
    if beta % WORD_LENGTH == 0 and groups * beta == channels == count * WORD_LENGTH:  # no masks, `each` in a group
        share, each = np.float32(1) / np.float32(beta), beta // WORD_LENGTH
        for i in range(first, last):
            p, to = origin + i, target + inside[i]
            for g in range(groups):
                w0 = g * each
                y = load_word(x, p, w0 * WORD_LENGTH) + load_word(in_shift, 0, w0 * WORD_LENGTH)
                words[to, w0] = sign_bits(y)
                parts = absolute(y)
                for w in range(w0 + ONE, w0 + each):
                    y = load_word(x, p, w * WORD_LENGTH) + load_word(in_shift, 0, w * WORD_LENGTH)
                    words[to, w] = sign_bits(y)
                    parts = parts + absolute(y)
                scales[to, g] = add_up(parts) * share
        return
    for i in range(first, last):
        p, to = origin + i, target + inside[i]
        for g in range(groups):
            begin, end = g * beta, min(g * beta + beta, channels)
            total = np.float32(0)
            for c in range(begin, end):
                total += abs(x[p, c] + in_shift[np.uint64(0), c])
            scales[to, g] = total / np.float32(end - begin)
        for k in range(count):
            at = source[k]
            words[to, k] = sign_bits(load_word(x, p, at) + load_word(in_shift, 0, at)) & mask[k]


@kernel(_nrt=False)
def pack_activations(x: Floats, packing: Packing, words: Words, scales: Floats) -> None:
    """Binarize a feature map: x (N * P, padded C) -> words (padded pixels, W), scales (padded pixels, G).

    The borders of `words` and `scales` are not written.
    """
    per_image = np.uint64(len(packing.inside))
    for image in range(np.uint64(x.shape[0]) // per_image):
        target = image * np.uint64(packing.image_pixels)
        _pack(x, image * per_image, packing, np.uint64(0), per_image, target, words, scales)


@kernel(forceinline=True, _nrt=False)
def _step(n: Value, words: Words, places: Rows, at: Index, tile: Index, k: Index, steps: Bytes) -> Value:
    """The counters after step k, whose words stand at places + at."""
    agree = broadcast_words(words, places, at) ^ load_bytes(steps, tile, TWO * k)
    return dot(n, popcount(agree), load_bytes(steps, tile, TWO * k + ONE))


@kernel(forceinline=True, _nrt=False)
def _steps(
    n: Value, words: Words, places: Rows, at: Index, tile: Index, first: Index, last: Index, steps: Bytes
) -> Value:
    """The counters after steps first .. last - 1, whose words stand at places + at, + at + 1, ..."""
    for k in range(first, last):
        n = _step(n, words, places, at + (k - first), tile, k, steps)
    return n


@kernel(forceinline=True, _nrt=False)
def _run(
    n: Value, words: Words, places: Rows, at: Index, tile: Index, first: Index, length: Index, steps: Bytes
) -> Value:
    """The counters after a run, settled. One or two steps without a loop: their counters need no registers to stay."""
    if length == ONE:
        return settle(_step(n, words, places, at, tile, first, steps))
    if length == TWO:
        n = _step(n, words, places, at, tile, first, steps)
        return settle(_step(n, words, places, at + ONE, tile, first + ONE, steps))
    if LIMITED:
        for part in range(np.uint64(0), length, STEPS):
            end = min(part + STEPS, length)
            n = settle(_steps(n, words, places, at + part, tile, first + part, first + end, steps))
        return n
    return _steps(n, words, places, at, tile, first, first + length, steps)


@kernel(forceinline=True, _nrt=False)
def binary_sums(words: Words, scales: Floats, places: Rows, groups: Rows, tile: Index, w: BinaryWeights) -> Value:
    """Eq. 7 for some windows, without s: floats, a row for each window, the channels of one tile.

    places, groups: where the first pixels of the windows stand in the flat words and scales.
    """
    y = no_floats(places)
    run = np.uint64(0)
    step = np.uint64(0)
    for s in range(np.uint64(w.spans.shape[0])):
        at, group, count, length = w.spans[s, WORD], w.spans[s, GROUP], w.spans[s, COUNT], w.spans[s, LENGTH]
        for i in range(count):
            n = start(load_ints(w.base, tile, run + i), places)
            n = _run(n, words, places, at + i * length, tile, step + i * length, length, w.steps)
            y = multiply_add(broadcast_floats(scales, groups, group + i), as_floats(n), y)
        run += count
        step += count * length
    return y


@kernel(_nrt=False)
def binary_block(
    words: Words,
    scales: Floats,
    window: Window,
    w: BinaryWeights,
    shortcut: Floats,
    affine: Floats,
    out: Floats,
    following: Packing,
    next_words: Words,
    next_scales: Floats,
) -> None:
    """A whole block after packing: out (N * P, padded Cout) = prelu(gain * sums + shift + shortcut, slope).

    shortcut: (N * P, C), its channels repeated where it has fewer than `out`; affine: (3, T, width) gain, shift, slope.
    What was written is packed for the `following` block while it is in the cache; not so where next_words is empty.
    """
    per_image = window.starts.shape[0]
    repeat = np.uint64(shortcut.shape[1])
    flat_words, flat_scales = words.reshape(-1), scales.reshape(-1)
    for image in range(out.shape[0] // per_image):
        first_pixel = image * window.image_pixels
        first_word, first_scale = first_pixel * words.shape[1], first_pixel * scales.shape[1]
        for panel in range(0, per_image, PANEL):
            end = min(panel + PANEL, per_image)
            for tile in range(np.uint64(w.steps.shape[0])):
                column = tile * WIDTH
                short = column % repeat
                for p in range(panel, end, ROWS):
                    rows = shift(take(window.numbers, p, ROW_NUMBERS), image * per_image)
                    places = shift(take(w.places, p, ROW_NUMBERS), first_word)
                    groups = shift(take(w.groups, p, ROW_NUMBERS), first_scale)
                    y = binary_sums(flat_words, flat_scales, places, groups, tile, w)
                    y = multiply_add(y, load_floats(affine, GAIN, tile), load_floats(affine, SHIFT, tile))
                    y = prelu(y + load_rows(shortcut, rows, short), load_floats(affine, SLOPE, tile))
                    store_rows(y, out, rows, column)
            if next_words.size:
                origin, target = np.uint64(image * per_image), np.uint64(image * following.image_pixels)
                _pack(out, origin, following, np.uint64(panel), np.uint64(end), target, next_words, next_scales)


@kernel(_nrt=False)
def halve(x: Floats, size: int, out: Floats) -> None:
    """2x2 average pool of square images: (N * size * size, C) -> (N * (size/2)**2, C)."""
    side, half = np.uint64(size), np.uint64(size // 2)
    for y in range(np.uint64(out.shape[0]) // half):  # lines of all images: none begins between two
        for column in range(half):
            p, top = y * half + column, y * TWO * side + TWO * column
            for c in range(np.uint64(x.shape[1])):
                upper, lower = x[top, c] + x[top + ONE, c], x[top + side, c] + x[top + side + ONE, c]
                out[p, c] = (upper + lower) * np.float32(0.25)


@kernel(_nrt=False)
def repeat_channels(x: Floats, channels: int, out: Floats) -> None:
    """out[:, c] = x[:, c % channels]: a shortcut whose channels do not fill whole words."""
    for p in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[p, c] = x[p, c % channels]


@kernel(_nrt=False)
def normalise(tiles: Bytes, mean: Floats, std: Floats, window: Window, out: Floats) -> None:
    """Tiles (N, S, S, 3) -> padded flat pixels (.., 3), (x - mean) / std; the border is not written.

    mean, std: (3 * S,) for a line.
    """
    size, line = np.uint64(tiles.shape[1]), np.uint64(len(mean))
    flat, target = tiles.reshape(-1), out.reshape(-1)
    for y in range(np.uint64(tiles.shape[0]) * size):
        first = y // size * np.uint64(window.image_pixels) + window.inside[y % size * size]
        for i in range(line):
            target[np.uint64(3) * first + i] = (np.float32(flat[y * line + i]) - mean[i]) / std[i]


@kernel(_nrt=False)
def stem(pixels: Floats, window: Window, size: int, w: Floats, affine: Floats, out: Floats) -> None:
    """Float convolution of three colours: padded pixels (.., 3), w (T, size * size * 3, width) -> out (N * P, O).

    Affine (3, T, width) and PReLU included.
    """
    per_image = window.starts.shape[0]
    row_length = np.uint64(3 * window.width)
    line = np.uint64(3 * size)
    flat = pixels.reshape(-1)
    for image in range(out.shape[0] // per_image):
        for p in range(0, per_image, ROWS):
            places = scale(shift(take(window.starts, p, ROW_NUMBERS), image * window.image_pixels), 3)
            rows = shift(take(window.numbers, p, ROW_NUMBERS), image * per_image)
            for tile in range(np.uint64(w.shape[0])):
                y = no_floats(places)
                for r in range(np.uint64(size)):
                    for k in range(line):
                        x = broadcast_floats(flat, places, r * row_length + k)
                        y = multiply_add(x, load_floats(w, tile, r * line + k), y)
                y = multiply_add(y, load_floats(affine, GAIN, tile), load_floats(affine, SHIFT, tile))
                store_rows(prelu(y, load_floats(affine, SLOPE, tile)), out, rows, tile * WIDTH)


@kernel(_nrt=False)
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
