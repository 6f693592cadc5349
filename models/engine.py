"""Fast inference: an `Engine` compiles one `Model` into a plan of packed weights and preallocated buffers.

Tiles go through the whole network in pieces of a few images, so that what a block writes is still in the cache when
the next block reads it; with more than one thread, each thread takes pieces and owns its buffers.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from models import kernels, plan
from models.binarize import block_scales
from models.bits import pack_signs, unpack_signs
from models.errors import ArtifactError
from models.jit import LANES, without_broken_cache
from models.model import Model
from models.network import HEAD_STEP, POOL_EPSILON

PIECE_IMAGES = 4
"""Images that go through the network together."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Features:
    """Binary feature vectors of N tiles: bits uint8 (N, ceil(F/8)), scales float32 (N, ceil(F/beta)).

    count: F; beta: features that share a scale, 0 for all.
    """

    bits: Bytes
    scales: Floats
    count: int
    beta: int

    def __len__(self) -> int:
        return len(self.bits)

    def values(self) -> Floats:
        """The features as float32 (N, F): scale * sign."""
        spread: Floats = np.repeat(self.scales, self.beta or self.count, axis=1)[:, : self.count]
        return unpack_signs(self.bits, self.count) * spread


class Engine:
    """A model, ready to run. `threads` is how many tiles are computed at once; safe to call from several threads.

    Raises ArtifactError where the network cannot be computed with packed bits.
    """

    def __init__(self, model: Model, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"an engine needs at least one thread, not {threads}")
        self.model = model
        self._network = _Network(model)
        self._workers: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(threads):
            self._workers.put(_Worker(self._network))
        self._pool = ThreadPoolExecutor(threads, "engine") if threads > 1 else None
        self._scale = model.tensors["features.scale"].astype(np.float32)
        self._shift = model.tensors["features.shift"].astype(np.float32)
        self._head = model.tensors["head.weight"].astype(np.float32).T * np.float32(HEAD_STEP)
        self._bias = model.tensors["head.bias"].astype(np.float32) * np.float32(HEAD_STEP)
        self._warm = False
        self._warming = threading.Lock()

    def warm_up(self) -> None:
        """Compile every kernel, or load it from the cache, so that the first frame is as fast as the others."""
        with self._warming:
            if not self._warm:
                size = self.model.spec.input_size
                without_broken_cache(lambda: self._pooled(np.zeros((1, size, size, 3), np.uint8)))
                self._warm = True

    def features(self, tiles: NDArray[np.uint8]) -> Features:
        """The binary features of uint8 (N, S, S, 3) BGR tiles, N from 0 up; `tiles` is not written to.

        Raises ValueError for tiles of another type or shape.
        """
        spec = self.model.spec
        shape = (spec.input_size, spec.input_size, 3)
        if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1:] != shape:
            raise ValueError(f"tiles are uint8 {('N', *shape)}, not {tiles.dtype} {tiles.shape}")
        self.warm_up()
        z = self._pooled(tiles) * self._scale + self._shift
        return Features(pack_signs(z), block_scales(z, spec.beta_f), spec.feature_count, spec.beta_f)

    def logits(self, features: Features) -> Floats:
        """The head's output for each tile, float32 (N, classes)."""
        out: Floats = features.values() @ self._head + self._bias
        return out

    def _pooled(self, tiles: NDArray[np.uint8]) -> Floats:
        """The moments of the tapped blocks, float32 (N, F)."""
        out = np.empty((len(tiles), self.model.spec.feature_count), np.float32)
        starts = range(0, len(tiles), PIECE_IMAGES)
        if self._pool is None or len(starts) < 2:
            for start in starts:
                self._piece(tiles, out, start)
        else:
            list(self._pool.map(lambda start: self._piece(tiles, out, start), starts))
        return out

    def _piece(self, tiles: NDArray[np.uint8], out: Floats, start: int) -> None:
        worker = self._workers.get()
        try:
            worker.run(tiles[start : start + PIECE_IMAGES], out[start : start + PIECE_IMAGES])
        finally:
            self._workers.put(worker)


