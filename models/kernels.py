"""The kernels of inference on `models.simd`: a whole network on packed bits, from pixels to the moments of its taps.

Lanes are output channels: weights lie as lines of vectors, so that one 32-bit word of activations meets a vector of
weight words and nothing is added across a vector. Each byte of a word, 8 inputs, has a weight scale of its own; a *run*
is a range of words that has one activation scale; `models.plan` cuts them. Agreeing signs are counted, times twice the
scale, on top of minus the sum of all scales: that is eq. 7 in integers. Where a scale holds for 16 inputs or more,
words go in *pairs*: their bytes lie so that both words have the same scale at each place, and one product serves both.

All arrays are flat. Feature maps hold their channels padded to whole words; what stands in the padding is finite and
never counts. Packed ones have a border for the zero padding: its scales are zero, so its bits do not matter.
Hot indices are uint64: Numba asks of every signed one whether it is negative. `_nrt=False`: no kernel makes an array,
so nothing is gained by counting references to those that come in, which takes longer than a short sum.
"""

from typing import Any, NamedTuple

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
    broadcast_pixels,
    broadcast_words,
    dot,
    from_,
    load_bytes,
    load_floats,
    load_ints,
    load_rows,
    load_word,
    middle,
    mix,
    multiply_add,
    no_floats,
    popcount,
    prelu,
    repeat,
    scale,
    settle,
    shift,
    sign_bits,
    start,
    store_rows,
    take,
)
from models.threads import Shared, add_shared, meet

MAX_Q = 127
ROWS = BACKEND.rows
"""Output pixels that one pass over the weights serves."""
PANEL = np.uint64(20 * ROWS)
"""Output pixels that meet all weights before the next ones do: a tile of weights stays in the cache meanwhile."""
PIECE, GATE = 0, 8
"""Where in the shared integers of `network` the next piece stands, and where its gate begins."""
SHARED = 24
FLIP = np.uint8(0x80 if BACKEND.signed else 0)

