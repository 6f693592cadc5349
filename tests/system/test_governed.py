"""A real daemon whose sensors are files: it stops learning when they are hot, flies on, and learns again."""

import pytest

from onboard.sim import SimSource
from tests.system.onboard_process import Daemon

SOURCE = "sim://?seed=3&frames=4000&fps=8&live=1"


def heat(root, millidegrees):
    zone = root / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True, exist_ok=True)
    partial = zone / "next"
    partial.write_text(f"{millidegrees}\n")
    partial.replace(zone / "temp")


def test_learning_rests_while_it_is_hot_and_no_frame_is_lost(tmp_path):
    sensors = tmp_path / "sensors"
    heat(sensors, 50_000)
    daemon = Daemon(tmp_path / "drone", SOURCE, classes=SimSource(SOURCE).classes, governor={"sensors": str(sensors)})
    daemon.start()
    try:
        cool = daemon.until(lambda s: s["learner"] == "learning" and s["frame"] > 5)
        assert cool["governor"].startswith("50 C, ")
        heat(sensors, 81_000)
        hot = daemon.until(lambda s: s["learner"] == "resting")
        assert hot["governor"].endswith("; learning rests: 81 C, learns again at 75 C")
        later = daemon.until(lambda s: s["frame"] > hot["frame"] + 10)
        assert later["learner"] == "resting"
        assert later["dropped"] == hot["dropped"] == cool["dropped"]
        heat(sensors, 76_000)
        still = daemon.until(lambda s: s["governor"].startswith("76 C"))
        assert still["learner"] == "resting"
        heat(sensors, 74_000)
        daemon.until(lambda s: s["learner"] == "learning" and s["governor"].startswith("74 C, "))
    finally:
        daemon.kill()


@pytest.mark.parametrize("line", ["off_c = 500", "hysteresis_c = 0", "colour = 1"])
def test_limits_that_make_no_sense_are_refused(tmp_path, capsys, line):
    from onboard.cli import main

    path = tmp_path / "onboard.toml"
    path.write_text(f'state = "{tmp_path}"\n[governor]\n{line}\n')
    assert main(["check", "--config", str(path)]) == 1
    assert "line 3" in capsys.readouterr().out
