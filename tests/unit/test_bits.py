"""The bit convention: bit 1 means x < 0, sign(0) = +1, little bit order, padding bits zero."""

import numpy as np
import pytest

from models.bits import pack_signs, unpack_signs

WIDTHS = [1, 3, 8, 31, 32, 33, 63, 64, 65, 127, 128, 65_536, 65_543, 70_001]


@pytest.mark.parametrize("width", WIDTHS)
def test_every_bit_is_where_the_convention_says(width):
    x = np.random.default_rng(width).normal(size=(2, width))
    packed = pack_signs(x)
    assert packed.shape == (2, -(-width // 8))
    assert packed.dtype == np.uint8
    for row, values in zip(packed, x, strict=True):
        number = int.from_bytes(row.tobytes(), "little")  # bit j of byte n is bit 8n + j of this number
        assert number == sum(1 << i for i, v in enumerate(values) if v < 0)
    assert np.array_equal(unpack_signs(packed, width), np.copysign(1, x))


def test_zero_minus_zero_and_nan_are_positive():
    assert pack_signs(np.array([0.0, -0.0, np.nan, -1e-30])).tolist() == [0b1000]


def test_unpack_takes_the_first_signs_of_any_leading_shape():
    x = np.random.default_rng(0).normal(size=(2, 3, 21)).astype(np.float32)
    signs = unpack_signs(pack_signs(x), 13)
    assert signs.dtype == np.float32
    assert np.array_equal(signs, np.sign(x[..., :13]))
    assert unpack_signs(pack_signs(np.zeros((0, 9))), 9).shape == (0, 9)


def test_too_few_bits_are_refused():
    with pytest.raises(ValueError, match="2 bytes cannot hold 17 signs"):
        unpack_signs(np.zeros((1, 2), np.uint8), 17)
