"""Vectors for kernels: `values` is what a kernel says, a `Backend` is how an instruction set does it."""

from models.simd.backend import Backend
from models.simd.choice import BACKEND, BACKENDS, choose
from models.simd.values import (
    as_floats,
    broadcast_floats,
    broadcast_words,
    dot,
    load_bytes,
    load_floats,
    load_ints,
    multiply_add,
    no_floats,
    popcount,
    settle,
    shift,
    start,
    store_floats,
    take,
)

__all__ = [
    "BACKEND",
    "BACKENDS",
    "Backend",
    "as_floats",
    "broadcast_floats",
    "broadcast_words",
    "choose",
    "dot",
    "load_bytes",
    "load_floats",
    "load_ints",
    "multiply_add",
    "no_floats",
    "popcount",
    "settle",
    "shift",
    "start",
    "store_floats",
    "take",
]
