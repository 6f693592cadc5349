"""A flight that we recorded ourselves, as a source: its frames, and what crossed between them.

One file, or a folder with the files of one flight. Frames keep their numbers, names, times and poses. Labels come with
the frame that had them first, changes of the model with the frame that flew them first, so that a replay can bring
everything back where it was (`onboard.asflown`).
"""

import contextlib
import os
import struct
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from google.protobuf.message import DecodeError
from mcap.exceptions import McapError
from mcap.reader import SeekingReader
from mcap.records import Attachment, Channel, Message, Metadata

from link import codec
from link.messages import Delta, Detections, Label, Undo
from models.errors import LinkError, SourceError
from onboard.config import Config
from onboard.flown import (
    ARTIFACT,
    CAMERA_TOPIC,
    DETECTIONS_TOPIC,
    FORMAT,
    FRAME_TOPIC,
    HEAD_SUFFIX,
    METADATA,
    UTC_TOPIC,
    FlownFrame,
    FlownUtc,
)
from onboard.frame import Frame, Skipped
from onboard.sources.mcaprecords import Problems, records
from onboard.sources.pictures import DAMAGE, decode, reason
from onboard.telemetry.table import Telemetry, series

SUFFIX = ".mcap"
_MESSAGES = {f"/hadanet/{kind.__name__.lower()}": kind for kind in (Label, Undo, Delta)}
_QUANTITIES = {name: name for name in ("lat_deg", "lon_deg", "alt_m", "agl_m")} | {
    f"{angle}_deg": f"camera_{angle}_deg" for angle in ("yaw", "pitch", "roll")
}
_DAMAGED_INDEX = (McapError, ValueError, struct.error, OSError, LookupError, TypeError, AttributeError, MemoryError)
"""What the library raises for an index that is not there, or not what was written; found by flipping bytes."""
_flown = msgspec.msgpack.Decoder(FlownFrame)
_utc = msgspec.msgpack.Decoder(FlownUtc)
_config = msgspec.json.Decoder(Config)


class Crossed(msgspec.Struct, frozen=True):
    """What crossed since the frame before, and what came of the frame `index`; None behind the last frame.

    labels: that the learner had with this frame, in order. deltas: that were put in force, in order, by now or with a
    later frame. model: hash of the model that this frame flew, "" unknown.
    """

    index: int | None
    labels: tuple[Label | Undo, ...]
    deltas: tuple[Delta, ...]
    model: str = ""
    detections: Detections | None = None


class _Segment(msgspec.Struct, frozen=True):
    path: Path
    about: Mapping[str, str]

    @property
    def number(self) -> int:
        text = self.about.get("segment", "")
        return int(text) if text.isdecimal() else 0


