"""The learner's gate and its judges, and the state with which it goes on after it was killed."""

import msgspec
import numpy as np
import pytest

from models.errors import ArtifactError
from onboard.head import head_logits
from onboard.learner import Learner, State, sign_test
from tests.scene import (
    AHEAD,
    BASE,
    CLASSES,
    TILES,
    Scene,
    accuracy,
    learner_of,
    take,
)
from tests.small_model import small_model


@pytest.fixture
def base():
    return BASE


# --- the gate -------------------------------------------------------------------------------------------------------


def with_judges(base, scene: Scene, labels: int = 120, **changed) -> Learner:
    """A learner with a good model in force, learned label by label, and 32 judges."""
    learner = learner_of(base, judges=32, **changed)
    for i in range(labels):
        take(learner, scene.label(i % 3))
    assert len(learner._honest) == 32
    return learner


def spoil(learner: Learner, monkeypatch) -> None:
    """From now on candidates are what a fault of the fit would make of them: their classes change places."""
    fit = Learner._fit

    def spoiled(self, rows, gram, numbers, *rest):
        return fit(self, rows, gram, (numbers + 1) % 3, *rest)

    monkeypatch.setattr(Learner, "_fit", spoiled)


def test_the_gate_refuses_harm_and_the_model_stays(base, monkeypatch):
    scene = Scene()
    learner = with_judges(base, scene)
    good = learner.model
    before = accuracy(good, scene)
    spoil(learner, monkeypatch)
    update = take(learner, scene.label(0))
    assert (update.verdict, update.model) == ("refused", None)
    assert "worse before the judges" in update.why
    assert learner.model is good
    assert learner.rollbacks == 1
    recent = np.concatenate(learner._last_values())
    candidate, _ = learner._candidate(learner._memory.chosen(), recent)
    print(f"the model in force: {before:.2f}, the candidate that was refused: {accuracy(candidate, scene):.2f}")
    assert accuracy(candidate, scene) < 0.5
    monkeypatch.undo()
    assert take(learner, scene.label(1)).verdict == "learned"
    assert accuracy(learner.model, scene) >= before - 0.03


def test_without_judges_nothing_stops_harm(base, monkeypatch):
    """The same fault with the gate off: so it is the gate that stops it."""
    scene = Scene()
    learner = learner_of(base, judges=0)
    take(learner, *scene.some_labels(60))
    spoil(learner, monkeypatch)
    assert take(learner, scene.label(0)).verdict == "learned"
    assert accuracy(learner.model, scene) < 0.5


def test_what_harm_came_into_force_is_gone_with_the_next_label(base, monkeypatch):
    """However it came there: the next fit starts from the labels, and the judges prefer it."""
    scene = Scene()
    learner = with_judges(base, scene)
    before = accuracy(learner.model, scene)
    spoil(learner, monkeypatch)
    learner._settings = msgspec.structs.replace(learner._settings, judges=0)
    take(learner, scene.label(0))
    assert accuracy(learner.model, scene) < 0.5
    monkeypatch.undo()
    learner._settings = msgspec.structs.replace(learner._settings, judges=32)
    assert take(learner, scene.label(1)).verdict == "learned"
    assert accuracy(learner.model, scene) >= before - 0.03


def test_a_third_of_wrong_labels_does_little_harm(base):
    """They are outvoted; and as judges they say the same of every candidate."""
    for seed in range(4):
        scene = Scene(seed=seed)
        learner, random = with_judges(base, scene, 60), np.random.default_rng(seed)
        before = worst = accuracy(learner.model, scene)
        for i in range(200):
            cls = i % 3
            take(learner, scene.label(cls, answer=CLASSES[(cls + int(random.random() < 0.3)) % 3]))
            worst = min(worst, accuracy(learner.model, scene, 200)) if i % 10 == 0 else worst
        print(f"seed {seed}: {before:.3f} before, at worst {worst:.3f} with 30% wrong labels")
        assert worst > before - 0.12


