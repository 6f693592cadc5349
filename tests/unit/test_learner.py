"""The learner: an exact head from late labels, and a memory that reaches the same ground and forgets on demand.

Scenes are made by hand: each class has a direction of its own in feature space, and the ground moves under the grid
by known motions. The features go through the same packing as the flight's.
"""

from collections import Counter

import msgspec
import numpy as np
import pytest

from models.errors import ArtifactError
from onboard.head import head_logits
from onboard.learner import HISTORY_FRAMES, NEIGHBOUR, GivenLabel, Learner
from onboard.memory import RESERVE, products
from tests.scene import (
    AHEAD,
    BASE,
    CLASSES,
    COLS,
    ROWS,
    STILL,
    TILES,
    Scene,
    accuracy,
    learner_of,
    lessons,
    take,
)
from tests.small_model import small_model


@pytest.fixture
def base():
    return BASE


# --- learning -------------------------------------------------------------------------------------------------------


def test_labels_make_a_head_that_knows_the_classes(base):
    scene = Scene()
    learner = learner_of(base)
    update = take(learner, *scene.some_labels(30))
    assert update.verdict == "learned"
    assert update.model is learner.model
    assert update.labels == 30
    before, after = accuracy(base, scene), accuracy(learner.model, scene)
    print(f"30 labels: {before:.2f} -> {after:.2f}")
    assert before < 0.45
    assert after > 0.9
    assert learner.step() is None
    frozen = set(base.tensors) - {"head.weight", "head.bias"}
    assert all(base.tensors[name] is learner.model.tensors[name] for name in frozen)


def test_one_class_teaches_nothing(base):
    scene = Scene()
    learner = learner_of(base)
    assert take(learner, scene.label(0), scene.label(0)) is None
    assert learner.model is base


def test_the_same_calls_give_the_same_models(base):
    hashes = []
    for _ in range(2):
        scene, learner, run = Scene(seed=3), learner_of(base, judges=8), []
        for _ in range(40):
            seen = scene.observation()
            learner.observe(seen)
            update = take(learner, scene.label_seen(seen, scene.frame % TILES, scene.frame % 3))
            run.append(update and update.model and update.model.hash)
        hashes.append(run)
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) > 20


def test_inputs_are_not_changed(base):
    scene, learner = Scene(), learner_of(base, judges=4)
    raw = base.hash
    seen = [scene.observation() for _ in range(5)]
    labels = [scene.label_seen(seen[i % 5], i % TILES, i % 3) for i in range(40)]
    copies = msgspec.msgpack.encode((seen, labels))
    for observation in seen:
        learner.observe(observation)
    take(learner, *labels)
    assert msgspec.msgpack.encode((seen, labels)) == copies
    model = small_model(CLASSES).with_classes(CLASSES)
    assert model.hash == raw == base.hash


@pytest.mark.parametrize("answer", ["", "nobody", "A", "a ", "\x00"])
def test_answers_that_are_no_class_change_nothing(base, answer):
    scene, learner = Scene(), learner_of(base)
    take(learner, *scene.some_labels(6))
    before = lessons(learner), learner.model.hash
    given = scene.label(0, answer=answer)
    assert take(learner, given) is None
    assert (lessons(learner), learner.model.hash) == before
    assert learner.position == given.position


def test_a_label_that_is_known_is_ignored(base):
    scene, learner = Scene(), learner_of(base)
    labels = scene.some_labels(6)
    take(learner, *labels)
    before = learner.state()
    assert take(learner, *labels) is None
    assert take(learner, msgspec.structs.replace(labels[2], answer="c")) is None
    assert learner.state() == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_do_not_reach_the_model(base, value):
    scene, learner = Scene(), learner_of(base)
    clean = take(learner, *scene.some_labels(9)).model.hash
    scales = np.frombuffer(scene.label(0).scales, np.float16).copy()
    scales[3] = value
    scene.position -= 1
    bad = msgspec.structs.replace(scene.label(1), scales=scales.tobytes())
    assert take(learner, bad) is None
    assert learner.model.hash == clean

    seen = scene.observation(truth=np.ones(TILES, int))
    broken = np.frombuffer(seen.scales, np.float16).copy()
    broken[:] = value
    learner.observe(msgspec.structs.replace(seen, scales=broken.tobytes()))
    good = scene.observation(truth=np.ones(TILES, int))
    learner.observe(good)
    assert take(learner, scene.label_seen(good, 5, 1)).verdict == "learned"
    (lesson,) = (lesson for lesson in lessons(learner) if lesson.label == learner.position)
    assert lesson.weights == (1.0,)


