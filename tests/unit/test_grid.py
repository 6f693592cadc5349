"""Tiles and crops of a frame, against plain slicing and averaging."""

import cv2
import numpy as np
import pytest

from models.errors import SourceError
from onboard.grid import crop, cut, edges, jpeg


def image(height, width, seed=0):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    picture.flags.writeable = False  # a frame is never written to
    return picture


@pytest.mark.parametrize(("length", "parts"), [(1200, 6), (853, 8), (7, 7), (31, 32), (1, 1), (100, 3)])
def test_edges_cover_everything_once(length, parts):
    borders = edges(length, parts)
    assert borders[0] == 0
    assert borders[-1] == length
    sizes = np.diff(borders)
    assert len(sizes) == parts
    assert sizes.max() - sizes.min() <= 1


def test_tiles_are_the_means_of_their_pixels():
    picture = image(6 * 16, 8 * 24)
    tiles = cut(picture, 6, 8, 8, np.zeros((48, 8, 8, 3), np.uint8))
    for r in range(6):
        for c in range(8):
            part = picture[16 * r : 16 * r + 16, 24 * c : 24 * c + 24].astype(np.float64)
            means = part.reshape(8, 2, 8, 3, 3).mean(axis=(1, 3))
            assert np.abs(tiles[8 * r + c] - means).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(1080, 1920), (1200, 1601), (481, 854), (390, 640)])
def test_tiles_are_those_of_opencv(height, width):
    """Areas that are no whole pixels have a kernel of their own: the same bytes, but for a rounding here and there."""
    picture = image(height, width)
    tiles = cut(picture, 6, 8, 64, np.zeros((48, 64, 64, 3), np.uint8)).astype(int)
    ys, xs = edges(height, 6), edges(width, 8)
    off = 0
    for r in range(6):
        for c in range(8):
            part = picture[ys[r] : ys[r + 1], xs[c] : xs[c + 1]]
            gap = np.abs(cv2.resize(part, (64, 64), interpolation=cv2.INTER_AREA) - tiles[8 * r + c])
            assert gap.max() <= 1
            off += np.count_nonzero(gap)
    assert off < 1e-4 * tiles.size


def test_a_view_of_an_image_is_cut_like_the_image():
    picture = image(200, 300)
    tiles = [
        cut(x, 1, 2, 64, np.zeros((2, 64, 64, 3), np.uint8)) for x in (picture[20:, 10:], picture[20:, 10:].copy())
    ]
    np.testing.assert_array_equal(*tiles)


def test_tiles_of_the_networks_size_are_not_touched():
    picture = image(128, 192)
    tiles = cut(picture, 2, 3, 64, np.zeros((6, 64, 64, 3), np.uint8))
    np.testing.assert_array_equal(tiles[4], picture[64:128, 64:128])


def test_every_tile_is_written_at_any_size():
    """Up and down, at sizes that do not divide; what stands in the buffer from the last frame is overwritten."""
    for height, width in ((480, 641), (37, 50), (6, 8)):
        grey = np.full((height, width, 3), 7, np.uint8)
        out = np.full((48, 64, 64, 3), 200, np.uint8)
        assert cut(grey, 6, 8, 64, out) is out
        assert (out == 7).all()


@pytest.mark.parametrize("size", [(5, 100), (100, 7), (1, 1)])
def test_an_image_with_fewer_pixels_than_tiles(size):
    with pytest.raises(SourceError, match=f"{size[1]} x {size[0]} pixels are too small for 8 x 6 tiles"):
        cut(image(*size), 6, 8, 64, np.zeros((48, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("tile", range(12))
def test_a_crop_shows_its_tile_in_the_frame(tile):
    """Each tile has a colour of its own: the middle of the crop has it, beyond the picture it is dark grey."""
    colours = image(3, 4, 1)
    picture = np.repeat(np.repeat(colours, 40, axis=0), 60, axis=1)
    view = crop(picture, 3, 4, tile, 160)
    r, c = divmod(tile, 4)
    assert view.shape == (160, 160, 3)
    assert view.dtype == np.uint8
    assert (view[42:118, 42:118] == colours[r, c]).all()
    assert (view[40, 40:121] == 255).all()
    for dr, dc in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        beyond = view[80 + 60 * dr, 80 + 60 * dc]
        inside = 0 <= r + dr < 3 and 0 <= c + dc < 4
        assert (beyond == (colours[r + dr, c + dc] if inside else (40, 40, 40))).all()


def test_a_crop_leaves_the_frame_alone():
    picture = image(160, 160)
    before = picture.copy()
    crop(picture, 2, 2, 0, 160)
    crop(picture, 1, 1, 0, 320)
    np.testing.assert_array_equal(picture, before)


def test_a_crop_of_the_smallest_tiles():
    assert crop(image(6, 8), 6, 8, 47, 32).shape == (32, 32, 3)


def test_jpeg():
    smooth = cv2.GaussianBlur(image(96, 128), (0, 0), 8)
    fine, coarse = jpeg(smooth, 95), jpeg(smooth, 10)
    assert len(coarse) < len(fine)
    back = cv2.imdecode(np.frombuffer(fine, np.uint8), cv2.IMREAD_COLOR)
    assert back.shape == smooth.shape
    assert np.abs(back.astype(int) - smooth).mean() < 3
