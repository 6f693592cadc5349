"""The Raspberry Pi image, as `deploy/image/build` makes it: looked at, started in qemu, flown, and its power cut.

`make image-test`, as root: builds the image where it is not there (half an hour) and takes half an hour itself. The
emulated machine is not a Raspberry Pi: it starts the same kernel, initramfs and root from the same card, but neither
the Pi's firmware nor its own drivers.
"""

import contextlib
import ctypes
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import threading
import time

import pytest

from deploy.arm_tree import mirror
from deploy.deb import package as deb
from deploy.image import disk, image
from link.codec import decode
from link.keys import enroll
from link.messages import Delta
from models.errors import SourceError
from onboard.desk import Desk
from onboard.inspect import inspect
from onboard.labels import LabelLog
from onboard.sim import SimSource
from onboard.worker import initial_model
from tests.system import pictures, writelog
from tests.system.ground_process import Ground
from tests.system.machine import STATION, Machine, put_on_card, read_from_card
from tests.system.onboard_process import call, until

pytestmark = pytest.mark.skipif("IMAGE_TEST" not in os.environ, reason="takes an hour and root; `make image-test`")

CARD_BYTES = 3 << 30
SOURCE = "sim://?seed=3&frames=20000&fps=2&live=1&width=160&height=120&rows=2&cols=2"
"""Little for each frame, because the emulation is slow."""
BUNDLED = "sim://?seed=3&frames=8&width=320&height=240"
FLIGHT_S = float(os.environ.get("FLIGHT_S", "150"))
"""How long it flies after the first thing it learned, before the power goes."""
BOOT_S = 900
KEPT_S = 20.0
"""A model that flies is on the card after so long, even under emulation; what it says there is then held to."""
POINTS = int(os.environ.get("POWER_CUTS", "20"))
STARTS = int(os.environ.get("STARTS", "3"))
"""So many of the points are also started again, under emulation."""
CARD = """
[board]
ssh_key = "{key}"

[camera]
source = "{source}"
rows = 2
cols = 2

[model]
classes = {classes}

[ask]
share = 0.3

[record]
folder = "/var/lib/hadanet/recordings"
max_mb = 1
min_free_mb = 64
"""


@pytest.fixture(scope="module")
def built():
    """(tools, the disk as built)"""
    if os.geteuid():
        pytest.skip("needs root")
    folder = image.default_folder()
    path, _ = image.build(str(deb.project()["version"]), folder, mirror(), level=0)
    return image.tools_in(folder), path


