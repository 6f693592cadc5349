"""Smoothing along the ground, and over neighbours where answers say that it pays."""

import numpy as np
import pytest

from link.messages import Label, Undo
from onboard.smoothing import ANSWERS, FLOOR, MIN_ANSWERS, RHO_MIN, STRENGTH, Smoother

ROWS, COLS = 6, 8
TILES = ROWS * COLS
CLASSES = ("a", "b", "c", "d")


def similarity(random):
    angle, scale = random.uniform(-2, 2), random.uniform(0.8, 1.25)
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[a, -b, random.uniform(-3, 3)], [b, a, random.uniform(-3, 3)], [0, 0, 1]])


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return (e / e.sum(axis=1, keepdims=True)).astype(np.float32)


def noisy(random, truth, strength=1.0):
    return softmax(strength * np.eye(4)[truth] * 2 + random.normal(0, 1.3, (len(truth), 4)))


def is_probability(p):
    return p.dtype == np.float32 and (p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-5)


def test_without_motion_the_output_is_the_input():
    random = np.random.default_rng(0)
    smoother = Smoother(ROWS, COLS)
    for _ in range(5):
        p = noisy(random, random.integers(0, 4, TILES))
        np.testing.assert_array_equal(smoother.step(p, None), p)
    assert smoother.rho == 1.0


def test_noise_goes_down_over_the_same_ground():
    random = np.random.default_rng(1)
    truth = random.integers(0, 4, TILES)
    smoother = Smoother(ROWS, COLS)
    raw, smoothed = [], []
    for frame in range(30):
        p = noisy(random, truth)
        before = p.copy()
        out = smoother.step(p, None if frame == 0 else np.eye(3))
        np.testing.assert_array_equal(p, before)
        assert is_probability(out)
        raw.append((p.argmax(1) == truth).mean())
        smoothed.append((out.argmax(1) == truth).mean())
    print(f"still ground: {np.mean(raw[5:]):.3f} right as the head says, {np.mean(smoothed[5:]):.3f} smoothed")
    assert np.mean(smoothed[5:]) > np.mean(raw[5:]) + 0.05


def test_belief_moves_with_the_ground():
    """The ground moves one column a frame: belief must follow it, and fresh ground has none."""
    random = np.random.default_rng(2)
    strip = random.integers(0, 4, (ROWS, COLS + 30))
    motion = np.array([[1.0, 0, 1], [0, 1, 0], [0, 0, 1]])  # this frame's column c was column c + 1
    still, moving, raw = [], [], []
    smoothers = Smoother(ROWS, COLS), Smoother(ROWS, COLS)
    for frame in range(30):
        truth = strip[:, frame : frame + COLS].ravel()
        p = noisy(random, truth)
        follows = smoothers[0].step(p, None if frame == 0 else motion)
        stays = smoothers[1].step(p, None if frame == 0 else np.eye(3))
        fresh = np.arange(TILES) % COLS == COLS - 1
        np.testing.assert_array_equal(follows[fresh], p[fresh])
        raw.append((p.argmax(1) == truth).mean())
        moving.append((follows.argmax(1) == truth).mean())
        still.append((stays.argmax(1) == truth).mean())
    print(f"moving ground: {np.mean(raw):.3f} raw, {np.mean(moving):.3f} followed, {np.mean(still):.3f} not followed")
    assert np.mean(moving) > np.mean(raw) + 0.03
    assert np.mean(still) < np.mean(moving)


def test_the_gate_closes_on_a_shuffled_stream():
    """Frames that have nothing to do with each other, whatever the motion says: smoothing would only hurt."""
    random = np.random.default_rng(3)
    smoother = Smoother(ROWS, COLS)
    for frame in range(60):
        p = noisy(random, random.integers(0, 4, TILES), 3)
        out = smoother.step(p, None if frame == 0 else np.eye(3))
        assert is_probability(out)
        if frame > 10:
            assert smoother.rho <= RHO_MIN
            np.testing.assert_array_equal(out, p)
    for _ in range(20):  # and it opens again over ground that repeats
        smoother.step(p, np.eye(3))
    assert smoother.rho > RHO_MIN


def test_certain_heads_and_far_motions_stay_probabilities():
    random = np.random.default_rng(4)
    smoother = Smoother(ROWS, COLS)
    far = np.array([[1, 0, 1e6], [0, 1, -1e6], [0, 0, 1]])
    for motion in (None, np.eye(3), far, similarity(random), np.diag([1e-9, 1e-9, 1.0]), np.eye(3)):
        p = np.eye(4, dtype=np.float32)[random.integers(0, 4, TILES)]
        assert is_probability(smoother.step(p, motion))


