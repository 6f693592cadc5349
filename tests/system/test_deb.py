"""The Debian package: what dpkg is told, always; installed, flown and removed in small Debians, where asked for.

`DEB_TEST=1 pytest tests/system/test_deb.py -s` as root: downloads 300 MB once, takes minutes for each Debian; those for
Arm run under qemu-user, with the folder that `python -m deploy.arm_tree` makes.
"""

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import time

import pytest

from deploy.arm_tree import ROOT
from deploy.deb import package as deb
from models.errors import HadanetError
from tests.system import debian_boot, pictures
from tests.system.debian_root import DebianRoot
from tests.system.onboard_process import call, until

UNITS = "usr/lib/systemd/system"
WANTED = "etc/systemd/system/multi-user.target.wants"
ROOTS = (("bullseye", "arm64"), ("bookworm", "arm64"), ("trixie", "arm64"), ("bookworm", "amd64"))
SOURCE = "sim://?seed=3&frames=8&width=320&height=240"
FLIGHT = "/var/lib/hadanet/flight"
OWN = "import numpy, numba, cv2, av, zmq, PIL, lz4, zstandard, sqlalchemy, matplotlib.pyplot; "
MAPPED = "print(*{line.split()[-1] for line in open('/proc/self/maps') if '.so' in line})"


# --- what dpkg is told ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=deb.ARCHITECTURES)
def made(request, tmp_path_factory):
    """(architecture, the package's path, its content unpacked), of a package without the part that is downloaded."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    tree, out = folder / "tree", folder / "out"
    modules = tree / deb.PREFIX / "usr/lib/python3/dist-packages"
    modules.mkdir(parents=True)
    deb.add_ourselves(modules)
    deb.finish(tree, deb.ARCHITECTURES[request.param], "1.2~3")
    path = deb.pack(tree, folder / "hadanet.deb", 1)
    subprocess.run(["dpkg-deb", "--raw-extract", path, out], check=True, timeout=60)
    return request.param, path, out


def field(path, name):
    done = subprocess.run(["dpkg-deb", "--field", path, name], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_dpkg_reads_what_it_is(made):
    architecture, path, out = made
    found = {name: field(path, name) for name in ("Package", "Version", "Architecture", "Depends")}
    depends = "init-system-helpers (>= 1.54~), passwd"
    assert found == {"Package": "hadanet", "Version": "1.2~3", "Architecture": architecture, "Depends": depends}
    listed = subprocess.run(["dpkg-deb", "--contents", path], capture_output=True, text=True, check=True, timeout=60)
    owners = {line.split()[1] for line in listed.stdout.splitlines()}
    assert owners == {"root/root"}
    modes = {line.split()[-1]: line[:10] for line in listed.stdout.splitlines()}
    assert modes["./opt/hadanet/bin/onboard"] == "-rwxr-xr-x"
    assert modes["./etc/hadanet/onboard.toml"] == "-rw-r--r--"
    assert not any(mode[5] == "w" or mode[8] == "w" for mode in modes.values() if mode[0] != "l")
    installed = sum(file.stat().st_size for file in deb.files(out)) / 1024
    assert int(field(path, "Installed-Size")) == pytest.approx(installed, abs=1)


def test_every_file_has_its_sum(made):
    _, _, out = made
    sums = dict(line.split("  ")[::-1] for line in (out / "DEBIAN/md5sums").read_text().splitlines())
    here = [path for path in out.rglob("*") if path.is_file() and not path.is_symlink() and "DEBIAN" not in path.parts]
    assert {str(path.relative_to(out)): hashlib.md5(path.read_bytes()).hexdigest() for path in here} == sums
    assert (out / "DEBIAN/conffiles").read_text() == "/etc/hadanet/onboard.toml\n"
    assert "opt/hadanet/usr/lib/python3/dist-packages/models/zoo/default.safetensors" in sums


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_scripts_are_shell_for_the_right_unit(made, name):
    architecture, _, out = made
    path = out / "DEBIAN" / name
    subprocess.run(["sh", "-n", path], check=True, timeout=60)
    text = path.read_text()
    assert "@" not in text
    if name == "postinst":
        enabled = {"arm64": "hadanet-onboard.service", "amd64": "hadanet-ground.service"}[architecture]
        assert f"unit={enabled}\n" in text


def test_units_and_commands_are_there(made):
    _, _, out = made
    for name in ("hadanet-onboard.service", "hadanet-ground.service"):
        assert (out / UNITS / name).read_bytes() == (ROOT / "deploy/systemd" / name).read_bytes()
    for name in ("onboard", "ground", "hadanet"):
        assert os.readlink(out / "usr/bin" / name) == f"/opt/hadanet/bin/{name}"
        compile((out / "opt/hadanet/bin" / name).read_text(), name, "exec")


@pytest.mark.parametrize("version", ["", "1 2", "v1", "1-2", "1/2"])
def test_a_version_that_dpkg_would_refuse(tmp_path, version):
    with pytest.raises(deb.DebError, match="must begin with a digit"):
        deb.build(deb.ARCHITECTURES["arm64"], version, tmp_path, tmp_path)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "arm64").mkdir()
    with pytest.raises(deb.DebError, match="is not ours"):
        deb.build(deb.ARCHITECTURES["arm64"], "1", tmp_path / "out", tmp_path)


def test_what_was_left_out_leaves_no_dead_links(tmp_path):
    (tmp_path / "usr/share/man/man1").mkdir(parents=True)
    (tmp_path / "usr/share/doc/libc6").mkdir(parents=True)
    for name in ("copyright", "changelog.gz"):
        (tmp_path / "usr/share/doc/libc6" / name).touch()
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/pdb3").symlink_to("../share/man/man1")
    for name in (deb.PYTHON, "pydoc3", "perl", "sh"):
        (tmp_path / "usr/bin" / name).touch()
    (tmp_path / "usr/lib").mkdir()
    (tmp_path / "lib").symlink_to("usr/lib")
    deb.prune(tmp_path)
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert kept == {f"usr/bin/{deb.PYTHON}", "usr/share/doc/libc6/copyright"}


# --- installed -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A function that builds a version for an architecture, once; compressed less than what is given away."""
    folder, found = tmp_path_factory.mktemp("packages"), {}

    def build(architecture, version):
        key = architecture, version
        if key not in found:
            found[key] = deb.build(deb.ARCHITECTURES[architecture], version, folder, deb.default_cache(), level=1)
        return found[key]

    return build


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """(pictures of a flight, what to replay by where they lie, the report of this Python on this machine)."""
    folder = tmp_path_factory.mktemp("here")
    path, flight = folder / "report.json", folder / "flight"
    replayed = pictures.take(flight, SOURCE)
    code, _, err = call("replay", *replayed(flight), "--report", path)
    assert code == 0, err
    return flight, replayed, json.loads(path.read_text())


