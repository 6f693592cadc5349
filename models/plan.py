"""From the tensors of a layer to what the kernels read, and the buffers that it computes in.

Weights are cut into pieces of at most a word, so that within a piece every byte has one weight scale, and all of it one
activation scale. A block that ends inside a byte ends the piece: then the packed activations hold the word twice, under
two masks. So any beta_w and beta_a and any number of channels are one case, and multiples of 8 cost nothing.

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
from models.kernels import MAX_Q, BinaryWeights, Packing, Window
from models.network import Block, NetworkSpec
from models.simd import BACKEND, WORD_BITS

BYTE_BITS = 8
WORD_BYTES = WORD_BITS // BYTE_BITS
ALIGNMENT = 64
"""Bytes; what vectors are loaded from starts at a multiple, so that no load touches two lines of the cache."""

Number = TypeVar("Number", bound=np.generic)
Floats = NDArray[np.float32]
Tensors = Mapping[str, NDArray[np.generic]]


class Piece(NamedTuple):
    """`length` entries of a tap from `channel` on: in one word, one activation group, and one block in each byte."""

    channel: int
    length: int
    group: int


class StemBuffers(NamedTuple):
    """Work space of a `StemPlan`: the last tiles, their normalised and padded pixels, output."""

    tiles: NDArray[np.uint8]
    pixels: Floats
    out: Floats


class StemPlan:
    """The float first layer. `run` gives (N * out_size**2, padded channels)."""

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
        bgr = tensors["stem.weight"].astype(np.float32)[..., ::-1]  # tiles come so, RGB is the model's order
        self.weight = tiles(bgr.reshape(stem.channels, -1))
        self.affine = affine(tensors["stem.scale"], tensors["stem.shift"], tensors["stem.slope"])
        self.mean, self.std = (np.tile(np.array(x[::-1], np.float32), self.size) for x in (spec.mean, spec.std))

    def buffers(self, images: int) -> StemBuffers:
        """Work space for up to `images` images."""
        return StemBuffers(
            np.zeros((images, self.size, self.size, 3), np.uint8),
            np.zeros((images * self.window.image_pixels, 3), np.float32),
            aligned((images * self.out_size**2, padded(self.channels)), np.float32),
        )

    def run(self, images: NDArray[np.uint8], to: StemBuffers) -> Floats:
        """uint8 (N, S, S, 3) BGR -> a part of `to.out`."""
        tiles, out = to.tiles[: len(images)], to.out[: len(images) * self.out_size**2]
        tiles[:] = images  # contiguous and writeable: what the kernels are compiled for
        kernels.normalise(tiles, self.mean, self.std, self.window, to.pixels)
        kernels.stem(to.pixels, self.window, self.kernel, self.weight, self.affine, out)
        return out


class BlockBuffers(NamedTuple):
    """Work space of a `BlockPlan`: packed activations, their scales, pooled and repeated shortcut, output."""

    words: NDArray[np.uint32]
    scales: Floats
    half: Floats
    repeated: Floats
    out: Floats


class BlockPlan:
    """A binary block over square images. `run` gives (N * out_size**2, padded channels).

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
        self.window = window(size, block.kernel, block.stride)
        self._nothing = np.zeros((1, 0), np.uint32), np.zeros((1, 0), np.float32)
        bits, q = tensors["bits"].astype(np.uint8), tensors["q"].astype(np.uint8)
        in_shift = tensors["in_shift"].astype(np.float32)
        self.packing, self.weights = binary_weights(
            bits, q, in_shift, block.kernel, block.beta_w, block.beta_a, self.window
        )
        gain = tensors["scale"].astype(np.float32) * tensors["s"].astype(np.float32)
        self.affine = affine(gain, tensors["shift"], tensors["slope"])

    def buffers(self, images: int) -> BlockBuffers:
        """Work space for up to `images` images."""
        pixels, out = images * self.window.image_pixels, images * self.out_size**2
        words, groups = len(self.packing.mask), -(-self.c_in // self.packing.beta)
        return BlockBuffers(
            np.zeros((pixels, words), np.uint32),
            np.zeros((pixels, groups), np.float32),
            aligned((out if self.stride == 2 else 0, padded(self.c_in)), np.float32),
            aligned((out if self._repeats else 0, padded(self.channels)), np.float32),
            aligned((out, padded(self.channels)), np.float32),
        )

    @property
    def _repeats(self) -> bool:
        """Whether the shortcut's channels have to be written again because they do not fill whole words."""
        return self.c_in % WORD_BITS != 0 and self.channels > self.c_in

    def pack(self, x: Floats, to: BlockBuffers) -> None:
        """Binarize x (N * size**2, padded c_in) into `to`, where no block before this one has done so."""
        kernels.pack_activations(x, self.packing, to.words, to.scales)

    def run(self, x: Floats, to: BlockBuffers, following: tuple["BlockPlan", BlockBuffers] | None = None) -> Floats:
        """x (N * size**2, padded c_in), which lies packed in `to` -> a part of `to.out`.

        The output is packed into the buffers of the `following` block, where there is one.
        """
        out = to.out[: len(x) // self.stride**2]
        shortcut = x
        if self.stride == 2:
            shortcut = to.half[: len(out)]
            kernels.halve(x, self.size, shortcut)
        if self._repeats:
            kernels.repeat_channels(shortcut, self.c_in, to.repeated[: len(out)])
            shortcut = to.repeated[: len(out)]
        packing, (words, scales) = self.packing, self._nothing
        if following is not None:
            packing, words, scales = following[0].packing, following[1].words, following[1].scales
        kernels.binary_block(
            to.words, to.scales, self.window, self.weights, shortcut, self.affine, out, packing, words, scales
        )
        return out


def window(size: int, kernel: int, stride: int) -> Window:
    """The windows of a kernel x kernel convolution with padding kernel // 2 over a square image of `size` pixels."""
    border = kernel // 2
    width = size + 2 * border
    corners = np.arange(0, width - kernel + 1, stride)
    starts = (corners[:, None] * width + corners[None]).reshape(-1).astype(np.uint64)
    lines = np.arange(border, border + size)
    inside = (lines[:, None] * width + lines[None]).reshape(-1).astype(np.uint64)
    return Window(starts, np.arange(len(starts), dtype=np.uint64), inside, width * width, width)


def padded(channels: int) -> int:
    """`channels`, filled up to whole words."""
    return -(-channels // WORD_BITS) * WORD_BITS


def aligned(shape: tuple[int, ...], dtype: type[Number]) -> NDArray[Number]:
    """Zeros that start at a multiple of ALIGNMENT."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def affine(gain: NDArray[np.generic], shift: NDArray[np.generic], slope: NDArray[np.generic]) -> Floats:
    """float32 (3, T, width) as the kernels read it: gain, shift and slope of each output channel."""
    return tiles(np.stack([x.astype(np.float32) for x in (gain, shift, slope)], 1)).transpose(1, 0, 2).copy()


def tiles(rows: NDArray[Number]) -> NDArray[Number]:
    """(O, S, ...) -> aligned (T, S, width * ...): `BACKEND.width` rows side by side, zeros up to the padded O."""
    filled = np.zeros((padded(len(rows)), *rows.shape[1:]), rows.dtype)
    filled[: len(rows)] = rows
    side_by_side = filled.reshape(-1, BACKEND.width, *rows.shape[1:]).swapaxes(1, 2)
    flat = side_by_side.reshape(len(side_by_side), rows.shape[1], -1)
    out = aligned(flat.shape, flat.dtype.type)
    out[:] = flat
    return out


def pieces(tap: int, c_in: int, beta_w: int, beta_a: int) -> list[Piece]:
    """The c_in entries of K that belong to this tap, cut; beta_w and beta_a are lengths, not 0."""
    out = []
    c = 0
    while c < c_in:
        end = min(c_in, (c // WORD_BITS + 1) * WORD_BITS, (c // beta_a + 1) * beta_a)
        block_end = c + beta_w - (tap * c_in + c) % beta_w
        while block_end < end and block_end % BYTE_BITS == 0:
            block_end += beta_w
        out.append(Piece(c, min(end, block_end) - c, c // beta_a))
        c = min(end, block_end)
    return out


def binary_weights(
    bits: NDArray[np.uint8],
    q: NDArray[np.uint8],
    in_shift: Floats,
    kernel: int,
    beta_w: int,
    beta_a: int,
    window: Window,
) -> tuple[Packing, BinaryWeights]:
    """Arrange bits (O, ceil(K/8)) and q (O, ceil(K/beta_w)) for the kernels; 0 for a beta means all.

    in_shift: (C,). Raises ValueError where q exceeds 127, a model's bound.
    """
    if q.size and q.max() > MAX_Q:
        raise ValueError(f"block scales go up to {MAX_Q}, not {q.max()}")
    taps, rows, c_in = kernel * kernel, len(bits), len(in_shift)
    beta_w, beta_a = beta_w or taps * c_in, beta_a or c_in
    negative = unpack_signs(bits, taps * c_in) < 0

    windows = [(tap // kernel * window.width + tap % kernel) for tap in range(taps)]  # first pixel of each tap
    groups = -(-c_in // beta_a)
    packed: dict[tuple[Piece, ...], int] = {}  # how a tap is cut -> its first packed word: most taps are cut alike
    layout: list[Piece] = []
    runs: list[tuple[int, int, int, int]] = []
    steps: list[NDArray[np.uint8]] = []  # (O, 2, bytes of a word): signs and scales
    base: list[NDArray[np.int32]] = []
    for tap in range(taps):
        cut = tuple(pieces(tap, c_in, beta_w, beta_a))
        if cut not in packed:
            packed[cut] = len(layout)
            layout += cut
        source = packed[cut]
        for group, members in groupby(cut, key=lambda piece: piece.group):
            run = list(members)
            runs.append((tap, source, group, len(run)))
            source += len(run)
            total = np.zeros(rows, np.int32)
            for piece in run:
                entries = np.arange(tap * c_in + piece.channel, tap * c_in + piece.channel + piece.length)
                places = np.arange(piece.length) + piece.channel % WORD_BITS
                positive = np.zeros((rows, WORD_BITS), np.uint8)
                positive[:, places] = ~negative[:, entries]
                scales = np.zeros((rows, WORD_BYTES), np.uint8)
                scales[:, places // BYTE_BITS] = 2 * q[:, entries // beta_w]
                steps.append(np.stack([np.packbits(positive, axis=1, bitorder="little"), scales], 1))
                total -= q[:, entries // beta_w].sum(1, dtype=np.int32)
            base.append(total)

    spans: list[list[int]] = []  # word, group, count, length
    for tap, word, group, length in runs:
        word, group = windows[tap] * len(layout) + word, windows[tap] * groups + group
        if spans and [word, group, length] == [
            spans[-1][0] + spans[-1][2] * length,
            spans[-1][1] + spans[-1][2],
            spans[-1][3],
        ]:
            spans[-1][2] += 1
        else:
            spans.append([word, group, 1, length])
    shift = np.zeros((1, padded(c_in)), np.float32)
    shift[0, :c_in] = in_shift
    masks = [((1 << piece.length) - 1) << piece.channel % WORD_BITS for piece in layout]
    sources = [piece.channel // WORD_BITS * WORD_BITS for piece in layout]
    packing = Packing(
        shift,
        np.array(sources, np.uint64),
        np.array(masks, np.uint32),
        window.inside,
        window.image_pixels,
        c_in,
        beta_a,
    )
    interleaved = np.stack(steps, 1).reshape(rows, 2 * len(steps), WORD_BYTES)
    word_at, scale_at = (window.starts * np.uint64(n) for n in (len(layout), groups))
    return packing, BinaryWeights(
        tiles(interleaved), np.array(spans, np.uint64), tiles(np.stack(base, 1)), word_at, scale_at
    )