WIDTH, STEPS, WORD_LENGTH = np.uint64(BACKEND.width), np.uint64(BACKEND.steps), np.uint64(WORD_BITS)
LINE = np.uint64(4 * BACKEND.width)
"""Bytes of a line of weights."""
LIMITED = BACKEND.steps != UNLIMITED
PAIRS = np.uint64(BACKEND.steps // 2)
ROW_NUMBERS = tuple(range(ROWS))
ZERO, ONE, TWO, THREE, FOUR, _, SIX = (np.uint64(i) for i in range(7))
SPAN = np.uint64(5)
NONE = np.uint64(2**63)
"""A field that does not hold."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]
Indices = NDArray[np.uint64]
Layer = Any
"""A row of `Plan.layers`."""

FIELDS = {
    # the packed input; a stem has pixels instead
    "source": "maps: where the input map begins",
    "source_wide": "its channels, padded",
    "source_pixels": "its pixels in an image",
    "channels": "its real channels",
    "beta": "channels that share an activation scale",
    "in_shift": "floats: added before binarizing",
    "inside": "indices: where each pixel goes in the packed image with its border",
    "word": "words: where the packed input begins",
    "scale": "scales: the same",
    "words": "words of a pixel",
    "groups": "scales of a pixel",
    "image": "pixels of a packed image, border included",
    "origins": "indices: the 32 channels of each word begin there",
    "masks": "masks: bits of each word that count",
    "paired": "whether words 0 and 1, 2 and 3, ... have their bytes exchanged",
    # the convolution
    "stem": "whether this is the stem",
    "windows": "indices: first pixel of the window of each output pixel",
    "pixels": "output pixels of an image",
    "spans": "indices: (., 5) first word and scale of some runs of a window, how many, pairs and single words of each",
    "span_count": "how many spans; of a stem, lines of its kernel",
    "steps": "bytes: lines of weights, tile after tile",
    "lines": "lines of a tile",
    "begins": "ints: where each sum begins, for each tile and run",
    "runs": "runs of a tile",
    "tiles": "BACKEND.width output channels each",
    "together": "tiles whose weights meet some pixels before the next pixels do: they stay in the nearest cache",
    # the epilogue
    "gain": "floats: times the sum, a vector for each tile",
    "shift": "floats: added",
    "slope": "floats: of the PReLU",
    "halves": "whether the shortcut averages 2 x 2 pixels",
    "short": "maps: where the shortcut reads, or NONE",
    "short_wide": "channels there, padded",
    "short_channels": "channels there before they repeat",
    "short_side": "pixels of a line there",
    "corners": "indices: where the 2 x 2 pixels begin",
    "repeats": "whether its map has to be written to `short` with its channels repeated",
    "near": "maps: that map",
    "near_wide": "its channels, padded",
    "near_channels": "its real channels",
    # what becomes of the output
    "out": "maps: where the output before the pool goes",
    "wide": "its channels, padded",
    "side": "pixels of its line",
    "pool": "size of the pool, 0 for none",
    "pool_stride": "pixels from one window to the next",
    "pool_padding": "pixels outside of the map on each side",
    "pool_mean": "whether it takes the mean",
    "result": "maps: where the output after the pool goes",
    "result_side": "pixels of its line",
    "tap": "first column of the features, or NONE",
    "tapped": "channels that are tapped",
    "deviation": "whether their deviation is, too",
}
"""Of a layer. Places in the arenas of the `Plan` and its `Buffers`, in items."""
LAYER = np.dtype([(name, np.uint64) for name in FIELDS])


class Plan(NamedTuple):
    """A network laid out for the kernels: a table of layers, and what they read, end to end by type."""

    layers: NDArray[np.void]
    bytes: Bytes
    ints: NDArray[np.int32]
    floats: Floats
    indices: Indices
    masks: Words


class Buffers(NamedTuple):
    """What the kernels write for up to `images` images at once; for one thread, or a team of them."""

    images: int
    pixels: Bytes
    words: Words
    scales: Floats
    maps: Floats


EVEN, ODD, BYTE = np.uint32(0x00FF00FF), np.uint32(0xFF00FF00), np.uint32(8)


@kernel(forceinline=True, _nrt=False)
def _pair(x: Index, y: Index, words: Words, at: Index) -> None:
    """Store two words as bytes 0, 4, 2, 6 of both, then 1, 5, 3, 7.

    Neighbouring bytes, which have the same weight scale, then stand at the same place of the two words.
    """
    words[at] = (x & EVEN) | ((y & EVEN) << BYTE)
    words[at + ONE] = ((x >> BYTE) & EVEN) | (y & ODD)


@kernel(forceinline=True, _nrt=False)
def _pack(plan: Plan, to: Buffers, r: Layer, image: Index, first: Index, last: Index) -> None:
    """Binarize pixels first .. last - 1 of an image of layer r's source (eq. 3, 4); the border is not written.

    One function with all loops: per pixel, a call of another one would count references of its arrays.
    """
    x, floats, inside = to.maps, plan.floats, plan.indices
    channels, beta, groups, count, in_shift = r.channels, r.beta, r.groups, r.words, r.in_shift
    origin, target = r.source + image * r.source_pixels * r.source_wide, image * r.image
    if beta % WORD_LENGTH == ZERO and groups * beta == channels and channels == count * WORD_LENGTH:
        share, each = np.float32(1) / np.float32(beta), beta // WORD_LENGTH  # no masks, `each` words in a group
        for i in range(first, last):
            p, pixel = origin + i * r.source_wide, target + inside[r.inside + i]
            to_word = r.word + pixel * count
            for g in range(groups):
                begin, end = g * each, g * each + each
                at = begin * WORD_LENGTH
                y = load_word(x, p + at) + load_word(floats, in_shift + at)
                to.words[to_word + begin] = sign_bits(y)
                parts = absolute(y)
                if r.paired and each > ONE:
                    at += WORD_LENGTH
                    z = load_word(x, p + at) + load_word(floats, in_shift + at)
                    _pair(sign_bits(y), sign_bits(z), to.words, to_word + begin)
                    parts = parts + absolute(z)
                    begin += TWO
                    for w in range(begin, end - ONE, TWO):
                        at = w * WORD_LENGTH
                        y = load_word(x, p + at) + load_word(floats, in_shift + at)
                        at += WORD_LENGTH
                        z = load_word(x, p + at) + load_word(floats, in_shift + at)
                        _pair(sign_bits(y), sign_bits(z), to.words, to_word + w)
                        parts = parts + absolute(y) + absolute(z)
                    begin += (end - begin) // TWO * TWO
                else:
                    begin += ONE
                for w in range(begin, end):
                    at = w * WORD_LENGTH
                    y = load_word(x, p + at) + load_word(floats, in_shift + at)
                    to.words[to_word + w] = sign_bits(y)
                    parts = parts + absolute(y)
                to.scales[r.scale + pixel * groups + g] = add_up(parts) * share
        return
    for i in range(first, last):
        p, pixel = origin + i * r.source_wide, target + inside[r.inside + i]
        to_word = r.word + pixel * count
        for g in range(groups):
            begin, end = g * beta, min(g * beta + beta, channels)
            total = np.float32(0)
            for c in range(begin, end):
                total += abs(x[p + c] + floats[in_shift + c])
            to.scales[r.scale + pixel * groups + g] = total / np.float32(end - begin)
        for k in range(count):
            at = plan.indices[r.origins + k]
            word = sign_bits(load_word(x, p + at) + load_word(floats, in_shift + at))
            to.words[to_word + k] = word & plan.masks[r.masks + k]
        if r.paired:
            for k in range(ZERO, count // TWO * TWO, TWO):
                _pair(to.words[to_word + k], to.words[to_word + k + ONE], to.words, to_word + k)


@kernel(forceinline=True, _nrt=False)
def _agreeing(words: Words, places: Rows, at: Index, steps: Bytes, line: Index) -> Value:
    """How many signs of the words at places + at agree with a line of weights, by byte."""
    return popcount(broadcast_words(words, places, at) ^ load_bytes(steps, line))


@kernel(forceinline=True, _nrt=False)
def _single(n: Value, words: Words, places: Rows, at: Index, steps: Bytes, line: Index) -> Value:
    """The counters after one word."""
    return dot(n, _agreeing(words, places, at, steps, line), load_bytes(steps, line + LINE))


@kernel(forceinline=True, _nrt=False)
def _double(n: Value, words: Words, places: Rows, at: Index, steps: Bytes, line: Index) -> Value:
    """The counters after a pair of words."""
    both = _agreeing(words, places, at, steps, line) + _agreeing(words, places, at + ONE, steps, line + LINE)
    return dot(n, both, load_bytes(steps, line + TWO * LINE))


@kernel(forceinline=True, _nrt=False)
def _run(
    n: Value, words: Words, places: Rows, at: Index, pairs: Index, singles: Index, steps: Bytes, line: Index
) -> Value:
    """The counters after a run, settled."""
    if LIMITED:
        for part in range(ZERO, pairs, PAIRS):
            for k in range(part, min(part + PAIRS, pairs)):
                n = _double(n, words, places, at + TWO * k, steps, line + THREE * LINE * k)
            n = settle(n)
        at, line = at + TWO * pairs, line + THREE * LINE * pairs
        for part in range(ZERO, singles, STEPS):
            for k in range(part, min(part + STEPS, singles)):
                n = _single(n, words, places, at + k, steps, line + TWO * LINE * k)
            n = settle(n)
        return n
    for k in range(pairs):
        n = _double(n, words, places, at + TWO * k, steps, line + THREE * LINE * k)
    at, line = at + TWO * pairs, line + THREE * LINE * pairs
    for k in range(singles):
        n = _single(n, words, places, at + k, steps, line + TWO * LINE * k)
    return n


@kernel(forceinline=True, _nrt=False)
def binary_sums(plan: Plan, buffers: Buffers, layer: Layer, places: Rows, groups: Rows, tile: Index) -> Value:
    """Eq. 7 for some windows, without s: floats, a row for each window, the channels of one tile.

    places, groups: where the first pixels of the windows stand in the words and scales. A single run, and runs of one
    step or two, have loops of their own: what they count needs no registers that last, or what they add to needs none.
    """
    words, scales, ints, steps = buffers.words, buffers.scales, plan.ints, plan.bytes
    line, base = layer.steps + tile * layer.lines * LINE, layer.begins + tile * layer.runs * WIDTH
    y = no_floats(places)
    if layer.runs == ONE:
        at, pairs, singles = (
            plan.indices[layer.spans],
            plan.indices[layer.spans + THREE],
            plan.indices[layer.spans + FOUR],
        )
        n = _run(start(load_ints(ints, base), places), words, places, at, pairs, singles, steps, line)
        return multiply_add(broadcast_floats(scales, groups, plan.indices[layer.spans + ONE]), as_floats(n), y)
    for number in range(layer.span_count):
        s = layer.spans + SPAN * number
        at, group = plan.indices[s], plan.indices[s + ONE]
        count, pairs, singles = plan.indices[s + TWO], plan.indices[s + THREE], plan.indices[s + FOUR]
        if pairs == ONE and singles == ZERO:
            for i in range(count):
                n = start(load_ints(ints, base + i * WIDTH), places)
                n = _double(n, words, places, at + TWO * i, steps, line + THREE * LINE * i)
                y = multiply_add(broadcast_floats(scales, groups, group + i), as_floats(settle(n)), y)
        elif pairs == TWO and singles == ZERO:
            for i in range(count):
                n = start(load_ints(ints, base + i * WIDTH), places)
                n = _double(n, words, places, at + FOUR * i, steps, line + SIX * LINE * i)
                n = _double(n, words, places, at + FOUR * i + TWO, steps, line + SIX * LINE * i + THREE * LINE)
                y = multiply_add(broadcast_floats(scales, groups, group + i), as_floats(settle(n)), y)
        elif pairs == ZERO and singles == ONE:
            for i in range(count):
                n = start(load_ints(ints, base + i * WIDTH), places)
                n = _single(n, words, places, at + i, steps, line + TWO * LINE * i)
                y = multiply_add(broadcast_floats(scales, groups, group + i), as_floats(settle(n)), y)
        else:
            length, step = TWO * pairs + singles, (THREE * pairs + TWO * singles) * LINE
            for i in range(count):
                n = start(load_ints(ints, base + i * WIDTH), places)
                n = _run(n, words, places, at + i * length, pairs, singles, steps, line + step * i)
                y = multiply_add(broadcast_floats(scales, groups, group + i), as_floats(n), y)
        line += (THREE * pairs + TWO * singles) * count * LINE
        base += count * WIDTH
    return y


@kernel(forceinline=True, _nrt=False)
def _stem_sums(plan: Plan, buffers: Buffers, layer: Layer, places: Rows, tile: Index) -> Value:
    """Sums of weights times pixels less the mean; places: where the windows begin in the padded pixels."""
    n = repeat(load_ints(plan.ints, layer.begins + tile * WIDTH), places)
    line = layer.steps + tile * layer.lines * LINE
    for s in range(layer.spans, layer.spans + layer.span_count):
        at = plan.indices[s]
        for k in range(layer.words):
            n = mix(n, broadcast_pixels(buffers.pixels, places, at + FOUR * k), load_bytes(plan.bytes, line))
            line += LINE
    return as_floats(n)


@kernel(forceinline=True, _nrt=False)
def _shortcut(plan: Plan, maps: Floats, layer: Layer, numbers: Rows, first: Index) -> Value:
    """What the shortcut adds to some output pixels, by number; first: where it reads those of pixel 0."""
    wide = layer.short_wide
    if not layer.halves:
        return load_rows(maps, scale(numbers, wide), first)
    places, below = scale(take(plan.indices, layer.corners, numbers), wide), first + layer.short_side * wide
    upper = middle(load_rows(maps, places, first), load_rows(maps, places, first + wide))
    return middle(upper, middle(load_rows(maps, places, below), load_rows(maps, places, below + wide)))


@kernel(_nrt=False)
def convolve(plan: Plan, buffers: Buffers, layer: Layer, image: Index, first: Index, last: Index) -> None:
    """Output pixels first .. last - 1 of an image: prelu(gain * sums + shift + shortcut, slope)."""
    out = layer.out + image * layer.pixels * layer.wide
    begin, short = image * layer.image, layer.short + image * layer.short_side * layer.short_side * layer.short_wide
    for group in range(ZERO, layer.tiles, layer.together):
        for p in range(first, last, np.uint64(ROWS)):
            numbers = from_(p, ROW_NUMBERS, last - ONE)
            windows = shift(take(plan.indices, layer.windows, numbers), begin)
            places, groups = scale(windows, layer.words), scale(windows, layer.groups)
            for tile in range(group, min(group + layer.together, layer.tiles)):
                column = tile * WIDTH
                if layer.stem:
                    y = _stem_sums(plan, buffers, layer, scale(windows, 3), tile)
                else:
                    y = binary_sums(plan, buffers, layer, shift(places, layer.word), shift(groups, layer.scale), tile)
                y = multiply_add(
                    y, load_floats(plan.floats, layer.gain + column), load_floats(plan.floats, layer.shift + column)
                )
                if layer.short != NONE:
                    own = column if column < layer.short_channels else column % layer.short_channels
                    y = y + _shortcut(plan, buffers.maps, layer, numbers, short + own)
                y = prelu(y, load_floats(plan.floats, layer.slope + column))
                store_rows(y, buffers.maps, scale(numbers, layer.wide), out + column)


@kernel(_nrt=False)
def _pool(buffers: Buffers, layer: Layer, image: Index, line: Index) -> None:
    """One line of a layer's pool."""
    maps, side, size, wide = buffers.maps, layer.side, layer.pool, layer.wide
    source = layer.out + image * side * side * wide
    target = layer.result + (image * layer.result_side + line) * layer.result_side * wide
    top = line * layer.pool_stride
    y0, y1 = max(top, layer.pool_padding), min(top + size, side + layer.pool_padding)
    for column in range(layer.result_side):
        left = column * layer.pool_stride
        x0, x1 = max(left, layer.pool_padding), min(left + size, side + layer.pool_padding)
        share = np.float32(1) / np.float32((y1 - y0) * (x1 - x0))
        to = target + column * wide
        for y in range(y0, y1):
            for x in range(x0, x1):
                at = source + ((y - layer.pool_padding) * side + x - layer.pool_padding) * wide
                if y == y0 and x == x0:
                    for c in range(wide):
                        maps[to + c] = maps[at + c]
                elif layer.pool_mean:
                    for c in range(wide):
                        maps[to + c] += maps[at + c]
                else:
                    for c in range(wide):
                        maps[to + c] = max(maps[to + c], maps[at + c])
        if layer.pool_mean:
            for c in range(wide):
                maps[to + c] *= share


@kernel(_nrt=False)
def _repeat(buffers: Buffers, layer: Layer, image: Index) -> None:
    """What a shortcut adds, with its channels repeated: they do not fill whole words."""
    maps, pixels = buffers.maps, layer.short_side * layer.short_side
    for p in range(image * pixels, (image + ONE) * pixels):
        for c in range(layer.short_wide):
            maps[layer.short + p * layer.short_wide + c] = maps[
                layer.near + p * layer.near_wide + c % layer.near_channels
            ]


@kernel(_nrt=False)
def _moments(buffers: Buffers, layer: Layer, image: Index, epsilon: np.float32, out: Floats) -> None:
    """Mean over the pixels of each channel, then sqrt(variance + epsilon): out (F,) from layer.tap on.

    On the way, they hold the sums.
    """
    maps, wide, channels = buffers.maps, layer.wide, layer.tapped
    pixels = layer.result_side * layer.result_side
    first = layer.result + image * pixels * wide
    mean, square = out[layer.tap : layer.tap + channels], out[layer.tap + channels : layer.tap + TWO * channels]
    mean[:] = np.float32(0)
    for p in range(first, first + pixels * wide, wide):
        for c in range(channels):
            mean[c] += maps[p + c]
    for c in range(channels):
        mean[c] /= np.float32(pixels)
    if not layer.deviation:
        return
    square[:] = np.float32(0)
    for p in range(first, first + pixels * wide, wide):
        for c in range(channels):
            square[c] += (maps[p + c] - mean[c]) ** 2
    for c in range(channels):
        square[c] = np.sqrt(square[c] / np.float32(pixels) + epsilon)


@kernel(_nrt=False)
def pack_source(plan: Plan, buffers: Buffers, number: int, images: int) -> None:
    """Binarize the source map of a layer, where no layer before it has done so."""
    r = plan.layers[number]
    for image in range(np.uint64(images)):
        _pack(plan, buffers, r, image, ZERO, r.source_pixels)


@kernel(_nrt=False)
def run_layer(plan: Plan, buffers: Buffers, number: int, images: int, gate: Shared, member: int, team: int) -> None:
    """A layer over some images, by member 0, 1, ... of a team of threads; ends when all of them are done.

    The output is packed for the next layer, where there is one, while it is in the cache.
    """
    layer, last = plan.layers[number], np.uint64(number + 1) == np.uint64(len(plan.layers))
    following = plan.layers[number if last else number + 1]
    count, own, all_ = np.uint64(images), np.uint64(member), np.uint64(team)
    if layer.repeats:
        for image in range(own, count, all_):
            _repeat(buffers, layer, image)
        meet(gate, team)
    step, parts = np.uint64(ROWS), (all_ + count - ONE) // count  # of an image, so that every thread has one
    panel = min(PANEL, (layer.pixels + parts * step - ONE) // (parts * step) * step)
    panels = (layer.pixels + panel - ONE) // panel
    for unit in range(own, count * panels, all_):
        image, first = unit // panels, unit % panels * panel
        end = min(first + panel, layer.pixels)
        convolve(plan, buffers, layer, image, first, end)
        if not layer.pool and not last:
            _pack(plan, buffers, following, image, first, end)
    meet(gate, team)
    if layer.pool:
        lines = layer.result_side
        for unit in range(own, count * lines, all_):
            image, line = unit // lines, unit % lines
            _pool(buffers, layer, image, line)
            if not last:
                _pack(plan, buffers, following, image, line * lines, line * lines + lines)
        meet(gate, team)


@kernel(_nrt=False)
def _copy(plan: Plan, buffers: Buffers, tiles: Bytes, first: Index, image: Index) -> None:
    """Tile first + image into the middle of its padded pixels."""
    stem, size = plan.layers[0], np.uint64(tiles.shape[1])
    flat, line = tiles.reshape(-1), THREE * size
    for y in range(size):
        at = (first + image) * size * line + y * line
        to = THREE * (image * stem.image + plan.indices[stem.inside + y * size])
        for i in range(line):
            buffers.pixels[to + i] = flat[at + i] ^ FLIP


@kernel(_nrt=False)
def network(
    plan: Plan,
    buffers: Buffers,
    tiles: Bytes,
    epsilon: np.float32,
    out: Floats,
    shared: Shared,
    member: int,
    team: int,
) -> None:
    """Tiles (N, S, S, 3) through a whole network: the moments of its taps, float32 (N, F).

    They go in pieces of as many images as `buffers` hold, so that what a layer writes is still in the cache when the
    next one reads it. Threads take pieces one by one, each as a team of its own, or all of a team share each piece.
    shared: int64 (SHARED,), zeros at first.
    """
    gate = shared[GATE:]
    count = len(tiles)
    first = add_shared(shared, PIECE, buffers.images) if team == 1 else 0
    while first < count:
        images = min(buffers.images, count - first)
        for image in range(np.uint64(member), np.uint64(images), np.uint64(team)):
            _copy(plan, buffers, tiles, np.uint64(first), image)
        meet(gate, team)
        for number in range(len(plan.layers)):
            run_layer(plan, buffers, number, images, gate, member, team)
            layer = plan.layers[number]
            if layer.tap != NONE:
                for image in range(np.uint64(member), np.uint64(images), np.uint64(team)):
                    _moments(buffers, layer, image, epsilon, out[np.uint64(first) + image])
        meet(gate, team)
        first = add_shared(shared, PIECE, buffers.images) if team == 1 else first + images
