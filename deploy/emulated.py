"""Runs a command in namespaces of its own, in which the kernel starts programs for Arm by our qemu. Needs root.

Nothing is registered with, or installed on, this machine: the registration lives and ends with the namespaces, so two
of them do not see each other. The kernel must be 6.7 or newer, or this machine an Arm machine, which needs no qemu.
"""

import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.arm_tree import ArmTree, ArmTreeError

NAME = "qemu-aarch64"
"""What mmdebstrap, and whoever else looks, expects the registration to be called."""
ARM_PROGRAM = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
)
"""First bytes, and which bits of them count."""
MAPPED = 'read -r _ && exec "$@"'
"""Waits for the user namespace to know its users; a program started after that has root's powers in it."""
ENTER = """
set -eu
register=$1; shift
mount -t proc proc /proc
if [ -n "$register" ]; then
    mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
    printf %s "$register" > /proc/sys/fs/binfmt_misc/register
fi
exec "$@"
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_S = 20.0


def registration(tree: ArmTree) -> str:
    """The line that the kernel is told; "" on an Arm machine."""
    if platform.machine() == "aarch64":
        return ""
    return f":{NAME}:M::{ARM_PROGRAM}:{tree.folder}/host/usr/bin/{NAME}:PF"


def run_in(
    register: str, command: Sequence[str], timeout_s: float, environment: Mapping[str, str], cpu: str = "cortex-a72"
) -> subprocess.CompletedProcess[str]:
    """Run a command in the namespaces, errors in its output; only `environment` and PATH are passed on.

    register: of `registration`, or "" where every program is this machine's own. cpu: that programs for Arm find.
    """
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh", register, *command]
    process = subprocess.Popen(
        ["unshare", "--user", "sh", "-c", MAPPED, "sh", *apart],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={"PATH": PATH, "LC_ALL": "C.UTF-8", "QEMU_CPU": cpu, **environment},
    )
    try:
        _map_users(process.pid)
        output, _ = process.communicate("\n", timeout_s)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(list(command), process.returncode, output)


def _map_users(pid: int) -> None:
    """Every user is the same user in the new namespace."""
    ours, end = os.readlink("/proc/self/ns/user"), time.monotonic() + START_S
    while os.readlink(f"/proc/{pid}/ns/user") == ours:
        if time.monotonic() > end:
            raise ArmTreeError("no user namespace: this kernel or its settings do not allow one")
        time.sleep(0.01)
    try:
        for kind in ("uid", "gid"):
            Path(f"/proc/{pid}/{kind}_map").write_text("0 0 65536\n")
    except OSError as error:
        raise ArmTreeError(f"no users in a namespace: {error.strerror}; this needs root") from error
