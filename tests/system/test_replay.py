"""`onboard replay` as a process: the same flight gives the same model, kills and broken files or not."""

import json
import os
import resource
import signal
import sys

import cv2
import numpy as np
import pytest
from mcap.reader import make_reader

from onboard.cli import main
from onboard.desk import KEPT_FRAMES
from onboard.sim import SimSource
from tests.system.onboard_process import ROOT, Replay, call, until

FRAMES = 32
LONG = "sim://?seed=4&frames=120&rows=3&cols=4&width=320&height=240"
KILLS = (1, 12, 30)
"""Answers after which its learner is killed; at the last, frames of the first are no longer kept by the flight."""
SOURCE = f"sim://?seed=3&frames={FRAMES}"
SPEED = 4
FIXED_KEYS = {
    *("frames", "frames_dropped", "tiles", "classes", "labels_used", "label_rate", "accuracy", "macro_f1", "windows"),
    *("updates", "rollbacks", "latency_ms", "fps", "bytes_up", "bytes_down", "delta_bytes"),
    *("model_hash", "base_hash", "mirror_hash", "seed"),
}
MORE_KEYS = {"source", "as_flown", "frames_skipped", "questions", "learner_restarts", "timeline"}
VARIANTS = {"adapted", "smoothed", "frozen", "all_labels"}
CLOCK_KEYS = ("fps", "latency_ms", "bytes_up", "learner_restarts")
"""What may differ between two replays of the same flight: they hang on the clock, as the number of Status does."""


def outcome(report):
    left = {key: value for key, value in report.items() if key not in CLOCK_KEYS}
    left["timeline"] = {key: value for key, value in report["timeline"].items() if key != "bytes_up"}
    return left


@pytest.fixture(scope="module")
def flown(tmp_path_factory):
    """The reports of one flight by name; they fly at the same time."""
    folder = tmp_path_factory.mktemp("flown")
    extra = {
        "first": ("--record", folder / "recording", "--picture", folder / "first.png"),
        "paced": ("--speed", SPEED),
        "other": ("--seed", "1"),
    }
    replays = {name: Replay(folder / name, SOURCE, *args) for name, args in extra.items()}
    return folder, {name: replay.end() for name, replay in replays.items()}


def test_the_same_flight_gives_the_same_model_at_any_speed(flown):
    _, reports = flown
    assert reports["first"]["updates"] > 5
    assert outcome(reports["first"]) == outcome(reports["paced"])
    assert reports["paced"]["fps"] < 1.1 * 4 * SPEED * FRAMES / (FRAMES - 1)  # frames of 4 a second never come early


def test_another_seed_gives_another_model(flown):
    _, reports = flown
    assert reports["other"]["model_hash"] != reports["first"]["model_hash"]
    assert reports["other"]["base_hash"] == reports["first"]["base_hash"]
    assert reports["other"]["seed"] == 1


def test_the_report(flown):
    folder, reports = flown
    for report in reports.values():
        assert set(report) == FIXED_KEYS | MORE_KEYS
        assert report["mirror_hash"] == report["model_hash"] != report["base_hash"]
        assert set(report["accuracy"]) == set(report["macro_f1"]) == set(report["windows"]) == VARIANTS
        assert {len(windows) for windows in report["windows"].values()} == {10}
        assert {"p50", "p99"} <= set(report["latency_ms"])
        assert (report["frames"], report["tiles"], report["frames_dropped"]) == (FRAMES, FRAMES * 48, 0)
        assert report["label_rate"] == report["labels_used"] / report["tiles"] <= 0.03
        assert len(report["delta_bytes"]) == report["updates"]
        assert report["bytes_up"] > sum(report["delta_bytes"])
    picture = cv2.imread(str(folder / "first.png"))
    assert picture is not None
    assert picture.std() > 10


def test_a_recording_holds_every_frame(flown):
    folder, reports = flown
    (path,) = (folder / "recording").glob("*.mcap")
    with path.open("rb") as file:
        reader = make_reader(file)
        counts = {}
        for _, channel, _ in reader.iter_messages():
            counts[channel.topic] = counts.get(channel.topic, 0) + 1
        (metadata,) = reader.iter_metadata()
    assert counts["/camera"] == counts["/hadanet/detections"] == FRAMES
    assert metadata.metadata["base_hash"] == reports["first"]["base_hash"]


