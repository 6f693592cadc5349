"""A real `ground serve` and a real drone's end of the link, for the system tests of the station."""

import json
import queue
import re
import select
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

from ground.cli import main
from link.drone import DroneLink
from link.keys import DroneKeys
from link.messages import Welcome
from models import artifact
from tests.ground_flight import flight, hello, learned, small_model, step

WAIT_S = 20.0
SERVE = "import sys; from ground.cli import main; sys.exit(main())"


class Ground:
    """A station process over one data folder; `start` again after `stop` or `kill` uses the same addresses."""

    def __init__(self, folder):
        self.folder = folder
        self.data = folder / "data"
        self.base = small_model()
        (folder / "models").mkdir()
        artifact.save(self.base, folder / "models" / "base.safetensors")
        self.http, self.bind = "127.0.0.1:0", "tcp://127.0.0.1:0"
        self.process = None

    def start(self, program=SERVE):
        arguments = ["serve", "--data", str(self.data), "--http", self.http, "--bind", self.bind]
        self.log = (self.folder / "serve.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments, "--models", str(self.folder / "models")],
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        ready, _, _ = select.select([self.process.stdout], [], [], WAIT_S)
        line = self.process.stdout.readline().decode() if ready else ""
        match = re.fullmatch(r"ground: page (http://(\S+)/) drones (\S+) data .*\n", line)
        assert match, f"not ready: {line!r}\n{(self.folder / 'serve.log').read_text()}"
        self.url, self.http, self.bind = match.groups()

    def stop(self, number=15):
        if self.process is None:
            return None
        self.process.send_signal(number)
        code = self.process.wait(WAIT_S)
        self.process.stdout.close()
        self.log.close()
        self.process = None
        return code

    def enroll(self, name="kestrel"):
        file = self.folder / f"{name}.toml"
        arguments = ["enroll", name, "--data", str(self.data), "--address", self.bind, "--out", str(file)]
        assert main(arguments) == 0
        return DroneKeys.load(file)

    def get(self, path):
        with urllib.request.urlopen(self.url + path.lstrip("/"), timeout=WAIT_S) as response:
            return json.load(response)

    def send(self, method, path, **body):
        """Plain urllib, as a program would: (status, answer)."""
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.url + path.lstrip("/"), data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def drone(self, name="kestrel"):
        return next(d for d in self.get("/api/state")["drones"] if d["name"] == name)

    def until(self, condition):
        """Ask for the drone's state until `condition(state)`; the state then."""
        end = time.monotonic() + WAIT_S
        while not condition(state := self.drone()):
            assert time.monotonic() < end, state
        return state


class Drone:
    """A drone's end of the link, which notes what the station says."""

    def __init__(self, ground, name="kestrel"):
        self.keys = ground.enroll(name)
        self.folder = ground.folder / f"{name}-link"
        self.base = ground.base
        self.model = learned(self.base, 1)
        self.heard = queue.SimpleQueue()
        self.welcomed = threading.Event()
        self.link = DroneLink(self.keys, self.folder, self._hello, self._hear)
        self.link.start()

    def _hello(self):
        return hello(self.base, self.model)

    def _hear(self, message):
        self.heard.put(message)
        if isinstance(message, Welcome):
            self.welcomed.set()

    def fly(self, frames=9):
        """Send the first delta and the messages of `frames` frames; all reliable ones have arrived on return."""
        assert self.welcomed.wait(WAIT_S)  # before that, casual messages are dropped
        self.link.post(step(self.base, self.model, 0))
        for messages in flight(frames, model_hash=bytes.fromhex(self.model.hash)):
            for message in messages:
                self.link.post(message)
        assert self.link.flush(WAIT_S), self.link.stats

    def learn(self, seed):
        before, self.model = self.model, learned(self.model, seed)
        self.link.post(step(before, self.model, seed))
        assert self.link.flush(WAIT_S), self.link.stats

    def take(self, kind):
        """The next message of this kind; others before it are passed over."""
        end = time.monotonic() + WAIT_S
        while True:
            message = self.heard.get(timeout=max(0.1, end - time.monotonic()))
            if isinstance(message, kind):
                return message
