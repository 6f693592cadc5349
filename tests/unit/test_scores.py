"""Scores of a replay, against counting tile by tile."""

import gc
import weakref

import msgspec
import numpy as np
import pytest

from models.engine import Features
from onboard.detections import FrameResult
from onboard.flight import Step, softmax
from onboard.frame import Frame, Pose
from onboard.head import fit_head, head_logits
from onboard.scores import VARIANTS, Scorer, macro_f1
from onboard.smoothing import Smoother
from onboard.truth import UNKNOWN, Truth
from tests.scene import BASE, BETA, CLASSES, COLS, ROWS, STILL, TILES, Scene

FRAMES, DELAY = 37, 5
TENTH = 4
"""37 frames: the first tenth is four, rounded up."""


def flight(seed=0, frames=FRAMES, noise=2.5, motion=STILL, unknown=0.1):
    """Truth (frames, tiles) with some unknown tiles, and what the flight said and saw."""
    scene = Scene(seed=seed, noise=noise)
    random = np.random.default_rng(seed)
    truth = random.integers(0, len(CLASSES), (frames, TILES))
    steps = []
    for index in range(frames):
        bits, scales = scene.pack(truth[index])
        features = Features(bits, scales.astype(np.float32), 64, BETA)
        p = softmax(
            random.normal(0, 1, (TILES, len(CLASSES))).astype(np.float32)
            + 2 * np.eye(3, dtype=np.float32)[truth[index]]
        )
        frame = Frame(
            index=index, t_ns=index, name=f"f{index}.jpg", image=np.zeros((600, 800, 3), np.uint8), pose=Pose()
        )
        classes = p.argmax(1).astype(np.uint8)
        result = FrameResult(
            frame=frame, rows=ROWS, cols=COLS, classes=classes, confidence=p.max(1), class_names=CLASSES
        )
        steps.append(Step(result, features, p, p, False, None if index == 0 else motion, ()))
    truth[random.random(truth.shape) < unknown] = UNKNOWN
    return truth, steps


def score(truth, steps, labels_used=20, delay=DELAY, seed=0, ridge=1.0):
    grids = {i: row.reshape(ROWS, COLS).astype(np.int16) for i, row in enumerate(truth)}
    scorer = Scorer(Truth(CLASSES, ROWS, COLS, grids, grids.get), ROWS, COLS, ridge, seed)
    for step in steps:
        scorer.see(step.result.frame, step)
    return scorer, scorer.scores(BASE, labels_used, delay)


def test_the_flight_is_scored_as_it_spoke():
    truth, steps = flight()
    scorer, scores = score(truth, steps)
    right = known = 0
    hits = []
    for index, step in enumerate(steps):
        pairs = [(t, s) for t, s in zip(truth[index], step.result.classes, strict=True) if t != UNKNOWN]
        hits.append((sum(int(t == s) for t, s in pairs), len(pairs)))
        if index >= TENTH + DELAY:
            right, known = right + hits[-1][0], known + hits[-1][1]
    assert scores.accuracy["adapted"] == pytest.approx(right / known)
    assert scores.hits["adapted"] == hits
    recent = hits[-10:]
    assert scorer.recently() == pytest.approx(sum(r for r, _ in recent) / sum(k for _, k in recent))
    windows = [hits[i : i + 4] for i in range(0, 28, 4)] + [hits[i : i + 3] for i in range(28, 37, 3)]
    for got, part in zip(scores.windows["adapted"], windows, strict=True):
        assert got == pytest.approx(sum(r for r, _ in part) / sum(k for _, k in part))


def test_all_labels_is_a_head_of_every_label():
    truth, steps = flight()
    _, scores = score(truth, steps)
    values = np.concatenate([step.features.values() for step in steps])
    flat = truth.ravel()
    weight, bias = fit_head(values[flat >= 0], flat[flat >= 0], np.ones((flat >= 0).sum()), 3, 1.0)
    said = (values @ weight.T.astype(np.float32) + bias).argmax(1).reshape(truth.shape)
    where = truth >= 0
    where[: TENTH + DELAY] = False
    assert scores.accuracy["all_labels"] == pytest.approx((said == truth)[where].mean())
    assert scores.macro_f1["all_labels"] == pytest.approx(macro_f1(truth[where], said[where], 3))
    assert scores.accuracy["all_labels"] > 0.9


def test_frozen_is_learned_from_the_first_tenth_alone():
    truth, steps = flight(seed=4)
    _, scores = score(truth, steps)
    later = truth.copy()
    later[TENTH:] = (later[TENTH:] + 1) % 3  # the rest of the truth is all another
    _, other = score(later, steps)
    right = [h for h, _ in scores.hits["frozen"]]
    said_same = np.array(right[:TENTH]) == [h for h, _ in other.hits["frozen"]][:TENTH]
    assert said_same.all()
    assert scores.hits["all_labels"][:TENTH] != other.hits["all_labels"][:TENTH]
    assert scores.accuracy["frozen"] > 0.5 > other.accuracy["frozen"]


def test_frozen_gets_as_many_labels_as_were_used():
    """More labels are better, and beyond those of the first tenth there are none."""
    accuracy = {}
    for labels in (6, 20, TENTH * TILES, 10_000):
        runs = [score(*flight(seed=seed), labels_used=labels, seed=seed)[1].accuracy["frozen"] for seed in range(5)]
        accuracy[labels] = np.mean(runs)
    print({labels: round(float(a), 3) for labels, a in accuracy.items()})
    assert accuracy[6] < accuracy[20] < accuracy[TENTH * TILES] == accuracy[10_000]


