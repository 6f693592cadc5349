"""Training that begins with a network that there is: a model of this project, or a float ONNX network."""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

import contextlib
from collections.abc import Callable, Iterable, Iterator
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
from models.training.canonical import restored, set_affine, set_statistics
from models.training.layers import SPREAD, Net
from models.training.recipe import Origin, model_at
from models.training.views import as_rgb, as_tiles

ORIGIN_IMAGES = 64
"""Training images with which the network is measured before training begins."""


@torch.no_grad()
def begin(net: Net, origin: Origin, folder: Path, images: NDArray[np.uint8], classes: tuple[str, ...]) -> None:
    """Give the network what the one of `origin` has learned; of its head, the classes that have the same name.

    images: uint8 (n, H, W, 3) BGR to measure with; classes: the network's. Raises RecipeError where the other one has
    other layers.
    """
    source, names = _model(folder, origin) if origin.model else _float_network(folder, origin, net.spec, classes)
    if difference := _difference(source.spec, net.spec):
        raise RecipeError(f"origin {folder / (origin.model or origin.onnx)}: its network is another: {difference}")
    learned = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("head.")}
    net.load_state_dict(learned, strict=False)
    for i, name in enumerate(classes):
        if name in names:
            net.head.weight[i] = source.head.weight[names.index(name)]
            net.head.bias[i] = source.head.bias[names.index(name)]
    _measure(source, net, as_rgb(as_tiles(images, net.spec.input_size)))


def _model(folder: Path, origin: Origin) -> tuple[Net, tuple[str, ...]]:
    model = model_at(folder / origin.model)
    return restored(model), model.classes


def _float_network(
    folder: Path, origin: Origin, spec: NetworkSpec, classes: tuple[str, ...]
) -> tuple[Net, tuple[str, ...]]:
    """The ONNX network, whose classes have no names: they are the recipe's where they are as many."""
    network = reader.read(folder / origin.onnx, spec.input_size)
    source = Net(convert.spec_of(network, spec.name, origin.mean, 1, 1), len(network.head)).eval()
    weight, shift = convert.stem_of(network.layers[0], source.spec.mean, origin.mean, origin.deviation)
    source.stem.weight.copy_(torch.from_numpy(weight).permute(0, 3, 1, 2) * SPREAD)
    norms = [source.stem_norm, *(block.norm for block in source.blocks)]
    for norm, layer in zip(norms, network.layers, strict=True):
        set_affine(norm, torch.from_numpy(layer.scale), torch.from_numpy(layer.shift))  # type: ignore[arg-type]
        norm.slope.copy_(torch.from_numpy(layer.slope))  # type: ignore[operator, union-attr]
    source.stem_norm.bias.copy_(torch.from_numpy(shift))
    for block, layer in zip(source.blocks, network.layers[1:], strict=True):
        block.weight.copy_(torch.from_numpy(layer.weight))  # type: ignore[operator, union-attr]
    reach = convert.reach(network)
    count = source.spec.feature_count
    set_affine(source.feature_norm, torch.full((count,), reach), torch.zeros(count))
    source.head.weight.copy_(torch.from_numpy(network.head) / reach)
    source.head.bias.copy_(torch.from_numpy(network.bias))
    return source, classes if len(classes) == len(network.head) else ()


def _measure(source: Net, net: Net, x: Tensor) -> None:
    """Set every BatchNorm of `net` so that each channel behind it has the mean and deviation that it has in `source`.

    Where `net` takes signs of what `source` takes whole, they are those of the distance from the mean: behind a ReLU
    all would be positive.
    """
    wanted: list[tuple[Tensor, Tensor]] = []

    def remember(norm: Any, args: tuple[Tensor, ...]) -> None:
        mean, variance = _moments(args[0])
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        wanted.append((scale * (mean - norm.running_mean) + norm.bias, scale * variance.sqrt()))

    def follow(norm: Any, args: tuple[Tensor, ...]) -> None:
        mean, variance = _moments(args[0])
        set_statistics(norm, mean, variance)
        behind, deviation = wanted.pop(0)
        norm.bias.copy_(behind)
        norm.weight.copy_(deviation * ((variance + norm.eps) / variance.clamp_min(norm.eps)).sqrt())

    def split(block: Any, args: tuple[Tensor, ...]) -> None:
        block.in_shift.copy_(-args[0].mean((0, 2, 3)))

    with _watched(_norms(source), remember):
        source.eval()(x)
    betas = zip(net.blocks, source.spec.blocks, net.spec.blocks, strict=True)
    newly_binary = [block for block, before, now in betas if before.beta_a == 1 != now.beta_a]
    with _watched(newly_binary, split), _watched(_norms(net), follow):
        net.eval()(x)


def _norms(net: Net) -> list[nn.Module]:
    """In the order in which they come."""
    return [net.stem_norm, *(block.norm for block in net.blocks), net.feature_norm]  # type: ignore[list-item]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel."""
    others = [axis for axis in range(x.dim()) if axis != 1]
    return x.mean(others), x.var(others, correction=0)


@contextlib.contextmanager
def _watched(modules: Iterable[nn.Module], function: Callable[[Any, tuple[Tensor, ...]], None]) -> Iterator[None]:
    """Call function(module, inputs) before each of these modules computes."""
    handles = [module.register_forward_pre_hook(function) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(found: NetworkSpec, wanted: NetworkSpec) -> str:
    """What differs between two networks, but for names and block lengths, in words; empty where nothing does."""
    ours, theirs = (
        msgspec.structs.replace(spec.with_betas(1, 1), name="", beta_f=1, layout="channel") for spec in (wanted, found)
    )
    for i, (a, b) in enumerate(zip(theirs.blocks, ours.blocks, strict=False)):
        if a != b:
            return f"block {i} is {a}, in the recipe {b}"
    if len(theirs.blocks) != len(ours.blocks):
        return f"{len(theirs.blocks)} blocks, in the recipe {len(ours.blocks)}"
    differing = [name for name in ours.__struct_fields__ if getattr(ours, name) != getattr(theirs, name)]
    return ", ".join(f"{n} is {getattr(theirs, n)}, in the recipe {getattr(ours, n)}" for n in differing)
