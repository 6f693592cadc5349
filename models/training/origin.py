"""Training that begins with the weights of a float ONNX network."""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.errors import RecipeError
from models.exchange import convert, reader
from models.network import NetworkSpec
from models.training.layers import SPREAD, BinaryBlock, Net
from models.training.recipe import Origin
from models.training.views import as_tiles

ORIGIN_IMAGES = 64
"""Training images with which the network is measured before training begins."""


@torch.no_grad()
def begin(net: Net, origin: Origin, folder: Path, images: NDArray[np.uint8]) -> None:
    """Give the network the weights and statistics of the float one; its head, too, where the classes are as many.

    images: uint8 (n, H, W, 3) BGR to measure with. Raises RecipeError where it has other layers than the recipe.
    """
    spec, path = net.spec, folder / origin.onnx
    network = reader.read(path, spec.input_size)
    found = convert.spec_of(network, spec.name, origin.mean, 1, 1)
    if difference := _difference(found, spec):
        raise RecipeError(f"origin {path}: it has other layers than the recipe's network: {difference}")
    start = convert.start(network, spec, origin.mean, origin.deviation, as_tiles(images, spec.input_size))
    own = {name: torch.from_numpy(np.array(tensor, np.float32)) for name, tensor in start.tensors.items()}
    net.stem.weight.copy_(torch.from_numpy(start.stem).permute(0, 3, 1, 2) * SPREAD)
    step = net.stem.levels()[1] / SPREAD
    _norm(net.stem_norm, own["stem.scale"] / step, own["stem.shift"], start.moments[0])
    net.stem_act.weight.copy_(own["stem.slope"])
    for i, (block, latent, moments) in enumerate(zip(net.blocks, start.latent, start.moments[1:], strict=True)):
        assert isinstance(block, BinaryBlock)
        block.weight.copy_(torch.from_numpy(latent))
        block.in_shift.copy_(own[f"block{i}.in_shift"])
        _norm(block.norm, own[f"block{i}.scale"], own[f"block{i}.shift"], moments)
        block.act.weight.copy_(own[f"block{i}.slope"])
    count = spec.feature_count
    still = np.zeros(count, np.float32), np.ones(count, np.float32)
    _norm(net.feature_norm, own["features.scale"], own["features.shift"], still)
    if start.head.shape == tuple(net.head.weight.shape):
        net.head.weight.copy_(torch.from_numpy(start.head))
        net.head.bias.copy_(torch.from_numpy(np.asarray(start.bias, np.float32)))


def _norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, scale: Tensor, shift: Tensor, moments: tuple[Any, Any]) -> None:
    """Set statistics, and parameters so that together they are scale * x + shift."""
    mean, variance = (torch.from_numpy(np.asarray(moment, np.float32)) for moment in moments)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.bias.copy_(shift + scale * mean)


def _difference(found: NetworkSpec, wanted: NetworkSpec) -> str:
    """The first layer in which two networks differ in more than block lengths, in words."""
    if (
        len(found.blocks) != len(wanted.blocks)
        or found.stem != wanted.stem
        or found.feature_count != wanted.feature_count
    ):
        return f"{len(found.blocks)} blocks, {found.stem}, {found.feature_count} features"
    for i, (a, b) in enumerate(zip(found.blocks, wanted.blocks, strict=True)):
        if a != msgspec.structs.replace(b, beta_w=1, beta_a=1):
            return f"block {i} is {a}"
    return "" if found.mean == wanted.mean else f"mean {found.mean}"
