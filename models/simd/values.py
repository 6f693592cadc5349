"""A small SIMD value type for Numba: blocks of vectors that add, xor and count as the formula is written.

A value is R rows of V vectors, and one of: bytes, 32-bit integers, floats, counters (see `models.simd.backend`). Rows are
the pixels that share one pass over the weights, columns the output channels. As in NumPy, a value of one row or one
column meets every row or column of the other. Each function below also works without Numba: there a value is a NumPy
array (R or 1, bytes or lanes), and that text is the meaning of the fast one.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models as datamodels
from numba.extending import lower_builtin, register_model, type_callable
from numpy.typing import NDArray

from models.simd.backend import F32, declare
from models.simd.choice import BACKEND

Value = NDArray[Any]
Rows = tuple[np.uint64, ...]


class Vectors(types.Type):  # type: ignore[misc]
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
class _Model(datamodels.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, own: Vectors) -> None:
        super().__init__(manager, own, ir.ArrayType(vector_type(own.kind), own.rows * own.columns))


# --- what a kernel may say; the bodies are what it means without Numba


def take(numbers: NDArray[np.uint64], first: int, rows: Rows) -> Rows:
    """numbers[first + r] for each r of `rows`, the last of them again behind the end: a tuple as long as `rows`."""
    return tuple(numbers[min(int(first) + int(r), len(numbers) - 1)] for r in rows)


def shift(rows: Rows, offset: int) -> Rows:
    """Each row number plus `offset`."""
    return tuple(r + offset for r in rows)


def load_bytes(array: NDArray[np.uint8], tile: int, k: int) -> Value:
    """One row of bytes: array[tile, k], with uint8 (T, S, V * bytes)."""
    return array[tile, k][None]


def load_ints(array: NDArray[np.int32], tile: int, k: int) -> Value:
    """One row of integers: array[tile, k], with int32 (T, R, V * lanes)."""
    return array[tile, k][None]


def load_floats(array: NDArray[np.float32], tile: int, k: int) -> Value:
    """One row of floats: array[tile, k], with float32 (T, S, V * lanes)."""
    return array[tile, k][None]


def broadcast_words(words: NDArray[np.uint32], rows: Rows, k: int) -> Value:
    """One column of bytes: the 32-bit words[row, k], repeated, for each row."""
    return np.stack([np.full(BACKEND.lanes, words[r, k], "<u4").view(np.uint8) for r in rows])


def broadcast_floats(floats: NDArray[np.float32], rows: Rows, k: int) -> Value:
    """One column of floats: floats[row, k] for each row."""
    return np.stack([np.full(BACKEND.lanes, floats[r, k]) for r in rows])


def no_floats(rows: Rows) -> Value:
    """Zeros, in BACKEND.columns columns, a row for each of `rows`."""
    return np.zeros((len(rows), BACKEND.columns * BACKEND.lanes), np.float32)


def popcount(x: Value) -> Value:
    """One bits of each byte."""
    return np.unpackbits(x[..., None], axis=-1).sum(-1, dtype=np.uint8)


def start(total: Value, rows: Rows) -> Value:
    """Counters that stand at the integers `total` (one row), a row for each of `rows`."""
    return total.repeat(len(rows), 0)


def dot(counter: Value, counts: Value, scales: Value) -> Value:
    """The counter plus counts (bytes 0..8) times scales (bytes 0..254), four neighbours to a lane."""
    product = counts.astype(np.int32) * scales.astype(np.int32)
    return counter + product.reshape(len(product), -1, 4).sum(-1, dtype=np.int32)


def settle(counter: Value) -> Value:
    """The same counter, ready for BACKEND.steps more of `dot`."""
    return counter


def as_floats(counter: Value) -> Value:
    """What settled counters stand at, as floats."""
    return counter.astype(np.float32)


def multiply_add(x: Value, y: Value, z: Value) -> Value:
    """x * y + z, rounded once."""
    wide = _spread(x, y, z)
    return (wide[0].astype(np.float64) * wide[1] + wide[2]).astype(np.float32)


def store_floats(value: Value, array: NDArray[np.float32], first: int) -> None:
    """Row r of `value` -> array[r, first : first + V * lanes]."""
    array[: len(value), int(first) : int(first) + value.shape[1]] = value


def _spread(*values: Value) -> list[Value]:
    """Columns of one vector repeated to the widest value."""
    width = max(v.shape[1] for v in values)
    return [np.tile(v, (1, width // v.shape[1])) for v in values]


# --- the same for Numba: how each is typed, and the IR that it becomes


def _unpack(builder: ir.IRBuilder, own: Vectors, value: Any) -> list[Any]:
    """The vectors of a value, row after row."""
    return [builder.extract_value(value, i) for i in range(own.rows * own.columns)]


def _pack(context: Any, builder: ir.IRBuilder, own: Vectors, vectors: Iterable[Any]) -> Any:
    value = ir.Constant(context.get_value_type(own), ir.Undefined)
    for i, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, i)
    return value


def _elementwise(function: Any, kinds: tuple[str, ...], result: str, emit: Callable[..., Any]) -> None:
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


def _total_as_floats(builder: ir.IRBuilder, counter: Any) -> Any:
    return builder.sitofp(BACKEND.total(builder, counter), vector_type("floats"))


_elementwise(operator.xor, ("bytes", "bytes"), "bytes", lambda builder, x, y: builder.xor(x, y))
_elementwise(popcount, ("bytes",), "bytes", BACKEND.popcount)
_elementwise(dot, ("counters", "bytes", "bytes"), "counters", BACKEND.dot)
_elementwise(settle, ("counters",), "counters", BACKEND.settle)
_elementwise(as_floats, ("counters",), "floats", _total_as_floats)
_elementwise(multiply_add, ("floats", "floats", "floats"), "floats", _fma)


def _place(context: Any, builder: ir.IRBuilder, array: Any, value: Any, indices: Iterable[tuple[Any, Any]]) -> Any:
    """Pointer to an item of a contiguous array, by typed indices."""
    whole = context.make_array(array)(context, builder, value)
    numbers = [context.cast(builder, i, t, types.intp) for t, i in indices]
    return cgutils.get_item_pointer(context, builder, array, whole, numbers)


def _loader(function: Any, kind: str, dtype: types.Type) -> None:
    """Teach Numba a function (array, tile, k) that loads one row."""

    @type_callable(function)
    def typed(context: Any) -> Any:
        def typer(array: Any, tile: Any, k: Any) -> Any:
            if isinstance(array, types.Array) and (array.dtype, array.ndim, array.layout) == (dtype, 3, "C"):
                return Vectors(kind, 1, BACKEND.columns)
            return None

        return typer

    @lower_builtin(function, types.Array, types.Integer, types.Integer)
    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        zero = (types.intp, ir.Constant(ir.IntType(64), 0))
        at = _place(
            context, builder, signature.args[0], args[0], [*zip(signature.args[1:], args[1:], strict=True), zero]
        )
        vector = vector_type(kind)
        at = builder.bitcast(at, vector.as_pointer())
        loads = (
            builder.load(builder.gep(at, [ir.Constant(ir.IntType(32), c)]), align=dtype.bitwidth // 8)
            for c in range(BACKEND.columns)
        )
        return _pack(context, builder, signature.return_type, loads)


_loader(load_bytes, "bytes", types.uint8)
_loader(load_ints, "ints", types.int32)
_loader(load_floats, "floats", types.float32)


def _broadcaster(function: Any, kind: str, dtype: types.Type) -> None:
    """Teach Numba a function (array, rows, k) that repeats array[row, k] over a vector for each row."""

    @type_callable(function)
    def typed(context: Any) -> Any:
        def typer(array: Any, rows: Any, k: Any) -> Any:
            fits = isinstance(array, types.Array) and (array.dtype, array.ndim, array.layout) == (dtype, 2, "C")
            return Vectors(kind, len(rows), 1) if fits and isinstance(rows, types.UniTuple) else None

        return typer

    @lower_builtin(function, types.Array, types.UniTuple, types.Integer)
    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        array, rows, k = signature.args
        item = context.get_data_type(dtype)
        lanes, nothing = (
            ir.VectorType(item, BACKEND.lanes),
            ir.Constant(ir.VectorType(ir.IntType(32), BACKEND.lanes), None),
        )

        def repeated(row: Any) -> Any:
            at = _place(context, builder, array, args[0], [(rows.dtype, row), (k, args[2])])
            one = builder.insert_element(
                ir.Constant(lanes, ir.Undefined), builder.load(at), ir.Constant(ir.IntType(32), 0)
            )
            whole = builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), nothing)
            return builder.bitcast(whole, vector_type(kind))

        each = cgutils.unpack_tuple(builder, args[1])
        return _pack(context, builder, signature.return_type, (repeated(row) for row in each))


_broadcaster(broadcast_words, "bytes", types.uint32)
_broadcaster(broadcast_floats, "floats", types.float32)


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
        return types.UniTuple(types.uint64, len(rows)) if isinstance(rows, types.UniTuple) else None

    return typer


@lower_builtin(take, types.Array, types.Integer, types.UniTuple)
def _take(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    array, first, rows = signature.args
    whole = context.make_array(array)(context, builder, args[0])
    last = builder.sub(cgutils.unpack_tuple(builder, whole.shape)[0], ir.Constant(ir.IntType(64), 1))
    begin = context.cast(builder, args[1], first, types.intp)
    out = []
    for r in range(len(rows)):
        at = builder.add(begin, ir.Constant(ir.IntType(64), r))
        at = builder.select(builder.icmp_signed("<", at, last), at, last)
        out.append(builder.load(cgutils.get_item_pointer(context, builder, array, whole, [at])))
    return context.make_tuple(builder, signature.return_type, out)


@type_callable(shift)
def _shift_type(context: Any) -> Any:
    def typer(rows: Any, offset: Any) -> Any:
        return rows if isinstance(rows, types.UniTuple) else None

    return typer


@lower_builtin(shift, types.UniTuple, types.Integer)
def _shift(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    offset = context.cast(builder, args[1], signature.args[1], types.uint64)
    out = [builder.add(row, offset) for row in cgutils.unpack_tuple(builder, args[0])]
    return context.make_tuple(builder, signature.return_type, out)


@type_callable(store_floats)
def _store_type(context: Any) -> Any:
    def typer(value: Any, array: Any, first: Any) -> Any:
        fits = isinstance(array, types.Array) and (array.dtype, array.ndim, array.layout) == (types.float32, 2, "C")
        return types.none if fits and isinstance(value, Vectors) and value.kind == "floats" else None

    return typer


@lower_builtin(store_floats, Vectors, types.Array, types.Integer)
def _store(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    own, array, first = signature.args
    for i, vector in enumerate(_unpack(builder, own, args[0])):
        row = (types.intp, ir.Constant(ir.IntType(64), i // own.columns))
        at = _place(context, builder, array, args[1], [row, (first, args[2])])
        at = builder.gep(builder.bitcast(at, vector.type.as_pointer()), [ir.Constant(ir.IntType(32), i % own.columns)])
        builder.store(vector, at, align=4)
    return context.get_dummy_value()
