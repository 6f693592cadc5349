"""A real station and a real drone's end of the link, each for one test."""

import signal

import pytest

from tests.system.ground_process import Drone, Ground


@pytest.fixture
def ground(tmp_path):
    ground = Ground(tmp_path)
    ground.start()
    yield ground
    ground.stop(signal.SIGKILL)


@pytest.fixture
def drone(ground):
    drone = Drone(ground)
    yield drone
    drone.link.close()
