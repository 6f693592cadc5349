"""Random views of training images, and test images as a network sees them."""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.training.datasets import Dataset
from models.training.recipe import NO_CHANGE, Augment


def views(images: Tensor, size: int, augment: Augment, random: torch.Generator) -> Tensor:
    """Random views of uint8 (N, 3, H, W) as float (N, 3, size, size) in 0..255, on the device of the images.

    random: of the CPU, so that every device draws the same numbers.
    """
    n = images.shape[0]
    if augment == NO_CHANGE and images.shape[2:] == (size, size):
        return images.float()

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random).to(images.device)

    def either_way(*shape: int) -> Tensor:
        return uniform(*shape) * 2 - 1

    def factor(width: float, channels: int = 1) -> Tensor:
        return torch.exp(either_way(n, channels, 1, 1) * width)

    angle = either_way(n) * math.radians(augment.turn)
    scale = torch.exp(uniform(n) * -math.log(augment.min_scale) + math.log(augment.min_scale))
    mirror = (uniform(n) < 0.5).float() * 2 - 1 if augment.mirror else torch.ones(n, device=images.device)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    # a grid's side is 2 long; a turn about the middle of a whole view looks beyond the border, which is mirrored
    dx, dy = (either_way(2, n) * (1 - scale + 2 * augment.shift)).unbind(0)
    affine = torch.stack([torch.stack([cos * mirror, -sin, dx], 1), torch.stack([sin * mirror, cos, dy], 1)], 1)
    # sampled twice as fine where that is finer than the image, so that a shrunk view is not aliased
    fine = 2 if images.shape[3] > size else 1
    grid = F.affine_grid(affine, [n, 3, fine * size, fine * size], align_corners=False)
    x = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    x = F.avg_pool2d(x, fine)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = ((x - mean) * factor(augment.contrast) + mean) * factor(augment.gain) * factor(augment.tint, 3)
    if augment.noise:
        x = x + torch.randn(x.shape, generator=random).to(x.device) * uniform(n, 1, 1, 1) * augment.noise
    return x.clamp(0, 255)


def as_rgb(images: NDArray[np.uint8]) -> Tensor:
    """Images (n, H, W, 3) BGR as a network in training takes them: uint8 (n, 3, H, W) RGB."""
    return torch.from_numpy(np.ascontiguousarray(images[..., ::-1])).permute(0, 3, 1, 2)


def as_tiles(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Images (n, H, W, 3) as tiles of a network, uint8 (n, size, size, 3)."""
    if images.shape[1:3] == (size, size):
        return images
    tiles = np.empty((len(images), size, size, 3), np.uint8)
    for tile, image in zip(tiles, images, strict=True):
        tile[:] = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return tiles


def scored_tiles(data: Dataset, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The test split as tiles of a network, uint8 (n, size, size, 3) BGR, and their labels."""
    return as_tiles(data.images[data.test], size), data.labels[data.test]
