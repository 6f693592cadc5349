"""A network of this project as standard ONNX operators, for ONNX Runtime: the baseline, and the reference of tests.

With `binary=True` the activations are binarized by their formula in float (Less, Abs, ReduceMean), so the graph
computes what the engine computes; with `binary=False` it is the float network of the same topology.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.network import POOL_EPSILON, Block, NetworkSpec, Pool

OPSET, IR_VERSION = 20, 10

Floats = NDArray[np.float32]


class Graph:
    """Nodes and constants, named as they come."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Name of a new constant."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def channels(self, value: NDArray[Any]) -> str:
        """A constant per channel of NCHW."""
        return self.constant(np.asarray(value).reshape(1, -1, 1, 1))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Name of a new operator's output."""
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def convolution(
        self, x: str, weight: NDArray[Any], stride: int, padding: int, bias: NDArray[Any] | None = None
    ) -> str:
        """weight (O, k, k, C) as the project keeps it."""
        k = weight.shape[1]
        inputs = [x, self.constant(weight.transpose(0, 3, 1, 2)), *([] if bias is None else [self.constant(bias)])]
        return self.node("Conv", *inputs, strides=[stride] * 2, pads=[padding] * 4, kernel_shape=[k, k])

    def binarize(self, x: str, groups: Sequence[int]) -> str:
        """Eq. 3, 4 over the channels, in groups of these lengths."""
        sign = self.node("Where", self.node("Less", x, self.constant(0)), self.constant(-1), self.constant(1))
        size = self.node("Abs", x)
        names = [f"n{len(self.nodes)}_{i}" for i in range(len(groups))]
        self.nodes.append(helper.make_node("Split", [size, self.constant(groups, np.int64)], names, axis=1))
        axis = self.constant([1], np.int64)
        scales = [
            self.node("Expand", self.node("ReduceMean", part, axis), self.constant([1, n, 1, 1], np.int64))
            for part, n in zip(names, groups, strict=True)
        ]
        return self.node("Mul", sign, self.node("Concat", *scales, axis=1))

    def affine(self, x: str, scale: NDArray[Any], shift: NDArray[Any]) -> str:
        """scale * x + shift."""
        return self.node("Add", self.node("Mul", x, self.channels(scale)), self.channels(shift))

    def pool(self, x: str, pool: Pool | None) -> str:
        """A layer's pool, where it has one."""
        if pool is None:
            return x
        kind = {"max": "MaxPool", "mean": "AveragePool"}[pool.kind]
        return self.node(kind, x, kernel_shape=[pool.size] * 2, strides=[pool.stride] * 2, pads=[pool.padding] * 4)

    def prelu(self, x: str, slope: NDArray[Any]) -> str:
        """PReLU with a slope per channel."""
        return self.node("PRelu", x, self.constant(np.asarray(slope).reshape(-1, 1, 1)))


def shortcut(g: Graph, x: str, block: Block, c_in: int) -> str:
    """2x2 average pool where the block has stride 2; channels repeated up to the block's, and cut off."""
    if block.stride == 2:
        x = g.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    if block.channels > c_in:
        x = g.node("Concat", *[x] * -(-block.channels // c_in), axis=1)
    if block.channels % c_in:
        ends = (g.constant([n], np.int64) for n in (0, block.channels, 1))
        x = g.node("Slice", x, *ends)
    return x


def build(
    spec: NetworkSpec, tensors: Mapping[str, NDArray[Any]], weights: Sequence[Floats], binary: bool
) -> onnx.ModelProto:
    """Input `tiles`: float32 (N, 3, S, S) RGB less the mean; output: the features (N, F) before they are binarized.

    weights: the binarized weight of each block, (O, k, k, C).
    """
    g = Graph()
    x = g.convolution("tiles", tensors["stem.weight"], spec.stem.stride, spec.stem.padding)
    x = g.prelu(g.affine(x, tensors["stem.scale"], tensors["stem.shift"]), tensors["stem.slope"])
    x = g.pool(x, spec.stem.pool)
    pooled = []
    pixels = g.constant([2, 3], np.int64)
    for i, (block, c_in, weight) in enumerate(zip(spec.blocks, spec.block_inputs(), weights, strict=True)):
        a = g.node("Add", x, g.channels(tensors[f"block{i}.in_shift"]))
        if binary:
            beta = block.beta_a or c_in
            a = g.binarize(a, [min(beta, c_in - first) for first in range(0, c_in, beta)])
        y = g.convolution(a, weight, block.stride, block.padding)
        y = g.affine(y, tensors[f"block{i}.scale"], tensors[f"block{i}.shift"])
        if block.shortcut:
            y = g.node("Add", y, shortcut(g, x, block, c_in))
        x = g.pool(g.prelu(y, tensors[f"block{i}.slope"]), block.pool)
        if i in spec.taps:
            mean = g.node("ReduceMean", x, pixels, keepdims=1)
            pooled.append(mean)
            if not spec.deviation:
                continue
            far = g.node("Sub", x, mean)
            variance = g.node("ReduceMean", g.node("Mul", far, far), pixels, keepdims=1)
            pooled.append(g.node("Sqrt", g.node("Add", variance, g.constant(POOL_EPSILON))))
    z = g.node("Flatten", g.node("Concat", *pooled, axis=1))
    z = g.node("Mul", z, g.constant(tensors["features.scale"]))
    z = g.node("Add", z, g.constant(tensors["features.shift"]))
    size = spec.input_size
    graph = helper.make_graph(
        g.nodes,
        spec.name,
        [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info(z, TensorProto.FLOAT, ["n", spec.feature_count])],
        g.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def session(model: onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def normalised(spec: NetworkSpec, tiles: NDArray[np.uint8]) -> Floats:
    """uint8 (N, S, S, 3) BGR -> the graph's input."""
    rgb = tiles[..., ::-1].astype(np.float32) - np.array(spec.mean, np.float32)
    return np.ascontiguousarray(rgb.transpose(0, 3, 1, 2), np.float32)
