"""Compressed pictures to pixels, in one place: the same bytes give the same pixels from a folder and from a recording.

A recording keeps a photo's own bytes and not its pixels, so whoever reads a photo has to read it by `decode`.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
MODES = frozenset({"L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "1"})
"""Pillow's modes of 8 bits or fewer per channel."""
PADDING_BYTES = 512
"""So many zeros at the end, not behind an end mark, mean that the file was never fully written (a battery pulled)."""
END_MARKS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}
"""First bytes and last ones of JPEG and PNG."""
Image.init()  # without it Pillow knows only some of the formats by name
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for damaged files of these formats, found by cutting and flipping bytes."""


def decode(data: bytes) -> NDArray[np.uint8]:
    """The picture in a file's bytes as BGR (height, width, 3), turned upright by its EXIF. Raises one of `DAMAGE`."""
    if not data:
        raise ValueError("the file is empty")
    stripped = data.rstrip(b"\0")
    if len(data) - len(stripped) >= PADDING_BYTES and not stripped.endswith(END_MARKS.get(data[:2], b"")):
        raise ValueError("the file ends in zeros instead of an image")
    with opened(io.BytesIO(data)) as image:
        if image.mode not in MODES:
            raise ValueError(f"pixels of the kind {image.mode} are not supported; use 8 bits per channel")
        image.load()  # raises where OpenCV would fill a missing part with grey
        ImageOps.exif_transpose(image, in_place=True)
        rgb = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), np.uint8)


@contextmanager
def opened(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image of a known format without Pillow's warnings: what matters of them comes back as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=FORMATS) as image:
            yield image


def reason(error: Exception) -> str:
    """One of `DAMAGE` in words."""
    if isinstance(error, UnidentifiedImageError):
        return "this is not an image"
    known = isinstance(error, OSError | ValueError | Image.DecompressionBombError) and str(error)
    return str(error) if known else f"{type(error).__name__}: {error}"
