"""The learner: an exact head from late labels, and a memory that reaches the same ground and forgets on demand.

Scenes are made by hand: each class has a direction of its own in feature space, and the ground moves under the grid
by known motions. The features go through the same packing as the flight's.
"""

import msgspec
import numpy as np
import pytest

from models.engine import Features
from models.errors import ArtifactError
from models.network import HEAD_STEP
from onboard.learner import HISTORY_FRAMES, RESERVE, TEMPERATURE, GivenLabel, Learner, fit_head, sign_test
from tests.scene import (
    AHEAD,
    BASE,
    BETA,
    CLASSES,
    COLS,
    ROWS,
    STILL,
    TILES,
    Scene,
    accuracy,
    fitted,
    learner_of,
    samples,
    take,
)
from tests.small_model import small_model


@pytest.fixture
def base():
    return BASE


# --- the closed form ------------------------------------------------------------------------------------------------


def least_squares(x, classes, weights, count, ridge):
    """The same problem by NumPy's least squares: weighted rows, and ridge as rows of their own; class by class."""
    f = x.shape[1]
    x = x.astype(np.float64) / np.sqrt(f)
    w = np.array([weight / np.sqrt(weights[classes == c].sum()) for weight, c in zip(weights, classes, strict=True)])
    w /= w.mean()
    weight, bias = np.zeros((count, f)), np.full(count, -4.0)
    for c in set(classes.tolist()):
        y = np.where(classes == c, 1.0, -1.0)
        bias[c] = np.average(y, weights=w)
        rows = np.vstack([x * np.sqrt(w)[:, None], np.sqrt(ridge) * np.eye(f)])
        targets = np.concatenate([(y - bias[c]) * np.sqrt(w), np.zeros(f)])
        weight[c] = np.linalg.lstsq(rows, targets, rcond=None)[0] / np.sqrt(f)
    scale = TEMPERATURE / HEAD_STEP
    return weight * scale, bias * scale


