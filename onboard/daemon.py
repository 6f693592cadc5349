"""The flight process of `onboard run`: camera, flight, link and recorder, until it is asked to end.

Frames are captured by a thread of their own into a slot for one: what the flight does not take in time is replaced by
the next and counted. A camera that is lost is opened again; everything else goes on meanwhile.
"""

import argparse
import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from models.errors import HadanetError, SourceError
from onboard import status
from onboard.assembly import Assembly
from onboard.boot import Boot
from onboard.clock import Utc
from onboard.config import Config
from onboard.desk import Desk
from onboard.frame import Frame, Source
from onboard.governor import Watch
from onboard.notify import Notifier
from onboard.sources import open_source
from onboard.sources.uri import shown
from onboard.worker import STATUS_BUG

_log = logging.getLogger(__name__)

RETRY_S = 2.0
FRAME_TIMEOUT_S = 0.5
LEARNER_START_S = 20.0
"""A learner that is not heard of for so long after the start is told as a problem."""


class Slot:
    """Room for one frame between a camera that does not wait and a flight that may be late."""

    def __init__(self) -> None:
        self.replaced = 0
        self.problem = "no frame came yet"
        """Why no frames come at present; empty while they do."""
        self.live = False
        """Frames are stamped by this flight's clock, as they are taken."""
        self._ready = threading.Condition()
        self._frame: Frame | None = None
        self._ended = False

    def put(self, frame: Frame, wait: bool, stop: threading.Event) -> None:
        """Leave a frame; one that still lies here is replaced and counted, or with `wait` waited for."""
        with self._ready:
            while wait and self._frame is not None and not stop.is_set():
                self._ready.wait(FRAME_TIMEOUT_S)
            self.replaced += self._frame is not None
            self._frame = frame
            self._ready.notify_all()

    def end(self) -> None:
        """There will be no more frames."""
        with self._ready:
            self._ended = True
            self._ready.notify_all()

    def take(self, stop: threading.Event, alive: Callable[[], None] = lambda: None) -> Iterator[Frame]:
        """Frames as they come, until the end or until `stop`; `alive` is called at every turn, frame or none."""
        while not stop.is_set():
            alive()
            with self._ready:
                self._ready.wait_for(lambda: self._frame is not None or self._ended, FRAME_TIMEOUT_S)
                frame, self._frame = self._frame, None
                self._ready.notify_all()
                if frame is None and self._ended:
                    return
            if frame is not None:
                yield frame


def capture(uri: str, slot: Slot, stop: threading.Event) -> None:
    """Fill the slot from a source, opened again where it fails, with frames numbered through."""
    index = 0
    while not stop.is_set():
        problem = f"{shown(uri)}: the camera ended"
        try:
            source = open_source(uri)
            slot.live = source.live
            try:
                for frame in _until(source, stop):
                    slot.problem = ""
                    slot.put(msgspec.structs.replace(frame, index=index), not source.live, stop)
                    index += 1
                if not source.live:
                    break
            finally:
                source.close()
        except SourceError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - the boundary of the thread: without it the flight would starve in silence
            problem = f"{shown(uri)}: a fault of this program: {error!r}"
        if problem != slot.problem and not stop.is_set():
            _log.error("%s (trying again every %g s)", problem, RETRY_S)
        slot.problem = problem
        stop.wait(RETRY_S)
    slot.end()


def _until(source: Source, stop: threading.Event) -> Iterator[Frame]:
    told = 0
    try:
        for frame in source.frames():
            told = _tell(source, told)
            yield frame
            if stop.is_set():
                return
    finally:
        _tell(source, told)


def _tell(source: Source, told: int) -> int:
    for skipped in source.skipped[told:]:
        _log.warning("frame %s cannot be read: %s", skipped.name, skipped.reason)
    return len(source.skipped)


def fly(boot: Boot, stop: threading.Event) -> None:
    """Fly by the configuration of `boot` until `stop` is set or the source ends."""
    config = boot.config
    slot, utc = Slot(), Utc()
    with Notifier() as notifier, Assembly(config, Path(config.state), problems=boot.problems) as assembly:
        assembly.on_welcome = lambda message: utc.hear(message.t_ns)
        thread = threading.Thread(target=capture, args=(config.camera.source, slot, stop), name="capture", daemon=True)
        thread.start()
        watch = Watch(config.governor, assembly.state)
        assembly.desk.paused = lambda: watch.reason
        recorder, health = assembly.recorder, assembly.health
        assembly.desk.told |= {"governor": watch.describe, "utc": utc.describe, "sensors": watch.sensors}
        assembly.desk.told["state"] = lambda: boot.state
        health.watch("governor", lambda: watch.reason and f"learning rests: {watch.reason}")
        health.watch("clock", utc.problem)
        begun_s = time.monotonic()
        health.watch("learner", lambda: _silent(config, assembly.desk, begun_s))
        _log.info("ready: model %s", assembly.desk.model.hash[:16])
        problem = ""
        notifier.ready()

        def camera() -> str:
            return slot.problem or problem or "frames come"

        recorded = utc.known
        utc.look()
        if utc.problem():
            _log.warning("%s", utc.problem())

        def alive() -> None:
            nonlocal recorded
            notifier.alive(camera())
            assembly.tell_problems()
            if utc.look():
                _log.info("UTC is %s", utc.describe())
            if recorder and slot.live and utc.known is not recorded:
                recorded = utc.known
                recorder.utc(recorded)

        assembly.desk.told["camera"] = camera
        health.watch("camera", lambda: slot.problem or problem)
        for frame in slot.take(stop, alive):
            assembly.flight.dropped = slot.replaced
            try:
                assembly.flight.step(frame)
                problem = ""
            except SourceError as error:  # one frame that is too small must not end a flight
                if str(error) != problem:
                    _log.error("frame %s is left out: %s", frame.name, error)
                problem = str(error)
        stop.set()
        watch.close()
        thread.join(timeout=2 * RETRY_S)


def _silent(config: Config, desk: Desk, begun_s: float) -> str:
    """What is wrong with the learner, "" if nothing is, or it may still be starting."""
    if not config.learn.enabled or desk.learner != "away" or time.monotonic() - begun_s < LEARNER_START_S:
        return ""
    return "it does not answer: it hangs, is being started again, or the log says why it ended"


def main(argv: list[str] | None = None) -> int:
    """Start the flight process with a Boot as JSON on its standard input; only the supervisor calls this."""
    argparse.ArgumentParser(prog="onboard-flight", description=__doc__).parse_args(argv)
    logging.basicConfig(format="flight: %(levelname)s: %(message)s", level=logging.INFO)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    boot = msgspec.json.decode(sys.stdin.buffer.read(), type=Boot)
    try:
        fly(boot, stop)
    except HadanetError as error:
        sys.stderr.write(f"onboard: {error}\n")
        with contextlib.suppress(OSError):
            status.write(
                status.status_path(Path(boot.config.state)), {"state": boot.state, "problems": {"flight": str(error)}}
            )
        return 1
    except Exception:  # noqa: BLE001 - the boundary of the process: Python itself would end with the status of a mistake
        _log.exception("a fault of this program")
        return STATUS_BUG
    return 0


if __name__ == "__main__":
    sys.exit(main())
