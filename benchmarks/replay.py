"""`python -m benchmarks replay`: how fast recorded flights go through the whole daemon, and in how much memory.

Each flight is replayed by `onboard replay` in a process of its own, with recording and learning on.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from onboard.sources import open_source


def sources() -> list[str]:
    """The simulated flight, and the recorded ones that are at hand."""
    flights = Path(os.environ.get("HADANET_DATA", "../shared/data")) / "flights"
    recorded = [flights / "caliterra", flights / "cuav", flights / "karma" / "karma.mp4"]
    return ["sim://?seed=4", *(str(path) for path in recorded if path.exists())]


def _duration_s(source: str) -> float:
    """From the first frame's time to the last one's."""
    opened = open_source(source)
    times = [frame.t_ns for frame in opened.frames()]
    opened.close()
    return (times[-1] - times[0]) * 1e-9


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """A row for each flight. peak_bytes: largest resident size of the replay's process."""
    table: list[dict[str, object]] = []
    for source in sources()[: 1 if quick else None]:
        progress(source)
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            command = [sys.executable, "-m", "onboard.cli", "replay", source, "--report", str(report)]
            started = time.monotonic()
            child = subprocess.Popen([*command, "--record", folder], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            wall_s = time.monotonic() - started
            if status:
                raise SystemExit(f"benchmarks: {' '.join(command)} failed")
            result = json.loads(report.read_text())
        table.append(
            {
                "source": source if source.startswith("sim") else Path(source).name,
                "frames": result["frames"],
                "realtime_factor": round(_duration_s(source) / (result["frames"] / result["fps"]), 2),
                "fps": round(result["fps"], 2),
                "wall_s": round(wall_s, 1),
                "peak_bytes": usage.ru_maxrss * 1024,
            }
        )
    return table
