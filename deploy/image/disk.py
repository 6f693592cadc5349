"""An image of a card out of folders: a FAT partition, the root, and the data partition, without mounting anything.

The partition table is the old one (MBR), because a Pi 3 starts from no other.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.arm_tree import ArmTree, run

MIB = 1 << 20
SECTOR = 512
FAT_BYTES = 256 * MIB
DATA_BYTES = 256 * MIB
"""As flashed; the first start lets it end where the card ends."""
ALIGN = 4 * MIB
SLACK = 1.06
"""The root's file system over what lies in it: its own tables."""
COMMAND_S = 1800


class Part(NamedTuple):
    """A partition: where it lies on the disk, in bytes."""

    start: int
    size: int


class Tools:
    """Programs of Debian that make file systems, out of a folder; nothing is installed."""

    def __init__(self, tree: ArmTree) -> None:
        self._tree = tree

    def run(self, program: str, *arguments: object) -> str:
        """The output of a program; ArmTreeError with its last words where it fails."""
        environment = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "MTOOLS_SKIP_CHECK": "1",
            "HOME": "/nonexistent",
        }
        environment["MKE2FS_CONFIG"] = str(self._tree.folder / "host/etc/mke2fs.conf")
        return run([*self._tree.host(program), *map(str, arguments)], COMMAND_S, environment)

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._tree.folder

    def command(self, program: str) -> list[str]:
        """The beginning of its command line."""
        return self._tree.host(program)


def rounded(size: int) -> int:
    """The next multiple of ALIGN."""
    return -(-size // ALIGN) * ALIGN


def used(folder: Path) -> int:
    """Bytes that a folder's files take on disk, each in blocks of 4 KiB, folders and links too."""
    total = 0
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            about = os.lstat(os.path.join(place, name))
            total += -(-about.st_size // 4096) * 4096 + 512
    return total


def make_fat(tools: Tools, folder: Path, image: Path) -> None:
    """A FAT32 file system with the files of `folder`."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(FAT_BYTES)
    tools.run("usr/sbin/mkfs.fat", "-F", "32", "-n", "HADANET", image)
    tools.run("usr/bin/mtools", "-c", "mcopy", "-s", "-Q", "-i", image, *sorted(folder.iterdir()), "::/")


def make_ext4(tools: Tools, folder: Path, image: Path, size: int, label: str, *options: str) -> None:
    """An ext4 file system with what lies in `folder`, owners and modes included; times lose their parts of a second."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    tools.run("usr/sbin/mke2fs", "-q", "-t", "ext4", "-L", label, "-m", "0", *options, "-d", folder, image)


def put_together(tools: Tools, parts: Sequence[Path], image: Path) -> list[Part]:
    """One disk of the FAT partition, the root and the data; where each lies."""
    image.unlink(missing_ok=True)
    places, start = [], ALIGN
    for part in parts:
        places.append(Part(start, rounded(part.stat().st_size)))
        start += places[-1].size
    with image.open("wb") as file:
        file.truncate(start)
    lines = [
        "label: dos",
        *(
            f"start={p.start // SECTOR}, size={p.size // SECTOR}, type={t}"
            for p, t in zip(places, ("c", "83", "83"), strict=True)
        ),
    ]
    script = image.with_suffix(".parts")
    script.write_text("\n".join([lines[0], lines[1] + ", bootable", *lines[2:], ""]))
    # sfdisk reads its orders from its standard input
    run(
        [
            "sh",
            "-c",
            'script=$1; shift; exec "$@" < "$script"',
            "sh",
            str(script),
            *tools.command("usr/sbin/sfdisk"),
            "--quiet",
            str(image),
        ],
        COMMAND_S,
    )
    script.unlink()
    for part, place in zip(parts, places, strict=True):
        copy_into(part, image, place.start)
    return places


def copy_into(part: Path, image: Path, start: int) -> None:
    """Copy a file into another at a place, leaving holes where it has them."""
    with part.open("rb") as source, image.open("r+b") as target:
        size, at = part.stat().st_size, 0
        while at < size:
            try:
                at = os.lseek(source.fileno(), at, os.SEEK_DATA)
            except OSError:  # a hole to the end
                return
            end = os.lseek(source.fileno(), at, os.SEEK_HOLE)
            source.seek(at)
            target.seek(start + at)
            while at < end:
                block = source.read(min(MIB, end - at))
                target.write(block)
                at += len(block)


def cut_out(image: Path, place: Part, target: Path) -> None:
    """The file system of one partition, as a file."""
    with image.open("rb") as source, target.open("wb") as file:
        source.seek(place.start)
        for at in range(0, place.size, MIB):
            block = source.read(min(MIB, place.size - at))
            if block.count(0) == len(block):
                file.seek(len(block), os.SEEK_CUR)
            else:
                file.write(block)
        file.truncate(place.size)


def places(tools: Tools, image: Path) -> list[Part]:
    """Where the partitions of a disk lie, as its table says."""
    table = json.loads(tools.run("usr/sbin/sfdisk", "--json", image))["partitiontable"]
    return [Part(int(p["start"]) * SECTOR, int(p["size"]) * SECTOR) for p in table["partitions"]]


def sparse_copy(source: Path, target: Path) -> None:
    """A copy that has holes where the source has them."""
    shutil.copyfile(os.devnull, target)
    with target.open("r+b") as file:
        file.truncate(source.stat().st_size)
    copy_into(source, target, 0)
