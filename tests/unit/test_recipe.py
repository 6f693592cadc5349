"""Recipes and data sets: what is read, and what is refused with a message that helps. Needs no PyTorch."""

import hashlib
import io
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.errors import RecipeError
from models.network import Block, Stem
from models.training import datasets
from models.training.recipe import Augment, read
from tests.training_data import CLASS_NAMES, arrays, recipe_text, write

ZOO = Path(__file__).parents[2] / "models" / "zoo"


def recipe_file(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_a_recipe_is_read_with_its_text(tmp_path):
    text = recipe_text(epochs=7, seed=3)
    recipe, same = read(recipe_file(tmp_path, text))
    assert same == text
    assert (recipe.dataset, recipe.epochs, recipe.batch, recipe.seed) == ("ucmerced", 7, 16, 3)
    assert recipe.augment == Augment(min_scale=0.7)
    assert recipe.network.stem == Stem(channels=16, kernel=3, stride=2)
    assert recipe.network.blocks[1] == Block(channels=32, kernel=3, stride=1, beta_w=24, beta_a=5)


def test_the_recipe_of_the_zoo_is_read():
    recipe, text = read(ZOO / "default.toml")
    assert recipe.network.name == "default"
    assert text == (ZOO / "default.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 6", "epochs = 6\nepoch = 6", "unknown field `epoch`"),
        ("taps =", "tabs = 1\ntaps =", r"unknown field `tabs` - at `\$.network`"),
        ("channels = 16", "channels = 16, bias = 1", r"unknown field `bias` - at `\$.network.stem`"),
        ("beta_a = 5", "beta_q = 5", r"unknown field `beta_q` - at `\$.network.blocks\[1\]`"),
        ("min_scale = 0.7", "blur = 1", r"unknown field `blur` - at `\$.augment`"),
        ("min_scale = 0.7", "min_scale = 0.0", r"at `\$.augment.min_scale`"),
        ("batch = 16", "", "missing required field `batch`"),
        ("batch = 16", "batch = 1", r"`int` >= 2 - at `\$.batch`"),
        ("batch = 16", "batch = 16.5", r"at `\$.batch`"),
        ("epochs = 6", "epochs = 0", r"at `\$.epochs`"),
        ("seed = 0", "seed = -1", r"at `\$.seed`"),
        ("0.01", "nan", r"at `\$.learning_rate`"),
        ("0.01", "inf", r"at `\$.learning_rate`"),
        ("0.01", "0", r"at `\$.learning_rate`"),
        ("seed = 0", "warm_up = 1.0", r"`float` < 1.0 - at `\$.warm_up`"),
        ("[110, 110, 110]", "[110, 110]", r"length 3, got 2 - at `\$.network.mean"),
        ("[110, 110, 110]", "[110, 110, 256]", r"at `\$.network.mean"),
        ("[110, 110, 110]", "[110, 110, 1.5]", r"at `\$.network.mean"),
        ("beta_w = 24", "beta_w = -1", r"`int` >= 0 - at `\$.network.blocks\[1\].beta_w`"),
        ("channels = 16", "channels = 0", r"at `\$.network.stem.channels`"),
        ("taps = [0, 1]", "taps = [0, 2]", r"network.taps must be rising numbers of blocks, 0..1, not \[0, 2\]"),
        ("taps = [0, 1]", "taps = [-1, 0]", "network.taps must be rising"),
        ("taps = [0, 1]", "taps = [1, 0]", "network.taps must be rising"),
        ("taps = [0, 1]", "taps = [0, 0]", "network.taps must be rising"),
        ("taps = [0, 1]", "taps = []", r"length >= 1 - at `\$.network.taps`"),
        ("channels = 16", "channels = 16, kernel = 4", "network.stem: a kernel of 4 with padding: it must be odd"),
        ("beta_w = 24", "kernel = 2", r"network.blocks\[1\]: a kernel of 2 with padding: it must be odd"),
        ("beta_w = 24", "stride = 3", r"network.blocks\[1\]: a shortcut from 8 x 8 to 3 x 3"),
        ("input_size = 32", "input_size = 34", r"network.blocks\[0\]: a shortcut from 17 x 17 to 9 x 9 pixels"),
        ("input_size = 32", "input_size = 0", r"at `\$.network.input_size`"),
        ("epochs = 6", "epochs =", r"line 3"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(tmp_path, old, new, message):
    text = recipe_text()
    assert text.count(old) == 1, "the case would change nothing"
    path = recipe_file(tmp_path, text.replace(old, new))
    with pytest.raises(RecipeError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_blocks_of_stride_2_shrink_the_next_blocks_input(tmp_path):
    three = "blocks = [{ channels = 8, stride = 2 }, { channels = 8, stride = 2 }, { channels = 8, stride = 2 }]"
    text = re.sub(r"blocks = .*", three, recipe_text())
    assert len(read(recipe_file(tmp_path, text))[0].network.blocks) == 3
    with pytest.raises(RecipeError, match=r"blocks\[2\]: a shortcut from 5 x 5 to 3 x 3 pixels"):
        read(recipe_file(tmp_path, text.replace("input_size = 32", "input_size = 40")))


def test_a_recipe_that_is_no_text_or_not_there_is_refused(tmp_path):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"epochs = \xff\xfe")
    for path, message in ((binary, "utf-8"), (tmp_path / "none.toml", "cannot be read"), (tmp_path, "cannot be read")):
        with pytest.raises(RecipeError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HADANET_DATA", str(tmp_path))
    return tmp_path


def test_a_data_set_is_read_whole(folder):
    content = arrays(count=9)
    path = write(folder, content)
    data = datasets.load("ucmerced")
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert data.class_names == CLASS_NAMES
    assert data.labels.tolist() == [0, 1, 2] * 3
    assert data.test.tolist() == [i % 5 == 0 for i in range(9)]
    assert data.images.shape == (9, 32, 32, 3)
    for i in range(9):
        jpeg = content["data"][content["offsets"][i] : content["offsets"][i + 1]]
        np.testing.assert_array_equal(data.images[i], cv2.imdecode(jpeg, cv2.IMREAD_COLOR))


def test_a_compressed_file_is_the_same_data_set(folder):
    write(folder, arrays(count=6))
    plain = datasets.load("ucmerced")
    np.savez_compressed(folder / "ucmerced.npz", **arrays(count=6))
    np.testing.assert_array_equal(datasets.load("ucmerced").images, plain.images)


def test_an_unknown_and_an_absent_data_set_are_named(folder):
    with pytest.raises(RecipeError, match=r"'imagenet' is not known: neither a file .* cifar10-jpeg, mnist, ucmerced"):
        datasets.load("imagenet")
    with pytest.raises(RecipeError, match=r"cifar10_jpeg.npz: No such file or directory; .* HADANET_DATA"):
        datasets.load("cifar10-jpeg")


def without_end(content):
    """Image 4 loses its last bytes."""
    a, b = content["offsets"][4:6]
    content["data"] = np.delete(content["data"], np.arange(b - 40, b))
    content["offsets"][5:] -= 40
    assert a < b - 40


def of_another_size(content):
    jpeg = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1]
    content["data"] = np.concatenate([content["data"][: content["offsets"][-2]], jpeg])
    content["offsets"][-1] = len(content["data"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("labels"), "labels"),
        (lambda c: c.update(labels=c["labels"] + 0.5), "array 'labels' is float64"),
        (lambda c: c.update(labels=c["labels"][:-1]), "8 labels, 9 splits and 10 offsets"),
        (lambda c: c.update(labels=c["labels"] + 1), "labels 1..3 for 3 classes"),
        (lambda c: c.update(labels=c["labels"] - 1), "labels -1..1 for 3 classes"),
        (lambda c: c.update(labels=c["labels"].astype(object)), "Object arrays"),
        (lambda c: c.update(data=c["data"].reshape(1, -1)), r"array 'data' is uint8 \(1, \d+\)"),
        (lambda c: c.update(data=c["data"].astype(np.uint16)), "array 'data' is uint16"),
        (lambda c: c.update(data=c["data"][:-1]), "does not rise from 0"),
        (lambda c: c.update(offsets=c["offsets"][::-1]), "does not rise from 0"),
        (lambda c: c.update(offsets=np.sort(c["offsets"] * (np.arange(10) != 3))), "does not rise from 0"),
        (lambda c: c.update(offsets=np.where(np.arange(10) == 3, 2**64 - 1, c["offsets"].astype(np.uint64))), "rise"),
        (lambda c: c["offsets"].__setitem__(3, c["offsets"][3] + 1), "image 2 is not a whole JPEG file"),
        (lambda c: c["data"].__setitem__(c["offsets"][2], 0), "image 2 is not a whole JPEG file"),
        (without_end, "image 4 is not a whole JPEG file"),
        (of_another_size, r"image 8 is \(16, 16\), image 0 is \(32, 32\)"),
        (lambda c: c.update(split=np.zeros(9, np.uint8)), "both"),
        (lambda c: c.update(split=np.ones(9, np.uint8)), "both"),
        (lambda c: c["split"].__setitem__(0, 2), "nothing else"),
        (lambda c: c.update(class_names=np.array(["a", "b", "a"])), "all different"),
        (lambda c: c.update(class_names=np.array(["a"])), "1 class names; training needs 2 to 100"),
        (lambda c: c.update(class_names=np.array([1, 2, 3])), "array 'class_names' is int64"),
        (lambda c: c.update({n: c[n][:0] for n in ("data", "labels", "split")}, offsets=c["offsets"][:1]), "both"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(folder, change, message):
    content = arrays(count=9)
    change(content)
    path = write(folder, content)
    with pytest.raises(RecipeError, match=message) as caught:
        datasets.load("ucmerced")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(folder):
    path = write(folder, arrays(count=6))
    whole = path.read_bytes()
    for end in [*range(0, 64), *range(64, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(RecipeError, match=r"not an .npz file|a damaged .npz file"):
            datasets.load("ucmerced")


def test_damaged_bytes_are_refused_or_change_nothing(folder):
    """Headers, directory and checksums: the bytes of a .npz that are not data; the data has checksums."""
    path = write(folder, arrays(count=6))
    whole, images = path.read_bytes(), datasets.load("ucmerced").images
    rng, refused = np.random.default_rng(0), 0
    places = rng.choice(np.r_[0:160, len(whole) - 1600 : len(whole)], 400, replace=False)
    for place in places.tolist():
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            data = datasets.load("ucmerced")
        except RecipeError:
            refused += 1
        else:
            np.testing.assert_array_equal(data.images, images)
    assert refused > 100


def test_a_plain_array_and_a_pickle_are_not_a_data_set(folder):
    plain = io.BytesIO()
    np.save(plain, np.arange(3))
    for content in (b"", plain.getvalue(), b"\x80\x04N."):
        (folder / "ucmerced.npz").write_bytes(content)
        with pytest.raises(RecipeError, match=r"not an .npz file"):
            datasets.load("ucmerced")


def test_the_real_data_set_is_read(monkeypatch):
    folder = Path(os.environ.get("HADANET_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / "ucmerced.npz").is_file():
        pytest.skip(f"the data sets are not at {folder}; set HADANET_DATA")
    monkeypatch.setenv("HADANET_DATA", str(folder))
    data = datasets.load("ucmerced")
    assert data.images.shape == (2100, 160, 160, 3)
    assert np.bincount(data.labels).tolist() == [100] * 21
    assert data.test.sum() == 420
