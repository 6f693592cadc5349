"""The Debian of the image: kernel, the Raspberry Pi's firmware, systemd, Wi-Fi, ssh; made by mmdebstrap, with our
package and its kernels compiled for the boards' processors. Programs for Arm run under emulation; needs root.
"""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

from deploy.arm_tree import ROOT, ArmTree, ArmTreeError, run
from deploy.deb.package import PREFIX, PYTHON
from deploy.emulated import registration, run_in
from deploy.image.card import without_board

RELEASE = "bookworm"
PACKAGES = (
    "dbus", "dosfstools", "e2fsprogs", "fdisk", "firmware-brcm80211", "init-system-helpers",
    "initramfs-tools", "iproute2", "iputils-ping", "kmod", "less", "libnss-resolve", "linux-image-arm64",
    "openssh-server", "passwd", "procps", "raspi-firmware", "systemd", "systemd-resolved", "systemd-sysv",
    "systemd-timesyncd", "udev", "wireless-regdb", "wpasupplicant", "zstd",
)  # fmt: skip
COMPONENTS = "main non-free-firmware"
LEFT_OUT = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/doc/*")
KEPT = ("/usr/share/doc/*/copyright",)
OURS = ROOT / "deploy/image/root"
"""Files as they lie in the image."""
PROGRAMS = ("board.py", "card.py")
"""Of deploy/image: what runs on the board."""
KERNELS = OURS / "usr/lib/hadanet/kernels.env"
"""The processor that kernels are compiled for, as variables."""
KERNELS_OF = ("convolution", "matching", "packing", "rangecoder", "shrink", "sums", "threads", "whole")
"""Modules whose kernels a flight uses."""
INITRAMFS = "usr/share/initramfs-tools"
CARD = ROOT / "deploy/image/hadanet.toml"
"""The configuration as shipped."""
CMDLINE = ROOT / "deploy/image/cmdline.txt"
"""The kernel's."""
ENABLED = ("hadanet-board", "systemd-networkd", "systemd-resolved", "systemd-timesyncd", "ssh")
KERNELS_FLIGHT = "sim://?seed=3&frames=6"
"""Flown once when the image is made, so that kernels are compiled and kept; too short to learn something,"""
KERNELS_CHANGE = """
from models import delta
from onboard.worker import initial_model
base = initial_model("", ("a", "b"))
new = base.with_tensors({"head.bias": base.tensors["head.bias"] + 1})
assert delta.apply(base, delta.encode(base, new)).hash == new.hash
"""
"""which is done by hand: under emulation, a replay waits for a learner in vain."""
DEBIAN_S, INSTALL_S = 3600, 1800
CHROOT = """
set -eu
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$@"
"""


def sources(mirror: str) -> list[str]:
    """Lines for apt: the release with its updates, and security where this machine's apt knows a mirror of it."""
    sites = run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"], 60).split()
    lines = [f"deb {mirror} {suite} {COMPONENTS}" for suite in (RELEASE, f"{RELEASE}-updates")]
    security = next((site for site in sites if site.rstrip("/").endswith("-security")), "")
    return [*lines, f"deb {security} {RELEASE}-security {COMPONENTS}"] if security else lines


def make_debian(tree: ArmTree, lines: list[str], root: Path) -> None:
    """A Debian with PACKAGES in `root`, its initramfs with our overlay."""
    hook = root.with_name("hook")
    hook.write_text(
        f'#!/bin/sh\nset -eu\nmkdir -p "$1/boot/firmware" "$1/{INITRAMFS}"\n'
        f'cp -r "{OURS}/{INITRAMFS}/." "$1/{INITRAMFS}/"\nchmod -R go+rX "$1/{INITRAMFS}"\n'
    )
    hook.chmod(0o755)
    command = [
        "mmdebstrap", "--mode=root", "--architectures=arm64", "--variant=essential", "--skip=check/qemu",
        f"--include={','.join(PACKAGES)}", f"--extract-hook={hook}", '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT), *(f"--dpkgopt=path-include={path}" for path in KEPT),
        RELEASE, str(root), *lines,
    ]  # fmt: skip
    done = run_in(registration(tree), command, DEBIAN_S, {"DEBIAN_FRONTEND": "noninteractive", "HOME": "/tmp"})
    if done.returncode:
        raise ArmTreeError(f"mmdebstrap: status {done.returncode}: {done.stdout.strip()[-3000:]}")
    hook.unlink()


