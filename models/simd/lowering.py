# mypy: disable-error-code="no-untyped-call"
"""What `models.simd.values` says, for Numba: how each function is typed, and the LLVM IR that it becomes.

Here values themselves, and what is done to each vector alone; `counting`, `rows` and `words` teach the rest.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models as datamodels
from numba.extending import lower_builtin, register_model, type_callable

from models.simd.backend import F32, I32, declare
from models.simd.choice import BACKEND
from models.simd.values import (
    absolute,
    as_floats,
    broadcast_floats,
    broadcast_pixels,
    broadcast_scales,
    broadcast_words,
    dot,
    float_bits,
    load_bytes,
    load_floats,
    load_ints,
    middle,
    mix,
    multiply_add,
    popcount,
    prelu,
    settle,
)


class Vectors(types.Type):
    """Numba's type of a value: kind is "bytes", "ints", "floats" or "counters"."""

    def __init__(self, kind: str, rows: int, columns: int) -> None:
        self.kind, self.rows, self.columns = kind, rows, columns
        super().__init__(name=f"{kind}[{rows}x{columns}, {BACKEND.name}]")


def vector_type(kind: str) -> ir.Type:
    """The LLVM type of one vector of a value."""
    if kind == "floats":
        return ir.VectorType(F32, BACKEND.lanes)
    return {"bytes": BACKEND.byte_vector, "ints": BACKEND.sums, "counters": BACKEND.counter}[kind]


@register_model(Vectors)
class _Model(datamodels.PrimitiveModel):
    def __init__(self, manager: Any, own: Vectors) -> None:
        super().__init__(manager, own, ir.ArrayType(vector_type(own.kind), own.rows * own.columns))


def unpack(builder: ir.IRBuilder, own: Vectors, value: Any) -> list[Any]:
    """The vectors of a value, row after row."""
    return [builder.extract_value(value, i) for i in range(own.rows * own.columns)]


def pack(context: Any, builder: ir.IRBuilder, own: Vectors, vectors: Iterable[Any]) -> Any:
    """The value of these vectors."""
    value = ir.Constant(context.get_value_type(own), ir.Undefined)
    for i, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, i)
    return value


def rows_of(own: Vectors, value: Any, builder: ir.IRBuilder) -> list[list[Any]]:
    """The vectors of each row."""
    flat = unpack(builder, own, value)
    return [flat[r * own.columns : (r + 1) * own.columns] for r in range(own.rows)]


def elementwise(function: Any, kinds: tuple[str, ...], result: str, emit: Callable[..., Any]) -> None:
    """Teach Numba a function that acts on each vector alone: emit(builder, *vectors). Shapes broadcast."""

    def typed(*args: Any) -> Any:
        if tuple(a.kind if isinstance(a, Vectors) else None for a in args) != kinds:
            return None
        rows, columns = ({getattr(a, axis) for a in args} - {1} or {1} for axis in ("rows", "columns"))
        return Vectors(result, *rows, *columns) if len(rows) == len(columns) == 1 else None

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        own = signature.return_type
        parts = [(a, unpack(builder, a, v)) for a, v in zip(signature.args, args, strict=True)]
        made = (
            emit(builder, *(flat[r % a.rows * a.columns + c % a.columns] for a, flat in parts))
            for r in range(own.rows)
            for c in range(own.columns)
        )
        return pack(context, builder, own, made)

    type_callable(function)(lambda context: _with_arity(typed, len(kinds)))
    lower_builtin(function, *[Vectors] * len(kinds))(lower)


def _with_arity(typer: Callable[..., Any], arity: int) -> Callable[..., Any]:
    """Numba reads the number of arguments from the signature."""
    arities: dict[int, Callable[..., Any]] = {
        1: lambda x: typer(x),
        2: lambda x, y: typer(x, y),
        3: lambda x, y, z: typer(x, y, z),
    }
    return arities[arity]


def _fma(builder: ir.IRBuilder, x: Any, y: Any, z: Any) -> Any:
    return builder.call(declare(builder, f"llvm.fma.v{x.type.count}f32", x.type, x.type, x.type, x.type), [x, y, z])


def _as_floats(builder: ir.IRBuilder, x: Any) -> Any:
    """Of integers and of counters; these differ in type only where a backend has counters of its own."""
    total = x if x.type == BACKEND.sums else BACKEND.total(builder, x)
    return builder.sitofp(total, vector_type("floats"))


def _prelu(builder: ir.IRBuilder, x: Any, slope: Any) -> Any:
    negative = builder.fcmp_ordered("<", x, ir.Constant(x.type, None))
    return builder.select(negative, builder.fmul(x, slope), x)


def _absolute(builder: ir.IRBuilder, x: Any) -> Any:
    return builder.call(declare(builder, f"llvm.fabs.v{x.type.count}f32", x.type, x.type), [x])


def _add(builder: ir.IRBuilder, x: Any, y: Any) -> Any:
    return builder.fadd(x, y) if x.type.element == F32 else builder.add(x, y)


