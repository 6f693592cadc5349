"""`python -m benchmarks training`: memory and time of one training step on the device, against a float trainer.

The float twin is written alike (NumPy, the same unfolded products in pieces of images) and trains as the paper does:
float32 weights, Adam's two moments, every gradient until the step, and of each block its input, sums and PReLU input
for the backward pass. peak_bytes: the most that arrays of NumPy took at once, by tracemalloc, from before the trainer
is made until its second step is over; the batch and the network to begin with are not counted on either side.
optimizer_bytes: what of it the float twin keeps for Adam alone.
"""

import gc
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import artifact
from models.artifact import ZOO
from models.model import Model
from models.network import NetworkSpec, block_weight, conv_side, convolve, pooled, prelu, shortcut
from models.ondevice import convolution as conv
from models.ondevice.pooling import pool_backward, pool_forward, shortcut_backward
from models.ondevice.trainer import OnDevice
from models.training.recipe import read

BATCH = 40
"""As Wang et al. 2021, who needed 154.37 MiB on a Raspberry Pi 3."""
Floats = NDArray[np.float32]
SMALL = ("in_shift", "scale", "shift", "slope")


class FloatTwin:
    """The same network in float32, trained by Adam. Features are means; it is here to be measured."""

    def __init__(self, model: Model) -> None:
        self.model, self.spec = model, model.spec
        self.parameters: dict[str, Floats] = {}
        for i, block in enumerate(model.spec.blocks):
            weight = block_weight(model.spec, model.tensors, i).reshape(block.channels, -1)
            self.parameters[f"{i}.weight"] = weight.copy()
            for name in SMALL:
                self.parameters[f"{i}.{name}"] = model.tensors[f"block{i}.{name}"].copy()
        last = model.spec.blocks[-1].channels
        self.parameters["head"] = np.zeros((len(model.classes), last), np.float32)
        self.moments = {n: (np.zeros_like(x), np.zeros_like(x)) for n, x in self.parameters.items()}
        self.steps = 0

    def step(self, tiles: NDArray[np.uint8], labels: NDArray[np.int64], rate: float = 1e-3) -> float:
        """One step; the mean cross-entropy before it."""
        tensors, spec, own = self.model.tensors, self.spec, self.parameters
        stem = spec.stem
        rgb = tiles[..., ::-1].astype(np.float32) - np.array(spec.mean, np.float32)
        parts = [
            convolve(rgb[a : a + 4], tensors["stem.weight"].astype(np.float32), stem.stride, stem.padding)
            for a in range(0, len(rgb), 4)
        ]
        y = np.concatenate(parts) * tensors["stem.scale"] + tensors["stem.shift"]
        x = pooled(prelu(y, tensors["stem.slope"]), stem.pool)
        del parts, y, rgb
        kept = []
        for i, (block, c_in, side) in enumerate(zip(spec.blocks, spec.block_inputs(), spec.sides(), strict=False)):
            shifted = x + own[f"{i}.in_shift"]
            out = conv_side(block, side)
            sums = np.empty((len(x), out, out, block.channels), np.float32)
            for a, b in conv.pieces(block, side, c_in, len(x)):
                sums[a:b] = (conv.unfold(shifted[a:b], block) @ own[f"{i}.weight"].T).reshape(b - a, out, out, -1)
            z = sums * own[f"{i}.scale"] + own[f"{i}.shift"]
            if block.shortcut:
                z += shortcut(x, out, block.channels)
            x, place = prelu(z, own[f"{i}.slope"]), None
            if block.pool:
                x, place = pool_forward(x, block.pool)
            kept.append((shifted, sums, z, place))
        features = x.mean((1, 2))
        logits = features @ own["head"].T
        chance = np.exp(logits - logits.max(1, keepdims=True))
        chance /= chance.sum(1, keepdims=True)
        loss = float(-np.log(chance[np.arange(len(labels)), labels] + 1e-12).mean())
        chance[np.arange(len(labels)), labels] -= 1
        chance /= np.float32(len(labels))
        found = {"head": chance.T @ features}
        grad = np.broadcast_to(((chance @ own["head"]) / (x.shape[1] ** 2))[:, None, None], x.shape).astype(np.float32)
        for i in reversed(range(len(spec.blocks))):
            grad = self._backward(i, kept.pop(), grad, found)
        self._adam(found, rate)
        return loss

    def _backward(self, i: int, kept: tuple[Any, ...], grad: Any, found: dict[str, Floats]) -> Any:
        block, own = self.spec.blocks[i], self.parameters
        shifted, sums, z, place = kept
        side, c_in = shifted.shape[1], shifted.shape[3]
        if block.pool:
            grad = pool_backward(grad, place, block.pool, z.shape[1])
        found[f"{i}.slope"] = (grad * np.minimum(z, 0)).sum((0, 1, 2))
        grad = np.where(z < 0, grad * own[f"{i}.slope"], grad)
        found[f"{i}.shift"], found[f"{i}.scale"] = grad.sum((0, 1, 2)), (grad * sums).sum((0, 1, 2))
        total = np.zeros_like(own[f"{i}.weight"])
        back = np.zeros_like(shifted)
        for a, b in conv.pieces(block, side, c_in, len(shifted)):
            outer = (grad[a:b] * own[f"{i}.scale"]).reshape(-1, block.channels)
            total += outer.T @ conv.unfold(shifted[a:b], block)
            back[a:b] = conv.fold(outer @ own[f"{i}.weight"], block, (b - a, *shifted.shape[1:]))
        found[f"{i}.weight"], found[f"{i}.in_shift"] = total, back.sum((0, 1, 2))
        return back + shortcut_backward(grad, side, c_in) if block.shortcut else back

    def _adam(self, found: dict[str, Floats], rate: float) -> None:
        self.steps += 1
        for name, grad in found.items():
            m, v = self.moments[name]
            m += np.float32(0.1) * (grad - m)
            v += np.float32(0.001) * (np.square(grad) - v)
            size = np.sqrt(v / np.float32(1 - 0.999**self.steps)) + np.float32(1e-8)
            self.parameters[name] -= np.float32(rate / (1 - 0.9**self.steps)) * m / size


