"""The on-device trainer: one step of straight-through training for a batch, layer by layer, in little memory.

BatchNorm stays folded: its statistics are never taken again from a correlated batch, so images do not depend on each
other and go forward in small pieces. Backward goes layer by layer; each is changed as soon as its gradient is there.
Latent weights are half floats without a momentum: they are a running sum of gradients themselves, and a step is
measured by the gradient's own size, so nothing else has to be kept (Helwegen et al. 2019 make the same point).
The stem is not trained. Where only the last blocks are (`first`), what the others make of an image may be kept in
place of it (`frozen`), a few kilobytes: latent replay (Pellegrini et al. 2020).
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.binarize import binarize, binarize_backward, scale_backward
from models.model import Model
from models.network import (
    HEAD_STEP,
    POOL_EPSILON,
    conv_side,
    convolve,
    packed_weight,
    pooled,
    prelu,
    shortcut,
)
from models.ondevice import convolution as conv
from models.ondevice.pooling import pool_backward, pool_forward, shortcut_backward

Floats = NDArray[np.float32]
Half = type[np.floating]

PIECE = 4
"""Images that go forward together."""
SLICE_BYTES = 4 * 2**20
"""Of float weights that are worked on at a time."""
SMALLEST = np.float32(1e-20)
SMALLEST_SCALE = np.float32(2**-14)
"""Of a block whose signs must stay: the smallest normal half float."""
SMALL = ("in_shift", "scale", "shift", "slope")


class Kept:
    """What a block keeps of a batch for the backward pass, in lists of pieces; an item of an array is an image.

    bits: its binarized input; negative: packed, where the PReLU's input is below 0; places: of maxima in their pools;
    values: the PReLU's negative inputs, where a shortcut adds to them what is not kept otherwise; output: where its
    deviation is a feature.
    """

    def __init__(self) -> None:
        self.bits: list[conv.Bits] = []
        self.negative: list[NDArray[np.uint8]] = []
        self.places: list[NDArray[np.uint8]] = []
        self.values: list[NDArray[np.floating]] = []
        self.output: list[NDArray[np.floating]] = []

    def join(self) -> None:
        """Make one piece of all."""
        self.bits = [conv.joined(self.bits)]
        for name in ("negative", "places", "values", "output"):
            if parts := getattr(self, name):
                setattr(self, name, [np.concatenate(parts)])


class Frozen(NamedTuple):
    """What the blocks that are not trained make of images: the map that block `first` reads, float16 (n, H, W, C), and
    the moments of the blocks that were tapped before, float32 (n, ...)."""

    map: NDArray[np.float16]
    moments: Floats

    def __len__(self) -> int:
        return len(self.map)


Images = NDArray[np.uint8] | Frozen
"""uint8 (n, S, S, 3) BGR tiles, or what the frozen blocks made of them."""


class OnDevice:
    """Trains a model's blocks and head. `kept` is the dtype of latent weights and of scales that are kept.

    latent: the latent weights (O, K) of each block to begin with; by default, the binarized ones. first: the blocks
    before it stay as they are. scope: "signs" trains all of a block, "scales" all but the signs. Raises ValueError for
    a shortcut around several blocks, and for layers in full precision.
    """

    def __init__(
        self,
        model: Model,
        latent: list[Floats] | None = None,
        kept: Half = np.float16,
        first: int = 0,
        scope: Literal["scales", "signs"] = "signs",
    ) -> None:
        spec = model.spec
        self.first, self.scope = first, scope
        if any(block.shortcut > 1 for block in spec.blocks):
            raise ValueError("shortcuts around several blocks are not trained on the device; train offline")
        if any(1 in (block.beta_w, block.beta_a) for block in spec.blocks):
            raise ValueError("layers in full precision (beta = 1) are not trained on the device; train offline")
        self.model, self.spec, self.kept = model, spec, kept
        self.latent = [self._flown(i) if latent is None else latent[i].astype(kept) for i in range(len(spec.blocks))]
        self.small = [{n: model.tensors[f"block{i}.{n}"].copy() for n in SMALL} for i in range(len(spec.blocks))]
        head = model.tensors["head.weight"], model.tensors["head.bias"]
        self.head, self.bias = (x.astype(np.float32) * np.float32(HEAD_STEP) for x in head)

    def _flown(self, i: int) -> NDArray[np.floating]:
        """The weights of block i as they fly, in the dtype of latent ones."""
        block, entries = self.spec.blocks[i], self.spec.blocks[i].kernel ** 2 * self.spec.block_inputs()[i]
        packed = [self.model.tensors[f"block{i}.{name}"] for name in ("bits", "q", "s")]
        out = np.empty((block.channels, entries), self.kept)
        for top in range(0, block.channels, conv.SLICE):
            bits, q, s = (tensor[top : top + conv.SLICE] for tensor in packed)
            out[top : top + conv.SLICE] = conv.unpacked_weight(bits, q, s, beta_w=block.beta_w, entries=entries)
        return out

    # --- forward ---------------------------------------------------------------------------------------------------

    def frozen(self, tiles: NDArray[np.uint8]) -> Frozen:
        """What the blocks before `first` make of tiles; `step` takes it in their place."""
        maps, moments = self._begin(tiles)
        return Frozen(np.concatenate(maps).astype(np.float16), np.concatenate(moments))

    def _begin(self, images: Images) -> tuple[list[Floats], list[Floats]]:
        """By piece: the map (n, H, W, C) that block `first` reads, and the moments (n, ...) that were tapped before."""
        places = [slice(a, a + PIECE) for a in range(0, len(images), PIECE)]
        if isinstance(images, Frozen):
            return [images.map[own].astype(np.float32) for own in places], [images.moments[own] for own in places]
        maps = [self._stem(images[own]) for own in places]
        moments = [np.zeros((len(x), 0), np.float32) for x in maps]
        for i in range(self.first):
            self._block_forward(i, maps, moments)
        return maps, moments

    def _block_forward(self, i: int, maps: list[Floats], moments: list[Floats]) -> Kept:
        """Takes the pieces of a batch through block i, in place, and adds what is tapped there to the moments."""
        block, own, kept = self.spec.blocks[i], self.small[i], Kept()
        sums = conv.convolved(block, self.spec.sides()[i], self.latent[i], own["in_shift"], maps, PIECE)
        for piece, (x, z) in enumerate(zip(maps, sums, strict=True)):
            kept.bits.append(conv.bits_of(x + own["in_shift"], block.beta_a, self.kept))
            z *= own["scale"]
            z += own["shift"]
            if block.shortcut:
                z += shortcut(x, z.shape[1], block.channels)
                kept.values.append(np.minimum(z, 0).astype(self.kept))
            kept.negative.append(np.packbits((z < 0).reshape(len(z), -1), axis=1))
            x = prelu(z, own["slope"])
            if block.pool:
                x, place = pool_forward(x, block.pool)
                kept.places += [] if place is None else [place]
            if i in self.spec.taps:
                tapped = [x.mean((1, 2))]
                if self.spec.deviation:
                    tapped.append(np.sqrt(x.var((1, 2)) + np.float32(POOL_EPSILON)))
                    kept.output.append(x.astype(self.kept))
                moments[piece] = np.concatenate([moments[piece], *tapped], 1)
            maps[piece] = x
        kept.join()
        return kept

    def _forward(self, images: Images) -> tuple[list[Kept], Floats]:
        """What the backward pass needs of each block that is trained, and the features before they are binarized,
        (n, F)."""
        maps, moments = self._begin(images)
        kept = [self._block_forward(i, maps, moments) for i in range(self.first, len(self.spec.blocks))]
        scale, shift = self.model.tensors["features.scale"], self.model.tensors["features.shift"]
        return kept, np.concatenate(moments) * scale + shift

    def _stem(self, tiles: NDArray[np.uint8]) -> Floats:
        tensors, stem = self.model.tensors, self.spec.stem
        rgb = tiles[..., ::-1].astype(np.float32) - np.array(self.spec.mean, np.float32)
        y = convolve(rgb, tensors["stem.weight"].astype(np.float32), stem.stride, stem.padding)
        return pooled(prelu(y * tensors["stem.scale"] + tensors["stem.shift"], tensors["stem.slope"]), stem.pool)

    def logits(self, images: Images) -> Floats:
        """The head's answers, float32 (n, classes)."""
        _, z = self._forward(images)
        out: Floats = binarize(z, self.spec.beta_f) @ self.head.T + self.bias
        return out

    # --- backward --------------------------------------------------------------------------------------------------

    def step(self, images: Images, labels: NDArray[np.integer[Any]], rate: float = 1e-3) -> float:
        """One step on images and their classes; the mean cross-entropy before it.

        rate: how far an average latent weight moves; 0 changes nothing. Raises ValueError where the loss is not finite.
        """
        return self._learn(images, labels, rate, None)

    def gradients(self, images: Images, labels: NDArray[np.integer[Any]]) -> dict[str, Floats]:
        """The gradient of every parameter by name, for tests and for a look; it needs the memory that `step` saves."""
        found: dict[str, Floats] = {}
        self._learn(images, labels, 0.0, found)
        return found

    def _learn(
        self, images: Images, labels: NDArray[np.integer[Any]], rate: float, found: dict[str, Floats] | None
    ) -> float:
        kept, z = self._forward(images)
        a = binarize(z, self.spec.beta_f)
        logits = a @ self.head.T + self.bias
        logits -= logits.max(1, keepdims=True)
        chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        loss = float(-np.log(chance[np.arange(len(labels)), labels] + 1e-12).mean())
        if not np.isfinite(loss):
            raise ValueError(f"the loss is {loss}: the weights are not finite")
        error = chance.astype(np.float32)
        error[np.arange(len(labels)), labels] -= 1
        error /= np.float32(len(labels))
        grad_z = (
            binarize_backward(z, self.spec.beta_f, error @ self.head) if self.spec.beta_f != 1 else error @ self.head
        )
        taps = grad_z * self.model.tensors["features.scale"]
        self._change("head.weight", self.head, error.T @ a, rate, found)
        self._change("head.bias", self.bias, error.sum(0), rate, found)
        grad: Floats | None = None
        for i in reversed(range(self.first, len(self.spec.blocks))):
            grad = self._block_backward(i, kept.pop(), taps, grad, rate, found)
        return loss

    def _output_gradient(self, i: int, kept: Kept, taps: Floats, grad: Floats | None, first: int, last: int) -> Floats:
        """The gradient of block i's output for some images, from the next block (`grad`) and from the features."""
        block, side = self.spec.blocks[i], self.spec.sides()[i + 1]
        out = np.zeros((last - first, side, side, block.channels), np.float32)
        if grad is not None:
            out += grad[first:last]
        if i not in self.spec.taps:
            return out
        column = sum((1 + self.spec.deviation) * self.spec.blocks[t].channels for t in self.spec.taps if t < i)
        pixels = np.float32(side * side)
        out += (taps[first:last, column : column + block.channels] / pixels)[:, None, None]
        if self.spec.deviation:
            x = kept.output[0][first:last].astype(np.float32)
            centred = x - x.mean((1, 2), keepdims=True)
            deviation = np.sqrt(np.square(centred).mean((1, 2)) + np.float32(POOL_EPSILON))
            second = taps[first:last, column + block.channels : column + 2 * block.channels]
            out += (second / deviation / pixels)[:, None, None] * centred
        return out

    def _block_backward(
        self, i: int, kept: Kept, taps: Floats, grad: Floats | None, rate: float, found: dict[str, Floats] | None
    ) -> Floats | None:
        """Change block i; the gradient of its input, or None for the first block that is trained.

        Some output channels at a time, so that neither weights nor their gradient are ever whole in floats.
        """
        block, side, c_in = self.spec.blocks[i], self.spec.sides()[i], self.spec.block_inputs()[i]
        own, latent, bits = self.small[i], self.latent[i], kept.bits[0]
        n, out = bits.shape[0], conv_side(block, side)
        totals = {name: np.zeros_like(own[name]) for name in SMALL}
        back = np.zeros(bits.shape, np.float32) if i > self.first or found is not None else None
        near = np.zeros(bits.shape, np.float32) if back is not None and block.shortcut else None
        whole: list[Floats] = []
        step = max(1, SLICE_BYTES // (4 * latent.shape[1]))
        for top in range(0, block.channels, step):
            rows = slice(top, top + step)
            weight = conv.flown(latent[rows], block.beta_w)
            total = np.zeros(weight.shape, np.float32)
            for a, b in conv.pieces(block, side, c_in, n):
                part = self._output_gradient(i, kept, taps, grad, a, b)
                if block.pool:
                    part = pool_backward(part, kept.places[0][a:b] if kept.places else None, block.pool, out)
                shape = (b - a, out, out, block.channels)
                below = np.unpackbits(kept.negative[0][a:b], axis=1, count=int(np.prod(shape[1:]))).reshape(shape) > 0
                inner = np.where(below, part * own["slope"], part)
                if near is not None and top == 0:
                    near[a:b] = shortcut_backward(inner, side, c_in)
                columns = conv.unfold(bits.values(a, b), block)
                sums = (columns @ weight.T).reshape(*shape[:3], -1)
                if block.shortcut:
                    z = kept.values[0][a:b, ..., rows].astype(np.float32)
                else:
                    z = sums * own["scale"][rows] + own["shift"][rows]
                totals["slope"][rows] += (part[..., rows] * z * below[..., rows]).sum((0, 1, 2))
                totals["shift"][rows] += inner[..., rows].sum((0, 1, 2))
                totals["scale"][rows] += (inner[..., rows] * sums).sum((0, 1, 2))
                outer = (inner[..., rows] * own["scale"][rows]).reshape(-1, len(weight))
                total += outer.T @ columns
                if back is not None:
                    back[a:b] += conv.fold(outer @ weight, block, (b - a, *bits.shape[1:]))
            before = latent[rows].astype(np.float32)
            backward = scale_backward if self.scope == "scales" else binarize_backward
            total = backward(before, block.beta_w, total)
            if found is not None:
                whole.append(total)
            elif rate:
                size = np.sqrt(np.mean(np.square(total))) + SMALLEST
                moved = np.clip(before - np.float32(rate) / size * total, -1, 1)
                if self.scope == "scales":
                    moved = np.copysign(np.maximum(np.copysign(1, before) * moved, SMALLEST_SCALE), before)
                latent[rows] = moved
        if found is not None:
            found[f"block{i}.weight"] = np.concatenate(whole)
        if back is not None:
            for a, b in conv.pieces(block, side, c_in, n):
                back[a:b] = bits.backward(a, b, back[a:b])
                totals["in_shift"] += back[a:b].sum((0, 1, 2))
            back += 0 if near is None else near
        for name in SMALL:
            self._change(f"block{i}.{name}", own[name], totals[name], rate, found)
        return back

    def _change(self, name: str, x: Floats, grad: Floats, rate: float, found: dict[str, Floats] | None) -> None:
        """Move small parameters against their gradient, by `rate` of their own size at most on average."""
        if found is not None:
            found[name] = grad
        elif rate:
            size = np.sqrt(np.mean(grad**2)) + SMALLEST
            x -= np.float32(rate) / size * grad * (np.abs(x).mean() + np.float32(0.01))

    # --- what flies ------------------------------------------------------------------------------------------------

    def trained(self) -> Model:
        """The model with what was learned, on the grids that fly."""
        changed: dict[str, Any] = {}
        for i in range(self.first, len(self.spec.blocks)):
            latent, own = self.latent[i], self.small[i]
            rows = latent.astype(np.float32)
            changed |= {f"block{i}.{n}": x for n, x in packed_weight(rows, self.spec.blocks[i].beta_w).items()}
            changed |= {f"block{i}.{name}": x.astype(np.float32) for name, x in own.items()}
        limits = np.iinfo(np.int16)
        for name, x in (("head.weight", self.head), ("head.bias", self.bias)):
            changed[name] = np.clip(np.round(x / HEAD_STEP), limits.min, limits.max).astype(np.int16)
        return self.model.with_tensors(changed)
