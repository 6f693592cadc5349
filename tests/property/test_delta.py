"""Random changes of random small models come back exactly; damaged payloads end in DeltaError or another model."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.delta import apply, encode
from models.errors import DeltaError
from models.model import Model
from models.network import Block, NetworkSpec, Stem
from tests.unit.test_delta import random_model, random_tensor

blocks = st.builds(
    Block,
    channels=st.integers(1, 12),
    kernel=st.sampled_from([1, 3]),
    beta_w=st.sampled_from([0, 1, 3, 16]),
)


@st.composite
def specs(draw):
    chain = tuple(draw(st.lists(blocks, min_size=1, max_size=3)))
    return NetworkSpec(
        name="drawn",
        input_size=8,
        mean=(0, 0, 0),
        stem=Stem(channels=draw(st.integers(1, 9)), kernel=1),
        blocks=chain,
        taps=(len(chain) - 1,),
    )


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=16)
class_lists = st.lists(names, min_size=1, max_size=8, unique=True)


@st.composite
def changes(draw):
    """A model, and what it became: some tensors redrawn in a share of their places, perhaps other classes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    old = random_model(rng, draw(specs()), draw(class_lists))
    new = old
    if draw(st.booleans()):
        kept = draw(st.permutations(old.classes)) if draw(st.booleans()) else list(old.classes)
        classes = [*kept, *(c for c in draw(class_lists) if c not in kept)]
        new = old.with_classes(classes[draw(st.integers(0, len(classes) - 1)) :])
    picked = draw(st.lists(st.sampled_from(sorted(new.tensors)), unique=True, max_size=6))
    share = draw(st.sampled_from([0.01, 0.3, 1.0]))
    tensors = {}
    for name in picked:
        array = new.tensors[name]
        fresh = random_tensor(rng, new.spec, name, array.dtype.name, array.shape)
        tensors[name] = np.where(rng.random(array.shape) < share, fresh, array)
    return old, new.with_tensors(tensors)


def outcome(old, payload):
    """The hash of what comes out, which is a sound model of the same network; or None where it is refused."""
    try:
        result = apply(old, payload)
    except DeltaError:
        return None
    assert result.spec == old.spec
    return Model(result.spec, result.tensors, result.classes).hash


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes())
def test_exact_round_trip(change):
    old, new = change
    before = old.hash
    result = apply(old, encode(old, new))
    assert result.hash == new.hash
    assert result.classes == new.classes
    assert Model(old.spec, old.tensors, old.classes).hash == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes())
def test_a_cut_payload_never_gives_the_new_model(change):
    old, new = change
    payload = encode(old, new)
    for i in range(len(payload)):
        assert outcome(old, payload[:i]) != new.hash


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes(), st.integers(0, 2**32))
def test_flipped_bytes_give_an_error_or_a_model_of_the_network(change, seed):
    """The last byte leaves some slack, so that the right model may come out even so; its hash tells."""
    old, new = change
    payload = encode(old, new)
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(300):
        flipped = bytearray(payload)
        flipped[rng.integers(len(payload))] ^= rng.integers(1, 256)
        refused += outcome(old, bytes(flipped)) != new.hash
    assert refused > 100


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_end_well(data):
    old = random_model(np.random.default_rng(0))
    outcome(old, data)
    outcome(old, b"\xd1" + data)


def test_a_payload_for_another_parent_does_not_give_its_result():
    rng = np.random.default_rng(4)
    old, stranger = random_model(rng), random_model(rng)
    new = old.with_tensors({"block0.bits": random_model(rng).tensors["block0.bits"]})
    assert apply(stranger, encode(old, new)).hash not in (new.hash, stranger.hash)