@pytest.mark.parametrize("around", [False, True])
def test_smoothed_is_frozen_with_the_flights_smoothing(around):
    truth, steps = flight(unknown=0)
    truth[:] = truth[0]  # still ground, so that smoothing has something to say
    scene = Scene(seed=0, noise=2.5)
    packed = [scene.pack(row) for row in truth]
    steps = [
        Step(s.result, Features(bits, scales.astype(np.float32), 64, BETA), s.head, s.out, around, s.motion, ())
        for s, (bits, scales) in zip(steps, packed, strict=True)
    ]
    _, scores = score(truth, steps)
    places = np.argwhere(np.ones((TENTH, TILES), bool))
    chosen = places[np.random.default_rng(0).permutation(len(places))[:20]]
    values = np.array([steps[f].features.values()[t] for f, t in sorted(map(tuple, chosen))])
    labels = np.array([truth[f, t] for f, t in sorted(map(tuple, chosen))])
    weight, bias = fit_head(values, labels, np.ones(20), 3, 1.0)
    model = BASE.with_tensors({"head.weight": weight, "head.bias": bias})
    smoother, right, plain = Smoother(ROWS, COLS), [], []
    smoother.around = around
    for step, row in zip(steps, truth, strict=True):
        p = softmax(head_logits(model, step.features.values()))
        plain.append(int((p.argmax(1) == row).sum()))
        right.append(int((smoother.step(p, step.motion).argmax(1) == row).sum()))
    assert [h for h, _ in scores.hits["frozen"]] == plain
    assert [h for h, _ in scores.hits["smoothed"]] == right
    print(f"frozen {scores.accuracy['frozen']:.3f}, smoothed {scores.accuracy['smoothed']:.3f}")
    assert around or scores.accuracy["smoothed"] > scores.accuracy["frozen"]


def test_the_same_seed_scores_the_same():
    runs = [score(*flight(), seed=seed)[1] for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0].accuracy["frozen"] != runs[2].accuracy["frozen"]


@pytest.mark.parametrize("frames", [1, 2, 9, 11])
def test_short_flights(frames):
    """Less than a tenth plus the delay leaves nothing to score: zeros, and None for windows without a frame."""
    truth, steps = flight(frames=frames)
    _, scores = score(truth, steps)
    for variant in VARIANTS:
        assert 0 <= scores.accuracy[variant] <= 1
        assert len(scores.windows[variant]) == 10
        assert len(scores.hits[variant]) == frames
    if frames < 6:
        assert set(scores.accuracy.values()) == {0.0}
        assert scores.windows["adapted"].count(None) == 10 - frames


def test_a_flight_without_truth_and_without_labels():
    truth, steps = flight()
    _, scores = score(np.full_like(truth, UNKNOWN), steps)
    assert set(scores.accuracy.values()) == {0.0}
    assert set(scores.macro_f1.values()) == {0.0}
    assert scores.windows["frozen"] == [None] * 10
    _, scores = score(truth, steps, labels_used=0)
    where = truth >= 0
    where[: TENTH + DELAY] = False
    assert scores.accuracy["frozen"] == pytest.approx((truth[where] == 0).mean())


def test_images_are_not_kept():
    truth, steps = flight()
    held = weakref.ref(steps[3].result.frame.image)
    scorer, _ = score(truth, steps)
    assert held() is not None
    del steps
    gc.collect()
    assert held() is None
    assert scorer.recently() >= 0


def test_a_long_flight_is_thinned(monkeypatch):
    """Scores of every fourth frame, with the motions between them, are those of a flight that had no others."""
    ahead = np.array([[1.0, 0, 0.25], [0, 1, 0], [0, 0, 1]])
    truth, steps = flight(frames=60, motion=ahead)
    steps[41] = msgspec.structs.replace(steps[41], motion=None)
    monkeypatch.setattr("onboard.scores.MAX_FRAMES", 16)
    scorer, scores = score(truth, steps, delay=8)
    monkeypatch.undo()
    fourth = []
    for i, step in enumerate(steps[::4]):
        frame = msgspec.structs.replace(step.result.frame, index=i)
        result = msgspec.structs.replace(step.result, frame=frame)
        motion = None if i in (0, 11) else np.linalg.matrix_power(ahead, 4)
        fourth.append(msgspec.structs.replace(step, result=result, motion=motion))
    _, expected = score(truth[::4], fourth, delay=2)
    assert scores == expected
    assert len(scores.hits["adapted"]) == 15
    near = [(t, s.result.classes) for t, s in zip(truth[-10:], steps[-10:], strict=True)]
    right = sum(int((t == s).sum()) for t, s in near) / sum(int((t >= 0).sum()) for t, _ in near)
    assert scorer.recently() == pytest.approx(right)  # of the last frames none is left out


def test_many_labels_are_fitted_a_few_frames_at_a_time(monkeypatch):
    truth, steps = flight(frames=50)
    results = []
    for frames in (1, 7, 64):
        monkeypatch.setattr("onboard.scores.FIT_FRAMES", frames)
        results.append(score(truth, steps)[1])
    assert results[0] == results[1] == results[2]


def test_macro_f1_equals_counting():
    random = np.random.default_rng(0)
    for classes in (2, 3, 7):
        truth, said = random.integers(0, classes, 200), random.integers(0, classes, 200)
        truth[truth == 1] = 0  # a class that is said and does not occur is left out
        each = []
        for c in set(truth.tolist()):
            tp = sum(int(t == c and s == c) for t, s in zip(truth, said, strict=True))
            precision = tp / max(1, int((said == c).sum()))
            recall = tp / int((truth == c).sum())
            each.append(2 * precision * recall / (precision + recall))
        assert macro_f1(truth, said, classes) == pytest.approx(np.mean(each))
    assert macro_f1(np.array([], int), np.array([], int), 3) == 0.0
