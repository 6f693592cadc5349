"""What the kernels read and write: a plan with its table of layers, and buffers; constants in the kernels' types."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.simd import BACKEND, UNLIMITED, WORD_BITS

MAX_Q = 127
ROWS = BACKEND.rows
"""Output pixels that one pass over the weights serves."""
PANEL = np.uint64(20 * ROWS)
"""Output pixels that meet all weights before the next ones do: a tile of weights stays in the cache meanwhile."""
PIECE, GATE = 0, 8
"""Where in the shared integers of `network` the next piece stands, and where its gate begins."""
SHARED = 24
FLIP = np.uint8(0x80 if BACKEND.signed else 0)

WIDTH, STEPS, WORD_LENGTH = np.uint64(BACKEND.width), np.uint64(BACKEND.steps), np.uint64(WORD_BITS)
LINE = np.uint64(4 * BACKEND.width)
"""Bytes of a line of weights."""
LIMITED = BACKEND.steps != UNLIMITED
PAIRS = np.uint64(BACKEND.steps // 2)
ROW_NUMBERS = tuple(range(ROWS))
STEP = np.uint64(ROWS)
QUARTET = (0, 1, 2, 3)
"""Pixels that are packed together."""
ZERO, ONE, TWO, THREE, FOUR, _, SIX = (np.uint64(i) for i in range(7))
ONE_RUN, WORD_RUNS, PAIR_RUNS, TWO_PAIR_RUNS, ANY_RUNS = (np.uint64(i) for i in range(5))
"""Kinds of a layer: a single run; runs of one word, a pair, two pairs each; others."""
NONE = np.uint64(2**63)
"""A field that does not hold."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]
Indices = NDArray[np.uint64]
Layer = Any
"""A row of `Plan.layers`."""

FIELDS = {
    # the packed input; a stem has pixels instead
    "source": "maps: where the input map begins",
    "source_wide": "its channels, padded",
    "source_pixels": "its pixels in an image",
    "channels": "its real channels",
    "beta": "channels that share an activation scale",
    "in_shift": "floats: added before binarizing",
    "inside": "indices: where each pixel goes in the packed image with its border, in words; of a stem, in pixels",
    "packed": "words: where the packed input begins",
    "words": "words of a pixel",
    "groups": "scales of a pixel, which follow its words",
    "image": "words of a packed image, border included; of a stem, pixels",
    "origins": "indices: the 32 channels of each word begin there",
    "masks": "masks: bits of each word that count",
    "paired": "whether words 0 and 1, 2 and 3, ... have their bytes exchanged",
    # the convolution
    "stem": "whether this is the stem",
    "windows": "indices: where the window of each output pixel begins, in words; of a stem, in bytes",
    "pixels": "output pixels of an image",
    "spans": "indices: (., 4) of each run of a window its first word, its scale, how many pairs and single words;"
    " of a stem, where the bytes of each line of weights begin in a window",
    "kind": "what its runs are alike in",
    "steps": "bytes: lines of weights, tile after tile",
    "lines": "lines of a tile",
    "begins": "ints: where each sum begins, for each tile and run",
    "runs": "runs of a tile",
    "tiles": "BACKEND.width output channels each",
    "together": "tiles whose weights meet some pixels before the next pixels do: they stay in the nearest cache",
    # the epilogue
    "gain": "floats: times the sum, a vector for each tile",
    "shift": "floats: added",
    "slope": "floats: of the PReLU",
    "halves": "whether the shortcut averages 2 x 2 pixels",
    "short": "maps: where the shortcut reads, or NONE",
    "short_wide": "channels there, padded",
    "short_channels": "channels there before they repeat",
    "short_side": "pixels of a line there",
    "corners": "indices: where its 2 x 2 pixels begin, in floats",
    "repeats": "whether its map has to be written to `short` with its channels repeated",
    "near": "maps: that map",
    "near_wide": "its channels, padded",
    "near_channels": "its real channels",
    # what becomes of the output
    "out": "maps: where the output before the pool goes; the input's own place where a shortcut adds just that",
    "spare": "maps: where what is computed twice goes instead",
    "wide": "its channels, padded",
    "side": "pixels of its line",
    "pool": "size of the pool, 0 for none",
    "pool_stride": "pixels from one window to the next",
    "pool_padding": "pixels outside of the map on each side",
    "pool_mean": "whether it takes the mean",
    "result": "maps: where the output after the pool goes",
    "result_side": "pixels of its line",
    "tap": "first column of the features, or NONE",
    "tapped": "channels that are tapped",
    "deviation": "whether their deviation is, too",
}
"""Of a layer. Places in the arenas of the `Plan` and its `Buffers`, in items."""
LAYER = np.dtype([(name, np.uint64) for name in FIELDS])


class Plan(NamedTuple):
    """A network laid out for the kernels: a table of layers, and what they read, end to end by type."""

    layers: NDArray[np.void]
    bytes: Bytes
    ints: NDArray[np.int32]
    floats: Floats
    indices: Indices
    masks: Words


class Buffers(NamedTuple):
    """What the kernels write for up to `images` images at once; for one thread, or a team of them."""

    images: int
    pixels: Bytes
    words: Words
    maps: Floats
