"""`python -m benchmarks kernels`: conv-shaped products on packed bits, one thread, against float and int8 libraries.

A case is a convolution unfolded: M pixels, N output channels, K = kernel * kernel * input channels, with one
activation scale per row. Ours is the kernel that flies, affine, shortcut and PReLU included; the others only multiply.
Operands are ready on all sides: packed, transposed or quantized. gops counts 2 * M * N * K.

scale_tax: what block scales cost, against the same kernel with popcount alone (minus 1; 0 is nothing).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.float_graph import IR_VERSION, OPSET, session
from benchmarks.timing import race
from models import kernels, plan
from models.jit import LANES, kernel, local_floats, local_words, popcount
from models.kernels import FIRST, LAST, ROWS, BinaryWeights

SHAPES = ((1020, 128, 1152), (768, 256, 2304), (192, 512, 4608), (3072, 64, 576))
BETA_W = 16
TURNS = 21

ONE, TWO, THREE = (np.uint64(i) for i in (1, 2, 3))

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]


@kernel(fastmath={"contract"})
def float_product(a: Floats, w: Floats, out: Floats) -> None:
    """The float twin: lanes are output channels, four rows at once; a (M, K), w (T, K, LANES), out (M, T * LANES)."""
    for m in range(np.uint64(0), np.uint64(a.shape[0]), np.uint64(ROWS)):
        m1, m2, m3 = m + ONE, m + TWO, m + THREE
        for tile in range(np.uint64(w.shape[0])):
            y0, y1, y2, y3 = local_floats(), local_floats(), local_floats(), local_floats()
            for o in range(LANES):
                y0[o], y1[o], y2[o], y3[o] = 0, 0, 0, 0
            for k in range(np.uint64(w.shape[1])):
                a0, a1, a2, a3 = a[m, k], a[m1, k], a[m2, k], a[m3, k]
                for o in range(LANES):
                    weight = w[tile, k, o]
                    y0[o] += a0 * weight
                    y1[o] += a1 * weight
                    y2[o] += a2 * weight
                    y3[o] += a3 * weight
            start = tile * np.uint64(LANES)
            for o in range(np.uint64(LANES)):
                out[m, start + o], out[m1, start + o] = y0[o], y1[o]
                out[m2, start + o], out[m3, start + o] = y2[o], y3[o]


@kernel()
def scaled_product(a: Words, scales: Floats, w: BinaryWeights, sums: Floats) -> None:
    """`kernels.binary_sums` over all rows and tiles, results thrown away."""
    for m in range(np.uint64(0), np.uint64(a.shape[0]), np.uint64(ROWS)):
        for tile in range(np.uint64(w.bits.shape[0])):
            kernels.binary_sums(a, scales, np.uint64(m), m + ONE, m + TWO, m + THREE, tile, w, sums)


@kernel(fastmath={"contract"})
def plain_product(a: Words, scales: Floats, w: BinaryWeights, sums: Floats) -> None:
    """As `scaled_product`, without weight scales: popcount alone (its sums mean nothing)."""
    for m in range(np.uint64(0), np.uint64(a.shape[0]), np.uint64(ROWS)):
        m1, m2, m3 = m + ONE, m + TWO, m + THREE
        d0, d1, d2, d3 = scales[m, 0], scales[m1, 0], scales[m2, 0], scales[m3, 0]
        for tile in range(np.uint64(w.bits.shape[0])):
            n0, n1, n2, n3 = local_words(), local_words(), local_words(), local_words()
            y0, y1, y2, y3 = local_floats(), local_floats(), local_floats(), local_floats()
            for o in range(LANES):
                y0[o], y1[o], y2[o], y3[o] = 0, 0, 0, 0
            for r in range(np.uint64(w.runs.shape[0])):
                for o in range(LANES):
                    n0[o], n1[o], n2[o], n3[o] = 0, 0, 0, 0
                for k in range(w.runs[r, FIRST], w.runs[r, LAST]):
                    c, mask = w.word[k], w.mask[k]
                    a0, a1, a2, a3 = a[m, c] & mask, a[m1, c] & mask, a[m2, c] & mask, a[m3, c] & mask
                    for o in range(LANES):
                        bits = w.bits[tile, k, o]
                        n0[o] += np.uint16(popcount(bits ^ a0))
                        n1[o] += np.uint16(popcount(bits ^ a1))
                        n2[o] += np.uint16(popcount(bits ^ a2))
                        n3[o] += np.uint16(popcount(bits ^ a3))
                for o in range(LANES):
                    base = w.base[tile, r, o]
                    y0[o] += d0 * np.float32(np.int32(base - 2 * np.int32(n0[o])))
                    y1[o] += d1 * np.float32(np.int32(base - 2 * np.int32(n1[o])))
                    y2[o] += d2 * np.float32(np.int32(base - 2 * np.int32(n2[o])))
                    y3[o] += d3 * np.float32(np.int32(base - 2 * np.int32(n3[o])))
            start = tile * np.uint64(LANES)
            for o in range(np.uint64(LANES)):
                sums[0, start + o], sums[1, start + o] = y0[o], y1[o]
                sums[2, start + o], sums[3, start + o] = y2[o], y3[o]


def onnx_product(b: NDArray[Any], kind: str, a_type: int, out_type: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """a @ b by one ONNX operator, b constant so that the runtime may pack it beforehand."""
    graph = helper.make_graph(
        [helper.make_node(kind, ["a", "b"], ["y"])],
        kind,
        [helper.make_tensor_value_info("a", a_type, ["m", b.shape[0]])],
        [helper.make_tensor_value_info("y", out_type, ["m", b.shape[1]])],
        [numpy_helper.from_array(b, "b")],
    )
    running = session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION))

    def call(a: NDArray[Any]) -> NDArray[Any]:
        out: NDArray[Any] = running.run(None, {"a": a})[0]
        return out

    return call


def case(m: int, n: int, k: int, turns: int) -> dict[str, object]:
    """One row. Raises AssertionError where two contenders do not agree: a fast wrong answer is worth nothing."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (n, k // 8), np.uint8)
    q = rng.integers(1, kernels.MAX_Q + 1, (n, k // BETA_W), np.uint8)
    s = rng.uniform(0.5, 1.5, n).astype(np.float32) / np.float32(64 * k**0.5)
    words = rng.integers(0, 2**16, (m, k // kernels.WORD_BITS), np.uint16)
    scales = rng.uniform(0.5, 1.5, (m, 1)).astype(np.float32)

    weights = plan.binary_weights(bits, q, k, kernel=1, beta_w=BETA_W, beta_a=0, width=m)
    rows = kernels.Window(np.arange(m, dtype=np.uint64), m, m, 0)
    affine = plan.affine(s, np.zeros(n), np.ones(n))
    shortcut, out = np.zeros((m, n), np.float32), np.zeros((m, n), np.float32)
    sums = np.zeros((ROWS, len(weights.bits) * LANES), np.float32)

    a = (1 - 2.0 * np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")).astype(np.float32) * scales
    w = (1 - 2.0 * np.unpackbits(bits, axis=1, bitorder="little")) * np.repeat(q, BETA_W, axis=1) * s[:, None]
    w = w.astype(np.float32)
    w_tiles, twin_out = plan.tiles(w), np.zeros((m, len(weights.bits) * LANES), np.float32)
    b, blas_out = np.ascontiguousarray(w.T), np.zeros((m, n), np.float32)
    ort_float = onnx_product(b, "MatMul", TensorProto.FLOAT, TensorProto.FLOAT)
    ort_int8 = onnx_product(
        rng.integers(-127, 128, b.shape, np.int8), "MatMulInteger", TensorProto.UINT8, TensorProto.INT32
    )
    a8 = rng.integers(0, 256, a.shape, np.uint8)

    seconds = race(
        {
            "ours": lambda: kernels.binary_block(words, scales, rows, weights, shortcut, affine, sums, out),
            "openblas": lambda: np.dot(a, b, out=blas_out),
            "twin": lambda: float_product(a, w_tiles, twin_out),
            "ort_float": lambda: ort_float(a),
            "ort_int8": lambda: ort_int8(a8),
            "scaled": lambda: scaled_product(words, scales, weights, sums),
            "plain": lambda: plain_product(words, scales, weights, sums),
        },
        turns,
    )
    for name, other in (("twin", twin_out[:, :n]), ("ours", out), ("ort_float", ort_float(a))):
        assert np.abs(other - blas_out).max() <= 1e-4 * np.abs(blas_out).max(), f"{name} is wrong"
    return {
        "case": "product",
        "shape": f"{m}x{n}x{k}",
        "beta_w": BETA_W,
        "beta_a": 0,
        "threads": 1,
        "gops": 2e-9 * m * n * k / seconds["ours"],
        "vs_openblas": seconds["openblas"] / seconds["ours"],
        "vs_float_twin": seconds["twin"] / seconds["ours"],
        "vs_ort_float": seconds["ort_float"] / seconds["ours"],
        "vs_ort_int8": seconds["ort_int8"] / seconds["ours"],
        "scale_tax": seconds["scaled"] / seconds["plain"] - 1,
    }


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """One row per shape; `quick` takes two of them."""
    table = []
    for m, n, k in SHAPES[:: 3 if quick else 1]:
        progress(f"{m} x {n} x {k}")
        table.append(case(m, n, k, 5 if quick else TURNS))
    return table
