"""The engine against the slow twin, the formula in NumPy, and ONNX Runtime; its batches, threads and refusals."""

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest

from benchmarks import float_graph
from models import plan
from models.engine import Engine, Features
from models.model import Model
from models.network import Block, NetworkSpec, Pool, Stem
from models.network import forward as formula
from tests import reference

CLASSES = ("object", "road", "trees")


def network(*blocks, taps, size=16, **stem):
    return NetworkSpec(
        name="random",
        input_size=size,
        mean=(100, 110, 120),
        stem=Stem(**({"channels": 20} | stem)),
        blocks=blocks,
        taps=taps,
        beta_f=4,
    )


EVEN = network(Block(channels=32, stride=2), Block(channels=32, beta_a=16), Block(channels=64, stride=2), taps=(0, 2))
ODD = network(
    Block(channels=13, beta_w=0, beta_a=7),
    Block(channels=50, kernel=1, beta_w=5),
    Block(channels=50, kernel=5, stride=2, beta_w=24, beta_a=1),
    Block(channels=9, beta_w=8, beta_a=32),
    taps=(1, 3),
    size=12,
    channels=6,
    kernel=5,
    stride=1,
)


POOLED = network(
    Block(channels=24, shortcut=0, pool=Pool(size=3, stride=2, padding=1)),
    Block(channels=40, kernel=1, shortcut=0, pool=Pool(kind="mean", size=3, stride=1)),
    Block(channels=64, beta_a=32),
    Block(channels=70, kernel=2, valid=True, shortcut=0, beta_w=32),
    taps=(2, 3),
    size=28,
    channels=10,
    pool=Pool(),
)
FAR = network(
    Block(channels=24, shortcut=0),
    Block(channels=40, shortcut=2, beta_w=8),
    Block(channels=40, stride=2, shortcut=0),
    Block(channels=70, shortcut=2),
    Block(channels=33, shortcut=2, stride=2),
    Block(channels=33, shortcut=1),
    Block(channels=64, shortcut=2),
    taps=(3, 6),
    size=32,
    channels=10,
)
DENSE = msgspec.structs.replace(POOLED, deviation=False, beta_f=1)
ALL = pytest.mark.parametrize("spec", [EVEN, ODD, POOLED, FAR, DENSE], ids=["even", "odd", "pooled", "far", "dense"])
PIECE = 8
"""Images that go through these networks together: all are small."""


def random_model(spec, seed=0):
    return Model(spec, reference.random_tensors(np.random.default_rng(seed), spec, len(CLASSES)), CLASSES)


def random_tiles(spec, count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, spec.input_size, spec.input_size, 3), np.uint8)


def close(value, want):
    np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@ALL
