"""A float ONNX network as a chain of layers that a `NetworkSpec` can say: convolutions and dense layers, each with its
BatchNorm, shortcut, activation and pool, and a classifier on the means of the last map.

What cannot be said is named with its node. What only nearly can, such as a shortcut with weights, is replaced, and the
report says so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from models.errors import ArtifactError
from models.network import Pool

Floats = NDArray[np.float32]
Node = Any

SAME = {"Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Softmax", "LogSoftmax"}
"""Operators that change no value which matters here, or only after the classifier."""


@dataclass
class Layer:
    """A convolution, or a dense layer as one. weight: (O, k, k, C); around: layers its shortcut goes around."""

    node: str
    weight: Floats
    scale: Floats
    shift: Floats
    slope: Floats
    stride: int = 1
    valid: bool = False
    pool: Pool | None = None
    around: int = 0
    active: bool = False

    @property
    def padding(self) -> int:
        """Pixels added on each side."""
        return 0 if self.valid else self.weight.shape[1] // 2


@dataclass
class FloatNetwork:
    """What was read. layers: the first one sees pixels, (x - mean) / deviation of RGB 0..255; head: (classes, C)."""

    size: int
    layers: list[Layer] = field(default_factory=list)
    head: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    bias: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    report: list[dict[str, object]] = field(default_factory=list)


class _Value(NamedTuple):
    """What a name in the graph stands for.

    layer: whose output it is, -1 for pixels; side: of the map; kind: `map`, `pooled`, `flat` or `logits`.
    """

    layer: int
    side: int
    kind: str = "map"
    shortcut: bool = False


def read(path: Path, size: int = 0) -> FloatNetwork:
    """Read the network in `path`. size: of its input, where the file leaves it open.

    Raises ArtifactError where the file is damaged, or holds what cannot be imported, with the node's name.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        first = (str(error).strip().splitlines() or ["damaged"])[0]
        raise ArtifactError(f"{path}: not an ONNX network, or a damaged one: {first}") from error
    if {"classes", "hash"} <= {entry.key for entry in model.metadata_props}:  # as `export` writes them
        raise ArtifactError(f"{path}: was exported from a model of this project; take that model itself")
    return _Reader(path, model.graph, size).network


