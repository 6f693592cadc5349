"""A model as standard ONNX operators, which ONNX Runtime and others run without this project.

Activations are binarized by their formula in float (Less, Abs, ReduceMean), so that the graph computes what the engine
does; signs of values very near to zero may differ, since sums are made in another order.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from models.engine import Engine
from models.errors import ArtifactError
from models.exchange.graph import Floats, Graph
from models.model import Model
from models.network import HEAD_STEP, POOL_EPSILON, Block, NetworkSpec, Tensors, block_weight

INPUT, OUTPUT = "image", "logits"
"""float32 (n, 3, S, S), RGB, 0..255; float32 (n, classes)."""


def to_onnx(model: Model) -> onnx.ModelProto:
    """The whole model, from pixels (`INPUT`) to `OUTPUT`; the classes stand in its metadata, one a line."""
    g, spec = Graph(), model.spec
    mean = np.array(spec.mean, np.float32).reshape(1, 3, 1, 1)
    weights = [block_weight(spec, model.tensors, i) for i in range(len(spec.blocks))]
    z = features(g, spec, model.tensors, weights, g.node("Sub", INPUT, g.constant(mean)))
    z = g.binarize(z, spec.feature_count, spec.beta_f or spec.feature_count, 1)
    head = model.tensors["head.weight"].astype(np.float32) * np.float32(HEAD_STEP)
    y = g.node("Flatten", g.convolution(z, head[:, None, None, :], 1, 0))
    bias = model.tensors["head.bias"].astype(np.float32) * np.float32(HEAD_STEP)
    y = g.node("Add", y, g.constant(bias), name=OUTPUT)
    size = spec.input_size
    out = g.model(spec.name, (INPUT, ("n", 3, size, size)), (y, ("n", len(model.classes))))
    onnx.helper.set_model_props(out, {"classes": "\n".join(model.classes), "hash": model.hash})
    return out


def save(model: Model, path: Path) -> None:
    """Write `to_onnx(model)`. Raises ArtifactError where `path` cannot be written."""
    content = to_onnx(model).SerializeToString()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}; choose another folder") from error


def agreement(model: Model, path: Path, tiles: int = 16) -> str:
    """In words, how near ONNX Runtime comes to the engine on random tiles; a model that does not fly has no other."""
    if model.spec.layout != "channel":
        return "not compared, the layout of this model does not fly"
    size = model.spec.input_size
    images = np.random.default_rng(0).integers(0, 256, (tiles, size, size, 3), np.uint8)
    rgb = np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2), np.float32)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run([OUTPUT], {INPUT: rgb})
    engine = Engine(model)
    want = engine.logits(engine.features(images))
    far = np.abs(got - want).max(1)
    return f"logits differ by at most {far.max():.2g} (median {np.median(far):.2g}) on {tiles} random images"


def features(
    g: Graph, spec: NetworkSpec, tensors: Tensors, weights: Sequence[Floats], x: str, binary: bool = True
) -> str:
    """The features (n, F, 1, 1) before they are binarized, of x: RGB less the mean.

    weights: the binarized weight of each block, (O, k, k, C); binary: whether activations are binarized, too.
    """
    x = g.convolution(x, tensors["stem.weight"], spec.stem.stride, spec.stem.padding)
    x = g.prelu(g.affine(x, tensors["stem.scale"], tensors["stem.shift"]), tensors["stem.slope"])
    x = g.pool(x, spec.stem.pool)
    layers = zip(spec.blocks, spec.block_inputs(), spec.sides(), weights, strict=False)
    inputs, pooled = list[tuple[str, int, int]](), list[str]()
    pixels = g.constant([2, 3], np.int64)
    for i, (block, c_in, side, weight) in enumerate(layers):
        inputs.append((x, c_in, side))
        a = g.node("Add", x, g.channels(tensors[f"block{i}.in_shift"]))
        if binary:
            length, axis = (side, 3) if spec.layout == "row" and side > 1 else (c_in, 1)
            a = g.binarize(a, length, block.beta_a or length, axis)
        y = g.convolution(a, weight, block.stride, block.padding)
        y = g.affine(y, tensors[f"block{i}.scale"], tensors[f"block{i}.shift"])
        if block.shortcut:
            y = g.node("Add", y, _shortcut(g, block, inputs[-block.shortcut], side))
        x = g.pool(g.prelu(y, tensors[f"block{i}.slope"]), block.pool)
        if i in spec.taps:
            mean = g.node("ReduceMean", x, pixels, keepdims=1)
            pooled.append(mean)
            if not spec.deviation:
                continue
            far = g.node("Sub", x, mean)
            variance = g.node("ReduceMean", g.node("Mul", far, far), pixels, keepdims=1)
            pooled.append(g.node("Sqrt", g.node("Add", variance, g.constant(POOL_EPSILON))))
    return g.affine(g.node("Concat", *pooled, axis=1), tensors["features.scale"], tensors["features.shift"])


def _shortcut(g: Graph, block: Block, near: tuple[str, int, int], side: int) -> str:
    """near: name, channels and side of where it begins; side: of what the block reads."""
    x, c_in, large = near
    if large > (side + 2 * block.padding - block.kernel) // block.stride + 1:
        x = g.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    if block.channels > c_in:
        x = g.node("Concat", *[x] * -(-block.channels // c_in), axis=1)
    if block.channels % c_in:
        x = g.node("Slice", x, *(g.constant([n], np.int64) for n in (0, block.channels, 1)))
    return x