def _middle(builder: ir.IRBuilder, x: Any, y: Any) -> Any:
    return builder.fmul(builder.fadd(x, y), ir.Constant(x.type, [0.5] * x.type.count))


elementwise(middle, ("floats", "floats"), "floats", _middle)
elementwise(absolute, ("floats",), "floats", _absolute)
elementwise(operator.add, ("floats", "floats"), "floats", _add)
elementwise(operator.add, ("bytes", "bytes"), "bytes", _add)
elementwise(prelu, ("floats", "floats"), "floats", _prelu)
elementwise(operator.xor, ("bytes", "bytes"), "bytes", lambda builder, x, y: builder.xor(x, y))
elementwise(popcount, ("bytes",), "bytes", BACKEND.popcount)
elementwise(dot, ("counters", "bytes", "bytes"), "counters", BACKEND.dot)
elementwise(settle, ("counters",), "counters", BACKEND.settle)
elementwise(as_floats, ("counters",), "floats", _as_floats)
elementwise(as_floats, ("ints",), "floats", _as_floats)
elementwise(mix, ("ints", "bytes", "bytes"), "ints", BACKEND.mix)
elementwise(multiply_add, ("floats", "floats", "floats"), "floats", _fma)


def place_of(context: Any, builder: ir.IRBuilder, array: Any, value: Any, indices: Iterable[tuple[Any, Any]]) -> Any:
    """Pointer to an item of a contiguous array, by typed indices."""
    whole = context.make_array(array)(context, builder, value)
    numbers = [context.cast(builder, i, t, types.intp) for t, i in indices]
    return cgutils.get_item_pointer(context, builder, array, whole, numbers)


def is_flat(array: Any, dtype: Any) -> bool:
    """Whether Numba's type is a flat array of these items, one after another."""
    return isinstance(array, types.Array) and (array.dtype, array.ndim, array.layout) == (dtype, 1, "C")


def vectors_at(
    context: Any, builder: ir.IRBuilder, array: Any, value: Any, at: tuple[Any, Any], kind: str, count: int
) -> list[Any]:
    """Pointers to `count` neighbouring vectors of a flat array, from the item with this typed index on."""
    first = builder.bitcast(place_of(context, builder, array, value, [at]), vector_type(kind).as_pointer())
    return [builder.gep(first, [ir.Constant(I32, c)]) for c in range(count)]


def _loader(function: Any, kind: str, dtype: Any) -> None:
    """Teach Numba a function (array, at) that loads one row."""

    @type_callable(function)
    def typed(context: Any) -> Any:
        return lambda array, at: Vectors(kind, 1, BACKEND.columns) if is_flat(array, dtype) else None

    @lower_builtin(function, types.Array, types.Integer)
    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        own, (array, at) = signature.return_type, signature.args
        places = vectors_at(context, builder, array, args[0], (at, args[1]), kind, own.columns)
        return pack(context, builder, own, (builder.load(p, align=dtype.bitwidth // 8) for p in places))


_loader(load_bytes, "bytes", types.uint8)
_loader(load_ints, "ints", types.int32)
_loader(load_floats, "floats", types.float32)


def _broadcaster(function: Any, kind: str, dtype: Any, item: ir.Type) -> None:
    """Teach Numba a function (array, places, k) that repeats the `item` at place + k over a vector, for each place."""

    @type_callable(function)
    def typed(context: Any) -> Any:
        def typer(array: Any, places: Any, k: Any) -> Any:
            fits = is_flat(array, dtype) and isinstance(places, types.UniTuple)
            return Vectors(kind, len(places), 1) if fits else None

        return typer

    @lower_builtin(function, types.Array, types.UniTuple, types.Integer)
    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        array, places, k = signature.args
        lanes, zero = ir.VectorType(item, BACKEND.lanes), ir.Constant(I32, 0)
        nothing, everywhere = ir.Constant(lanes, ir.Undefined), ir.Constant(ir.VectorType(I32, BACKEND.lanes), None)
        column = context.cast(builder, args[2], k, places.dtype)

        def repeated(place: Any) -> Any:
            at = place_of(context, builder, array, args[0], [(places.dtype, builder.add(place, column))])
            loaded = builder.load(builder.bitcast(at, item.as_pointer()), align=dtype.bitwidth // 8)
            whole = builder.shuffle_vector(builder.insert_element(nothing, loaded, zero), nothing, everywhere)
            return builder.bitcast(whole, vector_type(kind))

        each = cgutils.unpack_tuple(builder, args[1])
        return pack(context, builder, signature.return_type, (repeated(place) for place in each))


_broadcaster(broadcast_words, "bytes", types.uint32, I32)
_broadcaster(broadcast_pixels, "bytes", types.uint8, I32)
_broadcaster(broadcast_floats, "floats", types.float32, F32)
_broadcaster(broadcast_scales, "floats", types.uint32, F32)


@type_callable(float_bits)
def _float_bits_type(context: Any) -> Any:
    return lambda x: types.uint32 if x == types.float32 else None


@lower_builtin(float_bits, types.Float)
def _float_bits(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    return builder.bitcast(args[0], I32)
