"""`make demo`, as it runs: daemon, link, station, page and report."""

import json
import os
import subprocess
import sys

import cv2
from mcap.reader import make_reader

from tests.system.onboard_process import ROOT


def test_the_demo(tmp_path):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {k: v for k, v in os.environ.items() if k not in ("KEEP", "PAGE_PORT")} | {"PYTHONPATH": path}
    command = [sys.executable, "-m", "deploy.demo"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "http://127.0.0.1:" in done.stdout
    assert "Traceback" not in done.stderr
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["mirror_hash"] == report["model_hash"] != report["base_hash"]
    assert report["macro_f1"]["adapted"] > report["macro_f1"]["frozen"]
    assert report["accuracy"]["adapted"] > report["accuracy"]["frozen"]
    assert (report["frames_dropped"], report["frames_skipped"], report["learner_restarts"]) == (0, [], 0)
    assert min(report["bytes_up"], report["bytes_down"]) > 0
    picture = cv2.imread(str(tmp_path / "demo" / "report.png"))
    assert picture is not None
    assert picture.std() > 10
    (recording,) = (tmp_path / "demo" / "recordings").glob("*.mcap")
    with recording.open("rb") as file:
        summary = make_reader(file).get_summary()
    counts = {channel.topic: summary.statistics.channel_message_counts[i] for i, channel in summary.channels.items()}
    assert counts["/camera"] == report["frames"]
