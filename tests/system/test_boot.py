"""What a drone's computer is found with at a start: each flies on with what it has, and says what is wrong.

Said means: in the log, by `onboard status`, on the status page, and by `onboard check`.
"""

import contextlib
import html
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from link.keys import enroll
from onboard.boot import prepare
from onboard.config import Config, Link
from onboard.sim import SimSource
from onboard.slots import Slots
from onboard.worker import initial_model
from tests.system.ground_process import Ground
from tests.system.onboard_process import Daemon, call, until
from tests.system.shifted_clock import ShiftedClock

SOURCE = "sim://?seed=3&frames=4000&fps=8&live=1"
CLASSES = SimSource(SOURCE).classes


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Drone(Daemon):
    """A daemon as its unit starts it, with its page."""

    def __init__(self, folder, source=SOURCE, **sections):
        self.address = f"127.0.0.1:{free_port()}"
        sections = {"learn": {"enabled": False}, "page": {"address": self.address}} | sections
        super().__init__(folder, source, classes=CLASSES, service=True, **sections)

    def page(self):
        """The page's text, "" where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/", timeout=5) as answer:
                return html.unescape(re.sub("<[^>]*>", " ", answer.read().decode()))
        except (urllib.error.URLError, OSError):
            return ""

    def says(self, topic, text, flies=True):
        """Wait until all who should say so do; the status then."""
        status = self.until(lambda s: text in s["problems"].get(topic, ""))
        assert text in self.err.read_text().replace("\n", " ")
        code, shown, _ = call("status", "--config", self.config)
        assert (code, "PROBLEM" in shown, topic in shown) == (0, True, True), shown
        assert re.sub(r"\s", "", text)[:40] in re.sub(r"\s", "", shown), shown
        page = until(lambda: text in (page := self.page()) and page, lambda: f"{text!r} is not in {self.page()!r}")
        assert ("Flies, with" in page, "Nothing flies" in page) == (flies, not flies), page
        return status

    def flies_on(self, status):
        return self.until(lambda s: s["frame"] > max(status["frame"], 0) + 8)

    def check(self):
        """What `onboard check` finds wrong, by part."""
        code, shown, _ = call("check", "--config", self.config)
        bad = {line.split()[1].rstrip(":"): line for line in shown.splitlines() if line.startswith("FAIL")}
        assert code == bool(bad)
        return bad


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    """The folder in memory that systemd makes for the unit."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder))
    return folder


