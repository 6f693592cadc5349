"""What HadaNets are made of and PyTorch has not, with gradients; values and gradients equal `models.binarize`.

On a CPU the kernels of `elementwise` compute it, elsewhere and in other precisions PyTorch's operators.
"""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.training import elementwise

LONG = 1024
"""Entries of a row that stay in the nearest cache, with what is summed of them."""


class _Binarize(torch.autograd.Function):
    """Blocks of beta along the last axis, 0 for the whole axis: eq. 1 and 2 forward, eq. 5 and 6 backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: int) -> Tensor:
        ctx.beta = min(beta, x.shape[-1]) or x.shape[-1]
        if elementwise.taken(x):
            x = x.contiguous()
            out = torch.empty_like(x)
            elementwise.over_rows(elementwise.binarize, (x, out), ctx.beta)
        else:
            _, signs, delta, _ = _parts(x, ctx.beta)
            out = _rows(signs * delta, x.shape[-1])
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        if elementwise.taken(x):
            out = torch.empty_like(x)
            grad = grad.to(x.dtype).contiguous()
            elementwise.over_rows(elementwise.binarize_backward, (x, grad, out), ctx.beta)
            return out, None
        size, signs, delta, length = _parts(x, ctx.beta)
        blocks = _blocks(grad, ctx.beta)
        out = signs * ((blocks * signs).sum(-1, keepdim=True) / length) + blocks * (size <= 1) * delta
        return _rows(out, grad.shape[-1]), None


def _parts(x: Tensor, beta: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """|x|, its signs, and of each block delta and length."""
    blocks = _blocks(x, beta)
    length = torch.full((blocks.shape[-2], 1), beta, dtype=x.dtype, device=x.device)
    length[-1] -= -x.shape[-1] % beta
    signs = torch.ones((), dtype=x.dtype, device=x.device).copysign(blocks + 0.0)  # -0.0 + 0.0 is 0.0: positive
    return blocks.abs(), signs, blocks.abs().sum(-1, keepdim=True) / length, length


def _blocks(x: Tensor, beta: int) -> Tensor:
    """(..., K) -> (..., ceil(K/beta), beta), zeros behind the last entry."""
    behind = -x.shape[-1] % beta
    out: Tensor = F.pad(x, (0, behind)) if behind else x
    return out.unflatten(-1, (-1, beta))  # type: ignore[no-any-return, no-untyped-call]


def _rows(blocks: Tensor, width: int) -> Tensor:
    """Back from `_blocks`."""
    return blocks.flatten(-2)[..., :width]


def binarize(x: Tensor, beta: int) -> Tensor:
    """Signs of x times the mean magnitude of their block; see `models.binarize.binarize`."""
    return _Binarize.apply(x, beta)  # type: ignore[no-any-return, no-untyped-call]


def quantize(x: Tensor, beta: int) -> Tensor:
    """`binarize`, but a layer at beta = 1 is in full precision: eq. 5 would count its gradient twice within [-1, 1]."""
    return x if beta == 1 else binarize(x, beta)


class _NormPReLU(torch.autograd.Function):
    """PReLU(BatchNorm(x) + near) of (..., C); near may be None. mean, inverse: of x and of its deviation, (C,).

    constant: mean and deviation are what was kept, and do not depend on x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        near: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        slope: Tensor,
        mean: Tensor,
        inverse: Tensor,
        constant: bool,
    ) -> Tensor:
        ctx.constant, ctx.near = constant, near is not None
        near = x.new_empty(0, x.shape[-1]) if near is None else near.contiguous()
        scale, out = weight * inverse, torch.empty_like(x)
        shift = bias - mean * scale
        ctx.save_for_backward(x, near, scale, shift, slope, mean, inverse)
        _over_columns(elementwise.norm_prelu, (x, near, out), scale, shift, slope)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, near, scale, shift, slope, mean, inverse = ctx.saved_tensors
        inside, out = torch.empty_like(x), torch.empty_like(x)
        grad = grad.to(x.dtype).contiguous()
        rows = x, near, grad, inside
        along, across, slopes = _over_columns(elementwise.norm_prelu_backward, rows, scale, shift, slope, mean)
        share = 0.0 if ctx.constant else scale * x.shape[-1] / x.numel()
        of_x = -share * inverse.square() * across
        _over_columns(elementwise.combine, (inside, x, out), scale, of_x, -share * along - of_x * mean)
        return out, inside if ctx.near else None, across * inverse, along, slopes, None, None, None


def _over_columns(function: Callable[..., Any], tensors: Sequence[Tensor], *columns: Tensor) -> list[Tensor]:
    """`elementwise.over_rows` of tensors (..., C), and the sums that it returns, (C,). columns: (C,) each."""
    width = tensors[0].shape[-1]
    # A kernel likes long rows: those of a few channels are taken several at a time.
    abreast = math.gcd(tensors[0].numel() // width, 1 << max(0, (LONG // width).bit_length() - 1))
    length = abreast * width
    rows = [tensor.view(tensor.numel() // length, length) for tensor in tensors]
    tiled = [np.tile(column.detach().numpy(), abreast) for column in columns]
    sums = [piece for piece in elementwise.over_rows(function, rows, *tiled) if piece]
    return [
        torch.from_numpy(np.sum(parts, 0).reshape(abreast, width).sum(0)).float() for parts in zip(*sums, strict=True)
    ]


class NormPReLU(nn.BatchNorm2d):
    """BatchNorm, what a shortcut adds, and PReLU, of (N, C, H, W); in few passes over memory on a CPU."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.slope = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor, near: Tensor | None = None) -> Tensor:
        """PReLU(BatchNorm(x) + near)."""
        if not (elementwise.taken(x) and self.slope.dtype == torch.float32 and x.numel() > x.shape[1]):
            y = super().forward(x)
            return F.prelu(y if near is None else y + near, self.slope.to(y.dtype))
        rows = x.permute(0, 2, 3, 1).contiguous()
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = _moments(rows)
            with torch.no_grad():
                count = x.numel() // x.shape[1]
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
                self.num_batches_tracked.add_(1)
        inverse = (variance + self.eps).rsqrt()
        near = None if near is None else near.to(x.dtype).permute(0, 2, 3, 1)
        columns = self.weight, self.bias, self.slope, mean, inverse
        out: Tensor = _NormPReLU.apply(rows, near, *columns, not self.training)  # type: ignore[no-untyped-call]
        return out.permute(0, 3, 1, 2)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of (..., C), each (C,)."""
    about = x.detach().flatten(0, -2)[0].float()
    total, square = _over_columns(elementwise.moments, (x,), about)
    count = x.numel() // x.shape[-1]
    return about + total / count, ((square - total.square() / count) / count).clamp_min(0)