class _Reader:
    def __init__(self, path: Path, graph: Any, size: int) -> None:
        self.path = path
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        inputs = [i for i in graph.input if i.name not in self.constants]
        shape = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
        if len(shape) != 4 or shape[1] not in (0, 3):
            raise ArtifactError(
                f"{path}: needs one input of (n, 3, height, width), has {[i.name for i in inputs]} {shape}"
            )
        size = size or shape[2]
        if not size or shape[2:] not in ([size, size], [0, 0]):
            raise ArtifactError(f"{path}: the input is {shape[2:]} pixels: give the size of a square with --size")
        self.network = FloatNetwork(size)
        self.values = {inputs[0].name: _Value(-1, size)}
        self.uses: dict[str, list[Node]] = {}
        for node in graph.node:
            for name in node.input:
                self.uses.setdefault(name, []).append(node)
        for node in graph.node:
            self.node, self.name = node, node.name or node.output[0]
            self._take()
        if self.values.get(graph.output[0].name, _Value(-1, 0)).kind != "logits":
            raise ArtifactError(
                f"{path}: output {graph.output[0].name!r} is no classifier's: it must end in Gemm or MatMul"
            )

    # --- one node --------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        node = self.node
        if node.op_type == "Constant":
            self.constants[node.output[0]] = numpy_helper.to_array(self._attributes()["value"])
            return
        data = [name for name in node.input if name and name not in self.constants]
        if not data:
            self._refuse("it computes with constants alone; simplify the file first")
        if unknown := [name for name in data if name not in self.values]:
            self._refuse(f"its input {unknown[0]!r} comes from nothing that was imported")
        values = [self.values[name] for name in data]
        known: dict[str, Callable[[_Value], _Value]] = {
            "Conv": self._conv,
            "BatchNormalization": self._norm,
            "Relu": lambda x: self._activate(x, 0.0),
            "LeakyRelu": lambda x: self._activate(x, self._attributes().get("alpha", 0.01)),
            "PRelu": lambda x: self._activate(x, self.constants[node.input[1]].reshape(-1)),
            "MaxPool": lambda x: self._pool(x, "max"),
            "AveragePool": lambda x: self._pool(x, "mean"),
            "GlobalAveragePool": self._means,
            "ReduceMean": self._means,
            "Slice": self._cut,
            "Pad": self._cut,
            "Gemm": self._dense,
            "MatMul": self._dense,
        }
        if node.op_type == "Add":
            out = self._bias(values[0]) if len(values) == 1 else self._add(*values[:2])
        elif node.op_type in SAME:
            flat = node.op_type in ("Flatten", "Reshape") and values[0].kind == "map"
            out = values[0]._replace(kind="flat") if flat else values[0]
        elif node.op_type in known and len(values) == 1:
            out = known[node.op_type](values[0])
        else:
            self._refuse(f"operator {node.op_type} of {len(values)} inputs is not known")
        self.values[node.output[0]] = out

    def _attributes(self) -> dict[str, Any]:
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.node.attribute}

    def _refuse(self, why: str) -> "Any":
        raise ArtifactError(f"{self.path}: node {self.name} ({self.node.op_type}) cannot be imported: {why}")

    def _say(self, became: str, kept: str) -> None:
        self.network.report.append(
            {"node": self.name, "operator": self.node.op_type, "became": became, "precision": kept}
        )

    def _constant(self, number: int, otherwise: Floats | None = None) -> Floats:
        names = list(self.node.input)
        if number >= len(names) or not names[number]:
            if otherwise is None:
                self._refuse(f"input {number} is missing")
            return np.asarray(otherwise, np.float32)
        if names[number] not in self.constants:
            self._refuse(f"its input {names[number]!r} is no constant")
        return self.constants[names[number]].astype(np.float32)

    def _open(self, x: _Value) -> Layer:
        """The layer that this node adds to, if it still can: the last one, before its activation and pool."""
        layers = self.network.layers
        if x.kind != "map" and x.kind != "flat":
            self._refuse("it comes after the last map")
        if x.layer < 0 or x.layer != len(layers) - 1 or x.shortcut:
            self._refuse("it follows no convolution or dense layer of its own")
        if layers[-1].active or layers[-1].pool:
            self._refuse("it comes after the activation or pool of its layer")
        return layers[-1]

    # --- layers ----------------------------------------------------------------------------------------------------

    def _conv(self, x: _Value) -> _Value:
        found, weight = self._attributes(), self._constant(1)
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
            self._refuse(f"a kernel of {weight.shape[2:]}, only squares are known")
        if found.get("group", 1) != 1 or set(found.get("dilations", [1])) != {1}:
            self._refuse("groups and dilations have no binary kernel here")
        kernel, stride, pads = weight.shape[2], set(found.get("strides", [1])), set(found.get("pads", [0]))
        if found.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or len(pads) != 1 or len(stride) != 1:
            self._refuse("strides and pads must be the same in both directions, and pads given")
        pad, step = pads.pop(), stride.pop()
        if pad and (pad != kernel // 2 or kernel % 2 == 0):
            self._refuse(f"padding {pad} of a kernel of {kernel}: it is 0, or half of an odd kernel")
        if kernel == 1 and self._is_projection():
            self._say("shortcut without weights", "replaced: 2 x 2 mean, channels repeated")
            return x._replace(shortcut=True)
        if x.kind != "map" or x.layer != len(self.network.layers) - 1:
            self._refuse("it begins a second branch: only shortcuts go beside the layers")
        channels = len(weight)
        bias = self._constant(2, np.zeros(channels, np.float32))
        side = (x.side + 2 * pad - kernel) // step + 1
        self._layer(weight.transpose(0, 2, 3, 1), bias, step, valid=not pad)
        return _Value(len(self.network.layers) - 1, side)

    def _layer(self, weight: Floats, bias: Floats, stride: int, valid: bool) -> None:
        channels, number = len(weight), len(self.network.layers)
        one = np.ones(channels, np.float32)
        layer = Layer(self.name, np.ascontiguousarray(weight), one, bias, one.copy(), stride, valid)
        self.network.layers.append(layer)
        if number:
            self._say(f"block {number - 1}", "binary")
        else:
            self._say("stem", "kept: 8-bit weights")

    def _is_projection(self) -> bool:
        """Whether this convolution leads straight to an addition, beside others that read the same map."""
        others = [node for node in self.uses[self.node.input[0]] if node is not self.node]
        after = self.uses.get(self.node.output[0], [])
        while len(after) == 1 and after[0].op_type == "BatchNormalization":
            after = self.uses.get(after[0].output[0], [])
        return bool(others) and len(after) == 1 and after[0].op_type == "Add"

    def _norm(self, x: _Value) -> _Value:
        if x.shortcut:
            return x
        layer, epsilon = self._open(x), self._attributes().get("epsilon", 1e-5)
        if layer.around:
            self._refuse("it comes after the addition of a shortcut")
        gamma, beta, mean, variance = (self._constant(i) for i in range(1, 5))
        gain = gamma / np.sqrt(variance + np.float32(epsilon))
        layer.scale, layer.shift = layer.scale * gain, (layer.shift - mean) * gain + beta
        return x

    def _bias(self, x: _Value) -> _Value:
        (constant,) = [self.constants[name] for name in self.node.input if name in self.constants]
        if x.kind == "logits":
            self.network.bias = self.network.bias + constant.reshape(-1).astype(np.float32)
            return x
        layer = self._open(x)
        layer.shift = layer.shift + constant.reshape(-1).astype(np.float32)
        return x

    def _add(self, x: _Value, y: _Value) -> _Value:
        """The end of a shortcut; the later layer is the one that it ends at."""
        if x.shortcut or (x.layer < y.layer and not y.shortcut):
            x, y = y, x
        layer = self._open(x)
        if layer.around or y.layer >= x.layer or y.kind != "map":
            self._refuse("only one shortcut a layer, from the output of an earlier one")
        layer.around = x.layer - y.layer
        channels = [len(self.network.layers[v.layer].weight) for v in (x, y) if v.layer >= 0]
        if len(channels) < 2:
            self._refuse("a shortcut from the pixels")
        if y.side not in (x.side, 2 * x.side):
            self._refuse(f"a shortcut from {y.side} x {y.side} to {x.side} x {x.side} pixels")
        exact = channels[0] == channels[1] and x.side == y.side and not y.shortcut
        self._say(f"shortcut of block {x.layer - 1}", "float" if exact else "replaced: 2 x 2 mean, channels repeated")
        return x

    def _activate(self, x: _Value, slope: Any) -> _Value:
        layers = self.network.layers
        if x.layer == len(layers) - 1 and x.layer >= 0 and not layers[-1].active and layers[-1].pool:
            if layers[-1].pool.kind != "max" or np.min(slope) < 0:
                self._refuse("an activation after a mean pool")
            layer = layers[-1]  # it rises everywhere, so it does not matter which of the two comes first
        else:
            layer = self._open(x)
        values = np.broadcast_to(np.asarray(slope, np.float32), layer.slope.shape)
        layer.slope, layer.active = values.copy(), True
        return x

    def _pool(self, x: _Value, kind: str) -> _Value:
        found = self._attributes()
        size, step, pads = (set(found.get(name, [0])) for name in ("kernel_shape", "strides", "pads"))
        if len(size) != 1 or len(step) != 1 or len(pads) != 1:
            self._refuse("a window that is no square")
        k, stride, pad = size.pop(), step.pop() or 1, pads.pop()
        if kind == "mean" and not pad and k == x.side and stride >= 1:
            return self._means(x)
        if found.get("ceil_mode") and (x.side + 2 * pad - k) % stride:
            self._refuse("ceil_mode")
        if kind == "mean" and pad and found.get("count_include_pad"):
            self._refuse("count_include_pad")
        layers = self.network.layers
        if x.layer != len(layers) - 1 or x.layer < 0 or layers[-1].pool or x.kind != "map":
            if kind == "mean" and k == stride == 2 and not pad:
                return x._replace(shortcut=True)  # of a shortcut, which takes this mean anyhow
            self._refuse("a pool follows its layer, and only one")
        layers[-1].pool = Pool(kind="max" if kind == "max" else "mean", size=k, stride=stride, padding=pad)
        self._say(f"pool of {'the stem' if x.layer == 0 else f'block {x.layer - 1}'}", "float")
        return _Value(x.layer, layers[-1].pool.side(x.side))

    def _cut(self, x: _Value) -> _Value:
        """A shortcut without weights that takes every second pixel and fills up channels with zeros."""
        after = self.uses.get(self.node.output[0], [])
        if len(after) != 1 or after[0].op_type not in ("Slice", "Pad", "Add") or x.kind != "map":
            self._refuse("it is known in shortcuts only")
        return x._replace(shortcut=True)

    # --- the end ---------------------------------------------------------------------------------------------------

    def _means(self, x: _Value) -> _Value:
        if x.kind != "map" or x.layer != len(self.network.layers) - 1:
            self._refuse("means are known of the last map only")
        if self.node.op_type == "ReduceMean":
            axes = self._attributes().get("axes") or self.constants.get((*self.node.input, "")[1], np.zeros(0)).tolist()
            if sorted(axis % 4 for axis in axes) != [2, 3]:
                self._refuse(f"means over the axes {list(axes)}, only those over height and width are known")
        self._say("features", "kept: float")
        return x._replace(kind="pooled", side=1)

    def _dense(self, x: _Value) -> _Value:
        weight, found = self._constant(1), self._attributes()
        if x.layer < 0 or weight.ndim != 2 or found.get("transA") or found.get("alpha", 1.0) != 1.0:
            self._refuse("a product of this form")
        weight = weight if found.get("transB") else weight.T
        bias = self._constant(2, np.zeros(len(weight), np.float32)) if self.node.op_type == "Gemm" else None
        bias = (
            np.zeros(len(weight), np.float32) if bias is None else bias.reshape(-1) * np.float32(found.get("beta", 1.0))
        )
        channels = len(self.network.layers[-1].weight)
        side = 1 if x.kind == "pooled" else x.side
        if weight.shape[1] != channels * side * side:
            self._refuse(f"{weight.shape[1]} inputs, the map before it has {channels} x {side} x {side}")
        if self._leads_out():
            if side > 1:
                self._refuse(
                    f"the classifier reads {side} x {side} pixels; it must read their means, or a dense layer's output"
                )
            self.network.head, self.network.bias = np.ascontiguousarray(weight), bias
            self._say("head", "kept: 16-bit weights")
            return _Value(x.layer, 1, "logits")
        if x.kind == "pooled":
            self._refuse("a dense layer after global means, which is not the classifier")
        self._layer(weight.reshape(-1, channels, side, side).transpose(0, 2, 3, 1), bias, 1, valid=True)
        return _Value(len(self.network.layers) - 1, 1)

    def _leads_out(self) -> bool:
        after = self.uses.get(self.node.output[0], [])
        while len(after) == 1 and after[0].op_type in (SAME | {"Add"}):
            after = self.uses.get(after[0].output[0], [])
        return not after
