"""`deploy/image/build`: an image to flash for Raspberry Pi 3, 4 and Zero 2 W, with everything inside.

A step whose inputs are those of the last time is not done again, so a build that was interrupted goes on where it was;
`HADANET_IMAGE`, or `hadanet-image` in the user's cache, keeps what the steps made (4 GB). Needs root, because the
Debian in it is installed under emulation, and a Debian or Ubuntu with mmdebstrap and a kernel of 6.7 or newer.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from deploy import arm_tree
from deploy.arm_tree import ROOT, ArmTree, mirror, run, unpack_packages
from deploy.deb import package as deb
from deploy.image import debian, disk
from models.errors import HadanetError

TOOLS = ("dosfstools", "e2fsprogs", "fdisk", "mtools", "openssh-client", "qemu-system-arm", "xz-utils")
"""Of arm_tree.RELEASE, for this machine; unpacked, not installed."""
NEEDED = ("mmdebstrap", "apt-get", "dpkg-deb", "unshare", "cp")
MAX_BYTES = 600_000_000
DEVICES = ("pi3-64bit", "pi4-64bit")
"""What Raspberry Pi Imager calls the boards; a Zero 2 W counts as a Pi 3."""
COMPRESS_S = 3600


class ImageError(HadanetError):
    """The image cannot be built."""


class Steps:
    """Does a step where its inputs changed, says so, and remembers it in `folder`."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self._number, self._count = folder, 0, count
        folder.mkdir(parents=True, exist_ok=True)

    def do(self, name: str, inputs: object, make: Callable[[Path], object]) -> tuple[Path, str]:
        """The file or folder `name` that `make` made out of `inputs`, and a hash of them for the steps after it."""
        self._number += 1
        mark = hashlib.sha256(repr((name, inputs)).encode()).hexdigest()
        path, stamp = self.folder / name, self.folder / f"{name}.made-of"
        start = time.monotonic()
        if path.exists() and stamp.exists() and stamp.read_text() == mark:
            self._say(name, "as before")
            return path, mark
        self._say(name, "...")
        stamp.unlink(missing_ok=True)
        remove(path)
        fresh = path.with_name(path.name + ".new")
        remove(fresh)
        make(fresh)
        fresh.rename(path)
        stamp.write_text(mark)
        self._say(name, f"{time.monotonic() - start:.0f} s")
        return path, mark

    def _say(self, name: str, text: str) -> None:
        sys.stderr.write(f"image: [{self._number}/{self._count}] {name}: {text}\n")


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def default_folder() -> Path:
    """`HADANET_IMAGE`, else in the user's cache."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return Path(os.environ.get("HADANET_IMAGE") or users / "hadanet-image")


def files_in(*places: Path) -> str:
    """A hash of the files in some folders of this checkout, with their names and whether they are programs."""
    total = hashlib.sha256()
    for place in places:
        for path in sorted([place] if place.is_file() else place.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                total.update(f"{path.relative_to(ROOT)} {os.access(path, os.X_OK)} ".encode())
                total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def tools_in(folder: Path) -> disk.Tools:
    """The tools that `build` unpacked. Raises ImageError where it was not run yet."""
    if not (folder / "tools/host").is_dir():
        raise ImageError(f"{folder}: no image was built here yet; run deploy/image/build")
    return disk.Tools(ArmTree(folder / "tools"))


def unpack_tools(site: str, fresh: Path) -> None:
    """TOOLS and what they need."""
    host = run(["dpkg", "--print-architecture"], 60).strip()
    unpack_packages(site, host, TOOLS, fresh / "apt", fresh / "host")
    shutil.rmtree(fresh / "apt")


def make_root(tree: ArmTree, base: Path, package: Path, fresh: Path) -> None:
    """The Debian with our package, and its kernels compiled."""
    run(["cp", "--archive", "--reflink=auto", str(base), str(fresh)], disk.COMMAND_S)
    debian.install(tree, fresh, package)
    debian.compile_kernels(tree, fresh)


def make_disk(tree: ArmTree, tools: disk.Tools, root: Path, version: str, fresh: Path) -> None:
    """The disk out of the root: what the firmware reads goes onto the FAT partition, the rest is read-only."""
    work = fresh.with_name("work")
    remove(work)
    work.mkdir()
    try:
        fat, data, bare = work / "fat", work / "data", work / "root"
        run(["cp", "--archive", str(root), str(bare)], disk.COMMAND_S)
        debian.set_up(tree, bare, version)
        debian.clean(bare)
        debian.fill_fat(bare, fat)
        debian.fill_data(bare, data)
        disk.make_fat(tools, fat, work / "fat.img")
        size = disk.rounded(int(disk.used(bare) * disk.SLACK) + 32 * disk.MIB)
        fixed = ("-O", "^has_journal", "-E", "lazy_itable_init=0")
        disk.make_ext4(tools, bare, work / "root.img", size, "hadanet-root", *fixed)
        grows = ("-b", "4096", "-J", "size=16", "-E", "lazy_itable_init=0,resize=268435456")
        disk.make_ext4(tools, data, work / "data.img", disk.DATA_BYTES, "hadanet-data", *grows)
        disk.put_together(tools, [work / f"{name}.img" for name in ("fat", "root", "data")], fresh)
    finally:
        remove(work)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compress(tools: disk.Tools, image: Path, level: int, fresh: Path) -> None:
    """As xz, on all cores; its decoder needs 9 MiB a block."""
    command = [*tools.command("usr/bin/xz"), f"-{level}", "--threads=0", "--keep", "--stdout", str(image)]
    run(["sh", "-c", 'out=$1; shift; exec "$@" > "$out"', "sh", str(fresh), *command], COMPRESS_S)


def give(image: Path, packed: Path, version: str, out: Path, url: str) -> Path:
    """What is given away, in the folder `out`: the image, its checksum, and Raspberry Pi Imager's list with it."""
    out.mkdir(parents=True, exist_ok=True)
    given = out / f"hadanet_{version}_raspberrypi.img.xz"
    shutil.copyfile(packed, given)
    checksum = digest(given)
    given.with_name(given.name + ".sha256").write_text(f"{checksum}  {given.name}\n")
    entry = {
        "name": f"hadanet-uav {version}",
        "description": "Learning in the air: flash it, write hadanet.toml onto its FAT partition, start it",
        "url": f"{url.rstrip('/')}/{given.name}" if url else given.resolve().as_uri(),
        "icon": "",
        "extract_size": image.stat().st_size,
        "extract_sha256": digest(image),
        "image_download_size": given.stat().st_size,
        "image_download_sha256": checksum,
        "release_date": datetime.now(UTC).date().isoformat(),
        "init_format": "none",
        "devices": list(DEVICES),
    }
    (out / "os_list.json").write_text(json.dumps({"os_list": [entry]}, indent=2) + "\n")
    return given


