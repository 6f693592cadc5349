"""`python -m benchmarks ports`: how many cycles instructions take side by side on this processor, and what follows.

Instructions that take turns on the same execution units add up, others do not: so pairs of them say which units they
share. Then the inner loops of counting, written by hand for 5 rows and 2 columns, with all operands in the nearest
cache and nothing else to do: what is the least that a 32-bit word and a vector of 16 channels (512 products) can cost.

cycles: for an instruction, or for a word and a vector; products_per_cycle: 512 / cycles for the loops. The clock is
measured with a chain of additions. Only for processors with AVX-512, BITALG and VNNI: others give no rows.
"""

import ctypes
import time
from collections.abc import Callable

import llvmlite.binding as llvm

from models.simd import x86
from models.simd.choice import features

ROWS, COLUMNS = 5, 2
TURNS, ITERATIONS = 40, 20_000
CHAIN = 100
PRODUCTS = 512
"""Of a word and a vector: 32 inputs times 16 channels."""
AREA_BYTES = 1 << 14
"""What the loops read, all zeros."""

TWO_OPERANDS = ("vpopcntb", "vcvtdq2ps")
PAIRS = (
    ("vpopcntb", "vpopcntb"),
    ("vpdpbusd", "vpdpbusd"),
    ("vpxord", "vpxord"),
    ("vpaddb", "vpaddb"),
    ("vpopcntb", "vpdpbusd"),
    ("vpopcntb", "vpmaddubsw"),
    ("vpopcntb", "vfmadd231ps"),
    ("vpopcntb", "vpshufb"),
    ("vpopcntb", "vpxord"),
    ("vpopcntb", "vpaddb"),
    ("vpopcntb", "vcvtdq2ps"),
    ("vpopcntb", "vaddps"),
)


def zmm(number: int) -> str:
    """A register, as LLVM's inline assembly is given it."""
    return f"%zmm{number}"


def side_by_side(first: str, second: str) -> list[str]:
    """Eight of each, in turns, that wait for nothing."""
    lines = []
    for i in range(8):
        for name, target in ((first, i), (second, 8 + i)):
            sources = zmm(16) if name in TWO_OPERANDS else f"{zmm(16)}, {zmm(17)}"
            lines.append(f"{name} {sources}, {zmm(target)}")
    return lines


def loop(words: int, steps: Callable[[int, int, list[str]], list[str]]) -> list[str]:
    """`steps(word, column, registers)` for all rows; of each step first all columns, then the next step of the row."""
    lines = []
    for word in range(words):
        for row in range(ROWS):
            columns = []
            for c in range(COLUMNS):
                counter = row * COLUMNS + c
                free = [zmm(ROWS * COLUMNS + 5 * c + i) for i in range(5)]
                at = [f"{4 * (row + word + i)}($0){{1to16}}" for i in range(4)]
                columns.append(steps(word, c, [zmm(counter), *free, *at]))
            lines += [line for step in zip(*columns, strict=True) for line in step]
    return lines


WEIGHTS, SCALES, BEGIN, MASK, TABLE = 20, 24, 28, 30, 31
"""Registers: weights of a word are WEIGHTS + column, scales SCALES + column; what a sum begins at."""


def plain(word: int, c: int, r: list[str]) -> list[str]:
    """No scales: the one bits of each lane."""
    n, x, at = r[0], r[1], r[6]
    return [f"vpxord {at}, {zmm(WEIGHTS + c)}, {x}", f"vpopcntd {x}, {x}", f"vpaddd {x}, {n}, {n}"]


def single(word: int, c: int, r: list[str]) -> list[str]:
    """A scale for each byte."""
    n, x, at = r[0], r[1], r[6]
    return [f"vpxord {at}, {zmm(WEIGHTS + c)}, {x}", f"vpopcntb {x}, {x}", f"vpdpbusd {x}, {zmm(SCALES + c)}, {n}"]


def by_table(word: int, c: int, r: list[str]) -> list[str]:
    """The same, but the first of seven words is counted by looking up both halves of each byte."""
    n, x, y, at = r[0], r[1], r[2], r[6]
    if word:
        return single(word, c, r)
    low = [f"vpsrlw $$4, {x}, {y}", f"vpandd {zmm(MASK)}, {x}, {x}", f"vpandd {zmm(MASK)}, {y}, {y}"]
    found = [f"vpshufb {x}, {zmm(TABLE)}, {x}", f"vpshufb {y}, {zmm(TABLE)}, {y}", f"vpaddb {x}, {y}, {x}"]
    return [f"vpxord {at}, {zmm(WEIGHTS + c)}, {x}", *low, *found, f"vpdpbusd {x}, {zmm(SCALES + c)}, {n}"]