@pytest.mark.parametrize("n", [2, 5, 63, 64, 65, 300])
@pytest.mark.parametrize("ridge", [0.05, 1.0, 30.0])
def test_fit_head_equals_least_squares(n, ridge):
    """Both branches, n <= F and n > F; the grid rounds by half a step at most."""
    random = np.random.default_rng(n)
    x = random.normal(0, 1, (n, 64)).astype(np.float32)
    classes = np.append(random.integers(0, 4, n - 2), [0, 3])
    weights = random.uniform(0.05, 1, n)
    before = x.copy(), classes.copy(), weights.copy()
    weight, bias = fit_head(x, classes, weights, 5, ridge)
    assert (weight.dtype, weight.shape, bias.dtype, bias.shape) == (np.int16, (5, 64), np.int16, (5,))
    want_weight, want_bias = least_squares(x, classes, weights, 5, ridge)
    assert np.abs(weight - want_weight).max() <= 0.5 + 1e-6
    assert np.abs(bias - want_bias).max() <= 0.5 + 1e-6
    if ridge <= 1:  # else rounding would hide a difference
        assert np.abs(want_weight).max() > 20
    for a, b in zip(before, (x, classes, weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_both_branches_of_fit_head_agree():
    """The same rows with columns of zeros beside them: more features than rows, and the same solution."""
    random = np.random.default_rng(0)
    n, f, padded = 40, 32, 128
    x = random.normal(0, 1, (n, f)).astype(np.float32)
    classes, weights = random.integers(0, 3, n), random.uniform(0.1, 1, n)
    tall, bias = fit_head(x, classes, weights, 3, 1.0)
    # x / sqrt(F) is what counts, so the padded rows are made longer by the root of what their F is larger
    wide = np.zeros((n, padded), np.float32)
    wide[:, :f] = x * np.sqrt(padded / f)
    flat, same_bias = fit_head(wide, classes, weights, 3, 1.0)
    assert np.abs(flat[:, :f] * np.sqrt(padded / f) - tall).max() <= 1.6
    assert not flat[:, f:].any()
    np.testing.assert_array_equal(bias, same_bias)


def test_a_class_without_samples_is_never_said():
    scene = Scene()
    bits, scales = scene.pack(np.repeat([0, 2], 30))
    x = Features(bits, scales.astype(np.float32), 64, BETA).values()
    weight, bias = fit_head(x, np.repeat([0, 2], 30), np.ones(60), 3, 1.0)
    said = (x @ weight.T + bias).argmax(1)
    assert set(said.tolist()) == {0, 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_fit_head_refuses_what_is_not_finite_or_off_the_grid(bad):
    x = np.random.default_rng(0).normal(0, 1, (6, 8)).astype(np.float32)
    x[3, 2] = bad
    if bad == 1e30:
        x = x * np.float32(1e-36)  # all tiny but one: weights as large as the ridge lets them
        ridge = 1e-30
    else:
        ridge = 1.0
    with np.errstate(all="ignore"), pytest.raises((ArtifactError, np.linalg.LinAlgError)):
        fit_head(x, np.array([0, 0, 0, 1, 1, 1]), np.ones(6), 2, ridge)


def test_sign_test_equals_counting_all_throws():
    for n in range(1, 11):
        heads = [bin(throw).count("1") for throw in range(2**n)]
        for gains in range(n + 1):
            assert sign_test(gains, n - gains) == sum(h <= gains for h in heads) / 2**n


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
        scene, learner, run = Scene(seed=3), learner_of(base, holdout=8), []
        for _ in range(40):
            seen = scene.observation()
            learner.observe(seen)
            update = take(learner, scene.label_seen(seen, scene.frame % TILES, scene.frame % 3))
            run.append(update and update.model and update.model.hash)
        hashes.append(run)
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) > 20


def test_inputs_are_not_changed(base):
    scene, learner = Scene(), learner_of(base, holdout=4)
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
    before = samples(learner), learner.model.hash
    given = scene.label(0, answer=answer)
    assert take(learner, given) is None
    assert (samples(learner), learner.model.hash) == before
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
    assert [s.own for s in samples(learner)].count(False) == 0


@pytest.mark.parametrize("change", [{"bits": b""}, {"scales": b""}, {"bits": bytes(9)}, {"scales": bytes(34)}])
def test_a_label_of_another_model_is_ignored(base, change):
    scene, learner = Scene(), learner_of(base)
    take(learner, *scene.some_labels(6))
    before = learner.model.hash
    assert take(learner, msgspec.structs.replace(scene.label(0), **change)) is None
    assert (learner.model.hash, len(samples(learner))) == (before, 6)


def test_an_observation_of_another_grid_is_refused(base):
    scene, learner = Scene(), learner_of(base)
    seen = scene.observation()
    for change in ({"bits": seen.bits[:-1]}, {"scales": seen.scales + b"\0\0"}, {"bits": b""}):
        with pytest.raises(ArtifactError, match="another grid or another model's features"):
            learner.observe(msgspec.structs.replace(seen, **change))
    learner.observe(seen)
    assert learner.frame == 0


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
@pytest.mark.parametrize("holdout", [0, 4, 16])
def test_an_undone_label_leaves_no_trace(base, count, holdout):
    """Bit for bit as if it had never been: the head, its hash, and the memory, full (per_class 20) or not."""
    scene = Scene(seed=1)
    labels = [scene.label(i % 3, frame=i % 10, tile=i % TILES) for i in range(count)]
    for undone in (labels[:1], labels[-1:], labels[3:6], labels[count // 2 : count // 2 + 1]):
        never = fly(base, [given for given in labels if given not in undone], holdout=holdout, per_class=20)
        after = fly(base, labels, undone, holdout=holdout, per_class=20)
        assert never.model.hash == after.model.hash
        assert never._split() == after._split()
        for name in ("head.weight", "head.bias"):
            np.testing.assert_array_equal(never.model.tensors[name], after.model.tensors[name])


def test_undo_of_all_labels_brings_the_base_back(base):
    scene, learner = Scene(), learner_of(base)
    first, second = scene.label(0), scene.label(1)
    assert take(learner, first, second).model.hash != base.hash
    update = take(learner, scene.undo(second))
    assert update.model.hash == learner.model.hash == base.hash
    assert take(learner, scene.undo(first)) is None
    assert samples(learner) == []


def test_undo_of_an_unknown_label_changes_nothing(base):
    scene, learner = Scene(), learner_of(base)
    take(learner, *scene.some_labels(6))
    before = learner.model.hash, samples(learner)
    assert take(learner, scene.undo(scene.label(0))) is None
    assert (learner.model.hash, samples(learner)) == before


# --- the memory -----------------------------------------------------------------------------------------------------


def test_the_memory_is_bounded_for_each_class(base):
    scene, learner = Scene(), learner_of(base, per_class=8, holdout=4)
    for i in range(3 * (8 + RESERVE)):
        seen = scene.observation(truth=np.full(TILES, i % 2))
        learner.observe(seen)
        learner.label(scene.label_seen(seen, i % TILES, i % 2))
    learner.label(rare := scene.label(2))
    learner.step()
    kept = samples(learner)
    for cls in (0, 1):
        own = [s for s in kept if s.cls == cls]
        assert len(own) == 8 + RESERVE
        assert len([s for s in fitted(learner) if s.cls == cls]) == 8
    assert [s.label for s in kept if s.cls == 2] == [rare.id]
    assert len(learner.state()) < 200_000


def test_labels_stay_when_neighbours_go_and_new_ones_when_old_ones_go(base):
    scene, learner = Scene(), learner_of(base, per_class=8)
    for _ in range(7):
        learner.observe(scene.observation())
    crowd = [scene.label(0, frame=3, tile=i) for i in range(5)]
    for given in crowd:
        learner.label(given)
    kept = fitted(learner)
    assert [s.label for s in kept if s.own] == [given.id for given in crowd]
    assert len(kept) == 8
    assert {s.label for s in kept if not s.own} == {crowd[-1].id}
    later = [scene.label(0) for _ in range(6)]
    for given in later:
        learner.label(given)
    assert [s.label for s in fitted(learner)] == [given.id for given in [*crowd[3:], *later]]


# --- the same ground in other frames --------------------------------------------------------------------------------


def neighbours(learner: Learner, label: GivenLabel) -> dict[int, tuple[int, float]]:
    """Frame -> (tile, weight) of the samples that came with a label, found by their features."""
    found = {}
    for sample in (s for s in samples(learner) if s.label == label.id and not s.own):
        for frame, seen in learner._seen.items():
            rows = [seen.bits[8 * t : 8 * t + 8] for t in range(TILES)]
            if sample.bits in rows:
                found[frame] = (rows.index(sample.bits), sample.weight)
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
    assert neighbours(learner, given) == {3: (row + 3, 0.5), 4: (row + 2, 0.5), 6: (row + 0, 0.5)}


def test_the_weight_falls_with_the_overlap(base):
    scene, learner = Scene(), learner_of(base, propagate=0.8)
    quarter = np.array([[1.0, 0, 0.25], [0, 1, 0], [0, 0, 1]])
    seen = [scene.observation(motion=None if i == 0 else quarter) for i in range(3)]
    for observation in seen:
        learner.observe(observation)
    given = scene.label_seen(seen[0], 5, 0)
    learner.label(given)
    # after two quarters the ground is half in each of two tiles: that is no tile of this class
    assert neighbours(learner, given) == {1: (5, pytest.approx(0.8 * 0.75))}


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
    assert len(samples(learner)) == 1


def test_labels_of_forgotten_frames_and_other_flights_have_no_neighbours(base):
    scene, learner = Scene(), learner_of(base)
    seen = [scene.observation() for _ in range(HISTORY_FRAMES + 10)]
    for observation in seen:
        learner.observe(observation)
    learner.label(scene.label_seen(seen[9], 5, 0))
    learner.label(scene.label(1, frame=-1))
    assert [s.own for s in samples(learner)] == [True, True]
    assert len(learner._seen) == HISTORY_FRAMES
    scene.frame = -1
    learner.observe(scene.observation(boot=2))  # the flight started anew: its frame 0 is not the old one
    assert (learner.boot, learner.frame) == (2, 0)
    learner.label(scene.label(2, frame=5))
    assert [s.own for s in samples(learner)] == [True, True, True]


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
