"""A binary convolution forward by the packed kernels, and its gradients from bits: eq. 5 to 7."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from models import kernels, plan
from models.binarize import block_scales
from models.network import Block, conv_side, packed_weight

Floats = NDArray[np.float32]

SLICE = 128
"""Output channels that are packed at once: what packing needs is a few times their weights."""
COLUMN_BYTES = 4 * 2**20
"""Unfolded inputs of the gradients are cut into pieces of images of about this size."""


class Bits(NamedTuple):
    """A binarized map (n, H, W, C): packed signs and masks |x| <= 1, uint8 (n * H * W, ceil(C / 8)), and scales."""

    signs: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    scales: NDArray[np.floating]
    shape: tuple[int, int, int, int]
    beta: int

    def values(self, first: int, last: int) -> Floats:
        """delta * sign of some images, float32 (last - first, H, W, C)."""
        return self._signs(first, last) * self._spread(first, last)

    def _rows(self, first: int, last: int) -> slice:
        pixels = self.shape[1] * self.shape[2]
        return slice(first * pixels, last * pixels)

    def _signs(self, first: int, last: int) -> Floats:
        found = _unpacked(self.signs[self._rows(first, last)], self.shape[3])
        return (1 - 2 * found.astype(np.float32)).reshape(last - first, *self.shape[1:])

    def _spread(self, first: int, last: int) -> Floats:
        scales = self.scales[self._rows(first, last)].astype(np.float32)
        spread: Floats = np.repeat(scales, self.beta or self.shape[3], axis=1)[:, : self.shape[3]]
        return spread.reshape(last - first, *self.shape[1:])

    def backward(self, first: int, last: int, grad: Floats) -> Floats:
        """dC/dx of some images from dC/d binarized, by eq. 5 and 6."""
        signs, length = self._signs(first, last), self.beta or self.shape[3]
        masks = _unpacked(self.masks[self._rows(first, last)], self.shape[3]).reshape(grad.shape)
        starts = np.arange(0, self.shape[3], length)
        sizes = np.diff([*starts, self.shape[3]])
        means = np.add.reduceat(grad * signs, starts, axis=-1) / sizes.astype(np.float32)
        through_scale: Floats = signs * np.repeat(means, sizes, axis=-1)
        through_scale += self._spread(first, last) * grad * masks
        return through_scale


def bits_of(x: Floats, beta: int, kept: type[np.floating]) -> Bits:
    """Binarize a map (n, H, W, C), the shift already added; beta 0: one scale for each pixel."""
    n, height, width, channels = x.shape
    rows = x.reshape(-1, channels)
    beta = min(beta, channels)
    signs, masks = (np.packbits(found, axis=1, bitorder="little") for found in (rows < 0, np.abs(rows) <= 1))
    return Bits(signs, masks, block_scales(rows, beta).astype(kept), (n, height, width, channels), beta)


def joined(parts: list[Bits]) -> Bits:
    """Bits of pieces of a batch as those of the batch."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    signs, masks, scales = (np.concatenate([getattr(p, name) for p in parts]) for name in ("signs", "masks", "scales"))
    return Bits(signs, masks, scales, shape, parts[0].beta)


def convolved(
    block: Block, side: int, latent: NDArray[np.floating], shift: Floats, maps: list[Floats], images: int
) -> list[Floats]:
    """The sums of a `Block`, without its affine, of pieces x (n, H, W, C) of up to `images`: float32 (n, H', W', O).

    latent: its latent weights (O, K); shift (C,) is added to x before it is binarized. SLICE output channels after
    another, so that packed weights of these alone are there at a time: at small beta_a they are larger than the maps.
    """
    bare = msgspec.structs.replace(block, shortcut=0, pool=None)
    c_in, out = len(shift), conv_side(block, side)
    sums = [np.empty((len(x), out, out, block.channels), np.float32) for x in maps]
    for first in range(0, block.channels, SLICE):
        rows = latent[first : first + SLICE].astype(np.float32)
        one, zero = np.ones(len(rows), np.float32), np.zeros(len(rows), np.float32)
        still = {"in_shift": np.zeros(c_in, np.float32), "scale": one, "shift": zero, "slope": one}
        builder = plan.Builder()
        own = msgspec.structs.replace(bare, channels=len(rows))
        builder.block(own, c_in, side, packed_weight(rows, block.beta_w) | still)
        layout = builder.layout(images)
        buffers, layer = layout.buffers(), layout.plan.layers[0]
        pixels, wide, source = (int(layer[name]) for name in ("source_pixels", "source_wide", "source"))
        row, begin = int(layer["wide"]), int(layer["out"])
        for x, into in zip(maps, sums, strict=True):
            n = len(x)
            given = buffers.maps[source : source + n * pixels * wide].reshape(-1, wide)
            given[:, :c_in] = (x + shift).reshape(-1, c_in)
            kernels.pack_source(layout.plan, buffers, 0, n)
            kernels.run_layer(layout.plan, buffers, 0, n, np.zeros(kernels.SHARED, np.int64), 0, 1)
            found = buffers.maps[begin : begin + n * out * out * row].reshape(n, out, out, row)
            into[..., first : first + len(rows)] = found[..., : len(rows)]
    return sums


def flown(latent: NDArray[np.floating], beta_w: int) -> Floats:
    """The binarized weights as they fly, float32 (O, K): s * q * sign."""
    return unpacked_weight(**packed_weight(latent.astype(np.float32), beta_w), beta_w=beta_w, entries=latent.shape[1])


def unpacked_weight(bits: NDArray[np.uint8], q: NDArray[np.uint8], s: Floats, *, beta_w: int, entries: int) -> Floats:
    """s * q * sign of some rows, float32 (O, K)."""
    out: Floats = np.repeat(q, beta_w or entries, axis=1)[:, :entries].astype(np.float32)
    np.negative(out, out=out, where=_unpacked(bits, entries) > 0)
    out *= s[:, None]
    return out


def pieces(block: Block, side: int, c_in: int, images: int) -> Iterator[tuple[int, int]]:
    """Ranges of images whose unfolded inputs are about COLUMN_BYTES."""
    out = conv_side(block, side)
    step = max(1, COLUMN_BYTES // (4 * out * out * block.kernel**2 * c_in))
    for first in range(0, images, step):
        yield first, min(first + step, images)


def unfold(x: Floats, block: Block) -> Floats:
    """(n, H, W, C) -> (n * H' * W', k * k * C), in the order of weights."""
    k, p, s = block.kernel, block.padding, block.stride
    x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, ::s, ::s]
    return np.ascontiguousarray(windows.transpose(0, 1, 2, 4, 5, 3)).reshape(-1, k * k * x.shape[-1])


def fold(columns: Floats, block: Block, shape: tuple[int, ...]) -> Floats:
    """The transpose of `unfold`: sums where windows overlap; shape (n, H, W, C) of its input."""
    n, height, width, c = shape
    k, p, s = block.kernel, block.padding, block.stride
    side = (height + 2 * p - k) // s + 1
    out = np.zeros((n, height + 2 * p, width + 2 * p, c), np.float32)
    windows = columns.reshape(n, side, side, k, k, c)
    for i in range(k):
        for j in range(k):
            out[:, i : i + s * side : s, j : j + s * side : s] += windows[:, :, :, i, j]
    return out[:, p : p + height, p : p + width]


def _unpacked(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    return np.unpackbits(packed, axis=1, count=count, bitorder="little")
