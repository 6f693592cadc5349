"""Image sets for training: those with a name, from the folder that HADANET_DATA names (else ../shared/data), any .npz
file, and any folder of images.

The packed format is one .npz: `data` uint8 (all JPEG files end to end), `offsets` int64 (n + 1), `labels` int16,
`split` uint8 (0 train, 1 test), `class_names`. Plain arrays are one .npz too: `train_images` and `test_images` uint8
(n, height, width) or (n, height, width, 3) RGB, `train_labels`, `test_labels`, and `class_names` where there are names.
A folder has one folder for each class, in `train` and in `val` or `test` (ImageNet's way); without these two, every
fifth image of a class is for testing.
"""

import glob
import hashlib
import io
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from models.errors import RecipeError
from models.model import MAX_CLASSES

NAMED = {"ucmerced": "ucmerced.npz", "cifar10-jpeg": "cifar10_jpeg.npz", "mnist": "mnist.npz"}
TEST_EVERY = 5
MAX_FOLDER_BYTES = 4 * 2**30
"""Images of a folder are held in memory, at the network's size or up to twice as large."""
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
KINDS = {"data": "u", "offsets": "iu", "labels": "iu", "split": "iu", "class_names": "U"}
"""The arrays of a packed file, each of one dimension, and the kinds of dtype that it may have."""
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, KeyError, TypeError, ValueError, SyntaxError, RuntimeError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
"""What zipfile and NumPy raise for damaged files: a damaged header may ask for anything, any amount of memory too."""

Arrays = Mapping[str, NDArray[Any]]


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """images: uint8 (n, height, width, 3) BGR; labels: int64 (n,); test: bool (n,); sha256: of the file, in hex."""

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test: NDArray[np.bool_]
    class_names: tuple[str, ...]
    sha256: str


def data_folder() -> Path:
    """Where the data sets lie."""
    return Path(os.environ.get("HADANET_DATA", "../shared/data"))


def load(name: str, size: int = 0, base: Path = Path()) -> Dataset:
    """Read a data set whole: a name, or the path of a file or folder, relative to `base`.

    size: side of the network's input, to which a folder's images are fitted. Raises RecipeError where it is unknown,
    absent or damaged.
    """
    if name not in NAMED and not (base / name).exists():
        known = ", ".join(sorted(NAMED))
        raise RecipeError(f"dataset {name!r} is not known: neither a file or folder, nor one of {known}")
    path = data_folder() / NAMED[name] if name in NAMED else base / name
    try:
        return _folder(path, size) if path.is_dir() else _file(name, path)
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; put the data set there or set HADANET_DATA") from error
    except _Damaged as error:
        raise RecipeError(f"{path}: {error}; fetch the file again, or pack it anew") from error


def _file(name: str, path: Path) -> Dataset:
    content = path.read_bytes()
    arrays = _unpacked(content)
    if "train_images" in arrays:
        images, labels, test, names = _plain(arrays)
    else:
        _check(arrays)
        images, labels = _decoded(arrays["data"], arrays["offsets"]), arrays["labels"].astype(np.int64)
        test, names = arrays["split"] == 1, tuple(str(n) for n in arrays["class_names"])
    digest = hashlib.sha256(content).hexdigest()
    name = name if name in NAMED else path.name
    return Dataset(name=name, images=images, labels=labels, test=test, class_names=names, sha256=digest)


def _plain(arrays: Arrays) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_], tuple[str, ...]]:
    """Plain arrays as images BGR, labels, what is for testing, and class names."""
    for part in ("train", "test"):
        images, labels = arrays.get(f"{part}_images"), arrays.get(f"{part}_labels")
        if images is None or labels is None or not len(images):
            raise _Damaged(f"arrays '{part}_images' and '{part}_labels' are both needed, and not empty")
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
            raise _Damaged(f"array '{part}_images' is {images.dtype} {images.shape}, not uint8 (n, height, width[, 3])")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise _Damaged(f"array '{part}_labels' is {labels.dtype} {labels.shape} for {len(images)} images")
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise _Damaged("arrays 'train_images' and 'test_images' differ in size")
    images = np.concatenate([arrays["train_images"], arrays["test_images"]])
    images = np.repeat(images[..., None], 3, axis=3) if images.ndim == 3 else images[..., ::-1]
    labels = np.concatenate([arrays["train_labels"], arrays["test_labels"]]).astype(np.int64)
    names = arrays["class_names"].tolist() if "class_names" in arrays else [str(i) for i in range(labels.max() + 1)]
    _check_labels(labels, names)
    test = np.arange(len(labels)) >= len(arrays["train_labels"])
    return np.ascontiguousarray(images), labels, test, tuple(str(n) for n in names)