def test_a_learner_that_is_killed_again_and_again(tmp_path):
    whole = Replay(tmp_path / "whole", LONG)
    killed = Replay(tmp_path / "killed", LONG, "--speed", "4")
    assert KILLS[-1] > 0.03 * 12 * KEPT_FRAMES
    for count in KILLS:
        until(lambda count=count: killed.saved_labels() >= count, killed.err.read_text)
        pid = until(killed.learner, killed.err.read_text)
        assert killed.process.poll() is None
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: killed.learner() not in (None, pid), killed.err.read_text)
    expected, report = whole.end(), killed.end()
    assert expected["updates"] > 10
    assert (expected["learner_restarts"], report["learner_restarts"]) == (0, len(KILLS))
    assert outcome(report) == outcome(expected)


def test_broken_photos_are_named_and_flown_over(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    sim = SimSource("sim://?seed=3&frames=8")
    for index in range(8):
        cv2.imwrite(str(photos / f"p{index}.jpg"), sim.render(index).image)
    data = (photos / "p2.jpg").read_bytes()
    (photos / "p2.jpg").write_bytes(data[: len(data) // 2])
    (photos / "p3.jpg").write_bytes(b"")
    (photos / "p4.jpg").write_text("not a photo\n")
    cv2.imwrite(str(photos / "p5.jpg"), np.zeros((4, 4, 3), np.uint8))
    truth = tmp_path / "truth.csv"
    rows = ["".join("?abcdef"[v + 1] for v in row) for i in range(8) for row in sim.truth.grid((i, ""))]
    lines = [f"p{i // 6}.jpg,{i % 6},{row}" for i, row in enumerate(rows)]
    truth.write_text("\n".join(["frame,row,labels", *lines]) + "\n")
    letters = ",".join(f"{letter}={name}" for letter, name in zip("abcdef", sim.classes, strict=True))
    options = ["--classes", ",".join(sim.classes), "--letters", letters, "--truth", str(truth), "--label-delay", "1"]
    assert main(["replay", str(photos), "--report", str(tmp_path / "r.json"), *options]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    named = [line.partition(":")[0] for line in report["frames_skipped"]]
    assert (report["frames"], named) == (4, ["p2.jpg", "p3.jpg", "p4.jpg", "p5.jpg"])
    assert report["updates"] > 0
    assert "unreadable 4" in capsys.readouterr().out


def test_a_folder_of_nothing_but_broken_photos(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"")
    assert main(["replay", str(tmp_path), "--report", str(tmp_path / "out" / "r.json")]) == 1
    err = capsys.readouterr().err
    assert (err.count("\n"), "no frame could be read (a.jpg: the file is empty)" in err) == (1, True), err
    assert not (tmp_path / "out" / "r.json").exists()


def test_a_recorder_on_a_full_disk(tmp_path):
    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    source = "sim://?seed=3&frames=16"
    args = (source, "--record", tmp_path / "recording", "--report", tmp_path / "r.json")
    status, _, err = call("replay", *args, preexec_fn=small)
    assert status == 0
    assert err.count("\n") == 1
    assert "recording stopped" in err
    assert "File too large; the flight goes on" in err
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["frames"], report["frames_dropped"]) == (16, 0)
    assert report["mirror_hash"] == report["model_hash"] != report["base_hash"]


MISTAKES = {
    "no such source": (["missing"], "missing: there is no such file or folder"),
    "an empty folder": (["empty"], "empty: no photos in this folder"),
    "a text as video": (["text.mp4"], "text.mp4: cannot be read as a video"),
    "no bytes as video": (["zero.mp4"], "zero.mp4: cannot be read as a video"),
    "an unknown scheme": (["gopher://host"], "no source of the kind 'gopher://'"),
    "a wrong parameter": (["sim://?seed=x"], "seed=x (the world and its weather) must be a whole number"),
    "no source at all": ([""], "names no source"),
    "one class": (["photos", "--classes", "road"], "--classes road: give at least two names"),
    "a class twice": (["photos", "--classes", "a,a"], "all different"),
    "other classes than simulated": (["sim://?frames=2", "--classes", "a,b"], "the simulated flight has grass,field"),
    "no truth file": (["photos", "--truth", "no.csv"], "no.csv: cannot be read"),
    "no header": (["photos", "--truth", "text.mp4"], "text.mp4, line 1: the header must be frame,row,labels"),
    "a letter too many": (["photos", "--truth", "truth.csv"], "truth.csv, line 3"),
    "letters that are none": (["photos", "--truth", "truth.csv", "--letters", "zz"], "letters 'zz': write one letter"),
    "letters without truth": (["photos", "--letters", "O=object"], "letters belong to a truth file"),
    "equal initials": (["photos", "--truth", "truth.csv", "--classes", "aa,ab"], "with --letters"),
    "a page without keys": (["photos", "--page", "http://127.0.0.1:9"], "with the drone's --keys"),
    "no keys": (["photos", "--keys", "no.toml"], "no.toml: no such file: make one with  ground enroll NAME"),
    "keys for all to read": (["photos", "--keys", "open.toml"], "chmod 600 open.toml"),
    "damaged keys": (["photos", "--keys", "bad.toml"], "bad.toml: 'public_key' is no key of 40 characters"),
    "keys without a page": (["photos", "--keys", "kite.toml", "--truth", "all.csv"], "give its page with --page"),
    "no config": (["photos", "--config", "no.toml"], "no.toml: cannot be read"),
    "an unknown key": (
        ["photos", "--config", "config.toml"],
        "config.toml, line 3: Object contains unknown field `ros`",
    ),
    "a state that is a file": (["photos", "--state", "text.mp4"], "text.mp4: no state can be kept there"),
    "a report below a file": (["photos", "--report", "text.mp4/r.json"], "text.mp4/r.json: cannot be written"),
    "a report that is a folder": (["photos", "--report", "empty"], "empty: cannot be written: it is a folder"),
    "a picture below a file": (["photos", "--picture", "text.mp4/r.png"], "text.mp4/r.png: cannot be written"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    from link.keys import enroll

    folder = tmp_path_factory.mktemp("files")
    (folder / "empty").mkdir()
    (folder / "photos").mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(folder / "photos" / f"{name}.png"), np.zeros((60, 80, 3), np.uint8))
    (folder / "text.mp4").write_text("a text\n")
    (folder / "zero.mp4").touch()
    (folder / "truth.csv").write_text("frame,row,labels\n0,0,OR\n0,1,OX\n")
    (folder / "all.csv").write_text("frame,row,labels\n0,0,OR\n")
    (folder / "config.toml").write_text("seed = 1\n[camera]\nros = 3\n")
    enroll(folder / "station", "kite", "tcp://127.0.0.1:9", folder / "kite.toml")
    (folder / "open.toml").write_bytes((folder / "kite.toml").read_bytes())
    (folder / "open.toml").chmod(0o644)
    (folder / "bad.toml").write_bytes((folder / "kite.toml").read_bytes()[:150] + b'"')
    (folder / "bad.toml").chmod(0o600)
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(files, monkeypatch, capsys, name):
    arguments, reason = MISTAKES[name]
    monkeypatch.chdir(files)
    assert main(["replay", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("onboard: ")
    assert (err.count("\n"), reason in err) == (1, True), err


def test_a_state_folder_of_another_replay(files, tmp_path):
    """Two at once would mix their labels; told by a process, as a person would see it."""
    first = Replay(tmp_path / "first", files / "photos", "--speed", "0.001")
    try:
        until(first.learner, first.err.read_text)
        status, _, err = call("replay", files / "photos", "--state", first.folder / "state")
        assert (status, err.count("\n")) == (1, 1), err
        assert "in use by another process" in err
    finally:
        first.process.send_signal(signal.SIGINT)
        assert first.process.wait(30) == 130
    assert first.err.read_text() == "onboard: interrupted\n"


def test_a_page_that_nobody_serves(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    arguments = ["photos", "--keys", "kite.toml", "--truth", "all.csv", "--page", "http://127.0.0.1:9"]
    assert main(["replay", *arguments, "--label-rate", "1", "--label-delay", "0"]) == 1
    err = capsys.readouterr().err
    assert "http://127.0.0.1:9/api/labels: no answer" in err, err
    assert "is `ground serve` running?" in err


def test_a_learner_that_cannot_start_ends_the_replay(files, monkeypatch, capfd):
    monkeypatch.setattr(sys, "executable", "/bin/false")  # what the child is started with
    assert main(["replay", str(files / "photos")]) == 1
    assert "the learner ended with status 1" in capfd.readouterr().err


def test_usage_errors_have_their_own_status(capsys):
    for wrong in (["replay"], ["replay", "x", "--label-rate", "2"], ["replay", "x", "--speed", "-1"], ["fly"]):
        with pytest.raises(SystemExit) as done:
            main(wrong)
        assert done.value.code == 2
    assert "2 is not between 0 and 1" in capsys.readouterr().err
