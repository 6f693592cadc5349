"""The head in closed form, against least squares by NumPy, and a judge's word against a fit without it."""

import numpy as np
import pytest

from models.engine import Features
from models.errors import ArtifactError
from models.network import HEAD_STEP
from onboard.head import TEMPERATURE, fit_and_judge, fit_head
from onboard.memory import products, rounded
from tests.scene import BETA, Scene


def least_squares(x, classes, weights, count, ridge):
    """The same problem by NumPy's least squares: weighted rows, and ridge as rows of their own; class by class."""
    f = x.shape[1]
    x = x.astype(np.float64) / np.sqrt(f)
    w = np.array([weight / weights[classes == c].sum() for weight, c in zip(weights, classes, strict=True)])
    w /= w.mean()
    weight, bias = np.zeros((count, f)), np.full(count, -4.0)
    for c in set(classes.tolist()):
        y = np.where(classes == c, 1.0, -1.0)
        bias[c] = np.average(y, weights=w)
        rows = np.vstack([x * np.sqrt(w)[:, None], np.sqrt(ridge) * np.eye(f)])
        targets = np.concatenate([(y - bias[c]) * np.sqrt(w), np.zeros(f)])
        weight[c] = np.linalg.lstsq(rows, targets, rcond=None)[0] / np.sqrt(f)
    scale = TEMPERATURE / HEAD_STEP
    return weight * scale, bias * scale


@pytest.mark.parametrize("n", [2, 5, 63, 64, 65, 300])
@pytest.mark.parametrize("ridge", [0.05, 1.0, 30.0])
def test_fit_head_equals_least_squares(n, ridge):
    """Both branches, n <= F and n > F; the grid rounds by half a step at most."""
    random = np.random.default_rng(n)
    x = random.normal(0, 1, (n, 64)).astype(np.float32)
    classes = np.append(random.integers(0, 4, n - 2), [0, 3])
    weights = random.uniform(0.05, 1, n)
    before = x.copy(), classes.copy(), weights.copy()
    weight, bias = fit_head(x, classes, weights, 5, ridge)
    assert (weight.dtype, weight.shape, bias.dtype, bias.shape) == (np.int16, (5, 64), np.int16, (5,))
    want_weight, want_bias = least_squares(x, classes, weights, 5, ridge)
    assert np.abs(weight - want_weight).max() <= 0.5 + 1e-6
    assert np.abs(bias - want_bias).max() <= 0.5 + 1e-6
    if ridge <= 1:  # else rounding would hide a difference
        assert np.abs(want_weight).max() > 20
    for a, b in zip(before, (x, classes, weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_both_branches_of_fit_head_agree():
    """The same rows with columns of zeros beside them: more features than rows, and the same solution."""
    random = np.random.default_rng(0)
    n, f, padded = 40, 32, 128
    x = random.normal(0, 1, (n, f)).astype(np.float32)
    classes, weights = random.integers(0, 3, n), random.uniform(0.1, 1, n)
    tall, bias = fit_head(x, classes, weights, 3, 1.0)
    # x / sqrt(F) is what counts, so the padded rows are made longer by the root of what their F is larger
    wide = np.zeros((n, padded), np.float32)
    wide[:, :f] = x * np.sqrt(padded / f)
    flat, same_bias = fit_head(wide, classes, weights, 3, 1.0)
    assert np.abs(flat[:, :f] * np.sqrt(padded / f) - tall).max() <= 1.6
    assert not flat[:, f:].any()
    np.testing.assert_array_equal(bias, same_bias)


def test_a_class_without_samples_is_never_said():
    scene = Scene()
    bits, scales = scene.pack(np.repeat([0, 2], 30))
    x = Features(bits, scales.astype(np.float32), 64, BETA).values()
    weight, bias = fit_head(x, np.repeat([0, 2], 30), np.ones(60), 3, 1.0)
    said = (x @ weight.T + bias).argmax(1)
    assert set(said.tolist()) == {0, 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_fit_head_refuses_what_is_not_finite_or_off_the_grid(bad):
    x = np.random.default_rng(0).normal(0, 1, (6, 8)).astype(np.float32)
    x[3, 2] = bad
    if bad == 1e30:
        x = x * np.float32(1e-36)  # all tiny but one: weights as large as the ridge lets them
        ridge = 1e-30
    else:
        ridge = 1.0
    with np.errstate(all="ignore"), pytest.raises((ArtifactError, np.linalg.LinAlgError)):
        fit_head(x, np.array([0, 0, 0, 1, 1, 1]), np.ones(6), 2, ridge)


@pytest.mark.parametrize("n", [5, 63, 64, 65, 200])
def test_what_is_said_of_a_sample_is_what_a_fit_without_it_says(n):
    """Against fits that really leave it out, in double precision, with balance and bias held as they are with it."""
    random = np.random.default_rng(n)
    x = rounded(random.normal(0, 1, (n, 64)).astype(np.float32))
    classes = np.append(random.integers(0, 4, n - 2), [0, 3])
    x += rounded(random.normal(0, 0.3, (5, 64)).astype(np.float32))[classes]
    weights, ridge, judges = random.uniform(0.2, 1, n), 0.3, min(n, 40)
    weight, bias, said = fit_and_judge(x, products(x, x), classes, classes < 0, weights, 5, ridge, judges)
    want_weight, want_bias = fit_head(x, classes, weights, 5, ridge)
    np.testing.assert_array_equal(weight, want_weight)
    np.testing.assert_array_equal(bias, want_bias)
    w = weights / np.array([weights[classes == c].sum() for c in range(5)]).clip(1e-9)[classes]
    w /= w.mean()
    a = x.astype(np.float64) / 8
    present = np.unique(classes)
    targets = np.where(classes[:, None] == present, 1.0, -1.0)
    offset = w @ targets / w.sum()
    clear = 0
    for i in range(judges):
        rest = np.arange(n) != i
        gram = a[rest].T @ (w[rest, None] * a[rest]) + ridge * np.eye(64)
        outputs = a[i] @ np.linalg.solve(gram, a[rest].T @ (w[rest, None] * (targets - offset)[rest])) + offset
        first, second = np.sort(outputs)[::-1][:2]
        if first - second > 1e-9:
            clear += 1
            assert said[i] == present[outputs.argmax()]
    assert clear >= judges - 2
