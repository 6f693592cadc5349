"""What a daemon needs, and that what a replay keeps in memory does not grow with the flight."""

import contextlib
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.progress import Progress

from onboard import replay
from onboard.config import Asking, Config, ModelChoice
from tests.system.ground_process import Ground
from tests.system.onboard_process import Daemon
from tests.system.test_daemon import Operator

PHOTOS = 25
LAPS = (4, 24)
BYTES_A_FRAME = 200
"""Two floats of latency in bounded rows that these flights do not fill; all else must be gone."""


@pytest.fixture
def photos(tmp_path):
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for index in range(PHOTOS):
        ground = cv2.blur(random.integers(0, 256, (96, 128, 3)).astype(np.uint8), (5, 5))
        cv2.imwrite(str(folder / f"p{index:02}.png"), ground)
    letters = random.choice(list("XY"), (PHOTOS, 2))
    lines = [f"p{i:02}.png,0,{''.join(row)}" for i, row in enumerate(letters)]
    (tmp_path / "truth.csv").write_text("\n".join(["frame,row,labels", *lines]) + "\n")
    return folder


@pytest.mark.parametrize("module", ["onboard.worker", "onboard.service", "onboard.cli", "onboard.statuspage"])
def test_only_the_flight_needs_compiler_and_camera(module):
    """They would be two thirds of the memory of learner, supervisor and page."""
    code = f"import sys, {module}; print(sorted({{'numba', 'cv2', 'av'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_memory_does_not_grow_with_the_flight(photos, tmp_path, monkeypatch):
    """With images, features, questions, answers and updates of every lap; measured by Python and NumPy themselves."""
    monkeypatch.setattr("onboard.scores.MAX_FRAMES", 32)
    monkeypatch.setattr("onboard.replay.MAX_FRAMES", 32)
    config = Config(model=ModelChoice(classes=("x", "y")), ask=Asking(share=0.05, crop_px=32))
    peaks, updates = [], []
    for laps in (1, *LAPS):  # the first one fills what is kept for good, as imports are
        options = replay.Options(
            source=str(photos),
            truth=tmp_path / "truth.csv",
            letters={"X": "x", "Y": "y"},
            state=tmp_path / f"state{laps}",
            loops=laps,
        )
        tracemalloc.start()
        report = replay.run(config, options, Progress(disable=True))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert report.frames == laps * PHOTOS
        updates.append(report.updates)
        assert len(report.timeline.frames) <= 32
    assert updates[2] > 3 * updates[1] > 0
    growth = (peaks[2] - peaks[1]) / (PHOTOS * (LAPS[1] - LAPS[0]))
    print(f"peaks {[f'{peak / 1e6:.2f} MB' for peak in peaks]}, {growth:.0f} bytes a frame")
    assert growth < BYTES_A_FRAME


MAX_DAEMON_MB = 400
LABELS = 40
LIVE = "sim://?seed=3&frames=4000&fps=8&live=1"


def processes(pid):
    """The process and all below it."""
    found = [pid]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found += processes(int(entry.name))
    return found


def resident_mb(pid):
    """(resident, its proportional share of what several processes have in common, the most that was ever resident)."""
    lines = (Path(f"/proc/{pid}/smaps_rollup").read_text() + Path(f"/proc/{pid}/status").read_text()).splitlines()
    table = {line.split()[0].rstrip(":"): line.split() for line in lines if line.endswith("kB")}
    return tuple(int(table[name][1]) / 1024 for name in ("Rss", "Pss", "VmHWM"))


def test_the_daemon_with_learner_and_page_fits(tmp_path):
    """Flying, learning from labels, recording, in touch with a station; the simulator's world is in it too, which no
    camera has. MEMORY_S=120 lets it fly so long.
    """
    ground = Ground(tmp_path)
    ground.start()
    ground.enroll()
    operator = Operator(ground, LIVE)
    daemon = Daemon(
        tmp_path / "drone",
        LIVE,
        tmp_path / "kestrel.toml",
        operator.sim.classes,
        ask={"share": 0.05},
        record={"folder": str(tmp_path / "flights"), "min_free_mb": 0},
        page={"address": "127.0.0.1:0"},
    )
    daemon.start()
    try:
        daemon.until(lambda s: s["link"] == "connected" and s["frame"] >= 0)
        operator.answer(LABELS, daemon)
        daemon.until(lambda s: s["updates"] > 0 and s["labels"] == LABELS)
        time.sleep(float(os.environ.get("MEMORY_S", "2")))
        rows = {}
        for pid in processes(daemon.process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            rows[words[2].decode()] = resident_mb(pid)
        assert daemon.stop() == 0
    finally:
        daemon.kill()
        ground.stop()
    for name, (rss, pss, most) in rows.items():
        print(f"{name:20} {rss:5.0f} MB resident, {pss:5.0f} of its own, {most:5.0f} at most")
    rss, pss, _ = (sum(column) for column in zip(*rows.values(), strict=True))
    print(f"{'all':20} {rss:5.0f} MB resident, {pss:5.0f} with what they share counted once")
    assert set(rows) == {"onboard.cli", "onboard.daemon", "onboard.worker", "onboard.statuspage"}
    # each shared page once: how much of a library is mapped depends on what the system's cache holds of it
    assert pss < MAX_DAEMON_MB
