"""The instruction sets of x86: AVX-512 with BITALG and VNNI, AVX2 with VNNI, AVX2."""

from typing import Any

from llvmlite import ir

from models.simd.backend import I16, Backend, declare, splat
from models.simd.portable import pairs

NIBBLE_ONES = tuple(n.bit_count() for n in range(16))


class Avx512(Backend):
    """`vpopcntb` and `vpdpbusd` on 512 bits. With 5 rows, counters and the floats they go to both fit in registers.

    Left to itself, LLVM emits all exclusive ors of a step, then all counts: a tenth slower, and it spills.
    """

    name = "avx512"
    bytes = 64
    requires = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512bitalg", "avx512vnni"})
    rows, columns = 5, 2
    in_order = True

    def popcount(self, builder: ir.IRBuilder, x: Any) -> Any:
        """As `Backend.popcount`."""
        return builder.call(declare(builder, "llvm.ctpop.v64i8", x.type, x.type), [x])

    def dot(self, builder: ir.IRBuilder, counter: Any, counts: Any, scales: Any) -> Any:
        """As `Backend.dot`. The instruction takes unsigned bytes (the scales) times signed ones (the counts)."""
        return _vpdpbusd(self, builder, "llvm.x86.avx512.vpdpbusd.512", counter, scales, counts)

    def mix(self, builder: ir.IRBuilder, sums: Any, pixels: Any, weights: Any) -> Any:
        """As `Backend.mix`."""
        return _vpdpbusd(self, builder, "llvm.x86.avx512.vpdpbusd.512", sums, pixels, weights)


class Avx2(Backend):
    """A popcount by table lookup of both nibbles, and `vpmaddubsw` into 16-bit counters.

    A counter is a pair of what was settled in 32 bits and what was not in 16: steps * 2 * 8 * 254 < 2**16.
    """

    name = "avx2"
    bytes = 32
    requires = frozenset({"avx2", "fma"})
    rows, columns = 4, 2
    steps = 16

    @property
    def counter(self) -> ir.Type:
        """{settled <8 x i32>, open <16 x i16>}."""
        return ir.LiteralStructType([self.sums, ir.VectorType(I16, self.bytes // 2)])

    def popcount(self, builder: ir.IRBuilder, x: Any) -> Any:
        """As `Backend.popcount`."""
        vector = self.byte_vector
        table = ir.Constant(vector, list(NIBBLE_ONES * (self.bytes // 16)))
        low = splat(vector, 0x0F)
        wide = ir.VectorType(I16, self.bytes // 2)
        shifted = builder.bitcast(builder.lshr(builder.bitcast(x, wide), splat(wide, 4)), vector)
        lookup = declare(builder, "llvm.x86.avx2.pshuf.b", vector, vector, vector)
        return builder.add(
            builder.call(lookup, [table, builder.and_(x, low)]),
            builder.call(lookup, [table, builder.and_(shifted, low)]),
        )

    def start(self, builder: ir.IRBuilder, total: Any) -> Any:
        """As `Backend.start`."""
        counter = builder.insert_value(ir.Constant(self.counter, ir.Undefined), total, 0)
        return builder.insert_value(counter, ir.Constant(self.counter.elements[1], None), 1)

    def dot(self, builder: ir.IRBuilder, counter: Any, counts: Any, scales: Any) -> Any:
        """As `Backend.dot`. The instruction takes unsigned bytes (the scales) times signed ones (the counts)."""
        vector, wide = self.byte_vector, self.counter.elements[1]
        multiply = declare(builder, "llvm.x86.avx2.pmadd.ub.sw", wide, vector, vector)
        count = builder.add(builder.extract_value(counter, 1), builder.call(multiply, [scales, counts]))
        return builder.insert_value(counter, count, 1)

    def settle(self, builder: ir.IRBuilder, counter: Any) -> Any:
        """As `Backend.settle`."""
        settled = builder.extract_value(counter, 0)
        return self.start(builder, builder.add(settled, pairs(builder, builder.extract_value(counter, 1), self.sums)))

    def total(self, builder: ir.IRBuilder, counter: Any) -> Any:
        """As `Backend.total`."""
        return builder.extract_value(counter, 0)

    def pair_products(self, builder: ir.IRBuilder, x: Any, w: Any) -> Any:
        """As `Backend.pair_products`."""
        return builder.call(declare(builder, "llvm.x86.avx2.pmadd.wd", self.sums, x.type, w.type), [x, w])


class AvxVnni(Avx2):
    """AVX2 with the dot product of AVX-VNNI."""

    name = "avxvnni"
    requires = frozenset({"avx2", "fma", "avxvnni"})
    rows, columns, steps = 4, 2, Backend.steps
    counter, start, settle, total = Backend.counter, Backend.start, Backend.settle, Backend.total

    def dot(self, builder: ir.IRBuilder, counter: Any, counts: Any, scales: Any) -> Any:
        """As `Backend.dot`."""
        return _vpdpbusd(self, builder, "llvm.x86.avx512.vpdpbusd.256", counter, scales, counts)

    def mix(self, builder: ir.IRBuilder, sums: Any, pixels: Any, weights: Any) -> Any:
        """As `Backend.mix`."""
        return _vpdpbusd(self, builder, "llvm.x86.avx512.vpdpbusd.256", sums, pixels, weights)


def _vpdpbusd(own: Backend, builder: ir.IRBuilder, name: str, counter: Any, unsigned: Any, signed: Any) -> Any:
    """The instruction under its first LLVM signature, bytes in 32-bit lanes, which newer versions understand too."""
    sums = own.sums
    bytes_ = (builder.bitcast(x, sums) for x in (unsigned, signed))
    return builder.call(declare(builder, name, sums, sums, sums, sums), [counter, *bytes_])


BACKENDS = (Avx512(), AvxVnni(), Avx2())
