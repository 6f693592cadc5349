"""Blocks on packed bits against their slow twin: exact where the arithmetic is integer, to 1e-4 where it is float."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import kernels
from models.cutting import cut_weights
from models.network import Block
from models.plan import Builder, padded
from tests import reference

BETAS_W = [0, 1, 3, 8, 12, 16, 24, 32, 48]
BETAS_A = [0, 1, 5, 16, 24, 32, 64]


@st.composite
def cases(draw):
    """A block, its input channels, the size of the image, and a number of images."""
    stride = draw(st.sampled_from([1, 2]))
    block = Block(
        channels=draw(st.integers(1, 80)),
        kernel=draw(st.sampled_from([1, 3, 5])),
        stride=stride,
        beta_w=draw(st.sampled_from(BETAS_W)),
        beta_a=draw(st.sampled_from(BETAS_A)),
    )
    return block, draw(st.integers(1, 140)), stride * draw(st.integers(1, 3)), draw(st.integers(1, 2))


pool = ThreadPoolExecutor(3)


def run(block, x, tensors, team=1):
    """x (N, S, S, C) through a plan of one block, by a team, in buffers with room for one image more.

    They begin at an odd float, so that no vector is aligned.
    """
    n, size, _, c_in = x.shape
    builder = Builder()
    builder.block(block, c_in, size, tensors)
    layout = builder.layout(n + 1)
    plan, buffers, layer = layout.plan, layout.buffers(), layout.plan.layers[0]
    buffers = buffers._replace(maps=np.zeros(layout.maps + 1, np.float32)[1:])
    begin, rows = int(layer["source"]), n * size * size
    wide = buffers.maps[begin : begin + rows * padded(c_in)].reshape(rows, -1)
    wide[:] = 7.0  # what the padding holds does not matter
    shared = np.zeros(kernels.SHARED, np.int64)
    kernels.pack_source(plan, buffers, 0, n)  # nor what was there before
    kernels.run_layer(plan, buffers, 0, n, shared, 0, 1)
    wide[:, :c_in] = x.reshape(-1, c_in)
    kernels.pack_source(plan, buffers, 0, n)
    others = [pool.submit(kernels.run_layer, plan, buffers, 0, n, shared, m, team) for m in range(1, team)]
    kernels.run_layer(plan, buffers, 0, n, shared, 0, team)
    for other in others:
        other.result(60)
    side, begin = int(layer["result_side"]), int(layer["result"])
    out = buffers.maps[begin : begin + n * side * side * padded(block.channels)]
    return out.reshape(n, side, side, -1)[..., : block.channels].copy()


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_integers_are_exact(case, team, seed):
    """Inputs of +1 and -1 with all scales 1: what is left are integers and quarters, which float32 holds exactly."""
    block, c_in, size, n = case
    rng = np.random.default_rng(seed)
    x = rng.choice(np.array([-1, 1]), (n, size, size, c_in))
    tensors = reference.random_block(rng, block, c_in)
    one, zero = np.ones(block.channels, np.float32), np.zeros(block.channels, np.float32)
    tensors |= {"s": one, "scale": one, "shift": zero, "slope": one, "in_shift": np.zeros(c_in, np.float32)}
    weight = reference.integer_weight(tensors["bits"], tensors["q"], block.kernel**2 * c_in, block.beta_w)
    want = reference.convolve(x, weight, block.kernel, block.stride)
    short = x if block.stride == 1 else x.reshape(n, size // 2, 2, size // 2, 2, c_in).mean(axis=(2, 4))
    want = want + short[..., [o % c_in for o in range(block.channels)]]
    assert np.array_equal(run(block, x.astype(np.float32), tensors, team), want)


@settings(max_examples=40, deadline=None)
@example((Block(channels=1, kernel=1, beta_w=1), 32, 1, 1), 0)  # whole words of channels, but not of pieces
@given(cases(), st.integers(0, 2**32 - 1))
def test_blocks_equal_their_slow_twin(case, seed):
    block, c_in, size, n = case
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, size, size, c_in)).astype(np.float32)
    tensors = reference.random_block(rng, block, c_in)
    x = np.where(rng.random(x.shape) < 0.2, -tensors["in_shift"], x)  # binarizes a zero, whose sign is +1
    want = reference.block(x, tensors, block)
    np.testing.assert_allclose(run(block, x, tensors), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("beta_w", [0, 8, 16])
@pytest.mark.parametrize("sign", [-1, 1])
def test_counters_do_not_overflow(beta_w, sign):
    """The largest scales, every bit different or every one equal, more inputs than a 16-bit counter can hold."""
    c_in, channels = 1300, 3
    q = np.full((channels, -(-c_in // (beta_w or c_in))), kernels.MAX_Q, np.uint8)
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    tensors = {"in_shift": np.zeros(c_in, np.float32), "bits": np.zeros((channels, -(-c_in // 8)), np.uint8), "q": q}
    tensors |= {"s": ones, "scale": ones, "shift": zeros, "slope": ones}
    block = Block(channels=channels, kernel=1, beta_w=beta_w)
    out = run(block, np.full((1, 2, 2, c_in), sign, np.float32), tensors)
    assert (out == sign * (kernels.MAX_Q * c_in + 1)).all()


def test_scales_beyond_seven_bits_are_refused():
    with pytest.raises(ValueError, match="up to 127, not 128"):
        cut_weights(np.zeros((1, 2), np.uint8), np.full((1, 1), 128, np.uint8), 16, 1, 16, 0, 4)


def test_activation_scales_follow_their_groups():
    """A channel group whose inputs are ten times larger weighs ten times more: beta_a separates them."""
    block = Block(channels=1, kernel=1, beta_w=16, beta_a=32)
    x = np.ones((1, 1, 1, 64), np.float32)
    x[..., 32:] = 10
    tensors = reference.random_block(np.random.default_rng(0), block, 64)
    tensors |= {"bits": np.zeros((1, 8), np.uint8), "q": np.array([[1, 1, 2, 2]], np.uint8), "in_shift": x[0, 0, 0] * 0}
    tensors |= {"s": np.ones(1, np.float32), "scale": np.ones(1, np.float32), "shift": np.zeros(1, np.float32)}
    assert run(block, x, tensors).item() == 32 * 1 * 1 + 32 * 10 * 2 + 1