class _Layer:
    """One block of the plan, shared by all workers: read only."""

    def __init__(self, model: Model, i: int, size: int) -> None:
        block, c_in = model.spec.blocks[i], model.spec.block_inputs()[i]
        if block.kernel % 2 == 0 or block.stride not in (1, 2) or (block.stride == 2 and size % 2):
            raise ArtifactError(
                f"block {i}: kernel {block.kernel} and stride {block.stride} at {size} x {size} pixels; an odd kernel "
                "with stride 1, or 2 at an even size, can be computed"
            )

        def floats(name: str) -> Floats:
            return model.tensors[f"block{i}.{name}"].astype(np.float32)

        self.channels = block.channels
        self.tapped = i in model.spec.taps
        self.size, self.stride = size, block.stride
        self.out_size = size // block.stride
        self.beta_a = block.beta_a or c_in
        self.groups = -(-c_in // self.beta_a)
        self.in_shift = floats("in_shift")
        self.window = plan.window(size, block.kernel, block.stride)
        self.weights = plan.binary_weights(
            model.tensors[f"block{i}.bits"].astype(np.uint8),
            model.tensors[f"block{i}.q"].astype(np.uint8),
            c_in,
            block.kernel,
            block.beta_w,
            block.beta_a,
            self.window.width,
        )
        self.affine = plan.affine(floats("scale") * floats("s"), floats("shift"), floats("slope"))


class _Network:
    """The plan of a model, shared by all workers: read only."""

    def __init__(self, model: Model) -> None:
        spec = model.spec
        self.size = size = spec.input_size
        if spec.stem.kernel % 2 == 0 or spec.stem.stride < 1:
            raise ArtifactError(f"the stem needs an odd kernel and a stride from 1 up, not {spec.stem}")
        self.stem = spec.stem
        self.stem_window = plan.window(size, spec.stem.kernel, spec.stem.stride)
        weight = model.tensors["stem.weight"].astype(np.float32)
        self.stem_weight = plan.tiles(weight.reshape(spec.stem.channels, -1))
        self.stem_affine = plan.affine(
            *(model.tensors[f"stem.{name}"].astype(np.float32) for name in ("scale", "shift", "slope"))
        )
        grey = np.arange(256, dtype=np.float32)
        mean, std = (np.array(x, np.float32)[:, None] for x in (spec.mean, spec.std))
        self.table = (grey - mean) / std
        self.stem_size = size = (size - 1) // spec.stem.stride + 1
        self.layers: list[_Layer] = []
        for i in range(len(spec.blocks)):
            self.layers.append(_Layer(model, i, size))
            size = self.layers[-1].out_size


class _Worker:
    """The buffers of one thread, for `PIECE_IMAGES` images."""

    def __init__(self, network: _Network) -> None:
        self.network = network

        def floats(pixels: int, channels: int) -> Floats:
            return np.zeros((PIECE_IMAGES * pixels, channels), np.float32)

        widest = max(len(network.stem_weight), *(len(x.weights.bits) for x in network.layers))
        self.sums = np.zeros((kernels.ROWS, widest * LANES), np.float32)
        self.tiles = np.zeros((PIECE_IMAGES, network.size, network.size, 3), np.uint8)
        self.pixels = floats(network.stem_window.image_pixels, 3)
        self.stem_out = floats(network.stem_size**2, network.stem.channels)
        self.words: list[NDArray[np.uint16]] = []
        self.scales: list[Floats] = []
        self.halves: list[Floats] = []
        self.outs: list[Floats] = []
        for layer in network.layers:
            c_in = len(layer.in_shift)
            self.words.append(np.zeros((PIECE_IMAGES * layer.window.image_pixels, -(-c_in // 16)), np.uint16))
            self.scales.append(floats(layer.window.image_pixels, layer.groups))
            self.halves.append(floats(layer.out_size**2 if layer.stride == 2 else 0, c_in))
            self.outs.append(floats(layer.out_size**2, layer.channels))

    def run(self, tiles: NDArray[np.uint8], pooled: Floats) -> None:
        """At most PIECE_IMAGES tiles through the network; pooled (N, F) gets the moments of the tapped blocks."""
        net, images, first = self.network, len(tiles), 0
        self.tiles[:images] = tiles  # contiguous and writeable: what the kernels are compiled for
        kernels.normalise(self.tiles[:images], net.table, net.stem_window, self.pixels)
        x = self.stem_out[: images * net.stem_size**2]
        kernels.stem(self.pixels, net.stem_window, net.stem.kernel, net.stem_weight, net.stem_affine, self.sums, x)
        for i, layer in enumerate(net.layers):
            words, scales = self.words[i], self.scales[i]
            kernels.pack_activations(x, layer.in_shift, layer.beta_a, layer.size, layer.window, words, scales)
            out = self.outs[i][: images * layer.out_size**2]
            shortcut = x
            if layer.stride == 2:
                shortcut = self.halves[i][: len(out)]
                kernels.halve(x, layer.size, shortcut)
            kernels.binary_block(words, scales, layer.window, layer.weights, shortcut, layer.affine, self.sums, out)
            if layer.tapped:
                kernels.pool_moments(out, layer.out_size**2, POOL_EPSILON, first, pooled)
                first += 2 * layer.channels
            x = out
