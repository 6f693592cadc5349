"""HadaNet layers for PyTorch. Values and gradients equal `models.binarize` (a test compares them).

Latent weights are float (out, k, k, in), so that blocks run along K = (kh, kw, c) as they do in flight.
"""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.binarize import Layout
from models.model import Model
from models.network import (
    HEAD_STEP,
    POOL_EPSILON,
    STEM_MAX,
    Block,
    NetworkSpec,
    Pool,
    Stem,
    block_weight,
    packed_weight,
)
from models.training import elementwise

SPREAD = 64.0
"""Pixels are trained on as (x - mean) / SPREAD, which keeps them near 1; the stem's scale takes it in."""


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


class _Round(torch.autograd.Function):
    """Round to integers; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def pool(x: Tensor, spec: Pool | None) -> Tensor:
    """`models.network.Pool` of (N, C, H, W)."""
    if spec is None:
        return x
    if spec.kind == "max":
        return F.max_pool2d(x, spec.size, spec.stride, spec.padding)
    return F.avg_pool2d(x, spec.size, spec.stride, spec.padding, count_include_pad=False)


class StemConvolution(nn.Module):
    """The convolution of a `Stem`, with weights on 255 levels for each output channel. NCHW."""

    def __init__(self, spec: Stem) -> None:
        super().__init__()
        k = spec.kernel
        self.spec = spec
        self.weight = nn.Parameter(torch.randn(spec.channels, 3, k, k) * (2 / (3 * k * k)) ** 0.5)

    def levels(self) -> tuple[Tensor, Tensor]:
        """The weight as integers -127..127 (O, 3, k, k), and what one of them stands for (O,)."""
        step = self.weight.detach().abs().amax((1, 2, 3)).clamp_min(1e-12) / STEM_MAX
        integers: Tensor = _Round.apply(self.weight / step[:, None, None, None])  # type: ignore[no-untyped-call]
        return integers, step

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, O, H', W')."""
        integers, step = self.levels()
        return F.conv2d(x, integers * step[:, None, None, None], stride=self.spec.stride, padding=self.spec.padding)


def _convolved(x: Tensor, weight: Tensor, spec: Block) -> Tensor:
    if spec.padding == 0 and x.shape[2:] == weight.shape[2:]:  # a dense layer, at which a convolution is slow
        rows, columns = (tensor.permute(0, 2, 3, 1).flatten(1) for tensor in (x, weight))
        return F.linear(rows, columns)[:, :, None, None]
    return F.conv2d(x, weight, stride=spec.stride, padding=spec.padding)


