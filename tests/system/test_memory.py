"""What a replay keeps in memory does not grow with the flight."""

import subprocess
import sys
import tracemalloc

import cv2
import numpy as np
import pytest
from rich.progress import Progress

from onboard import replay
from onboard.config import Asking, Config, ModelChoice

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
