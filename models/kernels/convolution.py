"""Convolutions with what follows them: affine, shortcut, PReLU. A row of vectors for each of ROWS output pixels."""

from models.jit import kernel
from models.kernels.sums import binary_sums
from models.kernels.table import (
    ANY_RUNS,
    LINE,
    NONE,
    ONE,
    ONE_RUN,
    PAIR_RUNS,
    ROW_NUMBERS,
    STEP,
    THREE,
    TWO_PAIR_RUNS,
    WIDTH,
    WORD_RUNS,
    ZERO,
    Buffers,
    Layer,
    Plan,
)
from models.simd import (
    Index,
    Rows,
    Value,
    as_floats,
    broadcast_pixels,
    from_,
    load_bytes,
    load_floats,
    load_ints,
    load_rows,
    middle,
    mix,
    multiply_add,
    past,
    prefetch,
    prelu,
    repeat,
    shift,
    store_rows,
    take,
)


@kernel(forceinline=True, _nrt=False)
def _stem_sums(plan: Plan, buffers: Buffers, layer: Layer, places: Rows, tile: Index) -> Value:
    """Sums of weights times pixels less the mean; places: where the windows begin in the padded pixels."""
    n = repeat(load_ints(plan.ints, layer.begins + tile * WIDTH), places)
    spans, lines = layer.spans, layer.lines
    line = layer.steps + tile * lines * LINE
    for s in range(spans, spans + lines):
        n = mix(n, broadcast_pixels(buffers.pixels, places, plan.indices[s]), load_bytes(plan.bytes, line))
        line += LINE
    return as_floats(n)


@kernel(forceinline=True, _nrt=False)
def _convolve(plan: Plan, buffers: Buffers, layer: Layer, image: Index, first: Index, last: Index, kind: Index) -> None:
    """Output pixels first .. last - 1 of an image: prelu(gain * sums + shift + shortcut, slope).

    The last rows of pixels may overlap those before, which are not written again: a shortcut may have its input there.
    Where there are fewer pixels than ROWS, each has all rows for itself.
    """
    floats, maps, indices = plan.floats, buffers.maps, plan.indices
    tiles, together, lines, wide = layer.tiles, layer.together, layer.lines * LINE, layer.wide
    gain, offset, slope = layer.gain, layer.shift, layer.slope
    runs, table = layer.runs, layer.spans
    steps, begins, base_step = layer.steps, layer.begins, layer.runs * WIDTH
    halves, short_channels, short_wide = layer.halves, layer.short_channels, layer.short_wide
    has_short, below = layer.short != NONE, layer.short_side * short_wide
    short = layer.short + image * layer.short_side * below
    windows, corners, begin = layer.windows, layer.corners, layer.packed + image * layer.image
    out, spare = layer.out + image * layer.pixels * wide, layer.spare
    apart = ONE if last - first >= STEP else ZERO
    for group in range(ZERO, tiles, together):
        stop = min(group + together, tiles)
        for i in range(first, last, STEP if apart else ONE):
            p = last - STEP if apart and i + STEP > last else i
            places = shift(take(indices, windows + p, from_(ZERO, ROW_NUMBERS, apart)), begin)
            outs = past(from_(out + p * wide, ROW_NUMBERS, apart * wide), i - p, spare)
            near = from_(short + p * short_wide, ROW_NUMBERS, apart * short_wide)
            if halves:
                near = shift(take(indices, corners + p, from_(ZERO, ROW_NUMBERS, apart)), short)
            line, base, own = steps + group * lines, begins + group * base_step, group * WIDTH
            while own >= short_channels and has_short:
                own -= short_channels
            for tile in range(group, stop):
                column = tile * WIDTH
                if has_short:
                    prefetch(maps, near, own)
                y = binary_sums(plan, buffers.words, kind, runs, table, places, line, base)
                y = multiply_add(y, load_floats(floats, gain + column), load_floats(floats, offset + column))
                if has_short:
                    if halves:
                        upper = middle(load_rows(maps, near, own), load_rows(maps, near, own + short_wide))
                        at = own + below
                        y = y + middle(upper, middle(load_rows(maps, near, at), load_rows(maps, near, at + short_wide)))
                    else:
                        y = y + load_rows(maps, near, own)
                y = prelu(y, load_floats(floats, slope + column))
                store_rows(y, maps, outs, column)
                line += lines
                base += base_step
                own += WIDTH
                if own == short_channels:
                    own = ZERO


@kernel(_nrt=False)
def _one_run(plan: Plan, buffers: Buffers, layer: Layer, image: Index, first: Index, last: Index) -> None:
    _convolve(plan, buffers, layer, image, first, last, ONE_RUN)


@kernel(_nrt=False)
def _word_runs(plan: Plan, buffers: Buffers, layer: Layer, image: Index, first: Index, last: Index) -> None:
    _convolve(plan, buffers, layer, image, first, last, WORD_RUNS)


@kernel(_nrt=False)
def _pair_runs(plan: Plan, buffers: Buffers, layer: Layer, image: Index, first: Index, last: Index) -> None:
    _convolve(plan, buffers, layer, image, first, last, PAIR_RUNS)


@kernel(_nrt=False)
def _two_pair_runs(plan: Plan, buffers: Buffers, layer: Layer, image: Index, first: Index, last: Index) -> None:
    _convolve(plan, buffers, layer, image, first, last, TWO_PAIR_RUNS)


@kernel(_nrt=False)
def _any_runs(plan: Plan, buffers: Buffers, layer: Layer, image: Index, first: Index, last: Index) -> None:
    _convolve(plan, buffers, layer, image, first, last, ANY_RUNS)


@kernel(_nrt=False)
def convolve(plan: Plan, buffers: Buffers, layer: Layer, image: Index, first: Index, last: Index) -> None:
    """`_convolve` by a kernel made for the layer's kind of runs."""
    if layer.kind == ONE_RUN:
        _one_run(plan, buffers, layer, image, first, last)
    elif layer.kind == WORD_RUNS:
        _word_runs(plan, buffers, layer, image, first, last)
    elif layer.kind == PAIR_RUNS:
        _pair_runs(plan, buffers, layer, image, first, last)
    elif layer.kind == TWO_PAIR_RUNS:
        _two_pair_runs(plan, buffers, layer, image, first, last)
    else:
        _any_runs(plan, buffers, layer, image, first, last)


@kernel(_nrt=False)
def convolve_stem(plan: Plan, buffers: Buffers, layer: Layer, image: Index, first: Index, last: Index) -> None:
    """Output pixels first .. last - 1 of an image: prelu(gain * sums + shift, slope)."""
    floats, maps, indices = plan.floats, buffers.maps, plan.indices
    tiles, wide, windows, gain, offset, slope = (
        layer.tiles,
        layer.wide,
        layer.windows,
        layer.gain,
        layer.shift,
        layer.slope,
    )
    out, begin = layer.out + image * layer.pixels * wide, THREE * image * layer.image
    apart = ONE if last - first >= STEP else ZERO
    for i in range(first, last, STEP if apart else ONE):
        p = last - STEP if apart and i + STEP > last else i
        places = shift(take(indices, windows + p, from_(ZERO, ROW_NUMBERS, apart)), begin)
        outs = from_(out + p * wide, ROW_NUMBERS, apart * wide)
        for tile in range(tiles):
            column = tile * WIDTH
            y = _stem_sums(plan, buffers, layer, places, tile)
            y = multiply_add(y, load_floats(floats, gain + column), load_floats(floats, offset + column))
            store_rows(prelu(y, load_floats(floats, slope + column)), maps, outs, column)
