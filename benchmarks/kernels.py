"""`python -m benchmarks kernels`: packed bits against float and int8 libraries; operands ready on all sides.

case `product` is a convolution unfolded: M pixels, N output channels, K = kernel * kernel * input channels, with
affine, shortcut and PReLU on our side, the others only multiply; `beta_a` the same for each length beta_a
(0: one per row); `square` the paper's Fig. 5; `layer` a 3x3 convolution of ResNet-18 with packing, affine, shortcut
and PReLU, against the bare convolution; `threads` a layer by a team of two.

gops counts 2 * M * N * K. scale_tax: what weight scales cost, against the same kernel that counts without them (minus
1; 0 is nothing). time_of_one: time over that of one activation scale per row. packed_bytes: weights as the kernel
reads them.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.float_graph import session
from models import kernels, plan
from models.exchange.graph import IR_VERSION, OPSET
from models.jit import kernel
from models.kernels import LINE, PANEL, ROW_NUMBERS, STEP, STEPS, WIDTH, ZERO, Buffers, Plan
from models.network import Block
from models.paper.products import (
    BETA_W,
    flat,
    float_product,
    product,
    square,
)
from models.paper.timing import race
from models.simd import BACKEND, Rows, Value
from models.simd import values as v
from models.simd.backend import declare, splat
from models.simd.counting import teach_counting
from models.threads import Shared

SHAPES = ((1020, 128, 1152), (768, 256, 2304), (192, 512, 4608), (3072, 64, 576))
BETAS_W = (8, 16, 32, 256)
BETAS_A = (0, 128, 64, 32, 16, 8, 2)
SQUARES = (64, 128, 256, 512, 1024, 2048, 4096)
LAYERS = ((56, 64), (28, 128), (14, 256), (7, 512))
TURNS = 101
REPEATS = 20
"""Layers that a thread computes before Python is asked again."""

KEYS = (
    *("case", "shape", "beta_w", "beta_a", "threads", "gops", "vs_openblas", "vs_float_twin", "vs_ort_float"),
    *("vs_ort_int8", "scale_tax", "time_of_one", "vs_one_thread", "packed_bytes"),
)


def count_word(counter: Value, words: NDArray[np.uint32], places: Rows, k: v.Index, signs: Value) -> Value:
    """The counter after the words[place + k]: `v.dot_word` without scales."""
    x = v.broadcast_words(words, places, k) ^ signs
    return v.dot(counter, v.popcount(x), np.ones_like(x))


def _count_word(builder: ir.IRBuilder, counter: Any, repeated: list[Any], signs: Any) -> Any:
    """Exclusive or, the one bits of each 32-bit lane, sum: what is left where there are no scales."""
    x = builder.xor(repeated[0], signs)
    if BACKEND.counter != BACKEND.sums:
        return BACKEND.dot(builder, counter, BACKEND.popcount(builder, x), splat(BACKEND.byte_vector, 1))
    ctpop = declare(builder, f"llvm.ctpop.v{BACKEND.lanes}i32", BACKEND.sums, BACKEND.sums)
    return builder.add(counter, builder.call(ctpop, [builder.bitcast(x, BACKEND.sums)]))


teach_counting(count_word, 1, _count_word)


@kernel(_nrt=False)
def plain_product(plan: Plan, buffers: Buffers, bits: NDArray[np.uint8]) -> None:
    """`kernels.convolve` over all pixels of a product without weight scales: bits (T, words, 4 * width) are counted."""
    layer, indices, floats, maps = plan.layers[0], plan.indices, plan.floats, buffers.maps
    tiles, together, length, wide = layer.tiles, layer.together, layer.words, layer.wide
    gain, offset, slope, out, begins = layer.gain, layer.shift, layer.slope, layer.out, layer.begins
    for panel in range(ZERO, layer.pixels, PANEL):
        last = min(panel + PANEL, layer.pixels)
        for group in range(ZERO, tiles, together):
            for i in range(panel, last, STEP):
                p = min(i, last - STEP)
                places = v.shift(v.take(indices, layer.windows + p, ROW_NUMBERS), layer.packed)
                outs = v.from_(out + p * wide, ROW_NUMBERS, wide)
                for tile in range(group, min(group + together, tiles)):
                    column, line = tile * WIDTH, tile * length * LINE
                    n = v.start(v.load_ints(plan.ints, begins + column), places)
                    for part in range(ZERO, length, STEPS):
                        for k in range(part, min(part + STEPS, length)):
                            n = count_word(n, buffers.words, places, k, v.load_bytes(bits, line + k * LINE))
                        n = v.settle(n)
                    y = v.multiply_add(
                        v.broadcast_scales(buffers.words, places, length), v.as_floats(n), v.no_floats(places)
                    )
                    y = v.multiply_add(y, v.load_floats(floats, gain + column), v.load_floats(floats, offset + column))
                    y = v.prelu(y, v.load_floats(floats, slope + column))
                    v.store_rows(y, maps, outs, column)


@kernel(_nrt=False)
def repeated_run(times: int, plan: Plan, buffers: Buffers, gate: Shared, member: int, team: int) -> None:
    """`kernels.run_layer` over the first layer some times, from compiled code."""
    for _ in range(times):
        kernels.run_layer(plan, buffers, 0, 1, gate, member, team)


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
    b, blas_out, twin_out = np.ascontiguousarray(p.w.T), np.zeros((m, n), np.float32), np.zeros_like(p.out)
    twin = p.a.reshape(-1), np.uint64(k), flat(plan.tiles(p.w)), twin_out.reshape(-1), np.uint64(m)
    bits = flat(plan.tiles(rng.integers(0, 256, (n, k // 32, 4), np.uint8)))
    b8, a8 = rng.integers(-127, 128, b.shape, np.int8), rng.integers(0, 256, p.a.shape, np.uint8)
    ort_float = onnx_call({"a": p.a}, "MatMul", {"b": b}, TensorProto.FLOAT, order=["a", "b"])
    ort_int8 = onnx_call({"a": a8}, "MatMulInteger", {"b": b8}, TensorProto.INT32, order=["a", "b"])
    contenders: dict[str, Callable[[], object]] = {
        "openblas": lambda: np.dot(p.a, b, out=blas_out),
        "twin": lambda: float_product(*twin),
        "ort_float": ort_float,
        "ort_int8": ort_int8,
        "plain": lambda: plain_product(p.plan, p.buffers, bits),
    }
    for beta_w, one in own.items():
        contenders[f"ours{beta_w}"] = one.run
    seconds = race(contenders, turns)
    p.run()
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
            scale_tax=seconds[f"ours{beta_w}"] / seconds["plain"] - 1,
            packed_bytes=one.packed_bytes,
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


def square_row(m: int, turns: int) -> dict[str, object]:
    """The paper's Fig. 5: (m, m) by (m, m)."""
    p, seconds = square(m, turns)
    return row(
        case="square",
        shape=f"{m}x{m}x{m}",
        beta_w=BETA_W,
        beta_a=0,
        threads=1,
        gops=2e-9 * m**3 / seconds["ours"],
        vs_openblas=seconds["openblas"] / seconds["ours"],
        vs_float_twin=seconds["twin"] / seconds["ours"],
        packed_bytes=p.packed_bytes,
    )


