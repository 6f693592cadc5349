"""The difference between two models of one network in few bytes: what a drone streams after each update.

A payload is a format byte and one range-coded stream: the class names if they changed, a flag per tensor in
alphabetical order, then the changed tensors. Sign bits are coded as the bitmap of their flips; int16 and uint8 steps as
differences; float32 as the difference of their places in the order of all float32, which loses nothing. The
classifier's rows follow their class names: a class that stays is coded against its old row, a new one against zeros.

The payload names neither parent nor result: `link.messages.Delta` does, and whoever applies it compares the hashes.
"""

import math
from collections.abc import Sequence
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from models.errors import ArtifactError, DeltaError
from models.model import MAX_CLASSES, Array, Model
from models.rangecoder import Decoder, Encoder, bit_context, integer_contexts, warm_up

FORMAT = 0xD1
"""First byte of a payload; another format gets another."""
MAX_NAME_BYTES = 256
"""Bound on a class name in UTF-8."""

_COUNT_BITS = 7  # for 0 .. MAX_CLASSES - 1
_LENGTH_BITS = 8  # for 0 .. MAX_NAME_BYTES - 1
assert MAX_CLASSES <= 1 << _COUNT_BITS
assert MAX_NAME_BYTES <= 1 << _LENGTH_BITS


def encode(old: Model, new: Model) -> bytes:
    """The payload with which `apply(old, payload)` gives a model of the same hash as `new`.

    Raises DeltaError where no payload can do that: another network, class names longer than `MAX_NAME_BYTES`, sign bits
    that differ behind the end of a row.
    """
    if old.spec != new.spec:
        raise DeltaError(
            f"a delta stays within one network, but '{old.spec.name}' and '{new.spec.name}' differ: send the model"
        )
    warm_up()
    encoder = Encoder()
    _encode_classes(encoder, old.classes, new.classes)
    base = _base(old, new.classes)
    flags = [base[name].tobytes() != new.tensors[name].tobytes() for name in base]
    encoder.bits(np.packbits(flags, bitorder="little"), bit_context())
    for name in compress(base, flags):
        if name.endswith(".bits"):
            flips = _signs(base[name]) ^ _signs(new.tensors[name])
            _check_padding(old, name, flips)
            encoder.bits(flips.reshape(-1), bit_context())
        else:
            _encode_steps(encoder, name, _places(new.tensors[name]) - _places(base[name]))
    return bytes([FORMAT]) + encoder.finish()


