"""Fast inference: an `Engine` compiles one `Model` into a plan of packed weights and preallocated buffers."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models import kernels, plan
from models.binarize import block_scales
from models.bits import pack_signs, unpack_signs
from models.jit import without_broken_cache
from models.model import Model
from models.network import HEAD_STEP, POOL_EPSILON

TEAM_PRODUCTS = 10**8
"""An image of fewer products is computed by one thread: the others would wait for each other longer than they work."""

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

    def packed(self) -> tuple[bytes, bytes]:
        """Bits and scales as raw bytes, the scales as float16: what label log and learner keep."""
        return self.bits.tobytes(), self.scales.astype(np.float16).tobytes()


class Engine:
    """A model, ready to run. `threads` is how many compute; safe to call from several threads, one after another.

    Raises ArtifactError where the network cannot be computed with packed bits.
    """

    def __init__(self, model: Model, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"an engine needs at least one thread, not {threads}")
        self.model = model
        layout = plan.of_network(model.spec, model.tensors)
        self._plan, self._together = layout.plan, layout.products >= TEAM_PRODUCTS
        self._buffers = [layout.buffers() for _ in range(threads)]
        self._mine = threading.Lock()
        self._others = ThreadPoolExecutor(threads - 1, "engine") if threads > 1 else None
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
        tiles = np.require(tiles, requirements=("C", "W"))  # what the kernels are compiled for
        out = np.empty((len(tiles), self.model.spec.feature_count), np.float32)
        with self._mine:
            self._run(tiles, out)
        return out

    def _run(self, tiles: NDArray[np.uint8], out: Floats) -> None:
        """In pieces that threads take one by one; a few large images are shared by all threads, layer by layer."""
        threads = len(self._buffers)
        alone = not self._together or len(tiles) >= threads * self._buffers[0].images
        shared = np.zeros(kernels.SHARED, np.int64)

        def work(member: int) -> None:
            own, team = (self._buffers[member], 1) if alone else (self._buffers[0], threads)
            kernels.network(self._plan, own, tiles, np.float32(POOL_EPSILON), out, shared, 0 if alone else member, team)

        others = [self._others.submit(work, member) for member in range(1, threads)] if self._others else []
        work(0)
        for other in others:
            other.result()
