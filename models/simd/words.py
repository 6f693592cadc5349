# mypy: disable-error-code="no-untyped-call"
"""Words of 32 floats for Numba: their signs and sums, for packing."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import lower_builtin, type_callable

from models.simd.backend import I32
from models.simd.choice import BACKEND
from models.simd.lowering import Vectors, is_flat, pack, place_of, rows_of, unpack, vector_type, vectors_at
from models.simd.rows import row_pointers
from models.simd.values import (
    WORD_BITS,
    evens,
    load_word,
    load_words,
    no_words,
    odds,
    sign_bits,
    store_signs,
    store_sums,
)

EIGHT = 8
"""Inputs of a byte."""
WORD_COLUMNS = WORD_BITS // BACKEND.lanes
"""Vectors of a word's floats."""


@type_callable(load_word)
def _load_word_type(context: Any) -> Any:
    return lambda array, at: Vectors("floats", 1, WORD_COLUMNS) if is_flat(array, types.float32) else None


@lower_builtin(load_word, types.Array, types.Integer)
def _load_word(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    own, (array, at) = signature.return_type, signature.args
    places = vectors_at(context, builder, array, args[0], (at, args[1]), "floats", own.columns)
    return pack(context, builder, own, (builder.load(p, align=4) for p in places))


@type_callable(load_words)
def _load_words_type(context: Any) -> Any:
    def typer(array: Any, places: Any, first: Any) -> Any:
        fits = is_flat(array, types.float32) and isinstance(places, types.UniTuple)
        return Vectors("floats", len(places), WORD_COLUMNS) if fits else None

    return typer


@lower_builtin(load_words, types.Array, types.UniTuple, types.Integer)
def _load_words(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    pointers = row_pointers(context, builder, signature, args, WORD_COLUMNS)
    return pack(context, builder, signature.return_type, (builder.load(at, align=4) for at in pointers))


@type_callable(no_words)
def _no_words_type(context: Any) -> Any:
    return lambda rows: Vectors("floats", len(rows), WORD_COLUMNS) if isinstance(rows, types.UniTuple) else None


@lower_builtin(no_words, types.UniTuple)
def _no_words(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    return ir.Constant(context.get_value_type(signature.return_type), None)


def _is_words(x: Any) -> bool:
    return isinstance(x, Vectors) and (x.kind, x.columns) == ("floats", WORD_COLUMNS)


def _joined(builder: ir.IRBuilder, x: Any, y: Any) -> Any:
    count = 2 * x.type.count
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, count), list(range(count))))


def _signs(builder: ir.IRBuilder, row: list[Any]) -> Any:
    zero = ir.Constant(vector_type("floats"), None)
    flags = [builder.fcmp_ordered("<", x, zero) for x in row]
    while len(flags) > 1:  # one vector of flags becomes one word in fewer instructions than many become parts of it
        flags = [_joined(builder, x, y) for x, y in zip(flags[::2], flags[1::2], strict=True)]
    return builder.bitcast(flags[0], I32)


@type_callable(sign_bits)
def _sign_bits_type(context: Any) -> Any:
    return lambda x: types.uint32 if _is_words(x) and x.rows == 1 else None


@lower_builtin(sign_bits, Vectors)
def _sign_bits(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    return _signs(builder, unpack(builder, signature.args[0], args[0]))


@type_callable(store_signs)
def _store_signs_type(context: Any) -> Any:
    def typer(x: Any, words: Any, places: Any, first: Any) -> Any:
        fits = _is_words(x) and is_flat(words, types.uint32) and isinstance(places, types.UniTuple)
        return types.none if fits and x.rows == len(places) else None

    return typer


def _items(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> list[Any]:
    """Pointers to the item of each row; the last arguments are array, places, first."""
    array, places, first = signature.args[-3:]
    offset = context.cast(builder, args[-1], first, places.dtype)
    return [
        place_of(context, builder, array, args[-3], [(places.dtype, builder.add(place, offset))])
        for place in cgutils.unpack_tuple(builder, args[-2])
    ]


@lower_builtin(store_signs, Vectors, types.Array, types.UniTuple, types.Integer)
def _store_signs(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    pointers = _items(context, builder, signature, args)
    for row, at in zip(rows_of(signature.args[0], args[0], builder), pointers, strict=True):
        builder.store(_signs(builder, row), at, align=4)
    return context.get_dummy_value()


@type_callable(store_sums)
def _store_sums_type(context: Any) -> Any:
    def typer(x: Any, factor: Any, words: Any, places: Any, first: Any) -> Any:
        fits = _is_words(x) and factor == types.float32 and is_flat(words, types.uint32)
        return types.none if fits and isinstance(places, types.UniTuple) and x.rows == len(places) else None

    return typer


def _halves(builder: ir.IRBuilder, x: Any, y: Any, size: int, lanes: int) -> Any:
    """Lower plus upper halves of the pieces of `size` lanes among the first `lanes` ones of x and y."""
    pieces = range(0, lanes, size)

    def taken(offset: int) -> Any:
        numbers = [piece + offset + i for piece in pieces for i in range(size // 2)]
        return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(numbers)), numbers))

    return builder.fadd(taken(0), taken(size // 2))


@lower_builtin(store_sums, Vectors, types.Float, types.Array, types.UniTuple, types.Integer)
def _store_sums(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    """Once a row is one vector, two vectors become one in each step: half of each row, for twice as many rows."""
    lines = []
    for vectors in rows_of(signature.args[0], args[0], builder):
        while len(vectors) > 1:
            half = len(vectors) // 2
            vectors = [builder.fadd(x, y) for x, y in zip(vectors[:half], vectors[half:], strict=True)]
        lines += vectors
    size = lines[0].type.count
    while size > 1:
        if len(lines) > 1:
            lines = [
                _halves(builder, x, y, size, 2 * x.type.count) for x, y in zip(lines[::2], lines[1::2], strict=True)
            ]
        else:
            lines = [_halves(builder, lines[0], lines[0], size, lines[0].type.count)]
        size //= 2
    factor, rows = args[1], [(line, i) for line in lines for i in range(line.type.count)]
    for (line, i), at in zip(rows, _items(context, builder, signature, args), strict=True):
        total = builder.extract_element(line, ir.Constant(I32, i))
        builder.store(builder.bitcast(builder.fmul(total, factor), I32), at)
    return context.get_dummy_value()


def _teach_exchange(function: Any, first: int) -> None:
    """Teach Numba a function that takes the eights first, first + 2 of two words in turn."""

    @type_callable(function)
    def typed(context: Any) -> Any:
        return lambda x, y: x if _is_words(x) and x == y else None

    @lower_builtin(function, Vectors, Vectors)
    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        own, out = signature.return_type, list[Any]()
        lanes = BACKEND.lanes
        for x, y in zip(*(rows_of(own, value, builder) for value in args), strict=True):
            for eight in (first, first + 2):
                if lanes > EIGHT:
                    numbers = [v * lanes + eight * EIGHT % lanes + i for v in range(2) for i in range(EIGHT)]
                    mask = ir.Constant(ir.VectorType(I32, lanes), numbers)
                    number = eight * EIGHT // lanes
                    out.append(builder.shuffle_vector(x[number], y[number], mask))
                else:
                    part = slice(eight * EIGHT // lanes, (eight + 1) * EIGHT // lanes)
                    out += [*x[part], *y[part]]
        return pack(context, builder, own, out)


_teach_exchange(evens, 0)
_teach_exchange(odds, 1)
