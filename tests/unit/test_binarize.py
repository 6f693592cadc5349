"""Eq. 1 to 7 of the paper, against loops, finite differences, autograd, and the angles of its figure 3."""

import numpy as np
import pytest

from models.binarize import activation_rows, binarize, binarize_backward, block_scales, scale_backward, weight_rows
from models.bits import pack_signs
from tests import reference

CASES = [(1, 1), (7, 3), (16, 16), (33, 8), (40, 0), (9, 1), (5, 64), (576, 16)]


def rows(width, seed=0):
    return np.random.default_rng(seed).normal(size=(3, width))


@pytest.mark.parametrize(("width", "beta"), CASES)
def test_values_equal_the_loop(width, beta):
    x = rows(width)
    np.testing.assert_allclose(binarize(x, beta), [reference.binarize(row, beta) for row in x], rtol=1e-12)
    assert block_scales(x, beta).shape == (3, len(reference.blocks(width, beta)))


def test_beta_one_is_the_identity_to_the_last_bit():
    x = rows(50).astype(np.float32)
    assert binarize(x, 1).dtype == np.float32
    assert np.array_equal(binarize(x, 1), x)


def test_zero_counts_as_positive_and_empty_batches_work():
    assert binarize(np.array([0.0, 4.0]), 2).tolist() == [2.0, 2.0]
    assert binarize(np.zeros((0, 7), np.float32), 3).shape == (0, 7)
    assert block_scales(np.zeros((0, 7), np.float32), 3).shape == (0, 3)


def test_negative_beta_is_refused():
    with pytest.raises(ValueError, match="-1 entries"):
        binarize(np.ones(4), -1)


def surrogate(point, x, beta):
    """Smooth near x and with the gradient that eq. 5 and 6 define: |.| stays as it is, and sign becomes the line
    sign(x) + (point - x) * [|x| <= 1], whose slope is the straight-through one.
    """
    out = np.empty_like(x)
    for first, last in reference.blocks(len(x), beta):
        line = np.sign(x) + (point - x) * (np.abs(x) <= 1)
        out[first:last] = np.abs(point[first:last]).mean() * line[first:last]
    return out


@pytest.mark.parametrize(("width", "beta"), CASES[:-1])
def test_gradient_equals_finite_differences_of_the_surrogate(width, beta):
    x, grad, step = rows(width)[0], rows(width, 1)[0], 1e-6
    numeric = []
    for i in range(width):
        move = step * np.eye(width)[i]
        numeric.append((surrogate(x + move, x, beta) - surrogate(x - move, x, beta)) @ grad / (2 * step))
    np.testing.assert_allclose(binarize_backward(x, beta, grad), numeric, rtol=1e-6, atol=1e-8)


def test_gradient_of_beta_one_is_the_formula():
    x, grad = np.array([0.5, -0.25, -3.0]), np.array([2.0, 4.0, 1.0])
    assert binarize_backward(x, 1, grad).tolist() == [2 + 0.5 * 2, 4 + 0.25 * 4, 1.0]


@pytest.mark.parametrize(("width", "beta"), CASES)
def test_gradient_equals_autograd(width, beta):
    torch = pytest.importorskip("torch")
    x, grad = rows(width), rows(width, 1)

    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            ctx.save_for_backward(value)
            return torch.sign(value)

        @staticmethod
        def backward(ctx, upstream):
            (value,) = ctx.saved_tensors
            return upstream * (value.abs() <= 1)

    leaf = torch.tensor(x, requires_grad=True)
    parts = [block.abs().mean(-1, keepdim=True) * Sign.apply(block) for block in leaf.split(beta or width, dim=-1)]
    out = torch.cat(parts, dim=-1)
    out.backward(torch.tensor(grad))
    np.testing.assert_allclose(binarize(x, beta), out.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(binarize_backward(x, beta, grad), leaf.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("beta", "degrees"), [(1, 0.0), (2, 25.0), (4, 31.5), (8, 34.3), (16, 35.7), (32, 36.3), (512, 37.0)]
)
def test_angles_of_figure_3(beta, degrees):
    x = np.random.default_rng(0).normal(size=512 * 1024)
    y = binarize(x, beta)
    cosine = min(x @ y / np.sqrt((x @ x) * (y @ y)), 1.0)
    assert np.degrees(np.arccos(cosine)) == pytest.approx(degrees, abs=0.6 if beta == 2 else 0.25)


@pytest.mark.parametrize("beta", [8, 16, 64])
def test_product_of_packed_blocks_is_the_float_product(beta):
    """Eq. 7: w_delta * a_delta * (beta - 2 popcount(w xor a)), summed over blocks."""
    w, a = rows(64)[0], rows(64, 1)[0]
    differ = np.bitwise_count(pack_signs(w) ^ pack_signs(a)).reshape(-1, beta // 8).sum(axis=1).astype(int)
    packed = (block_scales(w, beta) * block_scales(a, beta) * (beta - 2 * differ)).sum()
    assert packed == pytest.approx(binarize(w, beta) @ binarize(a, beta), rel=1e-12)


def test_rows_of_both_layouts():
    w = np.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
    assert np.array_equal(weight_rows(w, "row"), w.reshape(2, 12))
    assert [w[1, c, y, x] for y in (0, 1) for x in (0, 1) for c in (0, 1, 2)] == weight_rows(w, "channel")[1].tolist()
    x = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    assert activation_rows(x, "row").shape == (2, 3, 4, 5)
    assert activation_rows(x, "channel")[1, 2, 3].tolist() == x[1, :, 2, 3].tolist()


@pytest.mark.parametrize("beta", [0, 1, 3, 8])
def test_the_gradient_of_scales_is_what_a_change_of_magnitudes_does(beta):
    rng = np.random.default_rng(beta)
    x, grad = rng.normal(size=(2, 5, 11))
    along = scale_backward(x, beta, grad)
    h = 1e-4
    for row in range(len(x)):
        for place in range(x.shape[1]):
            moved = x.copy()
            moved[row, place] += h * np.sign(x[row, place])  # away from zero: its sign stays
            slope = (grad * (binarize(moved, beta) - binarize(x, beta))).sum() / h
            assert slope == pytest.approx(along[row, place] * np.sign(x[row, place]), rel=1e-6, abs=1e-9)
