# mypy: disable-error-code="no-untyped-call"
"""Rows for Numba: their numbers, and floats that are loaded and stored row by row."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import lower_builtin, type_callable

from models.simd.backend import I32, declare
from models.simd.choice import BACKEND
from models.simd.lowering import Vectors, is_flat, pack, place_of, unpack, vectors_at
from models.simd.values import from_, load_rows, past, prefetch, scale, shift, store_rows, take

CACHE_LINE = 64
"""Bytes that are fetched together, on all processors that we know."""


@type_callable(take)
def _take_type(context: Any) -> Any:
    def typer(numbers: Any, first: Any, rows: Any) -> Any:
        fits = is_flat(numbers, types.uint64) and isinstance(rows, types.UniTuple)
        return types.UniTuple(types.uint64, len(rows)) if fits else None

    return typer


@lower_builtin(take, types.Array, types.Integer, types.UniTuple)
def _take(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    array, first, rows = signature.args
    begin = context.cast(builder, args[1], first, types.uint64)
    out = []
    for row in cgutils.unpack_tuple(builder, args[2]):
        at = builder.add(begin, context.cast(builder, row, rows.dtype, types.uint64))
        out.append(builder.load(place_of(context, builder, array, args[0], [(types.uint64, at)])))
    return context.make_tuple(builder, signature.return_type, out)


@type_callable(from_)
def _from_type(context: Any) -> Any:
    def typer(first: Any, rows: Any, step: Any) -> Any:
        return types.UniTuple(types.uint64, len(rows)) if isinstance(rows, types.UniTuple) else None

    return typer


@lower_builtin(from_, types.Integer, types.UniTuple, types.Integer)
def _from(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    first, rows, step = signature.args
    begin, each = (context.cast(builder, x, t, types.uint64) for x, t in ((args[0], first), (args[2], step)))
    numbers = (context.cast(builder, row, rows.dtype, types.uint64) for row in cgutils.unpack_tuple(builder, args[1]))
    out = [builder.add(begin, builder.mul(number, each)) for number in numbers]
    return context.make_tuple(builder, signature.return_type, out)


@type_callable(past)
def _past_type(context: Any) -> Any:
    return lambda rows, count, instead: rows if isinstance(rows, types.UniTuple) else None


@lower_builtin(past, types.UniTuple, types.Integer, types.Integer)
def _past(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    kind = signature.args[0].dtype
    count, instead = (context.cast(builder, args[i], signature.args[i], kind) for i in (1, 2))
    rows = enumerate(cgutils.unpack_tuple(builder, args[0]))
    out = [builder.select(builder.icmp_unsigned("<", ir.Constant(row.type, i), count), instead, row) for i, row in rows]
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
        fits = is_flat(array, types.float32) and isinstance(places, types.UniTuple)
        return Vectors("floats", len(places), BACKEND.columns) if fits else None

    return typer


def row_pointers(context: Any, builder: ir.IRBuilder, signature: Any, args: Any, columns: int) -> list[Any]:
    """Pointers to the vectors of each row; the last arguments are array, places, first."""
    array, places, first = signature.args[-3:]
    offset = context.cast(builder, args[-1], first, places.dtype)
    return [
        at
        for place in cgutils.unpack_tuple(builder, args[-2])
        for at in vectors_at(
            context, builder, array, args[-3], (places.dtype, builder.add(place, offset)), "floats", columns
        )
    ]


@lower_builtin(load_rows, types.Array, types.UniTuple, types.Integer)
def _load_rows(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    pointers = row_pointers(context, builder, signature, args, BACKEND.columns)
    return pack(context, builder, signature.return_type, (builder.load(at, align=4) for at in pointers))


@type_callable(prefetch)
def _prefetch_type(context: Any) -> Any:
    def typer(array: Any, places: Any, first: Any) -> Any:
        return types.none if is_flat(array, types.float32) and isinstance(places, types.UniTuple) else None

    return typer


@lower_builtin(prefetch, types.Array, types.UniTuple, types.Integer)
def _prefetch(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    pointer = ir.IntType(8).as_pointer()
    own = declare(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, I32, I32, I32)
    read, near, data = (ir.Constant(I32, i) for i in (0, 3, 1))
    step = max(1, CACHE_LINE // BACKEND.bytes)
    places = row_pointers(context, builder, signature, args, BACKEND.columns)
    for i, at in enumerate(places):
        if i % BACKEND.columns % step == 0:
            builder.call(own, [builder.bitcast(at, pointer), read, near, data])
    return context.get_dummy_value()


@type_callable(store_rows)
def _store_rows_type(context: Any) -> Any:
    def typer(value: Any, array: Any, places: Any, first: Any) -> Any:
        fits = is_flat(array, types.float32) and isinstance(value, Vectors) and value.kind == "floats"
        return types.none if fits and isinstance(places, types.UniTuple) and value.rows == len(places) else None

    return typer


@lower_builtin(store_rows, Vectors, types.Array, types.UniTuple, types.Integer)
def _store_rows(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    own = signature.args[0]
    # Vectors that do not fit into registers go to the stack: aligned, none of them lies across two lines of the cache.
    builder.function.attributes.alignstack = max(16, BACKEND.bytes)
    builder.function.attributes.add("norecurse")  # llvmlite prints an alignment only beside another attribute
    pointers = row_pointers(context, builder, signature, args, own.columns)
    for vector, at in zip(unpack(builder, own, args[0]), pointers, strict=True):
        builder.store(vector, at, align=4)
    return context.get_dummy_value()
