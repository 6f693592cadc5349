"""`deploy/deb/build`: the self-contained Debian package, everything in /opt/hadanet, for arm64 or amd64.

It holds Debian's Python with its C library, and all wheels, so that one file runs on Debian 11 to 13, Ubuntu 20.04 and
newer, and JetPack, whatever Python they have. Python's program file names the loader and the libraries in /opt/hadanet:
it is started like any other program, and itself starts programs of the computer (gst-launch-1.0). Nothing of the other
architecture is run to build it, and neither root nor an installation is needed. CPU only.

Downloads are kept in `HADANET_DEB`, or `hadanet-deb` in the user's cache.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.arm_tree import ARM_PYTHON, LOCK, PLATFORMS, RELEASE, ROOT, ArmTree, mirror, run, unpack_packages
from deploy.arm_tree import unpack_wheels as download_wheels
from models.errors import HadanetError

PREFIX = "opt/hadanet"
PYTHON = f"python{ARM_PYTHON}"
PACKAGES = (PYTHON, "libstdc++6", "libgomp1")
HOST_PACKAGES = (PYTHON, "patchelf")
PRELOADED = ("libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1")
"""What wheels link to and do not bring. Python loads it, so that no wheel finds the computer's own, older one."""
OURS = ("models", "link", "onboard", "ground")
EXTRAS = ("plot",)
COMMANDS = {"onboard": "onboard.cli", "ground": "ground.cli", "hadanet": "models.cli"}
UNITS = {"arm64": "hadanet-onboard.service", "amd64": "hadanet-ground.service"}
"""The unit that is enabled: a board flies, a laptop is the ground station. Both units are there on both."""
NOT_FLOWN = ("onnxruntime",)
"""Of our requirements: training and export need it, which are not in the package. Where it is imported it writes a
number of this computer and a database of what it did into the user's cache.
"""
UNUSED = ("bin", "*/tests", "zstandard/_cffi*")
"""Of the wheels."""
PRUNED = (
    "etc", "var", "bin", "sbin", "lib", "lib64", "usr/bin/[!p]*", "usr/bin/p[!y]*", "usr/bin/py[!t]*", "usr/sbin",
    "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug", "usr/share/doc-base", "usr/share/info",
    "usr/share/perl5", "usr/share/debconf", "usr/share/applications", "usr/share/pixmaps", "usr/share/binfmts",
    "usr/share/doc/*/[!c]*", "usr/share/doc/*/c[!o]*", "usr/lib/*/gconv", "usr/lib/*/audit", "usr/lib/locale",
    "usr/lib/systemd", *(f"usr/lib/python3/dist-packages/{name}" for name in UNUSED),
)  # fmt: skip
"""Left out: what a Python without a shell does not read. The licences of all parts stay in usr/share/doc."""
MAX_BYTES = 200_000_000
UNPACK_S = 900


class DebError(HadanetError):
    """The package cannot be built."""


class Architecture(NamedTuple):
    """What Debian and the wheels call a processor. loader: of its C library, below usr/lib."""

    debian: str
    machine: str
    loader: str

    @property
    def libraries(self) -> str:
        """Where Debian keeps its libraries, below usr."""
        return f"lib/{self.machine}-linux-gnu"

    @property
    def platforms(self) -> tuple[str, ...]:
        """The tags of wheels that run there."""
        return tuple(name.replace("aarch64", self.machine) for name in PLATFORMS)


ARCHITECTURES = {
    "arm64": Architecture("arm64", "aarch64", "ld-linux-aarch64.so.1"),
    "amd64": Architecture("amd64", "x86_64", "ld-linux-x86-64.so.2"),
}


