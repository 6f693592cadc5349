"""A small Debian, of any release and for any processor, to install packages in: unpacked from its packages, entered by
`chroot` in namespaces of its own, in which the kernel starts programs for Arm by qemu. Needs root.
"""

import hashlib
import os
import platform
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploy.arm_tree import find, mirror, run, unpack_packages
from tests.system.onboard_process import until

PACKAGES = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "dpkg", "findutils", "grep",
    "init-system-helpers", "libc-bin", "passwd", "perl-base", "sed", "tar", "util-linux",
)  # fmt: skip
"""Those that every Debian has, as far as installing a package takes."""
TIMEOUT_S = 900
MAPPED = 'read -r _ && exec "$@"'
"""Waits for the user namespace to know its users; a program started after that has root's powers in it."""
ENTER = """
set -eu
root=$1; register=$2; shift 2
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
if [ -n "$register" ]; then
    mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
    printf %s "$register" > /proc/sys/fs/binfmt_misc/register
fi
exec "$@"
"""
ARM_PROGRAM = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
)
"""First bytes, and which bits of them count."""
NOISE = ("var/lib/dpkg/", "var/log/", "var/backups/", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-")
"""What dpkg and useradd write of their own in any case: their databases, logs and the copies before a change."""


class DebianRoot:
    """See the module. `cpu`: of qemu, where the architecture is not this machine's."""

    def __init__(
        self,
        folder: Path,
        release: str,
        architecture: str,
        cpu: str = "cortex-a72",
        packages: Sequence[str] = PACKAGES,
    ) -> None:
        self.root = folder / "root"
        self._cpu, self._register = cpu, ""
        if architecture == "arm64" and platform.machine() != "aarch64":
            qemu = find().folder / "host/usr/bin/qemu-aarch64"
            self._register = f":hadanet-arm:M::{ARM_PROGRAM}:{qemu}:PF"
        work = folder / "apt"
        unpack_packages(mirror(), architecture, packages, work, self.root, release)
        self._pretend_installed(sorted((work / "cache/archives").glob("*.deb")))
        shutil.rmtree(work)
        for name in ("passwd", "group"):
            shutil.copy(self.root / f"usr/share/base-passwd/{name}.master", self.root / "etc" / name)
        for name in ("proc", "dev", "sys", "run", "tmp"):
            (self.root / name).mkdir(exist_ok=True)
        (self.root / "tmp").chmod(0o1777)
        self.run("pwconv")
        self.run("grpconv")

    def _pretend_installed(self, packages: list[Path]) -> None:
        """dpkg's own list: unpacked is as good as installed, for what a package may depend on."""
        status = "".join(
            run(["dpkg-deb", "--field", str(package)], TIMEOUT_S).rstrip() + "\nStatus: install ok installed\n\n"
            for package in packages
        )
        for part in ("info", "updates"):
            (self.root / "var/lib/dpkg" / part).mkdir(parents=True, exist_ok=True)
        (self.root / "var/lib/dpkg/status").write_text(status)
        for package in packages:
            names = run(["dpkg-deb", "--field", str(package), "Package", "Architecture", "Multi-Arch"], TIMEOUT_S)
            fields = dict(line.split(": ", 1) for line in names.splitlines())
            same = f":{fields['Architecture']}" if fields.get("Multi-Arch") == "same" else ""
            (self.root / f"var/lib/dpkg/info/{fields['Package']}{same}.list").touch()

    def run(self, *command: object, user: str = "root", status: int = 0) -> str:
        """The output of a command in there, errors included. It must end with `status`."""
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "QEMU_CPU": self._cpu,
            "HOME": "/tmp",
            "NUMBA_CACHE_DIR": "/var/cache/hadanet",
        }
        inside = ["chroot", f"--userspec={user}:{user}", str(self.root), *map(str, command)]
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh"]
        process = subprocess.Popen(
            ["unshare", "--user", "sh", "-c", MAPPED, "sh", *enter, str(self.root), self._register, *inside],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        try:
            self._map_users(process.pid)
            output, _ = process.communicate("\n", TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == status, f"{command}: status {process.returncode}: {output[-3000:]}"
        return output

    def _map_users(self, pid: int) -> None:
        """Every user is the same user in the new namespace."""
        ours = os.readlink("/proc/self/ns/user")
        until(lambda: os.readlink(f"/proc/{pid}/ns/user") != ours, "no user namespace")
        for kind in ("uid", "gid"):
            Path(f"/proc/{pid}/{kind}_map").write_text("0 0 65536\n")

    def files(self) -> dict[str, str]:
        """Everything that lies in there, with its mode, owner and content."""
        found = {}
        for folder, folders, names in os.walk(self.root):
            for path in (Path(folder) / name for name in [*folders, *names]):
                name, about = str(path.relative_to(self.root)), path.lstat()
                content = ""
                if stat.S_ISREG(about.st_mode):
                    content = hashlib.sha256(path.read_bytes()).hexdigest()
                elif stat.S_ISLNK(about.st_mode):
                    content = os.readlink(path)
                if not name.startswith(NOISE):
                    found[name] = f"{about.st_mode:o} {about.st_uid}:{about.st_gid} {content}"
        return found
