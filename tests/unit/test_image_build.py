"""The parts of the image's build that need neither root nor a download: steps, copies, file systems, what is given."""

import hashlib
import json
import os
import random
import shutil
import subprocess

import pytest

from deploy.arm_tree import ROOT
from deploy.image import debian, disk, image
from models.errors import HadanetError


def test_a_step_is_done_again_only_where_its_inputs_changed(tmp_path, capsys):
    done = []

    def make(path):
        done.append(path.name)
        path.write_text(str(len(done)))

    def marks(inputs):
        return image.Steps(tmp_path, 1).do("thing", inputs, make)

    first = marks("a")
    assert marks("a") == first == (tmp_path / "thing", first[1])
    assert (done, first[0].read_text()) == (["thing.new"], "1")
    assert marks("b")[1] != first[1]
    assert (len(done), first[0].read_text()) == (2, "2")
    assert "[1/1] thing: as before" in capsys.readouterr().err


def test_a_step_that_failed_is_done_again(tmp_path):
    def half(path):
        path.mkdir()
        (path / "half").touch()
        raise HadanetError("no more")

    with pytest.raises(HadanetError, match="no more"):
        image.Steps(tmp_path, 1).do("thing", "a", half)
    assert not (tmp_path / "thing").exists()
    path, _ = image.Steps(tmp_path, 1).do("thing", "a", lambda fresh: fresh.mkdir())
    assert list(path.iterdir()) == []


def test_files_that_change_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(image, "ROOT", tmp_path)
    (tmp_path / "a").mkdir()
    file = tmp_path / "a/b"
    seen = set()
    for text, mode in (("1", 0o644), ("2", 0o644), ("2", 0o755)):
        file.write_text(text)
        file.chmod(mode)
        seen.add(image.files_in(tmp_path / "a"))
    file.rename(tmp_path / "a/c")
    seen.add(image.files_in(tmp_path / "a"))
    assert len(seen) == 4


def holes(path, pieces, size):
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in pieces:
            file.seek(at)
            file.write(data)
    return path


def test_copies_keep_content_and_holes(tmp_path):
    noise = random.Random(1).randbytes(70_000)
    source = holes(tmp_path / "a", [(5 * disk.MIB, noise), (20 * disk.MIB, noise)], 32 * disk.MIB)
    disk.sparse_copy(source, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == source.read_bytes()
    assert (tmp_path / "b").stat().st_blocks * 512 < disk.MIB
    disk.cut_out(source, disk.Part(20 * disk.MIB, 8 * disk.MIB), tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == noise.ljust(8 * disk.MIB, b"\0")
    disk.copy_into(tmp_path / "c", tmp_path / "b", 0)
    assert (tmp_path / "b").read_bytes()[: len(noise)] == noise


class HereTools(disk.Tools):
    """The programs that this machine has."""

    def __init__(self):
        pass

    def run(self, program, *arguments):
        path = shutil.which(os.path.basename(program), path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"{program} is not installed")
        command = [path, *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def command(self, program):
        return [os.path.basename(program)]


def test_an_ext4_is_filled_without_being_mounted(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/file").write_text("content\n")
    (folder / "deep/file").chmod(0o640)
    (folder / "link").symlink_to("deep/file")
    size = disk.rounded(int(disk.used(folder) * disk.SLACK) + 8 * disk.MIB)
    assert size % disk.ALIGN == 0
    tools, path = HereTools(), tmp_path / "a.img"
    disk.make_ext4(tools, folder, path, size, "hadanet-test", "-O", "^has_journal")
    assert path.stat().st_size == size
    tools.run("usr/sbin/e2fsck", "-f", "-n", path)
    assert tools.run("usr/sbin/debugfs", "-R", "cat /deep/file", path) == "content\n"
    about = tools.run("usr/sbin/dumpe2fs", "-h", path)
    assert "hadanet-test" in about
    assert "has_journal" not in about


def test_what_is_given_away_can_be_checked(tmp_path):
    raw, packed = tmp_path / "a.img", tmp_path / "a.img.xz"
    raw.write_bytes(b"raw" * 1000)
    packed.write_bytes(b"packed" * 100)
    given = image.give(raw, packed, "1.2", tmp_path / "out", "https://example.invalid/images/")
    assert given.name == "hadanet_1.2_raspberrypi.img.xz"
    checksum = hashlib.sha256(packed.read_bytes()).hexdigest()
    assert (tmp_path / "out" / f"{given.name}.sha256").read_text() == f"{checksum}  {given.name}\n"
    (entry,) = json.loads((tmp_path / "out/os_list.json").read_text())["os_list"]
    assert entry["url"] == f"https://example.invalid/images/{given.name}"
    assert (entry["extract_size"], entry["image_download_size"]) == (3000, 600)
    assert entry["extract_sha256"] == hashlib.sha256(raw.read_bytes()).hexdigest()
    assert entry["image_download_sha256"] == checksum


def test_what_it_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(image.ImageError, match="sudo"):
        image.build("1", tmp_path, "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(image.ImageError, match="apt-get install mmdebstrap"):
        image.build("1", tmp_path, "")


def test_the_overlay_is_shell():
    subprocess.run(["sh", "-n", debian.OURS / debian.INITRAMFS / "scripts/init-bottom/hadanet-overlay"], check=True)


def test_units_of_the_image_start_what_is_there():
    units = debian.OURS / "etc/systemd/system"
    assert "ExecStart=/usr/lib/hadanet/board\n" in (units / "hadanet-board.service").read_text()
    assert os.access(debian.OURS / "usr/lib/hadanet/board", os.X_OK)
    named = (units / "hadanet-onboard.service.d/image.conf").read_text()
    assert "EnvironmentFile=/usr/lib/hadanet/kernels.env\n" in named
    assert {path.name for path in (ROOT / "deploy/image").iterdir()} >= set(debian.PROGRAMS)


def test_all_kernels_of_a_flight_are_asked_for():
    """The build looks for compiled kernels of each of these modules, and they are called so still."""
    found = [*(ROOT / "models").rglob("*.py"), *(ROOT / "onboard").rglob("*.py")]
    files = [path for path in found if path.parent.name not in ("paper", "training")]
    with_kernels = {path.stem for path in files if "\n@kernel(" in path.read_text()}
    assert with_kernels == set(debian.KERNELS_OF)
