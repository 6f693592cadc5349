"""A small Debian, of any release and for any processor, to install packages in: unpacked from its packages, entered by
`chroot` in namespaces of its own, in which the kernel starts programs for Arm by qemu. Needs root.
"""

import hashlib
import os
import platform
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from deploy.arm_tree import find, mirror, run, unpack_packages
from deploy.emulated import registration, run_in

PACKAGES = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "dpkg", "findutils", "grep",
    "init-system-helpers", "libc-bin", "passwd", "perl-base", "sed", "tar", "util-linux",
)  # fmt: skip
"""Those that every Debian has, as far as installing a package takes."""
TIMEOUT_S = 900
ENTER = """
set -eu
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec "$@"
"""
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
            self._register = registration(find())
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
        home = {"root": "/root"}.get(user, f"/var/lib/{user}")
        environment = {"DEBIAN_FRONTEND": "noninteractive", "HOME": home, "NUMBA_CACHE_DIR": "/var/cache/hadanet"}
        inside = ["chroot", f"--userspec={user}:{user}", str(self.root), *map(str, command)]
        enter = ["sh", "-c", ENTER, "sh", str(self.root), *inside]
        done = run_in(self._register, enter, TIMEOUT_S, environment, self._cpu)
        assert done.returncode == status, f"{command}: status {done.returncode}: {done.stdout[-3000:]}"
        return done.stdout

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