class BinaryBlock(nn.Module):
    """One `Block`: shift, binarize, convolve, BatchNorm, shortcut, PReLU, pool. NCHW, any height and width.

    real_weight: while it is set, the weights take part as they are (the first stage of two-stage training).
    """

    def __init__(self, spec: Block, c_in: int, layout: Layout = "channel") -> None:
        super().__init__()
        k = spec.kernel
        self.spec, self.layout, self.real_weight = spec, layout, False
        self.in_shift = nn.Parameter(torch.zeros(c_in))
        self.weight = nn.Parameter(torch.randn(spec.channels, k, k, c_in) * (2 / (k * k * c_in)) ** 0.5)
        self.norm = NormPReLU(spec.channels)

    def rows(self) -> Tensor:
        """The latent weights as rows of blocks, (out, K)."""
        return (self.weight.permute(0, 3, 1, 2) if self.layout == "row" else self.weight).flatten(1)

    def binary_weight(self) -> Tensor:
        """W~ as (out, in, k, k)."""
        rows, (out, k, _, c_in) = quantize(self.rows(), self.spec.beta_w), self.weight.shape
        if self.layout == "row":
            return rows.view(out, c_in, k, k)
        return rows.view(out, k, k, c_in).permute(0, 3, 1, 2)

    def binary_input(self, x: Tensor) -> Tensor:
        """(N, Cin, H, W) in blocks along the channels, or along the lines (`NetworkSpec.layout`)."""
        shift = self.in_shift.to(x.dtype)
        if self.layout == "row" and x.shape[3] > 1:
            return quantize(x + shift[:, None, None], self.spec.beta_a)
        return quantize(x.permute(0, 2, 3, 1) + shift, self.spec.beta_a).permute(0, 3, 1, 2)

    def _shortcut(self, near: Tensor, side: int) -> Tensor:
        """`near` as it is added to the block's sums: at most this side, and as many channels, repeated."""
        near = F.avg_pool2d(near, 2) if near.shape[2] > side else near
        times = -(-self.spec.channels // near.shape[1])
        return torch.cat([near] * times, 1)[:, : self.spec.channels] if times > 1 else near[:, : self.spec.channels]

    def forward(self, x: Tensor, near: Tensor | None = None) -> Tensor:
        """(N, Cin, H, W), and what the shortcut begins with where that is not x -> (N, Cout, H', W')."""
        spec = self.spec
        weight = self.weight.permute(0, 3, 1, 2) if self.real_weight else self.binary_weight()
        y = _convolved(self.binary_input(x), weight, spec)
        near = self._shortcut(x if near is None else near, y.shape[2]) if spec.shortcut else None
        return pool(self.norm(y, near), spec.pool)


class Net(nn.Module):
    """A `NetworkSpec` with latent weights; input float (N, 3, S, S), RGB, (x - mean) / SPREAD; output logits."""

    def __init__(self, spec: NetworkSpec, classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.stem = StemConvolution(spec.stem)
        self.stem_norm = NormPReLU(spec.stem.channels)
        pairs = zip(spec.blocks, spec.block_inputs(), strict=True)
        self.blocks = nn.ModuleList(BinaryBlock(block, c_in, spec.layout) for block, c_in in pairs)
        self.feature_norm = nn.BatchNorm1d(spec.feature_count)
        self.head = nn.Linear(spec.feature_count, classes)

    def features(self, x: Tensor) -> Tensor:
        """The feature vector before it is binarized, (N, F)."""
        x = pool(self.stem_norm(self.stem(x)), self.spec.stem.pool)
        inputs, pooled = [], []
        for i, block in enumerate(self.blocks):
            inputs.append(x)
            x = block(x, inputs[-max(1, self.spec.blocks[i].shortcut)])
            if i in self.spec.taps:
                mean = x.mean((2, 3))
                pooled.append(mean)
                if self.spec.deviation:
                    variance = (x - mean[:, :, None, None]).square().mean((2, 3))
                    pooled.append((variance + POOL_EPSILON).sqrt())
        return self.feature_norm(torch.cat(pooled, 1))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        return self.head(quantize(self.features(x), self.spec.beta_f))  # type: ignore[no-any-return]

    @torch.no_grad()
    def clip(self) -> None:
        """Keep latent weights in [-1, 1], where the straight-through gradient lives (algorithm 1)."""
        for block in self.blocks:
            block.weight.clamp_(-1, 1)  # type: ignore[operator, union-attr]


def _folded(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


@torch.no_grad()
def canonical(net: Net) -> dict[str, NDArray[np.generic]]:
    """The canonical tensors but the head's: signs packed, BatchNorm folded, block scales on integers."""
    floats: dict[str, Tensor] = {"stem.slope": net.stem_norm.slope}
    integers, step = net.stem.levels()
    scale, floats["stem.shift"] = _folded(net.stem_norm)
    floats["stem.scale"] = scale * step / SPREAD
    floats["features.scale"], floats["features.shift"] = _folded(net.feature_norm)
    packed: dict[str, NDArray[np.generic]] = {
        "stem.weight": np.ascontiguousarray(integers.permute(0, 2, 3, 1).numpy().astype(np.int8))
    }
    for i, block in enumerate(net.blocks):
        assert isinstance(block, BinaryBlock)
        for name, tensor in packed_weight(block.rows().numpy(), block.spec.beta_w).items():
            packed[f"block{i}.{name}"] = tensor
        floats[f"block{i}.in_shift"] = block.in_shift
        floats[f"block{i}.slope"] = block.norm.slope
        floats[f"block{i}.scale"], floats[f"block{i}.shift"] = _folded(block.norm)
    return packed | {n: np.ascontiguousarray(t.numpy(), dtype=np.float32) for n, t in floats.items()}


@torch.no_grad()
def restored(model: Model) -> Net:
    """The network of a model, in evaluation: latent weights of a block of one size, statistics of 0 and 1."""
    net = Net(model.spec, len(model.classes)).eval()
    own = {name: torch.from_numpy(np.array(tensor, np.float32)) for name, tensor in model.tensors.items()}
    net.stem.weight.copy_(own["stem.weight"].permute(0, 3, 1, 2) / STEM_MAX)
    set_affine(net.stem_norm, own["stem.scale"] * SPREAD / net.stem.levels()[1], own["stem.shift"])
    net.stem_norm.slope.copy_(own["stem.slope"])
    for i, block in enumerate(net.blocks):
        assert isinstance(block, BinaryBlock)
        block.weight.copy_(torch.from_numpy(block_weight(model.spec, model.tensors, i)))
        block.in_shift.copy_(own[f"block{i}.in_shift"])
        set_affine(block.norm, own[f"block{i}.scale"], own[f"block{i}.shift"])
        block.norm.slope.copy_(own[f"block{i}.slope"])
    set_affine(net.feature_norm, own["features.scale"], own["features.shift"])
    net.head.weight.copy_(own["head.weight"] * HEAD_STEP)
    net.head.bias.copy_(own["head.bias"] * HEAD_STEP)
    return net


def set_affine(norm: nn.BatchNorm1d | nn.BatchNorm2d, scale: Tensor, shift: Tensor) -> None:
    """Make it scale * x + shift in evaluation, with a mean of 0 and a deviation of 1."""
    set_statistics(norm, torch.zeros_like(shift), torch.ones_like(shift))
    norm.weight.copy_(scale * (1 + norm.eps) ** 0.5)
    norm.bias.copy_(shift)


def set_statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Of what it reads."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
