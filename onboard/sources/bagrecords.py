"""The messages of a ROS 1 bag, a ROS 2 bag or a foreign MCAP file, in the order of the file, as far as it can be read.

What lies before damage is given, and damage is told, not raised: a bag is often torn where it matters most.
"""

import bz2
import os
import re
import sqlite3
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import lz4.frame  # type: ignore[import-untyped]
import msgspec
import zstandard
from mcap.records import Channel, Message, Schema

from models.errors import SourceError
from onboard.sources.mcaprecords import MAX_CHUNK_BYTES, Problems, records

BAG1_MAGIC = b"#ROSBAG V2.0\n"
STORAGE_SUFFIXES = (".db3", ".mcap")
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SQLITE_STEPS = (1, 16, 256, 4096, 65536)
"""So many rows are left out, one after the other, behind one that cannot be read."""
SQLITE_TRIES = 500
MAX_T_NS = 2**62
"""The year 2116: later times are damaged."""
# an index, which may be damaged too, is not asked
_ROWS = "SELECT rowid, topic_id, timestamp, data FROM messages NOT INDEXED WHERE rowid > ? ORDER BY rowid"
_SQLITE_HEAD = struct.Struct(">16xH10xI")  # size of a page, number of pages
_SQLITE_DAMAGE = (sqlite3.Error, ValueError, MemoryError)  # ValueError: words that are no UTF-8, also in its own errors
SUSPECT_PAGES = 4
"""The end of a cut database that is not believed where it looks torn."""
_OP_MESSAGE, _OP_CHUNK, _OP_CONNECTION = 2, 5, 7
_LENGTH = struct.Struct("<I")
_TIME = struct.Struct("<II")


_Row = tuple[object, object, object]  # topic, time, data


class Topic(msgspec.Struct, frozen=True):
    """Where a message was sent. kind: its type, `sensor_msgs/msg/Image`. encoding: ros1, cdr, protobuf or json.

    schema: the definition of the type as the file gives it, empty where it gives none.
    """

    name: str
    kind: str
    encoding: str
    schema: str = ""


class BagMessage(msgspec.Struct, frozen=True):
    """One message; t_ns: when it was recorded."""

    topic: Topic
    t_ns: int
    data: bytes


def messages(path: Path, problems: Problems) -> Iterator[BagMessage]:
    """All messages of a .bag, an .mcap, a .db3, or a folder with a ROS 2 bag. Raises SourceError for no such thing."""
    for file in storage_files(path) if path.is_dir() else [path]:
        for message in _messages(file, problems):
            if 0 <= message.t_ns < MAX_T_NS:
                yield message
            else:
                problems.add(f"{file.name}: damaged: a message of {message.topic.name} has a time of {message.t_ns} ns")


def _messages(path: Path, problems: Problems) -> Iterator[BagMessage]:
    if path.suffix.lower() == ".db3":
        yield from _sqlite(path, problems)
    elif path.suffix.lower() == ".bag":
        yield from _bag1(path, problems)
    else:
        yield from _mcap(path, problems)


def storage_files(folder: Path) -> list[Path]:
    """The files of a ROS 2 bag, by their numbers. Raises SourceError where there are none, or packed ones."""

    def order(file: Path) -> tuple[int, str]:
        number = re.search(r"_(\d+)$", file.stem)
        return int(number[1]) if number else -1, file.name

    try:
        files = sorted((f for f in folder.iterdir() if f.suffix.lower() in STORAGE_SUFFIXES), key=order)
        packed = [f for f in folder.iterdir() if f.suffix == ".zstd"]
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read: {error.strerror}") from error
    if packed and not files:
        raise SourceError(f"{packed[0]}: a packed bag; unpack its files first: zstd -d {packed[0].name}")
    if not files:
        raise SourceError(f"{folder}: no ROS 2 bag, it has no {' or '.join(STORAGE_SUFFIXES)} file")
    return files


# --- MCAP ----------------------------------------------------------------------------------------------------------


def _mcap(path: Path, problems: Problems) -> Iterator[BagMessage]:
    schemas: dict[int, Schema] = {}
    topics: dict[int, Topic] = {}
    for record in records(path, problems):
        if isinstance(record, Schema):
            schemas[record.id] = record
        elif isinstance(record, Channel):
            schema = schemas.get(record.schema_id)
            text = schema.data.decode(errors="replace") if schema and schema.encoding == "ros2msg" else ""
            topics[record.id] = Topic(record.topic, schema.name if schema else "", record.message_encoding, text)
        elif isinstance(record, Message) and record.channel_id in topics:
            yield BagMessage(topics[record.channel_id], record.log_time, record.data)


