"""The station as a process: a drone with real keys over real sockets, restarts, SIGKILL, the command line."""

import csv
import os
import signal
import socket
import subprocess
import sys

import pytest

from ground.cli import default_data, main
from link.messages import Control, Label, Mirror, Undo, Welcome
from tests.system.ground_process import SERVE

FIRST, SECOND, THIRD = (str((7 << 32) + frame) for frame in (0, 4, 8))
DIES_BEFORE_SENDING = """
import os, signal, sys
from ground.cli import main
from link.messages import Label
from link.station import StationLink
post = StationLink.post
def die(self, drone, message):
    if isinstance(message, Label):
        os.kill(os.getpid(), signal.SIGKILL)
    post(self, drone, message)
StationLink.post = die
sys.exit(main())
"""


def test_a_flight_its_questions_and_the_answers(ground, drone):
    drone.fly()
    assert drone.take(Welcome).mirror_hash.hex() == ground.base.hash
    assert drone.take(Mirror).model_hash.hex() == drone.model.hash
    state = ground.until(lambda d: len(d["track"]) == 9)
    assert (state["connected"], state["mirror"], state["mirror_hash"]) == (True, "equal", drone.model.hash)
    assert state["link"]["up"] > 5000
    assert [q["id"] for q in ground.get("/api/queries?drone=kestrel")["queries"]] == [FIRST, SECOND, THIRD]

    status, answer = ground.send("POST", "/api/labels", drone="kestrel", query=FIRST, answer="trees")
    assert status == 201
    label = drone.take(Label)
    assert (str(label.id), str(label.query), label.answer) == (answer["label"], FIRST, "trees")
    assert ground.send("DELETE", f"/api/labels/{label.id}")[0] == 200
    assert drone.take(Undo).label == label.id
    status, answer = ground.send("POST", "/api/labels", drone="kestrel", query=FIRST, answer="volcano")
    assert (status, "object, road, trees, ground" in answer["error"]) == (400, True)
    assert ground.send("POST", "/api/control", drone="kestrel", action="freeze")[0] == 200
    assert drone.take(Control).action == "freeze"


def test_a_restart_in_the_middle_keeps_everything(ground, drone):
    drone.fly()
    ground.send("POST", "/api/labels", drone="kestrel", query=FIRST, answer="road")
    drone.take(Label)
    assert ground.stop(signal.SIGTERM) == 0
    ground.start()
    before = ground.drone()
    assert (before["mirror_hash"], before["open"], before["labels"]) == (drone.model.hash, 2, 1)
    assert len(before["track"]) == 9
    drone.learn(2)
    state = ground.until(lambda d: d["connected"] and d["mirror"] == "equal")
    assert state["mirror_hash"] == drone.model.hash
    assert not any("whole model" in notice["text"] for notice in state["notices"])
    ground.send("POST", "/api/labels", drone="kestrel", query=SECOND, answer="")
    assert (drone.take(Label).query, ground.stop(signal.SIGINT)) == (int(SECOND), 0)


def test_killed_between_an_answer_stored_and_sent(ground, drone):
    drone.fly()
    ground.stop()
    ground.start(DIES_BEFORE_SENDING)
    with pytest.raises(OSError, match=r"closed|reset|refused"):
        ground.send("POST", "/api/labels", drone="kestrel", query=FIRST, answer="trees")
    assert ground.process.wait(20) == -signal.SIGKILL
    ground.stop()
    ground.start()
    label = drone.take(Label)
    assert (label.query, label.answer) == (int(FIRST), "trees")
    ground.send("POST", "/api/labels", drone="kestrel", query=SECOND, answer="road")
    assert drone.take(Label).query == int(SECOND)  # the first came once


def test_a_station_that_lost_its_data_asks_for_the_whole_model(ground, drone):
    drone.fly(1)
    ground.stop()
    for name in ("station.db", "station.db-wal", "station.db-shm"):
        (ground.data / name).unlink(missing_ok=True)
    ground.start()
    drone.learn(2)  # a delta whose parent the new station has never seen
    assert drone.take(Control).action == "resync"
    assert ground.drone()["mirror"] == "differs"


def test_answers_from_a_file_reach_the_drone_while_the_station_runs(ground, drone, capsys):
    drone.fly()
    file = ground.folder / "answers.csv"
    file.write_text(f"drone,query,answer\nkestrel,{FIRST},road\nkestrel,{SECOND},\n")
    assert main(["labels", str(file), "--data", str(ground.data)]) == 0
    assert "2 answers stored" in capsys.readouterr().out
    assert [(drone.take(Label).query) for _ in range(2)] == [int(FIRST), int(SECOND)]
    out = ground.folder / "out.csv"
    assert main(["export", str(out), "--data", str(ground.data)]) == 0
    with out.open(newline="") as table:
        assert [(row["query"], row["answer"]) for row in csv.DictReader(table)] == [(FIRST, "road"), (SECOND, "")]
    file.write_text("drone,query,answer\nkestrel,5,road\n")
    assert main(["labels", str(file), "--data", str(ground.data)]) == 1
    assert "answers.csv:2: drone 'kestrel' has not asked question 5" in capsys.readouterr().err


