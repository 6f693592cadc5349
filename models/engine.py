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

from models import kernels
from models.binarize import block_scales
from models.bits import pack_signs, unpack_signs
from models.jit import without_broken_cache
from models.model import Model
from models.network import HEAD_STEP, POOL_EPSILON
from models.plan import BlockBuffers, BlockPlan, StemBuffers, StemPlan

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


@dataclass(frozen=True, eq=False)
class _Buffers:
    """The work space of one thread."""

    stem: StemBuffers
    blocks: list[BlockBuffers]


class Engine:
    """A model, ready to run. `threads` is how many tiles are computed at once; safe to call from several threads.

    Raises ArtifactError where the network cannot be computed with packed bits.
    """

    def __init__(self, model: Model, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"an engine needs at least one thread, not {threads}")
        self.model = model
        spec = model.spec
        self._stem = StemPlan(spec, model.tensors)
        self._blocks: list[BlockPlan] = []
        size = self._stem.out_size
        for i, (block, c_in) in enumerate(zip(spec.blocks, spec.block_inputs(), strict=True)):
            prefix = f"block{i}."
            own = {name.removeprefix(prefix): x for name, x in model.tensors.items() if name.startswith(prefix)}
            self._blocks.append(BlockPlan(block, c_in, size, own))
            size = self._blocks[-1].out_size
        self._buffers: SimpleQueue[_Buffers] = SimpleQueue()
        for _ in range(threads):
            self._buffers.put(
                _Buffers(self._stem.buffers(PIECE_IMAGES), [b.buffers(PIECE_IMAGES) for b in self._blocks])
            )
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
        """One piece through the network, in buffers that nobody uses now."""
        tiles, out = tiles[start : start + PIECE_IMAGES], out[start : start + PIECE_IMAGES]
        buffers = self._buffers.get()
        try:
            x, column = self._stem.run(tiles, buffers.stem), 0
            self._blocks[0].pack(x, buffers.blocks[0])
            chain = list(zip(self._blocks, buffers.blocks, strict=True))
            for i, ((block, own), following) in enumerate(zip(chain, [*chain[1:], None], strict=True)):
                x = block.run(x, own, following)
                if i in self.model.spec.taps:
                    kernels.pool_moments(x, block.channels, block.out_size**2, POOL_EPSILON, column, out)
                    column += 2 * block.channels
        finally:
            self._buffers.put(buffers)
