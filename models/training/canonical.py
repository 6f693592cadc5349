"""From networks in training to models that fly, and back."""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.model import Model
from models.network import HEAD_STEP, STEM_MAX, block_weight, packed_weight
from models.training.layers import SPREAD, BinaryBlock, Net


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