def measured(make: Callable[[Model], Any], model: Model, tiles: NDArray[np.uint8]) -> tuple[int, float]:
    """Peak bytes of two steps, and milliseconds of the second of two more, without tracing."""
    labels = np.arange(len(tiles)) % len(model.classes)
    make(model).step(tiles[:2], labels[:2])  # compiles what Numba keeps from then on
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    trainer = make(model)
    for _ in range(2):
        trainer.step(tiles, labels)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    trainer.step(tiles, labels)
    started = time.perf_counter()
    trainer.step(tiles, labels)
    return peak, 1e3 * (time.perf_counter() - started)


def model_of(spec: NetworkSpec, classes: int) -> Model:
    """Random weights; only their number matters."""
    rng = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape) in spec.shapes().items():
        if dtype == "float32":
            tensors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32) * np.float32(
                0.02 if name[-2:] == ".s" else 1
            )
        else:
            tensors[name] = rng.integers(1, 127, shape).astype(dtype)
    tensors["stem.scale"] *= np.float32(1e-4)  # of sums of pixels times -127..127
    for i, (block, c_in) in enumerate(zip(spec.blocks, spec.block_inputs(), strict=True)):
        tensors[f"block{i}.scale"] /= np.float32(np.sqrt(block.kernel**2 * c_in))
        tensors[f"block{i}.s"] /= np.float32(127)
        if extra := block.kernel**2 * c_in % 8:
            tensors[f"block{i}.bits"][:, -1] &= (1 << extra) - 1
    head = np.zeros((classes, spec.feature_count), np.int16)
    tensors |= {"head.weight": head, "head.bias": np.zeros(classes, np.int16)}
    return Model(spec, tensors, [str(i) for i in range(classes)])


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """Rows for each network: on the device, and its float twin."""
    alexnet = read(ZOO / "alexnet-cifar.toml")[0].network
    models = {"default, 64 x 64": artifact.load(artifact.DEFAULT)}
    if not quick:
        models["alexnet-cifar (16,2)"] = model_of(alexnet.with_betas(16, 2), 10)
        models["alexnet-cifar (16, per pixel)"] = model_of(alexnet.with_betas(16, 0), 10)
    found: list[dict[str, object]] = []
    for name, model in models.items():
        progress(name)
        size = model.spec.input_size
        tiles = np.random.default_rng(1).integers(0, 256, (BATCH, size, size, 3), np.uint8)
        twin, twin_ms = measured(FloatTwin, model, tiles)
        own, ms = measured(OnDevice, model, tiles)
        weights = sum(x.nbytes for x in FloatTwin(model).parameters.values())
        both = {"model": name, "batch": BATCH, "weights": weights // 4}
        found.append({**both, "trainer": "on device", "peak_bytes": own, "vs_float_bytes": twin / own, "step_ms": ms})
        found.append({**both, "trainer": "float twin", "peak_bytes": twin, "vs_float_bytes": 1.0, "step_ms": twin_ms})
        found[-1]["optimizer_bytes"], found[-2]["optimizer_bytes"] = 2 * weights, 0
    return found
