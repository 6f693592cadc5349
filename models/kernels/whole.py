"""Layers one after another, with their pools and the moments of taps: a whole network, by one thread or a team."""

import numpy as np

from models.jit import kernel
from models.kernels.convolution import convolve, convolve_stem
from models.kernels.packing import pack
from models.kernels.table import (
    FLIP,
    GATE,
    NONE,
    ONE,
    PANEL,
    PIECE,
    ROWS,
    THREE,
    TWO,
    Buffers,
    Bytes,
    Floats,
    Layer,
    Plan,
)
from models.simd import Index
from models.threads import Shared, add_shared, meet


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
        if layer.stem:
            convolve_stem(plan, buffers, layer, image, first, end)
        else:
            convolve(plan, buffers, layer, image, first, end)
        if not layer.pool and not last:
            pack(plan, buffers, following, image, first, end)
    meet(gate, team)
    if layer.pool:
        lines = layer.result_side
        for unit in range(own, count * lines, all_):
            image, line = unit // lines, unit % lines
            _pool(buffers, layer, image, line)
            if not last:
                pack(plan, buffers, following, image, line * lines, line * lines + lines)
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
