"""The learner under any order of frames, labels and undos."""

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ArtifactError
from models.network import HEAD_STEP
from onboard.head import TEMPERATURE, fit_head
from onboard.learner import GivenLabel
from onboard.memory import RESERVE
from tests.scene import AHEAD, CLASSES, STILL, TILES, Scene, learner_of, lessons, take

MEMORY = 20

frames = st.sampled_from([("frame", STILL), ("frame", AHEAD), ("frame", None)])
labels = st.tuples(st.just("label"), st.integers(0, 5), st.integers(0, TILES - 1), st.integers(0, len(CLASSES)))
undos = st.tuples(st.just("undo"), st.integers(0, 20))
flights = st.lists(st.one_of(frames, labels, labels, labels, undos), min_size=25, max_size=70)


def calls(flight):
    """The flight as calls: observations, labels (the last class number is no class) and undos of earlier labels."""
    scene, given = Scene(seed=1), []
    seen = [scene.observation(motion=None)]
    out = [seen[0]]
    for kind, *rest in flight:
        if kind == "frame":
            seen.append(scene.observation(motion=rest[0]))
            out.append(seen[-1])
        elif kind == "label":
            late, tile, cls = rest
            label = scene.label_seen(seen[max(0, len(seen) - 1 - late)], tile, cls % len(CLASSES))
            if cls == len(CLASSES):
                label = msgspec.structs.replace(label, answer="nothing")
            given.append(label)
            out.append(label)
        elif kind == "undo" and given:
            out.append(scene.undo(given[rest[0] % len(given)]))
    return out


def fly(learner, sequence):
    for call in sequence:
        if isinstance(call, GivenLabel):
            take(learner, call)
        else:
            learner.observe(call)
    return learner


@settings(max_examples=50, deadline=None)
@given(flights, st.sampled_from([0, 2, 8]), st.sampled_from([0.0, 0.6]))
def test_what_was_undone_never_was(flight, judges, pseudo):
    sequence = calls(flight)
    undone = {call.undo for call in sequence if isinstance(call, GivenLabel) and call.undo}
    kept = [c for c in sequence if not (isinstance(c, GivenLabel) and (c.undo or c.id in undone))]
    with_undo = fly(learner_of(judges=judges, memory=MEMORY, pseudo=pseudo), sequence)
    never = fly(learner_of(judges=judges, memory=MEMORY, pseudo=pseudo), kept)
    assert with_undo._memory.chosen() == never._memory.chosen()
    for learner in (with_undo, never):  # pseudo-labels are of the last frames before a fit: let both fit now
        last = Scene(seed=2).label(0)
        take(learner, msgspec.structs.replace(last, position=10**6, id=10**6))
    if not with_undo.rollbacks and not never.rollbacks:  # what the gate refused depends on when it was asked
        assert with_undo.model.hash == never.model.hash


@settings(max_examples=50, deadline=None)
@given(flights, st.integers(0, 60), st.sampled_from([0, 2, 8]), st.sampled_from([0.0, 0.6]))
def test_a_restart_anywhere_changes_nothing(flight, at, judges, pseudo):
    sequence = calls(flight)
    whole = fly(learner_of(judges=judges, memory=MEMORY, pseudo=pseudo), sequence)
    killed = fly(learner_of(judges=judges, memory=MEMORY, pseudo=pseudo), sequence[:at])
    again = learner_of(judges=judges, memory=MEMORY, pseudo=pseudo)
    again.restore(killed.state())
    fly(again, [c for c in sequence[:at] if not isinstance(c, GivenLabel)])
    fly(again, sequence[at:])
    assert again.state() == whole.state()
    assert again.model.hash == whole.model.hash


@settings(max_examples=40, deadline=None)
@given(flights, st.sampled_from([0, 2, 8]))
def test_the_memory_is_bounded_and_the_judges_are_the_newest(flight, judges):
    learner = fly(learner_of(judges=judges, memory=16), calls(flight))
    chosen = learner._memory.chosen()
    assert len(chosen) <= 16
    assert len(lessons(learner)) <= 16 + RESERVE
    if len({lesson.answer for lesson in chosen}) == len(CLASSES) and not learner.rollbacks and learner.step() is None:
        newest = {lesson.label for lesson in chosen[:judges]}
        assert learner._honest.keys() == newest or not judges


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(1, 5),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**32 - 1),
    st.floats(1e-3, 1e3),
)
def test_fit_head_equals_the_normal_equations(n, f, count, ridge, seed, size):
    """On any shape: the gradient of what fit_head is to minimise is zero at its solution, but for rounding."""
    random = np.random.default_rng(seed)
    x = (size * random.normal(0, 1, (n, f))).astype(np.float32)
    classes, weights = random.integers(0, count, n), random.uniform(0.01, 1, n)
    try:
        weight, bias = fit_head(x, classes, weights, count, ridge)
    except ArtifactError:
        assert size < 1  # small features need large weights, and those may leave the grid
        return
    w = weights / np.array([weights[classes == c].sum() for c in classes])
    w /= w.mean()
    scaled = x.astype(np.float64) / np.sqrt(f)
    for c in range(count):
        if c not in classes:
            assert bias[c] == round(-4 * TEMPERATURE / HEAD_STEP)
            assert not weight[c].any()
            continue
        y = np.where(classes == c, 1.0, -1.0)
        b = (w * y).sum() / w.sum()
        gram = scaled.T @ (w[:, None] * scaled) + ridge * np.eye(f)
        exact = np.linalg.solve(gram, scaled.T @ (w * (y - b))) / np.sqrt(f)
        assert np.abs(weight[c] * HEAD_STEP / TEMPERATURE - exact).max() <= (0.5 + 1e-3) * HEAD_STEP / TEMPERATURE
        assert abs(bias[c] * HEAD_STEP / TEMPERATURE - b) <= (0.5 + 1e-6) * HEAD_STEP / TEMPERATURE
