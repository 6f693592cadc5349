# mypy: disable-error-code="no-untyped-call"
"""Counters for Numba: where they begin, and what a word or a pair of words of every row adds to them."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import lower_builtin, type_callable

from models.simd.backend import I32
from models.simd.choice import BACKEND
from models.simd.lowering import Vectors, is_flat, pack, place_of, rows_of, unpack
from models.simd.values import after, dot_pair, dot_word, no_floats, repeat, start


def _repeated(context: Any, builder: ir.IRBuilder, array: Any, value: Any, place: Any) -> Any:
    """The word at a place (uint64) of a flat array, repeated over a byte vector."""
    lanes, zero = BACKEND.sums, ir.Constant(I32, 0)
    nothing, everywhere = ir.Constant(lanes, ir.Undefined), ir.Constant(lanes, None)
    loaded = builder.load(place_of(context, builder, array, value, [(types.uint64, place)]), align=4)
    whole = builder.shuffle_vector(builder.insert_element(nothing, loaded, zero), nothing, everywhere)
    return builder.bitcast(whole, BACKEND.byte_vector)


def later(builder: ir.IRBuilder, number: Any, vectors: list[Any]) -> Any:
    """The integer, of which LLVM believes that it comes from the vectors: an empty text of assembly has it so.

    What is loaded from there is then loaded after they are known. It costs no instruction.
    """
    kind = ir.FunctionType(number.type, [number.type, *(x.type for x in vectors)])
    text = ir.InlineAsm(kind, "", ",".join(["=r", "0", *["v"] * len(vectors)]), False)
    return builder.call(text, [number, *vectors])


@type_callable(after)
def _after_type(context: Any) -> Any:
    return lambda k, value: types.uint64 if isinstance(value, Vectors) else None


@lower_builtin(after, types.Integer, Vectors)
def _after_value(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    number = context.cast(builder, args[0], signature.args[0], types.uint64)
    if not BACKEND.in_order:
        return number
    return later(builder, number, unpack(builder, signature.args[1], args[1])[-BACKEND.columns :])


def teach_counting(function: Any, count: int, emit: Callable[..., Any]) -> None:
    """Teach Numba a function (counter, words, places, k, more values) that counts `count` words for each row.

    emit(builder, counter, repeated words, vectors of each more value of this column) is the counter after them.
    """

    def typer(counter: Any, words: Any, places: Any, k: Any, *more: Any) -> Any:
        fits = isinstance(counter, Vectors) and counter.kind == "counters" and is_flat(words, types.uint32)
        return counter if fits and all(isinstance(x, Vectors) and x.kind == "bytes" for x in more) else None

    arities: dict[int, Callable[..., Any]] = {  # Numba reads the number of arguments from the signature
        1: lambda n, words, places, k, a: typer(n, words, places, k, a),
        2: lambda n, words, places, k, a, b: typer(n, words, places, k, a, b),
        3: lambda n, words, places, k, a, b, c: typer(n, words, places, k, a, b, c),
    }
    extra = len(signature(function).parameters) - 4
    type_callable(function)(lambda context: arities[extra])

    @lower_builtin(function, Vectors, types.Array, types.UniTuple, types.Integer, *[Vectors] * extra)
    def lower(context: Any, builder: ir.IRBuilder, types_: Any, args: Any) -> Any:
        """Row by row, so that the units which popcount and dot share are never idle."""
        own, words, _, k = types_.args[:4]
        more = [unpack(builder, a, v) for a, v in zip(types_.args[4:], args[4:], strict=True)]
        at = context.cast(builder, args[3], k, types.uint64)
        out: list[list[Any]] = []
        places = cgutils.unpack_tuple(builder, args[2])
        for row, place in zip(rows_of(own, args[0], builder), places, strict=True):
            if out and BACKEND.in_order:
                at = later(builder, at, out[-1])
            each = [builder.add(builder.add(place, at), ir.Constant(place.type, i)) for i in range(count)]
            repeated = [_repeated(context, builder, words, args[1], p) for p in each]
            out.append([emit(builder, n, repeated, *(x[c] for x in more)) for c, n in enumerate(row)])
        return pack(context, builder, own, (n for row in out for n in row))


def _dot_word(builder: ir.IRBuilder, counter: Any, repeated: list[Any], signs: Any, scales: Any) -> Any:
    return BACKEND.dot(builder, counter, BACKEND.popcount(builder, builder.xor(repeated[0], signs)), scales)


def _dot_pair(builder: ir.IRBuilder, counter: Any, repeated: list[Any], signs: Any, more: Any, scales: Any) -> Any:
    first, second = (builder.xor(x, s) for x, s in zip(repeated, (signs, more), strict=True))
    both = builder.add(BACKEND.popcount(builder, first), BACKEND.popcount(builder, second))
    return BACKEND.dot(builder, counter, both, scales)


teach_counting(dot_word, 1, _dot_word)
teach_counting(dot_pair, 2, _dot_pair)


@type_callable(start)
def _start_type(context: Any) -> Any:
    def typer(total: Any, rows: Any) -> Any:
        fits = isinstance(total, Vectors) and total.kind == "ints" and isinstance(rows, types.UniTuple)
        return Vectors("counters", len(rows), total.columns) if fits else None

    return typer


@lower_builtin(start, Vectors, types.UniTuple)
def _start(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    each = [BACKEND.start(builder, total) for total in unpack(builder, signature.args[0], args[0])]
    return pack(context, builder, signature.return_type, each * len(signature.args[1]))


@type_callable(repeat)
def _repeat_type(context: Any) -> Any:
    def typer(total: Any, rows: Any) -> Any:
        fits = isinstance(total, Vectors) and total.kind == "ints" and isinstance(rows, types.UniTuple)
        return Vectors("ints", len(rows), total.columns) if fits else None

    return typer


@lower_builtin(repeat, Vectors, types.UniTuple)
def _repeat(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    each = unpack(builder, signature.args[0], args[0])
    return pack(context, builder, signature.return_type, each * len(signature.args[1]))


@type_callable(no_floats)
def _no_floats_type(context: Any) -> Any:
    def typer(rows: Any) -> Any:
        return Vectors("floats", len(rows), BACKEND.columns) if isinstance(rows, types.UniTuple) else None

    return typer


@lower_builtin(no_floats, types.UniTuple)
def _no_floats(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    return ir.Constant(context.get_value_type(signature.return_type), None)
