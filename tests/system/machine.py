"""The built image started in qemu: a virtual board with two cores of a Raspberry Pi's kind, a card, and a network in
which there is this machine's ground station and nothing else.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from deploy.image import disk
from tests.system.onboard_process import ROOT

STATION = "tcp://10.0.2.100:5750"
"""Where the drone finds the station; qemu leads it to a port of this machine."""
SSH_S = 60
MEMORY_MB = 1024
"""As a Pi 3 has it."""


def fat(tools, image):
    """The image's FAT partition, as mtools wants it named."""
    return f"{image}@@{disk.places(tools, image)[0].start}"


def put_on_card(tools, image, *paths):
    """What a person does at a laptop: copy files and folders onto the FAT partition."""
    tools.run("usr/bin/mtools", "-c", "mcopy", "-s", "-o", "-i", fat(tools, image), *paths, "::/")


def read_from_card(tools, image, name):
    """The text of a file on the FAT partition; "" where there is none."""
    listed = tools.run("usr/bin/mtools", "-c", "mdir", "-b", "-i", fat(tools, image), "::/")
    if f"::/{name}" not in listed.split():
        return ""
    return tools.run("usr/bin/mtools", "-c", "mtype", "-i", fat(tools, image), f"::/{name}")


def free_port():
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Machine:
    """See the module. `write_log`: a file that every write of the card and every flush is noted in, in order."""

    def __init__(self, tools, image, folder, station_port=1, key=None, write_log=None, clock=""):
        folder.mkdir(exist_ok=True)
        self._tools, self._key = tools, key
        self.console = folder / "console.txt"
        self._monitor = folder / "qmp"
        self.ssh_port = free_port()
        listed = tools.run("usr/bin/mtools", "-c", "mdir", "-b", "-i", fat(tools, image), "::/").split()
        kernel, initrd = (next(n for n in listed if n.startswith(f"::/{k}")) for k in ("vmlinuz", "initrd"))
        for name, to in ((kernel, "kernel"), (initrd, "initrd")):
            tools.run("usr/bin/mtools", "-c", "mcopy", "-n", "-o", "-i", fat(tools, image), name, folder / to)
        words = f"{read_from_card(tools, image, 'cmdline.txt').strip()} console=ttyAMA0"
        card = [f"driver=file,filename={image},node-name=card"]
        if write_log:
            write_log.touch()
            card += [f"driver=file,filename={write_log},node-name=log"]
            card += ["driver=blklogwrites,file=card,log=log,node-name=logged"]
        relay = f"{sys.executable} {ROOT / 'tests/system/relay.py'} {station_port}"
        network = f"user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:5750-cmd:{relay}"
        network += f",hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"
        data = tools.folder / "host/usr/share"
        command = [
            *tools.command("usr/bin/qemu-system-aarch64"), "-M", "virt", "-cpu", "cortex-a72", "-smp", "2",
            "-m", str(MEMORY_MB), "-L", str(data / "qemu"), "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", str(folder / "kernel"), "-initrd", str(folder / "initrd"), "-append", words,
            *(word for part in card for word in ("-blockdev", part)),
            "-device", f"virtio-blk-pci,drive={'logged' if write_log else 'card'}",
            "-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci", "-serial", f"file:{self.console}",
            "-device", "virtio-gpu-pci", "-qmp", f"unix:{self._monitor},server=on,wait=off",
            *(["-rtc", f"base={clock}"] if clock else []),
        ]  # fmt: skip
        self._errors = (folder / "qemu.txt").open("w")
        modules = next((tools.folder / "host/usr/lib").glob("*-linux-gnu/qemu"))
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors,
            env=os.environ | {"QEMU_MODULE_DIR": str(modules)},
        )  # fmt: skip

    def said(self):
        """What stands on the console."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def run(self, *command, status=0, timeout_s=SSH_S):
        """The output of a command in there, over ssh."""
        known = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        done = subprocess.run(
            [*self._tools.command("usr/bin/ssh"), "-F", "none", "-i", self._key, "-p", str(self.ssh_port), *known,
             "-o", "ConnectTimeout=20", "root@127.0.0.1", shlex.join(map(str, command))],
            capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert status is None or done.returncode == status, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def answers(self, *command):
        """Its output, or "" where the machine or the command is not ready for it."""
        assert self.process.poll() is None, (Path(self._errors.name).read_text(), self.said()[-3000:])
        try:
            return self.run(*command)
        except (AssertionError, subprocess.TimeoutExpired):
            return ""

    def screen(self, path):
        """A picture (PNG) of what stands on its screen."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self._monitor))
            answers = monitor.makefile()
            answers.readline()  # its greeting
            for order in ("qmp_capabilities", "screendump"):
                arguments = {"filename": str(path), "format": "png"} if order == "screendump" else {}
                monitor.sendall(json.dumps({"execute": order, "arguments": arguments}).encode())
                while "return" not in (said := json.loads(answers.readline())):
                    assert "event" in said, said

    def cut(self):
        """The power goes."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._errors.close()

    def power_off(self, timeout_s=180):
        """As `poweroff` does it."""
        self.run("systemctl", "poweroff", status=None)
        try:
            self.process.wait(timeout_s)
        finally:
            self.cut()