def test_new_classes_start_anew():
    smoother = Smoother(ROWS, COLS)
    smoother.step(np.full((TILES, 4), 0.25, np.float32), None)
    p = np.full((TILES, 5), 0.2, np.float32)
    np.testing.assert_array_equal(smoother.step(p, np.eye(3)), p)


# --- neighbours -------------------------------------------------------------------------------------------------------


def fly(truths, ask=2, wrong=False, seed=5):
    """(smoother, shares right, shares right of the head alone); each frame shows other ground and is asked about."""
    random = np.random.default_rng(seed)
    smoother, right, raw, label = Smoother(ROWS, COLS), [], [], 0
    for truth in truths:
        p = noisy(random, truth)
        out = smoother.step(p, None)
        assert is_probability(out)
        right.append((out.argmax(1) == truth).mean())
        raw.append((p.argmax(1) == truth).mean())
        for tile in random.choice(TILES, ask, replace=False):
            smoother.asked(label, int(tile), CLASSES)
            said = (truth[tile] + 1) % 4 if wrong else truth[tile]
            smoother.answered(Label(id=label, query=label, answer=CLASSES[said], wrong=wrong))
            label += 1
    return smoother, np.array(right), np.array(raw)


def fields(random):
    """Truth of large fields: a class for each quarter of the frame."""
    return np.kron(random.integers(0, 4, (2, 2)), np.ones((ROWS // 2, COLS // 2), int)).ravel()


def test_neighbours_count_over_large_fields_and_not_over_small_things():
    random = np.random.default_rng(6)
    smoother, right, raw = fly([fields(random) for _ in range(80)])
    print(f"fields: {raw.mean():.3f} as the head says, {right[40:].mean():.3f} with neighbours")
    assert smoother.around
    np.testing.assert_array_equal(right[: MIN_ANSWERS // 2], raw[: MIN_ANSWERS // 2])
    assert right[40:].mean() > raw[40:].mean() + 0.1
    smoother, right, raw = fly([random.integers(0, 4, TILES) for _ in range(80)])
    assert not smoother.around
    np.testing.assert_array_equal(right, raw)


def test_wrong_answers_say_it_too():
    random = np.random.default_rng(7)
    assert fly([fields(random) for _ in range(150)], wrong=True)[0].around
    assert not fly([random.integers(0, 4, TILES) for _ in range(150)], wrong=True)[0].around


def test_it_follows_the_newest_answers():
    random = np.random.default_rng(8)
    truths = [fields(random) for _ in range(80)] + [random.integers(0, 4, TILES) for _ in range(ANSWERS // 2)]
    assert not fly(truths)[0].around


def test_answers_that_are_taken_back_count_no_more():
    random = np.random.default_rng(9)
    smoother, _, _ = fly([fields(random) for _ in range(80)])
    for label in range(160 - MIN_ANSWERS + 1):
        smoother.answered(Undo(label=label))
    assert not smoother.around


@pytest.mark.parametrize("message", [Label(id=9, query=9, answer="a"), Label(id=9, query=0, answer=""),
                                     Label(id=9, query=0, answer="e", new=True), Undo(label=3)])  # fmt: skip
def test_answers_that_say_nothing_of_it(message):
    """An unknown question, "don't know", a class that the head did not have, an undo of something unknown."""
    smoother = Smoother(ROWS, COLS)
    smoother.step(np.full((TILES, 4), 0.25, np.float32), None)
    smoother.asked(0, 7, CLASSES)
    smoother.answered(message)
    assert not smoother.around


def test_a_question_before_the_first_frame():
    smoother = Smoother(ROWS, COLS)
    smoother.asked(0, 7, CLASSES)
    smoother.answered(Label(id=9, query=0, answer="a"))
    assert not smoother.around


def test_with_neighbours_against_the_formula():
    """Each tile's probability times what its neighbours say, tile by tile in double precision."""
    p = noisy(np.random.default_rng(10), np.zeros(TILES, int))
    smoother = Smoother(ROWS, COLS)
    smoother.around = True
    out = smoother.step(p, None)
    for row in range(ROWS):
        for col in range(COLS):
            want = p[row * COLS + col].astype(np.float64)
            for r, c in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
                if 0 <= r < ROWS and 0 <= c < COLS:
                    want *= (p[r * COLS + c].astype(np.float64) + FLOOR) ** STRENGTH
            np.testing.assert_allclose(out[row * COLS + col], want / want.sum(), rtol=1e-4)
