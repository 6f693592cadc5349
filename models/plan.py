"""From the tensors of a layer to what the kernels read, and the buffers that it computes in.

A segment of weights ends where a 16-bit word, a weight block or an activation group ends, or a kernel tap; so any
beta_w and beta_a and any number of channels are one case, and multiples of 16 have no mask to apply.

A plan is read only and may be used from many threads, each with `buffers` of its own.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from models import kernels
from models.bits import unpack_signs
from models.errors import ArtifactError
from models.jit import LANES
from models.kernels import MAX_Q, ROWS, RUN_SEGMENTS, WORD_BITS, Affine, BinaryWeights, Window
from models.network import Block, NetworkSpec

Number = TypeVar("Number", bound=np.generic)
Floats = NDArray[np.float32]
Tensors = Mapping[str, NDArray[np.generic]]


class Segment(NamedTuple):
    """Entries of K from `channel` of `tap` on, in one word, weight block and activation group."""

    tap: int
    channel: int
    length: int
    group: int
    block: int


class StemBuffers(NamedTuple):
    """Work space of a `StemPlan`: the last tiles, their normalised and padded pixels, sums of four pixels, output."""

    tiles: NDArray[np.uint8]
    pixels: Floats
    sums: Floats
    out: Floats


class StemPlan:
    """The float first layer. `run` gives (N * out_size**2, channels)."""

    def __init__(self, spec: NetworkSpec, tensors: Tensors) -> None:
        stem, self.size = spec.stem, spec.input_size
        if stem.kernel % 2 == 0 or stem.stride < 1:
            raise ArtifactError(
                f"a stem of kernel {stem.kernel} and stride {stem.stride}: an odd kernel with a stride of 1 or more "
                "can be computed"
            )
        self.channels, self.kernel = stem.channels, stem.kernel
        self.out_size = (self.size - 1) // stem.stride + 1
        self.window = window(self.size, stem.kernel, stem.stride)
        self.weight = tiles(tensors["stem.weight"].astype(np.float32).reshape(stem.channels, -1))
        self.affine = affine(tensors["stem.scale"], tensors["stem.shift"], tensors["stem.slope"])
        grey = np.arange(256, dtype=np.float32)
        mean, std = (np.array(x, np.float32)[:, None] for x in (spec.mean, spec.std))
        self.table = (grey - mean) / std

    def buffers(self, images: int) -> StemBuffers:
        """Work space for up to `images` images."""
        return StemBuffers(
            np.zeros((images, self.size, self.size, 3), np.uint8),
            np.zeros((images * self.window.image_pixels, 3), np.float32),
            np.zeros((ROWS, len(self.weight) * LANES), np.float32),
            np.zeros((images * self.out_size**2, self.channels), np.float32),
        )

    def run(self, images: NDArray[np.uint8], to: StemBuffers) -> Floats:
        """uint8 (N, S, S, 3) BGR -> a part of `to.out`."""
        tiles, out = to.tiles[: len(images)], to.out[: len(images) * self.out_size**2]
        tiles[:] = images  # contiguous and writeable: what the kernels are compiled for
        kernels.normalise(tiles, self.table, self.window, to.pixels)
        kernels.stem(to.pixels, self.window, self.kernel, self.weight, self.affine, to.sums, out)
        return out


class BlockBuffers(NamedTuple):
    """Work space of a `BlockPlan`: packed activations, their scales, pooled shortcut, sums of four pixels, output."""

    words: NDArray[np.uint16]
    scales: Floats
    half: Floats
    sums: Floats
    out: Floats


class BlockPlan:
    """A binary block over square images. `run` gives (N * out_size**2, channels).

    tensors: `in_shift`, `bits`, `q`, `s`, `scale`, `shift`, `slope` as in `docs/architecture.md`.
    Raises ArtifactError where kernel, stride and size do not fit each other.
    """

    def __init__(self, block: Block, c_in: int, size: int, tensors: Tensors) -> None:
        if block.kernel % 2 == 0 or block.stride not in (1, 2) or (block.stride == 2 and size % 2):
            raise ArtifactError(
                f"a block of kernel {block.kernel} and stride {block.stride} at {size} x {size} pixels: an odd kernel "
                "with stride 1, or with stride 2 at an even size, can be computed"
            )
        self.channels, self.c_in, self.size, self.stride = block.channels, c_in, size, block.stride
        self.out_size = size // block.stride
        self.beta_a = block.beta_a or c_in
        self.in_shift = tensors["in_shift"].astype(np.float32)
        self.window = window(size, block.kernel, block.stride)
        bits, q = tensors["bits"].astype(np.uint8), tensors["q"].astype(np.uint8)
        self.weights = binary_weights(bits, q, c_in, block.kernel, block.beta_w, block.beta_a, self.window.width)
        gain = tensors["scale"].astype(np.float32) * tensors["s"].astype(np.float32)
        self.affine = affine(gain, tensors["shift"], tensors["slope"])

    def buffers(self, images: int) -> BlockBuffers:
        """Work space for up to `images` images."""
        padded, out = images * self.window.image_pixels, images * self.out_size**2
        return BlockBuffers(
            np.zeros((padded, -(-self.c_in // WORD_BITS)), np.uint16),
            np.zeros((padded, -(-self.c_in // self.beta_a)), np.float32),
            np.zeros((out if self.stride == 2 else 0, self.c_in), np.float32),
            np.zeros((ROWS, len(self.weights.bits) * LANES), np.float32),
            np.zeros((out, self.channels), np.float32),
        )

    def run(self, x: Floats, to: BlockBuffers) -> Floats:
        """x (N * size**2, c_in) -> a part of `to.out`."""
        out = to.out[: len(x) // self.stride**2]
        kernels.pack_activations(x, self.in_shift, self.beta_a, self.size, self.window, to.words, to.scales)
        shortcut = x
        if self.stride == 2:
            shortcut = to.half[: len(out)]
            kernels.halve(x, self.size, shortcut)
        kernels.binary_block(to.words, to.scales, self.window, self.weights, shortcut, self.affine, to.sums, out)
        return out


def window(size: int, kernel: int, stride: int) -> Window:
    """The windows of a kernel x kernel convolution with padding kernel // 2 over a square image of `size` pixels."""
    border = kernel // 2
    width = size + 2 * border
    corners = np.arange(0, width - kernel + 1, stride)
    starts = (corners[:, None] * width + corners[None]).reshape(-1).astype(np.uint64)
    return Window(starts, width * width, width, border)


def affine(gain: NDArray[np.generic], shift: NDArray[np.generic], slope: NDArray[np.generic]) -> Affine:
    """The affine in arrays of its own: the kernels are compiled for writeable ones."""
    return Affine(*(x.astype(np.float32) for x in (gain, shift, slope)))


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
