"""Deltas of small models: exact, small, refused where they cannot be, and of a format that stays."""

import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.delta import FORMAT, apply, encode
from models.errors import DeltaError
from models.model import Model, head_shapes
from models.network import Block, NetworkSpec, Stem
from models.rangecoder import Encoder, bit_context

GOLDEN = Path(__file__).parent / "golden"
SPEC = NetworkSpec(
    name="tiny",
    input_size=8,
    mean=(0, 0, 0),
    stem=Stem(channels=4),
    blocks=(Block(channels=16, kernel=3, beta_w=4), Block(channels=8, kernel=1, beta_w=0)),
    taps=(0, 1),
)
"""Rows of 36 and 16 entries: the first ends in 4 bits of padding."""


def random_tensor(rng, spec, name, dtype, shape):
    if dtype == "float32":
        return rng.normal(size=shape).astype(np.float32)
    if dtype == "int8":
        return rng.integers(-127, 128, shape).astype(np.int8)
    if dtype == "int16":
        return rng.integers(-300, 300, shape).astype(np.int16)
    if name.endswith(".q"):
        return rng.integers(1, 128, shape).astype(np.uint8)
    i = int(name[5 : name.index(".")])
    entries = spec.blocks[i].kernel ** 2 * spec.block_inputs()[i]
    return np.packbits(rng.integers(0, 2, (shape[0], entries)).astype(np.uint8), axis=1, bitorder="little")


def random_model(rng, spec=SPEC, classes=("object", "road", "trees")):
    shapes = spec.shapes() | head_shapes(spec, len(classes))
    return Model(spec, {n: random_tensor(rng, spec, n, d, s) for n, (d, s) in shapes.items()}, classes)


def changed(model, rng, *names):
    shapes = {n: (a.dtype.name, a.shape) for n, a in model.tensors.items()}
    return model.with_tensors({n: random_tensor(rng, model.spec, n, *shapes[n]) for n in names})


@pytest.fixture
def rng():
    return np.random.default_rng(17)


@pytest.fixture
def old(rng):
    return random_model(rng)


def assert_exact(old, new):
    payload = encode(old, new)
    assert apply(old, payload).hash == new.hash
    assert encode(old, new) == payload
    return len(payload)


def test_each_tensor_alone_and_all_together(old, rng):
    for name in old.tensors:
        assert_exact(old, changed(old, rng, name))
    assert_exact(old, changed(old, rng, *old.tensors))


def test_no_change_costs_two_bytes(old):
    assert assert_exact(old, old) == 2


def test_extremes_of_every_type(old):
    floats = np.resize(np.float32([0.0, -0.0, 3.4028235e38, -3.4028235e38, 1e-45, -1e-45, 1.0, -1.0]), 16)
    steps = np.resize(np.int16([32767, -32768, 0]), old.tensors["head.weight"].shape)
    scales = np.resize(np.uint8([1, 127]), old.tensors["block0.q"].shape)
    low = old.with_tensors({"block0.s": floats, "head.weight": steps, "block0.q": scales})
    high = old.with_tensors({"block0.s": -floats, "head.weight": ~steps, "block0.q": np.uint8(128) - scales})
    assert_exact(low, high)
    assert_exact(high, low)
    assert_exact(old, low)


def test_classes_replaced_added_reordered_and_dropped():
    rng = np.random.default_rng(2)
    base = random_model(rng, classes=[f"land use {i}" for i in range(21)])
    assert_exact(base, base.with_classes(("object", "road", "trees", "ground")))
    assert_exact(base, random_model(rng, classes=[f"Flüsse und Straßen {i}" for i in range(100)]))
    four = random_model(rng, classes=("a", "b", "c", "d"))
    weight, bias = four.tensors["head.weight"], four.tensors["head.bias"]
    order = [3, 0, 1]
    assert assert_exact(four, four.with_tensors({"head.weight": weight[order], "head.bias": bias[order]}, "dab")) <= 7
    zero = np.zeros_like(weight[:1])
    grown = {"head.weight": np.concatenate([weight, zero]), "head.bias": np.append(bias, np.int16(0))}
    assert assert_exact(four, four.with_tensors(grown, "abcde")) <= 10


def test_payload_is_near_the_entropy_of_what_changed(rng):
    spec = msgspec.structs.replace(SPEC, stem=Stem(channels=128), blocks=tuple(Block(channels=128) for _ in range(3)))
    old = random_model(rng, msgspec.structs.replace(spec, taps=(2,)))
    entropy, flipped = 0.0, {}
    for name in ("block0.bits", "block1.bits", "block2.bits"):
        flips = rng.random(old.tensors[name].size * 8) < 0.01
        share = flips.mean()
        entropy -= flips.size * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
        packed = np.packbits(flips, bitorder="little").reshape(old.tensors[name].shape)
        flipped[name] = old.tensors[name] ^ packed
    q = old.tensors["block1.q"].astype(int)
    step = rng.choice([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1], q.shape)
    flipped["block1.q"] = np.clip(q + step, 1, 127).astype(np.uint8)
    share = np.unique(flipped["block1.q"] - q, return_counts=True)[1] / q.size
    entropy -= q.size * (share * np.log2(share)).sum()
    assert assert_exact(old, old.with_tensors(flipped)) < 1.02 * entropy / 8 + 16


