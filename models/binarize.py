"""Hadamard binarization in NumPy, by the formula: eq. 1 to 6 of "HadaNets" (Akhauri 2019, arXiv 1905.10759).

Everything works on rows, the last axis, cut into blocks of beta entries; a last, shorter block uses its own length,
beta 0 stands for the whole row and beta 1 leaves the values exact. The two layouts of the project differ only in
what makes a row: see `weight_rows` and `activation_rows`.
"""

from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=np.floating[Any])
Layout = Literal["row", "channel"]
"""`row` is the paper's, for its tables; `channel` is the one that flies."""


def block_scales(x: NDArray[F], beta: int) -> NDArray[F]:
    """delta, the mean of |x| over each block (eq. 1, 3): (..., K) -> (..., ceil(K/beta))."""
    return _block_means(np.abs(x), beta)


def binarize(x: NDArray[F], beta: int) -> NDArray[F]:
    """delta * sign(x) with sign(0) = +1 (eq. 2, 4); same shape and dtype.

    >>> binarize(np.array([1.0, -3.0, 0.0, 5.0]), 2)
    array([ 2. , -2. ,  2.5,  2.5])
    """
    return _spread(block_scales(x, beta), x.shape[-1], beta) * _signs(x)


def binarize_backward(x: NDArray[F], beta: int, grad: NDArray[F]) -> NDArray[F]:
    """dC/dx from grad = dC/d binarize(x), straight-through (eq. 5, 6): d sign(x)/dx = 1 for |x| <= 1, else 0.

    For i in a block B of length n: sign(x_i)/n * sum over j in B of grad_j sign(x_j) + delta_B grad_i [|x_i| <= 1].
    """
    through_sign: NDArray[F] = _spread(block_scales(x, beta), x.shape[-1], beta) * grad * (np.abs(x) <= 1)
    total: NDArray[F] = scale_backward(x, beta, grad) + through_sign
    return total


def scale_backward(x: NDArray[F], beta: int, grad: NDArray[F]) -> NDArray[F]:
    """The part of `binarize_backward` that goes through the block scales: what changes them and no sign (eq. 5)."""
    signs, width = _signs(x), x.shape[-1]
    through_scale: NDArray[F] = signs * _spread(_block_means(grad * signs, beta), width, beta)
    return through_scale


def weight_rows(weight: NDArray[F], layout: Layout) -> NDArray[F]:
    """Weights (O, I, kh, kw) as rows (O, K): K runs (i, kh, kw) in `row`, (kh, kw, i) in `channel`."""
    ordered = weight if layout == "row" else weight.transpose(0, 2, 3, 1)
    return ordered.reshape(weight.shape[0], -1)


def activation_rows(x: NDArray[F], layout: Layout) -> NDArray[F]:
    """Activations (N, C, H, W) with the blocked axis last: image width in `row`, channels (NHWC) in `channel`."""
    return x if layout == "row" else x.transpose(0, 2, 3, 1)


def _signs(x: NDArray[F]) -> NDArray[F]:
    return np.where(x < 0, -1, 1).astype(x.dtype)


def _block_means(x: NDArray[F], beta: int) -> NDArray[F]:
    width = x.shape[-1]
    beta = _block_length(width, beta)
    if not width:
        return x
    whole = width - width % beta
    means: NDArray[F] = x[..., :whole].reshape(*x.shape[:-1], whole // beta, beta).mean(axis=-1, dtype=x.dtype)
    if whole == width:
        return means
    return np.concatenate([means, x[..., whole:].mean(axis=-1, dtype=x.dtype, keepdims=True)], axis=-1)


def _spread(scales: NDArray[F], width: int, beta: int) -> NDArray[F]:
    """The scale of each entry: (..., blocks) -> (..., width)."""
    spread: NDArray[F] = np.repeat(scales, _block_length(width, beta), axis=-1)[..., :width]
    return spread


def _block_length(width: int, beta: int) -> int:
    if beta < 0:
        raise ValueError(f"a block of {beta} entries: beta is 0 (the whole row) or more")
    return min(beta, width) or max(width, 1)
