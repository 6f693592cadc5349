"""Means over areas, against OpenCV's and against plain averaging."""

import cv2
import numpy as np
import pytest

from onboard import shrink


def image(height, width, seed=0):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    picture.flags.writeable = False  # a frame is never written to
    return picture


@pytest.mark.parametrize(("height", "width"), [(1080, 1920), (1200, 1601), (481, 854), (390, 641), (64, 640)])
def test_a_grey_picture_is_that_of_opencv(height, width):
    size = (640, round(height * 640 / width))
    picture = image(height, width)
    means = cv2.resize(picture.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    expected = means @ np.array([0.114, 0.587, 0.299])
    gap = np.abs(shrink.grey(picture, *size) - expected)
    assert gap.max() < 0.501


def test_whole_areas_are_averaged():
    picture = image(30, 40)
    means = picture.reshape(10, 3, 10, 4, 3).astype(np.float64).mean(axis=(1, 3)) @ np.array([0.114, 0.587, 0.299])
    np.testing.assert_allclose(shrink.grey(picture, 10, 10), means, atol=0.51)


def test_a_view_is_like_its_copy():
    picture = image(100, 200)[10:, 20:]
    np.testing.assert_array_equal(shrink.grey(picture, 50, 40), shrink.grey(picture.copy(), 50, 40))
