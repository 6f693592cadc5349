"""HadaNet layers for PyTorch, and the networks made of them.

Latent weights are float (out, k, k, in), so that blocks run along K = (kh, kw, c) as they do in flight.
"""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.binarize import Layout
from models.network import (
    POOL_EPSILON,
    STEM_MAX,
    Block,
    NetworkSpec,
    Pool,
    Stem,
)
from models.training.autograd import NormPReLU, quantize

SPREAD = 64.0
"""The stem sees (x - mean) / SPREAD, which is near 1; in flight its scale takes it in."""


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
    """A `NetworkSpec` with latent weights; input (N, 3, S, S), RGB, 0..255, of any type; output logits."""

    mean: Tensor

    def __init__(self, spec: NetworkSpec, classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.stem = StemConvolution(spec.stem)
        self.stem_norm = NormPReLU(spec.stem.channels)
        pairs = zip(spec.blocks, spec.block_inputs(), strict=True)
        self.blocks = nn.ModuleList(BinaryBlock(block, c_in, spec.layout) for block, c_in in pairs)
        self.feature_norm = nn.BatchNorm1d(spec.feature_count)
        self.head = nn.Linear(spec.feature_count, classes)

    def features(self, x: Tensor) -> Tensor:
        """The feature vector before it is binarized, (N, F)."""
        x = pool(self.stem_norm(self.stem((x - self.mean) / SPREAD)), self.spec.stem.pool)
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
