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
    and two vectors per column stay in registers; steps: how often `dot` may be applied before `settle`.

    A counter is one LLVM value of type `counter`; here, 32-bit lanes that `dot` adds to directly.
    """

    name: str
    bytes: int
    requires: frozenset[str]
    rows: int
    columns: int
    steps: int = UNLIMITED

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
