"""Real stations and real drones' ends of the link, each for one test."""

import signal

import pytest

from link import dealer
from tests.system.ground_process import Drone, Ground
from tests.system.link_rig import Rig


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


@pytest.fixture
def rig(tmp_path, monkeypatch):
    """Stations and drones of one test of the link, with shorter pauses: the tests wait for them."""
    monkeypatch.setattr(dealer, "RECONNECT_MIN_S", 0.05)
    monkeypatch.setattr(dealer, "RECONNECT_MAX_S", 0.1)
    monkeypatch.setattr(dealer, "BACKOFF_MIN_S", 0.1)
    monkeypatch.setattr(dealer, "BACKOFF_MAX_S", 0.2)
    rig = Rig(tmp_path)
    yield rig
    rig.close()
