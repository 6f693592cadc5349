"""From a block's tensors to what the kernels read: words cut into segments and runs, windows, affines.

A segment ends where a 16-bit word, a weight block or an activation group ends, or a kernel tap; so any beta_w and
beta_a and any number of channels are one case, and multiples of 16 have no mask to apply.
"""

from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.bits import unpack_signs
from models.jit import LANES
from models.kernels import MAX_Q, RUN_SEGMENTS, WORD_BITS, Affine, BinaryWeights, Window

Number = TypeVar("Number", bound=np.generic)


class Segment(NamedTuple):
    """Entries first .. first + length - 1 of K, in one word, weight block, activation group and tap."""

    tap: int
    channel: int
    length: int
    group: int
    block: int


def window(size: int, kernel: int, stride: int) -> Window:
    """The windows of a kernel x kernel convolution with padding kernel // 2 over a square image of `size` pixels."""
    border = kernel // 2
    width = size + 2 * border
    corners = np.arange(0, width - kernel + 1, stride)
    starts = (corners[:, None] * width + corners[None]).reshape(-1).astype(np.uint64)
    return Window(starts, width * width, width, border)


def affine(gain: NDArray[np.float32], shift: NDArray[np.float32], slope: NDArray[np.float32]) -> Affine:
    """The affine in arrays of its own: the kernels are compiled for writeable ones."""
    return Affine(*(np.array(x, np.float32) for x in (gain, shift, slope)))


def tiles(rows: NDArray[Number]) -> NDArray[Number]:
    """(O, S) -> contiguous (T, S, LANES), the last tile filled up with zeros."""
    count = -(-len(rows) // LANES)
    padded = np.pad(rows, ((0, count * LANES - len(rows)), (0, 0)))
    return np.ascontiguousarray(padded.reshape(count, LANES, -1).transpose(0, 2, 1))


def segments(taps: int, c_in: int, beta_w: int, beta_a: int) -> list[Segment]:
    """K = taps * c_in entries, cut; beta_w and beta_a are lengths, not 0."""
    out = []
    for tap in range(taps):
        c = 0
        while c < c_in:
            entry = tap * c_in + c
            ends = (c_in, (c // WORD_BITS + 1) * WORD_BITS, (c // beta_a + 1) * beta_a, c + beta_w - entry % beta_w)
            out.append(Segment(tap, c, min(ends) - c, c // beta_a, entry // beta_w))
            c = min(ends)
    return out


def binary_weights(
    bits: NDArray[np.uint8], q: NDArray[np.uint8], c_in: int, kernel: int, beta_w: int, beta_a: int, width: int
) -> BinaryWeights:
    """Arrange bits (O, ceil(K/8)) and q (O, ceil(K/beta_w)) for the kernels; 0 for a beta means all.

    width: pixels in a row of the padded image. Raises ValueError where q exceeds 127 (the counters would overflow).
    """
    if q.size and q.max() > MAX_Q:
        raise ValueError(f"block scales go up to {MAX_Q}, not {q.max()}")
    taps, rows = kernel * kernel, bits.shape[0]
    cut = segments(taps, c_in, beta_w or taps * c_in, beta_a or c_in)

    negative = unpack_signs(bits, taps * c_in).reshape(rows, taps, c_in) < 0
    negative = np.pad(negative, ((0, 0), (0, 0), (0, -c_in % WORD_BITS)))
    words = np.packbits(negative, axis=-1, bitorder="little").view("<u2").astype(np.uint16)

    runs: list[tuple[int, int, int, int]] = []
    base: list[NDArray[np.int32]] = []
    first = 0
    for (tap, group), together in groupby(cut, key=lambda s: (s.tap, s.group)):
        run = list(together)
        for members in (run[i : i + RUN_SEGMENTS] for i in range(0, len(run), RUN_SEGMENTS)):
            base.append(sum((q[:, s.block].astype(np.int32) * s.length for s in members), np.zeros(rows, np.int32)))
            runs.append((tap // kernel * width + tap % kernel, group, first, first + len(members)))
            first += len(members)

    word = np.array([s.channel // WORD_BITS for s in cut], np.uint64)
    mask = np.array([((1 << s.length) - 1) << s.channel % WORD_BITS for s in cut], np.uint16)
    signs = words[:, [s.tap for s in cut], word] & mask
    scales = q[:, [s.block for s in cut]].astype(np.uint16)
    return BinaryWeights(tiles(signs), tiles(scales), word, mask, np.array(runs, np.uint64), tiles(np.stack(base, 1)))
