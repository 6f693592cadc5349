"""Registration against images warped by a known motion; chains of motions."""

import cv2
import numpy as np
import pytest

from onboard.registration import Registration
from onboard.tracks import Path, centres, overlaps

ROWS, COLS = 6, 8
TILES = ROWS * COLS


def terrain(seed, height=1200, width=1600):
    """Noise at many scales in uint8 (height, width, 3): as many corners as a photo of a field has."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for side in (4, 8, 16, 32, 64):
        coarse = random.random((height // side, width // side, 3)).astype(np.float32)
        total += side**0.3 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    total -= total.min()
    return (total * (255 / total.max())).astype(np.uint8)


GROUND = terrain(1)


def camera(angle_deg, scale, x, y, width=640, height=480):
    """(3, 3): pixels of GROUND to pixels of a frame that is moved by shares x, y of its size, turned and scaled."""
    turn = np.eye(3)
    turn[:2] = cv2.getRotationMatrix2D((width / 2, height / 2), angle_deg, scale)
    turn[:2, 2] += x * width, y * height
    corner = np.array([[1, 0, width / 2 - 800], [0, 1, height / 2 - 600], [0, 0, 1]])
    return turn @ corner


def photo(pose, width=640, height=480):
    return cv2.warpAffine(GROUND, pose[:2], (width, height))


def units(width, height):
    return np.diag([COLS / width, ROWS / height, 1])


MOVES = {
    "still": (0, 1, 0, 0),
    "a third ahead": (0, 1, 0.33, 0),
    "a third of both": (5, 1, 0.3, 0.3),
    "a turn at the end of a line": (100, 1, 0.1, 0),
    "turned, moved and climbed": (100, 0.9, 0.2, -0.15),
    "half a turn": (180, 1, 0, 0.33),
    "sunk": (3, 1.2, 0, 0.1),
}


@pytest.mark.parametrize("move", MOVES)
def test_registration_recovers_a_known_motion(move):
    first, second = camera(0, 1, 0, 0), camera(*MOVES[move])
    registration = Registration(ROWS, COLS)
    assert registration.step(photo(first)) is None
    motion = registration.step(photo(second))
    assert motion is not None
    truth = units(640, 480) @ first @ np.linalg.inv(second) @ np.linalg.inv(units(640, 480))
    middle = centres(ROWS, COLS)
    gap = np.abs(middle @ motion.T - middle @ truth.T).max()
    print(f"registration, {move}: at most {gap:.4f} tiles off")
    assert gap < 0.1


def test_registration_of_frames_of_other_sizes():
    """Large frames are matched at a smaller width; the second frame may even be of another size than the first."""
    first, second = camera(0, 1, 0, 0, 800, 640), camera(20, 1, 0.1, 0.1, 640, 480)
    registration = Registration(ROWS, COLS)
    registration.step(photo(first, 800, 640))
    motion = registration.step(photo(second))
    assert motion is not None
    truth = units(800, 640) @ first @ np.linalg.inv(second) @ np.linalg.inv(units(640, 480))
    middle = centres(ROWS, COLS)
    assert np.abs(middle @ motion.T - middle @ truth.T).max() < 0.1


def test_registration_is_deterministic_and_leaves_the_frames_alone():
    frames = [photo(camera(*move)) for move in MOVES.values()]
    copies = [frame.copy() for frame in frames]
    runs = []
    for noise in (1, 2):
        cv2.setRNGSeed(noise)  # what ran before must not matter
        registration = Registration(ROWS, COLS)
        runs.append([registration.step(frame) for frame in frames])
    for a, b in zip(*runs, strict=True):
        assert (a is None and b is None) or a.tobytes() == b.tobytes()
    np.testing.assert_array_equal(frames, copies)


def test_unrelated_ground_is_no_match():
    registration = Registration(ROWS, COLS)
    for seed in range(12):
        assert registration.step(terrain(100 + seed, 480, 640)) is None


def test_a_jump_in_scale_is_no_match():
    for scale in (0.6, 1.6):
        registration = Registration(ROWS, COLS)
        registration.step(photo(camera(0, 1, 0, 0)))
        assert registration.step(photo(camera(0, scale, 0, 0))) is None


def test_images_without_anything_to_match():
    grey = np.full((480, 640, 3), 127, np.uint8)
    ground = photo(camera(0, 1, 0, 0))
    registration = Registration(ROWS, COLS)
    for image in (grey, grey, ground, grey, ground, np.zeros_like(grey)):
        assert registration.step(image) is None
    assert registration.step(ground) is None
    assert registration.step(ground) is not None


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 3), (40, 40), (63, 64), (64, 64), (65, 70), (1, 2000), (2000, 1), (5, 700)]
)
def test_tiny_images(size):
    image = terrain(3)[: size[0], : size[1]]
    registration = Registration(ROWS, COLS)
    assert registration.step(image) is None
    assert registration.step(image) is None


# --- geometry of the grid ---------------------------------------------------------------------------------------------


def test_centres_run_row_by_row():
    points = centres(2, 3)
    assert points.tolist() == [[x + 0.5, y + 0.5, 1] for y in range(2) for x in range(3)]


def test_overlaps_equal_areas_counted_in_small_squares():
    """The unit square around a point, cut into 50 x 50 pieces: how many lie in each tile."""
    random = np.random.default_rng(5)
    points = random.uniform(-1.5, 9, (40, 2))
    fine = (np.arange(50) + 0.5) / 50 - 0.5
    share = overlaps(points, ROWS, COLS)
    for point, row in zip(points, share, strict=True):
        xs, ys = np.floor(point[0] + fine), np.floor(point[1] + fine)
        counted = [[(ys == r).mean() * (xs == c).mean() for c in range(COLS)] for r in range(ROWS)]
        np.testing.assert_allclose(row.reshape(ROWS, COLS), counted, atol=0.03)
    np.testing.assert_array_equal(overlaps(centres(ROWS, COLS), ROWS, COLS), np.eye(TILES))


def similarity(random):
    angle, scale = random.uniform(-2, 2), random.uniform(0.8, 1.25)
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[a, -b, random.uniform(-3, 3)], [b, a, random.uniform(-3, 3)], [0, 0, 1]])


def test_motion_along_a_path_equals_composing_by_hand():
    random = np.random.default_rng(0)
    steps = {frame: similarity(random) for frame in range(11, 40)}
    path = Path(8)
    path.add(10, None)
    for frame, step in steps.items():
        path.add(frame, step)
        remembered = path.frames()
        assert remembered == tuple(range(max(10, frame - 7), frame + 1))
        for source in remembered:
            for target in remembered:
                by_hand = np.eye(3)
                for between in range(source, target, -1):  # newer to older, one step after another
                    by_hand = steps[between] @ by_hand
                for between in range(source + 1, target + 1):
                    by_hand = np.linalg.inv(steps[between]) @ by_hand
                np.testing.assert_allclose(path.motion(source, target), by_hand, atol=1e-8)


def test_a_path_ends_at_a_cut_and_forgets():
    path = Path(4)
    for frame, motion in enumerate([None, np.eye(3), None, np.eye(3), np.eye(3)]):
        path.add(frame, motion)
    assert path.frames() == (1, 2, 3, 4)
    assert path.motion(0, 1) is None  # forgotten
    assert path.motion(1, 2) is None  # across the cut
    assert path.motion(4, 1) is None
    np.testing.assert_array_equal(path.motion(4, 2), np.eye(3))
    assert path.motion(4, 5) is None  # not there yet


def test_motions_of_many_frames_are_those_of_each():
    random = np.random.default_rng(5)
    path = Path(8)
    for frame in range(12):
        path.add(frame, None if frame == 7 else np.eye(3) + np.tril(random.normal(0, 0.1, (3, 3)), -1).T)
    for target in (3, 6, 9, 11):
        each = {source: path.motion(source, target) for source in range(13)}
        found = path.motions(range(13), target)
        assert found.keys() == {source for source, motion in each.items() if motion is not None}
        for source, motion in found.items():
            np.testing.assert_array_equal(motion, each[source])
    assert len(path.motions(range(13), 11)) == 5


def test_a_path_of_a_whole_flight_keeps_its_digits():
    """An hour of frames that each say they sink a little: the chain is multiplied up to 1e-40 and beyond."""
    step = np.array([[0.998, 0.01, 0.3], [-0.01, 0.998, 0.1], [0, 0, 1]])
    path = Path(64)
    path.add(0, None)
    for frame in range(1, 50_000):
        path.add(frame, step)
    by_hand = np.linalg.matrix_power(step, 63)
    np.testing.assert_allclose(path.motion(49_999, 49_999 - 63), by_hand, rtol=1e-6)
