"""From the tensors of a network to what the kernels read, and the buffers that it computes in.

Weights are cut into pieces of at most a word, so that within a piece every byte has one weight scale, and all of it one
activation scale. A block that ends inside a byte ends the piece: then the packed activations hold the word twice, under
two masks. So any beta_w and beta_a and any number of channels are one case, and multiples of 8 cost nothing; multiples
of 16 save a third of the products, because words can go in pairs.

A plan is read only and may be used from many threads, each with `buffers` of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.bits import unpack_signs
from models.errors import ArtifactError
from models.kernels import FLIP, LAYER, MAX_Q, NONE, Buffers, Floats, Plan
from models.network import Block, NetworkSpec, Pool, Stem, conv_side
from models.simd import BACKEND, WORD_BITS

BYTE_BITS = 8
WORD_BYTES = WORD_BITS // BYTE_BITS
ALIGNMENT = 64
"""Bytes; what vectors are loaded from starts at a multiple, so that no load touches two lines of the cache."""
PIECE_BYTES = 1 << 19
"""Images go through the network together, as many as keep the largest feature map about this small."""
MOST_IMAGES = 8
TOGETHER_BYTES = 1 << 15
"""Weights that stay in the nearest cache beside the activations that they meet."""

EVEN, ODD = [0, 4, 2, 6], [1, 5, 3, 7]
"""Bytes of two words that stand at the four places of the first and of the second one of a pair."""

Number = TypeVar("Number", bound=np.generic)
Tensors = Mapping[str, NDArray[np.generic]]


class Piece(NamedTuple):
    """`length` entries of a tap from `channel` on: in one word, one activation group, and one block in each byte."""

    channel: int
    length: int
    group: int


class Cut(NamedTuple):
    """How a layer reads its packed input, and its weights laid out for that.

    layout: the pieces of a pixel, a word each; spans: (., SPAN); steps: uint8 (O, lines, bytes of a word); base: int32
    (O, runs), minus the sum of all scales of a run; paired: whether the words' bytes are exchanged, pair by pair.
    """

    layout: list[Piece]
    spans: NDArray[np.uint64]
    steps: NDArray[np.uint8]
    base: NDArray[np.int32]
    paired: bool


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
        layer = self._convolution(stem, size, base[:, None], lines.view(np.uint8).reshape(stem.channels, -1, 4))
        self._products += layer["pixels"] * bgr.size
        layer |= {"stem": 1, "image": width * width, "words": words, "span_count": k}
        layer["spans"] = self._indices.add([3 * width * row for row in range(k)])
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
        layer = self._convolution(block, side, cut.base, cut.steps)
        self._products += layer["pixels"] * block.channels * block.kernel**2 * c_in
        layer |= {
            "source_wide": padded(c_in),
            "source_pixels": side * side,
            "channels": c_in,
            "beta": min(beta, c_in),
            "in_shift": self._floats.add(_filled(tensors["in_shift"].astype(np.float32), padded(c_in))),
            "inside": self._indices.add(_inside(side, block.padding)),
            "words": len(cut.layout),
            "groups": -(-c_in // beta),
            "image": width * width,
            "origins": self._indices.add([piece.channel // WORD_BITS * WORD_BITS for piece in cut.layout]),
            "masks": self._masks.add([((1 << p.length) - 1) << p.channel % WORD_BITS for p in cut.layout]),
            "paired": int(cut.paired),
            "spans": self._indices.add(cut.spans),
            "span_count": len(cut.spans),
            "short": int(NONE),
        }
        self._inputs.append((c_in, side))
        if block.shortcut:
            c_in, side = self._inputs[-block.shortcut]
            halves = side != layer["side"]
            half = np.arange(0, side if halves else 0, 2)
            repeats = c_in % WORD_BITS != 0 and block.channels > c_in
            layer |= {
                "short": 0,
                "around": block.shortcut,
                "repeats": int(repeats),
                "short_wide": padded(block.channels if repeats else c_in),
                "short_channels": padded(block.channels if repeats else c_in),
                "short_side": side,
                "near_wide": padded(c_in),
                "near_channels": c_in,
                "halves": int(halves),
                "corners": self._indices.add(half[:, None] * side + half),
            }
        gain = tensors["scale"].astype(np.float32) * tensors["s"].astype(np.float32)
        if tap is not None:
            layer |= {"tap": tap, "tapped": block.channels, "deviation": int(deviation)}
        self._finish(layer, block.channels, block.pool, gain, tensors)

    def _convolution(
        self, own: Stem | Block, side: int, base: NDArray[np.int32], steps: NDArray[np.uint8]
    ) -> dict[str, int]:
        out, width = conv_side(own, side), side + 2 * own.padding
        corners = own.stride * np.arange(out)
        return {
            "tap": int(NONE),
            "short": int(NONE),
            "side": out,
            "pixels": out * out,
            "windows": self._indices.add(corners[:, None] * width + corners),
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

        Maps take turns in two places, since a layer reads what the one before it wrote; what a pool reads and what a
        shortcut repeats have a third and a fourth, and what a shortcut reads after other blocks has one of its own.
        Packed inputs take turns too, but not their scales: those of the
        borders stay zero.
        """
        sizes = [layer["pixels"] * layer["wide"] for layer in self.layers]
        images = images or max(1, min(MOST_IMAGES, PIECE_BYTES // (4 * max(sizes))))
        kept = self._kept()
        maps, words, scales = _Places(4 + len(set(kept.values()))), _Places(2), 0
        first = self.layers[0]
        source = maps.take(1, first.get("source_wide", 0) * first["source_pixels"] * images)
        for i, layer in enumerate(self.layers):
            layer["source"] = source
            if "stem" not in layer:
                layer["word"] = words.take(i % 2, layer["image"] * layer["words"] * images)
                layer["scale"] = scales
                scales += layer["image"] * layer["groups"] * images
            if layer.get("repeats"):
                layer["short"] = maps.take(3, layer["short_side"] ** 2 * layer["short_wide"] * images)
            result = maps.take(4 + kept[i] if i in kept else i % 2, layer["result_side"] ** 2 * layer["wide"] * images)
            layer["out"] = maps.take(2, layer["pixels"] * layer["wide"] * images) if "pool" in layer else result
            layer["result"] = source = result
        for i, layer in enumerate(self.layers):
            near = i - layer.pop("around", 1)
            layer["near"] = self.layers[near]["result"] if near >= 0 else layer["source"]
        # Where the places begin is known only now that the largest taker of each is.
        for layer in self.layers:
            for name, places in (("word", words), ("source", maps), ("near", maps), ("out", maps), ("result", maps)):
                layer[name] = places.begin(layer.get(name, 0))
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
        return Layout(plan, images, self._products, pixels * images, self._border, words.size, scales, maps.size)

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

    That is pixels of tiles, with their border's colour (BGR), packed words, scales, and floats of maps.
    """

    plan: Plan
    images: int
    products: int
    pixels: int
    border: NDArray[np.uint8]
    words: int
    scales: int
    maps: int

    def buffers(self) -> Buffers:
        """Work space for one thread, or one team of them."""
        pixels = np.concatenate([np.tile(self.border, self.pixels), np.zeros(WORD_BYTES, np.uint8)])
        return Buffers(
            self.images,
            pixels,  # one word more: the last one of a stem's line may reach beyond it
            aligned((self.words,), np.uint32),
            aligned((self.scales,), np.float32),
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


def cut_weights(
    bits: NDArray[np.uint8], q: NDArray[np.uint8], c_in: int, kernel: int, beta_w: int, beta_a: int, width: int
) -> Cut:
    """Arrange bits (O, ceil(K/8)) and q (O, ceil(K/beta_w)) for the kernels; 0 for a beta means all.

    width: pixels of a line of the packed image, border included. Raises ValueError where q exceeds 127, a model's
    bound.
    """
    if q.size and q.max() > MAX_Q:
        raise ValueError(f"block scales go up to {MAX_Q}, not {q.max()}")
    taps, rows = kernel * kernel, len(bits)
    beta_w, beta_a = min(beta_w or taps * c_in, taps * c_in), min(beta_a or c_in, c_in)
    positive = unpack_signs(bits, taps * c_in) > 0
    # Pairs: neighbouring bytes always share a scale, and words 0 and 1, 2 and 3, ... a run.
    paired = beta_w % (2 * BYTE_BITS) == 0 or beta_w == taps * c_in
    paired &= (c_in % (2 * BYTE_BITS) == 0 or taps == 1) and (beta_a == c_in or beta_a % (2 * WORD_BITS) == 0)

    layout: list[Piece] = []
    packed: dict[tuple[Piece, ...], int] = {}  # how a tap is cut -> its first packed word: most taps are cut alike
    runs: list[tuple[int, int, int, int, int]] = []  # tap, word, group, pairs, singles
    steps: list[NDArray[np.uint8]] = []  # (O, bytes of a word)
    base: list[NDArray[np.int32]] = []

    def lines(tap: int, run: list[Piece]) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
        """Of each piece, the inverted sign bits and twice the scale of each byte."""
        signs, scales = [], []
        for piece in run:
            entries = np.arange(tap * c_in + piece.channel, tap * c_in + piece.channel + piece.length)
            places = np.arange(piece.length) + piece.channel % WORD_BITS
            word = np.zeros((rows, WORD_BITS), np.uint8)
            word[:, places] = positive[:, entries]
            scale = np.zeros((rows, WORD_BYTES), np.uint8)
            scale[:, places // BYTE_BITS] = 2 * q[:, entries // beta_w]
            signs.append(np.packbits(word, axis=1, bitorder="little"))
            scales.append(scale)
        return signs, scales

    for tap in range(taps):
        cut = tuple(pieces(tap, c_in, beta_w, beta_a))
        if cut not in packed:
            packed[cut] = len(layout)
            layout += cut
        source = packed[cut]
        for group, members in groupby(cut, key=lambda piece: piece.group):
            run = list(members)
            pairs = len(run) // 2 if paired else 0
            runs.append((tap, source, group, pairs, len(run) - 2 * pairs))
            source += len(run)
            signs, scales = lines(tap, run)
            for k in range(0, 2 * pairs, 2):
                # as `kernels._pair` lays the activations; a byte that is not there has no scale, so either's will do
                x, y = np.concatenate(signs[k : k + 2], 1), np.concatenate(scales[k : k + 2], 1)
                steps += [x[:, EVEN], x[:, ODD], np.maximum(y[:, EVEN], y[:, ODD])]
            for k in range(2 * pairs, len(run)):
                steps += [signs[k], scales[k]]
            entries = slice(tap * c_in + run[0].channel, tap * c_in + run[-1].channel + run[-1].length)
            of_run = np.arange(entries.start, entries.stop) // beta_w
            base.append(-q[:, of_run].sum(1, dtype=np.int32))

    spans: list[list[int]] = []
    groups = -(-c_in // beta_a)
    for tap, word, group, pairs, singles in runs:
        pixel, length = tap // kernel * width + tap % kernel, 2 * pairs + singles
        word, group = pixel * len(layout) + word, pixel * groups + group
        last = spans[-1] if spans else []
        if last and [word, group, pairs, singles] == [last[0] + last[2] * length, last[1] + last[2], *last[3:]]:
            last[2] += 1
        else:
            spans.append([word, group, 1, pairs, singles])
    return Cut(layout, np.array(spans, np.uint64), np.stack(steps, 1), np.stack(base, 1), paired and len(layout) > 1)
