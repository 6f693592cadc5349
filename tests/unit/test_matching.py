"""Matching of binary features, against OpenCV's."""

import cv2
import numpy as np
import pytest

from onboard.matching import MAX_POINTS, match


def by_opencv(here, there):
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(here, there)
    return [pair.queryIdx for pair in pairs], [pair.trainIdx for pair in pairs]


@pytest.mark.parametrize(("n", "m", "width"), [(800, 790, 32), (1, 1, 32), (1, 50, 8), (50, 1, 64), (33, 65, 16)])
@pytest.mark.parametrize("ones", [0.5, 0.02])  # with few ones many are equally near
def test_it_matches_as_opencv_does(n, m, width, ones):
    random = np.random.default_rng(n + m)
    here, there = (np.packbits(random.random((k, width * 8)) < ones, axis=1) for k in (n, m))
    there[: min(n, m) // 2] = here[: min(n, m) // 2]
    mine, its = match(here, there)
    assert (mine.tolist(), its.tolist()) == by_opencv(here, there)


def test_all_bits_differ_and_none():
    ones, zeros = np.full((3, 32), 255, np.uint8), np.zeros((2, 32), np.uint8)
    mine, its = match(ones, zeros)
    assert (mine.tolist(), its.tolist()) == ([0], [0])
    for empty in (match(zeros[:0], ones), match(ones, zeros[:0])):
        assert [len(side) for side in empty] == [0, 0]


def test_too_many_points_are_refused():
    with pytest.raises(ValueError, match="at most 65536"):
        match(np.zeros((MAX_POINTS + 1, 8), np.uint8), np.zeros((1, 8), np.uint8))