@pytest.mark.parametrize("change", [{"bits": b""}, {"scales": b""}, {"bits": bytes(9)}, {"scales": bytes(34)}])
def test_a_label_of_another_model_is_ignored(base, change):
    scene, learner = Scene(), learner_of(base)
    take(learner, *scene.some_labels(6))
    before = learner.model.hash
    assert take(learner, msgspec.structs.replace(scene.label(0), **change)) is None
    assert (learner.model.hash, len(lessons(learner))) == (before, 6)


def test_an_observation_of_another_grid_is_refused(base):
    scene, learner = Scene(), learner_of(base)
    seen = scene.observation()
    for change in ({"bits": seen.bits[:-1]}, {"scales": seen.scales + b"\0\0"}, {"bits": b""}):
        with pytest.raises(ArtifactError, match="another grid or another model's features"):
            learner.observe(msgspec.structs.replace(seen, **change))
    learner.observe(seen)
    assert learner.frame == 0


def test_a_tile_and_its_turns_count_as_one_label(base):
    """Four samples in a label make one row, their mean."""
    scene, learner = Scene(), learner_of(base)
    given = scene.label(0)
    bits, scales = scene.pack([0, 0, 0])
    several = msgspec.structs.replace(given, bits=given.bits + bits.tobytes(), scales=given.scales + scales.tobytes())
    learner.label(several)
    (lesson,) = lessons(learner)
    assert lesson.weights == (0.25,) * 4
    values = learner._packing.values(several.bits, several.scales)
    assert len(values) == 4
    np.testing.assert_allclose(learner._memory.row(lesson), values.mean(axis=0), atol=0.5 / 256 + 1e-6)


def test_a_new_class_is_learned_from_five_labels(base):
    """Its name comes with the labels, and goes with the last of them."""
    scene, learner = Scene(noise=0.5), learner_of(base.with_classes(CLASSES[:2]), judges=8)
    take(learner, *[scene.label(i % 2) for i in range(20)])
    unknown = scene.label(2)
    assert take(learner, unknown) is None  # not said to be new: a slip of the pen
    first = [msgspec.structs.replace(scene.label(2), new=True) for _ in range(5)]
    update = take(learner, *first)
    assert update.model.classes == CLASSES
    assert accuracy(update.model, scene) > 0.95
    assert take(learner, scene.label(2)).verdict == "learned"  # known from now on
    again = learner_of(base.with_classes(CLASSES[:2]), judges=8)
    again.restore(learner.state())
    assert again.model.hash == learner.model.hash
    ours = [lesson.label for lesson in lessons(learner) if lesson.answer == "c"]
    gone = take(learner, *[scene.undo(GivenLabel(0, label, -1, 0, "", b"", b"")) for label in ours])
    assert gone.model.classes == CLASSES[:2]


@pytest.mark.parametrize("name", ["", " c", "c\n", "x" * 41, "\x00"])
def test_a_new_class_needs_a_proper_name(base, name):
    scene, learner = Scene(), learner_of(base)
    learner.label(msgspec.structs.replace(scene.label(0, answer=name), new=True))
    assert lessons(learner) == []


def test_a_tile_that_is_denied_a_class_looks_less_like_it(base):
    """And more like each other one; an undo takes it back. What it is worth on real tiles, the ablations say."""
    for seed in range(6):
        scene = Scene(seed=seed, noise=3.0)
        learner = learner_of(base)
        take(learner, *scene.some_labels(9))
        before = learner.model
        given = scene.label(seed % 3)
        row = learner._packing.values(given.bits, given.scales)
        guess = int(head_logits(before, row).argmax())
        denied = msgspec.structs.replace(given, answer=CLASSES[guess], wrong=True)
        after = take(learner, denied).model
        change = head_logits(after, row)[0] - head_logits(before, row)[0]
        assert change[guess] < -0.1
        assert change[guess] == change.min()
        assert take(learner, scene.undo(denied)).model.hash == before.hash


