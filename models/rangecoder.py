"""An adaptive binary range coder: bits and integers into nearly as few bytes as their statistics allow.

Integer arithmetic only, so that every machine writes the same bytes. A bit is coded under a context: the counts of
zeros and ones seen there so far, whose estimate (n1 + 1/2) / (n + 1) costs about log2(n) / 2 bits to learn. An integer
is written as the length of its binary form in unary, then its digits; the length and the three leading digits have
contexts of their own, the other digits cost one bit each.

The interval is 48 bits wide and moves by bytes; a carry goes through the bytes held back (one, and a run of 255).
A decoder reads zeros behind the end of its payload, at most `LOOKAHEAD` of them; a payload that needs more, or leaves
bytes over, is damaged.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from models.errors import DeltaError
from models.jit import kernel, without_broken_cache

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]

INTEGER_BITS = 40
"""Integers are 0 .. 2**INTEGER_BITS - 2, the lengths of v + 1 are 1 .. INTEGER_BITS."""
LOOKAHEAD = 5
"""Bytes that a decoder has read beyond those an encoder has written when both are done."""

_TOP, _BOTTOM = 48, 40  # bits of the interval; below 2**_BOTTOM it moves by a byte
_LOW_MASK = (1 << _BOTTOM) - 1
_COUNT_LIMIT = 1 << 16  # then both counts are halved: old statistics fade
_BYPASS_BITS = 16  # digits coded at once without a context
_TREE = 8  # contexts of the three leading digits of one length: nodes 1..7 of a binary tree
_ROOM = 512  # bytes that one item can take at most, with ample reserve

# fields of the coders' state
_LOW, _RANGE, _POS, _CACHE, _PENDING = range(5)
_CODE = _LOW


def bit_context() -> Integers:
    """Fresh statistics for bits of one kind."""
    return np.zeros((1, 2), np.int64)


def integer_contexts() -> Integers:
    """Fresh statistics for integers of one kind."""
    return np.zeros((INTEGER_BITS * (1 + _TREE), 2), np.int64)


class Encoder:
    """Collects bits and integers; `finish` gives the payload. One `Decoder` call undoes one call, in order."""

    def __init__(self) -> None:
        self._state = np.array([0, 1 << _TOP, -1, 0, 0], np.int64)
        self._out = np.zeros(4 * _ROOM, np.uint8)

    def bits(self, packed: Bytes, context: Integers) -> None:
        """Code all bits of `packed` (1-D), lowest bit of a byte first, under one context."""
        done = 0
        while (done := int(_encode_bits(self._state, self._out, context, packed, done))) < len(packed):
            self._grow()

    def integers(self, values: Integers, contexts: Integers) -> None:
        """Code integers 0 .. 2**40 - 2 (1-D) under the contexts of one kind.

        Raises ValueError where one is outside.
        """
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < (1 << INTEGER_BITS) - 1:
            raise ValueError(f"integers must be 0 .. 2**{INTEGER_BITS} - 2, not {values.min()} .. {values.max()}")
        done = 0
        while (done := int(_encode_integers(self._state, self._out, contexts, values, done))) < len(values):
            self._grow()

    def uniform(self, value: int, bits: int) -> None:
        """Code a value of 1..16 bits that is as likely as any other. Raises ValueError where it does not fit."""
        if not (1 <= bits <= _BYPASS_BITS and 0 <= value < 1 << bits):
            raise ValueError(f"{value} does not fit in {bits} bits (1..{_BYPASS_BITS})")
        while self._full():
            self._grow()
        _encode_uniform(self._state, self._out, value, bits)

    def finish(self) -> bytes:
        """The payload, at least one byte; nothing may be coded after it."""
        while self._full():
            self._grow()
        return self._out[: int(_finish(self._state, self._out))].tobytes()

    def _full(self) -> bool:
        return bool(_is_full(self._state, self._out))

    def _grow(self) -> None:
        self._out = np.concatenate([self._out, np.zeros_like(self._out)])


class Decoder:
    """Reads what an `Encoder` wrote. Every method raises DeltaError where the payload is damaged or ends early."""

    def __init__(self, payload: bytes) -> None:
        self._data = np.frombuffer(payload, np.uint8)
        self._state = np.array([0, 1 << _TOP, 0], np.int64)
        for _ in range(_TOP // 8):
            _next_byte(self._state, self._data)
        self._check(_overrun(self._state, self._data))

    def bits(self, packed_bytes: int, context: Integers) -> Bytes:
        """Decode 8 * `packed_bytes` bits as uint8 (packed_bytes,), lowest bit first."""
        out = np.zeros(packed_bytes, np.uint8)
        self._check(_decode_bits(self._state, self._data, context, out))
        return out

    def integers(self, count: int, contexts: Integers) -> Integers:
        """Decode `count` integers 0 .. 2**40 - 2 as int64 (count,)."""
        out = np.zeros(count, np.int64)
        self._check(_decode_integers(self._state, self._data, contexts, out))
        return out

    def uniform(self, bits: int) -> int:
        """Decode a value of 1..16 bits."""
        value = int(_decode_uniform(self._state, self._data, bits))
        self._check(value < 0 or _overrun(self._state, self._data))
        return value

    def finish(self) -> None:
        """Check that the payload ends exactly here."""
        self._check(int(self._state[_POS]) != len(self._data) + LOOKAHEAD)

    def _check(self, damaged: bool) -> None:
        if damaged:
            raise DeltaError(f"the payload of {len(self._data)} bytes is damaged or cut off: ask for it again")


@cache
def warm_up() -> None:
    """Compile the kernels, or load them from the cache, once; a cache that a power cut damaged is left alone."""

    def use() -> None:
        encoder = Encoder()
        encoder.uniform(1, 1)
        encoder.bits(np.ones(1, np.uint8), bit_context())
        encoder.integers(np.ones(1, np.int64), integer_contexts())
        decoder = Decoder(encoder.finish())
        decoder.uniform(1)
        decoder.bits(1, bit_context())
        decoder.integers(1, integer_contexts())
        decoder.finish()

    without_broken_cache(use)


# Kernels. `state`, `out` and `counts` are written to; all of it is int64, so that no operation widens to float.


@kernel()
def _is_full(state: Integers, out: Bytes) -> bool:
    return bool(state[_POS] + state[_PENDING] + _ROOM > len(out))


@kernel()
def _shift_low(state: Integers, out: Bytes) -> None:
    """Move the interval by a byte: its top byte is written, or held back while a carry may still reach it."""
    low = state[_LOW]
    if low < 0xFF << _BOTTOM or low >= 1 << _TOP:
        carry = low >> _TOP
        pos = state[_POS]
        if pos >= 0:  # the first byte held back is the empty one in front of the payload
            out[pos] = (state[_CACHE] + carry) & 0xFF
        pos += 1
        for _ in range(state[_PENDING]):
            out[pos] = (0xFF + carry) & 0xFF
            pos += 1
        state[_POS] = pos
        state[_PENDING] = 0
        state[_CACHE] = (low >> _BOTTOM) & 0xFF
    else:
        state[_PENDING] += 1
    state[_LOW] = (low & _LOW_MASK) << 8


@kernel()
def _encode_bit(state: Integers, out: Bytes, counts: Integers, bit: int) -> None:
    split = state[_RANGE] // (2 * (counts[0] + counts[1]) + 2) * (2 * counts[0] + 1)
    if bit:
        state[_LOW] += split
        state[_RANGE] -= split
    else:
        state[_RANGE] = split
    _count(counts, bit)
    while state[_RANGE] < 1 << _BOTTOM:
        state[_RANGE] <<= 8
        _shift_low(state, out)


@kernel()
def _count(counts: Integers, bit: int) -> None:
    counts[bit] += 1
    if counts[0] + counts[1] >= _COUNT_LIMIT:
        counts[0] = (counts[0] + 1) >> 1
        counts[1] = (counts[1] + 1) >> 1


@kernel()
def _encode_uniform(state: Integers, out: Bytes, value: int, bits: int) -> None:
    state[_RANGE] >>= bits
    state[_LOW] += value * state[_RANGE]
    while state[_RANGE] < 1 << _BOTTOM:
        state[_RANGE] <<= 8
        _shift_low(state, out)


@kernel()
def _encode_bits(state: Integers, out: Bytes, counts: Integers, packed: Bytes, start: int) -> int:
    """Code packed[start:]; returns the number of the first byte that is not coded because `out` is full."""
    for i in range(start, len(packed)):
        if _is_full(state, out):
            return i
        for j in range(8):
            _encode_bit(state, out, counts[0], (packed[i] >> j) & 1)
    return len(packed)


@kernel()
def _encode_integers(state: Integers, out: Bytes, counts: Integers, values: Integers, start: int) -> int:
    """Code values[start:]; returns the number of the first value that is not coded because `out` is full."""
    for i in range(start, len(values)):
        if _is_full(state, out):
            return i
        v = values[i] + 1
        length = 0
        while v >> (length + 1):
            length += 1
        for k in range(length):
            _encode_bit(state, out, counts[k], 1)
        if length < INTEGER_BITS - 1:
            _encode_bit(state, out, counts[length], 0)
        node, left = 1, length
        while left > 0 and node < _TREE:
            left -= 1
            digit = (v >> left) & 1
            _encode_bit(state, out, counts[INTEGER_BITS + length * _TREE + node], digit)
            node = 2 * node + digit
        while left > 0:
            step = min(left, _BYPASS_BITS)
            left -= step
            _encode_uniform(state, out, (v >> left) & ((1 << step) - 1), step)
    return len(values)


@kernel()
def _finish(state: Integers, out: Bytes) -> int:
    """Write the number in the interval that ends in most zeros: its top byte is all that has to be written."""
    state[_LOW] = (state[_LOW] + _LOW_MASK) & ~_LOW_MASK
    _shift_low(state, out)
    _shift_low(state, out)
    return int(state[_POS])


@kernel()
def _next_byte(state: Integers, data: Bytes) -> None:
    state[_CODE] <<= 8
    if state[_POS] < len(data):
        state[_CODE] |= np.int64(data[state[_POS]])
    state[_POS] += 1


@kernel()
def _overrun(state: Integers, data: Bytes) -> bool:
    return bool(state[_POS] > len(data) + LOOKAHEAD)


@kernel()
def _decode_bit(state: Integers, data: Bytes, counts: Integers) -> int:
    split = state[_RANGE] // (2 * (counts[0] + counts[1]) + 2) * (2 * counts[0] + 1)
    bit = int(state[_CODE] >= split)
    if bit:
        state[_CODE] -= split
        state[_RANGE] -= split
    else:
        state[_RANGE] = split
    _count(counts, bit)
    while state[_RANGE] < 1 << _BOTTOM:
        state[_RANGE] <<= 8
        _next_byte(state, data)
    return bit


@kernel()
def _decode_uniform(state: Integers, data: Bytes, bits: int) -> int:
    """The value, or -1 where the payload points into the rest that the division leaves."""
    state[_RANGE] >>= bits
    value = int(state[_CODE] // state[_RANGE])
    if value >> bits:
        return -1
    state[_CODE] -= value * state[_RANGE]
    while state[_RANGE] < 1 << _BOTTOM:
        state[_RANGE] <<= 8
        _next_byte(state, data)
    return value


@kernel()
def _decode_bits(state: Integers, data: Bytes, counts: Integers, out: Bytes) -> bool:
    """Fill `out`; True where the payload is damaged."""
    for i in range(len(out)):
        value = np.int64(0)
        for j in range(8):
            value |= _decode_bit(state, data, counts[0]) << j
        out[i] = value
        if _overrun(state, data):
            return True
    return False


@kernel()
def _decode_integers(state: Integers, data: Bytes, counts: Integers, out: Integers) -> bool:
    """Fill `out`; True where the payload is damaged."""
    for i in range(len(out)):
        length = 0
        while length < INTEGER_BITS - 1 and _decode_bit(state, data, counts[length]):
            length += 1
        v = np.int64(1)
        left = length
        node = 1
        while left > 0 and node < _TREE:
            left -= 1
            digit = _decode_bit(state, data, counts[INTEGER_BITS + length * _TREE + node])
            v = 2 * v + digit
            node = 2 * node + digit
        while left > 0:
            step = min(left, _BYPASS_BITS)
            left -= step
            digits = _decode_uniform(state, data, step)
            if digits < 0:
                return True
            v = (v << step) | digits
        out[i] = v - 1
        if _overrun(state, data):
            return True
    return False
