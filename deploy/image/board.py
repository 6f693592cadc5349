"""At every start of the image, before the daemon: sets the board up as its FAT partition says, and tells so there.

Grows the data partition to the end of the card where there is room, names the host, writes the daemon's configuration
and keys, Wi-Fi and who may log in; all of that but the data partition lies in memory. What is wrong is told on the
console, in the journal, and in a text file on the FAT partition itself, which any laptop can read; the board starts
all the same.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.image import card as cards

FAT, DATA, ETC = Path("/boot/firmware"), Path("/data"), Path("/etc/hadanet")
STATE = Path("/var/lib/hadanet")
SAYS = "hadanet-says.txt"
VERSION = Path("/usr/lib/hadanet/version")
SHIPPED = Path("/usr/lib/hadanet/shipped.toml")
"""The daemon's configuration where no good one was ever found."""
PROBLEMS = Path("/run/hadanet-board/problems")
"""One problem a line, for whoever shows how the board is; empty where all is well."""
WORTH_GROWING = 64 << 20
"""Bytes."""
SECTOR = 512
RUN_S = 120


def run(*command: str) -> None:
    """Run a program of the system; OSError or CalledProcessError with its words where it fails."""
    subprocess.run(command, check=True, timeout=RUN_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def write(path: Path, text: str, mode: int = 0o644, owner: str = "root") -> None:
    """Write a file whole or not at all, on its disk on return; a file that says the same is left alone."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text() == text:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if owner != "root":
        shutil.chown(fresh, owner, owner)
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def grow(device: Path, sys_block: Path = Path("/sys/class/block")) -> bool:
    """Let a partition, in use and the last of its disk, and its ext4 end where the disk ends; whether it grew."""
    about = (sys_block / device.name).resolve()
    number = int((about / "partition").read_text())
    end = int((about / "start").read_text()) + int((about / "size").read_text())
    free = (int((about.parent / "size").read_text()) - end) * SECTOR
    disk = f"/dev/{about.parent.name}"
    if free > WORTH_GROWING:
        subprocess.run(
            ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", f"--partno={number}", disk],
            input=", +\n", check=True, timeout=RUN_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        run("partx", "--update", f"--nr={number}", disk)
    run("resize2fs", str(device))  # also where the power went between the two; it ends at once where nothing is to do
    return free > WORTH_GROWING


def keep_state() -> None:
    """The daemon's state on the data partition. Not in fstab: systemd would not start the daemon without it."""
    if mounted(STATE) is None:
        run("mount", "--bind", str(DATA / STATE.name), str(STATE))


def mounted(place: Path) -> Path | None:
    """The device that is mounted there."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, where, *_ = line.split()
        if where == str(place):
            return Path(device).resolve()
    return None


@contextlib.contextmanager
def writable(place: Path) -> Iterator[None]:
    """A file system that is mounted read-only, written for a moment."""
    run("mount", "--options", "remount,rw", str(place))
    try:
        yield
    finally:
        run("mount", "--options", "remount,ro", str(place))


def told(card: cards.Card, version: str, problems: list[str]) -> str:
    """The text file on the FAT partition; lines end as every editor knows them."""
    station = f", station {card.drone.address}" if card.drone else ", no station: put the file of `ground enroll` here"
    lines = [f"hadanet-uav {version}", f"drone: {card.name}{station}"]
    if card.board.wifi:
        lines += [f"Wi-Fi: {card.board.wifi}"]
    lines += ["log in: ssh root@" + card.name + ".local" if card.board.ssh_key else "log in: nobody (no ssh_key)"]
    lines += ["", "PROBLEMS:", *(f"- {problem}" for problem in problems)] if problems else ["", "All is well."]
    return "\r\n".join([*lines, ""])


def set_up(card: cards.Card) -> None:
    """Everything of the system that the card decides about."""
    write(ETC / "onboard.toml", cards.with_keys(card.config) if card.drone else card.config)
    if card.keys:
        write(Path(cards.KEYS), card.keys.read_text(), 0o600, "hadanet")
    socket.sethostname(card.name)
    write(Path("/etc/hostname"), f"{card.name}\n")
    write(Path("/etc/hosts"), f"127.0.0.1 localhost\n127.0.1.1 {card.name}\n::1 localhost\n")
    if card.board.ssh_key:
        host_key = DATA / "board/ssh_host_ed25519_key"
        host_key.parent.mkdir(mode=0o700, exist_ok=True)
        if not host_key.exists():
            fresh = host_key.with_name("new")
            fresh.unlink(missing_ok=True)
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(fresh))
            fresh.with_name("new.pub").replace(host_key.with_name(f"{host_key.name}.pub"))
            write(host_key, fresh.read_text(), 0o600)
            fresh.unlink()
        write(Path("/root/.ssh/authorized_keys"), card.board.ssh_key.strip() + "\n", 0o600)
    if card.board.wifi:
        write(Path("/etc/wpa_supplicant/wpa_supplicant-wlan0.conf"), cards.supplicant(card.board), 0o600)
        run("systemctl", "start", "--no-block", "wpa_supplicant@wlan0.service")


def main() -> int:
    """Set the board up; the exit status is 0 unless this program has a fault."""
    version = VERSION.read_text().strip()
    good = DATA / "board/last-good.toml"
    problems: list[str] = []
    data = mounted(DATA)
    if data is None:
        problems.append("the data partition cannot be used: nothing outlives a restart; flash the card again")
    else:
        try:
            grow(data)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            problems.append(f"the data partition cannot be grown: {words(error)}")
        try:
            keep_state()
        except (OSError, subprocess.SubprocessError) as error:
            problems.append(f"the data partition cannot be used, nothing outlives a restart: {words(error)}")
    fallback, whose = (good, "of the last start") if good.exists() else (SHIPPED, "as shipped")
    if mounted(FAT) is None:
        problems.append("the FAT partition cannot be used: flash the card again")
    card = cards.read(FAT, fallback.read_text(), whose)
    problems += card.problems
    try:
        set_up(card)
        if card.taken:
            write(good, card.config, 0o600)
    except (OSError, subprocess.SubprocessError) as error:
        problems.append(f"this board cannot be set up as {cards.FILE} says: {words(error)}")
    write(PROBLEMS, "".join(f"{problem}\n" for problem in problems))
    text = told(card, version, problems)
    write(Path("/etc/issue"), text.replace("\\", "\\\\").replace("\r\n", "\n") + "addresses: \\4 \\6\n\n")
    sys.stdout.write(text.replace("\r\n", "\n"))
    says = FAT / SAYS
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if mounted(FAT) and (not says.exists() or says.read_bytes() != text.encode()):
            with writable(FAT):
                write(says, text)
    return 0


def words(error: Exception) -> str:
    """What a program said that failed."""
    output = getattr(error, "output", None)
    return f"{error}: {output.strip()}" if output else str(error)
