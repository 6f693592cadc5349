"""The declarative network, and its float formula in NumPy.

A network is an int8 stem, binary blocks, and a feature vector; `docs/architecture.md` holds the table of its tensors.
`forward` computes the formula as it is written, slowly; `models.engine` computes the same with packed bits.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.binarize import Layout, binarize, block_scales
from models.bits import pack_signs, unpack_signs

Tensors = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]

Channels = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Kernel = Annotated[int, msgspec.Meta(ge=1, le=31)]
Stride = Annotated[int, msgspec.Meta(ge=1, le=16)]
Beta = Annotated[int, msgspec.Meta(ge=0, le=65536)]
Grey = Annotated[int, msgspec.Meta(ge=0, le=255)]
"""Bounds that hold wherever a spec is read from a file, a recipe's or an artifact's."""

HEAD_STEP = 2.0**-9
"""Grid of the classifier's int16 weights: a weight lies in -64..64 with a resolution of 0.002."""

POOL_EPSILON = 1e-5
"""Added to the variance over pixels before its root is taken, so that the root has a gradient everywhere."""


Q_MAX = 127
"""Block scales are integers 1..127 times one float per output channel."""

STEM_MAX = 127
"""Weights of the stem are integers of at most this size; its scale takes them to where they were trained."""


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The largest value or the mean of size x size pixels; what lies outside counts for neither."""

    kind: Literal["max", "mean"] = "max"
    size: Kernel = 2
    stride: Stride = 2
    padding: Annotated[int, msgspec.Meta(ge=0, le=15)] = 0

    def side(self, side: int) -> int:
        """Side of the output for an input of this side; below 1 where it does not fit."""
        return (side + 2 * self.padding - self.size) // self.stride + 1


class Stem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first layer, which sees pixels: convolution with 8-bit weights, affine, PReLU, pool.

    The paper keeps the first layer at beta = 1, and so does this: a weight of its own for each entry.
    """

    channels: Channels
    kernel: Kernel = 3
    stride: Stride = 2
    valid: bool = False
    pool: Pool | None = None

    @property
    def padding(self) -> int:
        """Pixels added on each side, at the mean."""
        return 0 if self.valid else self.kernel // 2


class Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A binary convolution, a shortcut around it, PReLU, pool (in the paper's order).

    beta_w: entries of K = (kh, kw, c) that share a weight scale (eq. 1); beta_a: channels that share an activation
    scale (eq. 3), 0 for one scale per pixel. valid: without padding, so that a kernel as large as the image makes a
    dense layer. shortcut: how many blocks it goes around, 1 for this one alone, 0 for none; from where it is twice as
    large, it takes the mean of 2 x 2 pixels, and it repeats channels up to the block's.
    """

    channels: Channels
    kernel: Kernel = 3
    stride: Stride = 1
    beta_w: Beta = 16
    beta_a: Beta = 0
    shortcut: Annotated[int, msgspec.Meta(ge=0, le=256)] = 1
    valid: bool = False
    pool: Pool | None = None

    @property
    def padding(self) -> int:
        """Pixels added on each side, at zero."""
        return 0 if self.valid else self.kernel // 2


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole network. Inputs are (input_size, input_size, 3) tiles; `mean` is the RGB that counts as zero.

    taps: numbers of the blocks whose outputs, pooled to mean and (where `deviation`) deviation over the pixels, make
    the feature vector; beta_f: features that share a scale, 1 for float features. layout: what makes a row of blocks;
    `row`, the paper's, is for its tables and does not fly: there, K runs (c, kh, kw), and beta_a counts pixels of a
    line of a channel, or channels where the image is one pixel.
    """

    name: str
    input_size: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    mean: tuple[Grey, Grey, Grey]
    stem: Stem
    blocks: Annotated[tuple[Block, ...], msgspec.Meta(min_length=1, max_length=256)]
    taps: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)]
    deviation: bool = True
    beta_f: Beta = 16
    layout: Layout = "channel"

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip((-1, *self.taps), (*self.taps, len(self.blocks)), strict=True)):
            last = len(self.blocks) - 1
            raise ValueError(f"network.taps must be rising numbers of blocks, 0..{last}, not {list(self.taps)}")
        self.sides()

    @property
    def feature_count(self) -> int:
        """Length of the feature vector."""
        return sum((1 + self.deviation) * self.blocks[t].channels for t in self.taps)

    def with_betas(self, beta_w: int, beta_a: int) -> "NetworkSpec":
        """The same network with these block lengths in every block."""
        blocks = (msgspec.structs.replace(block, beta_w=beta_w, beta_a=beta_a) for block in self.blocks)
        return msgspec.structs.replace(self, blocks=tuple(blocks))

    def sides(self) -> tuple[int, ...]:
        """Side of the square map that each block reads, and of the last block's output.

        Raises ValueError where a kernel, a pool or a shortcut does not fit, which names the layer.
        """
        out, side = [], self.input_size
        layers: list[tuple[str, Stem | Block]] = [("stem", self.stem)]
        layers += [(f"blocks[{i}]", block) for i, block in enumerate(self.blocks)]
        for name, layer in layers:
            if layer.padding and layer.kernel % 2 == 0:
                raise ValueError(f"network.{name}: a kernel of {layer.kernel} with padding: it must be odd")
            if isinstance(layer, Block):
                out.append(side)
            side = conv_side(layer, side)
            if isinstance(layer, Block) and side >= 1:
                _check_shortcut(name, layer, out, side)
            if side >= 1 and layer.pool:
                if layer.pool.padding * 2 > layer.pool.size:
                    raise ValueError(f"network.{name}.pool: padding is at most half of its size")
                side = layer.pool.side(side)
            if side < 1:
                raise ValueError(f"network.{name}: nothing is left of the image after this layer")
        return (*out, side)

    def block_inputs(self) -> tuple[int, ...]:
        """Input channels of each block."""
        return (self.stem.channels, *(b.channels for b in self.blocks[:-1]))

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (dtype, shape) of every tensor but the head's, which depends on the classes.

        >>> stem, block = Stem(channels=32), Block(channels=64)
        >>> NetworkSpec(name="n", input_size=64, mean=(0, 0, 0), stem=stem, blocks=(block,),
        ...             taps=(0,)).shapes()["block0.bits"]
        ('uint8', (64, 36))
        """
        k = self.stem.kernel
        out: dict[str, tuple[str, tuple[int, ...]]] = {"stem.weight": ("int8", (self.stem.channels, k, k, 3))}
        for part in ("scale", "shift", "slope"):
            out[f"stem.{part}"] = ("float32", (self.stem.channels,))
        for i, (block, c_in) in enumerate(zip(self.blocks, self.block_inputs(), strict=True)):
            entries = block.kernel**2 * c_in
            out[f"block{i}.in_shift"] = ("float32", (c_in,))
            out[f"block{i}.bits"] = ("uint8", (block.channels, -(-entries // 8)))
            out[f"block{i}.q"] = ("uint8", (block.channels, -(-entries // (block.beta_w or entries))))
            for part in ("s", "scale", "shift", "slope"):
                out[f"block{i}.{part}"] = ("float32", (block.channels,))
        for part in ("scale", "shift"):
            out[f"features.{part}"] = ("float32", (self.feature_count,))
        return out


def conv_side(layer: Stem | Block, side: int) -> int:
    """Side of a layer's map before its pool, for an input of this side."""
    return (side + 2 * layer.padding - layer.kernel) // layer.stride + 1


def _check_shortcut(name: str, block: Block, sides: list[int], side: int) -> None:
    """sides: of what the blocks up to this one read; side: of its own output."""
    if not block.shortcut:
        return
    if block.shortcut > len(sides):
        raise ValueError(
            f"network.{name}: a shortcut around {block.shortcut} blocks, there are {len(sides)} up to here"
        )
    source = sides[-block.shortcut]
    if source not in (side, 2 * side):
        raise ValueError(
            f"network.{name}: a shortcut from {source} x {source} to {side} x {side} pixels: it adds as many, or means "
            "of 2 x 2; set shortcut = 0, or another stride, padding or input_size"
        )


def convolve(x: Floats, weight: Floats, stride: int, padding: int) -> Floats:
    """(N, H, W, C) with (O, k, k, C) and zero padding -> (N, H', W', O)."""
    k = weight.shape[1]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, ::stride, ::stride]
    out: Floats = np.einsum("nhwcij,oijc->nhwo", windows, weight, optimize=True).astype(np.float32)
    return out