def test_an_operator_who_only_says_right_or_wrong_teaches(base):
    """From a head that says the same of all: what is denied is looked for in the other classes, until one is right."""
    for seed in range(4):
        scene, learner = Scene(seed=seed), learner_of(base)
        for i in range(45):
            given = scene.label(i % 3)
            row = learner._packing.values(given.bits, given.scales)
            guess = CLASSES[int(head_logits(learner.model, row).argmax())]
            take(learner, msgspec.structs.replace(given, answer=guess, wrong=guess != given.answer))
        print(f"right or wrong only, 45 answers: {accuracy(learner.model, scene):.2f} right")
        assert accuracy(learner.model, scene) > 0.8


def test_denials_alone_look_elsewhere_and_an_undo_takes_them_back(base):
    """A flight without the class that an untaught head says of all."""
    scene, learner = Scene(), learner_of(base)
    denied = [msgspec.structs.replace(scene.label(1 + i % 2, CLASSES[0]), wrong=True) for i in range(9)]
    model = take(learner, *denied).model
    rows = np.concatenate([learner._packing.values(given.bits, given.scales) for given in denied])
    assert 0 not in head_logits(model, rows).argmax(axis=1)
    assert take(learner, *[scene.undo(given) for given in denied]).model.hash == base.hash


def test_denials_judge_nobody(base):
    scene, learner = Scene(), learner_of(base, judges=8)
    take(learner, *scene.some_labels(9))
    update = take(learner, *[msgspec.structs.replace(scene.label(i % 3, CLASSES[i % 2]), wrong=True) for i in range(9)])
    assert update is not None
    denied = {lesson.label for lesson in lessons(learner) if lesson.wrong}
    assert denied
    assert not denied & learner._honest.keys()


def test_the_surest_tiles_of_the_last_frames_count(base):
    """The looks of the classes drift away from the labels: what is seen now helps where labels do not reach."""
    gains = []
    for seed in range(8):
        right = {}
        for pseudo in (0.0, 0.6):
            scene = Scene(seed=seed, noise=4.0)
            learner = learner_of(base, pseudo=pseudo, judges=8, ridge=0.3)
            labels = scene.some_labels(12)
            scene.directions += np.random.default_rng(seed).normal(0, 1, scene.directions.shape)
            for _ in range(12):
                learner.observe(scene.observation())
            take(learner, *labels)
            right[pseudo] = accuracy(learner.model, scene, 900)
        gains.append(right[0.6] - right[0.0])
    print(f"pseudo-labels: {np.mean(gains):+.3f} accuracy, each of 8 seeds: {np.round(gains, 3)}")
    assert np.mean(gains) > 0.01


# --- undo -----------------------------------------------------------------------------------------------------------


def fly(base, labels, undone=(), **changed):
    """A learner after a flight over still ground, with the given labels; `undone` are taken back at the end."""
    scene, learner = Scene(seed=9), learner_of(base, **changed)
    for _ in range(10):
        learner.observe(scene.observation(truth=np.arange(TILES) % 3))
    for given in labels:
        take(learner, given)
    position = labels[-1].position
    for i, given in enumerate(undone):
        take(learner, GivenLabel(position + 1 + i, given.id, -1, 0, "", b"", b"", undo=given.id))
    return learner


