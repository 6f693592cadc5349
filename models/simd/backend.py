"""What an instruction set has to offer: the two operations on which they differ, emitted as LLVM IR.

Everything else (load, store, broadcast, xor, convert, multiply-add) is the same vector IR everywhere and stands in
`models.simd.values`. A backend with a dot product overrides `popcount` and `dot` only; one that has to count in
narrower lanes also says what its counters are.
"""

from typing import Any

from llvmlite import ir

I8, I16, I32, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()

UNLIMITED = 1 << 30
"""`steps` of a backend whose counters are 32 bits wide."""


class Backend:
    """One way to count. `builder` is llvmlite's IRBuilder; byte vectors are <bytes x i8>, sums <bytes/4 x i32>.

    name: what HADANET_SIMD calls it; bytes: width of a vector; requires: LLVM's names of the CPU features it needs;
    rows, columns: how many rows of activations meet how many vectors of weights in one pass, so that the counters
    and two vectors per column stay in registers; steps: how often `dot` may be applied before `settle`, with counts up
    to 8; signed: `mix` takes pixels less 128; in_order: one row is counted after the other, and LLVM may not mix them.

    A counter is one LLVM value of type `counter`; here, 32-bit lanes that `dot` adds to directly.
    """

    name: str
    bytes: int
    requires: frozenset[str]
    rows: int
    columns: int
    steps: int = UNLIMITED
    signed: bool = False
    in_order: bool = False

    @property
    def lanes(self) -> int:
        """32-bit lanes of a vector."""
        return self.bytes // 4

    @property
    def width(self) -> int:
        """Output channels of one pass: the lanes of all columns."""
        return self.columns * self.lanes

    @property
    def byte_vector(self) -> ir.Type:
        """<bytes x i8>."""
        return ir.VectorType(I8, self.bytes)

    @property
    def sums(self) -> ir.Type:
        """<bytes/4 x i32>."""
        return ir.VectorType(I32, self.lanes)

    @property
    def counter(self) -> ir.Type:
        """Type of a counter."""
        return self.sums

    def popcount(self, builder: ir.IRBuilder, x: Any) -> Any:
        """One bits of each byte: a byte vector of 0..8."""
        raise NotImplementedError

    def start(self, builder: ir.IRBuilder, total: Any) -> Any:
        """A counter that stands at `total` (sums)."""
        return total

    def dot(self, builder: ir.IRBuilder, counter: Any, counts: Any, scales: Any) -> Any:
        """The counter after counts * scales were added, four neighbouring bytes to each lane.

        counts: bytes of 0..8; scales: unsigned bytes of 0..254.
        """
        raise NotImplementedError

    def mix(self, builder: ir.IRBuilder, sums: Any, pixels: Any, weights: Any) -> Any:
        """The sums after pixels * weights were added, four neighbouring bytes to each lane.

        pixels: bytes 0..255, or -128..127 where `signed`; weights: bytes -127..127. Here in 16-bit lanes, even bytes
        and odd ones: for backends without an instruction for it.
        """
        wide = ir.VectorType(I16, self.bytes // 2)
        pixels, weights = builder.bitcast(pixels, wide), builder.bitcast(weights, wide)
        eight, low = splat(wide, 8), splat(wide, 0xFF)
        even = builder.and_(pixels, low), builder.ashr(builder.shl(weights, eight), eight)
        odd = builder.lshr(pixels, eight), builder.ashr(weights, eight)
        for x, w in (even, odd):
            sums = builder.add(sums, self.pair_products(builder, x, w))
        return sums

    def pair_products(self, builder: ir.IRBuilder, x: Any, w: Any) -> Any:
        """x * w of signed 16-bit lanes that fit in 16 bits, two neighbours added to a 32-bit lane (sums)."""
        both, half = builder.bitcast(builder.mul(x, w), self.sums), splat(self.sums, 16)
        return builder.add(builder.ashr(builder.shl(both, half), half), builder.ashr(both, half))

    def settle(self, builder: ir.IRBuilder, counter: Any) -> Any:
        """The same counter, ready for `steps` more dots."""
        return counter

    def total(self, builder: ir.IRBuilder, counter: Any) -> Any:
        """What a settled counter stands at (sums)."""
        return counter


def declare(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Type) -> Any:
    """The LLVM intrinsic of this name, declared in the builder's module once."""
    module = builder.module
    if name in module.globals:
        return module.globals[name]
    return ir.Function(module, ir.FunctionType(result, arguments), name)


def splat(vector: ir.Type, value: int) -> ir.Constant:
    """A constant vector with `value` in every lane."""
    return ir.Constant(vector, [value] * vector.count)