def test_undoing_the_lies_brings_the_old_model_back(base):
    scene = Scene()
    learner = with_judges(base, scene)
    good = learner.model.hash
    lies = [scene.label(i % 3, answer=CLASSES[(i + 1) % 3]) for i in range(200)]
    take(learner, *lies)
    assert learner.model.hash != good
    take(learner, *[scene.undo(lie) for lie in lies])
    assert learner.model.hash == good
    assert take(learner, scene.label(0), scene.label(1), scene.label(2)).verdict == "learned"


def test_the_gate_refuses_a_head_that_says_one_class(base, monkeypatch):
    """All over: no judges to ask, but the recent frames would all become one class."""
    scene = Scene(noise=0.3)
    learner = learner_of(base)
    take(learner, *scene.some_labels(12))
    for _ in range(4):
        learner.observe(scene.observation())
    good, fit = learner.model, Learner._fit

    def biased(self, *args):
        model, said = fit(self, *args)
        return model.with_tensors({"head.bias": np.array([30000, 0, 0], np.int16)}), said

    monkeypatch.setattr(Learner, "_fit", biased)
    update = take(learner, scene.label(0))
    assert update.verdict == "refused"
    assert "one class" in update.why
    assert learner.model is good


def test_no_judge_was_learned_from_by_what_it_judges(base):
    """Every label is learned from at once; but what is said of it as a judge is what a fit without it says."""
    scene = Scene(noise=3.0)
    learner = learner_of(base, judges=32)
    labels = scene.some_labels(60)
    take(learner, *labels)
    assert len(learner._honest) == 32
    agree = clear = 0
    for given in labels[-32:]:
        without = learner_of(base)
        take(without, *[other for other in labels if other is not given])
        outputs = head_logits(without.model, learner._packing.values(given.bits, given.scales))[0]
        first, second = np.sort(outputs)[::-1][:2]
        if first - second > 0.3:  # the balance of classes is a little another without it
            clear += 1
            agree += learner._honest[given.id] == CLASSES[outputs.argmax()]
    print(f"{clear} clear of 32, {agree} agree")
    assert clear > 15
    assert agree == clear


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

    uninterrupted = learner_of(base, judges=4)
    hashes = [turn(uninterrupted, frame) for frame in range(60)]
    assert len(set(hashes)) > 20
    for killed in (0, 1, 3, 20, 30, 31, 32, 47):
        learner = learner_of(base, judges=4)
        for frame in range(killed + 1):
            turn(learner, frame)
        state = learner.state()
        again = learner_of(base, judges=4)
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

    lesson = fields.lessons[0]

    def spoiled(**changed):
        return other(lessons=[msgspec.structs.replace(lesson, **changed), *fields.lessons[1:]])

    yield "another version", other(version=99)
    yield "another model", other(base_hash="00" * 32)
    yield "another head", other(head_weight=bytes(len(fields.head_weight)))
    yield "a head of another hash", other(model_hash="00" * 32)
    yield "a short head", other(head_weight=fields.head_weight[:-1])
    yield "a head for fewer classes", other(head_weight=fields.head_weight[: 2 * 128], head_bias=fields.head_bias[:4])
    yield "no bias", other(head_bias=b"")
    yield "a head of more classes", other(classes=(*fields.classes, "d"))
    yield "weight 0", spoiled(weights=(0.0,))
    yield "weight 2", spoiled(weights=(2.0,))
    yield "weight nan", spoiled(weights=(float("nan"),))
    yield "no weights", spoiled(weights=())
    yield "too many weights", spoiled(weights=(0.5, 0.5))
    yield "short bits", spoiled(bits=b"1234567")
    yield "no scales", spoiled(scales=b"")
    yield "scales not finite", spoiled(scales=np.full(16, np.inf, np.float16).tobytes())
    swapped = [msgspec.structs.replace(fields.lessons[0], bits=bytes(7)), fields.lessons[1]]
    swapped[1] = msgspec.structs.replace(swapped[1], bits=bytes(9))
    yield "lengths that make up for each other", other(lessons=swapped + fields.lessons[2:])
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


def test_sign_test_equals_counting_all_throws():
    for n in range(1, 11):
        heads = [bin(throw).count("1") for throw in range(2**n)]
        for gains in range(n + 1):
            assert sign_test(gains, n - gains) == sum(h <= gains for h in heads) / 2**n
