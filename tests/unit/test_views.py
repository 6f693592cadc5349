"""Random views of training images. Needs PyTorch."""

import math

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'hadanet-uav[train]'")

from models.training.recipe import Augment  # noqa: E402
from models.training.views import views  # noqa: E402

STILL = Augment(min_scale=1, gain=0, contrast=0, tint=0, noise=0)


def seen(images, size, augment, seed=0):
    return views(images, size, augment, torch.Generator().manual_seed(seed))


def test_views_are_seeded_bounded_and_leave_the_images_alone():
    images = torch.randint(0, 256, (6, 3, 20, 20), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    before = images.clone()
    a, b, c = (seen(images, 16, Augment(noise=60), seed) for seed in (0, 0, 1))
    assert a.shape == (6, 3, 16, 16)
    assert a.dtype == torch.float32
    assert 0 <= a.min() < a.max() <= 255
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(images, before)


def test_a_picture_that_any_turn_leaves_alone_stays_itself():
    y, x = np.mgrid[:32, :32] - 15.5
    rings = (128 + 90 * np.cos(np.hypot(x, y) / 4)).astype(np.uint8)
    images = torch.from_numpy(np.stack([rings] * 3)[None].repeat(8, 0))
    difference = (seen(images, 32, STILL) - images).abs()
    inside = torch.from_numpy(np.hypot(x, y) < 13)
    assert difference[..., inside].max() < 6


def test_a_crop_shows_a_part_of_the_picture():
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).repeat(64, 1).expand(64, 3, 64, 64)
    spread = torch.stack([view.max() - view.min() for view in seen(ramp, 32, msgspec.structs.replace(STILL))])
    assert spread.min() > 200
    close = seen(ramp, 32, msgspec.structs.replace(STILL, min_scale=0.25))
    spread = torch.stack([view.max() - view.min() for view in close])
    assert spread.min() < 110  # a quarter of the side, turned by up to 45 degrees
    assert spread.max() > 150


def test_light_changes_within_its_bounds():
    grey = torch.full((200, 3, 4, 4), 100, dtype=torch.uint8)
    shades = seen(grey, 4, msgspec.structs.replace(STILL, gain=0.2)).mean((2, 3)).log() - math.log(100)
    assert shades.abs().max() <= 0.2001
    assert shades.abs().max() > 0.18
    assert (shades - shades[:, :1]).abs().max() < 1e-5  # all colours alike
    tints = seen(grey, 4, msgspec.structs.replace(STILL, tint=0.1)).mean((2, 3)).log() - math.log(100)
    assert 0.09 < tints.abs().max() <= 0.1001
    assert (tints - tints[:, :1]).abs().max() > 0.1
    assert torch.allclose(seen(grey, 4, msgspec.structs.replace(STILL, contrast=1)), torch.tensor(100.0))
