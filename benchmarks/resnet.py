"""ResNet-18 at 224 x 224 with random weights: ours, and the usual one as standard ONNX operators.

Ours has the same stem, max pool and sixteen 3x3 convolutions, with a shortcut around each of them instead of around
two; where the usual one has 1x1 convolutions in three shortcuts, ours average and repeat channels.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.exchange.graph import IR_VERSION, OPSET, Graph
from models.model import Model, head_shapes
from models.network import Block, NetworkSpec, Pool, Stem

SIZE, CLASSES = 224, 100
WIDTHS = (64, 128, 256, 512)
SPEC = NetworkSpec(
    name="resnet-18",
    input_size=SIZE,
    mean=(124, 116, 104),
    stem=Stem(channels=WIDTHS[0], kernel=7, stride=2, pool=Pool(size=3, stride=2, padding=1)),
    blocks=tuple(Block(channels=c, stride=2 if i == 0 and c > 64 else 1) for c in WIDTHS for i in range(4)),
    taps=(15,),
)


def model() -> Model:
    """Ours, whose outputs stay near 1."""
    rng = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape) in (SPEC.shapes() | head_shapes(SPEC, CLASSES)).items():
        kind = name.split(".")[-1]
        if dtype == "int16":
            tensors[name] = rng.integers(-500, 500, shape).astype(np.int16)
        elif dtype == "int8":
            tensors[name] = rng.integers(-127, 128, shape).astype(np.int8)
        elif dtype == "uint8":
            tensors[name] = rng.integers(1 if kind == "q" else 0, 128, shape).astype(np.uint8)
        else:
            size = {"s": 3e-4, "scale": 1e-4 if name == "stem.scale" else 1.0}.get(kind, 0.2)
            tensors[name] = (size * rng.uniform(0.5, 1, shape) * rng.choice([-1, 1], shape)).astype(np.float32)
    return Model(SPEC, tensors, tuple(f"class {i}" for i in range(CLASSES)))


def graph() -> onnx.ModelProto:
    """The usual one, BatchNorm folded: `tiles` float32 (N, 3, 224, 224) -> logits (N, CLASSES)."""
    rng, g = np.random.default_rng(0), Graph()

    def convolution(x: str, c_in: int, c_out: int, kernel: int, stride: int) -> str:
        weight = rng.normal(0, (2 / (kernel**2 * c_in)) ** 0.5, (c_out, kernel, kernel, c_in)).astype(np.float32)
        return g.convolution(x, weight, stride, kernel // 2, bias=np.zeros(c_out))

    x = g.node("Relu", convolution("tiles", 3, WIDTHS[0], 7, 2))
    x = g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    c_in = WIDTHS[0]
    for width in WIDTHS:
        for i in range(2):
            stride = 2 if i == 0 and width != c_in else 1
            y = g.node("Relu", convolution(x, c_in, width, 3, stride))
            y = convolution(y, width, width, 3, 1)
            x = x if stride == 1 else convolution(x, c_in, width, 1, 2)
            x, c_in = g.node("Relu", g.node("Add", y, x)), width
    x = g.node("Flatten", g.node("GlobalAveragePool", x))
    head = g.constant(rng.normal(0, 0.05, (c_in, CLASSES)))
    x = g.node("MatMul", x, head)
    made = helper.make_graph(
        g.nodes,
        SPEC.name,
        [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", CLASSES])],
        g.constants,
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(proto)
    return proto
