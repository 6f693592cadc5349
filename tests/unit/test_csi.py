"""A Pi's camera through picamera2, with a stand-in for that library, which runs on a Pi only.

It shows what we do with what the library's manual promises: arrays in BGR for RGB888, a job that can be waited for, a
RuntimeError or IndexError where there is no camera. That a real one keeps to it is not shown here.
"""

import sys
import types

import numpy as np
import pytest

from models.errors import SourceError
from onboard.sources import open_source

WIDTH, HEIGHT = 64, 64


class Job:
    def __init__(self, outcome):
        self._outcome = outcome

    def get_result(self, timeout):
        assert timeout > 0
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


class Camera:
    """picamera2.Picamera2, which gives what the test put into `pictures`."""

    pictures: tuple = ()
    log: list

    def __init__(self, number):
        if number:
            raise IndexError("list index out of range")
        type(self).log = ["open"]
        self._left = iter(self.pictures)

    def create_video_configuration(self, main, controls):
        return {"main": main, "controls": controls}

    def configure(self, config):
        self.log.append(config)

    def start(self):
        self.log.append("start")

    def capture_array(self, name, wait):
        assert (name, wait) == ("main", False)
        return Job(next(self._left))

    def stop(self):
        self.log.append("stop")

    def close(self):
        self.log.append("close")


@pytest.fixture
def library(monkeypatch):
    module = types.ModuleType("picamera2")
    module.Picamera2 = Camera
    monkeypatch.setitem(sys.modules, "picamera2", module)


def picture(value):
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def test_frames_are_the_cameras_arrays(library, monkeypatch):
    monkeypatch.setattr(Camera, "pictures", (picture(1), picture(2)[:, ::-1], picture(3)))
    source = open_source(f"csi://0?width={WIDTH}&height={HEIGHT}&fps=25")
    assert (source.live, source.fps) == (True, 25.0)
    seen = []
    for frame in source.frames():
        seen.append(frame)
        if len(seen) == 3:
            source.close()
    assert [int(frame.image.mean()) for frame in seen] == [1, 2, 3]
    assert all(frame.image.flags.c_contiguous for frame in seen)
    assert [frame.index for frame in seen] == [0, 1, 2]
    settings = {"main": {"size": (WIDTH, HEIGHT), "format": "RGB888"}, "controls": {"FrameRate": 25.0}}
    assert Camera.log == ["open", settings, "start", "stop", "close"]


def test_silence_and_faults_are_told_and_the_camera_is_given_back(library, monkeypatch):
    for fault in (TimeoutError(), RuntimeError("camera frontend has timed out")):
        monkeypatch.setattr(Camera, "pictures", (picture(1), fault))
        source = open_source(f"csi://0?width={WIDTH}&height={HEIGHT}")
        with pytest.raises(SourceError, match=r"csi://0.*: the camera stopped giving pictures"):
            list(source.frames())
        assert Camera.log[-2:] == ["stop", "close"]
        source.close()
        assert Camera.log.count("close") == 1


def test_a_camera_that_is_not_there(library):
    with pytest.raises(
        SourceError, match=r"csi://1: the camera cannot be used: list index out of range; see rpicam-hello"
    ):
        open_source("csi://1")
