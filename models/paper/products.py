"""Matrix products: bits with block scales by the kernel that flies, and floats by a kernel written alike (Fig. 5)."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import kernels, plan
from models.jit import kernel
from models.kernels import ONE, PANEL, ROW_NUMBERS, STEP, WIDTH, ZERO, Buffers, Floats, Plan
from models.network import Block
from models.paper.timing import race
from models.simd import values as v

BETA_W = 16
LARGE = 3e10
"""Products of large squares are repeated as often as makes this many, but three times."""
SMALL = 3e7
"""Products of fewer operations than this are repeated in compiled code: what Python takes for a call would be most
of the time."""


@kernel(_nrt=False)
def float_product(a: Floats, k: np.uint64, w: Floats, out: Floats, m: np.uint64) -> None:
    """The float twin, written alike: a (m, k), w (T, k, width), out (m, T * width), all flat; m is at least ROWS."""
    tiles = np.uint64(len(w)) // (k * WIDTH)
    for panel in range(ZERO, m, PANEL):
        last = min(panel + PANEL, m)
        for tile in range(tiles):
            for p in range(panel, last, STEP):
                rows = v.from_(p if p + STEP < last else last - STEP, ROW_NUMBERS, ONE)
                places, y = v.scale(rows, k), v.no_floats(rows)
                for i in range(k):
                    line = v.load_floats(w, (tile * k + i) * WIDTH)
                    y = v.multiply_add(v.broadcast_floats(a, places, i), line, y)
                v.store_rows(y, out, v.scale(rows, tiles * WIDTH), tile * WIDTH)


@kernel(_nrt=False)
def repeated_float(times: int, a: Floats, k: np.uint64, w: Floats, out: Floats, m: np.uint64) -> None:
    """`float_product` some times, from compiled code."""
    for _ in range(times):
        float_product(a, k, w, out, m)


@kernel(_nrt=False)
def repeated_layer(times: int, plan: Plan, buffers: Buffers, number: int) -> None:
    """`kernels.convolve` over a layer some times, from compiled code."""
    layer = plan.layers[number]
    for _ in range(times):
        for first in range(ZERO, layer.pixels, PANEL):
            kernels.convolve(plan, buffers, layer, ZERO, first, min(first + PANEL, layer.pixels))


class Product(NamedTuple):
    """Operands of one product, packed and as floats: a (m, k), w (n, k), out (m, padded n)."""

    plan: Plan
    buffers: Buffers
    a: Floats
    w: Floats
    out: Floats
    packed_bytes: int

    def run(self) -> None:
        """The kernel that flies."""
        repeated_layer(1, self.plan, self.buffers, 0)


def product(m: int, n: int, k: int, beta_w: int = BETA_W, beta_a: int = 0) -> Product:
    """Random operands: a (m, k) binarized with beta_a, w (n, k)."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (n, k // 8), np.uint8)
    q = rng.integers(1, kernels.MAX_Q + 1, (n, -(-k // beta_w)), np.uint8)
    s = rng.uniform(0.5, 1.5, n).astype(np.float32) / np.float32(64 * k**0.5)
    one, zero = np.ones(n, np.float32), np.zeros(n, np.float32)
    tensors = {"in_shift": np.zeros(k), "bits": bits, "q": q, "s": s, "scale": one, "shift": zero, "slope": one}
    builder = plan.Builder()
    block = Block(channels=n, kernel=1, beta_w=beta_w, beta_a=beta_a, shortcut=0)
    builder.block(block, k, int(np.ceil(m**0.5)), tensors)
    layer = builder.layers[0]
    layer |= {"pixels": m, "source_pixels": m, "image": m * (layer["words"] + layer["groups"])}
    layout = builder.layout(1)
    buffers, layer = layout.buffers(), layout.plan.layers[0]
    x = rng.normal(size=(m, k)).astype(np.float32)
    rows = buffers.maps[layer["source"] : layer["source"] + np.uint64(m) * layer["source_wide"]].reshape(m, -1)
    rows[:, :k] = x
    kernels.pack_source(layout.plan, buffers, 0, 1)
    beta = beta_a or k
    delta = np.abs(np.pad(x, ((0, 0), (0, -k % beta)))).reshape(m, -1, beta).sum(2) / beta
    a = np.where(x < 0, -1, 1) * np.repeat(delta, beta, axis=1)[:, :k]
    w = (1 - 2.0 * np.unpackbits(bits, axis=1, bitorder="little")) * np.repeat(q, beta_w, axis=1)[:, :k] * s[:, None]
    out = buffers.maps[layer["out"] : layer["out"] + np.uint64(m) * layer["wide"]].reshape(m, -1)
    size = layout.plan.bytes.nbytes + layout.plan.ints.nbytes
    return Product(layout.plan, buffers, a.astype(np.float32), w.astype(np.float32), out, size)


def flat(array: NDArray[Any]) -> NDArray[Any]:
    """The array as the kernels take it: flat and aligned."""
    out = plan.aligned((array.size,), array.dtype.type)
    out[:] = array.reshape(-1)
    return out


def square(m: int, turns: int) -> tuple[Product, dict[str, float]]:
    """The paper's Fig. 5: (m, m) by (m, m), beta 16; the operands, and seconds of `ours`, `openblas` and `twin`."""
    p = product(m, m, m)
    b, blas_out, twin_out = np.ascontiguousarray(p.w.T), np.zeros((m, m), np.float32), np.zeros_like(p.out)
    times = max(1, int(SMALL / m**3))
    twin = times, p.a.reshape(-1), np.uint64(m), flat(plan.tiles(p.w)), twin_out.reshape(-1), np.uint64(m)
    seconds = race(
        {
            "ours": lambda: repeated_layer(times, p.plan, p.buffers, 0),
            "openblas": lambda: [np.dot(p.a, b, out=blas_out) for _ in range(times)],
            "twin": lambda: repeated_float(*twin),
        },
        min(turns, max(3, int(LARGE / m**3))),
    )
    return p, {name: taken / times for name, taken in seconds.items()}