def _folder(path: Path, size: int) -> Dataset:
    """Images of a folder; the same files give the same data set whatever the order of the disk."""
    parts = {part: path / part for part in ("train", "val", "test") if (path / part).is_dir()}
    if parts and ("train" not in parts or len(parts) < 2):
        raise _Damaged("a folder 'train' needs one named 'val' or 'test' beside it, and these need it")
    tests = parts.get("test", parts.get("val"))
    roots = [(parts["train"], False), (tests, True)] if tests else [(path, None)]
    names = sorted({p.name for root, _ in roots if root for p in root.iterdir() if p.is_dir()})
    files: list[tuple[Path, int, bool]] = []
    for root, testing in roots:
        for label, name in enumerate(names):
            found = sorted(p for p in (root or path).glob(f"{glob.escape(name)}/**/*") if p.suffix.lower() in PICTURES)
            files += [(p, label, i % TEST_EVERY == 0 if testing is None else testing) for i, p in enumerate(found)]
    labels = np.array([label for _, label, _ in files], np.int64)
    test = np.array([testing for *_, testing in files], np.bool_)
    _check_labels(labels, names)
    if not len(files) or test.all() or not test.any():
        raise _Damaged(f"{len(files)} images, {int(test.sum())} of them for testing: both kinds are needed")
    side = min(2 * size, 1024) if len(files) * 12 * size * size <= MAX_FOLDER_BYTES else size
    if len(files) * 3 * side * side > MAX_FOLDER_BYTES:
        raise _Damaged(
            f"{len(files)} images of {side} x {side} pixels are more than fit in {MAX_FOLDER_BYTES >> 30} GiB"
        )
    images, digest = np.empty((len(files), side, side, 3), np.uint8), hashlib.sha256()
    for i, (file, label, _) in enumerate(files):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(path)} {label} {hashlib.sha256(content).hexdigest()}\n".encode())
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
        if image is None:
            raise _Damaged(f"{file.relative_to(path)} is not an image")
        images[i] = _fitted(image, side)
    name, sha256 = path.resolve().name, digest.hexdigest()
    return Dataset(name=name, images=images, labels=labels, test=test, class_names=tuple(names), sha256=sha256)


def _fitted(image: NDArray[Any], side: int) -> NDArray[np.uint8]:
    """The middle square of an image, (side, side, 3)."""
    short = min(image.shape[:2])
    top, left = ((n - short) // 2 for n in image.shape[:2])
    method = cv2.INTER_AREA if short > side else cv2.INTER_LINEAR
    fitted: NDArray[np.uint8] = cv2.resize(
        image[top : top + short, left : left + short], (side, side), interpolation=method
    ).astype(np.uint8)
    return fitted


class _Damaged(Exception):
    """What is wrong with the content of a file."""


def _unpacked(content: bytes) -> Arrays:
    if not content.startswith(b"PK"):
        raise _Damaged("not an .npz file")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as packed:
            return {name: packed[name] for name in (packed.files if "train_images" in packed.files else KINDS)}
    except UNREADABLE as error:
        raise _Damaged(f"a damaged .npz file: {error}") from error


def _check(arrays: Arrays) -> None:
    """Every array is what the format says, and fits the others."""
    for name, kinds in KINDS.items():
        if arrays[name].ndim != 1 or arrays[name].dtype.kind not in kinds:
            raise _Damaged(f"array {name!r} is {arrays[name].dtype} {arrays[name].shape}, which is not the format")
    if arrays["data"].dtype != np.uint8:
        raise _Damaged(f"array 'data' is {arrays['data'].dtype}, not uint8")
    labels, split = arrays["labels"], arrays["split"]
    offsets, count = arrays["offsets"].astype(np.int64), len(labels)
    if len(split) != count or len(offsets) != count + 1:
        raise _Damaged(f"{count} labels, {len(split)} splits and {len(offsets)} offsets (one more) do not fit together")
    if offsets[0] != 0 or offsets[-1] != len(arrays["data"]) or (np.diff(offsets) <= 0).any():
        raise _Damaged(f"array 'offsets' does not rise from 0 to the {len(arrays['data'])} bytes of 'data'")
    _check_labels(labels, arrays["class_names"].tolist())
    if not set(np.unique(split).tolist()) == {0, 1}:
        raise _Damaged("array 'split' must hold 0 (training) and 1 (test), both, and nothing else")


def _check_labels(labels: NDArray[Any], names: list[str]) -> None:
    if not 2 <= len(names) <= MAX_CLASSES or len(set(names)) != len(names):
        raise _Damaged(f"{len(names)} class names; training needs 2 to {MAX_CLASSES}, all different")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise _Damaged(f"labels {labels.min()}..{labels.max()} for {len(names)} classes")


def _decoded(data: NDArray[np.uint8], offsets: NDArray[Any]) -> NDArray[np.uint8]:
    """The images, all of one size, as uint8 (n, height, width, 3)."""
    images = np.empty(0, np.uint8)
    for i in range(len(offsets) - 1):
        jpeg = data[int(offsets[i]) : int(offsets[i + 1])]
        # a decoder fills what is missing of a cut JPEG file with grey, so look for its end marker too
        image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR) if jpeg[-2:].tobytes() == b"\xff\xd9" else None
        if image is None:
            raise _Damaged(f"image {i} is not a whole JPEG file")
        if i == 0:
            images = np.empty((len(offsets) - 1, *image.shape), np.uint8)
        elif image.shape != images.shape[1:]:
            raise _Damaged(f"image {i} is {image.shape[:2]}, image 0 is {images.shape[1:3]}; one size is needed")
        images[i] = image
    return images
