"""`python -m benchmarks network`: whole networks against ONNX Runtime, float and int8.

The default backbone against ONNX Runtime on the same topology, and ResNet-18 (`benchmarks.resnet` says how ours
differs). Ours goes from uint8 tiles to logits; ONNX Runtime gets its input normalised, and goes as far as the features
of the backbone or the logits of ResNet-18. The float network's activations are not binarized; int8 is that network,
statically quantized by ONNX Runtime's own tool.

threads: of all contenders; vs_one_thread: our time with one over that with this many. peak_bytes: what the engine and
one batch allocate (compiled code not counted); artifact_bytes: the model's file, or its tensors where it has none.
"""

import logging
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks import float_graph, resnet
from models.artifact import DEFAULT, load
from models.engine import Engine
from models.model import Model
from models.network import block_weight
from models.paper.timing import race

CASES = ((48, 1), (1, 1), (48, 2))
"""Tiles in a batch, and threads."""
TURNS = 21
CALIBRATION_TILES = 16


def random_tiles(model: Model, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (count, S, S, 3)."""
    size = model.spec.input_size
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def quantized(model: Model, graph: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    """The float graph in int8: weights per channel, activations calibrated on random tiles."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Tiles(CalibrationDataReader):
        def __init__(self) -> None:
            tiles = random_tiles(model, CALIBRATION_TILES)
            self.left = [{"tiles": float_graph.normalised(model.spec, tile[None])} for tile in tiles]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    own = onnx.ModelProto()
    own.CopyFrom(graph)  # the tool moves the weights of what it is given into files
    logging.getLogger().setLevel(logging.ERROR)  # the tool advises a preprocessing that a graph of ours needs not
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = Path(folder) / "int8.onnx"
        quantize_static(
            own,
            target,
            Tiles(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return float_graph.session(onnx.load(target), threads)


def peak_bytes(model: Model, batch: int) -> int:
    """Most memory in use while an engine is made and computes one batch."""
    tiles = random_tiles(model, batch)
    tracemalloc.start()
    try:
        Engine(model).features(tiles)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def compare(
    model: Model, graph: onnx.ModelProto, batch: int, threads: int, stored: int, quick: bool
) -> dict[str, object]:
    """One row."""
    tiles, engine = random_tiles(model, batch), Engine(model, threads)
    contenders: dict[str, Callable[[], object]] = {}
    given = {"tiles": float_graph.normalised(model.spec, tiles)}
    contenders["float"] = partial(float_graph.session(graph, threads).run, None, given)
    contenders["int8"] = partial(quantized(model, graph, threads).run, None, given)
    contenders["ours"] = lambda: engine.logits(engine.features(tiles))
    if threads > 1:
        alone = Engine(model)
        contenders["alone"] = lambda: alone.logits(alone.features(tiles))
    seconds = race(contenders, 5 if quick else TURNS)
    return {
        "model": model.spec.name,
        "input": f"{batch}x{model.spec.input_size}x{model.spec.input_size}x3",
        "threads": threads,
        "ms": 1e3 * seconds["ours"],
        "vs_ort_float": seconds["float"] / seconds["ours"],
        "vs_ort_int8": seconds["int8"] / seconds["ours"],
        "vs_one_thread": seconds["alone"] / seconds["ours"] if threads > 1 else None,
        "peak_bytes": peak_bytes(model, batch),
        "artifact_bytes": stored,
    }


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """One row per network, batch size and number of threads. Raises ArtifactError without the default model."""
    model = load(DEFAULT)
    progress("float and int8 graphs")
    weights = [block_weight(model.spec, model.tensors, i) for i in range(len(model.spec.blocks))]
    graph = float_graph.build(model.spec, model.tensors, weights, binary=False)
    table = []
    for batch, threads in CASES:
        progress(f"batch of {batch}, {threads} threads")
        table.append(compare(model, graph, batch, threads, DEFAULT.stat().st_size, quick))
    progress("ResNet-18")
    large = resnet.model()
    stored = sum(tensor.nbytes for tensor in large.tensors.values())
    table.append(compare(large, resnet.graph(), 1, 1, stored, quick))
    return table
