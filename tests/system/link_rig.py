"""What the system tests of the link use: a station in a thread of its own, a TCP proxy that cuts, and drones."""

import asyncio
import contextlib
import logging
import random
import threading
import time

from link.drone import DroneLink
from link.keys import DroneKeys, StationKeys, enroll
from link.messages import PROTOCOL, Delta, Hello, Label, Welcome
from link.station import StationLink

TIMEOUT_S = 30.0


def hello():
    return Hello(
        protocol=PROTOCOL, drone="", boot=0, base_hash=b"", model_hash=b"", classes=("a",), rows=1, cols=1, t_ns=0
    )


def delta(number, size=20):
    return Delta(parent=b"p", result=b"r", frame=number, payload=bytes(size))


def label(number):
    return Label(id=number, query=number, answer="road")


class Watch:
    """What any thread may wait for; it looks again whenever something was received, changed or logged.

    Counters change without notice, so it also looks by itself now and then. The condition is computed without the lock,
    as it may need the thread that notifies.
    """

    def __init__(self):
        self._changed = threading.Event()

    def notify(self, *_):
        self._changed.set()

    def until(self, true, timeout_s=TIMEOUT_S):
        deadline_s = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < deadline_s, "it did not happen in time"
            self._changed.wait(0.05)
            self._changed.clear()


class Loop:
    """An asyncio loop in a thread, for what the tests talk to from outside."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT_S)

    def call(self, function, *args):
        async def inside():
            return function(*args)

        return self.run(inside())

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(TIMEOUT_S)
        self.loop.close()


class Station:
    """A running StationLink that welcomes everyone and keeps what it got, per drone."""

    def __init__(self, rig, folder, address="tcp://127.0.0.1:0"):
        self.rig, self.watch = rig, rig.watch
        self.keys = StationKeys.load_or_create(folder)
        self.got, self.hellos, self.fail = {}, [], set()
        self.link = rig.loop.call(StationLink, self.keys, folder, address, self._on_message, self.watch.notify)
        self.task = asyncio.run_coroutine_threadsafe(self.link.run(), rig.loop.loop)

    def _on_message(self, drone, message):
        if isinstance(message, Hello):
            self.hellos.append(message)
            self.link.post(drone, Welcome(protocol=PROTOCOL, t_ns=1, mirror_hash=b""))
        elif isinstance(message, Delta):
            if message.frame in self.fail:
                self.fail.remove(message.frame)
                raise RuntimeError("a handler's bug")
            self.got.setdefault(drone, []).append(message.frame)
        self.watch.notify()

    def post(self, drone, *messages):
        for message in messages:
            self.rig.loop.call(self.link.post, drone, message)

    def stats(self, drone):
        return self.rig.loop.call(self.link.stats, drone)

    def close(self):
        self.rig.loop.run(self.link.close())
        if not self.task.cancelled():
            self.task.result(TIMEOUT_S)


class Call:
    """One connection through the proxy: both its ends, and how many bytes it lives."""

    def __init__(self, ends, left):
        self.ends, self.left = ends, left


class Proxy:
    """Passes TCP on to `target`, counts the bytes, and cuts connections when told or at random."""

    def __init__(self, rig, target, every_bytes=None, seed=1):
        self.rig, self.target, self.every_bytes = rig, target, every_bytes
        self.up = self.down = self.cuts = 0
        self._random = random.Random(seed)
        self._open = set()
        self._server = rig.loop.run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader, writer):
        host, port = self.target.removeprefix("tcp://").split(":")
        ends = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            ends.append(far_writer)
            call = Call(ends, self._draw())
            self._open.add(call)
            await asyncio.gather(
                self._pass(call, reader, far_writer, "up"), self._pass(call, far_reader, writer, "down")
            )
        except OSError:
            pass
        finally:
            for end in ends:
                end.transport.abort()

    def _draw(self):
        return self._random.randint(*self.every_bytes) if self.every_bytes else float("inf")

    async def _pass(self, call, reader, writer, way):
        while data := await reader.read(1000):
            setattr(self, way, getattr(self, way) + len(data))
            call.left -= len(data)
            if call.left < 0:
                self._cut(call)
            writer.write(data)
            await writer.drain()
        self._cut(call, count=0)

    def _cut(self, call, count=1):
        if call in self._open:
            self._open.remove(call)
            self.cuts += count
            for end in call.ends:
                end.transport.abort()

    def cut(self):
        self.rig.loop.call(lambda: [self._cut(call) for call in list(self._open)])

    def close(self):
        async def inside():
            self._server.close()
            for call in list(self._open):
                self._cut(call)
            await self._server.wait_closed()

        self.rig.loop.run(inside())


class Drone:
    """A DroneLink in this process that keeps what it got."""

    def __init__(self, rig, file, folder, hello=hello):
        self.watch = rig.watch
        self.got = []
        self.link = DroneLink(DroneKeys.load(file), folder, hello, self._on_message)
        self.link.start()

    def _on_message(self, message):
        self.got.append(message)
        self.watch.notify()

    def labels(self):
        return [m.id for m in self.got if isinstance(m, Label)]

    def until_problem(self, words):
        """Wait for a problem; the link changes it by itself, so ask again after each of its turns."""
        self.watch.until(lambda: words in self.link.stats.problem)


class Rig:
    """Everything of one test, closed in the right order."""

    def __init__(self, folder):
        self.folder = folder
        self.watch = Watch()
        self.loop = Loop()
        self._stack = contextlib.ExitStack()
        self._stack.callback(self.loop.close)
        # the links log each change of their state: a good moment to look again
        handler = logging.Handler()
        handler.emit = self.watch.notify
        logger = logging.getLogger("link")
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        self._stack.callback(logger.removeHandler, handler)

    def station(self, name="station", address="tcp://127.0.0.1:0"):
        return self._keep(Station(self, self.folder / name, address))

    def proxy(self, *args, **kwargs):
        return self._keep(Proxy(self, *args, **kwargs))

    def enroll(self, name, address, station="station", **kwargs):
        return enroll(self.folder / station, name, address, self.folder / f"{name}.toml", **kwargs)

    def drone(self, file, folder=None, **kwargs):
        drone = Drone(self, file, self.folder / (folder or file.stem), **kwargs)
        self._stack.callback(drone.link.close)
        return drone

    def _keep(self, thing):
        self._stack.callback(thing.close)
        return thing

    def close(self):
        self._stack.close()