def test_wrong_and_new_classes_from_a_file(ground, drone, capsys):
    drone.fly()
    guess = ground.get("/api/queries?drone=kestrel")["queries"][2]["guess"]
    file = ground.folder / "answers.csv"
    lines = [f"kestrel,{FIRST},rock,,1", f"kestrel,{SECOND},rock,,", f"kestrel,{THIRD},,{guess},"]
    file.write_text("\n".join(["drone,query,answer,wrong,new", *lines, ""]))
    assert main(["labels", str(file), "--data", str(ground.data)]) == 0
    sent = [drone.take(Label) for _ in range(3)]
    assert [(m.answer, m.wrong, m.new) for m in sent] == [
        ("rock", False, True),
        ("rock", False, True),
        (guess, True, False),
    ]
    assert ground.drone()["pending"] == ["rock"]
    assert main(["export", str(ground.folder / "out.json"), "--data", str(ground.data)]) == 0
    assert "2 answers (1 that name no class are left out)" in capsys.readouterr().out
    file.write_text(f"drone,query,answer,new\nkestrel,{THIRD},{'x' * 41},1\n")
    assert main(["labels", str(file), "--data", str(ground.data)]) == 1
    err = capsys.readouterr().err
    assert ("answers.csv:2: 'xxx" in err, "cannot name a class" in err, err.count("\n")) == (True, True, 1)


def run(*arguments):
    done = subprocess.run([sys.executable, "-c", SERVE, *arguments], capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


def test_one_station_per_folder_and_per_port(ground, tmp_path):
    code, out, err = run("serve", "--data", str(ground.data), "--http", "127.0.0.1:0", "--bind", "tcp://127.0.0.1:0")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "another ground serve uses this folder" in err
    other = str(tmp_path / "other")
    code, _, err = run("serve", "--data", other, "--http", ground.http, "--bind", "tcp://127.0.0.1:0")
    assert (code, err.count("\n"), "cannot listen on 127.0.0.1" in err) == (1, 1, True)
    code, _, err = run("serve", "--data", other, "--http", "127.0.0.1:0", "--bind", ground.bind)
    assert (code, err.count("\n"), "cannot listen there" in err) == (1, 1, True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["serve", "--http", "nowhere"], "not HOST:PORT"),
        (["serve", "--http", "127.0.0.1:0", "--bind", "carrier-pigeon"], "carrier-pigeon"),
        (["serve", "--http", "127.0.0.1:0", "--db", "nosuch://x"], "cannot use this database URL"),
        (["serve", "--models", "nowhere"], "nowhere: no such folder"),
        (["enroll", "Not A Name"], "is no name"),
        (["enroll", "kestrel", "--address", "here"], "is no address"),
        (["export", "flight.csv"], "no station has run with this folder"),
        (["labels", "answers.csv"], "no station has run with this folder"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--data", str(tmp_path / "data")]) == 1
    err = capsys.readouterr().err
    assert (err.count("\n"), reason in err) == (1, True), err


def test_a_drone_is_enrolled_once_unless_forced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["enroll", "kestrel", "--data", "data"]
    assert main(arguments) == 0
    first = (tmp_path / "kestrel.toml").read_text()
    assert os.stat(tmp_path / "kestrel.toml").st_mode & 0o777 == 0o600
    assert main(arguments) == 1
    assert (tmp_path / "kestrel.toml").read_text() == first
    assert main([*arguments, "--force"]) == 0
    assert (tmp_path / "kestrel.toml").read_text() != first
    assert "kestrel.toml: copy this file" in capsys.readouterr().out


def test_help_and_usage(capsys):
    for command in ("serve", "enroll", "export", "labels"):
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0
        assert f"example: ground {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["fly"])
    assert done.value.code == 2


def test_the_data_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data() == tmp_path / "hadanet-ground"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data() == tmp_path / ".local" / "share" / "hadanet-ground"


def test_an_open_page_does_not_hold_up_the_end(ground):
    host, port = ground.http.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as page:
        page.sendall(f"GET /api/events HTTP/1.1\r\nHost: {ground.http}\r\n\r\n".encode())
        received = b""
        while b"event: reload" not in received:
            received += page.recv(4096)
        assert b"text/event-stream" in received
        assert ground.stop(signal.SIGTERM) == 0