@pytest.mark.skipif("DEB_TEST" not in os.environ, reason="takes minutes and root; DEB_TEST=1 asks for it")
@pytest.mark.parametrize(("release", "architecture"), ROOTS, ids=[f"{r}-{a}" for r, a in ROOTS])
def test_it_installs_flies_and_leaves_nothing(packages, here, tmp_path, release, architecture):
    if os.geteuid():
        pytest.skip("needs root")
    try:
        debian = DebianRoot(tmp_path, release, architecture)
    except HadanetError as error:
        pytest.skip(str(error))
    root, before, start = debian.root, debian.files(), time.monotonic()

    def install(version):
        path = packages(architecture, version)
        shutil.copy(path, root / "tmp/hadanet.deb")
        debian.run("dpkg", "--install", "/tmp/hadanet.deb")
        (root / "tmp/hadanet.deb").unlink()

    install("1.0")
    unit = deb.UNITS[architecture]
    assert os.readlink(root / WANTED / unit).endswith(f"/systemd/system/{unit}")
    assert "(hadanet)" in debian.run("id", "hadanet")
    assert debian.run("dpkg", "--verify", "hadanet") == ""

    # what systemd does with StateDirectory and CacheDirectory
    for folder in ("/var/lib/hadanet", "/var/cache/hadanet"):
        debian.run("install", "-d", "-o", "hadanet", "-g", "hadanet", "-m", "0700", folder)
    config = root / "etc/hadanet/onboard.toml"
    config.write_text(f'[camera]\nsource = "{SOURCE}"\n')
    checked = debian.run("onboard", "check", user="hadanet")
    assert [line[:4] for line in checked.splitlines()] == ["ok  "] * 8, checked
    config.write_text('[camera]\nsource = "v4l2:///dev/nothing"\n')
    assert "/dev/nothing" in debian.run("onboard", "check", user="hadanet", status=1)

    python = f"/opt/hadanet/usr/bin/{deb.PYTHON}"
    said = debian.run(python, "-I", "-c", OWN + MAPPED, user="hadanet")
    libraries = said.splitlines()[-1].split()
    assert len(libraries) > 50
    assert [name for name in libraries if not name.startswith("/opt/hadanet/usr/lib/")] == []

    flight, replayed, said_here = here
    shutil.copytree(flight, root / FLIGHT[1:])
    debian.run("onboard", "replay", *replayed(FLIGHT), "--report", "/var/lib/hadanet/report.json", user="hadanet")
    report = json.loads((root / "var/lib/hadanet/report.json").read_text())
    compared = ("frames", "tiles", "labels_used", "base_hash", "model_hash")
    assert {key: report[key] for key in compared} == {key: said_here[key] for key in compared}
    assert report["mirror_hash"] == report["model_hash"] != report["base_hash"]

    install("1.1")
    assert "1.1" in debian.run("dpkg-query", "--show", "hadanet")
    assert "/dev/nothing" in config.read_text()  # what a person wrote stays
    assert (root / "var/lib/hadanet/report.json").exists()

    debian.run("dpkg", "--remove", "hadanet")
    assert not (root / "opt/hadanet").exists()
    assert not (root / "usr/bin/onboard").is_symlink()
    assert config.exists()
    debian.run("dpkg", "--purge", "hadanet")
    after = debian.files()
    traces = {name: about for name, about in after.items() if before.get(name) != about}
    assert traces == {}
    assert set(before) - set(after) == set()
    print(f"{release} {architecture}: {time.monotonic() - start:.0f} s")