def pooled(x: Floats, pool: Pool | None) -> Floats:
    """A layer's pool of (N, H, W, C), where it has one."""
    if pool is None:
        return x
    border = ((0, 0), (pool.padding,) * 2, (pool.padding,) * 2, (0, 0))
    x = np.pad(x, border, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(x, (pool.size, pool.size), axis=(1, 2))
    windows = windows[:, :: pool.stride, :: pool.stride]
    reduce = np.nanmax if pool.kind == "max" else np.nanmean
    return reduce(windows, axis=(-2, -1)).astype(np.float32)  # type: ignore[no-any-return]


def prelu(x: Floats, slope: Floats) -> Floats:
    """x, or slope * x where x < 0; a slope for each channel."""
    return np.where(x >= 0, x, x * slope).astype(np.float32)


def shortcut(x: Floats, side: int, channels: int) -> Floats:
    """The mean of 2 x 2 pixels where x is larger than `side`; its channels repeated, and cut off."""
    n, h, w, c = x.shape
    if h > side:
        x = x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
    return x[..., np.arange(channels) % c]


def _binarized(x: Floats, beta: int, layout: Layout) -> Floats:
    """Activations (N, H, W, C) in blocks along the channels, or along the lines of each channel (eq. 3, 4)."""
    if layout == "channel" or x.shape[2] == 1:
        return binarize(x, beta)
    return binarize(x.transpose(0, 1, 3, 2), beta).transpose(0, 1, 3, 2)


def block_weight(spec: NetworkSpec, tensors: Tensors, i: int) -> Floats:
    """The binarized weight W~ of block i as float32 (Cout, k, k, Cin): s * q * sign (eq. 1, 2)."""
    block, c_in = spec.blocks[i], spec.block_inputs()[i]
    entries = block.kernel**2 * c_in
    signs = unpack_signs(tensors[f"block{i}.bits"], entries)
    q = np.repeat(tensors[f"block{i}.q"].astype(np.float32), block.beta_w or entries, axis=1)[:, :entries]
    scaled = (signs * q * tensors[f"block{i}.s"].astype(np.float32)[:, None]).astype(np.float32)
    if spec.layout == "row":
        return scaled.reshape(block.channels, c_in, block.kernel, block.kernel).transpose(0, 2, 3, 1)
    return scaled.reshape(block.channels, block.kernel, block.kernel, c_in)


def packed_weight(latent: Floats, beta_w: int) -> dict[str, NDArray[Any]]:
    """`bits`, `q` and `s` of a block whose rows of weights are `latent`, (O, K): eq. 1, 2 with scales on integers."""
    delta = block_scales(latent, beta_w)
    s = (delta.max(1) / Q_MAX).astype(np.float32)
    s_or_1 = np.where(s > 0, s, np.float32(1))  # a channel of zeros: its q do not matter
    q = np.clip(np.round(delta / s_or_1[:, None]), 1, Q_MAX).astype(np.uint8)
    return {"bits": pack_signs(latent), "q": q, "s": s}


def forward(spec: NetworkSpec, tensors: Tensors, tiles: NDArray[np.uint8]) -> Floats:
    """The feature vector before it is binarized, by the formula: uint8 BGR (N, S, S, 3) -> float32 (N, F)."""

    def floats(name: str) -> Floats:
        return tensors[name].astype(np.float32)

    x = tiles[..., ::-1].astype(np.float32) - np.array(spec.mean, np.float32)
    y = convolve(x, floats("stem.weight"), spec.stem.stride, spec.stem.padding)
    x = pooled(prelu(y * floats("stem.scale") + floats("stem.shift"), floats("stem.slope")), spec.stem.pool)
    inputs, moments = [], []
    for i, block in enumerate(spec.blocks):
        inputs.append(x)
        a = _binarized(x + floats(f"block{i}.in_shift"), block.beta_a, spec.layout)
        y = convolve(a, block_weight(spec, tensors, i), block.stride, block.padding)
        y = y * floats(f"block{i}.scale") + floats(f"block{i}.shift")
        if block.shortcut:
            y = y + shortcut(inputs[-block.shortcut], y.shape[1], block.channels)
        x = pooled(prelu(y, floats(f"block{i}.slope")), block.pool)
        if i in spec.taps:
            moments.append(x.mean(axis=(1, 2)))
            if spec.deviation:
                moments.append(np.sqrt(x.var(axis=(1, 2)) + POOL_EPSILON))
    return np.concatenate(moments, axis=1) * floats("features.scale") + floats("features.shift")
