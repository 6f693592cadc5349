"""`onboard` as processes, for the system tests: replays, and the daemon with its children."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from models.errors import HadanetError
from onboard import status
from onboard.learner import State

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0


def onboard(*args):
    """The command line of `onboard` in this Python."""
    return [sys.executable, "-m", "onboard.cli", *map(str, args)]


def call(*args, **options):
    """Run `onboard` to its end: (status, output, errors)."""
    done = subprocess.run(onboard(*args), capture_output=True, text=True, timeout=120, check=False, **options)
    return done.returncode, done.stdout, done.stderr


def until(condition, what, timeout_s=WAIT_S):
    """Ask until the answer is true, and give it back."""
    end = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.02)
    return answer


def child(parent, module):
    """The process id of the running child of `parent` that runs this module, or None."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it ended meanwhile
                continue
            if int(stat[1]) == parent and stat[0] != "Z" and module.encode() in command:
                return int(entry.name)
    return None


class Replay:
    """A running `onboard replay`, whose learner can be killed."""

    def __init__(self, folder, source, *args):
        folder.mkdir()
        self.folder, self.report_path = folder, folder / "report.json"
        self.err = folder / "err.txt"
        with self.err.open("w") as err:
            command = onboard("replay", source, "--report", self.report_path, "--state", folder / "state", *args)
            environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # several fly at once: threads that spin slow all
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, env=environment)

    def end(self):
        """Its report, once it has ended well."""
        assert self.process.wait(120) == 0, self.err.read_text()
        return json.loads(self.report_path.read_text())

    def learner(self):
        return child(self.process.pid, "onboard.worker")

    def saved_labels(self):
        """How many answers its learner has taken, as its state on disk says."""
        path = self.folder / "state" / "learner.msgpack"
        return msgspec.msgpack.decode(path.read_bytes(), type=State).position if path.exists() else 0


class Daemon:
    """A running `onboard run` over one state folder."""

    def __init__(self, folder, source, keys="", classes=(), grid=None, service=False, **sections):
        folder.mkdir()
        self.options = ["--service"] if service else []
        self.state, self.err = folder / "state", folder / "err.txt"
        self.config = folder / "onboard.toml"
        tables = {"camera": {"source": source} | (grid or {}), "link": {"keys": str(keys)}, "page": {"address": ""}}
        tables |= sections
        if classes:
            tables["model"] = tables.get("model", {}) | {"classes": list(classes)}
        lines = [f"state = {json.dumps(str(self.state))}"]
        for name, table in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        self.config.write_text("\n".join(lines) + "\n")
        self.process = None

    def start(self, *wrap, **environment):
        """Start it, by another command (`wrap`) where one is given, and with more in its environment."""
        command = [*wrap, *onboard("run", *self.options, "--config", self.config)]
        with self.err.open("a") as err:
            self.process = subprocess.Popen(command, stderr=err, env=os.environ | environment)

    def stop(self):
        """Ask it to end; its exit status."""
        self.process.terminate()
        return self.process.wait(WAIT_S)

    def kill(self):
        """Whatever happened, leave nothing running."""
        if self.process is not None and self.process.poll() is None:
            for module in ("onboard.worker", "onboard.daemon"):
                if pid := child(self.process.pid, module):
                    os.kill(pid, signal.SIGCONT)
            self.process.terminate()
            self.process.wait(WAIT_S)

    def pid(self, module):
        return child(self.process.pid, module)

    def status(self):
        try:
            return status.find(self.state)
        except HadanetError:
            return {}

    def until(self, condition, timeout_s=WAIT_S):
        """The status, once `condition(status)` holds; a KeyError means not yet."""

        def holds():
            status = self.status()
            try:
                return status if condition(status) else None
            except KeyError:
                return None

        return until(holds, lambda: f"{self.status()}\n{self.err.read_text()}", timeout_s)