@pytest.fixture
def booted(tmp_path):
    if reason := debian_boot.why_not():
        pytest.skip(reason)
    machine = debian_boot.Booted(tmp_path, "bookworm", debian_boot.control_groups())
    yield machine
    machine.close()


@pytest.mark.skipif("DEB_TEST" not in os.environ, reason="takes minutes and root; DEB_TEST=1 asks for it")
def test_systemd_keeps_the_daemon_flying(packages, booted):
    """The units as they are, with all that they forbid, under a real systemd: ready, hung, killed, stopped."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    unit, root = "hadanet-onboard", booted.root
    shutil.copy(packages(architecture, "1.0"), root / "hadanet.deb")
    booted.run("dpkg", "--install", "/hadanet.deb")
    until(lambda: booted.show("hadanet-ground", "ActiveState") == "active", "the ground station does not start")
    until(lambda: "drones tcp://" in booted.run("journalctl", "-u", "hadanet-ground"), "it does not serve")

    (root / "etc/hadanet/onboard.toml").write_text('[camera]\nsource = "sim://?frames=100000&fps=8&live=1"\n')
    booted.run("systemctl", "start", unit)  # returns when the daemon has said that it is ready
    assert booted.show(unit, "ActiveState") == "active"
    until(lambda: booted.show(unit, "StatusText") == "frames come", "no frames")

    def flight():
        return booted.pids("onboard.daemon")

    def flies():
        said = booted.run("onboard", "status", "--json", status=None)
        status = json.loads(said) if said.startswith("{") else {"frame": -1}  # not before it has told of itself
        return status["frame"] > 8 and status["learner"] == "learning"

    (first,) = flight()
    os.kill(first, signal.SIGKILL)  # the supervisor's own task: systemd has nothing to do
    until(lambda: flight() not in ([], [first]), "the flight was not started again")
    until(flies, "it does not fly")
    assert booted.show(unit, "NRestarts") == "0"

    (second,) = flight()
    os.kill(second, signal.SIGSTOP)  # a flight that hangs
    until(lambda: booted.show(unit, "NRestarts") == "1", "the watchdog did not see it", 90)
    until(lambda: booted.show(unit, "ActiveState") == "active", "it does not come up again", 90)
    assert second not in flight()
    until(flies, "it does not fly")

    booted.run("systemctl", "stop", unit)
    assert booted.show(unit, "Result") == "success"
    assert (flight(), booted.pids("onboard.worker")) == ([], [])
    said = booted.run("journalctl", "-u", unit)
    assert "Traceback" not in said
    booted.run("dpkg", "--purge", "hadanet")
    assert booted.run("systemctl", "list-unit-files", "hadanet*", status=None).rstrip().endswith("0 unit files listed.")
    assert booted.pids("/opt/hadanet/bin/ground") == []
    assert not list(root.glob("**/hadanet*/*"))


@pytest.mark.skipif("DEB_TEST" not in os.environ, reason="takes minutes; DEB_TEST=1 asks for it")
@pytest.mark.parametrize("architecture", deb.ARCHITECTURES)
def test_what_is_given_away_is_small_enough(tmp_path, architecture):
    path = deb.build(deb.ARCHITECTURES[architecture], "1", tmp_path, deb.default_cache())
    print(
        f"{architecture}: {path.stat().st_size / 1e6:.0f} MB, {int(field(path, 'Installed-Size')) // 1024} MB installed"
    )
    assert path.stat().st_size < 200e6
