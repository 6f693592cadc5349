"""What training does to every activation between convolutions, in few passes over memory, on the CPU.

PyTorch's operators make a pass for each step of a formula, and blocks of two or slopes of channels are slow in them.
Tensors are seen as rows: (M, K) in memory's order, float32, or bfloat16 as the 16-bit integers that it is.
"""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba.core import types
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

from models.jit import kernel

Rows = NDArray[Any]
Floats = NDArray[np.float32]
Sums = NDArray[np.float64]
DTYPES = (torch.float32, torch.bfloat16)
FAST = {"reassoc", "contract"}
"""Sums may be taken in any order; zeros keep their sign, and what is not finite stays so."""
SHORT = 64
"""Rows that are summed in float32 at most: a longer sum would lose its last addends."""
MIN_PIECE = 1 << 16
"""Entries below which a thread is not worth its start."""

_pool = ThreadPoolExecutor(thread_name_prefix="elementwise")


def taken(x: Tensor) -> bool:
    """Whether the kernels here take this tensor; PyTorch's operators do the rest."""
    return x.device.type == "cpu" and x.dtype in DTYPES


def over_rows(function: Callable[..., Any], tensors: Sequence[Tensor], *more: Any) -> list[Any]:
    """function(*rows, *more) of all tensors, contiguous (..., K), in as many pieces as PyTorch has threads."""
    rows = [_rows(tensor) for tensor in tensors]
    count = max(1, min(torch.get_num_threads(), rows[0].size // MIN_PIECE, len(rows[0])))
    edges = [len(rows[0]) * i // count for i in range(count + 1)]
    pieces = [[r[a:b] for r in rows] for a, b in itertools.pairwise(edges)]
    if count == 1:
        return [function(*pieces[0], *more)]
    return [future.result() for future in [_pool.submit(function, *piece, *more) for piece in pieces]]


def _rows(x: Tensor) -> Rows:
    rows = x.detach().flatten(0, -2) if x.dim() > 1 else x.detach()[None]
    return (rows.view(torch.uint16) if x.dtype == torch.bfloat16 else rows).numpy()


def wide(x: Any) -> np.float32:
    """The value of an entry: bfloat16 is the upper half of a float32."""
    return np.uint32(np.uint32(x) << 16).view(np.float32) if isinstance(x, np.uint16) else x


def narrow(x: np.float32, like: Any) -> Any:
    """The value as an entry of like's kind; bfloat16 is rounded to the nearest, ties to even, and NaN stays NaN."""
    if not isinstance(like, np.uint16):
        return x
    bits = np.float32(x).view(np.uint32)
    rounded = np.uint16((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16)
    return rounded if x == x else np.uint16(0x7FC0)


@overload(wide, strict=False, jit_options={"forceinline": True})
def _wide(x: Any) -> Any:
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@overload(narrow, strict=False, jit_options={"forceinline": True})
def _narrow(x: Any, like: Any) -> Any:
    if like != types.uint16:
        return lambda x, like: x

    def rounded(x: Any, like: Any) -> Any:
        bits = np.float32(x).view(np.uint32)
        up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16((bits + up) >> np.uint32(16)) if x == x else np.uint16(0x7FC0)

    return rounded


@kernel(forceinline=True, _nrt=False)
def _signed(size: np.float32, x: np.float32) -> np.float32:
    """size with the sign of x, 0 and -0 being positive; without a branch, which random signs would make slow."""
    sign = np.float32(x + np.float32(0)).view(np.uint32) & np.uint32(0x80000000)
    return np.uint32(np.float32(size).view(np.uint32) ^ sign).view(np.float32)


@kernel(fastmath=FAST)
def binarize(x: Rows, out: Rows, beta: int) -> None:
    """out = delta * sign(x) in blocks of beta along the rows; eq. 1 and 2."""
    half, one = np.float32(0.5), np.float32(1)
    width = x.shape[1]
    for m in range(x.shape[0]):
        if beta == 2 and width % 2 == 0:  # the paper's length for activations, without loops within blocks
            for i in range(width // 2):
                a, b = wide(x[m, 2 * i]), wide(x[m, 2 * i + 1])
                delta = (abs(a) + abs(b)) * half
                out[m, 2 * i] = narrow(_signed(delta, a), out[m, 0])
                out[m, 2 * i + 1] = narrow(_signed(delta, b), out[m, 0])
            continue
        for first in range(0, width, beta):
            block, to = x[m, first : first + beta], out[m, first : first + beta]
            total = np.float32(0)
            for i in range(len(block)):
                total += abs(wide(block[i]))
            delta = total * (one / np.float32(len(block)))
            for i in range(len(block)):
                to[i] = narrow(_signed(delta, wide(block[i])), to[i])


@kernel(forceinline=True, _nrt=False)
def _slope(x: np.float32, grad: np.float32, delta: np.float32, along: np.float32) -> np.float32:
    """dC/dx of an entry: eq. 5 and 6, of a block with this delta and this mean of grad * sign(x)."""
    return _signed(along, x) + (delta * grad if abs(x) <= np.float32(1) else np.float32(0))


@kernel(fastmath=FAST)
def binarize_backward(x: Rows, grad: Rows, out: Rows, beta: int) -> None:
    """out = dC/dx of `binarize`, from grad."""
    half, one = np.float32(0.5), np.float32(1)
    width = x.shape[1]
    for m in range(x.shape[0]):
        if beta == 2 and width % 2 == 0:
            for i in range(width // 2):
                a, b = wide(x[m, 2 * i]), wide(x[m, 2 * i + 1])
                g, h = wide(grad[m, 2 * i]), wide(grad[m, 2 * i + 1])
                delta, along = (abs(a) + abs(b)) * half, (_signed(g, a) + _signed(h, b)) * half
                out[m, 2 * i] = narrow(_slope(a, g, delta, along), out[m, 0])
                out[m, 2 * i + 1] = narrow(_slope(b, h, delta, along), out[m, 0])
            continue
        for first in range(0, width, beta):
            block, slopes, to = x[m, first : first + beta], grad[m, first : first + beta], out[m, first : first + beta]
            total, along = np.float32(0), np.float32(0)
            for i in range(len(block)):
                total += abs(wide(block[i]))
                along += _signed(wide(slopes[i]), wide(block[i]))
            share = one / np.float32(len(block))
            delta, through = total * share, along * share
            for i in range(len(block)):
                to[i] = narrow(_slope(wide(block[i]), wide(slopes[i]), delta, through), to[i])


@kernel(fastmath=FAST)
def moments(x: Rows, about: Sums) -> tuple[Sums, Sums]:
    """Of each column, the sum and the sum of squares of x - about: a value of it, so that squares stay small."""
    width = x.shape[1]
    total, square = np.zeros(width), np.zeros(width)
    part, part_square = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for m in range(x.shape[0]):
        row = x[m]
        for i in range(width):
            part[i] += wide(row[i]) - about[i]
        for i in range(width):
            part_square[i] += (wide(row[i]) - about[i]) * (wide(row[i]) - about[i])
        if m % SHORT == SHORT - 1 or m == x.shape[0] - 1:
            total += part
            square += part_square
            part[:] = part_square[:] = np.float32(0)
    return total, square


@kernel(forceinline=True, _nrt=False)
def _normalize(x: Rows, near: Rows, m: int, scale: Floats, shift: Floats, y: Floats) -> None:
    """y = a row of x * scale + shift + near. Loops of few arrays each: LLVM gives up on more that may overlap."""
    row = x[m]
    for i in range(len(y)):
        y[i] = wide(row[i]) * scale[i] + shift[i]
    if len(near):
        added = near[m]
        for i in range(len(y)):
            y[i] += wide(added[i])


@kernel(fastmath=FAST)
def norm_prelu(x: Rows, near: Rows, out: Rows, scale: Floats, shift: Floats, slope: Floats) -> None:
    """out = PReLU(x * scale + shift + near), all of these for each column; near has no rows where there is none."""
    y = np.empty(x.shape[1], np.float32)
    for m in range(x.shape[0]):
        _normalize(x, near, m, scale, shift, y)
        to = out[m]
        for i in range(len(y)):
            to[i] = narrow(y[i] if y[i] > np.float32(0) else y[i] * slope[i], to[i])


@kernel(fastmath=FAST)
def norm_prelu_backward(
    x: Rows, near: Rows, grad: Rows, out: Rows, scale: Floats, shift: Floats, slope: Floats, mean: Floats
) -> tuple[Sums, Sums, Sums]:
    """out = dC/dy of y = x * scale + shift + near; of each column the sums of it, of it * (x - mean), and dC/dslope."""
    zero, width = np.float32(0), x.shape[1]
    y, parts, sums = np.empty(width, np.float32), np.zeros((3, width), np.float32), np.zeros((3, width))
    along, across, slopes = parts
    for m in range(x.shape[0]):
        _normalize(x, near, m, scale, shift, y)
        row, back, to = x[m], grad[m], out[m]
        for i in range(width):
            slopes[i] += zero if y[i] > zero else wide(back[i]) * y[i]
        for i in range(width):
            y[i] = wide(back[i]) if y[i] > zero else wide(back[i]) * slope[i]
        for i in range(width):
            to[i] = narrow(y[i], to[i])
        for i in range(width):
            along[i] += y[i]
        for i in range(width):
            across[i] += y[i] * (wide(row[i]) - mean[i])
        if m % SHORT == SHORT - 1 or m == x.shape[0] - 1:
            sums += parts
            parts[:] = zero
    return sums[0], sums[1], sums[2]


@kernel(fastmath=FAST, _nrt=False)
def combine(x: Rows, y: Rows, out: Rows, a: Floats, b: Floats, c: Floats) -> None:
    """out = a * x + b * y + c of each column."""
    for m in range(x.shape[0]):
        left, right, to = x[m], y[m], out[m]
        for i in range(x.shape[1]):
            to[i] = narrow(a[i] * wide(left[i]) + b[i] * wide(right[i]) + c[i], to[i])
