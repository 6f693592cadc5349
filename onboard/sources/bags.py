"""A ROS 1 bag, a ROS 2 bag, or an MCAP file of somebody else, with pictures and the positions that lie beside them.

::

    flight.bag?topic=/camera/image_raw      ROS 1
    flight/                                 ROS 2, a folder with .db3 or .mcap files
    flight.mcap                             ROS 2 or Foxglove messages

Without `topic` the topic with the largest pictures is taken. Opening reads a bag once, for its positions.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from models.errors import SourceError
from onboard.frame import Frame, Pose, Skipped
from onboard.sources.bagmessages import (
    ATTITUDES,
    BAD,
    BATTERIES,
    FIXES,
    HEIGHT_TOPIC,
    HEIGHTS,
    IMAGES,
    STAMP_TOLERANCE_NS,
    WANTED,
    Decoder,
    attitude,
    battery,
    fix,
    height,
    picture,
    stamp_ns,
)
from onboard.sources.bagrecords import BagMessage, messages
from onboard.sources.mcaprecords import Problems
from onboard.sources.pictures import reason
from onboard.telemetry.table import Series, Telemetry, series

SUFFIXES = frozenset({".bag", ".db3", ".mcap"})
METADATA_FILE = "metadata.yaml"
TRIES = 3
"""So many pictures of a topic are looked at to learn their size."""
UTC_FROM_NS = 946_684_800 * 10**9
"""2000-01-01: a bag's times before it count from the start of a machine, not from 1970."""


class Pictures(msgspec.Struct):
    """A topic with pictures: how many, how large (pixels, 0: none could be read), recorded from when to when; the time
    of the first one that could be read."""

    count: int = 0
    pixels: int = 0
    tries: int = 0
    first_ns: int = 0
    last_ns: int = 0
    begins_ns: int = 0
    problem: str = ""


class Contents(msgspec.Struct, frozen=True):
    """What a bag holds besides pixels. topics: name -> type and number of messages, of all topics."""

    pictures: dict[str, Pictures]
    telemetry: Telemetry
    topics: dict[str, tuple[str, int]]


def is_bag(path: Path) -> bool:
    """Whether a path is a bag by its name, or a folder with a ROS 2 bag by its metadata file."""
    if path.is_dir():
        return (path / METADATA_FILE).is_file()
    return path.suffix.lower() in SUFFIXES


def read_bag(path: Path) -> Telemetry:
    """The positions, attitude and battery of a bag. Raises SourceError where it has none."""
    telemetry = survey(path).telemetry
    if not telemetry.series:
        raise SourceError(f"{path}: no positions in this bag; a NavSatFix or LocationFix topic is needed")
    return telemetry


