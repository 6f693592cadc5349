"""What is compared on Arm: our binary block, and a float and an int8 product in the same style.

Lanes are output channels, activations are broadcast, `BACKEND.rows` of them meet `BACKEND.columns` vectors of weights.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import typeof
from numpy.typing import NDArray

from models import jit, kernels, simd
from models.simd import BACKEND, lowering
from models.simd.arm import Neon
from models.simd.backend import I8, I16, I32, declare

ROWS = tuple(np.uint64(i) for i in range(BACKEND.rows))
ZERO = np.uint64(0)

Floats = NDArray[np.float32]
Words = NDArray[np.uint32]
Bytes = NDArray[np.uint8]


def int8_dot(counter: Any, x: Any, y: Any) -> Any:
    """The counter plus signed bytes (-127..127) times such bytes, four of them to each lane. For kernels only."""
    raise NotImplementedError


def _int8_dot(builder: ir.IRBuilder, counter: Any, x: Any, y: Any) -> Any:
    """`sdot`; without it the way of int8 libraries: two products fit in 16 bits, then a widening pairwise add.

    Which bytes share a lane is then another matter of how operands are packed, and costs nothing.
    """
    sums = BACKEND.sums
    if not isinstance(BACKEND, Neon):
        sdot = declare(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", sums, sums, x.type, y.type)
        return builder.call(sdot, [counter, x, y])
    half, wide, numbers = ir.VectorType(I8, 8), ir.VectorType(I16, 8), ir.VectorType(I32, 8)
    smull = declare(builder, "llvm.aarch64.neon.smull.v8i16", wide, half, half)
    widen = declare(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", sums, wide)
    eights = (ir.Constant(numbers, [8 * part + i for i in range(8)]) for part in range(2))
    low, high = (builder.call(smull, [builder.shuffle_vector(v, v, eight) for v in (x, y)]) for eight in eights)
    pairs = builder.call(widen, [builder.add(low, high)])
    return builder.insert_value(counter, builder.add(builder.extract_value(counter, 0), pairs), 0)


lowering.elementwise(int8_dot, ("counters", "bytes", "bytes"), "counters", _int8_dot)


@jit.kernel(_nrt=False)
def int8_product(a: Words, k: np.uint64, w: Bytes, base: NDArray[np.int32], out: Floats, tiles: np.uint64) -> None:
    """Int8 twin: a (rows, k) of four bytes, w (tiles, k, 4 * width), base (tiles, width), out (rows, tiles * width)."""
    places = simd.scale(ROWS, k)
    for tile in range(tiles):
        n = simd.start(simd.load_ints(base, tile * kernels.WIDTH), ROWS)
        for i in range(k):
            n = int8_dot(n, simd.broadcast_words(a, places, i), simd.load_bytes(w, (tile * k + i) * kernels.LINE))
        simd.store_rows(simd.as_floats(n), out, simd.scale(ROWS, tiles * kernels.WIDTH), tile * kernels.WIDTH)


@jit.kernel(_nrt=False)
def float_product(a: Floats, k: np.uint64, w: Floats, out: Floats, tiles: np.uint64) -> None:
    """Float twin: a (rows, k), w (tiles, k, width), out (rows, tiles * width)."""
    places = simd.scale(ROWS, k)
    for tile in range(tiles):
        y = simd.no_floats(ROWS)
        for i in range(k):
            line = simd.load_floats(w, (tile * k + i) * kernels.WIDTH)
            y = simd.multiply_add(simd.broadcast_floats(a, places, i), line, y)
        simd.store_rows(y, out, simd.scale(ROWS, tiles * kernels.WIDTH), tile * kernels.WIDTH)


def compiled(function: Any, *arguments: Any) -> str:
    """The assembly of a kernel for arguments like these."""
    function.compile(tuple(typeof(a) for a in arguments))  # type: ignore[no-untyped-call]
    (text,) = function.inspect_asm().values()
    return str(text)


def assembly() -> dict[str, str]:
    """Name -> assembly, for the processor that Numba compiles for."""
    floats, words, bytes_ = np.zeros(1, np.float32), np.zeros(1, np.uint32), np.zeros(1, np.uint8)
    ints, indices = np.zeros(1, np.int32), np.zeros(1, np.uint64)
    layers = np.zeros(1, kernels.LAYER).view(np.recarray)
    plan = kernels.Plan(layers, bytes_, ints, floats, indices, words)
    buffers = kernels.Buffers(1, bytes_, words, floats)
    return {
        "binary": compiled(kernels.convolve, plan, buffers, layers[0], ZERO, ZERO, ZERO),
        "int8": compiled(int8_product, words, ZERO, bytes_, ints, floats, ZERO),
        "float": compiled(float_product, floats, ZERO, floats, floats, ZERO),
    }
