"""Vectors in LLVM's own words: correct on every processor that LLVM knows, fast on none."""

from typing import Any

from llvmlite import ir

from models.simd.backend import I16, Backend, declare, splat


class Portable(Backend):
    """128 bits, `llvm.ctpop`, and products of bytes in 16-bit lanes."""

    name = "portable"
    bytes = 16
    requires: frozenset[str] = frozenset()
    rows, columns = 2, 2

    def popcount(self, builder: ir.IRBuilder, x: Any) -> Any:
        """As `Backend.popcount`."""
        return builder.call(declare(builder, f"llvm.ctpop.v{self.bytes}i8", x.type, x.type), [x])

    def dot(self, builder: ir.IRBuilder, counter: Any, counts: Any, scales: Any) -> Any:
        """As `Backend.dot`: 2 * 8 * 254 fits in 16 bits."""
        wide = ir.VectorType(I16, self.bytes // 2)
        low, eight = splat(wide, 0xFF), splat(wide, 8)
        counts, scales = builder.bitcast(counts, wide), builder.bitcast(scales, wide)
        even = builder.mul(builder.and_(counts, low), builder.and_(scales, low))
        odd = builder.mul(builder.lshr(counts, eight), builder.lshr(scales, eight))
        return builder.add(counter, pairs(builder, builder.add(even, odd), self.sums))


def pairs(builder: ir.IRBuilder, halves: Any, sums: ir.Type) -> Any:
    """The sum of both unsigned 16-bit halves of each 32-bit lane."""
    both = builder.bitcast(halves, sums)
    low = builder.and_(both, splat(sums, 0xFFFF))
    return builder.add(low, builder.lshr(both, splat(sums, 16)))


PORTABLE = Portable()