def build(version: str, folder: Path, site: str, level: int = 6) -> tuple[Path, Path]:
    """All steps: the disk and the same compressed, in `folder`. level: of xz, 0 leaves that step out."""
    if os.geteuid():
        raise ImageError("needs root: run it with sudo")
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        raise ImageError(f"needs {' '.join(missing)}: apt-get install {' '.join(missing)}")
    steps = Steps(folder, 7 if level else 6)
    tree, _ = steps.do("emulator", arm_tree.contents(), lambda fresh: fresh.symlink_to(emulator(site).folder))
    arm = ArmTree(tree)
    made, _ = steps.do("tools", (arm_tree.RELEASE, TOOLS), lambda fresh: unpack_tools(site, fresh))
    tools = disk.Tools(ArmTree(made))
    lines = debian.sources(site)
    inputs = (lines, debian.PACKAGES, debian.LEFT_OUT, debian.KEPT, files_in(debian.OURS / debian.INITRAMFS))
    base, base_mark = steps.do("debian", inputs, lambda fresh: debian.make_debian(arm, lines, fresh))
    architecture = deb.ARCHITECTURES["arm64"]
    ours = files_in(*(ROOT / name for name in (*deb.OURS, "deploy/deb", "deploy/systemd", "deploy/onboard.toml")))
    inputs = (deb.contents(architecture), version, ours)
    package, package_mark = steps.do("hadanet.deb", inputs, lambda fresh: make_package(version, site, fresh))
    inputs = (base_mark, package_mark, debian.KERNELS.read_text(), debian.KERNELS_FLIGHT, debian.KERNELS_CHANGE)
    root, root_mark = steps.do("root", inputs, lambda fresh: make_root(arm, base, package, fresh))
    inputs = (root_mark, version, files_in(ROOT / "deploy/image", ROOT / "deploy/emulated.py"))
    image, mark = steps.do("hadanet.img", inputs, lambda fresh: make_disk(arm, tools, root, version, fresh))
    if not level:
        return image, image
    packed, _ = steps.do("hadanet.img.xz", (mark, level), lambda fresh: compress(tools, image, level, fresh))
    if level >= 6 and packed.stat().st_size > MAX_BYTES:
        raise ImageError(f"{packed}: {packed.stat().st_size} bytes, more than {MAX_BYTES}: leave out more")
    return image, packed


def emulator(site: str) -> ArmTree:
    """The folder of `deploy.arm_tree`, made where it is missing."""
    try:
        return arm_tree.find()
    except arm_tree.ArmTreeError:
        return arm_tree.build(arm_tree.default_folder(), site)


def make_package(version: str, site: str, fresh: Path) -> None:
    """The Debian package, compressed little: it only goes into the image."""
    work = fresh.with_name("package")
    built = deb.build(deb.ARCHITECTURES["arm64"], version, work, deb.default_cache(), site, level=0)
    built.rename(fresh)
    remove(work)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the image and print its path."""
    parser = argparse.ArgumentParser(prog="deploy/image/build", description=__doc__)
    parser.add_argument("--version", default=str(deb.project()["version"]), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER", help="(dist)")
    parser.add_argument(
        "--url", default="", help="where the image will be given away, for Imager's list; default: here"
    )
    parser.add_argument("--mirror", default="", metavar="URL", help="of Debian packages; default: this machine's own")
    parser.add_argument("--level", type=int, choices=range(10), default=6, help="of xz (%(default)s); 0: only the disk")
    chosen = parser.parse_args(arguments)
    try:
        folder = default_folder()
        image, packed = build(chosen.version, folder, chosen.mirror or mirror(), chosen.level)
        given = give(image, packed, chosen.version, chosen.out, chosen.url) if chosen.level else image
    except HadanetError as error:
        sys.stderr.write(f"image: {error}\n")
        return 1
    print(given)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
