"""The simulated flight: the same bytes for the same seed, geometry, truth against naive twins, and the drift."""

import hashlib
import subprocess
import sys
import threading
import time
from itertools import pairwise

import cv2
import numpy as np
import pytest

from models.errors import SourceError
from onboard.sim import SimSource, paint
from onboard.sim.camera import AGL_M, FOCAL_PER_SIDE, PATH_M, homography, view
from onboard.sim.layout import CLASSES, HEIGHT, RESOLUTION_M, lay_out
from onboard.sim.source import tile_classes, world
from onboard.sources import open_source
from onboard.truth import UNKNOWN

DIGEST = """
import hashlib, sys
from onboard.sim import SimSource, paint
for frame in SimSource("sim://?seed=3&frames=40&start=36").frames():
    print(frame.index, frame.t_ns, frame.pose, hashlib.sha256(frame.image.tobytes()).hexdigest())
"""


def line(frame) -> str:
    return f"{frame.index} {frame.t_ns} {frame.pose} {hashlib.sha256(frame.image.tobytes()).hexdigest()}"


@pytest.fixture(scope="module")
def flight():
    source = SimSource("sim://?seed=3")
    return source, list(source.frames())


def test_two_processes_and_any_start_give_the_same_frames():
    whole = [line(frame) for frame in SimSource("sim://?seed=3&frames=40").frames()]
    assert len(set(whole)) == 40
    ran = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.splitlines() == whole[36:]


def test_another_seed_is_another_world(flight):
    frames = SimSource("sim://?seed=4&frames=120&start=119").frames()
    assert np.abs(next(frames).image.astype(int) - flight[1][119].image).mean() > 10


def test_a_source_as_the_protocol_says(flight):
    source, frames = flight
    assert (source.length, source.fps, source.live, source.skipped, source.classes) == (120, 4.0, False, [], CLASSES)
    assert [frame.index for frame in frames] == list(range(120))
    assert [frame.name for frame in frames] == [str(i) for i in range(120)]
    assert {frame.image.shape for frame in frames} == {(480, 640, 3)}
    assert {frame.image.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert {b.t_ns - a.t_ns for a, b in pairwise(frames)} == {250_000_000}
    small = open_source("sim://?seed=3&frames=3&width=131&height=97&rows=3&cols=5&fps=7.5&start=1")
    assert [frame.image.shape for frame in small.frames()] == [(97, 131, 3)] * 2
    assert small.length == 2
    small.close()
    small.close()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("sim://?sead=1", "no parameter 'sead'; there are seed"),
        ("sim://?seed=1&seed=2", "'seed' stands there twice"),
        ("sim://?seed=-1", "whole number from 0 to 4294967295"),
        ("sim://?seed=1.5", "whole number"),
        ("sim://?fps=nan", "a number from 0.1 to 120"),
        ("sim://?fps=", "a number"),
        ("sim://?frames=0", "from 1 to"),
        ("sim://?width=100000", "from 64 to 1920"),
        ("sim://?frames=10&start=10", "start=10 lies behind the last frame, 9"),
        ("sim://?live=2", "from 0 to 1"),
        ("sim://?seed", "name=value"),
        ("sim://farm?seed=1", "'farm' has no meaning"),
        ("sim://?seed=1#x", "#x"),
    ],
)
def test_wrong_parameters_are_named(uri, says):
    with pytest.raises(SourceError) as error:
        open_source(uri)
    assert says in str(error.value)
    assert uri in str(error.value)


