"""`python -m benchmarks replay`: how fast recorded flights go through the whole daemon, and in how much memory.

Each flight is replayed by `onboard replay` in a process of its own with learning on; the first is a 1080p video, made
here of the simulated flight, and the others are recorded anew while they fly.
"""

import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av

from onboard.sim import SimSource
from onboard.sources import open_source
from onboard.truth import AMBIGUOUS_LETTER, UNKNOWN

VIDEO = "sim://?seed=4&frames={}&fps=30&width=1920&height=1080&overlap=0.98"
VIDEO_BITS = 12_000_000
"""Bits a second, H.264: what a drone's camera writes at this size is 10 to 20 million."""
LABEL_RATE = 0.003
"""Share of the video's tiles that the operator labels: four a second, as fast as a person can."""
SAMPLE_S = 1.0
"""To count its memory stops a process for some milliseconds."""


def sources() -> list[str]:
    """The simulated flight, and the recorded ones that are at hand."""
    flights = Path(os.environ.get("HADANET_DATA", "../shared/data")) / "flights"
    recorded = [flights / "caliterra", flights / "cuav", flights / "karma" / "karma.mp4"]
    return ["sim://?seed=4", *(str(path) for path in recorded if path.exists())]


def make_video(folder: Path, frames: int) -> tuple[Path, list[str]]:
    """A 1080p video of the simulated flight in `folder`, and the options that give `onboard replay` its truth."""
    source = SimSource(VIDEO.format(frames))
    path, truth = folder / "1080p.mp4", folder / "truth.csv"
    letters = [chr(ord("A") + number) for number in range(len(source.classes))]
    with av.open(str(path), "w") as container, truth.open("w", newline="") as file:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 1920, 1080, "yuv420p", VIDEO_BITS
        table = csv.writer(file)
        table.writerow(["frame", "row", "labels"])
        for frame in source.frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="bgr24")))
            grid = source.truth.grid(frame)
            assert grid is not None
            for row, numbers in enumerate(grid):
                text = "".join(AMBIGUOUS_LETTER if n == UNKNOWN else letters[n] for n in numbers)
                table.writerow([frame.index, row, text])
        container.mux(stream.encode())
    named = ",".join(f"{letter}={name}" for letter, name in zip(letters, source.classes, strict=True))
    options = ["--truth", str(truth), "--classes", ",".join(source.classes), "--letters", named]
    return path, [*options, "--label-rate", str(LABEL_RATE)]


def _duration_s(source: str) -> float:
    """From the first frame's time to the last one's."""
    opened = open_source(source)
    times = [frame.t_ns for frame in opened.frames()]
    opened.close()
    return (times[-1] - times[0]) * 1e-9


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for number in found:
        for children in Path(f"/proc/{number}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                found += map(int, children.read_text().split())
    return found


def _own_bytes(pid: int) -> int:
    """What a process has in memory, of pages that several share its part of them; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """A row for each flight. realtime_factor: its duration by the time for all frames, with decoding and learning.

    peak_bytes: the most that flight and learner had in memory together, what they share counted once.
    """
    with tempfile.TemporaryDirectory() as folder:
        progress("making the video")
        video, truth = make_video(Path(folder), 60 if quick else 600)
        table = [_row(str(video), truth, progress)]
        for source in [] if quick else sources():
            with tempfile.TemporaryDirectory() as record:
                table.append(_row(source, ["--record", record], progress))
    return table


def _row(source: str, options: list[str], progress: Callable[[str], None]) -> dict[str, object]:
    progress(source)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "onboard.cli", "replay", source, "--report", str(report), *options]
        started, peak = time.monotonic(), 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
            while child.poll() is None:
                peak = max(peak, sum(map(_own_bytes, _family(child.pid))))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(SAMPLE_S)
        wall_s = time.monotonic() - started
        if child.returncode:
            raise SystemExit(f"benchmarks: {' '.join(command)} failed")
        result = json.loads(report.read_text())
    return {
        "source": source if source.startswith("sim") else Path(source).name,
        "recorded": "--record" in options,
        "frames": result["frames"],
        "labels": result["labels_used"],
        "updates": result["updates"],
        "realtime_factor": round(_duration_s(source) / (result["frames"] / result["fps"]), 2),
        "fps": round(result["fps"], 2),
        "wall_s": round(wall_s, 1),
        "peak_bytes": peak,
    }
