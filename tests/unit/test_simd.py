"""The SIMD type against what its functions say in NumPy; backends against each other; the code of the hot loop."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models import simd
from models.errors import HadanetError
from models.jit import kernel
from models.simd import BACKEND, BACKENDS, WORD_BITS, choose
from models.simd.choice import features

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 180
ROWS = (2, 0, 3)
FOUR = (30, 0, 21, 8)
MOST, WIDTH = min(BACKEND.steps + 1, 100), BACKEND.width
RUNNABLE = [b for b in BACKENDS if b.requires <= features()]

HOT = {"avx512": ("vpopcntb", "vpdpbusd"), "avxvnni": ("vpshufb", "vpdpbusd"), "avx2": ("vpshufb", "vpmaddubsw")}
CPU = {"avx512": "", "avxvnni": "alderlake", "avx2": "haswell"}
"""Without AVX-512 in the processor that Numba compiles for, none can slip into the code of the others."""

PER_VECTOR = {"vpshufb": 2}
"""Instructions of a popcount by table; all others appear once for each vector of counters."""


def child(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@kernel()
def count_all(words, steps, base, out):
    for k in range(MOST):
        n = simd.start(simd.load_ints(base, WIDTH), ROWS)
        for _ in range(k):
            agree = simd.broadcast_words(words, ROWS, 1) ^ simd.load_bytes(steps, 0)
            n = simd.dot(n, simd.popcount(agree), simd.load_bytes(steps, 4 * WIDTH))
        simd.store_rows(simd.as_floats(simd.settle(n)), out, simd.scale((0, 1, 2), MOST * WIDTH), k * WIDTH)


def test_counting_up_to_the_last_step_is_exact():
    """All bits differ and all scales are the largest ones somewhere: counters of 16 bits come to their end."""
    rng = np.random.default_rng(0)
    width, most = WIDTH, MOST
    words = np.full(5, 2**32 - 1, np.uint32)
    steps = rng.integers(0, 255, 8 * width, np.uint8)
    steps[:8], steps[4 * width : 4 * width + 8] = 0, 254
    base = rng.integers(-(2**20), 2**20, 2 * width, np.int32)
    fast, slow = np.zeros((2, 3 * most * width), np.float32)
    count_all(words, steps, base, fast)
    getattr(count_all, "py_func", count_all)(words, steps, base, slow)
    assert np.array_equal(fast, slow)
    assert fast[(most - 1) * width] == base[width] + 4 * 8 * 254 * (most - 1)


@kernel()
def count_words(words, steps, base, out):
    """Words by `dot_word` and `dot_pair`, from several places on."""
    n = simd.start(simd.load_ints(base, 0), ROWS)
    n = simd.dot_word(n, words, ROWS, 1, simd.load_bytes(steps, 0), simd.load_bytes(steps, 4 * WIDTH))
    signs, more = simd.load_bytes(steps, 8 * WIDTH), simd.load_bytes(steps, 12 * WIDTH)
    n = simd.dot_pair(n, words, ROWS, simd.after(2, n), signs, more, simd.load_bytes(steps, 16 * WIDTH))
    simd.store_rows(simd.as_floats(simd.settle(n)), out, simd.scale((0, 1, 2), WIDTH), 0)


def test_words_and_pairs_count_what_differs():
    """Against the sum over single bits."""
    rng = np.random.default_rng(3)
    words, steps = rng.integers(0, 2**32, 9, np.uint32), rng.integers(0, 255, 20 * WIDTH, np.uint8)
    base = rng.integers(-(2**20), 2**20, WIDTH, np.int32)
    fast, slow = np.zeros((2, 3 * WIDTH), np.float32)
    count_words(words, steps, base, fast)
    getattr(count_words, "py_func", count_words)(words, steps, base, slow)
    assert np.array_equal(fast, slow)
    signs, first, w0, w1, second = steps.reshape(5, WIDTH, 4).astype(int)
    for row, place in enumerate(ROWS):
        got = fast.reshape(3, WIDTH)[row]
        for lane in range(WIDTH):
            want = base[lane]
            for k, bits, scales in ((1, signs, first), (2, w0, second), (3, w1, second)):
                word = int(words[place + k]).to_bytes(4, "little")
                want += sum((word[b] ^ bits[lane, b]).bit_count() * scales[lane, b] for b in range(4))
            assert got[lane] == want


@kernel()
def float_all(floats, tiles, numbers, out, bits, words):
    places = simd.scale(simd.shift(simd.from_(1, ROWS, 3), 1), 2)
    taken = simd.take(numbers, 1, ROWS)
    y = simd.multiply_add(simd.broadcast_floats(floats, taken, 1), simd.load_floats(tiles, WIDTH), simd.no_floats(ROWS))
    simd.prefetch(floats, places, 2)
    y = simd.middle(y, simd.load_rows(floats, places, 2))
    y = simd.prelu(y + simd.load_rows(floats, taken, 0), simd.load_floats(tiles, 0))
    simd.store_rows(y, out, simd.scale(ROWS, WIDTH), 0)
    for i in range(3):
        bits[i] = simd.sign_bits(simd.load_word(floats, i) + simd.load_word(floats, places[i]))
    x, z = simd.load_words(floats, FOUR, 3), simd.load_words(floats, FOUR, 40) + simd.load_word(floats, 2)
    simd.store_signs(simd.evens(x, z), words, FOUR, 0)
    simd.store_signs(simd.odds(x, z), words, FOUR, 1)
    simd.store_sums(simd.no_words(FOUR) + simd.absolute(x) + simd.absolute(z), np.float32(0.1), words, FOUR, 2)
    words[0] = simd.float_bits(floats[0])
    simd.store_rows(simd.broadcast_scales(words, FOUR, 2) + simd.load_floats(tiles, 0), out, FOUR, 4 * WIDTH)


def test_floats_mean_what_they_say():
    rng = np.random.default_rng(1)
    floats, tiles = rng.normal(size=400).astype(np.float32), rng.normal(size=2 * WIDTH).astype(np.float32)
    floats[3], floats[7], floats[4] = 0.0, -0.0, np.nan
    shapes = ((5 * WIDTH + 40, np.float32), (3, np.uint32), (50, np.uint32))
    got, want = ([np.zeros(size, kind) for size, kind in shapes] for _ in range(2))
    numbers = np.array([9, 5, 80, 33, 2], np.uint64)
    float_all(floats, tiles, numbers, *got)
    getattr(float_all, "py_func", float_all)(floats, tiles, numbers, *want)
    for fast, slow in zip(got, want, strict=True):
        np.testing.assert_array_equal(fast, slow)


def test_pairs_of_words_are_exchanged_by_eights():
    """What packing relies on, by hand: byte j of the two words holds the inputs 8 * (0, 4, 2, 6) or (1, 5, 3, 7)."""
    inputs = np.where(np.arange(64) // 8 % 3 == 0, -1.0, 1.0).astype(np.float32)
    x, y = inputs[None, :32], inputs[None, 32:]
    for taken, eights in ((simd.evens, (0, 4, 2, 6)), (simd.odds, (1, 5, 3, 7))):
        assert np.array_equal(taken(x, y)[0].reshape(4, 8), inputs.reshape(8, 8)[list(eights)])


@kernel()
def mix_all(pixels, weights, base, places, out):
    n = simd.repeat(simd.load_ints(base, 0), places)
    for k in range(len(weights) // (4 * WIDTH)):
        n = simd.mix(n, simd.broadcast_pixels(pixels, places, 4 * k + 1), simd.load_bytes(weights, 4 * WIDTH * k))
    simd.store_rows(simd.as_floats(n), out, simd.scale((0, 1, 2), WIDTH), 0)


def test_pixels_times_weights_are_exact_where_they_are_largest():
    rng, steps = np.random.default_rng(2), 9
    pixels = rng.integers(0, 256, 100, np.uint8)
    pixels[20 : 20 + 4 * steps + 1] = 255
    weights = rng.integers(-127, 128, (steps, WIDTH, 4), np.int8)
    weights[:, 0], weights[:, 1] = 127, -127
    base, places = rng.integers(-(2**20), 2**20, WIDTH, np.int32), (20, 3, 50)
    stored = pixels ^ np.uint8(0x80 if BACKEND.signed else 0)
    fast, slow = np.zeros((2, 3 * WIDTH), np.float32)
    mix_all(stored, weights.view(np.uint8).reshape(-1), base, places, fast)
    getattr(mix_all, "py_func", mix_all)(stored, weights.view(np.uint8).reshape(-1), base, places, slow)
    assert np.array_equal(fast, slow)
    less = 128 if BACKEND.signed else 0
    by_hand = [
        base + np.einsum("kwb,kb->w", weights.astype(int), pixels[p + 1 : p + 1 + 4 * steps].reshape(-1, 4) - less)
        for p in np.array(places)
    ]
    assert np.array_equal(fast.reshape(3, WIDTH), by_hand)


def test_the_best_backend_that_the_processor_has_is_taken():
    names = [choose(b.requires | {"sse2"}, environment={}).name for b in BACKENDS]
    assert names == [b.name for b in BACKENDS]
    assert choose(set(), environment={}).name == "portable"
    assert choose(set(), environment={"HADANET_SIMD": "avx2"}).name == "avx2"
    with pytest.raises(HadanetError, match="HADANET_SIMD=mmx: there is no such backend; choose one of avx512, "):
        choose(set(), environment={"HADANET_SIMD": "mmx"})


def test_a_tile_fills_whole_words_and_scales_fit_the_counters():
    assert all(WORD_BITS % b.width == 0 for b in BACKENDS)


@pytest.mark.parametrize("backend", [b.name for b in RUNNABLE])
def test_every_backend_gives_the_same_bits_and_floats(backend):
    here = child("-m", "tests.simd_child", "features", HADANET_SIMD="")
    there = child("-m", "tests.simd_child", "features", HADANET_SIMD=backend)
    assert there.split()[0] == backend
    assert there.split()[1] == here.split()[1]


@pytest.mark.parametrize("backend", [b.name for b in RUNNABLE if b is not BACKEND])
def test_the_property_tests_hold_for_every_backend(backend):
    child("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/property/test_kernels.py", HADANET_SIMD=backend)


def loops(text):
    """The bodies of all innermost loops of assembly: from a label to a jump back to it, with none in between."""
    lines = [line.strip() for line in text.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.L\w+:", line)}
    for i, line in enumerate(lines):
        jump = re.fullmatch(r"j\w+\s+(\.L\w+)", line)
        if jump and labels.get(jump[1], i) < i:
            body = lines[labels[jump[1]] + 1 : i]
            if not any(re.fullmatch(r"\.L\w+:", other) for other in body):
                yield body


@pytest.mark.parametrize("backend", [b for b in RUNNABLE if b.name in HOT], ids=lambda b: b.name)
def test_the_hot_loop_has_the_expected_instructions_and_spills_nothing(backend, tmp_path):
    """The innermost loops over the words of a run, one or two: one product for each counter, none of them in memory."""
    text = child(
        *("-m", "tests.simd_child", "assembly"),
        HADANET_SIMD=backend.name,
        NUMBA_CPU_NAME=CPU[backend.name],
        NUMBA_CACHE_DIR=str(tmp_path),  # code from the cache has no text
    )
    popcount, dot = HOT[backend.name]
    counters = backend.rows * backend.columns

    def uses(body, instruction):
        return sum(line.startswith(instruction) for line in body)

    hot = [
        body
        for body in loops(text)
        if uses(body, dot) == counters and uses(body, popcount) and not uses(body, "vcvtdq2ps")
    ]
    per_counter = {uses(body, popcount) // (counters * PER_VECTOR.get(popcount, 1)) for body in hot}
    assert 2 in per_counter, f"no loop over pairs of words has {counters} of {dot}"
    for body in hot:
        assert uses(body, popcount) % (counters * PER_VECTOR.get(popcount, 1)) == 0
        assert [line for line in body if re.search(r"%[xyz]mm\d+, -?\d*\(%rsp", line)] == []
        if backend.name == "avx512":
            assert uses(body, "vpxor") == uses(body, popcount)
            assert [line for line in body if re.search(r"\(%rsp.*%[xyz]mm", line)] == []
