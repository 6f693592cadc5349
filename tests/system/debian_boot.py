"""A small Debian with systemd as its first process, in namespaces and a control group of its own. Needs root."""

import contextlib
import os
import platform
import shutil
import signal
import subprocess
from pathlib import Path

from tests.system.debian_root import PACKAGES, TIMEOUT_S, DebianRoot
from tests.system.onboard_process import until

SYSTEMD = ("systemd", "systemd-sysv", "dbus")
BOOT = """
set -eu
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /lib/systemd/systemd --show-status=no
"""


def control_groups() -> Path | None:
    """Where this machine's version 2 of control groups is, if anywhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(place, os.W_OK):
            return Path(place)
    return None


class Booted:
    """See the module; of this machine's own architecture."""

    def __init__(self, folder: Path, release: str, groups: Path) -> None:
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
        self.root = DebianRoot(folder, release, architecture, packages=(*PACKAGES, *SYSTEMD)).root
        (self.root / "etc/machine-id").touch()
        self._group = groups / f"hadanet-test-{os.getpid()}"
        self._group.mkdir()
        enter = f'echo $$ > "{self._group}/cgroup.procs" && exec "$@"'
        apart = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]
        self._process = subprocess.Popen(
            ["sh", "-c", enter, "sh", *apart, "sh", "-c", BOOT, "sh", str(self.root)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: self.pids("/lib/systemd/systemd"), "systemd does not start")
        until(lambda: "running" in self.run("systemctl", "is-system-running", status=None), "it does not come up")

    def pids(self, *words: str) -> list[int]:
        """The processes in there, as this machine counts them, whose command line has all these words."""
        found = []
        for path in self._group.rglob("cgroup.procs"):
            for pid in path.read_text().split():
                with contextlib.suppress(OSError):  # it has ended
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                    if command[0] != "unshare" and set(words) <= set(command):
                        found.append(int(pid))
        return sorted(found)

    def run(self, *command: object, status: int | None = 0) -> str:
        """The output of a command in there, errors included. It must end with `status`, unless that is None."""
        first = self.pids("/lib/systemd/systemd")[0]
        done = subprocess.run(
            ["nsenter", f"--target={first}", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wd",
             "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", *map(str, command)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert status is None or done.returncode == status, (
            f"{command}: status {done.returncode}: {done.stdout[-3000:]}"
        )
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", unit, "--value", "--property", name).strip()

    def close(self) -> None:
        """Kill everything in there, and take the control group away."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        until(lambda: not self.pids(), "processes stay")
        for folder in sorted((path for path in self._group.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        self._group.rmdir()


def why_not() -> str:
    """Why this machine cannot boot one; empty where it can."""
    if os.geteuid() or control_groups() is None:
        return "needs root and control groups of version 2"
    missing = [name for name in ("unshare", "nsenter", "apt-get", "dpkg-deb") if shutil.which(name) is None]
    return f"{missing[0]} is not installed" if missing else ""
