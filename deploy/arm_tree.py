"""`python -m deploy.arm_tree`: an Arm Python with our wheels, an emulator for it and a cost model, in one folder.

Debian's packages and the aarch64 wheels are downloaded and unpacked, nothing of them is installed or run, so neither
root nor an Arm machine is needed: `host/` holds qemu-user and llvm-mca for this machine, `arm/` a root with Python for
AArch64. The folder is `HADANET_ARM`, or `hadanet-arm` in the user's cache; about 200 MB to download, 900 MB unpacked.
Packages come from the Debian mirror that this machine's apt knows, or from `--mirror`.
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from models.errors import HadanetError

RELEASE = "trixie"  # has qemu 10 (ONNX Runtime crashes under 7.2) and the LLVM of llvmlite 0.50
LLVM = "22"
ARM_PYTHON = "3.13"
HOST_PACKAGES = ("qemu-user", f"llvm-{LLVM}")
ARM_PACKAGES = (f"python{ARM_PYTHON}", "libstdc++6", "libgomp1")
WHEELS = ("numpy", "numba", "hypothesis", "pytest", "msgspec", "safetensors")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
DOWNLOAD_S = 1800
UNPACK_S = 120

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"


class ArmTreeError(HadanetError):
    """The folder cannot be made, or is not there."""


class ArmTree(NamedTuple):
    """What lies in the folder, ready to use."""

    folder: Path

    def host(self, program: str) -> list[str]:
        """The beginning of a command line that runs a program of `host/` with the libraries it was linked against."""
        root = self.folder / "host"
        triplet = f"{platform.machine()}-linux-gnu"
        libraries = f"{root}/usr/lib/{triplet}:{root}/usr/lib/llvm-{LLVM}/lib"
        loader = next((root / "usr").glob("lib*/ld-linux-*.so.*"))
        return [str(loader), "--library-path", libraries, str(root / program)]

    def mca(self) -> list[str]:
        """The beginning of a command line of llvm-mca."""
        return self.host(f"usr/lib/llvm-{LLVM}/bin/llvm-mca")

    def python(self, cpu: str) -> list[str]:
        """The beginning of a command line of the Arm Python on that CPU of qemu (cortex-a72, cortex-a76 ...)."""
        root = self.folder / "arm"
        return [*self.host("usr/bin/qemu-aarch64"), "-L", str(root), "-cpu", cpu, f"{root}/usr/bin/python{ARM_PYTHON}"]

    def environment(self) -> dict[str, str]:
        """For `python`: this process's environment without what concerns its own Python; our wheels are found.

        Bytecode goes into the folder: without it each start takes seconds more.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return kept | {"PYTHONPATH": f"{self.folder}/wheels:{ROOT}", "PYTHONPYCACHEPREFIX": f"{self.folder}/pycache"}


def default_folder() -> Path:
    """`HADANET_ARM`, else in the user's cache."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return Path(os.environ.get("HADANET_ARM") or users / "hadanet-arm")


def contents() -> str:
    """A hash of what belongs into the folder: another one means that it has to be made again."""
    named = repr((RELEASE, HOST_PACKAGES, ARM_PACKAGES, WHEELS, PLATFORMS))
    return hashlib.sha256(named.encode() + LOCK.read_bytes()).hexdigest()


def find(folder: Path | None = None) -> ArmTree:
    """The folder made by `build`. Raises ArmTreeError where it is missing or out of date."""
    folder = folder or default_folder()
    stamp = folder / "contents"
    if not stamp.exists():
        raise ArmTreeError(f"{folder}: no Arm tree; `python -m deploy.arm_tree` makes it")
    if stamp.read_text() != contents():
        raise ArmTreeError(f"{folder}: the Arm tree is of another version; `python -m deploy.arm_tree` makes it anew")
    return ArmTree(folder)


def run(command: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None) -> str:
    """The output of a command; its last words in an ArmTreeError where it fails."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ArmTreeError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise ArmTreeError(f"{' '.join(command[:2])} ...: status {done.returncode}: {done.stdout.strip()[-500:]}")
    return done.stdout


def mirror() -> str:
    """The address of the Debian mirror in this machine's apt configuration."""
    targets = run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"], UNPACK_S).split()
    if not targets:
        raise ArmTreeError("apt: no source of packages is configured; name a Debian mirror with --mirror")
    return targets[0]


def unpack_packages(
    site: str, architecture: str, packages: Sequence[str], work: Path, root: Path, release: str = RELEASE
) -> None:
    """Download packages with all they depend on, and unpack them into `root`. apt keeps its state in `work`."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (work / part).mkdir(parents=True)
    (work / "status").touch()  # nothing is installed there
    (work / "sources").write_text(f"deb {site} {release} main\n")
    settings = {
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "Dir::Etc::sourcelist": work / "sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    run([*apt, "update", "--error-on=any"], DOWNLOAD_S)
    run([*apt, "--yes", "--no-install-recommends", "--download-only", "install", *packages], DOWNLOAD_S)
    for name in ("lib", "bin", "sbin", "lib64"):  # as in Debian's base-files, which needs more than unpacking
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in sorted((work / "cache/archives").glob("*.deb")):
        run(["dpkg-deb", "--extract", str(package), str(root)], UNPACK_S)


def unpack_wheels(target: Path, wheels: Sequence[str] = WHEELS, platforms: Sequence[str] = PLATFORMS) -> None:
    """Wheels with all they depend on for that Python on those platforms, in the versions of requirements.lock."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), "--only-binary", ":all:"]
    for name in platforms:
        command += ["--platform", name]
    command += ["--implementation", "cp", "--python-version", ARM_PYTHON, "--no-compile", "--constraint", str(LOCK)]
    run([*command, *wheels], DOWNLOAD_S)


def build(folder: Path, site: str) -> ArmTree:
    """Make the folder; what was there before is replaced at the end, and only where it was a tree of ours."""
    if folder.exists() and not (folder / "contents").exists():
        raise ArmTreeError(f"{folder}: exists and is not an Arm tree; remove it or set HADANET_ARM to another folder")
    debian = re.sub("x86_64", "amd64", platform.machine()).replace("aarch64", "arm64")
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        unpack_packages(site, debian, HOST_PACKAGES, fresh / "apt-host", fresh / "host")
        unpack_packages(site, "arm64", ARM_PACKAGES, fresh / "apt-arm", fresh / "arm")
        unpack_wheels(fresh / "wheels")
        for work in ("apt-host", "apt-arm"):
            shutil.rmtree(fresh / work)
        (fresh / "contents").write_text(contents())
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return ArmTree(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the folder where it is missing or out of date."""
    parser = argparse.ArgumentParser(prog="python -m deploy.arm_tree", description=__doc__)
    parser.add_argument("--mirror", metavar="URL", help="of Debian packages; default: this machine's own")
    chosen = parser.parse_args(arguments)
    try:
        tree = find()
    except ArmTreeError:
        tree = build(default_folder(), chosen.mirror or mirror())
    print(tree.folder)  # noqa: T201
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HadanetError as error:
        sys.exit(f"arm_tree: {error}")
