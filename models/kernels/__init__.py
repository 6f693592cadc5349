"""The kernels of inference on `models.simd`: a whole network on packed bits, from pixels to the moments of its taps.

Lanes are output channels: weights lie as lines of vectors, so that one 32-bit word of activations meets a vector of
weight words and nothing is added across a vector. Each byte of a word, 8 inputs, has a weight scale of its own; a *run*
is a range of words that has one activation scale; `models.plan` cuts them. Agreeing signs are counted, times twice the
scale, on top of minus the sum of all scales: that is eq. 7 in integers. Where a scale holds for 16 inputs or more,
words go in *pairs*: their bytes lie so that both words have the same scale at each place, and one product serves both.

All arrays are flat. Feature maps hold their channels padded to whole words; what stands in the padding is finite and
never counts. Packed ones have a border for the zero padding: its scales are zero, so its bits do not matter.
Hot indices are uint64: Numba asks of every signed one whether it is negative. `_nrt=False`: no kernel makes an array,
so nothing is gained by counting references to those that come in, which takes longer than a short sum.
"""

from models.kernels.convolution import convolve
from models.kernels.packing import pack_source
from models.kernels.table import (
    ANY_RUNS,
    FLIP,
    LAYER,
    LINE,
    MAX_Q,
    NONE,
    ONE,
    ONE_RUN,
    PAIR_RUNS,
    PANEL,
    ROW_NUMBERS,
    ROWS,
    SHARED,
    STEP,
    STEPS,
    TWO_PAIR_RUNS,
    WIDTH,
    WORD_RUNS,
    ZERO,
    Buffers,
    Floats,
    Plan,
)
from models.kernels.whole import network, run_layer

__all__ = [
    "ANY_RUNS",
    "FLIP",
    "LAYER",
    "LINE",
    "MAX_Q",
    "NONE",
    "ONE",
    "ONE_RUN",
    "PAIR_RUNS",
    "PANEL",
    "ROWS",
    "ROW_NUMBERS",
    "SHARED",
    "STEP",
    "STEPS",
    "TWO_PAIR_RUNS",
    "WIDTH",
    "WORD_RUNS",
    "ZERO",
    "Buffers",
    "Floats",
    "Plan",
    "convolve",
    "network",
    "pack_source",
    "run_layer",
]
