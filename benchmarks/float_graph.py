"""The float network of a topology in ONNX Runtime, the baseline of benchmarks; binarized, a reference of tests."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from models.exchange.export import features
from models.exchange.graph import Floats, Graph
from models.network import NetworkSpec, Tensors


def build(spec: NetworkSpec, tensors: Tensors, weights: Sequence[Floats], binary: bool) -> onnx.ModelProto:
    """Input `tiles`: float32 (N, 3, S, S) RGB less the mean; output: the features (N, F) before they are binarized.

    weights: the weight of each block, (O, k, k, C); binary: whether activations are binarized, too.
    """
    g = Graph()
    z = g.node("Flatten", features(g, spec, tensors, weights, "tiles", binary))
    size = spec.input_size
    return g.model(spec.name, ("tiles", ("n", 3, size, size)), (z, ("n", spec.feature_count)))


def session(model: onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def normalised(spec: NetworkSpec, tiles: NDArray[np.uint8]) -> Floats:
    """uint8 (N, S, S, 3) BGR -> the graph's input."""
    rgb = tiles[..., ::-1].astype(np.float32) - np.array(spec.mean, np.float32)
    return np.ascontiguousarray(rgb.transpose(0, 3, 1, 2), np.float32)
