"""The head in closed form: class-balanced ridge regression on the grid that flies, and what it says of a sample that it
was not fitted on. No step size, nothing that depends on the order of labels.
"""

import numpy as np
from numpy.typing import NDArray

from models.errors import ArtifactError
from models.model import Model
from models.network import HEAD_STEP

TEMPERATURE = 3.0
"""Sharpness of the probabilities: logits are this times the regression's outputs, which lie around -1..1."""

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.intp]


def fit_head(
    features: Floats32, classes: Ints, weights: Floats, count: int, ridge: float
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The head on its grid: int16 (count, F) and (count,), from features (n, F), classes (n,) and weights (n,).

    Solves min over W of sum_i w_i |W x_i / sqrt(F) + b - y_i|^2 + ridge |W|^2, in the samples' space when they are
    fewer than the features; y = +1 for the class and -1 for the others, b is the weighted mean of y. Weights of a class
    are divided by their sum, so that classes count the same, and then by their mean over all samples. A class without
    samples gets a bias below all others.
    Raises ArtifactError when the solution is not finite or leaves the grid.
    """
    n, f = features.shape
    present, offset, root, residual = balanced(classes, weights, count)
    a = features.astype(np.float64) * (root / np.sqrt(f))
    if n <= f:
        solution = a.T @ np.linalg.solve(a @ a.T + ridge * np.eye(n), residual)
    else:
        solution = np.linalg.solve(a.T @ a + ridge * np.eye(f), a.T @ residual)
    return on_grid(solution, present, offset, count)


def fit_and_judge(
    features: Floats32,
    gram: Floats,
    classes: Ints,
    denied: NDArray[np.bool_],
    weights: Floats,
    count: int,
    ridge: float,
    judges: int,
) -> tuple[NDArray[np.int16], NDArray[np.int16], Ints]:
    """As `fit_head`, from features (n, F) whose products (n, n) are known already; and the class that each of the first
    `judges` samples would get from a head that was fitted without it, (judges,).

    Of samples that are `denied` (n,) it is only known that they are not of their class. The residual of a sample that
    is left out is alpha_i / (M^-1)_ii, with M the matrix of the samples' space and alpha its solution (Rifkin and
    Lippert 2007); balance and bias stay as they are with it.
    """
    n, f = features.shape
    present, offset, root, residual = balanced(classes, weights, count, denied)
    matrix = gram * (root / f) * root.T
    matrix.flat[:: n + 1] += ridge
    both = np.linalg.solve(matrix, np.hstack([residual, np.eye(n, judges)]))
    alpha, inverse = both[:, : len(present)], both[:, len(present) :]
    solution = features.T @ (alpha * root) / np.sqrt(f)
    without = residual[:judges] - alpha[:judges] / inverse.diagonal()[:, None]
    said = present[(without / root[:judges] + offset).argmax(axis=1)] if judges else np.zeros(0, np.intp)
    return *on_grid(solution, present, offset, count), said


def balanced(
    classes: Ints, weights: Floats, count: int, denied: NDArray[np.bool_] | None = None
) -> tuple[Ints, Floats, Floats, Floats]:
    """The right side of `fit_head`: classes that are there (p,), their bias (p,), the roots of the balanced weights
    (n, 1), and the targets less the bias, times those roots (n, p).

    A sample that is `denied` has the target -1 for its class, and for the others what is likely on the whole, for it
    may be of any of them: then all classes are there. Its weight is divided by the mean of the classes' sums.
    """
    denied = np.zeros(len(classes), np.bool_) if denied is None else denied
    known = ~denied
    named = np.unique(classes[known])
    present = np.arange(count) if denied.any() else named
    total = np.bincount(classes[known], weights[known], count)
    w = weights / np.where(known, total[classes], total[named].mean() if len(named) else weights.sum())
    w /= w.mean()
    own = classes[:, None] == present
    others = np.maximum(1, (~own).sum(axis=1, keepdims=True))
    targets = np.where(own, np.where(known[:, None], 1.0, -1.0), np.where(known[:, None], -1.0, 2 / others - 1))
    offset = w @ targets / w.sum()
    root = np.sqrt(w)[:, None]
    return present, offset, root, (targets - offset) * root


def on_grid(solution: Floats, present: Ints, offset: Floats, count: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The head that `fit_head` returns, from its solution (F, p). Raises ArtifactError as it does."""
    f = len(solution)
    weight = np.zeros((count, f))
    bias = np.full(count, -4.0)
    weight[present] = solution.T / np.sqrt(f)
    bias[present] = offset
    grid = np.round(np.column_stack([weight, bias]) * (TEMPERATURE / HEAD_STEP))
    if not np.isfinite(grid).all() or np.abs(grid).max() > np.iinfo(np.int16).max:
        raise ArtifactError("the head's weights left their grid")
    return grid[:, :-1].astype(np.int16), grid[:, -1].astype(np.int16)


def head_logits(model: Model, values: Floats32) -> Floats32:
    """Logits (n, classes) of the model's head on feature values (n, F)."""
    weight = model.tensors["head.weight"].astype(np.float32)
    out: Floats32 = (values @ weight.T + model.tensors["head.bias"].astype(np.float32)) * HEAD_STEP
    return out
