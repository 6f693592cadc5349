"""Binarizing: floats to words of signs with their scales beside them (eq. 3, 4)."""

import numpy as np

from models.jit import kernel
from models.kernels.table import FOUR, ONE, QUARTET, TWO, WORD_LENGTH, ZERO, Buffers, Layer, Plan, Words
from models.simd import (
    Index,
    absolute,
    evens,
    float_bits,
    from_,
    load_word,
    load_words,
    no_words,
    odds,
    shift,
    sign_bits,
    store_signs,
    store_sums,
    take,
)

EVEN, ODD, BYTE = np.uint32(0x00FF00FF), np.uint32(0xFF00FF00), np.uint32(8)


@kernel(forceinline=True, _nrt=False)
def _pair(x: Index, y: Index, words: Words, at: Index) -> None:
    """Store two words as bytes 0, 4, 2, 6 of both, then 1, 5, 3, 7.

    Neighbouring bytes, which have the same weight scale, then stand at the same place of the two words.
    """
    words[at] = (x & EVEN) | ((y & EVEN) << BYTE)
    words[at + ONE] = ((x >> BYTE) & EVEN) | (y & ODD)


@kernel(forceinline=True, _nrt=False)
def pack(plan: Plan, to: Buffers, r: Layer, image: Index, first: Index, last: Index) -> None:
    """Binarize pixels first .. last - 1 of an image of layer r's source (eq. 3, 4); the border is not written.

    One function with all loops: per pixel, a call of another one would count references of its arrays.
    """
    x, words, floats, inside, begin = to.maps, to.words, plan.floats, plan.indices, r.inside
    channels, beta, groups, count, in_shift, wide = r.channels, r.beta, r.groups, r.words, r.in_shift, r.source_wide
    origin, target = r.source + image * r.source_pixels * wide, r.packed + image * r.image
    if beta % WORD_LENGTH == ZERO and groups * beta == channels and channels == count * WORD_LENGTH:
        share, each = np.float32(1) / np.float32(beta), beta // WORD_LENGTH  # no masks, `each` words in a group
        pairs = each // TWO * TWO if r.paired else ZERO
        apart = ONE if last - first >= FOUR else ZERO
        for i in range(first, last, FOUR if apart else ONE):
            p = min(i, last - FOUR) if apart else i
            places = from_(origin + p * wide, QUARTET, apart * wide)
            to_words = shift(take(inside, begin + p, from_(ZERO, QUARTET, apart)), target)
            for g in range(groups):
                start_, parts = g * each, no_words(places)
                for w in range(start_, start_ + pairs, TWO):
                    at = w * WORD_LENGTH
                    y = load_words(x, places, at) + load_word(floats, in_shift + at)
                    at += WORD_LENGTH
                    z = load_words(x, places, at) + load_word(floats, in_shift + at)
                    store_signs(evens(y, z), words, to_words, w)
                    store_signs(odds(y, z), words, to_words, w + ONE)
                    parts = parts + absolute(y) + absolute(z)
                for w in range(start_ + pairs, start_ + each):
                    at = w * WORD_LENGTH
                    y = load_words(x, places, at) + load_word(floats, in_shift + at)
                    store_signs(y, words, to_words, w)
                    parts = parts + absolute(y)
                store_sums(parts, share, words, to_words, count + g)
        return
    for i in range(first, last):
        p, to_word = origin + i * wide, target + inside[begin + i]
        for g in range(groups):
            start_, end = g * beta, min(g * beta + beta, channels)
            total = np.float32(0)
            for c in range(start_, end):
                total += abs(x[p + c] + floats[in_shift + c])
            words[to_word + count + g] = float_bits(total / np.float32(end - start_))
        for k in range(count):
            at = plan.indices[r.origins + k]
            word = sign_bits(load_word(x, p + at) + load_word(floats, in_shift + at))
            words[to_word + k] = word & plan.masks[r.masks + k]
        if r.paired:
            for k in range(ZERO, count // TWO * TWO, TWO):
                _pair(words[to_word + k], words[to_word + k + ONE], words, to_word + k)


@kernel(_nrt=False)
def pack_source(plan: Plan, buffers: Buffers, number: int, images: int) -> None:
    """Binarize the source map of a layer, where no layer before it has done so."""
    r = plan.layers[number]
    for image in range(np.uint64(images)):
        pack(plan, buffers, r, image, ZERO, r.source_pixels)