def footprint(seen, width, height):
    """Corners of the image on the ground in metres, by shooting a ray through each, without matrices of the module."""
    yaw, pitch, roll = np.radians([seen.yaw_deg, seen.pitch_deg + 90, seen.roll_deg])
    ahead = np.array([np.sin(yaw), -np.cos(yaw), 0])
    right = np.array([np.cos(yaw), np.sin(yaw), 0])
    down = np.array([0, 0, 1.0])
    # First the nose goes up, then the right wing down, about the way ahead over ground.
    right_b = right * np.cos(roll) + down * np.sin(roll)
    floor_b = down * np.cos(roll) - right * np.sin(roll)
    look = floor_b * np.cos(pitch) + ahead * np.sin(pitch)
    top = ahead * np.cos(pitch) - floor_b * np.sin(pitch)
    focal = FOCAL_PER_SIDE * max(width, height)
    corners = []
    for u, v in ((0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)):
        ray = look + right_b * (u - (width - 1) / 2) / focal - top * (v - (height - 1) / 2) / focal
        corners.append([seen.east_m, seen.south_m] + ray[:2] * seen.agl_m / ray[2])
    return np.array(corners)


def test_homography_is_the_pinhole_camera():
    phases = world(3).phases
    for along in np.linspace(-500, 500, 23):
        seen = view(along, phases)
        corners = footprint(seen, 640, 480)
        pixels = np.concatenate([corners / RESOLUTION_M - 0.5, np.ones((4, 1))], 1) @ homography(seen, 640, 480).T
        want = [(0, 0), (639, 0), (639, 479), (0, 479)]
        np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], want, atol=1e-6)


def test_neighbours_share_the_ground_of_a_survey():
    phases = world(3).phases
    shapes = [footprint(view((i - 60) * 0.25 * AGL_M, phases), 640, 480).astype(np.float32) for i in range(120)]
    shared = [cv2.intersectConvexConvex(a, b)[0] / cv2.contourArea(a) for a, b in pairwise(shapes)]
    assert 0.6 <= min(shared) <= max(shared) <= 0.85


def test_pose_and_pictures_move_together(flight):
    """The next frame, warped back by the poses alone, correlates with this one far better than as it is."""
    source, frames = flight
    for i in range(5, 115, 11):
        here, there = (cv2.GaussianBlur(f.image[..., 1], (0, 0), 2).astype(np.float32) for f in frames[i : i + 2])
        a, b = (homography(source._view(j), 640, 480) for j in (i, i + 1))
        both = cv2.warpPerspective(np.ones_like(there), a @ np.linalg.inv(b), (640, 480)) > 0.999
        back = cv2.warpPerspective(there, a @ np.linalg.inv(b), (640, 480))
        assert both.mean() > 0.55
        fits, as_is = (np.corrcoef(here[both], other[both])[0, 1] for other in (back, there))
        assert fits > 0.8 > as_is + 0.1


def test_flight_is_continuous_and_long_flights_stay_on_their_side():
    phases = world(3).phases
    track = np.array([[(v := view(along, phases)).east_m, v.south_m] for along in np.arange(-3000, 3000, 2.0)])
    steps = np.hypot(*np.diff(track, axis=0).T)
    assert steps.max() < 2.2, "no jumps"
    assert np.median(steps) > 1.8
    middle = track[:, 1] > 296 / 2
    assert not middle[:1500].any()
    assert middle[1501:].all()
    turned = view(PATH_M / 2 + 40, phases)
    straight = view(PATH_M / 2 - 40, phases)
    assert abs((turned.yaw_deg - straight.yaw_deg) % 360 - 180) < 20, "it flies back along the lane"


def naive_tiles(pixels, rows, cols):
    height, width = pixels.shape
    grid = []
    for r in range(rows):
        for c in range(cols):
            ys = range(round(r * height / rows), round((r + 1) * height / rows))
            xs = range(round(c * width / cols), round((c + 1) * width / cols))
            inside = [int(pixels[y, x]) for y in ys for x in xs]
            if inside.count(CLASSES.index("building")) >= 0.25 * len(inside):
                grid.append(CLASSES.index("building"))
            else:
                grid.append(next((k for k in range(6) if inside.count(k) >= 0.6 * len(inside)), UNKNOWN))
    return np.array(grid).reshape(rows, cols)


