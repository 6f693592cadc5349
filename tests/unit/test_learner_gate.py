"""The learner's gate and holdout, and the state with which it goes on after it was killed."""

import msgspec
import numpy as np
import pytest

from models.errors import ArtifactError
from onboard import learner as module
from onboard.learner import HOLDOUT_AFTER, Learner, State
from tests.scene import (
    AHEAD,
    BASE,
    CLASSES,
    TILES,
    Scene,
    accuracy,
    learner_of,
    samples,
    take,
)
from tests.small_model import small_model


@pytest.fixture
def base():
    return BASE


# --- the gate -------------------------------------------------------------------------------------------------------


def with_holdout(base, scene: Scene, **changed) -> Learner:
    """A good model, and at least eight labels of its holdout."""
    learner = learner_of(base, holdout=16, **changed)
    while len(learner._split()[1]) < 8:
        take(learner, scene.label(scene.position % 3))
    return learner


def test_the_gate_refuses_harm_and_the_model_stays(base):
    scene = Scene()
    learner = with_holdout(base, scene)
    good = learner.model
    before = accuracy(good, scene)
    # wrong labels, rotated by one class; those that fall to the holdout are right, or they would judge for themselves
    for i in range(400):
        lie = scene.label(i % 3, answer=CLASSES[(i + 1) % 3])
        if module.zlib.crc32(lie.bits + lie.scales) % module.HOLDOUT_EVERY == 0:
            lie = msgspec.structs.replace(lie, answer=CLASSES[i % 3])
        learner.label(lie)
    update = learner.step()
    assert update.verdict == "refused"
    assert update.model is None
    assert "worse on the holdout" in update.why
    assert learner.model is good
    assert learner.rollbacks == 1
    assert accuracy(learner.model, scene) >= before - 0.05
    candidate = learner._candidate(learner._split()[0])
    print(f"the model in force: {before:.2f}, the candidate that was refused: {accuracy(candidate, scene):.2f}")
    assert accuracy(candidate, scene) < 0.5


def test_without_a_holdout_nothing_stops_harm(base):
    """The same lies with the gate off: so it is the gate that stops them."""
    scene = Scene()
    learner = learner_of(base, holdout=0)
    take(learner, *scene.some_labels(60))
    update = take(learner, *[scene.label(i % 3, answer=CLASSES[(i + 1) % 3]) for i in range(400)])
    assert update.verdict == "learned"
    assert accuracy(learner.model, scene) < 0.5


def test_undoing_the_lies_opens_the_gate_again(base):
    scene = Scene()
    learner = with_holdout(base, scene)
    good = learner.model.hash
    lies = []
    while len(lies) < 300:
        lie = scene.label(len(lies) % 3, answer=CLASSES[(len(lies) + 1) % 3])
        if module.zlib.crc32(lie.bits + lie.scales) % module.HOLDOUT_EVERY:
            lies.append(lie)
    assert take(learner, *lies).verdict == "refused"
    take(learner, *[scene.undo(lie) for lie in lies])
    assert learner.model.hash == good
    assert take(learner, scene.label(0), scene.label(1), scene.label(2)).verdict == "learned"


