"""The Arm backends without an Arm machine: when they are chosen, and what their hot loops consist of."""

from collections import Counter

import pytest
from llvmlite import binding

from benchmarks.arm import products
from benchmarks.arm_assembly import assembly, hot_loop, mnemonic, spills
from models.simd import choose
from models.simd.arm import BACKENDS, Neon, features

A76 = "processor : 0\nFeatures : fp asimd aes crc32 atomics asimdhp asimddp\nCPU part : 0xd0b\n"
A72 = "processor : 0\nFeatures : fp asimd aes crc32\nCPU part : 0xd08\n"
TARGETS = (("cortex-a72", "neon"), ("cortex-a76", "neon-dot"), ("neoverse-n2", "neon-dot"))
LARGEST = 8 * 254
"""A byte's count times the largest scale."""


@pytest.mark.parametrize(
    ("text", "name", "want"),
    [
        (A76, "cortex-a76", {"dotprod"}),
        (A72, "cortex-a72", set()),
        (A76, "generic", set()),
        (None, "cortex-a76", set()),
    ],
)
def test_the_kernel_knows_of_the_dot_product(tmp_path, monkeypatch, text, name, want):
    """LLVM itself does not report it; a processor that LLVM cannot name is compiled for without it."""
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: name)
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    assert features(cpuinfo) == want


def test_the_dot_product_is_chosen_where_it_is_there():
    assert choose({"neon", "crc", "dotprod"}, environment={}).name == "neon-dot"
    assert choose({"neon", "crc"}, environment={}).name == "neon"
    assert choose({"crc"}, environment={}).name == "portable"


def test_counters_of_sixteen_bits_do_not_overflow():
    """Two of them are added before they are widened."""
    assert 2 * Neon.steps * LARGEST < 2**16 <= 2 * (Neon.steps + 1) * LARGEST


def counted(loop):
    return Counter(mnemonic("\t" + line) for line in loop)


@pytest.mark.parametrize(("cpu", "simd"), TARGETS)
def test_the_hot_loop_is_the_formula_and_nothing_else(cpu, simd):
    """Each vector of a pair of words: two xors and counts, their sum, one multiply-add (two widening ones without dot
    product); no spill, no move."""
    backend = next(b for b in BACKENDS if b.name == simd)
    vectors = backend.rows * backend.columns
    loop = hot_loop(assembly(cpu, simd)["binary"])
    seen = counted(loop)
    want = {"eor": 2 * vectors, "cnt": 2 * vectors}
    want |= {"udot": vectors} if simd == "neon-dot" else {"umlal": vectors, "umlal2": vectors}
    assert {name: seen[name] for name in want} == want
    assert seen["ld1r"] == 2 * backend.rows  # each word of activations is loaded and repeated once
    assert 2 * seen["ldp"] + seen["ldr"] == 3 * backend.columns  # two words of weights and their scales, once
    on_vectors = [line for line in loop if any(f" {r}{n}" in line.replace("{", " ") for r in "vq" for n in range(32))]
    added = [line for line in on_vectors if line.startswith("add")]
    assert len(added) == vectors
    assert len(on_vectors) == sum(want.values()) + vectors + seen["ld1r"] + seen["ldp"] + seen["ldr"], loop
    assert spills(loop) == []
    assert products(loop) == 2 * vectors * 8 * backend.bytes


@pytest.mark.parametrize(("cpu", "simd"), TARGETS)
def test_what_it_is_compared_with_is_as_tight(cpu, simd):
    backend = next(b for b in BACKENDS if b.name == simd)
    vectors = backend.rows * backend.columns
    text = assembly(cpu, simd)
    loops = {name: hot_loop(text[name]) for name in ("float", "int8")}
    assert counted(loops["float"])["fmla"] == vectors
    assert products(loops["float"]) == 4 * vectors
    assert counted(loops["int8"])["sdot" if simd == "neon-dot" else "sadalp"] == vectors
    assert products(loops["int8"]) == 16 * vectors
    assert spills(loops["float"]) == spills(loops["int8"]) == []


LISTING = """
outer:
\t.p2align\t4
.LBB0_1:
\tmov\tx1, x2
.LBB0_2:
\tldr\tq0, [sp, #16]
\tfmla\tv1.4s, v2.4s, v0.s[0]
\tcbnz\tx1, .LBB0_2
\tfmla\tv1.4s, v2.4s, v0.s[0]
\tfmla\tv1.4s, v2.4s, v0.s[0]
\tb.ne\t.LBB0_1
.LBB0_3:
\tadd\tx0, x0, #1
\tb.hi\t.LBB0_3
"""


def test_the_innermost_loop_is_found():
    loop = hot_loop(LISTING)
    assert [line.split()[0] for line in loop] == ["ldr", "fmla", "cbnz"]
    assert spills(loop) == ["ldr\tq0, [sp, #16]"]
