"""Image sets for training, from the folder that HADANET_DATA names (else ../shared/data).

The packed format is one .npz: `data` uint8 (all JPEG files end to end), `offsets` int64 (n + 1), `labels` int16,
`split` uint8 (0 train, 1 test), `class_names`.
"""

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

PACKED = {"ucmerced": "ucmerced.npz", "cifar10-jpeg": "cifar10_jpeg.npz"}
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


def load(name: str) -> Dataset:
    """Read a data set whole. Raises RecipeError where it is unknown, absent or damaged."""
    if name not in PACKED:
        raise RecipeError(f"dataset {name!r} is not known; this program reads {', '.join(sorted(PACKED))}")
    path = data_folder() / PACKED[name]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; put the data set there or set HADANET_DATA") from error
    try:
        arrays = _unpacked(content)
        _check(arrays)
        images = _decoded(arrays["data"], arrays["offsets"])
    except _Damaged as error:
        raise RecipeError(f"{path}: {error}; fetch the file again, or pack it anew") from error
    return Dataset(
        name=name,
        images=images,
        labels=arrays["labels"].astype(np.int64),
        test=arrays["split"] == 1,
        class_names=tuple(str(n) for n in arrays["class_names"]),
        sha256=hashlib.sha256(content).hexdigest(),
    )


class _Damaged(Exception):
    """What is wrong with the content of a file."""


def _unpacked(content: bytes) -> Arrays:
    if not content.startswith(b"PK"):
        raise _Damaged("not an .npz file")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as packed:
            return {name: packed[name] for name in KINDS}
    except UNREADABLE as error:
        raise _Damaged(f"a damaged .npz file: {error}") from error


def _check(arrays: Arrays) -> None:
    """Every array is what the format says, and fits the others."""
    for name, kinds in KINDS.items():
        if arrays[name].ndim != 1 or arrays[name].dtype.kind not in kinds:
            raise _Damaged(f"array {name!r} is {arrays[name].dtype} {arrays[name].shape}, which is not the format")
    if arrays["data"].dtype != np.uint8:
        raise _Damaged(f"array 'data' is {arrays['data'].dtype}, not uint8")
    labels, split, names = arrays["labels"], arrays["split"], arrays["class_names"].tolist()
    offsets, count = arrays["offsets"].astype(np.int64), len(labels)
    if len(split) != count or len(offsets) != count + 1:
        raise _Damaged(f"{count} labels, {len(split)} splits and {len(offsets)} offsets (one more) do not fit together")
    if offsets[0] != 0 or offsets[-1] != len(arrays["data"]) or (np.diff(offsets) <= 0).any():
        raise _Damaged(f"array 'offsets' does not rise from 0 to the {len(arrays['data'])} bytes of 'data'")
    if not 2 <= len(names) <= MAX_CLASSES or len(set(names)) != len(names):
        raise _Damaged(f"{len(names)} class names; training needs 2 to {MAX_CLASSES}, all different")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise _Damaged(f"labels {labels.min()}..{labels.max()} for {len(names)} classes")
    if not set(np.unique(split).tolist()) == {0, 1}:
        raise _Damaged("array 'split' must hold 0 (training) and 1 (test), both, and nothing else")


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