@pytest.fixture(scope="module")
def key(built, tmp_path_factory):
    """(file of a secret ssh key, the public one)."""
    tools, _ = built
    path = tmp_path_factory.mktemp("ssh") / "key"
    tools.run("usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "pilot", "-f", path)
    return path, path.with_name("key.pub").read_text().strip()


def without_root(tools, card, target):
    """A copy without the root, which nothing writes to: small, so that it can be made often."""
    root = disk.places(tools, card)[1]
    disk.sparse_copy(card, target)
    with target.open("r+b") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        punch_hole, keep_size = 2, 1
        offset, length = ctypes.c_int64(root.start), ctypes.c_int64(root.size)
        assert libc.fallocate(file.fileno(), punch_hole | keep_size, offset, length) == 0


def check_data(tools, card, folder):
    """The data partition's file system is repaired as a start does it; its files, copied out."""
    folder.mkdir()
    part = folder / "data.img"
    disk.cut_out(card, disk.places(tools, card)[2], part)
    done = subprocess.run(
        [*tools.command("usr/sbin/e2fsck"), "-f", "-p", str(part)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: repaired
    strict = subprocess.run(
        [*tools.command("usr/sbin/e2fsck"), "-f", "-n", str(part)], capture_output=True, timeout=300
    )
    assert strict.returncode == 0, strict.stdout
    out = folder / "data"
    out.mkdir()
    tools.run("usr/sbin/debugfs", "-R", f"rdump /hadanet {out}", part)
    part.unlink()
    return out / "hadanet"


class Nowhere:
    def post(self, message):
        pass


class Flight:
    """The image's first start and flight, with a station; every write of its card is logged until the power goes."""

    def __init__(self, built, key, folder):
        self.tools, disk_image = built
        secret, public = key
        self.card, self.before, self.log = folder / "card.img", folder / "before.img", folder / "writes"
        disk.sparse_copy(disk_image, self.card)
        os.truncate(self.card, CARD_BYTES)
        self.sim = SimSource(SOURCE)
        self.ground = Ground(folder)
        self.ground.start()
        keys = folder / "kestrel.toml"
        enroll(self.ground.data, "kestrel", STATION, keys)
        config = folder / "hadanet.toml"
        config.write_text(CARD.format(key=public, source=SOURCE, classes=json.dumps(list(self.sim.classes))))
        put_on_card(self.tools, self.card, config, keys)
        disk.sparse_copy(self.card, self.before)
        self.bare = folder / "bare.img"
        without_root(self.tools, self.before, self.bare)
        self.labels, self.acknowledged, self.models, self.kept = {}, [], [], []
        self._stop = threading.Event()
        self.failure = None
        port = self.ground.bind.rsplit(":", 1)[1]
        self.machine = Machine(self.tools, self.card, folder / "machine", port, secret, self.log)
        self._operator = threading.Thread(target=self._answer)
        self._operator.start()

    def _answer(self):
        """Answers what is asked, a few at a time, and notes what the drone acknowledged when the log was so long."""
        with contextlib.suppress(StopIteration):
            while not self._stop.wait(0.3):
                try:
                    self._turn()
                except Exception as error:  # noqa: BLE001 - the test tells
                    self.failure = error
                    return

    def _turn(self):
        if not any(d["name"] == "kestrel" for d in self.ground.get("/api/state")["drones"]):
            return
        before = set(self.labels)
        state = self.ground.drone()
        if state["link"]["pending"] == 0 and state["connected"]:
            self.acknowledged.append((self.log.stat().st_size, before))
            if len(before) > 0:
                for question in self.ground.get("/api/queries?drone=kestrel")["queries"][:3]:
                    self._label(question)
        if not before:
            for question in self.ground.get("/api/queries?drone=kestrel")["queries"][:6]:
                self._label(question)
        now = time.monotonic()
        if state["mirror_equal"] and (not self.models or self.models[-1][1] != state["mirror_hash"]):
            self.models.append((now, state["mirror_hash"]))
        held = [model for since, model in self.models if now - since > KEPT_S]
        if held and (not self.kept or self.kept[-1][1] != held[-1]):
            self.kept.append((self.log.stat().st_size, held[-1]))

    def _label(self, question):
        place = (int(question["frame_name"]), "")
        number = self.sim.truth.label(place, question["row"], question["col"])
        answer = "" if number is None else self.sim.classes[number]
        status, said = self.ground.send("POST", "/api/labels", drone="kestrel", query=question["id"], answer=answer)
        assert status == 201, said
        self.labels[int(said["label"])] = answer

    def status(self):
        said = self.machine.answers("onboard", "status", "--json")
        return json.loads(said) if said.startswith("{") else {}

    def until(self, condition, what, timeout_s=BOOT_S):
        def holds():
            assert self.failure is None, self.failure
            with contextlib.suppress(KeyError):
                status = self.status()
                if condition(status):
                    return status
            time.sleep(1)
            return None

        return until(holds, lambda: f"{what}: {self.status()}\n{self.machine.said()[-2000:]}", timeout_s)

    def end(self):
        self._stop.set()
        self._operator.join()
        self.machine.cut()

    def close(self):
        self.end()
        self.ground.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def flight(built, key, tmp_path_factory):
    made = Flight(built, key, tmp_path_factory.mktemp("flight"))
    yield made
    made.close()


# --- as built ------------------------------------------------------------------------------------------------------


def test_the_disk_is_what_a_pi_starts_from(built, tmp_path):
    tools, path = built
    table = json.loads(tools.run("usr/sbin/sfdisk", "--json", path))["partitiontable"]
    assert (table["label"], [p["type"] for p in table["partitions"]]) == ("dos", ["c", "83", "83"])
    parts = []
    for number, place in enumerate(disk.places(tools, path)):
        parts.append(tmp_path / f"{number}.img")
        disk.cut_out(path, place, parts[-1])
    tools.run("usr/sbin/fsck.fat", "-n", parts[0])
    for part in parts[1:]:
        tools.run("usr/sbin/e2fsck", "-f", "-n", part)
    listed = tools.run("usr/bin/mtools", "-c", "mdir", "-b", "-i", parts[0], "::/").split()
    wanted = ["bootcode.bin", "start.elf", "start4.elf", "fixup.dat", "bcm2837-rpi-3-b.dtb", "bcm2837-rpi-zero-2-w.dtb"]
    assert {f"::/{name}" for name in [*wanted, "bcm2711-rpi-4-b.dtb", "hadanet.toml", "cmdline.txt"]} <= set(listed)
    config = read_from_card(tools, path, "config.txt")
    for name in (
        line.split()[-1].split("=")[-1] for line in config.splitlines() if line.startswith(("kernel", "init"))
    ):
        assert f"::/{name}" in listed
    features = tools.run("usr/sbin/dumpe2fs", "-h", parts[1])
    assert "has_journal" not in features
    links = tools.run("usr/sbin/debugfs", "-R", "ls -l /etc/systemd/system/multi-user.target.wants", parts[1])
    assert "hadanet-onboard.service" in links
    assert "hadanet-board.service" in links
    shadow = tools.run("usr/sbin/debugfs", "-R", "cat /etc/shadow", parts[1])
    passwords = [line.split(":")[1] for line in shadow.splitlines() if line.count(":") == 8]
    assert len(passwords) > 10
    assert all(word[0] in "!*" for word in passwords)  # nobody can log in with a password
    assert "ssh_host" not in tools.run("usr/sbin/debugfs", "-R", "ls /etc/ssh", parts[1])


# --- flown; these tests go on where the last one left off ----------------------------------------------------------


def test_it_starts_and_says_so(flight):
    flight.until(lambda s: s["frame"] >= 0, "no frames")
    print(f"frames after {time.monotonic() - flight.machine.started:.0f} s of emulation")
    run = flight.machine.run
    assert run("systemctl", "is-active", "hadanet-onboard").strip() == "active"
    assert run("hostname").strip() == "kestrel"
    assert run("systemctl", "--failed", "--plain", "--no-legend") == ""
    assert run("cat", "/run/hadanet-board/problems") == ""
    mounts = dict(line.split()[1::-1] for line in run("cat", "/proc/mounts").splitlines())
    assert mounts["/"] == "hadanet-overlay"
    assert mounts["/var/lib/hadanet"] == mounts["/data"] == "/dev/vda3"
    size = int(run("stat", "-f", "-c", "%b", "/data")) * int(run("stat", "-f", "-c", "%S", "/data"))
    used = disk.places(flight.tools, flight.card)[2].start
    assert size > 0.9 * (CARD_BYTES - used)  # it grew to the end of the card
    fresh = run("find", "/var/cache/hadanet", "-name", "*.nbc", "-newer", "/run/hadanet-board/problems")
    assert fresh == ""  # no kernel was compiled here


def test_it_learns_from_labels_and_the_mirror_is_equal(flight):
    status = flight.until(lambda s: s["updates"] > 0 and s["model_hash"] == s["mirror_hash"], "nothing learned")
    print(f"learned after {time.monotonic() - flight.machine.started:.0f} s, {status['labels']} labels")
    assert status["link"] == "connected"
    state = flight.ground.drone()
    assert state["base_hash"] not in (status["model_hash"], status["mirror_hash"])
    time.sleep(FLIGHT_S)  # more labels, more models, more of a recording
    assert flight.failure is None, flight.failure
    assert len(flight.models) > 1
    print(f"{len(flight.labels)} labels given, {len(flight.models)} models seen equal at the station")


def test_the_power_is_cut_at_many_points(flight, built, key, tmp_path):
    flight.end()
    tools, _ = built
    assert "All is well." in read_from_card(tools, flight.card, "hadanet-says.txt")
    sector, writes = writelog.read(flight.log)
    root = disk.places(tools, flight.before)[1]
    for write in writes:  # the root is as it was flashed
        start = write.sector * sector
        assert start + write.count * sector <= root.start or start >= root.start + root.size
    classes = flight.sim.classes
    base = initial_model("", classes)
    flown = [base.hash, *results(flight.ground.data)]
    began = next(n for n, write in enumerate(writes) if write.end >= flight.acknowledged[0][0])
    loose = writelog.unflushed(writes)  # only cuts that lose something tell anything, and half shall lose much
    much, some = ([n for n in range(began, len(writes)) if loose[n] >= least] for least in (2, 1))
    cuts = {*random.Random(7).sample(much, POINTS // 2), len(writes)}
    cuts |= set(random.Random(8).sample(sorted({*some} - cuts), POINTS - len(cuts)))
    first = random.Random(9).sample([n for n in range(began) if loose[n]], 5)  # while it started for the first time
    points = sorted({*first, *cuts})
    started = points[:: max(1, len(points) // max(1, STARTS))][:STARTS]
    rows = []
    for number, cut in enumerate(points):
        card = tmp_path / "card.img"
        again = cut in started
        disk.sparse_copy(flight.before if again else flight.bare, card)
        lost, late = writelog.replay(flight.log, card, cut, cut)
        state = check_data(tools, card, tmp_path / f"{cut}")
        end = writes[cut - 1].end
        want = max((ids for at, ids in flight.acknowledged if at <= end), key=len, default=set())
        least = max((flown.index(model) for at, model in flight.kept if at <= end), default=0)
        row, model = check_state(state, base, flown, want, least)
        print(f"cut after {cut} of {len(writes)} writes, {late} not flushed, {lost} lost: {row}")
        rows.append((want, least))
        if again:
            start_again(tools, card, tmp_path / f"start-{number}", key, model, want)
    assert any(want for want, _ in rows)
    assert any(least for _, least in rows)
    assert len(rows) == POINTS + 5


def results(data):
    """Hashes of all models that the drone has streamed, in order."""
    with contextlib.closing(sqlite3.connect(f"file:{data}/station.db?mode=ro", uri=True)) as db:
        return [row.hex() for (row,) in db.execute("SELECT result FROM deltas ORDER BY n")]


def waiting(state):
    """Hashes of the models whose deltas had not reached the station yet."""
    if not (state / "outbox.sqlite").exists():
        return set()
    with contextlib.closing(sqlite3.connect(state / "outbox.sqlite")) as db:
        messages = [decode(body) for (body,) in db.execute("SELECT body FROM outbox")]
    return {message.result.hex() for message in messages if isinstance(message, Delta)}


def check_state(state, base, flown, want, least):
    """What lies in the state folder: every label that was acknowledged, and a model that flew.

    flown: hashes of the models in order; the model must not be older than number `least` of them. Returns what is
    there in words, and the model's hash.
    """
    if not (state / "labels.sqlite").exists():
        assert not want
        assert not least
        return "no flight yet", base.hash
    log = LabelLog(state / "labels.sqlite")
    try:
        assert log._store.moved_aside is None
        found = {given.id for given in log.since(0) if not given.undo}
    finally:
        log.close()
    assert want <= found, f"lost: {want - found}"
    desk = Desk(state, base, 4, Nowhere())
    try:
        model = desk.model.hash
        assert desk.model_problem == ""
    finally:
        desk.close()
    assert model in flown[least:] or model in waiting(state), f"{model}: older than {flown[least]}, or never flew"
    frames = sum(frames_in(path) for path in (state / "recordings").glob("*.mcap"))
    number = f"number {flown.index(model)} of {len(flown) - 1}" if model in flown else "on its way to the station"
    labels = f"{len(want)} labels acknowledged, {len(found)} there"
    return f"{labels}, model {number} ({least} wanted), {frames} frames", model


def frames_in(recording):
    """Frames of a segment; none where it had been begun and nothing of it was on the card yet."""
    try:
        pictures = inspect(str(recording))[0].frames
    except SourceError as error:
        begun = "not one message" in str(error)  # no more than that was on the card yet
        return 0 if begun or recording.stat().st_size == 0 else pytest.fail(str(error))
    return pictures.count if pictures else 0


def start_again(tools, card, folder, key, model, want):
    """The machine starts from what the cut left, without a station, and flies with that model."""
    machine = Machine(tools, card, folder, 1, key[0])
    try:

        def flies():
            said = machine.answers("onboard", "status", "--json")
            status = json.loads(said) if said.startswith("{") else {"frame": -1, "pid": 0}
            runs = machine.answers("systemctl", "show", "--value", "--property=StatusText", "hadanet-onboard")
            # the file may be of the start before: its process is not there then
            here = "frames come" in runs and machine.answers("ls", f"/proc/{status['pid']}/comm")
            return status if here and status["frame"] >= 0 else None

        status = until(flies, lambda: machine.said()[-2000:], BOOT_S)
        said = machine.run("journalctl", "--unit=hadanet-onboard", "--output=cat")
        assert re.findall(r"ready: model (\w+)", said)[0] == model[:16]
        assert status["labels"] >= len(want)
        assert machine.run("systemctl", "--failed", "--plain", "--no-legend") == ""
        print(f"started again after {time.monotonic() - machine.started:.0f} s: {status['labels']} labels")
        machine.power_off()
    finally:
        machine.cut()


def test_wrong_files_a_clock_without_battery_and_no_camera(built, key, tmp_path):
    tools, disk_image = built
    card = tmp_path / "card.img"
    disk.sparse_copy(disk_image, card)
    config, keys = tmp_path / "hadanet.toml", tmp_path / "kestrel.toml"
    config.write_text(f'[board]\nssh_key = "{key[1]}"\n\n[camera]\nrows = 99\n')
    keys.write_text('name = "kestrel"\n')
    replayed = pictures.take(tmp_path / "flight", BUNDLED)
    put_on_card(tools, card, config, keys, tmp_path / "flight")
    machine = Machine(tools, card, tmp_path / "machine", 1, key[0], clock="1970-01-01T00:00:00")
    try:
        until(
            lambda: machine.answers("systemctl", "is-active", "hadanet-onboard").strip() == "active",
            machine.said,
            BOOT_S,
        )
        status = until(lambda: json.loads(machine.answers("onboard", "status", "--json") or "{}"), machine.said)
        assert "/dev/video0" in status["camera"]
        assert status["link"] == "off"
        problems = machine.run("cat", "/run/hadanet-board/problems").splitlines()
        assert problems[0].startswith("hadanet.toml, line 5: ")
        assert problems[1] == "flies with the configuration as shipped"
        assert problems[2].startswith("kestrel.toml: ")
        assert "hadanet.toml, line 5: " in machine.said()  # on the console, too
        a_flight_is_the_same(machine, tmp_path / "flight", replayed)
        machine.power_off()
    finally:
        machine.cut()
    said = read_from_card(tools, card, "hadanet-says.txt")
    assert [line for line in said.splitlines() if line.startswith("- ")] == [f"- {problem}" for problem in problems]


def a_flight_is_the_same(machine, folder, replayed):
    """Replayed there, with the image's kernels, and here: the same model from the same pictures; sim:// flies, too."""
    code, _, err = call("replay", *replayed(folder), "--report", folder / "here.json")
    assert code == 0, err
    here = json.loads((folder / "here.json").read_text())
    machine.run("cp", "--recursive", "/boot/firmware/flight", "/tmp/flight")
    machine.run("chmod", "--recursive", "a+rX", "/tmp/flight")
    place = "/var/lib/hadanet/report.json"
    named = machine.run("cat", "/usr/lib/hadanet/kernels.env").split()
    command = ["runuser", "-u", "hadanet", "--", "env", *named, "NUMBA_CACHE_DIR=/var/cache/hadanet"]
    compared = ["frames", "tiles", "base_hash"]
    for source, equal in (([BUNDLED], compared), (replayed("/tmp/flight"), [*compared, "labels_used", "model_hash"])):
        machine.run(*command, "onboard", "replay", *source, "--report", place, timeout_s=BOOT_S)
        there = json.loads(machine.run("cat", place))
        assert {name: there[name] for name in equal} == {name: here[name] for name in equal}
        assert there["mirror_hash"] == there["model_hash"] != there["base_hash"]
    print(f"the same pictures: model {there['model_hash'][:16]} there and here")
