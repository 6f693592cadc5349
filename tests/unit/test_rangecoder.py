"""The range coder against a twin in unbounded integers, against the entropy, and against damage."""

import os
import subprocess
import sys

import numpy as np
import pytest

from models.errors import DeltaError
from models.rangecoder import Decoder, Encoder, bit_context, integer_contexts


class Twin:
    """The same code written from the definition: one Python integer of any length, no carries, no buffers."""

    def __init__(self):
        self.low, self.range, self.shifts, self.counts = 0, 1 << 48, 0, {}

    def bit(self, context, bit):
        n0, n1 = self.counts.get(context, (0, 0))
        split = self.range // (2 * (n0 + n1) + 2) * (2 * n0 + 1)
        if bit:
            self.low, self.range = self.low + split, self.range - split
        else:
            self.range = split
        n0, n1 = n0 + 1 - bit, n1 + bit
        self.counts[context] = (n0, n1) if n0 + n1 < 65536 else ((n0 + 1) // 2, (n1 + 1) // 2)
        self.shift()

    def uniform(self, value, bits):
        self.range //= 2**bits
        self.low += value * self.range
        self.shift()

    def shift(self):
        while self.range < 1 << 40:
            self.range, self.low, self.shifts = self.range * 256, self.low * 256, self.shifts + 1

    def integer(self, kind, value):
        digits = f"{value + 1:b}"
        for k in range(len(digits) - 1):
            self.bit((kind, "length", k), 1)
        if len(digits) < 40:
            self.bit((kind, "length", len(digits) - 1), 0)
        for i in range(1, min(4, len(digits))):
            self.bit((kind, len(digits), digits[1:i]), int(digits[i]))
        rest = digits[4:]
        while rest:
            step, rest = rest[:16], rest[16:]
            self.uniform(int(step, 2), len(step))

    def finish(self):
        return (-(-self.low >> 40)).to_bytes(self.shifts + 1, "big")


def pack(bits):
    return np.packbits(np.asarray(bits, np.uint8), bitorder="little")


def code_bits(packed):
    encoder = Encoder()
    encoder.bits(packed, bit_context())
    return encoder.finish()


@pytest.mark.parametrize("p", [0, 1e-4, 1e-3, 1e-2, 0.1, 0.5])
def test_sign_flips_cost_their_entropy(p):
    n = 1_000_000
    bits = np.random.default_rng(7).random(n) < p
    packed = pack(bits)
    payload = code_bits(packed)
    share = bits.mean()  # of this draw, which at 100 flips lies some percent from p
    entropy = 0.0 if p == 0 else -n * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert len(payload) <= 1.02 * entropy / 8 + 8
    decoder = Decoder(payload)
    assert np.array_equal(decoder.bits(len(packed), bit_context()), packed)
    decoder.finish()


def test_statistics_that_drift_are_followed():
    rng = np.random.default_rng(3)
    halves = np.concatenate([rng.random(400_000) < 0.001, rng.random(400_000) < 0.1])
    entropy = 400_000 * sum(-p * np.log2(p) - (1 - p) * np.log2(1 - p) for p in (0.001, 0.1)) / 8
    assert len(code_bits(pack(halves))) < 1.03 * entropy


def test_same_bytes_as_the_twin():
    rng = np.random.default_rng(5)
    for trial in range(20):
        bits = (rng.random(800) < rng.choice([0.01, 0.3, 0.99])).astype(np.uint8)
        values = rng.integers(0, 2 ** rng.integers(1, 39, 60))
        values[:3] = (0, 2**40 - 2, 2**39 - 1)
        tail = [int(v) for v in rng.integers(0, 65536, trial)]
        encoder, twin = Encoder(), Twin()
        encoder.bits(pack(bits), bit_context())
        encoder.integers(values, integer_contexts())
        for bit in bits:
            twin.bit("flips", int(bit))
        for value in values:
            twin.integer("steps", int(value))
        for value in tail:
            encoder.uniform(value, 16)
            twin.uniform(value, 16)
        payload = encoder.finish()
        assert payload == twin.finish()
        decoder = Decoder(payload)
        assert np.array_equal(decoder.bits(100, bit_context()), pack(bits))
        assert np.array_equal(decoder.integers(60, integer_contexts()), values)
        assert [decoder.uniform(16) for _ in tail] == tail
        decoder.finish()


def test_a_carry_goes_through_a_long_run():
    """The symbols that 0x55 0x00 0x00 .. stands for keep the interval astride of that number; the end decides."""
    decoder = Decoder(b"\x55" + bytes(200))
    straddling = np.unpackbits(decoder.bits(100, bit_context()), bitorder="little")
    kinds = set()
    for last in range(256):
        bits = np.concatenate([straddling, np.unpackbits(np.uint8(last))])
        twin = Twin()
        for bit in bits:
            twin.bit("flips", int(bit))
        payload = code_bits(pack(bits))
        assert payload == twin.finish()
        kinds.add(payload[:9])
    below, above = b"\x54" + 8 * b"\xff", b"\x55" + bytes(8)
    assert kinds == {below, above}


def test_same_bytes_without_the_compiler():
    program = (
        "import numpy as np; from models.rangecoder import *; e = Encoder();"
        "e.bits(np.arange(64, dtype=np.uint8), bit_context());"
        "e.integers(np.arange(90) ** 6, integer_contexts()); e.uniform(12345, 16); p = e.finish();"
        "d = Decoder(p); assert (d.bits(64, bit_context()) == np.arange(64)).all();"
        "assert (d.integers(90, integer_contexts()) == np.arange(90) ** 6).all();"
        "assert d.uniform(16) == 12345; d.finish(); print(p.hex())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=os.environ | {"NUMBA_DISABLE_JIT": disable},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for disable in ("0", "1")
    ]
    assert [r.returncode for r in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    assert runs[0].stdout == runs[1].stdout


def test_integers_near_their_entropy():
    values = np.abs(np.rint(np.random.default_rng(1).laplace(0, 10, 20_000))).astype(np.int64)
    share = np.unique(values, return_counts=True)[1] / len(values)
    encoder = Encoder()
    encoder.integers(values, integer_contexts())
    assert 8 * len(encoder.finish()) < 1.01 * len(values) * -(share * np.log2(share)).sum()


def test_every_truncation_and_every_extension_is_noticed():
    rng = np.random.default_rng(9)
    packed, values = pack(rng.random(4000) < 0.05), rng.integers(0, 3000, 50)
    encoder = Encoder()
    encoder.bits(packed, bit_context())
    encoder.integers(values, integer_contexts())
    payload = encoder.finish()

    def decode(data):
        decoder = Decoder(data)
        decoder.bits(len(packed), bit_context())
        decoder.integers(50, integer_contexts())
        decoder.finish()

    decode(payload)
    for damaged in [*(payload[:i] for i in range(len(payload))), payload + b"\0", payload + b"\xff\xff"]:
        with pytest.raises(DeltaError, match="damaged or cut off"):
            decode(damaged)


def test_garbage_ends_in_an_error():
    rng = np.random.default_rng(11)
    for _ in range(200):
        with pytest.raises(DeltaError):
            Decoder(rng.bytes(30)).integers(10**6, integer_contexts())
        with pytest.raises(DeltaError):
            Decoder(rng.bytes(30)).bits(10**6, bit_context())
    decoder = Decoder(bytes(30))
    with pytest.raises(DeltaError):
        [decoder.uniform(16) for _ in range(100)]


def test_values_that_do_not_fit_are_refused():
    encoder = Encoder()
    for value, bits in ((-1, 4), (16, 4), (0, 0), (0, 17)):
        with pytest.raises(ValueError, match="does not fit"):
            encoder.uniform(value, bits)
    for value in (-1, 2**40 - 1):
        with pytest.raises(ValueError, match="integers must be"):
            encoder.integers(np.array([value]), integer_contexts())


def test_an_empty_payload_is_one_byte():
    assert len(Encoder().finish()) == 1
    Decoder(Encoder().finish()).finish()
    with pytest.raises(DeltaError):
        Decoder(b"")
