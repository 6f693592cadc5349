"""A real daemon whose sensors are files: it stops learning when they are hot, flies on, and learns again."""

import time

import numpy as np
import pytest

from onboard.sim import SimSource
from onboard.sources import open_source
from tests.recorded_heat import DEGREES
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


EVERY_S = 0.25
"""Between two readings of a trace that had 2 s between them: it heats up and cools down eight times as fast."""
TRACE = DEGREES[110:240]
"""From 74 degrees over 80 to 81.7, for a minute and a half, and down to 58."""


def test_a_recorded_climb(tmp_path):
    """Off within 2 s of 80 degrees, on again 5 lower, once each. `-s` prints that and how the frames fared, which tells
    something on a computer without other work.
    """
    sensors, flights = tmp_path / "sensors", tmp_path / "flights"
    heat(sensors, 60_000)
    daemon = Daemon(
        tmp_path / "drone",
        SOURCE,
        classes=SimSource(SOURCE).classes,
        governor={"sensors": str(sensors)},
        record={"folder": str(flights), "min_free_mb": 0},
    )
    daemon.start()
    said = {"learning rests: ": [], "learning goes on": []}
    try:
        before = daemon.until(lambda s: s["learner"] == "learning" and s["frame"] > 24)
        crossed = {"off": None, "on": None}
        begun = time.monotonic()
        for number, degrees in enumerate([*TRACE, *TRACE[-1:].repeat(12)]):
            heat(sensors, round(degrees * 1000))
            now = time.monotonic()
            if crossed["off"] is None and degrees >= 80:
                crossed["off"] = now
            if crossed["off"] is not None and crossed["on"] is None and degrees <= 75:
                crossed["on"] = now
            while (now := time.monotonic()) < begun + (number + 1) * EVERY_S:
                log = daemon.err.read_text()
                for words, times in said.items():
                    times += [now] * (log.count(words) - len(times))
                time.sleep(0.02)
        after = daemon.until(lambda s: s["learner"] == "learning" and s["frame"] > before["frame"] + 8 * 20)
        assert daemon.stop() == 0
    finally:
        daemon.kill()
    (off,), (on,) = said["learning rests: "], said["learning goes on"]  # once each: it does not flutter
    times = [frame.t_ns for frame in open_source(str(flights)).frames()]
    longest_ms = max(np.diff(times)) / 1e6
    print(
        f"off {off - crossed['off']:.2f} s after 80 C, on {on - crossed['on']:.2f} s after 75 C; {len(times)} frames, "
        f"{after['dropped'] - before['dropped']} dropped, {longest_ms:.0f} ms between two at most (125 each)"
    )
    assert 0 <= off - crossed["off"] <= 2
    assert 0 <= on - crossed["on"] <= 2
