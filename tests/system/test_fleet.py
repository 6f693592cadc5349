"""Many flights at once, in real processes and on a real Dask cluster."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from onboard import fleet
from onboard.cli import main
from onboard.fleet import names
from tests.system.onboard_process import WAIT_S, call, child, onboard, until
from tests.system.test_replay import outcome

PHOTOS = 10
CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a Dask cluster of two processes."""
    pytest.importorskip("distributed", reason="the extra `fleet` is not installed")
    script = tmp_path_factory.mktemp("cluster") / "cluster.py"
    script.write_text(CLUSTER)
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, str(script)], cwd=script.parent, text=True, **streams) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(WAIT_S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two flights of photos `a` and `b`, with one file of truth, and a broken video."""
    place, random = tmp_path_factory.mktemp("flights"), np.random.default_rng(0)
    for flight in ("a", "b"):
        (place / flight).mkdir()
        for index in range(PHOTOS):
            picture = random.integers(0, 256, (96, 128, 3)).astype(np.uint8)
            cv2.imwrite(str(place / flight / f"p{index}.png"), picture)
    rows = [f"p{i},{row},{''.join(random.choice(list('XY'), 4))}" for i in range(PHOTOS) for row in range(3)]
    lines = [line.replace(",", ".png,", 1) for line in rows]
    (place / "truth.csv").write_text("\n".join(["frame,row,labels", *lines]) + "\n")
    (place / "broken.mp4").write_text("not a video\n")
    return place


@pytest.fixture
def temporary():
    """A folder for temporary files, whose name is short enough for the sockets in it."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


TRUTH = ("--truth", "truth.csv", "--classes", "Xx,Yy", "--label-rate", "0.1", "--label-delay", "2")


def children(pid, folder=""):
    """Running replays that were started by `pid`, and are told of this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_text()
        except OSError:  # no process, or it ended meanwhile
            continue
        if stat[0] != "Z" and int(stat[1]) == pid and "onboard.fleet" in command and str(folder) in command:
            found.append(int(entry.name))
    return found


def reports(folder):
    return {path.parent.name: outcome(json.loads(path.read_text())) for path in folder.glob("*/report.json")}


def test_the_same_reports_from_processes_and_from_a_cluster(tmp_path, folder, cluster):
    sources = ["a", "broken.mp4", "b"]
    for name, how in (("jobs", ("--jobs", "2")), ("dask", ("--scheduler", cluster))):
        status, out, err = call("replay", *sources, *TRUTH, *how, "--report", tmp_path / name, cwd=folder)
        assert (status, err) == (1, "")
        assert "3 flights, 1 failed" in out
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert [row["source"] for row in summary["flights"]] == sources
        assert [bool(row["error"]) for row in summary["flights"]] == [False, True, False]
        assert "broken.mp4: cannot be read as a video" in summary["flights"][1]["error"]
        assert (summary["failed"], summary["frames"]) == (1, 2 * PHOTOS)
    jobs, dask = reports(tmp_path / "jobs"), reports(tmp_path / "dask")
    assert set(jobs) == {"a", "b"}
    assert jobs == dask
    assert jobs["a"]["model_hash"] != jobs["b"]["model_hash"]
    for row in summary["flights"][::2]:
        report = dask[row["name"]]
        assert report["updates"] > 1
        for key in ("frames", "labels_used", "updates", "model_hash"):
            assert row[key] == report[key]
        assert row["macro_f1"] == report["macro_f1"]["adapted"]
        assert row["mirror_equal"]
    assert call("replay", "b", *TRUTH, "--report", tmp_path / "alone.json", cwd=folder)[0] == 0
    assert outcome(json.loads((tmp_path / "alone.json").read_text())) == jobs["b"]


def test_a_flight_that_is_killed_leaves_the_others_alone(tmp_path, folder, temporary):
    command = onboard("replay", "a", "b", "--jobs", "2", "--report", tmp_path, "--speed", "5")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": folder}
    with subprocess.Popen(command, **streams, env=os.environ | {"TMPDIR": str(temporary)}) as process:
        victim = until(lambda: next((p for p in children(process.pid) if child(p, "onboard.worker")), None), "none")
        os.kill(victim, signal.SIGKILL)
        out, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert "2 flights, 1 failed" in out
    assert "its process ended with status -9" in out
    (flown,) = tmp_path.glob("*/report.json")
    assert json.loads(flown.read_text())["frames"] == PHOTOS
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("how", ["jobs", "dask"])
def test_an_interrupt_ends_all_processes(folder, how, request, temporary):
    where = ("--jobs", "2") if how == "jobs" else ("--scheduler", request.getfixturevalue("cluster"))
    command = onboard("replay", *"abab", *where, "--speed", "0.001")
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    # A test run in the background of a shell ignores interrupts, and so would its children.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, **streams, env=environment, preexec_fn=heed) as process:

        def flying():
            """The replays' processes with their learners; those of a cluster have another parent."""
            replays = [p for e in Path("/proc").iterdir() if e.name.isdigit() for p in children(int(e.name), folder)]
            learners = [child(pid, "onboard.worker") for pid in replays]
            return [*replays, *learners] if len(replays) == 2 and all(learners) else None

        pids = until(flying, "no two replays with learners")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, err) == (130, "onboard: interrupted\n")
    until(lambda: not any(alive(pid) for pid in pids), "some live on")
    if how == "jobs":
        assert not list(temporary.iterdir())


FLIGHTS = ("sim://?seed=3", "sim://?seed=4")


def alive(pid):
    try:
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split())[0] != "Z"
    except OSError:
        return False


def test_a_cluster_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(fleet, "CONNECT_S", 1.0)
    assert main(["replay", *FLIGHTS, "--scheduler", "tcp://127.0.0.1:9"]) == 1
    assert "--scheduler tcp://127.0.0.1:9: no Dask scheduler answers there" in capsys.readouterr().err
    assert main(["replay", *FLIGHTS, "--scheduler", "nonsense"]) == 1
    assert "no Dask scheduler answers there" in capsys.readouterr().err


def test_without_dask_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["replay", *FLIGHTS, "--scheduler", "tcp://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err == "onboard: --scheduler needs Dask: pip install 'hadanet-uav[fleet]'\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--keys", "kite.toml"], "one drone, which flies one flight at a time"),
        (["--jobs", "2", "--scheduler", "tcp://127.0.0.1:9"], "with --scheduler leave it out"),
        (["--report", "/dev/null/reports"], "/dev/null/reports/summary.json: cannot be written"),
    ],
)
def test_mistakes_with_several_flights(capsys, options, reason):
    assert main(["replay", *FLIGHTS, *options]) == 1
    assert reason in capsys.readouterr().err


def test_names_are_different_and_fit_for_files():
    sources = ["a/b c.mp4?offset=3", "b c.mp4", "b c.mp4", "/", "sim://", "ü/ä.mp4", "x" * 300]
    found = names(sources)
    assert found == ["b_c.mp4", "b_c.mp4-2", "b_c.mp4-3", "flight", "sim", "mp4", "x" * 60]
