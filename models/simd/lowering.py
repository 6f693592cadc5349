# mypy: disable-error-code="no-untyped-call"
"""What `models.simd.values` says, for Numba: how each function is typed, and the LLVM IR that it becomes."""

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
    WORD_BITS,
    absolute,
    add_up,
    as_floats,
    broadcast_floats,
    broadcast_pixels,
    broadcast_words,
    dot,
    from_,
    load_bytes,
    load_floats,
    load_ints,
    load_rows,
    load_word,
    middle,
    mix,
    multiply_add,
    no_floats,
    popcount,
    prelu,
    repeat,
    scale,
    settle,
    shift,
    sign_bits,
    start,
    store_rows,
    take,
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


def _unpack(builder: ir.IRBuilder, own: Vectors, value: Any) -> list[Any]:
    """The vectors of a value, row after row."""
    return [builder.extract_value(value, i) for i in range(own.rows * own.columns)]


def _pack(context: Any, builder: ir.IRBuilder, own: Vectors, vectors: Iterable[Any]) -> Any:
    value = ir.Constant(context.get_value_type(own), ir.Undefined)
    for i, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, i)
    return value


def elementwise(function: Any, kinds: tuple[str, ...], result: str, emit: Callable[..., Any]) -> None:
    """Teach Numba a function that acts on each vector alone: emit(builder, *vectors). Shapes broadcast."""

    def typed(*args: Any) -> Any:
        if tuple(a.kind if isinstance(a, Vectors) else None for a in args) != kinds:
            return None
        rows, columns = ({getattr(a, axis) for a in args} - {1} or {1} for axis in ("rows", "columns"))
        return Vectors(result, *rows, *columns) if len(rows) == len(columns) == 1 else None

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        own = signature.return_type
        parts = [(a, _unpack(builder, a, v)) for a, v in zip(signature.args, args, strict=True)]
        made = (
            emit(builder, *(flat[r % a.rows * a.columns + c % a.columns] for a, flat in parts))
            for r in range(own.rows)
            for c in range(own.columns)
        )
        return _pack(context, builder, own, made)

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


def _place(context: Any, builder: ir.IRBuilder, array: Any, value: Any, indices: Iterable[tuple[Any, Any]]) -> Any:
    """Pointer to an item of a contiguous array, by typed indices."""
    whole = context.make_array(array)(context, builder, value)
    numbers = [context.cast(builder, i, t, types.intp) for t, i in indices]
    return cgutils.get_item_pointer(context, builder, array, whole, numbers)


def _is_flat(array: Any, dtype: Any) -> bool:
    return isinstance(array, types.Array) and (array.dtype, array.ndim, array.layout) == (dtype, 1, "C")


def _vectors_at(
    context: Any, builder: ir.IRBuilder, array: Any, value: Any, at: tuple[Any, Any], kind: str, count: int
) -> list[Any]:
    """Pointers to `count` neighbouring vectors of a flat array, from the item with this typed index on."""
    first = builder.bitcast(_place(context, builder, array, value, [at]), vector_type(kind).as_pointer())
    return [builder.gep(first, [ir.Constant(I32, c)]) for c in range(count)]