def test_features_and_logits_equal_the_slow_twin(spec):
    model, tiles = random_model(spec), random_tiles(spec, 3)
    engine = Engine(model)
    features = engine.features(tiles)
    z = reference.forward(model, tiles)
    assert features.bits.shape == (3, -(-spec.feature_count // 8))
    assert features.scales.shape == (3, -(-spec.feature_count // spec.beta_f))
    assert (features.bits.dtype, features.scales.dtype) == (np.uint8, np.float32)
    close(features.values(), np.array([reference.binarize(row, spec.beta_f) for row in z]))
    close(engine.logits(features), reference.logits(model, z))


@ALL
def test_the_formula_in_numpy_agrees(spec):
    model, tiles = random_model(spec), random_tiles(spec, 2)
    close(formula(spec, model.tensors, tiles), reference.forward(model, tiles))


@ALL
def test_features_equal_onnx_runtime(spec):
    pytest.importorskip("onnx")
    model, tiles = random_model(spec), random_tiles(spec, 4)
    weights = []
    for i, (block, c_in) in enumerate(zip(spec.blocks, spec.block_inputs(), strict=True)):
        bits, q, s = (model.tensors[f"block{i}.{name}"] for name in ("bits", "q", "s"))
        flat = reference.integer_weight(bits, q, block.kernel**2 * c_in, block.beta_w) * s[:, None]
        weights.append(flat.reshape(block.channels, block.kernel, block.kernel, c_in).astype(np.float32))
    graph = float_graph.session(float_graph.build(spec, model.tensors, weights, binary=True))
    (z,) = graph.run(None, {"tiles": float_graph.normalised(spec, tiles)})
    close(Engine(model).features(tiles).values(), np.array([reference.binarize(row, spec.beta_f) for row in z]))


def test_a_batch_of_any_size_gives_each_tile_what_it_gets_alone():
    model, tiles = random_model(EVEN), random_tiles(EVEN, 3 * PIECE + 1)
    engine = Engine(model)
    whole = engine.features(tiles)
    assert len(whole) == len(tiles)
    for i in range(len(tiles)):
        alone = engine.features(tiles[i : i + 1])
        assert np.array_equal(alone.bits[0], whole.bits[i])
        assert np.array_equal(alone.scales[0], whole.scales[i])


def test_no_tiles_give_no_features():
    engine = Engine(random_model(EVEN))
    features = engine.features(random_tiles(EVEN, 0))
    assert len(features) == 0
    assert features.values().shape == (0, EVEN.feature_count)
    assert engine.logits(features).shape == (0, len(CLASSES))


def test_two_threads_and_callers_at_once_change_nothing():
    model, tiles = random_model(EVEN), random_tiles(EVEN, 4 * PIECE)
    want = Engine(model).features(tiles)
    engine = Engine(model, threads=2)
    start = threading.Barrier(3, timeout=30)

    def call(_):
        start.wait()
        return engine.features(tiles)

    with ThreadPoolExecutor(3) as pool:
        for got in pool.map(call, range(3), timeout=60):
            assert np.array_equal(got.bits, want.bits)
            assert np.array_equal(got.scales, want.scales)


def test_a_block_that_adds_its_input_writes_over_it():
    """Not where pixels are averaged, channels repeat, a pool follows, or a later shortcut reads that input."""
    spec = network(
        Block(channels=64),
        Block(channels=64),
        Block(channels=64, shortcut=2),
        Block(channels=64),
        Block(channels=64, pool=Pool(size=2, stride=1)),
        Block(channels=64, shortcut=0),
        Block(channels=70),
        taps=(0, 3, 6),
        size=14,
        channels=40,
    )
    model, tiles = random_model(spec), random_tiles(spec, 3)
    layers = plan.of_network(spec, model.tensors).plan.layers
    over = [int(layer.out) == int(layer.source) for layer in layers]
    assert over == [False, False, False, False, True, False, False, False]
    close(
        Engine(model).features(tiles).values(),
        np.array([reference.binarize(r, 4) for r in reference.forward(model, tiles)]),
    )


def test_a_compiled_network_allocates_nothing_per_frame():
    """Only views of buffers come and go. What compiled code allocates is traced as well."""
    model, tiles = random_model(ODD), random_tiles(ODD, PIECE)
    engine = Engine(model)
    engine.warm_up()
    out = np.zeros((PIECE, ODD.feature_count), np.float32)
    tracemalloc.start()
    try:
        engine._run(tiles, out)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        engine._run(tiles, out)
        peak = tracemalloc.get_traced_memory()[1]
        assert peak - before < 8000, "views are less, the smallest buffer is more"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 3, 60])
def test_a_team_of_any_size_computes_what_one_thread_does(threads, count, monkeypatch):
    """Few tiles are shared by all threads, layer by layer, as large ones are; many are dealt out."""
    monkeypatch.setattr("models.engine.TEAM_PRODUCTS", 0)
    model, tiles = random_model(POOLED), random_tiles(POOLED, count)
    want, engine = Engine(model).features(tiles), Engine(model, threads)
    for _ in range(3):
        got = engine.features(tiles)
        assert np.array_equal(got.bits, want.bits)
        assert np.array_equal(got.scales, want.scales)


def test_tiles_may_be_read_only_views_and_stay_as_they_are():
    model, tiles = random_model(EVEN), random_tiles(EVEN, 6)
    engine = Engine(model)
    want = engine.features(tiles[::2].copy())
    before = tiles.copy()
    tiles.flags.writeable = False
    got = engine.features(tiles[::2])
    assert np.array_equal(got.bits, want.bits)
    assert np.array_equal(tiles, before)


@pytest.mark.parametrize("bad", [np.zeros((2, 16, 16, 3), np.float32), np.zeros((2, 8, 16, 3), np.uint8)])
def test_other_tiles_are_refused(bad):
    with pytest.raises(ValueError, match=r"tiles are uint8 \('N', 16, 16, 3\), not"):
        Engine(random_model(EVEN)).features(bad)


@pytest.mark.parametrize(
    ("block", "more", "message"),
    [
        (Block(channels=8, stride=2), {"size": 10}, "shortcut from 5 x 5 to 3 x 3"),
        (Block(channels=8, kernel=2), {}, "kernel of 2 with padding"),
        (Block(channels=8, stride=3), {}, "shortcut from 8 x 8 to 3 x 3"),
        (Block(channels=8, valid=True), {}, "shortcut from 8 x 8 to 6 x 6"),
        (Block(channels=8, shortcut=2), {}, "around 2 blocks, there are 1"),
        (Block(channels=8, kernel=9, valid=True, shortcut=0), {}, "nothing is left"),
        (Block(channels=8, pool=Pool(size=2, padding=2)), {}, "padding is at most half"),
        (Block(channels=8, pool=Pool(size=9)), {}, "nothing is left"),
        (Block(channels=8), {"kernel": 4}, "stem: a kernel of 4"),
    ],
)
def test_networks_that_do_not_fit_are_refused(block, more, message):
    with pytest.raises(ValueError, match=message):
        network(block, taps=(0,), **more)


def test_an_engine_needs_a_thread():
    with pytest.raises(ValueError, match="at least one thread"):
        Engine(random_model(EVEN), threads=0)


def test_values_of_features_use_each_scale_for_its_block():
    features = Features(np.array([[0b10010]], np.uint8), np.array([[2, 3]], np.float32), count=5, beta=3)
    assert features.values().tolist() == [[2.0, -2.0, 2.0, 3.0, -3.0]]