# --- SQLite --------------------------------------------------------------------------------------------------------


def _sqlite(path: Path, problems: Problems) -> Iterator[BagMessage]:
    try:
        with path.open("rb") as stream:
            head = _SQLITE_HEAD.unpack(stream.read(_SQLITE_HEAD.size).ljust(_SQLITE_HEAD.size, b"\0"))
            size = os.fstat(stream.fileno()).st_size
        page = head[0] if head[0] > 1 else 65536
        if cut := (wanted := page * head[1]) > size:
            problems.add(f"{path.name}: truncated: the file has {size} of {wanted} bytes")
        file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    except sqlite3.Error as error:
        raise SourceError(f"{path}: cannot be opened as a ROS 2 bag: {error}") from error
    with closing(file):
        file.text_factory = lambda data: data.decode(errors="replace")
        try:
            # the one way to make SQLite read a file that is shorter than its header says; nothing can be written here
            file.execute("PRAGMA writable_schema = ON")
            table = file.execute("SELECT id, name, type, serialization_format FROM topics").fetchall()
        except _SQLITE_DAMAGE as error:
            raise SourceError(f"{path}: not a ROS 2 bag, or its beginning is damaged: {error}") from error
        topics = {id: Topic(str(name), str(kind), str(encoding)) for id, name, kind, encoding in table}
        found = _rows(file, path.name, problems)
        for topic, t_ns, data in _without_torn(found, SUSPECT_PAGES * page) if cut else found:
            if topic in topics and isinstance(t_ns, int) and isinstance(data, bytes):
                if data.startswith(ZSTD_MAGIC):
                    try:
                        data = zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_CHUNK_BYTES)
                    except zstandard.ZstdError as error:
                        problems.add(f"{path.name}: damaged: a message cannot be unpacked: {error}")
                        continue
                yield BagMessage(topics[topic], t_ns, data)


def _rows(file: sqlite3.Connection, name: str, problems: Problems) -> Iterator[_Row]:
    """Rows by their numbers, which is the order in which they were written; those on damaged pages are left out.

    Numbers may be damaged as well: those that do not rise are not believed, so that this ends.
    """
    at, failures = -(2**63), 0
    for _ in range(SQLITE_TRIES):
        try:
            for number, *row in file.execute(_ROWS, (at,)):
                if not isinstance(number, int) or number <= at:
                    raise ValueError("its rows are out of order")
                at, failures = number, 0
                yield row[0], row[1], row[2]
        except _SQLITE_DAMAGE as error:
            if not failures:
                problems.add(f"{name}: damaged: behind row {max(at, 0)} the database cannot be read: {error}")
            if failures == len(SQLITE_STEPS):
                return
            at = max(at, 0) + SQLITE_STEPS[failures]
            failures += 1
        else:
            return


def _without_torn(rows: Iterator[_Row], window: int) -> Iterator[_Row]:
    """The rows but for those that the cut may have torn: SQLite reads what is missing of the last page as zeros.

    So a torn row is one of the last, and its data, which is its last column, ends in a zero.
    """
    last: deque[_Row] = deque()
    size = 0
    for row in rows:
        last.append(row)
        size += _size(row)
        while len(last) > 1 and size - _size(last[0]) > window:
            size -= _size(last[0])
            yield last.popleft()
    yield from (row for row in last if isinstance(row[2], bytes) and not row[2].endswith(b"\0"))


def _size(row: _Row) -> int:
    return len(row[2]) if isinstance(row[2], bytes) else 0


# --- ROS 1 ---------------------------------------------------------------------------------------------------------


def _bag1(path: Path, problems: Problems) -> Iterator[BagMessage]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        magic = file.read(len(BAG1_MAGIC))
        if magic != BAG1_MAGIC:
            raise SourceError(f"{path}: not a ROS 1 bag of version 2.0, or its beginning is damaged")
        yield from _Bag1(file, os.fstat(file.fileno()).st_size, path.name, problems).messages()


