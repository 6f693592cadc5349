"""The records of an MCAP file from its first byte on, whole or not: what the power left of a file is a file too.

The library's readers end with an exception where a file does, and trust lengths. Here a damaged chunk is passed over,
and what is behind the last whole record is told and not raised.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import lz4.frame  # type: ignore[import-untyped]
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Attachment, Channel, Chunk, Header, McapRecord, Message, Metadata, Schema
from mcap.writer import MCAP0_MAGIC

from models.errors import SourceError

MAX_CHUNK_BYTES = 1 << 30
"""Bound on a chunk's data, so that a damaged size does not take all memory."""
PROBLEMS_TOLD = 20
FIRST_PRIVATE_OPCODE = 0x80
_RECORD = struct.Struct("<BQ")
_DATA_END = (Opcode.DATA_END, 4)
_MESSAGE = struct.Struct("<HIQQ")
_KINDS: dict[int, Any] = {
    Opcode.HEADER: Header,
    Opcode.SCHEMA: Schema,
    Opcode.CHANNEL: Channel,
    Opcode.ATTACHMENT: Attachment,
    Opcode.METADATA: Metadata,
}
_DAMAGE = (McapError, ValueError, struct.error, RuntimeError, zstandard.ZstdError, EOFError, MemoryError, OverflowError)


class Problems:
    """Lines about damage, at most `PROBLEMS_TOLD` and then a count."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = 0

    def add(self, line: str) -> None:
        """Tell one more."""
        if len(self._lines) < PROBLEMS_TOLD:
            self._lines.append(line)
        else:
            self._more += 1

    def lines(self) -> tuple[str, ...]:
        """What was told."""
        return (*self._lines, *([f"and {self._more} more of the kind"] if self._more else []))


def records(path: Path, problems: Problems, salvage: bool = True) -> Iterator[McapRecord]:
    """Headers, schemas, channels, messages, metadata and attachments, in the order of the file.

    salvage: messages of a chunk that the file's end cuts are given too, though nothing proves them; without it a chunk
    comes whole or not at all. Raises SourceError for a file that cannot be opened or does not begin as an MCAP.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        try:
            if file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
                raise SourceError(f"{path}: this is no MCAP file, or its beginning is damaged")
            yield from _records(file, os.fstat(file.fileno()).st_size, path.name, problems, salvage)
        except OSError as error:
            problems.add(f"{path.name}: damaged: the disk gives no more: {error.strerror}")


def _records(file: BinaryIO, size: int, name: str, problems: Problems, salvage: bool) -> Iterator[McapRecord]:
    at = file.tell()
    while True:
        head = file.read(_RECORD.size)
        if len(head) < _RECORD.size:
            problems.add(f"{name}: truncated: no end mark; the file ends at byte {size}")
            return
        opcode, length = _RECORD.unpack(head)
        if (opcode, length) == _DATA_END:
            file.seek(max(0, size - len(MCAP0_MAGIC)))
            if file.read() != MCAP0_MAGIC:
                problems.add(f"{name}: truncated: all records are there, the index at its end is not")
            return
        at += _RECORD.size
        if not 0 < opcode < Opcode.DATA_END and opcode < FIRST_PRIVATE_OPCODE:
            problems.add(f"{name}: damaged: no record at byte {at - _RECORD.size}; nothing behind it can be read")
            return
        cut = at + length > size
        if cut:
            problems.add(f"{name}: truncated: a record of {length} bytes begins at byte {at}, the file ends at {size}")
        try:
            if cut:
                if salvage and opcode == Opcode.CHUNK:
                    yield from _whole(_unpacked(Chunk.read(ReadDataStream(io.BytesIO(file.read())))))
            elif opcode == Opcode.CHUNK:
                yield from _whole(_chunk(file.read(length)))
            elif opcode == Opcode.MESSAGE:
                yield _message(file.read(length))
            elif kind := _KINDS.get(opcode):
                yield kind.read(ReadDataStream(io.BytesIO(file.read(length))))
        except _DAMAGE as error:
            problems.add(f"{name}: damaged: the record at byte {at - _RECORD.size} is left out: {error}")
        if cut:
            return
        at += length
        file.seek(at)


def _chunk(data: bytes) -> bytes:
    """The records of a chunk. Raises one of `_DAMAGE` where they are not what was written."""
    chunk = Chunk.read(ReadDataStream(io.BytesIO(data)))
    inner = _unpacked(chunk)
    if len(inner) != chunk.uncompressed_size:
        raise ValueError(f"{len(inner)} of {chunk.uncompressed_size} bytes")
    if chunk.uncompressed_crc and zlib.crc32(inner) != chunk.uncompressed_crc:
        raise ValueError("its checksum is another")
    return inner


def _unpacked(chunk: Chunk) -> bytes:
    """The data of a chunk, as far as it goes."""
    size = chunk.uncompressed_size
    if size > MAX_CHUNK_BYTES:
        raise ValueError(f"a chunk of {size} bytes is not believed")
    if chunk.compression == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(chunk.data) as stream:
            return bytes(stream.read(size + 1))
    if chunk.compression == "lz4":
        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, max_length=size + 1))
    if chunk.compression:
        raise ValueError(f"a chunk packed by '{chunk.compression[:20]}' cannot be read here")
    return chunk.data


def _whole(data: bytes) -> Iterator[McapRecord]:
    """The whole records in a chunk's data."""
    at = 0
    while at + _RECORD.size <= len(data):
        opcode, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if at + length > len(data):
            return
        if opcode == Opcode.MESSAGE:
            yield _message(data[at : at + length])
        elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
            yield _KINDS[opcode].read(ReadDataStream(io.BytesIO(data[at : at + length])))
        at += length


def _message(data: bytes) -> Message:
    channel, sequence, log_ns, publish_ns = _MESSAGE.unpack_from(data)
    return Message(
        channel_id=channel, sequence=sequence, log_time=log_ns, publish_time=publish_ns, data=data[_MESSAGE.size :]
    )
