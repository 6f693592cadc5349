"""The stream of panned photos: its truth against the ground it was cut from, its drift, and a folder that replays."""

import cv2
import numpy as np
import pytest

from benchmarks import mosaic
from models.training.datasets import Dataset
from onboard.sources import open_source
from onboard.truth import Truth

NAMES = tuple(f"class{i}" for i in range(6))


@pytest.fixture(scope="module")
def data():
    """Twenty photos of each class, each a noise around the grey of its class; every other photo is for training."""
    random = np.random.default_rng(0)
    labels = np.tile(np.arange(6), 40)
    noise = random.integers(-20, 20, (240, 16, 16, 3))
    images = (30 * labels[:, None, None, None] + 40 + noise).astype(np.uint8)
    test = np.arange(240) % 12 >= 6
    images[~test] = 255  # must not be seen
    return Dataset(name="made", images=images, labels=labels, test=test, class_names=NAMES, sha256="")


@pytest.fixture(scope="module")
def ground(data):
    return mosaic.strip(data, 0)


def test_every_second_class_is_there_and_no_photo_of_training(data, ground):
    image, truth = ground
    assert mosaic.classes(data) == NAMES[::2]
    assert set(np.unique(truth)) == {0, 1, 2}
    assert image.max() < 250
    for place in range(3):
        assert abs(image[truth == place].mean() - (60 * place + 40)) < 2


def test_truth_is_what_the_picture_shows(ground):
    """Before any drift the grey of a tile tells its class; a tile of two classes is unknown."""
    image, pixels = mosaic.frame(*ground, 0, 0)
    grid = mosaic.tiles(pixels)
    assert grid.shape == (mosaic.ROWS, mosaic.COLS)
    known = 0
    for row, col in np.ndindex(grid.shape):
        part = np.s_[row * 80 : row * 80 + 80, col * 80 : col * 80 + 80]
        shares = np.bincount(pixels[part].ravel(), minlength=3) / 6400
        if grid[row, col] >= 0:
            known += 1
            assert shares[grid[row, col]] >= mosaic.FILLED
            if shares[grid[row, col]] == 1:
                assert abs(image[part].mean() - (60 * grid[row, col] + 40)) < 6
        else:
            assert shares.max() < mosaic.FILLED
    assert known > 24


def test_it_pans_and_drifts(ground):
    frames = [mosaic.frame(*ground, i, 0)[0] for i in (0, 1, 120, 239)]
    shift, _ = cv2.phaseCorrelate(*(cv2.cvtColor(f, cv2.COLOR_BGR2GRAY).astype(np.float32) for f in frames[:2]))
    way = (len(ground[0]) - mosaic.HEIGHT - 40) / (mosaic.FRAMES - 1)
    assert abs(shift[1] - way) < 3
    # ground that is alike everywhere: what differs between frames is the drift
    noise = np.random.default_rng(0).integers(60, 200, ground[0].shape, np.uint8)
    alike = [mosaic.frame(noise, ground[1], i, 0)[0] for i in (1, 239)]
    contrast = [float(np.abs(cv2.Laplacian(cv2.blur(f, (3, 3)), cv2.CV_32F)).mean()) for f in alike]
    assert contrast[0] > contrast[1]
    np.testing.assert_array_equal(frames[0], mosaic.frame(*ground, 0, 0)[0])


def test_a_folder_that_replays(data, tmp_path, monkeypatch):
    monkeypatch.setattr(mosaic, "FRAMES", 3)
    folder = tmp_path / "flight"
    folder.mkdir()
    table = mosaic.write(data, folder)
    classes = mosaic.classes(data)
    truth = Truth.from_csv(table, mosaic.letters(classes), classes)
    frames = list(open_source(str(folder)).frames())
    assert len(frames) == 3
    for index, frame in enumerate(frames):
        image, pixels = mosaic.frame(*mosaic.strip(data, 0), index, 0)
        np.testing.assert_array_equal(frame.image, image)
        np.testing.assert_array_equal(truth.grid(frame), mosaic.tiles(pixels))