def test_truth_counts_pixels(flight):
    source, frames = flight
    for i in (0, 31, 64, 100):
        pixels = source.class_map(i)
        np.testing.assert_array_equal(source.truth.grid(frames[i]), naive_tiles(pixels, 6, 8))
    part = source.class_map(50)[:101, :203]
    np.testing.assert_array_equal(tile_classes(part, 7, 9), naive_tiles(part, 7, 9))


def test_class_map_is_seen_as_the_image_is(flight):
    """Pixels of the class map are where rays through the pinhole hit the ground."""
    source, _ = flight
    classes = world(3).classes
    rng = np.random.default_rng(0)
    for i in (3, 59, 90):
        pixels = source.class_map(i)
        corners = footprint(source._view(i), 640, 480).astype(np.float32)
        square = np.array([(0, 0), (639, 0), (639, 479), (0, 479)], np.float32)
        to_ground = cv2.getPerspectiveTransform(square, corners)
        spots = rng.integers((0, 0), (640, 480), (400, 2))
        ground = cv2.perspectiveTransform(spots[None].astype(np.float32), to_ground)[0]
        # Points within a pixel of a border may fall to either side.
        same = [
            pixels[y, x]
            in classes[max(int(s * 10) - 1, 0) : int(s * 10) + 2, max(int(e * 10) - 1, 0) : int(e * 10) + 2]
            for (x, y), (e, s) in zip(spots, ground, strict=True)
        ]
        assert all(same)


def test_truth_answers_for_this_flight_only(flight):
    source, frames = flight
    assert source.truth.label((120, "120"), 0, 0) is None
    assert source.truth.label((-1, "x"), 0, 0) is None
    counts = source.truth.counts()
    naive = np.zeros(6, int)
    for frame in frames:
        grid = source.truth.grid(frame)
        for k in range(6):
            naive[k] += np.count_nonzero(grid == k)
    assert counts == dict(zip(CLASSES, naive.tolist(), strict=True))
    assert min(counts.values()) > 0.03 * 120 * 48, "every class is there to be learned"
    assert sum(counts.values()) > 0.75 * 120 * 48, "few tiles are ambiguous"


def test_the_same_classes_look_different_in_the_south():
    """Meadows dry up, roads turn from grey to brown, roofs from slate to red; all by daylight, before any dusk."""
    made = world(3)
    north, south = (made.photo[part].reshape(-1, 3).astype(int) for part in (np.s_[:1200], np.s_[1800:]))
    classes = made.classes[:1200].ravel(), made.classes[1800:].ravel()

    def colour(name):
        number = CLASSES.index(name)
        return (np.median(photo[where == number], axis=0) for photo, where in zip((north, south), classes, strict=True))

    (_, g, r), (_, g2, r2) = colour("grass")
    assert g > r + 5
    assert r2 > g2 + 5
    for name in ("road", "building"):
        (b, _, r), (b2, _, r2) = colour(name)
        assert abs(r - b) < 15
        assert r2 - b2 > 30


def features(tile):
    """Log colours and log edge energies at three scales."""
    gray = cv2.cvtColor(tile, cv2.COLOR_BGR2GRAY).astype(np.float32)
    values = [np.log1p(tile.reshape(-1, 3).mean(0)), np.log1p(tile.reshape(-1, 3).std(0))]
    for scale in (0.5, 1.0, 2.0, 4.0):
        soft = cv2.GaussianBlur(gray, (0, 0), scale) / gray.mean()
        values.append([np.log1p(1e3 * np.abs(np.diff(soft, axis=axis)).mean()) for axis in (0, 1)])
    return np.concatenate(values)


def fit(x, y):
    """Ridge regression on squares, a stand-in for any head."""
    mean, std = x.mean(0), x.std(0) + 1e-6

    def lift(v):
        z = (v - mean) / std
        return np.concatenate([z, z**2, np.ones((len(z), 1))], 1)

    a = lift(x)
    weights = np.linalg.solve(a.T @ a + np.eye(a.shape[1]), a.T @ np.eye(6)[y])
    return lambda v: (lift(v) @ weights).argmax(1)


