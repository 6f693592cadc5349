"""From the tensors of a network to what the kernels read, and the buffers that it computes in.

A plan is read only and may be used from many threads, each with `buffers` of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.cutting import WORD_BYTES, cut_weights
from models.errors import ArtifactError
from models.kernels import FLIP, LAYER, NONE, Buffers, Floats, Plan
from models.network import Block, NetworkSpec, Pool, Stem, conv_side
from models.simd import BACKEND, WORD_BITS

ALIGNMENT = 64
"""Bytes; what vectors are loaded from starts at a multiple, so that no load touches two lines of the cache."""
PIECE_BYTES = 1 << 19
"""Images go through the network together, as many as keep the largest feature map about this small."""
MOST_IMAGES = 8
TOGETHER_BYTES = 1 << 15
"""Weights that stay in the nearest cache beside the activations that they meet."""

Number = TypeVar("Number", bound=np.generic)
Tensors = Mapping[str, NDArray[np.generic]]


class _Arena:
    """Arrays of one type, end to end, each aligned."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self.dtype, self.parts, self.size = np.dtype(dtype), list[tuple[int, NDArray[Any]]](), 0

    def add(self, array: NDArray[Any] | Iterable[int]) -> int:
        """Where the array begins from now on, in items."""
        flat = np.asarray(array, self.dtype).reshape(-1)
        begin = -(-self.size * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT // self.dtype.itemsize
        self.parts.append((begin, flat))
        self.size = begin + len(flat)
        return begin

    def whole(self) -> NDArray[Any]:
        """All of them."""
        out = aligned((max(1, self.size),), self.dtype.type)
        for begin, flat in self.parts:
            out[begin : begin + len(flat)] = flat
        return out


class Builder:
    """Lays out layers one after another; `plan` is what has been laid out."""

    def __init__(self) -> None:
        self.layers: list[dict[str, int]] = []
        self._inputs: list[tuple[int, int]] = []  # channels and side of what each block reads
        self._bytes, self._ints, self._floats = _Arena(np.uint8), _Arena(np.int32), _Arena(np.float32)
        self._indices, self._masks = _Arena(np.uint64), _Arena(np.uint32)
        self._border = np.zeros(3, np.uint8)
        self._products = 0

    def stem(self, stem: Stem, size: int, mean: tuple[int, int, int], tensors: Tensors) -> None:
        """tensors: `weight`, `scale`, `shift`, `slope` as in `docs/architecture.md`; size: side of a tile."""
        k = stem.kernel
        bgr = tensors["weight"].astype(np.int8)[..., ::-1]  # tiles come so, RGB is the model's order
        words = -(-3 * k // WORD_BYTES)
        lines = np.zeros((stem.channels, k, WORD_BYTES * words), np.int8)
        lines[:, :, : 3 * k] = bgr.reshape(stem.channels, k, -1)
        zero = np.array(mean[::-1], np.int32) - int(FLIP)
        base = -(bgr.astype(np.int32) * zero).sum((1, 2, 3), dtype=np.int32)
        width = size + 2 * stem.padding
        layer = self._convolution(stem, size, base[:, None], lines.view(np.uint8).reshape(stem.channels, -1, 4), 3)
        self._products += layer["pixels"] * bgr.size
        layer |= {"stem": 1, "image": width * width}
        layer["spans"] = self._indices.add(3 * width * np.arange(k)[:, None] + WORD_BYTES * np.arange(words))
        layer["inside"] = self._indices.add(_inside(size, stem.padding))
        layer["source_pixels"] = size * size
        self._border = np.array(mean[::-1], np.uint8) ^ FLIP
        self._finish(layer, stem.channels, stem.pool, tensors["scale"].astype(np.float32), tensors)

    def block(
        self, block: Block, c_in: int, side: int, tensors: Tensors, tap: int | None = None, deviation: bool = True
    ) -> None:
        """tensors: `in_shift`, `bits`, `q`, `s`, `scale`, `shift`, `slope` as in `docs/architecture.md`.

        tap: the first column of the features that its output's moments are.
        """
        bits, q = tensors["bits"].astype(np.uint8), tensors["q"].astype(np.uint8)
        width = side + 2 * block.padding
        cut = cut_weights(bits, q, c_in, block.kernel, block.beta_w, block.beta_a, width)
        beta = block.beta_a or c_in
        groups = -(-c_in // beta)
        packed = len(cut.layout) + groups
        layer = self._convolution(block, side, cut.base, cut.steps, packed)
        self._products += layer["pixels"] * block.channels * block.kernel**2 * c_in
        layer |= {
            "source_wide": padded(c_in),
            "source_pixels": side * side,
            "channels": c_in,
            "beta": min(beta, c_in),
            "in_shift": self._floats.add(_filled(tensors["in_shift"].astype(np.float32), padded(c_in))),
            "inside": self._indices.add(packed * _inside(side, block.padding)),
            "words": len(cut.layout),
            "groups": groups,
            "image": width * width * packed,
            "origins": self._indices.add([piece.channel // WORD_BITS * WORD_BITS for piece in cut.layout]),
            "masks": self._masks.add([((1 << p.length) - 1) << p.channel % WORD_BITS for p in cut.layout]),
            "paired": int(cut.paired),
            "spans": self._indices.add(cut.spans),
            "kind": cut.kind,
            "short": int(NONE),
        }
        self._inputs.append((c_in, side))
        if block.shortcut:
            c_in, side = self._inputs[-block.shortcut]
            halves = side != layer["side"]
            half = np.arange(0, side if halves else 0, 2)
            repeats = c_in % WORD_BITS != 0 and block.channels > c_in
            short_wide = padded(block.channels if repeats else c_in)
            layer |= {
                "short": 0,
                "around": block.shortcut,
                "repeats": int(repeats),
                "short_wide": short_wide,
                "short_channels": short_wide,
                "short_side": side,
                "near_wide": padded(c_in),
                "near_channels": c_in,
                "halves": int(halves),
                "corners": self._indices.add(short_wide * (half[:, None] * side + half)),
            }
        gain = tensors["scale"].astype(np.float32) * tensors["s"].astype(np.float32)
        if tap is not None:
            layer |= {"tap": tap, "tapped": block.channels, "deviation": int(deviation)}
        self._finish(layer, block.channels, block.pool, gain, tensors)

    def _convolution(
        self,
        own: Stem | Block,
        side: int,
        base: NDArray[np.int32],
        steps: NDArray[np.uint8],
        each: int,
    ) -> dict[str, int]:
        out, width = conv_side(own, side), side + 2 * own.padding
        corners = own.stride * np.arange(out)
        windows = corners[:, None] * width + corners
        return {
            "tap": int(NONE),
            "short": int(NONE),
            "side": out,
            "pixels": out * out,
            "windows": self._indices.add(each * windows),
            "steps": self._bytes.add(tiles(steps)),
            "lines": steps.shape[1],
            "begins": self._ints.add(tiles(base)),
            "runs": base.shape[1],
            "tiles": padded(own.channels) // BACKEND.width,
            "together": max(1, TOGETHER_BYTES // (steps.shape[1] * WORD_BYTES * BACKEND.width)),
        }

    def _finish(self, layer: dict[str, int], channels: int, pool: Pool | None, gain: Floats, tensors: Tensors) -> None:
        layer |= {"wide": padded(channels), "result_side": layer["side"]}
        for name, x in (("gain", gain), ("shift", tensors["shift"]), ("slope", tensors["slope"])):
            layer[name] = self._floats.add(_filled(x.astype(np.float32), padded(channels)))
        if pool:
            layer |= {
                "pool": pool.size,
                "pool_stride": pool.stride,
                "pool_padding": pool.padding,
                "pool_mean": int(pool.kind == "mean"),
                "result_side": pool.side(layer["side"]),
            }
        self.layers.append(layer)

    def layout(self, images: int = 0) -> "Layout":
        """The layers so far, in pieces of `images` images; 0 for as many as fit in the cache.

        Maps take turns in two places, since a layer reads what the one before it wrote; one that adds its input itself
        (a shortcut of the same pixels and channels) writes over it. What a pool reads and what a shortcut repeats have
        a third and a fourth, and what a shortcut reads after other blocks has one of its own. Packed inputs all have
        their own: the scales of their borders stay zero.
        """
        sizes = [layer["pixels"] * layer["wide"] for layer in self.layers]
        images = images or max(1, min(MOST_IMAGES, PIECE_BYTES // (4 * max(sizes))))
        kept = self._kept()
        spare = 4 + len(set(kept.values()))
        maps, words = _Places(spare + 1), 0
        first = self.layers[0]
        place = maps.take(1, first.get("source_wide", 0) * first["source_pixels"] * images)
        for i, layer in enumerate(self.layers):
            layer["source"] = place
            if "stem" not in layer:
                layer["packed"] = words
                words += -(-layer["image"] * images // ALIGNMENT) * ALIGNMENT
            if layer.get("repeats"):
                layer["short"] = maps.take(3, layer["short_side"] ** 2 * layer["short_wide"] * images)
            if i in kept:
                place = 4 + kept[i]
            elif i - 1 in kept or not _adds_its_input(layer):
                place = 0 if place else 1
            layer["result"] = maps.take(place, layer["result_side"] ** 2 * layer["wide"] * images)
            layer["out"] = maps.take(2, layer["pixels"] * layer["wide"] * images) if "pool" in layer else place
            layer["spare"] = maps.take(spare, layer["wide"])
        for i, layer in enumerate(self.layers):
            near = i - layer.pop("around", 1)
            layer["near"] = self.layers[near]["result"] if near >= 0 else layer["source"]
        # Where the places begin is known only now that the largest taker of each is.
        for layer in self.layers:
            for name in ("source", "near", "out", "result", "spare"):
                layer[name] = maps.begin(layer.get(name, 0))
            if layer["short"] != int(NONE):
                layer["short"] = maps.begin(layer["short"]) if layer.get("repeats") else layer["near"]
        table = np.zeros(len(self.layers), LAYER).view(np.recarray)
        for row, layer in zip(table, self.layers, strict=True):
            for name, value in layer.items():
                row[name] = value
        plan = Plan(
            table,
            self._bytes.whole(),
            self._ints.whole(),
            self._floats.whole(),
            self._indices.whole(),
            self._masks.whole(),
        )
        pixels = first["image"] if "stem" in first else 0
        return Layout(plan, images, self._products, pixels * images, self._border, words, maps.size)

    def _kept(self) -> dict[int, int]:
        """Layers whose results are read by a shortcut around several blocks -> places of their own, used in turn."""
        until: dict[int, int] = {}
        for i, layer in enumerate(self.layers):
            if layer.get("around", 1) > 1:
                until[i - layer["around"]] = i
        places: dict[int, int] = {}
        ends: list[int] = []  # of each place, the last layer that reads it
        for i, end in sorted(until.items()):
            free = [place for place, last in enumerate(ends) if last < i]
            places[i] = free[0] if free else len(ends)
            ends[places[i] : places[i] + 1] = [end]
        return places


def _adds_its_input(layer: Mapping[str, int]) -> bool:
    """Whether each output is a sum and the input of just this pixel and channel."""
    if layer["short"] == int(NONE) or layer["around"] > 1 or layer["halves"] or layer["repeats"] or "pool" in layer:
        return False
    return layer["short_wide"] == layer["wide"]


class _Places:
    """Room that takers use in turn: each place is as large as its largest taker."""

    def __init__(self, count: int) -> None:
        self._sizes = [0] * count

    def take(self, place: int, size: int) -> int:
        """The number of the place, which now has room for `size` items."""
        self._sizes[place] = max(self._sizes[place], -(-size // ALIGNMENT) * ALIGNMENT)
        return place

    def begin(self, place: int) -> int:
        """Where the place begins."""
        return sum(self._sizes[:place])

    @property
    def size(self) -> int:
        """Items in all."""
        return sum(self._sizes)


@dataclass(frozen=True, eq=False)
class Layout:
    """A plan, its products for an image, and what its buffers need for `images` of them.

    That is pixels of tiles, with their border's colour (BGR), packed words and scales, and floats of maps.
    """

    plan: Plan
    images: int
    products: int
    pixels: int
    border: NDArray[np.uint8]
    words: int
    maps: int

    def buffers(self) -> Buffers:
        """Work space for one thread, or one team of them."""
        pixels = np.concatenate([np.tile(self.border, self.pixels), np.zeros(WORD_BYTES, np.uint8)])
        return Buffers(
            self.images,
            pixels,  # one word more: the last one of a stem's line may reach beyond it
            aligned((self.words,), np.uint32),
            aligned((self.maps,), np.float32),
        )


def of_network(spec: NetworkSpec, tensors: Tensors) -> Layout:
    """The layout of a whole network. Raises ArtifactError for one in the paper's layout."""
    if spec.layout != "channel":
        raise ArtifactError(
            f"network {spec.name!r} has the layout {spec.layout!r}, which does not fly; train 'channel'"
        )
    builder, column = Builder(), 0
    builder.stem(spec.stem, spec.input_size, spec.mean, _own(tensors, "stem."))
    for i, (block, c_in, side) in enumerate(zip(spec.blocks, spec.block_inputs(), spec.sides(), strict=False)):
        tap = column if i in spec.taps else None
        builder.block(block, c_in, side, _own(tensors, f"block{i}."), tap, spec.deviation)
        column += (1 + spec.deviation) * block.channels if i in spec.taps else 0
    return builder.layout()


def _own(tensors: Tensors, prefix: str) -> dict[str, NDArray[np.generic]]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _inside(side: int, border: int) -> NDArray[np.intp]:
    """Where each pixel of a square image stands in the same one with a border."""
    lines = np.arange(border, border + side)
    return lines[:, None] * (side + 2 * border) + lines


def _filled(x: NDArray[Number], length: int) -> NDArray[Number]:
    """x with zeros up to `length` rows."""
    out = np.zeros((length, *x.shape[1:]), x.dtype)
    out[: len(x)] = x
    return out


def padded(channels: int) -> int:
    """`channels`, filled up to whole words."""
    return -(-channels // WORD_BITS) * WORD_BITS


def aligned(shape: tuple[int, ...], dtype: type[Number]) -> NDArray[Number]:
    """Zeros that start at a multiple of ALIGNMENT."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def tiles(rows: NDArray[Number]) -> NDArray[Number]:
    """(O, S, ...) -> (T, S, width * ...): `BACKEND.width` rows side by side, zeros up to the padded O."""
    filled = _filled(rows, padded(len(rows)))
    side_by_side = filled.reshape(-1, BACKEND.width, *rows.shape[1:]).swapaxes(1, 2)
    return side_by_side.reshape(len(side_by_side), rows.shape[1], -1)