def layer_plan(block: Block, size: int) -> plan.Layout:
    """The same block twice, so that the first one packs its output for the second."""
    rng, channels = np.random.default_rng(0), block.channels
    tensors: dict[str, NDArray[Any]] = {
        "in_shift": rng.normal(0, 0.3, channels),
        "bits": rng.integers(0, 256, (channels, 9 * channels // 8), np.uint8),
        "q": rng.integers(1, 128, (channels, 9 * channels // BETA_W), np.uint8),
        **{name: rng.uniform(0.5, 1.5, channels) for name in ("s", "scale", "shift")},
        "slope": rng.uniform(
            0, 0.5, channels
        ),  # of a block that runs again and again on its own output: it stays finite
    }
    builder = plan.Builder()
    for _ in range(2):
        builder.block(block, channels, size, tensors)
    return builder.layout(1)


def layer(size: int, channels: int, turns: int) -> dict[str, object]:
    """A 3x3 convolution of ResNet-18 over one image: ours writes floats, and packs them for the next layer."""
    rng = np.random.default_rng(0)
    k, layout = 9 * channels, layer_plan(Block(channels=channels, beta_w=BETA_W), size)
    buffers, gate = layout.buffers(), np.zeros(kernels.SHARED, np.int64)
    x = rng.normal(size=(size * size, channels)).astype(np.float32)
    begin = int(layout.plan.layers[0]["source"])
    buffers.maps[begin : begin + x.size] = x.reshape(-1)
    kernels.pack_source(layout.plan, buffers, 0, 1)
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
            "ours": lambda: kernels.run_layer(layout.plan, buffers, 0, 1, gate, 0, 1),
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
        packed_bytes=layout.plan.bytes.nbytes // 2 + layout.plan.ints.nbytes // 2,
    )


def threads(size: int, channels: int, turns: int) -> dict[str, object]:
    """A 3x3 convolution of one image by one thread, and by a team of two."""
    block, k = Block(channels=channels, beta_w=BETA_W), 9 * channels
    layout = layer_plan(block, size)
    buffers = layout.buffers()
    gates = np.zeros((2, kernels.SHARED), np.int64)
    with ThreadPoolExecutor(1) as pool:

        def work(member: int, team: int) -> None:
            repeated_run(REPEATS, layout.plan, buffers, gates[team - 1], member, team)

        def both() -> None:
            other = pool.submit(work, 1, 2)
            work(0, 2)
            other.result()

        seconds = race({"one": lambda: work(0, 1), "two": both}, turns)
    return row(
        case="threads",
        shape=f"{size}x{size}x{channels} 3x3",
        beta_w=BETA_W,
        beta_a=0,
        threads=2,
        gops=2e-9 * REPEATS * size**2 * channels * k / seconds["two"],
        vs_one_thread=seconds["one"] / seconds["two"],
    )


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """All cases; `quick` takes some of each."""
    turns = 15 if quick else TURNS
    table: list[dict[str, object]] = []
    for m, n, k in SHAPES[:: 3 if quick else 1]:
        progress(f"{m} x {n} x {k}")
        table += products(m, n, k, turns)
    progress("activation scales")
    table += activation_scales(*SHAPES[0], turns)
    for m in SQUARES[: 2 if quick else None]:
        progress(f"{m} x {m} x {m}")
        table.append(square_row(m, turns))
    for size, channels in LAYERS:
        progress(f"{size} x {size} x {channels}")
        table.append(layer(size, channels, turns))
    progress("threads")
    table.append(threads(*LAYERS[1], turns))
    return table
