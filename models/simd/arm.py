"""The instruction sets of 64-bit Arm: NEON with the dot product (Cortex-A76, A78AE), NEON without (A72, A57, A53)."""

from pathlib import Path
from typing import Any

from llvmlite import binding, ir

from models.simd.backend import I8, I16, Backend, declare


def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """LLVM's names of CPU features that LLVM does not report on Linux, from the kernel's names in `cpuinfo`.

    Nothing for a processor that LLVM has no name for: Numba then compiles for a generic one, without these features.
    """
    try:
        words = cpuinfo.read_text().split()
    except OSError:
        return set()
    return {"dotprod"} if "asimddp" in words and binding.get_host_cpu_name() != "generic" else set()


class NeonDot(Backend):
    """`cnt` and `udot`. With 3 rows, the counters, a pair's counts and the weights all fit in registers."""

    name = "neon-dot"
    bytes = 16
    requires = frozenset({"neon", "dotprod"})
    rows, columns = 3, 4
    signed = True

    def popcount(self, builder: ir.IRBuilder, x: Any) -> Any:
        """As `Backend.popcount`."""
        return builder.call(declare(builder, "llvm.ctpop.v16i8", x.type, x.type), [x])

    def dot(self, builder: ir.IRBuilder, counter: Any, counts: Any, scales: Any) -> Any:
        """As `Backend.dot`."""
        udot = declare(builder, "llvm.aarch64.neon.udot.v4i32.v16i8", self.sums, self.sums, counts.type, scales.type)
        return builder.call(udot, [counter, counts, scales])

    def mix(self, builder: ir.IRBuilder, sums: Any, pixels: Any, weights: Any) -> Any:
        """As `Backend.mix`."""
        sdot = declare(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", self.sums, self.sums, pixels.type, weights.type)
        return builder.call(sdot, [sums, pixels, weights])


class Neon(NeonDot):
    """`cnt`, and `umlal` into 16-bit counters.

    A counter is what was settled, and what was not: each byte of a vector has a 16-bit lane. Two of them are added
    before they are widened, so steps * 2 * 8 * 254 < 2**16.
    """

    name = "neon"
    requires = frozenset({"neon"})
    rows, columns = 4, 2
    steps = 16
    mix = Backend.mix
    signed = False

    @property
    def counter(self) -> ir.Type:
        """{settled <4 x i32>, open <8 x i16> of the lower bytes, of the upper bytes}."""
        wide = ir.VectorType(I16, 8)
        return ir.LiteralStructType([self.sums, wide, wide])

    def start(self, builder: ir.IRBuilder, total: Any) -> Any:
        """As `Backend.start`."""
        return builder.insert_value(ir.Constant(self.counter, None), total, 0)

    def dot(self, builder: ir.IRBuilder, counter: Any, counts: Any, scales: Any) -> Any:
        """As `Backend.dot`."""
        half, wide = ir.VectorType(I8, 8), ir.VectorType(I16, 8)
        umull = declare(builder, "llvm.aarch64.neon.umull.v8i16", wide, half, half)
        for part in range(2):
            eight = ir.Constant(ir.VectorType(ir.IntType(32), 8), [8 * part + i for i in range(8)])
            x, y = (builder.shuffle_vector(v, v, eight) for v in (counts, scales))
            open_ = builder.add(builder.extract_value(counter, 1 + part), builder.call(umull, [x, y]))
            counter = builder.insert_value(counter, open_, 1 + part)
        return counter

    def settle(self, builder: ir.IRBuilder, counter: Any) -> Any:
        """As `Backend.settle`."""
        settled, low, high = (builder.extract_value(counter, i) for i in range(3))
        pairs = declare(builder, "llvm.aarch64.neon.addp.v8i16", low.type, low.type, low.type)
        widen = declare(builder, "llvm.aarch64.neon.uaddlp.v4i32.v8i16", self.sums, low.type)
        fours = builder.call(widen, [builder.call(pairs, [low, high])])
        return self.start(builder, builder.add(settled, fours))

    def total(self, builder: ir.IRBuilder, counter: Any) -> Any:
        """As `Backend.total`."""
        return builder.extract_value(counter, 0)


BACKENDS = (NeonDot(), Neon())
