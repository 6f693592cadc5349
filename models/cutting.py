"""How the weights of a block are cut into words for the kernels, and laid out.

Weights are cut into pieces of at most a word, so that within a piece every byte has one weight scale, and all of it one
activation scale. A block that ends inside a byte ends the piece: then the packed activations hold the word twice, under
two masks. So any beta_w and beta_a and any number of channels are one case, and multiples of 8 cost nothing; multiples
of 16 save a third of the products, because words can go in pairs.
"""

from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.bits import unpack_signs
from models.kernels import ANY_RUNS, MAX_Q, ONE_RUN, PAIR_RUNS, TWO_PAIR_RUNS, WORD_RUNS
from models.simd import WORD_BITS

BYTE_BITS = 8
WORD_BYTES = WORD_BITS // BYTE_BITS
EVEN, ODD = [0, 4, 2, 6], [1, 5, 3, 7]
"""Bytes of two words that stand at the four places of the first and of the second one of a pair."""

KINDS = {(0, 1): WORD_RUNS, (1, 0): PAIR_RUNS, (2, 0): TWO_PAIR_RUNS}
"""By the pairs and single words of a run."""


class Piece(NamedTuple):
    """`length` entries of a tap from `channel` on: in one word, one activation group, and one block in each byte."""

    channel: int
    length: int
    group: int


class Cut(NamedTuple):
    """How a layer reads its packed input, and its weights laid out for that.

    layout: the pieces of a pixel, a word each; spans, kind: as in `kernels.table.FIELDS`; steps: uint8 (O, lines, bytes
    of a word); base: int32 (O, runs), minus the sum of all scales of a run; paired: whether the words' bytes are
    exchanged, pair by pair.
    """

    layout: list[Piece]
    spans: NDArray[np.uint64]
    kind: int
    steps: NDArray[np.uint8]
    base: NDArray[np.int32]
    paired: bool


def pieces(tap: int, c_in: int, beta_w: int, beta_a: int) -> list[Piece]:
    """The c_in entries of K that belong to this tap, cut; beta_w and beta_a are lengths, not 0."""
    out = []
    c = 0
    while c < c_in:
        end = min(c_in, (c // WORD_BITS + 1) * WORD_BITS, (c // beta_a + 1) * beta_a)
        block_end = c + beta_w - (tap * c_in + c) % beta_w
        while block_end < end and block_end % BYTE_BITS == 0:
            block_end += beta_w
        out.append(Piece(c, min(end, block_end) - c, c // beta_a))
        c = min(end, block_end)
    return out


def cut_weights(
    bits: NDArray[np.uint8], q: NDArray[np.uint8], c_in: int, kernel: int, beta_w: int, beta_a: int, width: int
) -> Cut:
    """Arrange bits (O, ceil(K/8)) and q (O, ceil(K/beta_w)) for the kernels; 0 for a beta means all.

    width: pixels of a line of the packed image, border included. Raises ValueError where q exceeds 127, a model's
    bound.
    """
    if q.size and q.max() > MAX_Q:
        raise ValueError(f"block scales go up to {MAX_Q}, not {q.max()}")
    taps, rows = kernel * kernel, len(bits)
    beta_w, beta_a = min(beta_w or taps * c_in, taps * c_in), min(beta_a or c_in, c_in)
    positive = unpack_signs(bits, taps * c_in) > 0
    # Pairs: neighbouring bytes always share a scale, and words 0 and 1, 2 and 3, ... a run.
    paired = beta_w % (2 * BYTE_BITS) == 0 or beta_w == taps * c_in
    paired &= (c_in % (2 * BYTE_BITS) == 0 or taps == 1) and (beta_a == c_in or beta_a % (2 * WORD_BITS) == 0)

    layout: list[Piece] = []
    packed: dict[tuple[Piece, ...], int] = {}  # how a tap is cut -> its first packed word: most taps are cut alike
    runs: list[tuple[int, int, int, int, int]] = []  # tap, word, group, pairs, singles
    steps: list[NDArray[np.uint8]] = []  # (O, bytes of a word)
    base: list[NDArray[np.int32]] = []

    def lines(tap: int, run: list[Piece]) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
        """Of each piece, the inverted sign bits and twice the scale of each byte."""
        signs, scales = [], []
        for piece in run:
            entries = np.arange(tap * c_in + piece.channel, tap * c_in + piece.channel + piece.length)
            places = np.arange(piece.length) + piece.channel % WORD_BITS
            word = np.zeros((rows, WORD_BITS), np.uint8)
            word[:, places] = positive[:, entries]
            scale = np.zeros((rows, WORD_BYTES), np.uint8)
            scale[:, places // BYTE_BITS] = 2 * q[:, entries // beta_w]
            signs.append(np.packbits(word, axis=1, bitorder="little"))
            scales.append(scale)
        return signs, scales

    for tap in range(taps):
        cut = tuple(pieces(tap, c_in, beta_w, beta_a))
        if cut not in packed:
            packed[cut] = len(layout)
            layout += cut
        source = packed[cut]
        for group, members in groupby(cut, key=lambda piece: piece.group):
            run = list(members)
            pairs = len(run) // 2 if paired else 0
            runs.append((tap, source, group, pairs, len(run) - 2 * pairs))
            source += len(run)
            signs, scales = lines(tap, run)
            for k in range(0, 2 * pairs, 2):
                # as `kernels._pair` lays the activations; a byte that is not there has no scale, so either's will do
                x, y = np.concatenate(signs[k : k + 2], 1), np.concatenate(scales[k : k + 2], 1)
                steps += [x[:, EVEN], x[:, ODD], np.maximum(y[:, EVEN], y[:, ODD])]
            for k in range(2 * pairs, len(run)):
                steps += [signs[k], scales[k]]
            entries = slice(tap * c_in + run[0].channel, tap * c_in + run[-1].channel + run[-1].length)
            of_run = np.arange(entries.start, entries.stop) // beta_w
            base.append(-q[:, of_run].sum(1, dtype=np.int32))

    groups = -(-c_in // beta_a)
    spans: list[list[int]] = []
    for tap, word, group, pairs, singles in runs:
        pixel = tap // kernel * width + tap % kernel
        first = pixel * (len(layout) + groups)
        spans.append([first + word, first + len(layout) + group, pairs, singles])
    shapes = {(pairs, singles) for *_, pairs, singles in runs}
    kind = KINDS.get(shapes.pop(), ANY_RUNS) if len(shapes) == 1 else ANY_RUNS
    kind = ONE_RUN if len(runs) == 1 else kind
    return Cut(
        layout, np.array(spans, np.uint64), int(kind), np.stack(steps, 1), np.stack(base, 1), paired and len(layout) > 1
    )