def default_cache() -> Path:
    """`HADANET_DEB`, else in the user's cache."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return Path(os.environ.get("HADANET_DEB") or users / "hadanet-deb")


def project() -> dict[str, object]:
    """The table `project` of pyproject.toml."""
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def requirements() -> list[str]:
    """What the package needs beside ourselves."""
    table = project()
    extras = table["optional-dependencies"]
    assert isinstance(extras, dict)
    needed = [*table["dependencies"], *(name for extra in EXTRAS for name in extras[extra])]  # type: ignore[misc]
    return [text for text in needed if re.match(r"[\w.-]+", text)[0] not in NOT_FLOWN]  # type: ignore[index]


def contents(architecture: Architecture) -> str:
    """A hash of what belongs into the part that is not ours: where it is the same, it is used again."""
    named = repr((RELEASE, PACKAGES, HOST_PACKAGES, requirements(), architecture, PRUNED, PRELOADED))
    return hashlib.sha256(named.encode() + LOCK.read_bytes()).hexdigest()


def base(architecture: Architecture, cache: Path, site: str) -> ArmTree:
    """The folder with Debian's Python (`root`), the wheels in it, and the tools that build (`host`)."""
    folder = cache / architecture.debian
    stamp = folder / "contents"
    if stamp.exists() and stamp.read_text() == contents(architecture):
        return ArmTree(folder)
    if folder.exists() and not stamp.exists():
        raise DebError(f"{folder}: exists and is not ours; remove it or set HADANET_DEB to another folder")
    fresh = cache / f"{architecture.debian}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        host = run(["dpkg", "--print-architecture"], UNPACK_S).strip()
        site = site or mirror()
        unpack_packages(site, host, HOST_PACKAGES, fresh / "apt-host", fresh / "host")
        unpack_packages(site, architecture.debian, PACKAGES, fresh / "apt", fresh / "root")
        modules = fresh / "root/usr/lib/python3/dist-packages"
        download_wheels(modules, requirements(), architecture.platforms)
        for work in ("apt-host", "apt"):
            shutil.rmtree(fresh / work)
        prune(fresh / "root")
        tree = ArmTree(fresh)
        bind(tree, architecture)
        compile_modules(tree, fresh / "root/usr/lib", f"/{PREFIX}/usr/lib")
        stamp = fresh / "contents"
        stamp.write_text(contents(architecture))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return ArmTree(folder)


def prune(root: Path) -> None:
    """Take out what PRUNED names, and links that lead nowhere after it."""
    for pattern in PRUNED:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for path in root.rglob("*"):
        if path.is_symlink() and not path.exists():
            path.unlink()


def bind(tree: ArmTree, architecture: Architecture) -> None:
    """Have Python's program file name the loader and the libraries below PREFIX; none of the computer's own."""
    program = tree.folder / "root/usr/bin" / PYTHON
    libraries = f"/{PREFIX}/usr/{architecture.libraries}"
    if not (tree.folder / "root/usr" / architecture.libraries / architecture.loader).exists():
        raise DebError(f"{architecture.loader} is not in Debian's libc6 of {RELEASE}: its place has changed")
    edits = ["--force-rpath", "--set-rpath", libraries]
    for name in PRELOADED:
        edits += ["--add-needed", name]
    patchelf = tree.host("usr/bin/patchelf")
    run([*patchelf, *edits, str(program)], UNPACK_S)
    # by itself: patchelf 0.18 fails on amd64 where it does both at once
    run([*patchelf, "--set-interpreter", f"{libraries}/{architecture.loader}", str(program)], UNPACK_S)


def compile_modules(tree: ArmTree, folder: Path, installed: str) -> None:
    """Bytecode, the same for all processors: the daemon cannot write into its own folder, and starts faster with it.

    installed: where the folder will lie, for tracebacks. One process: others would lack the loader of `host`.
    """
    python = tree.host(f"usr/bin/{PYTHON}")
    options = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", installed]
    # some packages bring files for Python 2 or templates, which do not compile
    done = subprocess.run(
        [*python, "-I", "-m", "compileall", *options, str(folder)], capture_output=True, text=True, timeout=UNPACK_S
    )
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        raise DebError(f"compileall: status {done.returncode}: {done.stderr.strip()[-500:]}")


def add_ourselves(modules: Path) -> list[Path]:
    """Our own packages, copied below `modules`; where they lie there."""
    skip = shutil.ignore_patterns("__pycache__")
    return [Path(shutil.copytree(ROOT / name, modules / name, ignore=skip)) for name in OURS]


def write_commands(tree: Path) -> None:
    """The programs in PREFIX/bin, and links to them in /usr/bin."""
    (tree / PREFIX / "bin").mkdir()
    (tree / "usr/bin").mkdir(parents=True)
    for name, module in COMMANDS.items():
        program = tree / PREFIX / "bin" / name
        # variables of another Python (ROS sets them) must reach neither us nor the processes that we start
        program.write_text(
            f"#!/{PREFIX}/usr/bin/{PYTHON} -I\n"
            "import os\nimport sys\n\n"
            'for name in [name for name in os.environ if name.startswith("PYTHON")]:\n'
            "    del os.environ[name]\n"
            f"from {module} import main  # noqa: E402\n\n"
            "sys.exit(main())\n"
        )
        program.chmod(0o755)
        (tree / "usr/bin" / name).symlink_to(f"/{PREFIX}/bin/{name}")


