"""The bit convention, once: bit 1 means x < 0, so sign(0) = +1; little bit order; padding bits are zero.

Entry 8n+j of a row is bit j of byte n. Every packed array of the project (weights, features, deltas) follows it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack_signs(x: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Sign bits of the last axis: real (..., K) -> uint8 (..., ceil(K/8)). NaN counts as not negative.

    >>> pack_signs(np.array([-1.0, 0.0, 2.0, -3.0]))
    array([9], dtype=uint8)
    """
    return np.packbits(x < 0, axis=-1, bitorder="little")


def unpack_signs(bits: NDArray[np.generic], count: int) -> NDArray[np.float32]:
    """The first `count` signs of the last axis: uint8 (..., >= ceil(count/8)) -> float32 (..., count) of +1 and -1.

    Raises ValueError where the rows hold fewer than `count` bits.

    >>> unpack_signs(np.array([9], np.uint8), 4)
    array([-1.,  1.,  1., -1.], dtype=float32)
    """
    if count > 8 * bits.shape[-1]:
        raise ValueError(f"rows of {bits.shape[-1]} bytes cannot hold {count} signs")
    negative = np.unpackbits(bits.astype(np.uint8, copy=False), axis=-1, count=count, bitorder="little")
    return np.float32(1) - 2 * negative.astype(np.float32)
