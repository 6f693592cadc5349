"""report.json, the tables and the picture of a replay."""

import io
import json
import sys

import cv2
import msgspec
import numpy as np
import pytest
from rich.console import Console

from models.errors import HadanetError
from onboard import report as module
from onboard.report import Report, Timeline, draw, percentiles, show, write

VARIANTS = ("adapted", "smoothed", "frozen", "all_labels")
KEYS = {
    *("frames", "frames_dropped", "tiles", "classes", "labels_used", "label_rate", "accuracy", "macro_f1", "windows"),
    *("updates", "rollbacks", "latency_ms", "fps", "bytes_up", "bytes_down", "delta_bytes", "model_hash", "base_hash"),
    *("mirror_hash", "seed"),
}
"""Keys that acceptance reads."""


def report(frames: int = 40, **changed) -> Report:
    random = np.random.default_rng(0)
    hits = {v: [(int(random.integers(0, 40)), 48) for _ in range(frames)] for v in VARIANTS}
    fields = {
        "source": "flights/monday",
        "frames": frames,
        "frames_dropped": 1,
        "frames_skipped": ["bad.jpg: not a JPEG"],
        "tiles": 48 * frames,
        "classes": ["object", "road"],
        "labels_used": 30,
        "label_rate": 30 / (48 * frames),
        "questions": 33,
        "accuracy": dict.fromkeys(VARIANTS, 0.75),
        "macro_f1": dict.fromkeys(VARIANTS, 0.625),
        "windows": {v: [0.1, *[0.5] * 8, None] for v in VARIANTS},
        "updates": 12,
        "rollbacks": 1,
        "learner_restarts": 0,
        "latency_ms": percentiles(range(101)) | percentiles(range(11), "inference_"),
        "fps": 12.3,
        "bytes_up": 123_456,
        "bytes_down": 789,
        "delta_bytes": [300, 100, 200],
        "model_hash": "ab" * 32,
        "base_hash": "cd" * 32,
        "mirror_hash": "ab" * 32,
        "seed": 0,
        "timeline": Timeline(
            frames=list(range(frames)), labels=[5, 7], bytes_up=list(range(0, 100 * frames, 100)), hits=hits
        ),
    }
    return Report(**(fields | changed))


NO_TRUTH = {"accuracy": None, "macro_f1": None, "windows": None}


def shown(what: Report) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    show(what, console)
    return console.file.getvalue()


def test_report_json_has_all_keys_and_comes_back(tmp_path):
    path = tmp_path / "new" / "report.json"
    write(report(), path)
    data = json.loads(path.read_text())
    assert data.keys() >= KEYS
    assert data["windows"]["adapted"][-1] is None
    assert msgspec.json.decode(path.read_bytes(), type=Report) == report()
    write(report(**NO_TRUTH), path)
    assert json.loads(path.read_text())["accuracy"] is None


def test_a_report_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "report.json"):
        with pytest.raises(HadanetError, match=f"{path}: the report cannot be written"):
            write(report(), path)


def test_percentiles_equal_sorting():
    random = np.random.default_rng(0)
    values = random.exponential(10, 1001)
    ranked = sorted(values)
    assert percentiles(values) == {"p50": round(ranked[500], 3), "p99": round(ranked[990], 3)}
    assert percentiles(iter([3.0]), "x_") == {"x_p50": 3.0, "x_p99": 3.0}
    assert percentiles([]) == {"p50": 0.0, "p99": 0.0}


def test_the_tables_say_it_all():
    text = shown(report())
    for part in (
        "flights/monday: 30 labels for 1920 tiles",
        "adapted    │    0.750 │    0.625 │       0.500",  # of the worst tenth but the first, when nothing is known
        "40, dropped 1, unreadable 1",
        "33, 30 (1.6% of tiles)",
        "50.0 ms (p99 99.0), inference 5.0 ms",
        "123,456, 789",
        "200 bytes (median), 300 (largest)",
        "abababababababab",
        "mirror             equal",
        "unreadable: bad.jpg: not a JPEG",
    ):
        assert part in text, part


def test_a_report_without_truth_and_without_deltas():
    text = shown(report(**NO_TRUTH, delta_bytes=[], mirror_hash="ef" * 32, frames_skipped=[]))
    assert "variant" not in text
    assert "DIFFERS: efefefefefefefef" in text
    assert "unreadable:" not in text


def test_names_are_not_taken_for_markup():
    """Brackets in a folder's name or in a reason are text, even where they look like rich's own."""
    text = shown(report(source="[red]/[/monday]", frames_skipped=["a[/b].jpg: [Errno 5] Input/output error"] * 12))
    assert "[red]/[/monday]: 30 labels" in text
    assert text.count("unreadable: a[/b].jpg: [Errno 5] Input/output error") == 10


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"frames": 1},
        {"frames": 3},
        NO_TRUTH | {"timeline": Timeline(list(range(40)), [], [0] * 40)},
        {"timeline": Timeline([], [], [])},
    ],
)
def test_the_picture(tmp_path, changed):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "flight.png"
    draw(report(**changed), path)
    picture = cv2.imread(str(path))
    assert picture.shape == (660, 1100, 3)
    assert picture.std() > 5


def test_the_picture_shows_the_accuracy(tmp_path):
    """Half of the flight all wrong, then all right: the line of `adapted` is below, then above."""
    pytest.importorskip("matplotlib")
    hits = {"adapted": [(0, 48)] * 20 + [(48, 48)] * 20}
    draw(report(timeline=Timeline(list(range(40)), [], [0] * 40, hits)), tmp_path / "f.png")
    picture = cv2.imread(str(tmp_path / "f.png")).astype(int)
    colour = [int(module.COLOURS["adapted"][i : i + 2], 16) for i in (5, 3, 1)]
    rows, cols = np.nonzero(np.abs(picture - colour).sum(axis=2) < 30)
    wrong, right = np.median(rows[cols < 450]), np.median(rows[(cols > 650) & (rows < 200)])
    assert wrong > right + 250
    assert rows[cols < 450].size > 200


def test_a_picture_that_cannot_be_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    (tmp_path / "d.png").mkdir()
    for name in ("file/p.png", "p.xyz", "d.png"):
        with pytest.raises(HadanetError, match="the picture cannot be written"):
            draw(report(), tmp_path / name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(HadanetError, match=r"needs matplotlib: pip install 'hadanet-uav\[plot\]'"):
        draw(report(), tmp_path / "p.png")