def lay_out(tree: Path, found: ArmTree) -> None:
    """What was downloaded and our own packages, below `tree`."""
    shutil.copytree(found.folder / "root", tree / PREFIX, symlinks=True)
    modules = tree / PREFIX / "usr/lib/python3/dist-packages"
    for ours in add_ourselves(modules):
        compile_modules(found, ours, f"/{PREFIX}/usr/lib/python3/dist-packages/{ours.name}")


def finish(tree: Path, architecture: Architecture, version: str) -> None:
    """Commands, units, configuration and control files around what lies below `tree`."""
    write_commands(tree)
    units = tree / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for unit in UNITS.values():
        shutil.copy(ROOT / "deploy/systemd" / unit, units)
    (tree / "etc/hadanet").mkdir(parents=True)
    shutil.copy(ROOT / "deploy/onboard.toml", tree / "etc/hadanet")
    docs = tree / "usr/share/doc/hadanet"
    docs.mkdir(parents=True)
    shutil.copy(ROOT / "LICENSE", docs / "copyright")
    for name in ("deploy.md", "drone.md"):
        shutil.copy(ROOT / "docs" / name, docs)
    for path in tree.rglob("*"):  # whatever the builder's umask is
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    write_control(tree, architecture, version)


def files(tree: Path) -> Iterator[Path]:
    """All files of the package, without its control files."""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink() and "DEBIAN" not in path.relative_to(tree).parts[:1]:
            yield path


def write_control(tree: Path, architecture: Architecture, version: str) -> None:
    """The control files: what dpkg is told, and what it runs."""
    control = tree / "DEBIAN"
    control.mkdir()
    table = project()
    size = sum(path.stat().st_size for path in files(tree)) >> 10
    fields = {
        "Package": "hadanet",
        "Version": version,
        "Architecture": architecture.debian,
        "Maintainer": "hadanet-uav maintainers <maintainers@hadanet-uav.invalid>",
        "Section": "misc",
        "Priority": "optional",
        "Installed-Size": str(size),
        "Depends": "init-system-helpers (>= 1.54~), passwd",
        "Description": f"{table['description']}\n"
        " The onboard daemon and the ground station with everything that they need in\n"
        " /opt/hadanet: their own Python, C library and modules. CPU only.",
    }
    (control / "control").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    (control / "conffiles").write_text("/etc/hadanet/onboard.toml\n")
    sums = (f"{hashlib.md5(p.read_bytes()).hexdigest()}  {p.relative_to(tree)}\n" for p in files(tree))
    (control / "md5sums").write_text("".join(sums))
    for name in ("postinst", "prerm", "postrm"):
        text = (ROOT / "deploy/deb" / name).read_text()
        (control / name).write_text(text.replace("@UNIT@", UNITS[architecture.debian]))
        (control / name).chmod(0o755)


def pack(tree: Path, package: Path, level: int) -> Path:
    """The package of what lies below `tree`; everything belongs to root. level: of xz, 0 to 9."""
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", f"-z{level}", "--build", str(tree), str(package)]
    run(command, UNPACK_S)
    return package


def build(architecture: Architecture, version: str, out: Path, cache: Path, site: str = "", level: int = 6) -> Path:
    """Build the package into the folder `out`; its path. level: of xz, lower is faster and larger."""
    if not re.fullmatch(r"\d[\w.+~]*", version):
        raise DebError(f"--version {version}: must begin with a digit; letters, digits and . + ~ may follow")
    cache.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    found = base(architecture, cache, site)
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as name:
        tree = Path(name) / "tree"
        tree.mkdir(mode=0o755)
        lay_out(tree, found)
        finish(tree, architecture, version)
        package = pack(tree, out / f"hadanet_{version}_{architecture.debian}.deb", level)
    if level >= 6 and package.stat().st_size > MAX_BYTES:
        raise DebError(
            f"{package}: {package.stat().st_size >> 20} MiB, more than {MAX_BYTES // 10**6} MB: leave out more"
        )
    return package


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the package and print its path."""
    parser = argparse.ArgumentParser(prog="deploy/deb/build", description=__doc__)
    parser.add_argument("--arch", choices=ARCHITECTURES, default="arm64", help="(%(default)s)")
    parser.add_argument("--version", default=str(project()["version"]), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER", help="(dist)")
    parser.add_argument("--mirror", default="", metavar="URL", help="of Debian packages; default: this machine's own")
    parser.add_argument("--level", type=int, choices=range(10), default=6, help="of xz (%(default)s)")
    chosen = parser.parse_args(arguments)
    architecture = ARCHITECTURES[chosen.arch]
    try:
        package = build(architecture, chosen.version, chosen.out, default_cache(), chosen.mirror, chosen.level)
    except HadanetError as error:
        sys.stderr.write(f"deb: {error}\n")
        return 1
    print(package)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
