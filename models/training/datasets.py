"""Image sets for training, from the folder that HADANET_DATA names (else ../shared/data).

The packed format is one .npz: `data` uint8 (all JPEG files end to end), `offsets` int64 (n + 1), `labels` int16,
`split` uint8 (0 train, 1 test), `class_names`.
"""

import hashlib
import os
from itertools import pairwise
from pathlib import Path

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from models.errors import RecipeError

PACKED = {"ucmerced": "ucmerced.npz", "cifar10-jpeg": "cifar10_jpeg.npz"}


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """images: uint8 (n, size, size, 3) BGR; labels: int64 (n,); test: bool (n,); sha256: of the file, in hex."""

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
    with np.load(path, allow_pickle=False) as packed:
        data, offsets, labels = packed["data"], packed["offsets"], packed["labels"]
        test, names = packed["split"] == 1, tuple(str(n) for n in packed["class_names"])
    images = [cv2.imdecode(data[a:b], cv2.IMREAD_COLOR) for a, b in pairwise(offsets)]
    if any(image is None for image in images):
        raise RecipeError(f"{path}: damaged: an image cannot be decoded")
    return Dataset(
        name=name,
        images=np.stack(images).astype(np.uint8, copy=False),  # type: ignore[arg-type]
        labels=labels.astype(np.int64),
        test=test,
        class_names=names,
        sha256=hashlib.sha256(content).hexdigest(),
    )
