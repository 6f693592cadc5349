"""Plain arrays and folders of images as data sets; `test_recipe` has the packed ones. One test needs PyTorch."""

import json

import cv2
import numpy as np
import pytest

from models import artifact, cli
from models.errors import RecipeError
from models.training import datasets
from tests.training_data import CLASS_NAMES, recipe_text, texture


def plain(**changes):
    rng = np.random.default_rng(0)
    content = {
        "train_images": rng.integers(0, 256, (6, 8, 8), np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "test_images": rng.integers(0, 256, (3, 8, 8), np.uint8),
        "test_labels": np.array([2, 1, 0], np.uint8),
    }
    return content | changes


def test_plain_arrays_are_a_data_set(tmp_path):
    content = plain()
    np.savez(tmp_path / "a.npz", **content)
    data = datasets.load("a.npz", base=tmp_path)
    assert data.images.shape == (9, 8, 8, 3)
    assert data.class_names == ("0", "1", "2")
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2, 2, 1, 0]
    assert data.test.tolist() == [False] * 6 + [True] * 3
    for colour in range(3):
        np.testing.assert_array_equal(data.images[:6, ..., colour], content["train_images"])
    rgb = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "b.npz", **plain(train_images=rgb, test_images=rgb[:3], class_names=np.array(["x", "y", "z"])))
    coloured = datasets.load("b.npz", base=tmp_path)
    np.testing.assert_array_equal(coloured.images[:6], rgb[..., ::-1])
    assert coloured.class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": np.array([1, 2], np.uint8)}, r"'test_labels' is uint8 \(2,\) for 3 images"),
        ({"test_labels": np.array([1, 2, 0.5])}, "'test_labels' is float64"),
        ({"train_images": np.zeros((6, 8, 8), np.float32)}, "'train_images' is float32"),
        ({"test_images": np.zeros((3, 9, 8), np.uint8)}, "differ in size"),
        ({"test_images": np.zeros((0, 8, 8), np.uint8), "test_labels": np.zeros(0, np.uint8)}, "not empty"),
        ({"class_names": np.array(["a", "b"])}, "labels 0..2 for 2 classes"),
    ],
)
def test_plain_arrays_that_do_not_fit_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "a.npz", **plain(**changes))
    with pytest.raises(RecipeError, match=message):
        datasets.load("a.npz", base=tmp_path)


def pictures(root, counts):
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(root / name / f"{i:03}.png"), texture(CLASS_NAMES.index(name.split("/")[-1]), rng))


def test_a_folder_of_images_is_a_data_set(tmp_path):
    pictures(tmp_path / "flat", {"smooth": 10, "striped": 6})
    data = datasets.load("flat", 32, tmp_path)
    assert data.class_names == ("smooth", "striped")
    assert np.bincount(data.labels).tolist() == [10, 6]
    assert data.images.shape == (16, 64, 64, 3)
    assert [int(data.test[data.labels == c].sum()) for c in (0, 1)] == [2, 2]
    assert datasets.load("flat", 32, tmp_path).sha256 == data.sha256
    (tmp_path / "flat" / "smooth" / "000.png").unlink()
    assert datasets.load("flat", 32, tmp_path).sha256 != data.sha256


def test_a_folder_with_a_split_and_oblong_images(tmp_path):
    pictures(tmp_path / "d" / "train", {"smooth": 3, "grainy": 3})
    pictures(tmp_path / "d" / "val", {"smooth": 1, "grainy": 2})
    oblong = np.zeros((40, 80, 3), np.uint8)
    oblong[:, 20:60] = 200
    cv2.imwrite(str(tmp_path / "d" / "val" / "smooth" / "000.png"), oblong)
    data = datasets.load("d", 16, tmp_path)
    assert int(data.test.sum()) == 3
    place = np.flatnonzero(data.test & (data.labels == data.class_names.index("smooth")))[0]
    assert data.images[place].min() == 200  # its middle


def test_folders_that_are_none_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="0 class names"):
        datasets.load("empty", 16, tmp_path)
    pictures(tmp_path / "half" / "train", {"smooth": 3, "grainy": 3})
    with pytest.raises(RecipeError, match="'train' needs one named 'val' or 'test'"):
        datasets.load("half", 16, tmp_path)
    pictures(tmp_path / "bad", {"smooth": 6, "grainy": 6})
    (tmp_path / "bad" / "grainy" / "002.png").write_bytes(b"no picture")
    with pytest.raises(RecipeError, match=r"grainy/002\.png is not an image"):
        datasets.load("bad", 16, tmp_path)


def test_a_network_learns_from_a_folder(tmp_path):
    pytest.importorskip("torch", reason="training needs the extra train")
    pictures(tmp_path / "photos", {"smooth": 30, "grainy": 30})
    (tmp_path / "r.toml").write_text(recipe_text(epochs=8).replace('"ucmerced"', '"photos"'))
    assert cli.main(["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "m.safetensors")]) == 0
    assert artifact.load(tmp_path / "m.safetensors").classes == ("grainy", "smooth")
    assert json.loads(artifact.describe(tmp_path / "m.safetensors")["scores"])["test_accuracy"] >= 0.8