def pair(word: int, c: int, r: list[str]) -> list[str]:
    """Two words with the same scales: what the kernels do."""
    n, x, y, at, more = r[0], r[1], r[2], r[6], r[7]
    counts = [f"vpopcntb {x}, {x}", f"vpopcntb {y}, {y}", f"vpaddb {x}, {y}, {x}"]
    differ = [f"vpxord {at}, {zmm(WEIGHTS + c)}, {x}", f"vpxord {more}, {zmm(WEIGHTS + 2 + c)}, {y}"]
    return [*differ, *counts, f"vpdpbusd {x}, {zmm(SCALES + c)}, {n}"]


def folded_pair(word: int, c: int, r: list[str]) -> list[str]:
    """A pair, and then an activation scale: the sum goes to floats. As in a layer of 64 channels."""
    n, x, y, total, at = r[0], r[1], r[2], r[3], r[6]
    first = pair(word, c, [total, x, y, *r[3:]])
    return [
        f"vmovdqa64 {zmm(BEGIN)}, {total}",
        *first,
        f"vcvtdq2ps {total}, {total}",
        f"vfmadd231ps {at}, {total}, {n}",
    ]


def folded_word(word: int, c: int, r: list[str]) -> list[str]:
    """A word, and then an activation scale: one for 32 channels."""
    n, total, at = r[0], r[3], r[6]
    first = [f"vmovdqa64 {zmm(BEGIN)}, {total}", *single(word, c, [total, *r[1:]])]
    return [*first, f"vcvtdq2ps {total}, {total}", f"vfmadd231ps {at}, {total}, {n}"]


def carried(word: int, c: int, r: list[str]) -> list[str]:
    """Three words with the same scales by carry-save: the parity (of parities stored beforehand), and the carry."""
    n, x, y, parity = r[:4]
    differ = [f"vpxord {r[6 + i]}, {zmm(WEIGHTS + c)}, {z}" for i, z in enumerate((x, y, parity))]
    counts = [f"vpternlogd $$0x71, {parity}, {y}, {x}", f"vpopcntb {parity}, {parity}", f"vpopcntb {x}, {x}"]
    products = [f"vpdpbusd {parity}, {zmm(SCALES + c)}, {n}", f"vpdpbusd {x}, {zmm(SCALES + 2 + c)}, {n}"]
    return [*differ, *counts, *products]


LOOPS = (
    ("no scales", 1, 1, plain),
    ("a scale for 8 inputs", 1, 1, single),
    ("the same, one word of seven by table", 7, 7, by_table),
    ("a scale for 16 inputs: pairs", 1, 2, pair),
    ("a scale for 24 or more: carry-save, not built", 1, 3, carried),
    ("pairs, an activation scale for 64", 1, 2, folded_pair),
    ("words, an activation scale for 32", 1, 1, folded_word),
)
"""Name, words that `loop` is asked for, words that are counted, steps."""


class Timer:
    """Compiles assembly, and times it."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten()
        )
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._area = (ctypes.c_uint8 * (AREA_BYTES + 64))()
        self._count = 0

    def seconds(self, lines: list[str]) -> float:
        """Of one execution of the lines: the best of some turns. `$0` is the address of the area."""
        name = f"loop{self._count}"
        self._count += 1
        clobbers = ",".join(f"~{{{register}}}" for register in ("rax", "rcx", *(f"zmm{i}" for i in range(32))))
        body = "\\0A".join([".p2align 6", "1:", *lines, "dec %rcx", "jnz 1b"])
        text = f"""define void @{name}(i8* %area, i64 %n) {{
            call void asm sideeffect "mov $1, %rcx\\0A{body}", "r,r,{clobbers},~{{memory}}"(i8* %area, i64 %n)
            ret void
        }}"""
        self._engine.add_module(llvm.parse_assembly(text))
        self._engine.finalize_object()
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(self._engine.get_function_address(name))
        area = ctypes.addressof(self._area) + 63 & ~63
        best = float("inf")
        for _ in range(TURNS):
            started = time.perf_counter()
            run(area, ITERATIONS)
            best = min(best, time.perf_counter() - started)
        return best / ITERATIONS


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """A row for each pair of instructions and each loop; `quick` takes the loops only."""
    if not x86.BACKENDS[0].requires <= features():
        return []
    timer = Timer()
    clock = CHAIN / timer.seconds(["add $$1, %rax"] * CHAIN)
    table: list[dict[str, object]] = []
    for first, second in () if quick else PAIRS:
        progress(f"{first}, {second}")
        cycles = timer.seconds(side_by_side(first, second)) * clock / 16
        name = first if first == second else f"{first} and {second}"
        table.append({"what": name, "cycles": cycles, "products_per_cycle": None})
    for name, words, counted, steps in LOOPS:
        progress(name)
        cycles = timer.seconds(loop(words, steps)) * clock / (ROWS * COLUMNS * counted)
        table.append({"what": name, "cycles": cycles, "products_per_cycle": PRODUCTS / cycles})
    return table
