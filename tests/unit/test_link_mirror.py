"""The mirror follows what flies, and nothing else."""

import msgspec
import numpy as np
import pytest

from link.messages import Delta
from link.mirror import Mirror
from models.delta import encode
from models.errors import DeltaError
from models.model import Model, head_shapes
from models.network import Block, NetworkSpec, Stem

SPEC = NetworkSpec(
    name="tiny", input_size=8, mean=(0, 0, 0), stem=Stem(channels=2),
    blocks=(Block(channels=4, kernel=1, beta_w=0),), taps=(0,),
)  # fmt: skip


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def base(rng):
    shapes = SPEC.shapes() | head_shapes(SPEC, 2)
    tensors = {n: np.ones(shape, dtype) for n, (dtype, shape) in shapes.items()}
    return Model(SPEC, {n: a if n != "block0.bits" else a & 0 for n, a in tensors.items()}, ("road", "trees"))


def learn(model, rng):
    head = rng.integers(-300, 300, model.tensors["head.weight"].shape).astype(np.int16)
    return model.with_tensors({"head.weight": head})


def delta(old, new, **fields):
    parent, result = bytes.fromhex(old.hash), bytes.fromhex(new.hash)
    return Delta(**{"parent": parent, "result": result, "frame": 1, "payload": encode(old, new)} | fields)


def test_it_follows_a_flight(base, rng):
    mirror, model = Mirror(base), base
    for reason in ("learned", "learned", "rollback", "anchor", "classes"):
        new = {"rollback": base, "classes": model.with_classes(("road", "snow"))}.get(reason) or learn(model, rng)
        mirror.apply(delta(model, new, reason=reason))
        assert mirror.hash == bytes.fromhex(new.hash)
        assert mirror.model.classes == new.classes
        model = new
    assert (mirror.applied, mirror.ignored) == (5, 0)


def test_the_same_again_is_ignored(base, rng):
    mirror = Mirror(base)
    step = delta(base, learn(base, rng))
    mirror.apply(step)
    mirror.apply(step)
    assert (mirror.applied, mirror.ignored) == (1, 1)
    assert mirror.hash == step.result


def test_another_parent_is_refused_and_a_resync_helps(base, rng):
    first = learn(base, rng)
    second = learn(first, rng).with_classes(("road", "trees", "snow"))
    mirror = Mirror(base)
    with pytest.raises(DeltaError, match=f"for model {first.hash[:12]}, but the mirror is {base.hash[:12]}: ask"):
        mirror.apply(delta(first, second))
    assert mirror.model is base
    mirror.apply(delta(base, second, reason="resync"))
    assert mirror.model.classes == second.classes
    third = learn(second, rng)
    mirror.apply(delta(second, third))
    assert mirror.hash == bytes.fromhex(third.hash)
    with pytest.raises(DeltaError, match="but the base is"):
        mirror.apply(delta(second, first, reason="resync"))


def test_a_resync_applies_to_the_base_wherever_the_mirror_is(base, rng):
    mirror = Mirror(base)
    mirror.apply(delta(base, learn(base, rng)))
    other = learn(base, rng)
    mirror.apply(delta(base, other, reason="resync"))
    assert mirror.hash == bytes.fromhex(other.hash)


def test_a_result_that_does_not_come_out_is_refused(base, rng):
    mirror, new = Mirror(base), learn(base, rng)
    lie = delta(base, new, result=bytes(32))
    with pytest.raises(DeltaError, match=f"leads to model {new.hash[:12]} and not to 0000"):
        mirror.apply(lie)
    good = delta(base, new)
    damaged = msgspec.structs.replace(good, payload=good.payload[:-2])
    with pytest.raises(DeltaError):
        mirror.apply(damaged)
    assert (mirror.model, mirror.applied) == (base, 0)
    mirror.apply(good)
    assert mirror.applied == 1