def inside(tree: ArmTree, root: Path, *command: str, user: str = "root", more: Mapping[str, str] | None = None) -> str:
    """The output of a program of the image, run under emulation."""
    environment = {"DEBIAN_FRONTEND": "noninteractive", "HOME": "/tmp", **(more or {})}
    enter = ["sh", "-c", CHROOT, "sh", str(root), f"--userspec={user}:{user}", str(root), *command]
    done = run_in(registration(tree), enter, INSTALL_S, environment)
    if done.returncode:
        raise ArmTreeError(f"{' '.join(command[:3])}: status {done.returncode}: {done.stdout.strip()[-3000:]}")
    return done.stdout


def install(tree: ArmTree, root: Path, package: Path) -> None:
    """Our package in a Debian of `make_debian`."""
    shutil.copy(package, root / "tmp/hadanet.deb")
    inside(tree, root, "dpkg", "--install", "/tmp/hadanet.deb")
    (root / "tmp/hadanet.deb").unlink()


def compile_kernels(tree: ArmTree, root: Path) -> None:
    """Fly a moment in there: compiled kernels stay in /var/cache/hadanet, for the processor that kernels.env names."""
    cache = root / "var/cache/hadanet"
    inside(tree, root, "install", "-d", "-o", "hadanet", "-g", "hadanet", "-m", "0700", "/var/cache/hadanet")
    named = dict(re.findall(r"(?m)^(\w+)=(.*)$", KERNELS.read_text()))
    for command in (["bin/onboard", "replay", KERNELS_FLIGHT], [f"usr/bin/{PYTHON}", "-I", "-c", KERNELS_CHANGE]):
        program = f"/{PREFIX}/{command[0]}"
        more = {**named, "NUMBA_CACHE_DIR": "/var/cache/hadanet"}
        inside(tree, root, program, *command[1:], user="hadanet", more=more)
    for module in KERNELS_OF:
        if not list(cache.rglob(f"{module}.*.nbc")):
            raise ArmTreeError(f"{cache}: no compiled kernels of {module}: the flight did not come to use them")


def set_up(tree: ArmTree, root: Path, version: str) -> None:
    """Our own files in a root of `install`: the set-up from the FAT partition, mounts, the network, who may log in."""
    subprocess.run(["cp", "-r", "--no-preserve=ownership,mode", f"{OURS}/.", str(root)], check=True)
    programs = root / "usr/lib/hadanet"
    (programs / "deploy/image").mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        shutil.copy(ROOT / "deploy/image" / name, programs / "deploy/image" / name)
    (programs / "version").write_text(version + "\n")
    shipped = CARD.read_text()
    (programs / "shipped.toml").write_text(without_board(shipped, tomllib.loads(shipped)))
    for program in (programs / "board", root / INITRAMFS / "scripts/init-bottom/hadanet-overlay"):
        program.chmod(0o755)
    for unit in ENABLED:
        inside(tree, root, "systemctl", "enable", unit)
    for place in ("data", "boot/firmware", "var/lib/hadanet"):
        (root / place).mkdir(parents=True, exist_ok=True)
    (root / "etc/machine-id").write_text("")  # each start makes one of its own
    for path in (root / "etc/ssh").glob("ssh_host_*"):
        path.unlink()  # else all boards had the same
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")


def clean(root: Path) -> None:
    """What an image that is never changed does not need."""
    for place in ("var/cache/apt", "var/lib/apt/lists", "var/log", "tmp", "run", "dev", "proc", "sys"):
        for path in (root / place).iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for path in (root / "boot").iterdir():  # the firmware starts them from the FAT partition
        if path.name.startswith(("vmlinuz", "initrd")):
            path.unlink()


def fill_fat(root: Path, fat: Path) -> None:
    """What the firmware reads, out of the root; with the configuration that a person writes."""
    fat.mkdir()
    for path in sorted((root / "boot/firmware").iterdir()):
        shutil.move(path, fat / path.name)
    for path in (CARD, CMDLINE):
        shutil.copy(path, fat / path.name)


def fill_data(root: Path, data: Path) -> None:
    """The folders of the data partition, owned as the root's users want it."""
    users = dict(re.findall(r"(?m)^([^:]+):[^:]*:(\d+:\d+):", (root / "etc/passwd").read_text()))
    data.mkdir()
    for name, user in (("hadanet", "hadanet"), ("board", "root")):
        (data / name).mkdir()
        (data / name).chmod(0o700)
        uid, gid = map(int, users[user].split(":"))
        os.chown(data / name, uid, gid)