class RecordingSource:
    """The frames of a recording: a file, or the folder that holds the files of one flight.

    about: what stands in the record `hadanet` of the first file. config: the flight's, None if this version cannot read
    it. recompressed: its pixels are not what the flight saw, but were changed by JPEG. whole: it begins with the
    flight. problems: damage and truncation, a line each. utc_offset_ns: from the frames' times to UTC, as
    far as the flight came to know it. follow: to be set before `frames`, so that what crossed is kept for `crossed`;
    without it nothing is.

    Raises
    ------
    SourceError
        No recording of ours, of a version that is not known here, of several flights, or without one frame.
    """

    def __init__(self, path: Path) -> None:
        self.uri = str(path)
        self.live = False
        self.skipped: list[Skipped] = []
        self._segments = _segments(path)
        self.about = self._segments[0].about
        self._closed = False
        self.follow = False
        self._crossed: deque[Crossed] = deque()
        self._heads: dict[str, bytes] = {}
        try:
            self.config: Config | None = _config.decode(self.about.get("config", ""))
        except (msgspec.MsgspecError, ValueError):
            self.config = None
        numbers = [segment.number for segment in self._segments]
        self.whole = numbers == list(range(len(numbers)))
        survey = _Survey()
        for segment in self._segments:
            survey.read(segment)
        if not self.whole:
            survey.problems.add(f"{path}: files of this flight are missing; there are numbers {_ranges(numbers)}")
        if not survey.times:
            raise SourceError(f"{path}: not one whole frame is in this recording")
        self.recompressed = survey.recompressed
        self.utc_offset_ns = survey.utc_offset_ns
        self.length: int | None = len(survey.times)
        self.first_ns = survey.times[0]
        span_s = (survey.times[-1] - survey.times[0]) * 1e-9
        self.fps: float | None = (len(survey.times) - 1) / span_s if span_s > 0 else None
        self.problems = survey.problems.lines()
        self.telemetry = survey.telemetry(self.uri)

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield the frames from `start_s` on; those before are not decoded.

        With `follow` what crossed before each is ready for `crossed` when it comes.
        """
        self._crossed.clear()
        self._closed = False
        problems = Problems()
        reader = _Reader(self._crossed if self.follow else deque(maxlen=0), self._heads, self.about, problems)
        for segment in self._segments:
            for about, data in reader.read(segment.path):
                if self._closed:
                    return
                if about.t_ns < self.first_ns + round(start_s * 1e9):
                    continue
                try:
                    image = decode(data)
                except DAMAGE as error:
                    self.skipped.append(Skipped(name=about.name, reason=reason(error)))
                    continue
                yield Frame(
                    index=about.index, t_ns=about.t_ns, name=about.name, image=image, pose=about.pose(), encoded=data
                )
        reader.end()
        told = dict.fromkeys((*self.problems, *problems.lines()))
        self.skipped += [Skipped(name=Path(self.uri).name, reason=problem) for problem in told]

    def crossed(self, index: int | None) -> Crossed:
        """What crossed up to and with the frame `index` since the last call; with None all that is left.

        To be asked for frames in order, after they were yielded.
        """
        labels: list[Label | Undo] = []
        deltas: list[Delta] = []
        last = Crossed(index, (), ())
        while self._crossed and (index is None or ((at := self._crossed[0].index) is not None and at <= index)):
            last = self._crossed.popleft()
            labels += last.labels
            deltas += last.deltas
        return msgspec.structs.replace(last, index=index, labels=tuple(labels), deltas=tuple(deltas))

    def head(self, model_hash: str) -> bytes | None:
        """The delta from the base to a model that flew, where the recording gives it and it was read already."""
        return self._heads.get(model_hash)

    def artifact(self) -> bytes | None:
        """The model file that the flight was started with, None where it was the shipped one."""
        for record in records(self._segments[0].path, Problems(), salvage=False):
            if isinstance(record, Attachment) and record.name == ARTIFACT:
                return record.data
            if isinstance(record, Message):
                return None
        return None

    def close(self) -> None:
        """End iterating at the next frame; no file is held open between two."""
        self._closed = True


def is_recording(path: Path) -> bool:
    """Whether a file, or one in a folder, is a recording of ours. Raises SourceError for what cannot be read."""
    if path.is_dir():
        return any(_about(file) is not None for file in sorted(path.glob(f"*{SUFFIX}")))
    return path.suffix.lower() == SUFFIX and _about(path) is not None


def _about(path: Path) -> dict[str, str] | None:
    """The metadata of our recordings, which stands at the beginning; None for any other file."""
    try:
        for record in records(path, Problems(), salvage=False):
            if isinstance(record, Metadata) and record.name == METADATA:
                return record.metadata if "format" in record.metadata else None
            if isinstance(record, Channel | Message):
                return None
    except SourceError:
        if not os.access(path, os.R_OK):
            raise
    return None


def _segments(path: Path) -> list[_Segment]:
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    found = [_Segment(file, about) for file in files if (about := _about(file)) is not None]
    if not found:
        raise SourceError(f"{path}: this is no recording of ours")
    for segment in found:
        if segment.about["format"] != FORMAT:
            raise SourceError(
                f"{segment.path}: a recording of format {segment.about['format']!r}, this program reads {FORMAT!r}; "
                "use a newer version"
            )
    flights: dict[str, list[_Segment]] = {}
    for segment in found:
        flights.setdefault(segment.about.get("flight", ""), []).append(segment)
    if len(flights) > 1:
        first = ", ".join(str(files[0].path) for files in list(flights.values())[:3])
        raise SourceError(
            f"{path}: recordings of {len(flights)} flights are in this folder; give a file, or put the files of one "
            f"flight into a folder of their own. Flights begin with {first}{' ...' if len(flights) > 3 else ''}"
        )
    return sorted(found, key=lambda segment: segment.number)


def _ranges(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (" ..." if len(numbers) > 10 else "")


class _Survey:
    """What stands in the files, without the pictures: times, poses, damage."""

    def __init__(self) -> None:
        self.problems = Problems()
        self.times = array("q")
        self.recompressed = False
        self.utc_offset_ns = 0
        self._values = {name: array("d") for name in _QUANTITIES}
        self._topics = {FRAME_TOPIC: self._add, UTC_TOPIC: self._know}

    def read(self, segment: _Segment) -> None:
        """A file with an index is read by it, any other from its beginning on."""
        kept = len(self.times)
        try:
            with segment.path.open("rb") as file:
                reader = SeekingReader(file, validate_crcs=True, record_size_limit=segment.path.stat().st_size)
                for _, channel, message in reader.iter_messages(topics=list(self._topics), log_time_order=False):
                    self._topics[channel.topic](message.data)
            return
        except _DAMAGED_INDEX:  # or none
            del self.times[kept:]
            for values in self._values.values():
                del values[kept:]
        topics: dict[int, str] = {}
        for record in records(segment.path, self.problems, salvage=False):
            if isinstance(record, Channel):
                topics[record.id] = record.topic
            elif isinstance(record, Message) and (take := self._topics.get(topics.get(record.channel_id, ""))):
                take(record.data)

    def _add(self, data: bytes) -> None:
        try:
            about = _flown.decode(data)
        except msgspec.MsgspecError:
            return
        self.times.append(about.t_ns)
        self.recompressed = self.recompressed or about.picture == "jpeg"
        for name, values in self._values.items():
            value = getattr(about, name)
            values.append(np.nan if value is None else value)

    def _know(self, data: bytes) -> None:
        with contextlib.suppress(msgspec.MsgspecError):  # of another version
            known = _utc.decode(data)
            self.utc_offset_ns = known.utc_ns - known.t_ns

    def telemetry(self, uri: str) -> Telemetry:
        made = {
            quantity: series(f"{FRAME_TOPIC} {name}", np.array(self.times), np.array(self._values[name]))
            for name, quantity in _QUANTITIES.items()
        }
        return Telemetry(
            uri=uri,
            kind="recording",
            series={quantity: one for quantity, one in made.items() if one is not None},
            problems=self.problems.lines(),
        )


class _Reader:
    """Puts the messages of a flight's files together to frames and what crossed between them."""

    def __init__(
        self, crossed: deque[Crossed], heads: dict[str, bytes], about: Mapping[str, str], problems: Problems
    ) -> None:
        self._out = crossed
        self._problems = problems
        self._heads = heads
        text = about.get("position", "")
        self._position = int(text) if text.isdecimal() else 0
        self._labels: deque[tuple[int, Label | Undo]] = deque()
        self._deltas: list[Delta] = []
        self._known: set[tuple[int, bool]] = set()

    def read(self, path: Path) -> Iterator[tuple[FlownFrame, bytes]]:
        """Frames and their pictures. What crossed before a frame is handed over first."""
        topics: dict[int, str] = {}
        picture: tuple[int, bytes] | None = None
        detections: Detections | None = None
        for record in records(path, self._problems, salvage=False):
            if isinstance(record, Channel):
                topics[record.id] = record.topic
            elif isinstance(record, Attachment) and record.name.endswith(HEAD_SUFFIX):
                self._heads[record.name.removesuffix(HEAD_SUFFIX)] = record.data
            elif isinstance(record, Message):
                topic = topics.get(record.channel_id, "")
                try:
                    if topic == CAMERA_TOPIC:
                        picture = record.log_time, CompressedImage.FromString(record.data).data
                    elif topic == FRAME_TOPIC:
                        about = _flown.decode(record.data)
                        if picture and picture[0] == about.t_ns:
                            self._frame(about, detections)
                            yield about, picture[1]
                        picture = detections = None
                    elif topic == DETECTIONS_TOPIC:
                        message = codec.decode(record.data)
                        detections = message if isinstance(message, Detections) else None
                    elif topic in _MESSAGES:
                        self._message(codec.decode(record.data))
                except (LinkError, msgspec.MsgspecError, DecodeError):
                    continue  # of another version: the frames are worth more than one message

    def end(self) -> None:
        """Hand over what crossed behind the last frame."""
        self._out.append(Crossed(None, tuple(label for _, label in self._labels), tuple(self._deltas)))
        self._labels.clear()
        self._deltas = []

    def _frame(self, about: FlownFrame, detections: Detections | None) -> None:
        labels = []
        while self._labels and self._labels[0][0] <= about.position:
            labels.append(self._labels.popleft()[1])
        self._out.append(Crossed(about.index, tuple(labels), tuple(self._deltas), about.model.hex(), detections))
        self._deltas = []

    def _message(self, message: object) -> None:
        if isinstance(message, Delta):
            self._deltas.append(message)
        elif isinstance(message, Label | Undo):
            key = (message.id, False) if isinstance(message, Label) else (message.label, True)
            if key not in self._known:  # the label log takes no answer twice
                self._known.add(key)
                self._position += 1
                self._labels.append((self._position, message))