def test_the_gate_refuses_a_head_that_says_one_class(base):
    """All over: no holdout to ask, but the recent frames would all become one class."""
    scene = Scene(noise=0.3)
    learner = learner_of(base, propagate=0.0)
    take(learner, *scene.some_labels(12))
    for _ in range(4):
        learner.observe(scene.observation())
    good = learner.model
    lies = []
    for i in range(144):  # whatever the ground looks like, it is an "a"
        lies.append(scene.label_seen(learner._seen[i % 4], i // 4 % TILES, 0))
    update = take(learner, *lies)
    assert update.verdict == "refused"
    assert "one class" in update.why
    assert learner.model is good


def test_what_judges_is_not_learned_from(base):
    """Two learners whose labels differ only in those that judge: the same heads, until they leave the holdout."""
    scene = Scene()
    plain = scene.some_labels(len(CLASSES) * HOLDOUT_AFTER)
    judges, others = [], []
    while len(judges) < 4:
        given = scene.label(len(others) % 3)
        judge = module.zlib.crc32(given.bits + given.scales) % module.HOLDOUT_EVERY == 0
        (judges if judge else others).append(given)
    labels = sorted(plain + judges + others, key=lambda given: given.position)
    learner = learner_of(base, holdout=4)
    take(learner, *labels)
    memory, holdout = learner._split()
    assert [s.label for s in holdout] == [given.id for given in judges]
    assert not {s.label for s in memory} & {given.id for given in judges}
    without = learner_of(base, holdout=4)
    take(without, *[given for given in labels if given not in judges])
    assert learner.model.hash == without.model.hash

    # a fifth judge takes the oldest one's place: only then is that learned from
    while True:
        given = scene.label(0)
        if module.zlib.crc32(given.bits + given.scales) % module.HOLDOUT_EVERY == 0:
            break
    take(learner, given)
    memory, holdout = learner._split()
    assert judges[0].id in {s.label for s in memory}
    assert [s.label for s in holdout] == [g.id for g in [*judges[1:], given]]
    assert learner.model.hash != without.model.hash


def test_a_rare_class_is_learned_from_at_once(base):
    scene, learner = Scene(), learner_of(base, holdout=16)
    for given in [*(scene.label(0) for _ in range(60)), *(scene.label(1) for _ in range(HOLDOUT_AFTER))]:
        learner.label(given)
    memory, judges = learner._split()
    assert {s.cls for s in judges} == {0}
    assert len([s for s in memory if s.cls == 1]) == HOLDOUT_AFTER


def test_a_judges_neighbours_wait_with_it(base):
    scene, learner = Scene(), learner_of(base, holdout=4)
    seen = [scene.observation() for _ in range(5)]
    for observation in seen:
        learner.observe(observation)
    for given in scene.some_labels(len(CLASSES) * HOLDOUT_AFTER):
        learner.label(given)
    while not learner._split()[1]:
        seen.append(scene.observation())
        learner.observe(seen[-1])
        given = scene.label_seen(seen[-3], 5, 0)
        learner.label(given)
    assert len([s for s in samples(learner) if s.label == given.id]) > 1
    assert given.id not in {s.label for s in learner._split()[0]}


# --- state ----------------------------------------------------------------------------------------------------------


def test_a_learner_that_was_killed_goes_on_with_the_same_hashes(base):
    """Killed after each of many frames; the flight gives the frames around open labels again, as it does in flight."""
    scene = Scene(seed=5)
    seen, turns = [], []
    for frame in range(60):
        seen.append(scene.observation(motion=None if frame % 20 == 0 else AHEAD))
        late = max(0, frame - 4)
        labels = [scene.label_seen(seen[late], (7 * frame) % TILES, frame % 3)] if frame % 2 else []
        if frame == 31:
            labels.append(scene.undo(turns[15][0]))
        turns.append(labels)

    def turn(learner, frame):
        learner.observe(seen[frame])
        take(learner, *turns[frame])
        return learner.model.hash

    uninterrupted = learner_of(base, holdout=4)
    hashes = [turn(uninterrupted, frame) for frame in range(60)]
    assert len(set(hashes)) > 20
    for killed in (0, 1, 3, 20, 30, 31, 32, 47):
        learner = learner_of(base, holdout=4)
        for frame in range(killed + 1):
            turn(learner, frame)
        state = learner.state()
        again = learner_of(base, holdout=4)
        again.restore(state)
        assert again.model.hash == hashes[killed]
        assert (again.position, again.boot, again.frame) == (learner.position, learner.boot, -1)
        for frame in range(killed + 1):
            again.observe(seen[frame])
            assert again.step() is None
        assert again.state() == state
        assert [turn(again, frame) for frame in range(killed + 1, 60)] == hashes[killed + 1 :]
        assert (again.updates, again.rollbacks) == (uninterrupted.updates, uninterrupted.rollbacks)


def test_a_state_between_label_and_step(base):
    scene, learner = Scene(), learner_of(base)
    for given in scene.some_labels(6):
        learner.label(given)
    again = learner_of(base)
    again.restore(learner.state())
    assert again.step().model.hash == learner.step().model.hash


def damaged(state: bytes):
    """States that are not whole: cut off, with a flipped bit, of other values."""
    for cut in (*range(40), *range(40, len(state), 97), len(state) - 1):
        yield f"cut at {cut}", state[:cut]
    fields = msgspec.msgpack.decode(state, type=State)

    def other(**changed):
        return msgspec.msgpack.encode(msgspec.structs.replace(fields, **changed))

    sample = fields.samples[0]

    def spoiled(**changed):
        return other(samples=[msgspec.structs.replace(sample, **changed), *fields.samples[1:]])

    yield "another version", other(version=99)
    yield "another model", other(base_hash="00" * 32)
    yield "another head", other(head_weight=bytes(len(fields.head_weight)))
    yield "a head of another hash", other(model_hash="00" * 32)
    yield "a short head", other(head_weight=fields.head_weight[:-1])
    yield "a head for fewer classes", other(head_weight=fields.head_weight[: 2 * 128], head_bias=fields.head_bias[:4])
    yield "no bias", other(head_bias=b"")
    yield "class 3", spoiled(cls=3)
    yield "class -1", spoiled(cls=-1)
    yield "weight 0", spoiled(weight=0.0)
    yield "weight 2", spoiled(weight=2.0)
    yield "weight nan", spoiled(weight=float("nan"))
    yield "short bits", spoiled(bits=b"1234567")
    yield "no scales", spoiled(scales=b"")
    yield "scales not finite", spoiled(scales=np.full(16, np.inf, np.float16).tobytes())
    swapped = [msgspec.structs.replace(fields.samples[0], bits=bytes(7)), fields.samples[1]]
    swapped[1] = msgspec.structs.replace(swapped[1], bits=bytes(9))
    yield "lengths that make up for each other", other(samples=swapped + fields.samples[2:])
    yield "not MessagePack", b"\xc1" * 50
    yield "something else", msgspec.msgpack.encode({"a": 1})
    yield "text", b"not a state"


def test_a_damaged_or_foreign_state_is_refused_and_changes_nothing(base):
    scene, learner = Scene(), learner_of(base)
    take(learner, *scene.some_labels(12))
    state = learner.state()
    other_scene, victim = Scene(seed=7), learner_of(base)
    take(victim, *other_scene.some_labels(9))
    victim.observe(other_scene.observation())
    before, model, frame = victim.state(), victim.model, victim.frame
    for what, data in damaged(state):
        with pytest.raises(ArtifactError, match=r"^the learner's state cannot be used: .*; it starts anew$"):
            victim.restore(data)
        assert victim.state() == before, what
        assert victim.model is model
        assert victim.frame == frame
    victim.restore(state)
    assert victim.state() == state


def test_flipped_bits_of_a_state_never_do_more_than_refuse(base):
    """A flip inside the features cannot be seen, but whatever is taken must still be fit to be learned from."""
    scene, learner = Scene(), learner_of(base)
    take(learner, *scene.some_labels(6))
    state = learner.state()
    refused = 0
    for at in range(0, len(state), 3):
        data = bytearray(state)
        data[at] ^= 1 << at % 8
        victim = learner_of(base)
        try:
            victim.restore(bytes(data))
        except ArtifactError:
            refused += 1
            continue
        take(victim, msgspec.structs.replace(scene.label(0), position=2**40, id=2**40))
    print(f"{refused} of {len(range(0, len(state), 3))} flips refused")
    assert refused > 100


def test_a_state_of_another_backbone_or_other_classes_is_refused(base):
    scene, learner = Scene(), learner_of(base)
    take(learner, *scene.some_labels(6))
    for foreign in (small_model(CLASSES, seed=1).with_classes(CLASSES), base.with_classes((*CLASSES, "d"))):
        with pytest.raises(ArtifactError, match="another model"):
            learner_of(foreign).restore(learner.state())