def apply(old: Model, payload: bytes) -> Model:
    """The model that `payload` makes of `old`; work and memory are bounded by the size of `old`.

    Raises DeltaError where the payload is damaged, cut off, of another format, or leads to values out of bounds. A
    payload for another parent may still decode: compare the result's hash with the message's.
    """
    if payload[:1] != bytes([FORMAT]):
        raise DeltaError(f"not a delta of format 0x{FORMAT:02x}: it starts with {payload[:1].hex() or 'nothing'}")
    warm_up()
    decoder = Decoder(payload[1:])
    classes = _decode_classes(decoder, old.classes)
    base = _base(old, classes)
    flags = np.unpackbits(decoder.bits(-(-len(base) // 8), bit_context()), bitorder="little")
    if flags[len(base) :].any():
        raise DeltaError("the delta changes tensors that this network does not have: it is damaged")
    changed = dict(base) if classes != old.classes else {}
    for name in compress(base, flags):
        if name.endswith(".bits"):
            flips = decoder.bits(base[name].size, bit_context()).reshape(base[name].shape)
            _check_padding(old, name, flips)
            changed[name] = _signs(base[name]) ^ flips
        else:
            steps = _decode_steps(decoder, name, base[name].shape)
            changed[name] = _from_places(name, base[name].dtype, _places(base[name]) + steps)
    decoder.finish()
    try:
        return old.with_tensors(changed, classes)
    except ArtifactError as error:
        raise DeltaError(f"the delta leads to a model that cannot be: {error}") from error


def _base(old: Model, classes: Sequence[str]) -> dict[str, Array]:
    """What the tensors are coded against: the old ones, and for the classifier the old rows of the same names."""
    base = dict(old.tensors)
    rows = [old.classes.index(name) if name in old.classes else -1 for name in classes]
    for name in ("head.weight", "head.bias"):
        zero = np.zeros_like(base[name][:1])
        base[name] = np.concatenate([base[name], zero])[rows]
    return base


def _encode_classes(encoder: Encoder, old: Sequence[str], new: Sequence[str]) -> None:
    encoder.uniform(int(old != new), 1)
    if old == new:
        return
    encoder.uniform(len(new) - 1, _COUNT_BITS)
    for name in new:
        encoder.uniform(int(name in old), 1)
        if name in old:
            encoder.uniform(old.index(name), _COUNT_BITS)
            continue
        utf8 = name.encode()
        if not 1 <= len(utf8) <= MAX_NAME_BYTES:
            raise DeltaError(f"class name '{name}' has {len(utf8)} bytes; 1 to {MAX_NAME_BYTES} can be sent")
        encoder.uniform(len(utf8) - 1, _LENGTH_BITS)
        for byte in utf8:
            encoder.uniform(byte, 8)


def _decode_classes(decoder: Decoder, old: tuple[str, ...]) -> tuple[str, ...]:
    if not decoder.uniform(1):
        return old
    names = []
    for _ in range(decoder.uniform(_COUNT_BITS) + 1):
        if decoder.uniform(1):
            index = decoder.uniform(_COUNT_BITS)
            if index >= len(old):
                raise DeltaError(f"the delta keeps class {index}, but the model has {len(old)}: another parent?")
            names.append(old[index])
            continue
        utf8 = bytes(decoder.uniform(8) for _ in range(decoder.uniform(_LENGTH_BITS) + 1))
        try:
            names.append(utf8.decode())
        except UnicodeDecodeError as error:
            raise DeltaError(f"the delta holds a class name that is not UTF-8: {utf8!r}") from error
    if len(names) > MAX_CLASSES or len(set(names)) != len(names):
        raise DeltaError(f"the delta holds {len(names)} class names, more than {MAX_CLASSES} or some of them twice")
    return tuple(names)


def _encode_steps(encoder: Encoder, name: str, steps: NDArray[np.int64]) -> None:
    """Code differences. Gradients of a softmax sum to zero over the classes, and so do, nearly, a classifier's steps.

    Then the sum of all rows is coded in place of the last one: 15% less for four classes, half for two.
    """
    parts = [steps]
    if name == "head.weight":
        total = steps.sum(axis=0)
        balanced = np.abs(total).sum() < np.abs(steps[-1]).sum()
        encoder.uniform(int(balanced), 1)
        if balanced:
            parts = [steps[:-1], total]
    for part in parts:
        flat = part.reshape(-1)
        encoder.integers((flat << 1) ^ (flat >> 63), integer_contexts())  # 0, -1, 1, -2, .. become 0, 1, 2, 3, ..


def _decode_steps(decoder: Decoder, name: str, shape: tuple[int, ...]) -> NDArray[np.int64]:
    if name == "head.weight" and decoder.uniform(1):
        first = _decode_part(decoder, (shape[0] - 1, *shape[1:]))
        total = _decode_part(decoder, shape[1:])
        return np.concatenate([first, (total - first.sum(axis=0))[np.newaxis]])
    return _decode_part(decoder, shape)


def _decode_part(decoder: Decoder, shape: tuple[int, ...]) -> NDArray[np.int64]:
    codes = decoder.integers(math.prod(shape), integer_contexts())
    return ((codes >> 1) ^ -(codes & 1)).reshape(shape)


def _signs(bits: Array) -> NDArray[np.uint8]:
    return bits.astype(np.uint8, copy=False)


def _check_padding(model: Model, name: str, flips: NDArray[np.uint8]) -> None:
    """The bits behind the last entry of a row are zero in every model, so none of them may flip."""
    i = int(name.removeprefix("block").removesuffix(".bits"))
    entries = model.spec.blocks[i].kernel ** 2 * model.spec.block_inputs()[i]
    if entries % 8 and (flips[:, -1] >> (entries % 8)).any():
        raise DeltaError(f"tensor {name}: bits behind the {entries} entries of a row change, which no model may")


def _places(array: Array) -> NDArray[np.int64]:
    """Integers as they are; float32 by their place in the order of all float32, so that neighbours differ by one."""
    if array.dtype != np.float32:
        return array.astype(np.int64)
    raw = array.view(np.int32).astype(np.int64)
    return np.where(raw < 0, raw ^ 0x7FFFFFFF, raw)


def _from_places(name: str, dtype: np.dtype[np.generic], places: NDArray[np.int64]) -> Array:
    """Back from `_places`. Raises DeltaError where a value has no place in the dtype."""
    info = np.iinfo("int32" if dtype == np.float32 else dtype.name)
    if places.size and not info.min <= int(places.min()) <= int(places.max()) <= info.max:
        raise DeltaError(f"tensor {name}: the delta leads outside {dtype}: damaged, or for another parent")
    if dtype != np.float32:
        return places.astype(dtype)
    return np.where(places < 0, places ^ 0x7FFFFFFF, places).astype(np.int32).view(np.float32)
