"""A part of a flight, and laps of it, around real sources."""

from itertools import chain, pairwise

import cv2
import numpy as np
import pytest

from models.errors import SourceError
from onboard.frame import Frame, Pose, Skipped
from onboard.sim import SimSource
from onboard.sources import open_source
from onboard.sources.window import Window
from onboard.truth import Truth

SIM = "sim://?seed=3&frames=12&fps=2&start=2&width=64&height=64&rows=2&cols=2"
"""Ten frames, half a second apart; the first has number 2."""


class Recorded:
    """Frames of one pixel at given times; every third cannot be read."""

    def __init__(self, times_s, fps=None):
        self.uri, self.fps, self.live, self.skipped, self.closed = "recorded", fps, False, [], False
        self.times_s, self.length = times_s, len(times_s)
        self.first_ns = round(times_s[0] * 1e9) if times_s else 0

    def frames(self, start_s=0.0):
        for index, time_s in enumerate(self.times_s):
            if index % 3 == 2:
                self.skipped.append(Skipped(name=f"f{index}", reason="damaged"))
            else:
                image = np.full((1, 1, 3), index, np.uint8)
                yield Frame(index=index, t_ns=round(time_s * 1e9), name=f"f{index}", image=image, pose=Pose())

    def close(self):
        self.closed = True


def test_the_whole_flight_is_the_flight():
    plain, window = list(SimSource(SIM).frames()), Window(SimSource(SIM))
    assert window.length == 10
    for a, b in zip(plain, window.frames(), strict=True):
        assert (a.index, a.t_ns, a.name, a.image.tobytes()) == (b.index, b.t_ns, b.name, b.image.tobytes())


@pytest.mark.parametrize(
    ("start_s", "end_s", "numbers"),
    [(0, 1, [2, 3]), (1, None, range(4, 12)), (1, 2.01, [4, 5, 6]), (0.6, 1.4, [4]), (4.5, 99, [11])],
)
def test_from_is_in_it_and_to_is_not(start_s, end_s, numbers):
    window = Window(SimSource(SIM), start_s, end_s)
    assert window.length is None
    assert [frame.index for frame in window.frames()] == list(numbers)


def test_windows_side_by_side_hold_each_frame_once():
    borders = [0, 0.7, 1.5, 1.50001, 4, None]
    parts = [[f.index for f in Window(SimSource(SIM), a, b).frames()] for a, b in pairwise(borders)]
    assert list(chain(*parts)) == list(range(2, 12))


def test_laps():
    window = Window(SimSource(SIM), 1, 2.5, 3)
    frames = list(window.frames())
    assert [f.index for f in frames] == [4, 5, 6, 11, 12, 13, 18, 19, 20]
    assert [f.name for f in frames] == ["4", "5", "6", "4@2", "5@2", "6@2", "4@3", "5@3", "6@3"]
    assert {b.t_ns - a.t_ns for a, b in pairwise(frames)} == {5 * 10**8}
    assert [f.image.tobytes() for f in frames[3:6]] == [f.image.tobytes() for f in frames[:3]]
    assert [f.index for f in window.frames()] == [f.index for f in frames]  # a source can be read again


def test_a_lap_of_one_frame_keeps_the_rate():
    assert [f.t_ns for f in Window(Recorded([5.0], fps=4), loops=3).frames()] == [5 * 10**9, 525 * 10**7, 55 * 10**8]
    assert [f.t_ns for f in Window(Recorded([5.0]), loops=2).frames()] == [5 * 10**9, 6 * 10**9]


def test_what_is_skipped_is_told_once_and_only_in_the_window():
    source = Recorded([0, 1, 2, 3, 4, 5, 6, 7])
    window = Window(source, 2.5, 7, loops=4)
    assert [f.index for f in window.frames()][:5] == [3, 4, 6, 10, 11]
    assert [s.name for s in window.skipped] == ["f5"]


def test_truth_of_laps():
    sim = SimSource(SIM)
    window = Window(sim, loops=3)
    truth = window.truth(sim.truth)
    frames = list(window.frames())
    for frame in frames:
        lap, left = divmod(frames.index(frame), 10)
        assert frame.name == f"{left + 2}" + (f"@{lap + 1}" if lap else "")
        np.testing.assert_array_equal(truth.grid(frame), sim.truth.grid((left + 2, "")))
    named = Truth(("a",), 1, 1, [], {"x@9.jpg": np.zeros((1, 1), np.int16)}.get)
    for name, known in (("x@9.jpg", True), ("x@9.jpg@3", True), ("x@9.jpg@4", False), ("x@9.jpg@x", False)):
        assert (window.truth(named).grid((-1, name)) is not None) == known


def test_photos_and_videos_loop(tmp_path):
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"p{index}.png"), np.full((8, 8, 3), index, np.uint8))
    frames = list(Window(open_source(str(tmp_path)), loops=2).frames())
    assert [(f.name, int(f.image[0, 0, 0]), f.t_ns // 10**9) for f in frames] == [
        *((f"p{i}.png", i, i) for i in range(3)),
        *((f"p{i}.png@2", i, i + 3) for i in range(3)),
    ]


def test_close_ends_it():
    source = Recorded([0, 1, 2])
    window = Window(source, loops=1000)
    frames = window.frames()
    next(frames)
    window.close()
    assert (list(frames), source.closed) == ([], True)


@pytest.mark.parametrize("numbers", [(-1, None, 1), (2, 2, 1), (3, 1, 1), (0, None, 0)])
def test_nothing_of_a_flight(numbers):
    with pytest.raises(SourceError, match="recorded: nothing of a flight lies from"):
        Window(Recorded([0, 1]), *numbers)


def test_a_window_behind_the_end():
    with pytest.raises(SourceError, match=r"no frame lies from 60 s on; the flight has 4\.5 s"):
        list(Window(SimSource(SIM), 60).frames())
    with pytest.raises(SourceError, match=r"no frame lies from 0\.1 s on and before 0\.2 s"):
        list(Window(SimSource(SIM), 0.1, 0.2).frames())


def test_a_live_source_has_no_window():
    with pytest.raises(SourceError, match="a live source has no part and no end"):
        Window(SimSource(SIM + "&live=1"), 1)