@pytest.mark.parametrize("count", [8, 30, 60])
@pytest.mark.parametrize("judges", [0, 4, 16])
def test_an_undone_label_leaves_no_trace(base, count, judges):
    """Bit for bit as if it had never been: the head, its hash, and what is fitted, the memory full or not."""
    scene = Scene(seed=1)
    labels = [scene.label(i % 3, frame=i % 10, tile=i % TILES) for i in range(count)]
    for undone in (labels[:1], labels[-1:], labels[3:6], labels[count // 2 : count // 2 + 1]):
        never = fly(base, [given for given in labels if given not in undone], judges=judges, memory=16)
        after = fly(base, labels, undone, judges=judges, memory=16)
        assert never.model.hash == after.model.hash
        assert never._memory.chosen() == after._memory.chosen()
        for name in ("head.weight", "head.bias"):
            np.testing.assert_array_equal(never.model.tensors[name], after.model.tensors[name])


def test_undo_of_all_labels_brings_the_base_back(base):
    scene, learner = Scene(), learner_of(base)
    first, second = scene.label(0), scene.label(1)
    assert take(learner, first, second).model.hash != base.hash
    update = take(learner, scene.undo(second))
    assert update.model.hash == learner.model.hash == base.hash
    assert take(learner, scene.undo(first)) is None
    assert lessons(learner) == []


def test_undo_of_an_unknown_label_changes_nothing(base):
    scene, learner = Scene(), learner_of(base)
    take(learner, *scene.some_labels(6))
    before = learner.model.hash, lessons(learner)
    assert take(learner, scene.undo(scene.label(0))) is None
    assert (learner.model.hash, lessons(learner)) == before


# --- the memory -----------------------------------------------------------------------------------------------------


def test_the_memory_is_bounded_and_what_is_fitted_is_balanced(base):
    scene, learner = Scene(), learner_of(base, memory=16)
    for i in range(16 + RESERVE + 100):
        seen = scene.observation(truth=np.full(TILES, i % 2))
        learner.observe(seen)
        learner.label(scene.label_seen(seen, i % TILES, i % 2))
    learner.label(rare := scene.label(2))
    learner.step()
    kept, chosen = lessons(learner), learner._memory.chosen()
    assert len(kept) == 16 + RESERVE
    assert [lesson.label for lesson in kept if lesson.answer == "c"] == [rare.id]
    assert Counter(lesson.answer for lesson in chosen) == {"a": 7, "b": 7, "c": 1}
    newest = [lesson.label for lesson in reversed(kept) if lesson.answer != "c"][:14]
    assert [lesson.label for lesson in chosen] == [rare.id, *newest]
    assert len(learner.state()) < 200_000


def test_a_rare_class_keeps_its_labels_when_the_memory_is_full(base):
    scene, learner = Scene(), learner_of(base, memory=16)
    rare = [scene.label(2) for _ in range(3)]
    for given in [*rare, *(scene.label(i % 2) for i in range(2 * (16 + RESERVE)))]:
        learner.label(given)
    assert [lesson.label for lesson in lessons(learner) if lesson.answer == "c"] == [given.id for given in rare]


def test_rows_and_their_products_do_not_depend_on_what_was_kept(base):
    """Bit for bit the same from one call for all and from many, with lessons that come, go and come back."""
    scene, learner = Scene(), learner_of(base)
    for given in scene.some_labels(30):
        learner.label(given)
    memory, all_lessons = learner._memory, lessons(learner)
    for part in (all_lessons[:5], all_lessons[3:20], all_lessons[::-1], all_lessons[::2]):
        rows, gram = memory.rows(part)
        np.testing.assert_array_equal(gram, products(rows, rows))
        fresh = learner_of(base)._memory
        for got, want in zip((rows, gram), fresh.rows(part), strict=True):
            np.testing.assert_array_equal(got, want)
        exact = rows.astype(np.float64) @ rows.astype(np.float64).T
        np.testing.assert_array_equal(gram, exact)


# --- the same ground in other frames --------------------------------------------------------------------------------


def neighbours(learner: Learner, label: GivenLabel) -> dict[int, tuple[int, float]]:
    """Frame -> (tile, weight) of the samples that came with a label, found by their features."""
    found = {}
    (lesson,) = (lesson for lesson in lessons(learner) if lesson.label == label.id)
    own = len(label.bits) // 8
    for i, weight in enumerate(lesson.weights[own:], own):
        for frame, seen in learner._seen.items():
            rows = [seen.bits[8 * t : 8 * t + 8] for t in range(TILES)]
            if lesson.bits[8 * i : 8 * i + 8] in rows:
                found[frame] = (rows.index(lesson.bits[8 * i : 8 * i + 8]), weight)
    return found


def test_a_label_reaches_the_same_ground_in_other_frames(base):
    """The camera moves one column a frame, so the tile moves back by one: and leaves the picture after three."""
    scene, learner = Scene(), learner_of(base, reach_frames=6)
    seen = [scene.observation(motion=None if i == 0 else AHEAD) for i in range(10)]
    for observation in seen:
        learner.observe(observation)
    given = scene.label_seen(seen[5], 1 * COLS + 1, 0)
    learner.label(given)
    row = COLS
    third = pytest.approx(1 / 3, abs=1e-6)  # three of 0.5, which together count 1 at most
    assert neighbours(learner, given) == {3: (row + 3, third), 4: (row + 2, third), 6: (row + 0, third)}


def test_the_weight_falls_with_the_overlap(base):
    scene, learner = Scene(), learner_of(base)
    quarter = np.array([[1.0, 0, 0.25], [0, 1, 0], [0, 0, 1]])
    seen = [scene.observation(motion=None if i == 0 else quarter) for i in range(3)]
    for observation in seen:
        learner.observe(observation)
    given = scene.label_seen(seen[0], 5, 0)
    learner.label(given)
    # after two quarters the ground is half in each of two tiles: that is no tile of this class
    assert neighbours(learner, given) == {1: (5, pytest.approx(NEIGHBOUR * 0.75))}


def test_a_label_does_not_reach_over_a_cut_nor_far(base):
    scene, learner = Scene(), learner_of(base, reach_frames=3)
    seen = [scene.observation(motion=None if i in (0, 8) else STILL) for i in range(20)]
    for observation in seen:
        learner.observe(observation)
    for frame, reached in ((9, {8, 10, 11, 12}), (7, {4, 5, 6}), (14, {11, 12, 13, 15, 16, 17}), (19, {16, 17, 18})):
        given = scene.label_seen(seen[frame], 5, 0)
        learner.label(given)
        assert neighbours(learner, given).keys() == reached


@pytest.mark.parametrize("changed", [{"reach_frames": 0}, {"propagate": 0.0}])
def test_a_label_can_be_kept_to_its_tile(base, changed):
    scene, learner = Scene(), learner_of(base, **changed)
    seen = [scene.observation() for _ in range(4)]
    for observation in seen:
        learner.observe(observation)
    learner.label(scene.label_seen(seen[2], 5, 0))
    assert [len(lesson.weights) for lesson in lessons(learner)] == [1]


def test_labels_of_forgotten_frames_and_other_flights_have_no_neighbours(base):
    scene, learner = Scene(), learner_of(base)
    seen = [scene.observation() for _ in range(HISTORY_FRAMES + 10)]
    for observation in seen:
        learner.observe(observation)
    learner.label(scene.label_seen(seen[9], 5, 0))
    learner.label(scene.label(1, frame=-1))
    assert [len(lesson.weights) for lesson in lessons(learner)] == [1, 1]
    assert len(learner._seen) == HISTORY_FRAMES
    scene.frame = -1
    learner.observe(scene.observation(boot=2))  # the flight started anew: its frame 0 is not the old one
    assert (learner.boot, learner.frame) == (2, 0)
    learner.label(scene.label(2, frame=5))
    assert [len(lesson.weights) for lesson in lessons(learner)] == [1, 1, 1]


def test_propagated_labels_help(base):
    """Few labels on moving ground with noisy features: neighbours are worth something."""
    gains = []
    for seed in range(8):
        right = {}
        for reach in (0, 6):
            scene = Scene(seed=seed, noise=3.0)
            learner = learner_of(base, reach_frames=reach)
            truth = scene.random.integers(0, 3, (ROWS, COLS + 12))
            seen = []
            for frame in range(12):
                here = truth[:, frame : frame + COLS].ravel()
                seen.append(scene.observation(truth=here, motion=None if frame == 0 else AHEAD))
                learner.observe(seen[-1])
            for i in range(12):
                frame, tile = 2 + i % 8, int(scene.random.integers(TILES))
                learner.label(scene.label_seen(seen[frame], tile, truth[tile // COLS, frame + tile % COLS]))
            learner.step()
            right[reach] = accuracy(learner.model, Scene(seed=seed, noise=3.0), 1000)
        gains.append(right[6] - right[0])
    print(f"propagation: {np.mean(gains):+.3f} accuracy, each of 8 seeds: {np.round(gains, 3)}")
    assert np.mean(gains) > 0.02
