"""The flight's recorder: frames, detections and messages into MCAP files that Foxglove opens, on a thread of its own.

Nothing here raises into the flight or makes it wait. What comes in faster than the disk takes it is dropped, frames
first, and counted. When the disk is nearly full, the oldest recordings go; when none is left or the disk refuses,
recording stops with one line in the log, and the flight goes on. A kill costs at most `FLUSH_S` of recording and what
is queued, a power cut at most `SYNC_S` and twice the time that the disk takes for a sync.
"""

import contextlib
import errno
import logging
import re
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import numpy as np

from link.messages import Delta, Detections, Message
from models import delta
from models.errors import RecorderError
from models.model import Model
from onboard import clock, flown, foxglove, retention
from onboard.clock import Known
from onboard.detections import FrameResult
from onboard.flown import FlownFrame, FlownUtc
from onboard.mcapfile import McapFile

FLUSH_S = 0.25
SYNC_S = 1.0
CLOSE_S = 10.0
"""How long `close` waits for the disk at most."""
QUEUE_BYTES = 64 * 1024 * 1024
"""Bound on what waits for the thread."""

_ITEM_BYTES = 512  # what the smallest item in the queue takes
_FREE_EVERY_BYTES = 1024 * 1024  # so often the free space is looked at
_KEPT_FILES = 4  # retention deletes whole files, so what it keeps is at least so many

_logger = logging.getLogger(__name__)


class RecorderStats(msgspec.Struct, frozen=True, kw_only=True):
    """What became of what was handed in. Counts are of frames and of messages (log lines included).

    failed: messages that could not be encoded. bytes: of all files. deleted: old recordings that made room. problem:
    why recording stopped, "" while it runs. path: the newest file, "" where none could be opened.
    """

    frames: int = 0
    messages: int = 0
    frames_dropped: int = 0
    messages_dropped: int = 0
    failed: int = 0
    bytes: int = 0
    deleted: int = 0
    problem: str = ""
    path: str = ""


class _Item(msgspec.Struct, frozen=True):
    """One thing to record: `write` adds it to the file. kind: "frames" or "messages"; numbered over both."""

    number: int
    kind: str
    size: int
    write: Callable[[McapFile], None]


