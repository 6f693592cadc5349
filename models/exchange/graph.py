"""A small builder of ONNX graphs: nodes and constants, and the layers that networks of this project are made of."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.network import Pool

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

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Name of a new operator's output."""
        name = name or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def convolution(
        self, x: str, weight: NDArray[Any], stride: int, padding: int, bias: NDArray[Any] | None = None
    ) -> str:
        """weight (O, k, k, C) as the project keeps it."""
        k = weight.shape[1]
        inputs = [x, self.constant(weight.transpose(0, 3, 1, 2)), *([] if bias is None else [self.constant(bias)])]
        return self.node("Conv", *inputs, strides=[stride] * 2, pads=[padding] * 4, kernel_shape=[k, k])

    def binarize(self, x: str, length: int, beta: int, axis: int) -> str:
        """Eq. 2 and 4 along an axis of this length, in blocks of beta entries; beta is not 0."""
        if beta == 1:
            return x
        groups = [min(beta, length - first) for first in range(0, length, beta)]
        sign = self.node("Where", self.node("Less", x, self.constant(0)), self.constant(-1), self.constant(1))
        size = self.node("Abs", x)
        names = [f"n{len(self.nodes)}_{i}" for i in range(len(groups))]
        self.nodes.append(helper.make_node("Split", [size, self.constant(groups, np.int64)], names, axis=axis))
        axes = self.constant([axis], np.int64)
        scales = []
        for part, n in zip(names, groups, strict=True):
            shape = [1, 1, 1, 1]
            shape[axis] = n
            scales.append(self.node("Expand", self.node("ReduceMean", part, axes), self.constant(shape, np.int64)))
        return self.node("Mul", sign, self.node("Concat", *scales, axis=axis))

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

    def model(
        self, name: str, x: tuple[str, tuple[int | str, ...]], y: tuple[str, tuple[int | str, ...]]
    ) -> onnx.ModelProto:
        """The graph with input x and output y, float32, by name and shape; checked. Its size may vary in `n`."""
        source, result = (helper.make_tensor_value_info(end, TensorProto.FLOAT, list(shape)) for end, shape in (x, y))
        graph = helper.make_graph(self.nodes, name, [source], [result], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model
