"""The governor against traces of sensors, and the files that they are read from."""

import os
from pathlib import Path

import numpy as np
import pytest

from onboard.config import Governing
from onboard.governor import POWER_QUIET_S, Governor, Reading, Sensors
from tests.recorded_heat import DEGREES, EVERY_S

LIMITS = Governing()


def rests(trace, every_s=0.5, limits=LIMITS):
    """When learning rests, for a trace of readings."""
    governor = Governor(limits)
    return [bool(governor.update(i * every_s, reading)) for i, reading in enumerate(trace)]


def warm(*degrees):
    return [Reading(temperature_c=c) for c in degrees]


def test_learning_stops_at_80_degrees_and_goes_on_5_lower():
    assert rests(warm(79.9, 80, 82, 79, 75.1, 75, 79.9, 80)) == [False, True, True, True, True, False, False, True]


def test_a_climb_as_a_pi_makes_it_is_answered_within_2_seconds_and_does_not_flutter():
    """60 to 84 degrees and back in steps of a sensor with noise of half a degree."""
    rng = np.random.default_rng(0)
    true = np.concatenate([np.linspace(60, 84, 240), np.full(60, 84), np.linspace(84, 65, 240)])
    trace = [Reading(temperature_c=float(round(c + rng.normal(0, 0.5), 1))) for c in true]
    found = rests(trace)
    changes = np.flatnonzero(np.diff(found)) + 1
    assert len(changes) == 2
    assert (changes[0] - np.argmax([r.temperature_c >= 80 for r in trace])) * 0.5 <= 2
    assert true[changes[1]] == pytest.approx(75, abs=2)


def test_a_recorded_climb_stops_learning_once_and_lets_it_go_on_once():
    """A sensor that goes to and fro between 79.5 and 81.7 degrees, read every half a second as the daemon does."""
    moments = np.arange(0, len(DEGREES) * EVERY_S, 0.5)
    seen = DEGREES[(moments / EVERY_S).astype(int)]
    found = rests([Reading(temperature_c=c) for c in seen])
    off, on = np.flatnonzero(np.diff(found)) + 1
    assert off == np.argmax(seen >= 80)
    assert on == off + np.argmax(seen[off:] <= 75)
    assert (seen[:off] > 75).sum() > 40  # it had been hotter than 75 before, and learned


def test_undervoltage_stops_learning_until_it_has_been_away_for_a_while():
    quiet = int(POWER_QUIET_S / 0.5)
    trace = [Reading(throttled=0)] * 2 + [Reading(throttled=1)] + [Reading(throttled=0x50000)] * (quiet + 2)
    found = rests(trace)
    assert found[:3] == [False, False, True]
    assert found[3 : 2 + quiet] == [True] * (quiet - 1)
    assert found[-1] is False  # the upper bits say what was, not what is


def test_short_memory_stops_learning_with_a_margin():
    trace = [Reading(free_memory_mb=mb) for mb in (500, 63, 65, 95, 96, 65)]
    assert rests(trace) == [False, True, True, True, False, False]


@pytest.mark.parametrize(("name", "limit"), [("free_disk_mb", 64), ("battery_percent", 15)])
def test_a_short_disk_and_a_low_battery_stop_learning_with_a_margin(name, limit):
    trace = [Reading(**{name: factor * limit}) for factor in (2, 1, 0.9, 1.4, 1.5, 1)]
    assert rests([*trace, Reading(**{name: 0}), Reading()]) == [False, False, True, True, False, False, True, True]


def test_a_sensor_that_falls_silent_leaves_things_as_they_are():
    trace = [*warm(85), Reading(), Reading(), *warm(70), Reading()]
    assert rests(trace) == [True, True, True, False, False]
    assert rests([Reading()] * 3) == [False] * 3


def test_reasons_are_words():
    governor = Governor(LIMITS)
    said = governor.update(0, Reading(temperature_c=81.2, throttled=5, free_memory_mb=10))
    assert said == "81 C, learns again at 75 C; undervoltage, throttled; 10 MB of memory free"


def files(root, zones=(), throttled=None, memory=None, supplies=()):
    for i, text in enumerate(zones):
        zone = root / f"sys/class/thermal/thermal_zone{i}"
        zone.mkdir(parents=True, exist_ok=True)
        temperature, _, kind = text.partition(" ")
        (zone / "temp").write_text(temperature)
        (zone / "type").write_text(kind or "cpu-thermal\n")
    for i, words in enumerate(supplies):
        supply = root / f"sys/class/power_supply/supply{i}"
        supply.mkdir(parents=True, exist_ok=True)
        for name, word in zip(("type", "status", "capacity"), words.split(), strict=False):
            (supply / name).write_text(f"{word}\n")
    if throttled is not None:
        folder = root / "sys/devices/platform/soc/soc:firmware"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "get_throttled").write_text(throttled)
    if memory is not None:
        (root / "proc").mkdir(exist_ok=True)
        (root / "proc/meminfo").write_text(memory)


def test_sensors_are_read_from_their_files(tmp_path):
    memory = "MemTotal:        1000000 kB\nMemFree: 5 kB\nMemAvailable:    204800 kB\n"
    supplies = ["Mains", "Battery Discharging 61", "Battery Charging 3", "Battery Discharging 200", "Battery"]
    files(tmp_path, ["48312\n", "51007\n", "-273000\n", "100000\n PMIC-Die\n"], "50005\n", memory, supplies)
    reading = Sensors(tmp_path, tmp_path).read()
    about = os.statvfs(tmp_path)
    assert reading == Reading(
        temperature_c=pytest.approx(51.007),
        throttled=0x50005,
        free_memory_mb=200.0,
        free_disk_mb=pytest.approx(about.f_bavail * about.f_frsize / 2**20, rel=0.01),
        battery_percent=61,
    )


def test_odd_files_are_no_reading(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert Sensors(tmp_path, nowhere).read() == Reading()
    files(tmp_path, ["hot\n", "999999\n", ""], "yes", "MemAvailable: much\n", ["Battery Discharging full"])
    assert Sensors(tmp_path, nowhere).read() == Reading()


def test_this_machine_can_be_read():
    assert Sensors(Path(LIMITS.sensors), Path.cwd()).read().free_memory_mb > 1
