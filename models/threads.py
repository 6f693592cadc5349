# mypy: disable-error-code="no-untyped-call"
"""What threads need to work on one network together, for Numba: a counter that they share, and a gate where they meet.

Without Numba the functions mean what their text says, for one thread.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import lower_builtin, type_callable
from numpy.typing import NDArray

from models.jit import kernel

Shared = NDArray[np.int64]
"""Integers that threads share; those that are written often stand SPACING apart, in different lines of the cache."""
SPACING = 8


def add_shared(shared: Shared, i: int, value: int) -> int:
    """shared[i] += value, at once for all threads; what stood there before."""
    before = int(shared[i])
    shared[i] += value
    return before


def read_shared(shared: Shared, i: int) -> int:
    """shared[i], with everything that other threads wrote before they changed it."""
    return int(shared[i])


def give_way() -> int:
    """Let another thread run."""
    return 0


def _teach(function: Any, arity: int, emit: Any) -> None:
    """Teach Numba a function of a shared array and `arity` integers: emit(builder, pointer, *the last of them)."""
    arguments = (types.Array, *(types.Integer,) * arity)

    @type_callable(function)
    def typed(context: Any) -> Any:
        two = lambda shared, i: types.int64  # noqa: E731  Numba reads the number of arguments from the signature
        three = lambda shared, i, value: types.int64  # noqa: E731
        return {1: two, 2: three}[arity]

    @lower_builtin(function, *arguments)
    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        array = signature.args[0]
        whole = context.make_array(array)(context, builder, args[0])
        numbers = [context.cast(builder, a, t, types.int64) for a, t in zip(args[1:], signature.args[1:], strict=True)]
        at = cgutils.get_item_pointer(context, builder, array, whole, numbers[:1])
        return emit(builder, at, *numbers[1:])


_teach(add_shared, 2, lambda builder, at, value: builder.atomic_rmw("add", at, value, "acq_rel"))
_teach(read_shared, 1, lambda builder, at: builder.load_atomic(at, "acquire", 8))


@type_callable(give_way)
def _give_way_type(context: Any) -> Any:
    return lambda: types.int32


@lower_builtin(give_way)
def _give_way(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    kind = ir.FunctionType(ir.IntType(32), [])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])


@kernel(_nrt=False)
def meet(gate: Shared, team: int) -> None:
    """Wait until all threads of a team are here; gate: int64 (2 * SPACING,), zeros at first, for this team alone.

    They spin, for less time than waking a thread takes: the parts of a layer end together.
    """
    if team == 1:
        return
    turn = read_shared(gate, SPACING)
    if add_shared(gate, 0, 1) == team - 1:
        add_shared(gate, 0, -team)
        add_shared(gate, SPACING, 1)
    else:
        while read_shared(gate, SPACING) == turn:
            give_way()
