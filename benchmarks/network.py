"""`python -m benchmarks network`: the default backbone against ONNX Runtime on the same topology, one thread.

Ours goes from uint8 tiles to packed features; ONNX Runtime gets its input normalised. The float network has the same
convolutions, affines, shortcuts and pooling, its activations are not binarized; int8 is that network, statically
quantized by ONNX Runtime's own tool. peak_bytes: what the engine and one batch allocate (compiled code not counted).
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

from benchmarks import float_graph
from benchmarks.timing import race
from models.artifact import DEFAULT, load
from models.engine import Engine
from models.model import Model
from models.network import block_weight

BATCHES = (48, 1)
TURNS = 21
CALIBRATION_TILES = 16


def random_tiles(model: Model, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (count, S, S, 3)."""
    size = model.spec.input_size
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def quantized(model: Model, graph: onnx.ModelProto) -> ort.InferenceSession:
    """The float graph in int8: weights per channel, activations calibrated on random tiles."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Tiles(CalibrationDataReader):
        def __init__(self) -> None:
            tiles = random_tiles(model, CALIBRATION_TILES)
            self.left = [{"tiles": float_graph.normalised(model.spec, tile[None])} for tile in tiles]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    logging.getLogger().setLevel(logging.ERROR)  # the tool advises a preprocessing that a graph of ours needs not
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = Path(folder) / "int8.onnx"
        quantize_static(
            graph,
            target,
            Tiles(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return float_graph.session(onnx.load(target))


def peak_bytes(model: Model, batch: int) -> int:
    """Most memory in use while an engine is made and computes one batch."""
    tiles = random_tiles(model, batch)
    tracemalloc.start()
    try:
        Engine(model).features(tiles)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """One row per batch size. Raises ArtifactError where the default model is missing."""
    model = load(DEFAULT)
    spec = model.spec
    progress("float and int8 graphs")
    weights = [block_weight(spec, model.tensors, i) for i in range(len(spec.blocks))]
    graph = float_graph.build(spec, model.tensors, weights, binary=False)
    running = {"float": float_graph.session(graph), "int8": quantized(model, graph)}
    engine = Engine(model)
    engine.warm_up()
    table: list[dict[str, object]] = []
    for batch in BATCHES:
        progress(f"batch of {batch}")
        tiles = random_tiles(model, batch)
        given = {"tiles": float_graph.normalised(spec, tiles)}
        contenders: dict[str, Callable[[], object]] = {
            name: partial(session.run, None, given) for name, session in running.items()
        }
        contenders["ours"] = partial(engine.features, tiles)
        seconds = race(contenders, 5 if quick else TURNS)
        table.append(
            {
                "model": spec.name,
                "input": f"{batch}x{spec.input_size}x{spec.input_size}x3",
                "threads": 1,
                "ms": 1e3 * seconds["ours"],
                "vs_ort_float": seconds["float"] / seconds["ours"],
                "vs_ort_int8": seconds["int8"] / seconds["ours"],
                "peak_bytes": peak_bytes(model, batch),
                "artifact_bytes": DEFAULT.stat().st_size,
            }
        )
    return table
