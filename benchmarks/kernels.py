"""`python -m benchmarks kernels`: packed bits against float and int8 libraries; operands ready on all sides.

case `product` is a convolution unfolded: M pixels, N output channels, K = kernel * kernel * input channels, with
affine, shortcut and PReLU on our side, the others only multiply; `beta_a` the same for each length beta_a
(0: one per row); `square` the paper's Fig. 5; `layer` a 3x3 convolution of ResNet-18 with packing, affine, shortcut
and PReLU, against the bare convolution; `threads` a product in two halves.

gops counts 2 * M * N * K. scale_tax: what weight scales cost, against the same kernel that counts without them (minus
1; 0 is nothing). time_of_one: time over that of one activation scale per row. packed_bytes: weights as the kernel
reads them.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.float_graph import IR_VERSION, OPSET, session
from benchmarks.timing import race
from models import kernels, plan
from models.jit import kernel
from models.kernels import PANEL, ROW_NUMBERS, ROWS, STEPS, WIDTH, BinaryWeights, Floats, Packing, Window, Words
from models.network import Block
from models.simd import BACKEND, Value
from models.simd import values as v
from models.simd.backend import declare, splat
from models.simd.lowering import elementwise

SHAPES = ((1020, 128, 1152), (768, 256, 2304), (192, 512, 4608), (3072, 64, 576))
BETAS_W = (8, 16, 32, 256)
BETAS_A = (0, 128, 64, 32, 16, 8, 2)
SQUARES = (64, 128, 256, 512, 1024, 2048, 4096)
LAYERS = ((56, 64), (28, 128), (14, 256), (7, 512))
BETA_W = 16
TURNS = 21
NOTHING = np.zeros((1, 0), np.uint32), np.zeros((1, 0), np.float32)
"""Words and scales of no following block."""
LARGE = 1e10
"""Products of more operations than this are repeated less often."""
SMALL = 3e7
"""Products of fewer operations than this are repeated in compiled code: what Python takes for a call would be most
of the time."""

KEYS = (
    *("case", "shape", "beta_w", "beta_a", "threads", "gops", "vs_openblas", "vs_float_twin", "vs_ort_float"),
    *("vs_ort_int8", "scale_tax", "time_of_one", "vs_one_thread", "packed_bytes"),
)


def agree(counter: Value, x: Value) -> Value:
    """The counter plus the one bits of each 32-bit lane: what is left of `dot` where there are no scales."""
    return v.dot(counter, v.popcount(x), np.ones_like(x))


def _agree(builder: ir.IRBuilder, counter: Any, x: Any) -> Any:
    if BACKEND.counter != BACKEND.sums:
        return BACKEND.dot(builder, counter, BACKEND.popcount(builder, x), splat(BACKEND.byte_vector, 1))
    ctpop = declare(builder, f"llvm.ctpop.v{BACKEND.lanes}i32", BACKEND.sums, BACKEND.sums)
    return builder.add(counter, builder.call(ctpop, [builder.bitcast(x, BACKEND.sums)]))


elementwise(agree, ("counters", "bytes"), "counters", _agree)


@kernel()
def scaled_product(a: Words, scales: Floats, numbers: NDArray[np.uint64], w: BinaryWeights, out: Floats) -> None:
    """`kernels.binary_sums` over all rows and tiles."""
    words, deltas = a.reshape(-1), scales.reshape(-1)
    for panel in range(0, len(numbers), PANEL):
        for tile in range(np.uint64(w.steps.shape[0])):
            for p in range(panel, min(panel + PANEL, len(numbers)), ROWS):
                rows = v.take(numbers, p, ROW_NUMBERS)
                y = kernels.binary_sums(words, deltas, v.scale(rows, a.shape[1]), rows, tile, w)
                v.store_rows(y, out, rows, tile * WIDTH)


@kernel()
def plain_product(
    a: Words, scales: Floats, numbers: NDArray[np.uint64], bits: NDArray[np.uint8], w: BinaryWeights, out: Floats
) -> None:
    """As `scaled_product` with one activation scale per row, but bits (T, S, 4 * width) are counted without scales."""
    zero, length = np.uint64(0), np.uint64(bits.shape[1])
    words = a.reshape(-1)
    for panel in range(0, len(numbers), PANEL):
        for tile in range(np.uint64(bits.shape[0])):
            for p in range(panel, min(panel + PANEL, len(numbers)), ROWS):
                rows = v.take(numbers, p, ROW_NUMBERS)
                places = v.scale(rows, a.shape[1])
                n = v.start(v.load_ints(w.base, tile, zero), rows)
                for part in range(zero, length, STEPS):
                    for k in range(part, min(part + STEPS, length)):
                        n = agree(n, v.broadcast_words(words, places, k) ^ v.load_bytes(bits, tile, k))
                    n = v.settle(n)
                y = v.multiply_add(v.broadcast_floats(scales, rows, zero), v.as_floats(n), v.no_floats(rows))
                v.store_rows(y, out, rows, tile * WIDTH)


@kernel()
def float_product(a: Floats, numbers: NDArray[np.uint64], w: Floats, out: Floats) -> None:
    """The float twin, written alike: a (M, K), w (T, K, width), out (M, T * width)."""
    for panel in range(0, len(numbers), PANEL):
        for tile in range(np.uint64(w.shape[0])):
            for p in range(panel, min(panel + PANEL, len(numbers)), ROWS):
                rows = v.take(numbers, p, ROW_NUMBERS)
                y = v.no_floats(rows)
                for k in range(np.uint64(w.shape[1])):
                    y = v.multiply_add(v.broadcast_floats(a, rows, k), v.load_floats(w, tile, k), y)
                v.store_rows(y, out, rows, tile * WIDTH)


@kernel()
def repeated_float(times: int, a: Floats, numbers: NDArray[np.uint64], w: Floats, out: Floats) -> None:
    """`float_product` some times, from compiled code."""
    for _ in range(times):
        float_product(a, numbers, w, out)


@kernel()
def repeated_block(times: int, *arguments: Any) -> None:
    """`kernels.binary_block` some times, from compiled code."""
    for _ in range(times):
        kernels.binary_block(*arguments)


class Product(NamedTuple):
    """Operands of one product, packed and as floats."""

    words: Words
    scales: Floats
    window: Window
    packing: Packing
    weights: BinaryWeights
    affine: Floats
    shortcut: Floats
    out: Floats
    a: Floats
    w: Floats

    def arguments(self) -> tuple[Any, ...]:
        """What `kernels.binary_block` takes."""
        own = self.words, self.scales, self.window, self.weights, self.shortcut, self.affine, self.out
        return *own, self.packing, *NOTHING

    def run(self) -> None:
        """The kernel that flies."""
        kernels.binary_block(*self.arguments())


def product(m: int, n: int, k: int, beta_w: int = BETA_W, beta_a: int = 0) -> Product:
    """Random operands: a (m, k) binarized with beta_a, w (n, k)."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (n, k // 8), np.uint8)
    q = rng.integers(1, kernels.MAX_Q + 1, (n, -(-k // beta_w)), np.uint8)
    s = rng.uniform(0.5, 1.5, n).astype(np.float32) / np.float32(64 * k**0.5)
    numbers = np.arange(m, dtype=np.uint64)
    window = Window(numbers, numbers, numbers, m, m)
    packing, weights = plan.binary_weights(bits, q, np.zeros(k, np.float32), 1, beta_w, beta_a, window)
    x = np.zeros((m, plan.padded(k)), np.float32)
    x[:, :k] = rng.normal(size=(m, k))
    words, scales = np.zeros((m, len(packing.mask)), np.uint32), np.zeros((m, -(-k // packing.beta)), np.float32)
    kernels.pack_activations(x, packing, words, scales)
    out = plan.aligned((m, plan.padded(n)), np.float32)
    a = np.where(x[:, :k] < 0, -1, 1) * np.repeat(scales, packing.beta, axis=1)[:, :k]
    w = (1 - 2.0 * np.unpackbits(bits, axis=1, bitorder="little")) * np.repeat(q, beta_w, axis=1)[:, :k] * s[:, None]
    affine = plan.affine(s, np.zeros(n), np.ones(n))
    a, w = a.astype(np.float32), w.astype(np.float32)
    return Product(words, scales, window, packing, weights, affine, np.zeros_like(out), out, a, w)


def onnx_call(
    graph_inputs: dict[str, Any], kind: str, constants: dict[str, NDArray[Any]], out: int, **more: Any
) -> Any:
    """One ONNX operator as a function without arguments; constants may be packed by the runtime beforehand.

    graph_inputs and constants in the order of the operator's inputs: a name that is in neither is left out.
    """
    order = more.pop("order")
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}
    graph = helper.make_graph(
        [helper.make_node(kind, order, ["y"], **more)],
        kind,
        [helper.make_tensor_value_info(name, kinds[x.dtype], x.shape) for name, x in graph_inputs.items()],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(x, name) for name, x in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return partial(session(model).run, None, graph_inputs)


def row(**measured: object) -> dict[str, object]:
    """A row of the table: every key is there, None where nothing was measured."""
    return {key: measured.get(key) for key in KEYS}


def products(m: int, n: int, k: int, turns: int) -> list[dict[str, object]]:
    """One shape at each beta_w. Raises AssertionError where two contenders disagree: fast and wrong is worthless."""
    rng = np.random.default_rng(1)
    own = {beta_w: product(m, n, k, beta_w) for beta_w in BETAS_W}
    p = own[BETA_W]
    b, blas_out, twin_out, sums = (
        np.ascontiguousarray(p.w.T),
        np.zeros((m, n), np.float32),
        *np.zeros((2, *p.out.shape), np.float32),
    )
    numbers, w_tiles = p.window.numbers, plan.tiles(p.w)
    bits = plan.aligned((len(p.weights.steps), k // 32, 4 * BACKEND.width), np.uint8)
    bits[:] = p.weights.steps[:, ::2]
    b8, a8 = rng.integers(-127, 128, b.shape, np.int8), rng.integers(0, 256, p.a.shape, np.uint8)
    ort_float = onnx_call({"a": p.a}, "MatMul", {"b": b}, TensorProto.FLOAT, order=["a", "b"])
    ort_int8 = onnx_call({"a": a8}, "MatMulInteger", {"b": b8}, TensorProto.INT32, order=["a", "b"])
    contenders: dict[str, Callable[[], object]] = {
        "openblas": lambda: np.dot(p.a, b, out=blas_out),
        "twin": lambda: float_product(p.a, numbers, w_tiles, twin_out),
        "ort_float": ort_float,
        "ort_int8": ort_int8,
        "plain": lambda: plain_product(p.words, p.scales, numbers, bits, p.weights, sums),
    }
    for beta_w, one in own.items():
        contenders[f"ours{beta_w}"] = one.run
        contenders[f"scaled{beta_w}"] = partial(scaled_product, one.words, one.scales, numbers, one.weights, sums)
    seconds = race(contenders, turns)
    for name, other in (("twin", twin_out[:, :n]), ("ours", p.out[:, :n]), ("ort_float", ort_float()[0])):
        assert np.abs(other - blas_out).max() <= 1e-4 * np.abs(blas_out).max(), f"{name} is wrong"
    return [
        row(
            case="product",
            shape=f"{m}x{n}x{k}",
            beta_w=beta_w,
            beta_a=0,
            threads=1,
            gops=2e-9 * m * n * k / seconds[f"ours{beta_w}"],
            vs_openblas=seconds["openblas"] / seconds[f"ours{beta_w}"],
            vs_float_twin=seconds["twin"] / seconds[f"ours{beta_w}"],
            vs_ort_float=seconds["ort_float"] / seconds[f"ours{beta_w}"],
            vs_ort_int8=seconds["ort_int8"] / seconds[f"ours{beta_w}"],
            scale_tax=seconds[f"scaled{beta_w}"] / seconds["plain"] - 1,
            packed_bytes=one.weights.steps.nbytes + one.weights.base.nbytes,
        )
        for beta_w, one in own.items()
    ]


def activation_scales(m: int, n: int, k: int, turns: int) -> list[dict[str, object]]:
    """One shape at each beta_a."""
    own = {beta_a: product(m, n, k, beta_a=beta_a) for beta_a in BETAS_A}
    seconds = race({str(beta_a): one.run for beta_a, one in own.items()}, turns)
    return [
        row(
            case="beta_a",
            shape=f"{m}x{n}x{k}",
            beta_w=BETA_W,
            beta_a=beta_a,
            threads=1,
            gops=2e-9 * m * n * k / seconds[str(beta_a)],
            time_of_one=seconds[str(beta_a)] / seconds["0"],
        )
        for beta_a in BETAS_A
    ]


def square(m: int, turns: int) -> dict[str, object]:
    """The paper's Fig. 5: (m, m) by (m, m)."""
    p = product(m, m, m)
    b, blas_out, twin_out = np.ascontiguousarray(p.w.T), np.zeros((m, m), np.float32), np.zeros_like(p.out)
    times = max(1, int(SMALL / m**3))
    ours, twin = (times, *p.arguments()), (times, p.a, p.window.numbers, plan.tiles(p.w), twin_out)
    seconds = race(
        {
            "ours": lambda: repeated_block(*ours),
            "openblas": lambda: [np.dot(p.a, b, out=blas_out) for _ in range(times)],
            "twin": lambda: repeated_float(*twin),
        },
        turns if m**3 < LARGE else 3,
    )
    seconds = {name: taken / times for name, taken in seconds.items()}
    return row(
        case="square",
        shape=f"{m}x{m}x{m}",
        beta_w=BETA_W,
        beta_a=0,
        threads=1,
        gops=2e-9 * m**3 / seconds["ours"],
        vs_openblas=seconds["openblas"] / seconds["ours"],
        vs_float_twin=seconds["twin"] / seconds["ours"],
        packed_bytes=p.weights.steps.nbytes + p.weights.base.nbytes,
    )


def layer(size: int, channels: int, turns: int) -> dict[str, object]:
    """A 3x3 convolution of ResNet-18 over one image: ours writes floats, and packs them for the next layer."""
    rng = np.random.default_rng(0)
    k = 9 * channels
    tensors: dict[str, NDArray[Any]] = {
        "in_shift": rng.normal(0, 0.3, channels),
        "bits": rng.integers(0, 256, (channels, k // 8), np.uint8),
        "q": rng.integers(1, 128, (channels, k // BETA_W), np.uint8),
        **{name: rng.uniform(0.5, 1.5, channels) for name in ("s", "scale", "shift", "slope")},
    }
    own = plan.BlockPlan(Block(channels=channels, beta_w=BETA_W), channels, size, tensors)
    buffers, following = own.buffers(1), own.buffers(1)
    x = rng.normal(size=(size * size, channels)).astype(np.float32)
    own.pack(x, buffers)
    image = np.ascontiguousarray(x.T.reshape(1, channels, size, size))
    w = rng.normal(size=(channels, channels, 3, 3)).astype(np.float32)
    w8, x8 = rng.integers(-127, 128, w.shape, np.int8), rng.integers(0, 256, image.shape, np.uint8)
    one, zero = np.array(0.02, np.float32), np.array(128, np.uint8)
    scale: dict[str, NDArray[Any]] = {
        "sx": one,
        "zx": zero,
        "w": w8,
        "sw": one,
        "zw": np.array(0, np.int8),
        "sy": one,
        "zy": zero,
    }
    seconds = race(
        {
            "ours": lambda: own.run(x, buffers, (own, following)),
            "float": onnx_call({"x": image}, "Conv", {"w": w}, TensorProto.FLOAT, order=["x", "w"], pads=[1] * 4),
            "int8": onnx_call({"x": x8}, "QLinearConv", scale, TensorProto.UINT8, order=["x", *scale], pads=[1] * 4),
        },
        turns,
    )
    return row(
        case="layer",
        shape=f"{size}x{size}x{channels} 3x3",
        beta_w=BETA_W,
        beta_a=0,
        threads=1,
        gops=2e-9 * size**2 * channels * k / seconds["ours"],
        vs_ort_float=seconds["float"] / seconds["ours"],
        vs_ort_int8=seconds["int8"] / seconds["ours"],
        packed_bytes=own.weights.steps.nbytes + own.weights.base.nbytes,
    )


def threads(m: int, n: int, k: int, turns: int) -> dict[str, object]:
    """The same product twice, one after the other and at once."""
    halves = [product(m, n, k), product(m, n, k)]
    with ThreadPoolExecutor(2) as pool:
        seconds = race(
            {
                "one": lambda: [p.run() for p in halves],
                "two": lambda: list(pool.map(Product.run, halves)),
            },
            turns,
        )
    return row(
        case="threads",
        shape=f"{2 * m}x{n}x{k}",
        beta_w=BETA_W,
        beta_a=0,
        threads=2,
        gops=4e-9 * m * n * k / seconds["two"],
        vs_one_thread=seconds["one"] / seconds["two"],
    )


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """All cases; `quick` takes some of each."""
    turns = 5 if quick else TURNS
    table: list[dict[str, object]] = []
    for m, n, k in SHAPES[:: 3 if quick else 1]:
        progress(f"{m} x {n} x {k}")
        table += products(m, n, k, turns)
    progress("activation scales")
    table += activation_scales(*SHAPES[0], turns)
    for m in SQUARES[: 2 if quick else None]:
        progress(f"{m} x {m} x {m}")
        table.append(square(m, turns))
    for size, channels in LAYERS:
        progress(f"{size} x {size} x {channels}")
        table.append(layer(size, channels, turns))
    progress("threads")
    table.append(threads(*SHAPES[1], turns))
    return table