@pytest.fixture
def drone(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(*args, **sections):
            made = Drone(tmp_path / "drone", *args, **sections)
            stack.callback(made.kill)
            return made

        yield make


@contextlib.contextmanager
def mounted(folder, size):
    """A disk of this size at the folder."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    with contextlib.suppress(OSError), (folder / "else").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def learned(state):
    """A model that flew before, in the slots of a state folder; its hash."""
    base = initial_model("", CLASSES)
    state.mkdir(parents=True, exist_ok=True)
    model = base.with_tensors({"head.weight": np.full(base.tensors["head.weight"].shape, 3, np.int16)})
    Slots(state).keep(base, model)
    return model.hash


def test_nothing_is_wrong(drone):
    made = drone()
    made.start()
    status = made.until(lambda s: s["frame"] > 8 and s["problems"] == {} and s["utc"] != "unknown")
    assert status["state"] == str(made.state)
    assert "All is well" in until(made.page, made.err.read_text)
    assert made.check() == {}
    assert made.stop() == 0


def test_a_disk_that_is_full_at_the_first_start(drone):
    made = drone(learn={"enabled": True})
    with mounted(made.state, "1m"):
        fill(made.state)
        made.start()
        status = made.says("state", "no state can be kept there: No space left on device; this flight keeps it in")
        made.flies_on(status)
        made.until(lambda s: s["learner"] == "learning")
        assert "MB free, 64 MB are needed; make room" in made.check()["state"]
        assert made.stop() == 0


def test_a_disk_that_is_full_later(drone):
    """What is on it still flies; with room, it is written to again."""
    made = drone(governor={"min_disk_mb": 0})
    with mounted(made.state, "8m"):
        made.start()
        made.until(lambda s: s["frame"] > 0)
        assert made.stop() == 0
        model = learned(made.state)
        fill(made.state)
        made.start()
        status = made.says("state", "the disk is full: nothing new can be kept until there is room")
        assert made.flies_on(status)["model_hash"] == model
        (made.state / "else").unlink()
        assert made.stop() == 0
        made.start()
        status = made.until(lambda s: s["frame"] > 0)
        assert (status["model_hash"], status["problems"]) == (model, {})
        assert made.stop() == 0


def test_a_state_folder_that_cannot_be_written(drone):
    """As after an error of the file system: what can be read of it flies."""
    made = drone()
    with mounted(made.state, "8m"):
        model = learned(made.state)
        subprocess.run(["mount", "-o", "remount,ro", str(made.state)], check=True)
        made.start()
        status = made.says("state", "no state can be kept there: Read-only file system; this flight keeps it in")
        assert made.flies_on(status)["model_hash"] == model
        assert "Read-only" in made.check()["state"]
        assert made.stop() == 0


def test_a_model_that_is_damaged(drone):
    made = drone()
    model = learned(made.state)
    Slots(made.state).keep(initial_model("", CLASSES), initial_model("", CLASSES))
    newest = max((made.state / "models").glob("*.slot"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    assert "damaged or cut off" in made.check()["learned"]
    made.start()
    status = made.says("model", "it is damaged or cut off")
    assert made.flies_on(status)["model_hash"] == model
    assert made.stop() == 0


def test_a_base_model_that_nobody_named(drone, tmp_path):
    from models import artifact

    path = tmp_path / "another.safetensors"
    shipped = initial_model("", CLASSES)
    changed = shipped.tensors["features.scale"] * 2
    artifact.save(shipped.with_tensors({"features.scale": changed}), path)
    made = drone(model={"artifact": str(path), "classes": list(CLASSES)})
    made.start()
    status = made.says("model", "nothing says that this model may fly")
    assert made.flies_on(status)["model_hash"] == shipped.hash
    assert "set  hash = " in made.check()["model"]
    assert made.stop() == 0


def test_no_camera(drone):
    made = drone("v4l2:///dev/video99", learn={"enabled": True})
    made.start()
    status = made.says("camera", "/dev/video99: there is no such camera; see ls /dev/video*")
    assert status["frame"] == -1
    made.until(lambda s: s["learner"] == "learning")
    assert "there is no such camera" in made.check()["camera"]
    assert made.stop() == 0


def test_no_network(drone, tmp_path):
    """In a network namespace of its own, in which not even the loopback device is up."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    enroll(tmp_path / "station", "kestrel", "tcp://192.0.2.1:5750", tmp_path / "kestrel.toml")
    made = drone(link={"keys": str(tmp_path / "kestrel.toml")})
    made.start("unshare", "-n")
    status = made.until(lambda s: "cannot be reached: still calling" in s["problems"].get("link", ""))
    assert "192.0.2.1" in status["problems"]["link"]
    made.flies_on(status)
    assert "cannot be reached" in made.err.read_text()
    assert made.stop() == 0


KEYS = {
    "missing": (lambda path: path.unlink(), "no such file: make one with  ground enroll NAME; then restart."),
    "half": (lambda path: path.write_text(path.read_text()[:90]), "enroll the drone again; then restart."),
    "open to all": (lambda path: path.chmod(0o644), "others can read this secret"),
    "mixed up": (
        lambda path: path.write_text(re.sub('(public_key = ").', r"\g<1>%", path.read_text())),
        "do not belong together",
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_what_is_said_of_a_key_that_is_wrong(tmp_path, name):
    harm, words = KEYS[name]
    path = tmp_path / "kestrel.toml"
    enroll(tmp_path / "station", "kestrel", "tcp://127.0.0.1:9", path)
    secret = re.search('secret_key = "([^"]*)"', path.read_text())[1]
    harm(path)
    found = prepare(Config(state=str(tmp_path / "state"), link=Link(keys=str(path))), strict=False)
    assert found.config.link.keys == ""
    assert words in found.problems["keys"]
    assert secret not in found.problems["keys"]


def test_a_key_that_is_wrong(drone, tmp_path):
    harm, words = KEYS["mixed up"]
    path = tmp_path / "kestrel.toml"
    enroll(tmp_path / "station", "kestrel", "tcp://127.0.0.1:9", path)
    secret = re.search('secret_key = "([^"]*)"', path.read_text())[1]
    harm(path)
    made = drone(link={"keys": str(path)})
    made.start()
    status = made.says("keys", words)
    assert made.flies_on(status)["link"] == "off"
    assert words.split(";")[0] in made.check()["keys"]
    assert made.stop() == 0
    assert secret not in made.err.read_text() + made.page() + str(status)


def test_a_configuration_that_is_wrong_and_then_mended(drone, monkeypatch, tmp_path):
    """Safe mode: systemd hears that it is ready and alive, nothing flies, until the file is right."""
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(tmp_path / "notify"))
    heard.settimeout(60)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    made = drone()
    right = made.config.read_text()
    made.config.write_text(right.replace("[camera]", "[camera]\nros = 3"))
    made.start()
    said = []
    while not {"READY=1", "WATCHDOG=1"} <= set(said) or not any("safe mode" in line for line in said):
        said.append(heard.recv(4096).decode())
    status = made.says("safe mode", "nothing flies: ", flies=False)
    assert f"{made.config}, line 3: Object contains unknown field `ros`" in status["problems"]["safe mode"]
    assert list(made.check()) == ["config"]
    made.config.write_text(right.replace("[camera]", "[camera]\nrows = 33"))
    made.says("safe mode", "Expected `int` <= 32", flies=False)
    assert made.process.poll() is None
    made.config.write_text(right)
    status = made.until(lambda s: s.get("frame", -1) > 8)
    assert status["problems"] == {}
    assert "All is well" in made.page()
    assert made.stop() == 0
    heard.close()


def test_a_configuration_that_is_missing(drone):
    made = drone()
    made.config.rename(made.config.with_suffix(".away"))
    made.start()
    status = made.until(lambda s: "safe mode" in s["problems"])
    assert "onboard.toml: cannot be read: No such file or directory" in status["problems"]["safe mode"]
    made.config.with_suffix(".away").rename(made.config)
    made.until(lambda s: s.get("frame", -1) > 0)
    assert made.stop() == 0


def test_a_flight_that_ends_by_a_mistake_is_tried_again(drone):
    """Another daemon has the same state folder: this one waits for it to end."""
    first = drone()
    first.start()
    first.until(lambda s: s["frame"] > 0)
    second = Drone.__new__(Drone)
    second.__dict__ |= first.__dict__ | {"err": first.err.with_name("second.txt"), "address": ""}
    second.start()
    try:
        until(lambda: "safe mode" in second.err.read_text(), second.err.read_text)
        assert "in use by another process: stop that one first" in second.err.read_text()
        assert first.stop() == 0
        until(lambda: "ready: model" in second.err.read_text(), second.err.read_text)
        assert second.stop() == 0
    finally:
        second.kill()


def test_a_clock_at_1970(drone, tmp_path):
    clock = ShiftedClock(tmp_path, 60 - time.time())
    made = drone()
    made.start(**clock.environment)
    status = made.says("clock", "the clock says 1970-01-01, and neither NTP nor the ground station told the time yet")
    assert status["utc"] == "unknown"
    made.flies_on(status)
    code, shown, _ = call("check", "--config", made.config, env=os.environ | clock.environment)
    assert (code, "FAIL clock:" in shown) == (1, True)
    assert made.stop() == 0


def test_the_station_hears_what_is_wrong(drone, tmp_path):
    """From a drone without a camera, which sends nothing else."""
    ground = Ground(tmp_path)
    ground.start()
    try:
        ground.enroll()
        made = drone("v4l2:///dev/video99", link={"keys": str(tmp_path / "kestrel.toml")})
        made.start()
        made.until(lambda s: s["link"] == "connected")
        said = ground.until(lambda d: "camera: /dev/video99: there is no such camera" in d["problem"])
        assert not said["heard"]
        assert made.stop() == 0
    finally:
        ground.stop()