def test_rows_that_sum_to_zero_cost_less(rng):
    old = random_model(rng)
    step = rng.integers(-20, 21, old.tensors["head.weight"].shape)
    free = old.with_tensors({"head.weight": (old.tensors["head.weight"] + step).astype(np.int16)})
    step[-1] = -step[:-1].sum(axis=0)
    balanced = old.with_tensors({"head.weight": (old.tensors["head.weight"] + step).astype(np.int16)})
    assert assert_exact(old, balanced) < 0.8 * assert_exact(old, free)


def test_what_no_delta_can_do_is_refused(old, rng):
    other = random_model(rng, msgspec.structs.replace(SPEC, name="other"))
    with pytest.raises(DeltaError, match="'tiny' and 'other' differ"):
        encode(old, other)
    with pytest.raises(DeltaError, match="257 bytes"):
        encode(old, old.with_classes(("x" * 257,)))
    with pytest.raises(DeltaError, match="0 bytes"):
        encode(old, old.with_classes(("",)))
    bits = old.tensors["block0.bits"].copy()
    bits[3, -1] ^= 0x80
    with pytest.raises(DeltaError, match=r"block0\.bits"):
        encode(old, old.with_tensors({"block0.bits": bits}))


def payload_of(write):
    encoder = Encoder()
    write(encoder)
    return bytes([FORMAT]) + encoder.finish()


def names_payload(*parts):
    """A payload that replaces the classes; a part is (value, bits)."""

    def write(encoder):
        for value, bits in ((1, 1), *parts):
            encoder.uniform(value, bits)

    return payload_of(write)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "starts with nothing"),
        (b"\xd2\x00", "starts with d2"),
        (bytes([FORMAT]), "damaged or cut off"),
        (names_payload((0, 7), (1, 1), (3, 7)), "keeps class 3, but the model has 3"),
        (names_payload((0, 7), (0, 1), (0, 8), (0xFF, 8)), "not UTF-8"),
        (names_payload((1, 7), (1, 1), (2, 7), (1, 1), (2, 7)), "some of them twice"),
        (names_payload((100, 7), *((0, 1), (0, 8), (33, 8)) * 101), "101 class names"),
    ],
)
def test_bad_headers(old, payload, message):
    with pytest.raises(DeltaError, match=message):
        apply(old, payload)


def test_values_out_of_bounds_are_refused(old, rng):
    """Payloads that are sound for one parent lead another one out of bounds."""
    high = old.with_tensors(
        {"head.bias": np.int16([32767, 0, 0]), "block0.q": np.full_like(old.tensors["block0.q"], 120)}
    )
    low = old.with_tensors({"head.bias": np.int16([0, 0, 0]), "block0.q": np.full_like(old.tensors["block0.q"], 1)})
    top = np.full(16, 3e38, np.float32)
    for name, message in (("head.bias", "outside int16"), ("block0.q", "outside 1..127")):
        with pytest.raises(DeltaError, match=f"{name}.*{message}"):
            apply(high, encode(low, low.with_tensors({name: high.tensors[name]})))
    with pytest.raises(DeltaError, match=r"block0\.s.*not finite"):
        apply(
            old.with_tensors({"block0.s": top}),
            encode(old.with_tensors({"block0.s": top / 2}), old.with_tensors({"block0.s": top})),
        )


def test_flags_and_flips_behind_the_end_are_refused(old):
    names = list(old.tensors)

    def write(encoder, flags, flips):
        encoder.uniform(0, 1)
        encoder.bits(np.packbits(flags, bitorder="little"), bit_context())
        encoder.bits(flips, bit_context())

    beyond = np.zeros(-(-(len(names) + 1) // 8) * 8, np.uint8)
    beyond[-1] = 1
    with pytest.raises(DeltaError, match="does not have"):
        apply(old, payload_of(lambda e: write(e, beyond, np.zeros(0, np.uint8))))
    flips = np.zeros(old.tensors["block0.bits"].size, np.uint8)
    flips[4] = 0x10
    with pytest.raises(DeltaError, match="behind the 36 entries"):
        apply(old, payload_of(lambda e: write(e, [n == "block0.bits" for n in names], flips)))


def golden_models():
    """The JSON twin: tensors it does not list are zero, scales one."""
    twin = json.loads((GOLDEN / "delta.json").read_text())
    spec = msgspec.convert(twin["spec"], NetworkSpec)
    models = []
    for side in (twin["old"], twin["new"]):
        shapes = spec.shapes() | head_shapes(spec, len(side["classes"]))
        tensors = {n: np.full(s, n.endswith(".q"), d) for n, (d, s) in shapes.items()}
        tensors |= {n: np.array(values, shapes[n][0]) for n, values in side["tensors"].items()}
        models.append(Model(spec, tensors, side["classes"]))
    return models


def test_the_format_stays():
    """A payload written once is still read and still written; run this file to write both anew for a new FORMAT."""
    old, new = golden_models()
    payload = (GOLDEN / "delta.bin").read_bytes()
    assert apply(old, payload).hash == new.hash
    assert encode(old, new) == payload


def main():
    rng = np.random.default_rng(1)
    old = random_model(rng, classes=("object", "road"))
    new = random_model(rng, classes=("road", "wäldchen", "object"))
    names = ("block0.bits", "block1.q", "block1.shift", "head.weight", "head.bias")
    sides = {}
    for side, model in (("old", old), ("new", new)):
        sides[side] = {"classes": model.classes, "tensors": {n: model.tensors[n].tolist() for n in names}}
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "delta.json").write_text(json.dumps({"spec": msgspec.to_builtins(SPEC), **sides}) + "\n")
    (GOLDEN / "delta.bin").write_bytes(encode(*golden_models()))


if __name__ == "__main__":
    sys.exit(main())