def _loader(function: Any, kind: str, dtype: Any) -> None:
    """Teach Numba a function (array, at) that loads one row."""

    @type_callable(function)
    def typed(context: Any) -> Any:
        return lambda array, at: Vectors(kind, 1, BACKEND.columns) if _is_flat(array, dtype) else None

    @lower_builtin(function, types.Array, types.Integer)
    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        own, (array, at) = signature.return_type, signature.args
        places = _vectors_at(context, builder, array, args[0], (at, args[1]), kind, own.columns)
        return _pack(context, builder, own, (builder.load(p, align=dtype.bitwidth // 8) for p in places))


_loader(load_bytes, "bytes", types.uint8)
_loader(load_ints, "ints", types.int32)
_loader(load_floats, "floats", types.float32)


def _broadcaster(function: Any, kind: str, dtype: Any, item: ir.Type) -> None:
    """Teach Numba a function (array, places, k) that repeats the `item` at place + k over a vector, for each place."""

    @type_callable(function)
    def typed(context: Any) -> Any:
        def typer(array: Any, places: Any, k: Any) -> Any:
            fits = _is_flat(array, dtype) and isinstance(places, types.UniTuple)
            return Vectors(kind, len(places), 1) if fits else None

        return typer

    @lower_builtin(function, types.Array, types.UniTuple, types.Integer)
    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        array, places, k = signature.args
        lanes, zero = ir.VectorType(item, BACKEND.lanes), ir.Constant(I32, 0)
        nothing, everywhere = ir.Constant(lanes, ir.Undefined), ir.Constant(ir.VectorType(I32, BACKEND.lanes), None)
        column = context.cast(builder, args[2], k, places.dtype)

        def repeated(place: Any) -> Any:
            at = _place(context, builder, array, args[0], [(places.dtype, builder.add(place, column))])
            loaded = builder.load(builder.bitcast(at, item.as_pointer()), align=dtype.bitwidth // 8)
            whole = builder.shuffle_vector(builder.insert_element(nothing, loaded, zero), nothing, everywhere)
            return builder.bitcast(whole, vector_type(kind))

        each = cgutils.unpack_tuple(builder, args[1])
        return _pack(context, builder, signature.return_type, (repeated(place) for place in each))


_broadcaster(broadcast_words, "bytes", types.uint32, I32)
_broadcaster(broadcast_pixels, "bytes", types.uint8, I32)
_broadcaster(broadcast_floats, "floats", types.float32, F32)


@type_callable(start)
def _start_type(context: Any) -> Any:
    def typer(total: Any, rows: Any) -> Any:
        fits = isinstance(total, Vectors) and total.kind == "ints" and isinstance(rows, types.UniTuple)
        return Vectors("counters", len(rows), total.columns) if fits else None

    return typer


@lower_builtin(start, Vectors, types.UniTuple)
def _start(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    each = [BACKEND.start(builder, total) for total in _unpack(builder, signature.args[0], args[0])]
    return _pack(context, builder, signature.return_type, each * len(signature.args[1]))


@type_callable(repeat)
def _repeat_type(context: Any) -> Any:
    def typer(total: Any, rows: Any) -> Any:
        fits = isinstance(total, Vectors) and total.kind == "ints" and isinstance(rows, types.UniTuple)
        return Vectors("ints", len(rows), total.columns) if fits else None

    return typer


@lower_builtin(repeat, Vectors, types.UniTuple)
def _repeat(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    each = _unpack(builder, signature.args[0], args[0])
    return _pack(context, builder, signature.return_type, each * len(signature.args[1]))


@type_callable(no_floats)
def _no_floats_type(context: Any) -> Any:
    def typer(rows: Any) -> Any:
        return Vectors("floats", len(rows), BACKEND.columns) if isinstance(rows, types.UniTuple) else None

    return typer


@lower_builtin(no_floats, types.UniTuple)
def _no_floats(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    return ir.Constant(context.get_value_type(signature.return_type), None)


@type_callable(take)
def _take_type(context: Any) -> Any:
    def typer(numbers: Any, first: Any, rows: Any) -> Any:
        fits = _is_flat(numbers, types.uint64) and isinstance(rows, types.UniTuple)
        return types.UniTuple(types.uint64, len(rows)) if fits else None

    return typer


@lower_builtin(take, types.Array, types.Integer, types.UniTuple)
def _take(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    array, first, rows = signature.args
    begin = context.cast(builder, args[1], first, types.uint64)
    out = []
    for row in cgutils.unpack_tuple(builder, args[2]):
        at = builder.add(begin, context.cast(builder, row, rows.dtype, types.uint64))
        out.append(builder.load(_place(context, builder, array, args[0], [(types.uint64, at)])))
    return context.make_tuple(builder, signature.return_type, out)


@type_callable(from_)
def _from_type(context: Any) -> Any:
    def typer(first: Any, rows: Any, last: Any) -> Any:
        return types.UniTuple(types.uint64, len(rows)) if isinstance(rows, types.UniTuple) else None

    return typer


@lower_builtin(from_, types.Integer, types.UniTuple, types.Integer)
def _from(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    first, rows, last = signature.args
    begin, end = context.cast(builder, args[0], first, types.uint64), context.cast(builder, args[2], last, types.uint64)
    out = []
    for row in cgutils.unpack_tuple(builder, args[1]):
        at = builder.add(begin, context.cast(builder, row, rows.dtype, types.uint64))
        out.append(builder.select(builder.icmp_unsigned("<", at, end), at, end))
    return context.make_tuple(builder, signature.return_type, out)


def _teach_rows(function: Any, emit: Callable[..., Any]) -> None:
    """Teach Numba a function (rows, number) that acts on each row number: emit(builder, row, number)."""

    @type_callable(function)
    def typed(context: Any) -> Any:
        return lambda rows, number: rows if isinstance(rows, types.UniTuple) else None

    @lower_builtin(function, types.UniTuple, types.Integer)
    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        number = context.cast(builder, args[1], signature.args[1], signature.args[0].dtype)
        out = [emit(builder, row, number) for row in cgutils.unpack_tuple(builder, args[0])]
        return context.make_tuple(builder, signature.return_type, out)


_teach_rows(shift, lambda builder, row, offset: builder.add(row, offset))
_teach_rows(scale, lambda builder, row, factor: builder.mul(row, factor))


@type_callable(load_rows)
def _load_rows_type(context: Any) -> Any:
    def typer(array: Any, places: Any, first: Any) -> Any:
        fits = _is_flat(array, types.float32) and isinstance(places, types.UniTuple)
        return Vectors("floats", len(places), BACKEND.columns) if fits else None

    return typer


def _row_pointers(context: Any, builder: ir.IRBuilder, signature: Any, args: Any, columns: int) -> list[Any]:
    """Pointers to the vectors of each row; the last arguments are array, places, first."""
    array, places, first = signature.args[-3:]
    offset = context.cast(builder, args[-1], first, places.dtype)
    return [
        at
        for place in cgutils.unpack_tuple(builder, args[-2])
        for at in _vectors_at(
            context, builder, array, args[-3], (places.dtype, builder.add(place, offset)), "floats", columns
        )
    ]


@lower_builtin(load_rows, types.Array, types.UniTuple, types.Integer)
def _load_rows(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    pointers = _row_pointers(context, builder, signature, args, BACKEND.columns)
    return _pack(context, builder, signature.return_type, (builder.load(at, align=4) for at in pointers))


@type_callable(store_rows)
def _store_rows_type(context: Any) -> Any:
    def typer(value: Any, array: Any, places: Any, first: Any) -> Any:
        fits = _is_flat(array, types.float32) and isinstance(value, Vectors) and value.kind == "floats"
        return types.none if fits and isinstance(places, types.UniTuple) and value.rows == len(places) else None

    return typer


@lower_builtin(store_rows, Vectors, types.Array, types.UniTuple, types.Integer)
def _store_rows(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    own = signature.args[0]
    # Vectors that do not fit into registers go to the stack: aligned, none of them lies across two lines of the cache.
    builder.function.attributes.alignstack = max(16, BACKEND.bytes)
    builder.function.attributes.add("norecurse")  # llvmlite prints an alignment only beside another attribute
    pointers = _row_pointers(context, builder, signature, args, own.columns)
    for vector, at in zip(_unpack(builder, own, args[0]), pointers, strict=True):
        builder.store(vector, at, align=4)
    return context.get_dummy_value()


@type_callable(load_word)
def _load_word_type(context: Any) -> Any:
    def typer(array: Any, at: Any) -> Any:
        return Vectors("floats", 1, WORD_BITS // BACKEND.lanes) if _is_flat(array, types.float32) else None

    return typer


@lower_builtin(load_word, types.Array, types.Integer)
def _load_word(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    own, (array, at) = signature.return_type, signature.args
    places = _vectors_at(context, builder, array, args[0], (at, args[1]), "floats", own.columns)
    return _pack(context, builder, own, (builder.load(p, align=4) for p in places))


def _is_word(x: Any) -> bool:
    return isinstance(x, Vectors) and (x.kind, x.rows, x.columns) == ("floats", 1, WORD_BITS // BACKEND.lanes)


@type_callable(sign_bits)
def _sign_bits_type(context: Any) -> Any:
    def typer(x: Any) -> Any:
        return types.uint32 if _is_word(x) else None

    return typer


@lower_builtin(sign_bits, Vectors)
def _sign_bits(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    zero = ir.Constant(vector_type("floats"), None)
    flags = [builder.fcmp_ordered("<", x, zero) for x in _unpack(builder, signature.args[0], args[0])]
    while len(flags) > 1:  # one vector of flags becomes one word in fewer instructions than many become parts of it
        both = ir.Constant(ir.VectorType(I32, 2 * flags[0].type.count), list(range(2 * flags[0].type.count)))
        flags = [builder.shuffle_vector(x, y, both) for x, y in zip(flags[::2], flags[1::2], strict=True)]
    return builder.bitcast(flags[0], I32)


@type_callable(add_up)
def _add_up_type(context: Any) -> Any:
    def typer(x: Any) -> Any:
        return types.float32 if _is_word(x) else None

    return typer


@lower_builtin(add_up, Vectors)
def _add_up(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    vectors = _unpack(builder, signature.args[0], args[0])
    while len(vectors) > 1:
        half = len(vectors) // 2
        vectors = [builder.fadd(x, y) for x, y in zip(vectors[:half], vectors[half:], strict=True)]
    (line,) = vectors
    while line.type.count > 1:
        half = line.type.count // 2
        lower, upper = (
            builder.shuffle_vector(line, line, ir.Constant(ir.VectorType(I32, half), list(range(first, first + half))))
            for first in (0, half)
        )
        line = builder.fadd(lower, upper)
    return builder.extract_element(line, ir.Constant(I32, 0))