def test_what_the_flight_asks_of_a_learner(flight):
    """Texture tells the classes apart, mean colour alone does not; a head from the first tenth fails after half-way."""
    source, frames = flight
    x, y, when = [], [], []
    for frame in frames:
        for (row, col), label in np.ndenumerate(source.truth.grid(frame)):
            if label != UNKNOWN:
                x.append(features(frame.image[row * 80 : row * 80 + 80, col * 80 : col * 80 + 80]))
                y.append(label)
                when.append(frame.index)
    x, y, when = np.array(x), np.array(y), np.array(when)
    late = when >= 60
    first, between = when < 12, (when >= 12) & ~late
    frozen = fit(x[first], y[first])
    whole, colour = fit(x, y), fit(x[:, :3], y)
    score = {
        "frozen, first half": (frozen(x[between]) == y[between]).mean(),
        "frozen, second half": (frozen(x[late]) == y[late]).mean(),
        "all labels": (whole(x) == y).mean(),
        "all labels, mean colour": (colour(x[:, :3]) == y).mean(),
    }
    print({name: round(float(value), 3) for name, value in score.items()})
    assert score["all labels"] > 0.8
    assert score["all labels, mean colour"] < 0.7
    assert score["frozen, first half"] > score["frozen, second half"] + 0.15
    light = [np.median(frame.image) for frame in frames]
    assert np.mean(light[-12:]) < 0.9 * np.mean(light[:12]), "dusk"


def test_a_live_flight_loses_frames_that_are_not_taken():
    source = SimSource("sim://?seed=3&frames=100000&fps=50&live=1&width=64&height=64")
    frames = source.frames()
    first = next(frames)
    assert abs(first.t_ns - time.time_ns()) < 5e9
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        pass
    second = next(frames)
    assert second.index >= first.index + 10
    assert second.t_ns - first.t_ns == pytest.approx((second.index - first.index) * 2e7, abs=2)


def test_closing_ends_the_wait_for_a_live_frame():
    source = SimSource("sim://?seed=3&frames=100&fps=0.1&live=1&width=64&height=64")
    frames = source.frames()
    next(frames)
    rest = []
    reader = threading.Thread(target=lambda: rest.extend(frames))
    reader.start()
    source.close()
    reader.join(5)
    assert not reader.is_alive()
    assert rest == []


def test_rock_lies_in_the_second_half_alone_and_changes_nothing_else():
    """A class more, never seen before half-way; where there is no rock the land is the same, pixel by pixel."""
    with_rock, without = SimSource("sim://?seed=3&novel=1"), SimSource("sim://?seed=3")
    assert (with_rock.classes, without.classes) == ((*CLASSES, "rock"), CLASSES)
    rock = len(CLASSES)
    counts = [np.count_nonzero(with_rock.truth.grid((i, str(i))) == rock) for i in range(120)]
    assert sum(counts[:60]) == 0
    assert sum(counts[60:]) > 0.04 * 60 * 48
    for i in (20, 100):
        pixels, before = with_rock.class_map(i), without.class_map(i)
        same = pixels != rock
        np.testing.assert_array_equal(pixels[same], before[same])
        assert set(np.unique(before[~same])) <= {CLASSES.index("grass"), CLASSES.index("field")}
        here, there = with_rock.render(i).image, without.render(i).image
        far = cv2.erode(same.astype(np.uint8), np.ones((41, 41), np.uint8), borderValue=1) > 0  # beyond the blur
        assert np.abs(here[far].astype(int) - there[far]).max() <= 1  # the blur rounds as a whole
        assert same.all() or np.abs(here[~same].astype(int) - there[~same]).mean() > 10


def test_strips_do_not_show(monkeypatch):
    """Painted all at once, a land looks the same to the last bit."""
    digests = []
    for strip in (paint.STRIP, HEIGHT):
        monkeypatch.setattr(paint, "STRIP", strip)
        rng = np.random.default_rng(11)
        digests.append(hashlib.sha256(paint.paint(lay_out(rng), rng)).hexdigest())
    assert digests[0] == digests[1]
