"""What is wrong, by topic; and where a status is looked for."""

import pytest

from models.errors import HadanetError
from onboard import status
from onboard.health import MAX_LINE, Health


def test_topics_come_and_go():
    said = {"camera": "", "link": "calling"}
    health = Health({"keys": "missing", "camera": "at the start"})
    health.watch("camera", lambda: said["camera"])
    health.watch("link", lambda: said["link"])
    assert health.problems() == {"keys": "missing", "camera": "at the start", "link": "calling"}
    said |= {"camera": "lost", "link": ""}
    assert health.problems() == {"keys": "missing", "camera": "at the start; lost"}
    assert health.line() == "keys: missing; camera: at the start; lost"


def test_the_line_for_the_ground_is_bounded():
    assert Health().line() == ""
    line = Health({"a": "x" * 500}).line()
    assert (len(line), line[:6], line[-3:]) == (MAX_LINE, "a: xxx", "...")


def test_a_status_is_found_where_its_daemon_could_put_it(tmp_path, monkeypatch):
    state, run = tmp_path / "state", tmp_path / "run"
    for folder in (state, run):
        folder.mkdir()
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setattr(status, "RUNTIME", run)
    with pytest.raises(HadanetError, match=f"{state}/status.json: there is no such file"):
        status.find(state)
    status.write(run / status.STATUS_FILE, {"state": str(tmp_path / "other"), "frame": 1})
    with pytest.raises(HadanetError, match="there is no such file"):
        status.find(state)  # another daemon's
    status.write(run / status.STATUS_FILE, {"state": str(state), "frame": 2})
    assert status.find(state)["frame"] == 2
    status.write(run / status.STATUS_FILE, {"state": "", "frame": 3})  # one without a configuration
    assert status.find(state)["frame"] == 3
    status.write(state / status.STATUS_FILE, {"state": str(state), "frame": 4})
    assert status.find(state)["frame"] == 4
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{run}:/else")
    assert status.status_path(state) == run / status.STATUS_FILE
    assert status.volatile_folder(state) == run / "state"


def test_last_words(tmp_path):
    path = tmp_path / "status.json"
    assert status.last_words(path) == ""
    for text in ("{", "[]", '{"problems": 3}', '{"problems": {}}'):
        path.write_text(text)
        assert status.last_words(path) == ""
    status.write(path, {"problems": {"flight": "no room"}})
    assert status.last_words(path) == "no room"
