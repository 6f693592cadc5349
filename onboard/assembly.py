"""Puts the parts of a flight together from a configuration, and takes them apart in the right order."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from link.drone import DroneLink
from link.keys import DroneKeys
from link.messages import PROTOCOL, Hello, Message, Problems, Welcome
from models.errors import RecorderError
from models.model import Model
from onboard import flown, status
from onboard.boot import make_folder
from onboard.config import Config
from onboard.desk import Desk, Post
from onboard.flight import Flight
from onboard.health import Health
from onboard.recorder import Recorder
from onboard.sources.uri import shown
from onboard.worker import initial_model

_log = logging.getLogger(__name__)

PROBLEMS_EVERY_S = 30.0
LOOK_S = 1.0
"""So often, and no oftener, it is asked whether something is wrong."""
FLUSH_S = 3.0
"""How long the end of a flight waits for the station; the rest goes out at the next start."""


def _public(config: Config) -> Config:
    """What may stand in a recording: no password of a camera."""
    replace = msgspec.structs.replace
    return replace(config, camera=replace(config.camera, source=shown(config.camera.source)))


class Nowhere:
    """Where messages go without a station: nobody hears them."""

    def post(self, message: Message) -> None:
        """Drop it."""


class Assembly:
    """Desk, link, recorder and flight of one drone; a context manager that closes them.

    `post` replaces the link where a replay brings its own. Without a station the drone flies and learns alone.
    `problems`: what its start had to go round, by topic (`onboard.boot`).
    """

    def __init__(
        self,
        config: Config,
        state: Path,
        post: Callable[[Model], Post] | None = None,
        problems: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.state = make_folder(state)
        self.health = Health(problems)
        self._told, self._looked_s = ("", float("-inf")), float("-inf")
        self.on_welcome: Callable[[Welcome], None] = lambda message: None
        """Called in the link's thread when the station answers: its clock is in it."""
        self.base = initial_model(config.model.artifact, config.model.classes)
        self.link: DroneLink | None = None
        self._keys = DroneKeys.load(Path(config.link.keys)) if config.link.keys and post is None else None
        if post is not None:
            self.post = post(self.base)
        elif self._keys is not None:
            self.link = DroneLink(self._keys, state, self._hello, self._receive)
            self.post = self.link
        else:
            self.post = Nowhere()
        self.desk = Desk(state, self.base, config.camera.cols, self.post, None if post else status.status_path(state))
        self.desk.told |= {"link": self._describe_link, "problems": self.health.problems}
        self._record_problem = ""
        self.recorder = self._recorder()
        self.health.watch("model", lambda: self.desk.model_problem)
        self.health.watch("state", lambda: self.desk.problem)
        self.health.watch("link", lambda: self.link.stats.problem if self.link else "")
        self.health.watch("recording", lambda: self.recorder.stats.problem if self.recorder else self._record_problem)
        if self.recorder:
            self.desk.record = self._record
        self.flight = Flight(config, self.base, self.desk, self.post, self.recorder)

    @property
    def name(self) -> str:
        """The drone's name, as its keys give it."""
        return self._keys.name if self._keys else "flight"

    def __enter__(self) -> Self:
        self.desk.start()
        if self.link:
            self.link.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.desk.close()
        if self.recorder:
            self.recorder.close()
        if self.link:
            if error is None and not self.link.flush(FLUSH_S if self.link.stats.connected else 0.0):
                _log.warning("%d messages wait in the outbox for the station", self.link.stats.pending)
            self.link.close()

    def tell_problems(self) -> None:
        """Say to the station what is wrong, if that changed or was not said for a while: casual messages get lost."""
        now_s = time.monotonic()
        if self.link is None or now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        text, connected = self.health.line(), self.link.stats.connected
        if connected and (text != self._told[0] or now_s - self._told[1] >= PROBLEMS_EVERY_S):
            self._told = text, now_s
            self.post.post(Problems(text=text))
        elif not connected:
            self._told = "", float("-inf")  # told anew, first thing

    def _recorder(self) -> Recorder | None:
        """The recorder, if one is wanted and its folder can be written; without one the flight flies all the same."""
        record = self.config.record
        if not record.folder:
            return None
        metadata = {
            "config": msgspec.json.encode(_public(self.config)).decode(),
            "model_hash": self.desk.model.hash,
            "base_hash": self.base.hash,
            "classes": ",".join(self.base.classes),
            "boot": str(self.desk.log.boot),
            "position": str(self.desk.log.last()[0]),
        }
        artifact = self.config.model.artifact
        try:
            return Recorder(
                Path(record.folder),
                name=self.name,
                boot=self.desk.log.boot,
                metadata=metadata,
                base=self.base,
                attachments={flown.ARTIFACT: Path(artifact).read_bytes()} if artifact else {},
                exact=record.images == "exact",
                max_file_bytes=record.max_mb << 20,
                keep_bytes=record.keep_mb << 20,
                min_free_bytes=record.min_free_mb << 20,
            )
        except (RecorderError, OSError) as error:  # OSError: the artifact, which was there a moment ago
            self._record_problem = str(error)
            _log.error("no recording: %s", error)
            return None

    def _record(self, message: Message) -> None:
        if self.recorder:
            self.recorder.message(f"/hadanet/{type(message).__name__.lower()}", message)

    def _hello(self) -> Hello:
        camera = self.config.camera
        return Hello(
            protocol=PROTOCOL,
            drone=self.name,
            boot=self.desk.log.boot,
            base_hash=bytes.fromhex(self.base.hash),
            model_hash=bytes.fromhex(self.desk.model.hash),
            classes=self.base.classes,
            rows=camera.rows,
            cols=camera.cols,
            t_ns=0,
        )

    def _describe_link(self) -> str:
        if self.link is None:
            return "off"
        stats = self.link.stats
        return stats.problem or ("connected" if stats.connected else "calling")

    def _receive(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self.on_welcome(message)
        self.desk.receive(message)