class Recorder:
    """Records into new files in `folder`, named by UTC time, drone and boot: 20250131T120000Z_NAME_boot3.mcap.

    Parameters
    ----------
    folder : made if it is missing
    name : the drone's, 1 to 64 of A-Z a-z 0-9 . _ -
    metadata : written into each file as the record `hadanet`: the configuration's text, the model's hash, the classes;
        the software's version, an id of this flight and the file's number in it are added
    boot : the drone's boot counter; tells flights apart where the clock is not set
    base : the model that others of the flight are told by; without it files from the second on do not stand alone
    attachments : files that each recording carries, by name
    exact : pictures without bytes of their own are kept without loss, not as JPEG
    max_file_bytes : then the next file is begun
    keep_bytes : all recordings in the folder take at most so much, the oldest are deleted; 0 for no bound
    min_free_bytes, min_free_share : when less than the smaller of the two is free on the disk, the oldest recordings
        are deleted, and recording stops when there are no more
    queue_bytes : bound on what waits; beyond it the oldest frame is dropped, and the oldest message if no frame waits

    Raises RecorderError where the folder cannot be written to. After that nothing raises.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        metadata: dict[str, str],
        boot: int = 0,
        base: Model | None = None,
        attachments: Mapping[str, bytes] | None = None,
        exact: bool = False,
        max_file_bytes: int = 512 << 20,
        keep_bytes: int = 0,
        min_free_bytes: int = 10**9,
        min_free_share: float = 0.1,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
            raise RecorderError(f"a recording cannot be named '{name}': use 1 to 64 of A-Z a-z 0-9 . _ -")
        self._folder, self._name, self._boot = folder, name, boot
        about = {"format": flown.FORMAT, "flight": uuid.uuid4().hex, "software": _software()}
        self._metadata = about | {"images": "exact" if exact else "jpeg"} | metadata
        self._segment = 0
        self._base, self._attachments, self._exact = base, dict(attachments or {}), exact
        self._max_file_bytes = min(max_file_bytes, keep_bytes // _KEPT_FILES or max_file_bytes)
        self._keep_bytes = keep_bytes
        self._min_free_bytes, self._min_free_share = min_free_bytes, min_free_share
        self._queue_bytes = queue_bytes
        self._wake = threading.Condition()
        self._frames: deque[_Item] = deque()
        self._messages: deque[_Item] = deque()
        self._queued = 0
        self._numbered = 0
        self._closing = False
        self._newest_t_ns: int | None = None
        self._stats = RecorderStats()
        self._closed_bytes = 0
        self._checked_bytes = 0
        self._file: McapFile | None = None
        self._begun_bytes = 0  # of the file, before anything was recorded
        self._utc: Known | None = None
        self._told: set[str] = set()  # hashes of the models that the file can give
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._is_low():
                self._open()
        except OSError as error:
            raise RecorderError(f"cannot record to {folder}: {error.strerror}; choose another folder") from error
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> RecorderStats:
        """The counts as of now."""
        with self._wake:
            return self._stats

    def frame(self, result: FrameResult, model: Model | None = None, position: int = 0) -> None:
        """Record a frame: picture, annotations, position, detections. It is compressed on the recorder's thread.

        model: the one in force; position: of the label log when the frame was handed to the learner.
        """
        frame, t_ns = result.frame, result.frame.t_ns

        def write(file: McapFile) -> None:
            self._head(file, model)
            camera, picture = foxglove.camera(frame, self._exact)
            file.add(flown.CAMERA_TOPIC, camera, t_ns)
            file.add("/camera/annotations", foxglove.annotations(result), t_ns)
            if fix := foxglove.location(frame.pose, t_ns):
                file.add("/gps", fix, t_ns)
            file.add(flown.DETECTIONS_TOPIC, _detections(result), t_ns)
            about = FlownFrame(
                index=frame.index,
                t_ns=t_ns,
                name=frame.name,
                picture=picture,
                model=bytes.fromhex(model.hash) if model else b"",
                position=position,
                **msgspec.structs.asdict(frame.pose),
            )
            file.add(flown.FRAME_TOPIC, about, t_ns)

        self._newest_t_ns = t_ns
        self._put("frames", frame.image.nbytes + len(frame.encoded or b""), write)

    def message(self, topic: str, message: Message, t_ns: int | None = None) -> None:
        """Record one of the link's messages as it crosses, for example on `/hadanet/label`; without a time as `log`."""
        when = self._when(t_ns)
        size = sum(len(field) for field in msgspec.structs.astuple(message) if isinstance(field, bytes))

        def write(file: McapFile) -> None:
            file.add(topic, message, when)
            if isinstance(message, Delta) and message.parent.hex() in self._told:
                self._told.add(message.result.hex())

        self._put("messages", size, write)

    def utc(self, known: Known) -> None:
        """Record what is known of UTC from now on; each later file begins with it too."""
        t_ns = clock.now_ns()
        self._put("messages", 0, lambda file: self._tell_utc(file, known, t_ns))

    def log(self, level: str, text: str, t_ns: int | None = None) -> None:
        """Record a line on `/log`. Without a time it gets the newest frame's, or the clock's before the first frame."""
        when = self._when(t_ns)
        self._put("messages", len(text), lambda file: file.add("/log", foxglove.log(level, text, when), when))

    def wait(self, timeout_s: float) -> bool:
        """Wait until half the queue is free, so that nothing is dropped; False if not in time. For replays only."""
        with self._wake:
            return self._wake.wait_for(lambda: self._queued <= self._queue_bytes // 2, timeout_s)

    def close(self) -> None:
        """Write what is queued and the file's index; waits `CLOSE_S` for the disk at most. May be called twice."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._stop(f"recording was not finished within {CLOSE_S:.0f} s: the disk under {self._folder} hangs")

    def _when(self, t_ns: int | None) -> int:
        return t_ns if t_ns is not None else self._newest_t_ns if self._newest_t_ns is not None else clock.now_ns()

    def _put(self, kind: str, size: int, write: Callable[[McapFile], None]) -> None:
        queue = self._frames if kind == "frames" else self._messages
        with self._wake:
            queue.append(_Item(self._numbered, kind, size + _ITEM_BYTES, write))
            self._numbered += 1
            self._queued += queue[-1].size
            if self._closing or self._stats.problem:
                self._drop(queue, newest=True)
            while self._queued > self._queue_bytes and len(self._frames) + len(self._messages) > 1:
                self._drop(self._frames or self._messages)
            self._wake.notify_all()

    def _drop(self, queue: deque[_Item], newest: bool = False) -> None:
        item = queue.pop() if newest else queue.popleft()
        self._queued -= item.size
        self._count(f"{item.kind}_dropped")

    def _count(self, field: str, more: int = 1) -> None:
        self._set(**{field: getattr(self._stats, field) + more})

    def _set(self, **fields: object) -> None:
        with self._wake:
            self._stats = msgspec.structs.replace(self._stats, **fields)

    # From here on everything runs on the recorder's thread, but for the first file and `_stop`.

    def _run(self) -> None:
        flush_due = sync_due = time.monotonic()
        try:
            while self._file is not None:
                item, done = self._take()
                if done:
                    self._finish()
                    return
                if item is not None:
                    self._write(self._file, item)
                now = time.monotonic()
                if now >= flush_due:
                    self._file.flush()
                    flush_due = now + FLUSH_S
                if now >= sync_due:
                    self._file.sync()
                    sync_due = time.monotonic() + SYNC_S
                if item is not None:
                    self._make_room(self._file)
        except Exception as error:
            if self._file is not None:
                self._file.abandon()
                self._set(bytes=self._closed_bytes + self._file.size)
            if not isinstance(error, OSError):
                _logger.exception("the recorder has a bug")
            reason = getattr(error, "strerror", None) or str(error)
            self._stop(f"recording stopped: {self._stats.path}: {reason}; the flight goes on")

    def _take(self) -> tuple[_Item | None, bool]:
        """The oldest item of both queues, waited for until the next flush; and whether all is done."""
        with self._wake:
            self._wake.wait_for(lambda: self._frames or self._messages or self._closing, FLUSH_S)
            queues = [q for q in (self._frames, self._messages) if q]
            if not queues:
                return None, self._closing
            item = min(queues, key=lambda q: q[0].number).popleft()
            self._queued -= item.size
            self._wake.notify_all()
            return item, False

    def _write(self, file: McapFile, item: _Item) -> None:
        try:
            item.write(file)
        except OSError:
            self._count(f"{item.kind}_dropped")
            raise
        except Exception:  # one thing that cannot be encoded must not end the recording of all others
            if not self._stats.failed:
                _logger.exception("could not record one of the %s; further failures are only counted", item.kind)
            self._count("failed")
        else:
            self._count(item.kind)
        self._set(bytes=self._closed_bytes + file.size)

    def _head(self, file: McapFile, model: Model | None) -> None:
        """Before a frame the model that it flew, if no change in this file leads to it: each file stands alone."""
        if model is None or self._base is None or model.hash in self._told:
            return
        if model.hash != self._base.hash:
            data = delta.encode(self._base, model)
            file.attach(model.hash + flown.HEAD_SUFFIX, "application/octet-stream", data)
        self._told.add(model.hash)

    def _tell_utc(self, file: McapFile, known: Known, t_ns: int) -> None:
        self._utc = known
        file.add(flown.UTC_TOPIC, FlownUtc(t_ns=t_ns, utc_ns=t_ns + known.offset_ns, source=known.source), t_ns)

    def _make_room(self, file: McapFile) -> None:
        """Begin the next file where this one is full; delete the oldest where the disk nearly is, or stop."""
        if file.size - self._begun_bytes >= self._max_file_bytes:
            self._finish()
            self._open()
        elif self._stats.bytes >= self._checked_bytes + _FREE_EVERY_BYTES:
            self._checked_bytes = self._stats.bytes
            self._keep_bound()
            if self._is_low():
                self._finish()

    def _finish(self) -> None:
        if self._file is not None:
            self._file.finish()
            self._closed_bytes += self._file.size
            self._file = None
            self._set(bytes=self._closed_bytes)

    def _keep_bound(self) -> None:
        """Delete what is beyond the bound on all recordings."""
        if self._keep_bytes:
            self._count("deleted", len(retention.delete_oldest(self._folder, self._writing(), self._keep_bytes)))

    def _writing(self) -> Path | None:
        return Path(self._stats.path) if self._file is not None else None

    def _is_low(self) -> bool:
        """Whether the disk is too full to record, with all older recordings deleted; then says so."""
        while True:
            disk = shutil.disk_usage(self._folder)
            bound = min(self._min_free_bytes, int(self._min_free_share * disk.total))
            if disk.free >= bound:
                return False
            if not (deleted := retention.delete_oldest(self._folder, self._writing())):
                break
            self._count("deleted", len(deleted))
        self._stop(
            f"recording stopped: {disk.free / 1e6:.0f} MB free under {self._folder}, it needs {bound / 1e6:.0f} MB: "
            "make room there; the flight goes on"
        )
        return True

    def _open(self) -> None:
        """Begin a file under a name that is not taken."""
        metadata = {flown.METADATA: self._metadata | {"segment": str(self._segment)}}
        stem = retention.stem(self._folder, self._name, self._boot)
        for attempt in range(self._segment, self._segment + 1000):  # never a number whose file was deleted meanwhile
            path = self._folder / (f"{stem}_{attempt}.mcap" if attempt else f"{stem}.mcap")
            with contextlib.suppress(FileExistsError):
                self._file = McapFile(path, metadata)
                break
        else:
            raise FileExistsError(errno.EEXIST, f"a thousand files named {stem} are there already")
        self._set(path=str(path))
        self._segment += 1
        for name, data in self._attachments.items():
            self._file.attach(name, "application/octet-stream", data)
        if self._utc:
            self._tell_utc(self._file, self._utc, self._when(None))
        self._told, self._begun_bytes = {self._base.hash} if self._base else set(), self._file.size
        self._keep_bound()

    def _stop(self, problem: str) -> None:
        with self._wake:
            is_first = not self._stats.problem
            if is_first:
                self._set(problem=problem)
            while self._frames or self._messages:
                self._drop(self._frames or self._messages)
        if is_first:
            _logger.error(problem)


def _software() -> str:
    try:
        return f"hadanet-uav {version('hadanet-uav')}"
    except PackageNotFoundError:
        return "hadanet-uav, not installed"


def _detections(result: FrameResult) -> Detections:
    return Detections(
        frame=result.frame.index,
        t_ns=result.frame.t_ns,
        rows=result.rows,
        cols=result.cols,
        classes=result.classes.tobytes(),
        confidence=np.round(np.clip(result.confidence, 0, 1) * 255).astype(np.uint8).tobytes(),
    )