class BagSource:
    """The pictures of one topic; a frame's name is its number, its time the message's own or that of its recording.

    A picture that cannot be decoded goes to `skipped`, so does what is missing of a damaged bag. telemetry: what the
    bag says of the flight. topic: the one that was taken. topics: all of them, with type and number of messages.

    Raises
    ------
    SourceError
        The bag cannot be read, has no pictures, or not in `topic`.
    """

    def __init__(self, path: Path, topic: str = "") -> None:
        self.uri = str(path)
        self.live = False
        self.skipped: list[Skipped] = []
        self._path = path
        self._closed = False
        contents = survey(path)
        self.topic = _choose(path, contents, topic)
        chosen = contents.pictures[self.topic]
        self.length: int | None = chosen.count
        self.first_ns = chosen.begins_ns
        span_s = (chosen.last_ns - chosen.first_ns) * 1e-9
        self.fps: float | None = (chosen.count - 1) / span_s if span_s > 0 else None
        self.telemetry, self.topics = contents.telemetry, contents.topics
        self.problems = contents.telemetry.problems

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield the pictures in the order of the bag; one that is out of order shares the time of the one before.

        Pictures that were recorded before `start_s` are counted, not decoded.
        """
        self._closed = False
        decoder, index, t_ns = Decoder(), 0, 0
        known = bool(self.telemetry.series)
        for message in messages(self._path, Problems()):
            if self._closed:
                return
            if message.topic.name != self.topic or message.topic.kind not in IMAGES:
                continue
            if message.t_ns < self.first_ns + round(start_s * 1e9) - STAMP_TOLERANCE_NS:
                index += 1
                continue
            try:
                decoded = decoder.decode(message)
                image, data = picture(message.topic, decoded)
            except BAD as error:
                self.skipped.append(Skipped(name=str(index), reason=reason(error)))
            else:
                t_ns = max(t_ns, stamp_ns(decoded, message.t_ns))
                pose = self.telemetry.pose(t_ns) if known else Pose()
                yield Frame(index=index, t_ns=t_ns, name=str(index), image=image, pose=pose, encoded=data)
            index += 1
        self.skipped += [Skipped(name=self._path.name, reason=problem) for problem in self.problems]

    def close(self) -> None:
        """End iterating at the next frame; the file is closed with it."""
        self._closed = True


def survey(path: Path) -> Contents:
    """Read a bag once, all but the pixels. Raises SourceError where it cannot be opened or nothing of it be read."""
    problems = Problems()
    decoder = Decoder()
    pictures: dict[str, Pictures] = {}
    topics: dict[str, tuple[str, int]] = {}
    columns: dict[tuple[str, str], _Columns] = {}
    for message in messages(path, problems):
        topic = message.topic
        topics[topic.name] = topic.kind, topics.get(topic.name, ("", 0))[1] + 1
        is_height = topic.kind in HEIGHTS and topic.name.rpartition("/")[2] == HEIGHT_TOPIC
        if topic.kind not in WANTED and not is_height:
            continue
        if topic.kind in IMAGES:
            _look(pictures.setdefault(topic.name, Pictures()), message, decoder)
            continue
        read = height if is_height else fix if topic.kind in FIXES else battery if topic.kind in BATTERIES else attitude
        try:
            decoded = decoder.decode(message)
            values, t_ns = read(decoded), stamp_ns(decoded, message.t_ns)
        except BAD as error:
            problems.add(f"{topic.name}: damaged: a message is left out: {reason(error)}")
            continue
        if values:
            columns.setdefault((topic.name, topic.kind), _Columns()).add(t_ns, values)
    if not topics:
        told = "; ".join(problems.lines()[:2])
        raise SourceError(f"{path}: not one message of this bag can be read{f' ({told})' if told else ''}")
    return Contents(pictures, _telemetry(path, columns, problems), topics)


def _look(seen: Pictures, message: BagMessage, decoder: Decoder) -> None:
    """Count a picture; the first ones are decoded for their size, the last ones only for their time."""
    t_ns = message.t_ns
    if not seen.pixels and seen.tries < TRIES:
        seen.tries += 1
        try:
            decoded = decoder.decode(message)
            image, _ = picture(message.topic, decoded)
            seen.pixels, seen.begins_ns = image.shape[0] * image.shape[1], stamp_ns(decoded, t_ns)
        except BAD as error:
            seen.problem = reason(error)
    seen.first_ns = seen.first_ns if seen.count else t_ns
    seen.last_ns = max(seen.last_ns, t_ns)
    seen.count += 1


class _Columns:
    """The values of one topic while they are read."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[array[int], array[float]]] = {}

    def add(self, t_ns: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            times, column = self._values.setdefault(name, (array("q"), array("d")))
            times.append(t_ns)
            column.append(value)

    def series(self, topic: str) -> dict[str, Series]:
        made = {
            name: series(f"{topic} {name}", np.array(times), np.array(column))
            for name, (times, column) in self._values.items()
        }
        return {name: one for name, one in made.items() if one is not None}


def _telemetry(path: Path, columns: dict[tuple[str, str], _Columns], problems: Problems) -> Telemetry:
    """The fix with the most points, and the others beside it; the attitude of the best kind; a battery."""
    read = {key: column.series(key[0]) for key, column in columns.items()}
    fixes = sorted((key for key in read if key[1] in FIXES), key=lambda key: -len(read[key]["lat_deg"].t_ns))
    turned = sorted((key for key in read if key[1] in ATTITUDES), key=lambda key: (ATTITUDES.index(key[1]), key[0]))
    charged = sorted(key for key in read if key[1] in BATTERIES)
    high = sorted(key for key in read if key[1] in HEIGHTS)
    chosen: dict[str, Series] = {}
    for keys in (fixes, turned, charged, high):
        if keys:
            chosen |= read[keys[0]]
    first = min((int(one.t_ns[0]) for one in chosen.values()), default=0)
    return Telemetry(
        uri=str(path),
        kind="bag",
        series=chosen,
        alternatives={topic: read[topic, kind] for topic, kind in fixes[1:]},
        utc_ns=0 if first >= UTC_FROM_NS else None,
        problems=problems.lines(),
    )


def _choose(path: Path, contents: Contents, wanted: str) -> str:
    pictures = contents.pictures
    if wanted:
        if wanted not in pictures:
            there = wanted in contents.topics
            what = f"has no pictures but {contents.topics[wanted][0] or 'no type'}" if there else "is not there"
            raise SourceError(f"{path}: the topic {wanted} {what}; topics with pictures: {_list(list(pictures))}")
        return wanted
    if not pictures:
        raise SourceError(f"{path}: no topic with pictures; there are {_list(list(contents.topics))}")
    best = max(pictures, key=lambda name: (pictures[name].pixels, pictures[name].count, name))
    if not pictures[best].pixels:
        raise SourceError(f"{path}: not one picture of {best} can be read: {pictures[best].problem}")
    return best


def _list(names: list[str]) -> str:
    return (", ".join(sorted(names)[:10]) + (" ..." if len(names) > 10 else "")) or "none"