class _Bag1:
    """Walks the records from the beginning; the index at a bag's end, which a torn one lacks, is not needed."""

    def __init__(self, file: BinaryIO, size: int, name: str, problems: Problems) -> None:
        self._file, self._size, self._name, self._problems = file, size, name, problems
        self._topics: dict[int, Topic] = {}

    def messages(self) -> Iterator[BagMessage]:
        index_at: int | None = None
        while (at := self._file.tell()) < self._size:
            header = self._block()
            fields = None if header is None else _fields(header)
            length = self._file.read(_LENGTH.size)
            if fields is None or len(length) < _LENGTH.size:
                what = "truncated" if self._file.tell() >= self._size else "damaged"
                self._problems.add(f"{self._name}: {what}: no whole record from byte {at} on, of {self._size}")
                return
            wanted, left = _LENGTH.unpack(length)[0], self._size - self._file.tell()
            if wanted > left:
                self._problems.add(
                    f"{self._name}: truncated: a record of {wanted} bytes at byte {at}, the file has {left} more"
                )
            op = _number(fields.get(b"op", b""))
            if index_at is None:  # the bag's own header comes first
                index_at = _number(fields.get(b"index_pos", b""))
            if op in (_OP_CHUNK, _OP_CONNECTION, _OP_MESSAGE):
                data = self._file.read(min(wanted, left))
                if op == _OP_CHUNK:
                    yield from self._chunk(fields, data, at)
                elif wanted <= left:
                    yield from self._record(op, fields, data)
            else:
                self._file.seek(min(wanted, left), os.SEEK_CUR)
        if not index_at:
            self._problems.add(f"{self._name}: truncated: it was never closed and has no index")
        elif index_at >= self._size:
            self._problems.add(f"{self._name}: truncated: its index, at byte {index_at}, is missing")

    def _block(self) -> bytes | None:
        """The bytes behind their length, None where the file has not so many."""
        length = self._file.read(_LENGTH.size)
        if len(length) < _LENGTH.size or (size := _LENGTH.unpack(length)[0]) > self._size - self._file.tell():
            return None
        return self._file.read(size)

    def _chunk(self, fields: dict[bytes, bytes], data: bytes, at: int) -> Iterator[BagMessage]:
        """The messages of a chunk, as far as it goes."""
        packed = fields.get(b"compression", b"none")
        size = _number(fields.get(b"size", b""))
        limit = min(size, MAX_CHUNK_BYTES) if size >= 0 else MAX_CHUNK_BYTES
        try:
            if packed == b"bz2":
                inner = bz2.BZ2Decompressor().decompress(data, max_length=limit)
            elif packed == b"lz4":
                inner = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=limit)
            elif packed == b"none":
                inner = data
            else:
                raise ValueError(f"packed by '{packed[:20].decode(errors='replace')}'")
        except (OSError, ValueError, RuntimeError, EOFError, MemoryError) as error:
            self._problems.add(f"{self._name}: damaged: the chunk at byte {at} cannot be unpacked: {error}")
            return
        place = 0
        while place + _LENGTH.size <= len(inner):
            header_end = place + _LENGTH.size + _LENGTH.unpack_from(inner, place)[0]
            if header_end + _LENGTH.size > len(inner):
                break
            record = _fields(inner[place + _LENGTH.size : header_end])
            place = header_end + _LENGTH.size + _LENGTH.unpack_from(inner, header_end)[0]
            if record is None or place > len(inner):
                break
            yield from self._record(_number(record.get(b"op", b"")), record, inner[header_end + _LENGTH.size : place])
        else:
            if len(inner) >= size:
                return
        self._problems.add(f"{self._name}: damaged: the chunk at byte {at} ends within a record")

    def _record(self, op: int, fields: dict[bytes, bytes], data: bytes) -> Iterator[BagMessage]:
        connection = _number(fields.get(b"conn", b""))
        if op == _OP_CONNECTION:
            about = _fields(data) or {}
            kind = about.get(b"type", b"").decode(errors="replace")
            package, slash, name = kind.partition("/")
            topic = fields.get(b"topic", b"").decode(errors="replace")
            self._topics[connection] = Topic(topic, f"{package}/msg/{name}" if slash else kind, "ros1")
        elif op == _OP_MESSAGE and connection in self._topics and len(time := fields.get(b"time", b"")) == _TIME.size:
            seconds, nanoseconds = _TIME.unpack(time)
            yield BagMessage(self._topics[connection], seconds * 10**9 + nanoseconds, data)


def _fields(header: bytes) -> dict[bytes, bytes] | None:
    """name=value, each behind its length; None where it is damaged."""
    fields, at = {}, 0
    while at < len(header):
        if at + _LENGTH.size > len(header):
            return None
        end = at + _LENGTH.size + _LENGTH.unpack_from(header, at)[0]
        name, equals, value = header[at + _LENGTH.size : end].partition(b"=")
        if end > len(header) or not equals:
            return None
        fields[name] = value
        at = end
    return fields


def _number(data: bytes) -> int:
    """A little-endian number; -1 where there is none."""
    return int.from_bytes(data, "little") if 0 < len(data) <= 8 else -1
