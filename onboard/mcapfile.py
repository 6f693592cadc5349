"""One MCAP file that survives what happens to files in flight: a kill, a power cut, a torn write, a full disk.

Records are collected in memory and written whole, in one piece, so that what is on the disk ends at a record. There is
no compression: nearly all bytes are JPEG already, and a file without it is readable to its last byte when it is torn.
What a sync has brought to the disk is never written to again, not even the rest of its last block.
"""

import contextlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import msgspec
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message as ProtobufMessage
from mcap.data_stream import RecordBuilder
from mcap.records import DataEnd, Footer
from mcap.writer import MCAP0_MAGIC, CompressionType, Writer

from link import codec
from link.messages import Message
from onboard import durable
from onboard.flown import Flown

CHUNK_BYTES = 64 * 1024
"""No chunk's data is larger, except for a single message that is."""
BLOCK_BYTES = 4096
"""A disk writes whole blocks: a power cut can take all of the one that it was writing."""
PADDING = 0x80
"""Opcode of a record of zeros that fills a block; those from 0x80 on are private, and readers pass them over."""
_RECORD_BYTES = 9  # opcode and length before each record
_MESSAGE_BYTES = _RECORD_BYTES + 22  # and a message's fields before its data
_MAX_T_NS = 2**63 - 1


class McapFile:
    """An MCAP file for Foxglove messages and our own, open for writing; channels appear with their first message.

    metadata: name -> key -> text, written once at the start; it is on the disk, and the file's name too, when this
    returns. Every method that writes raises OSError where the disk
    does not take it; the file then ends at its last whole record, and only `abandon` may follow.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Mapping[str, str]]) -> None:
        self._output = _Output(path)
        self._channels: dict[tuple[str, str], int] = {}
        self._schemas: dict[str, int] = {}
        self._sequence: dict[int, int] = {}
        self._writer: Any = Writer(
            # no limit of the writer's: it would close a chunk only when it is too large
            cast(IO[bytes], self._output),
            chunk_size=2**62,
            compression=CompressionType.NONE,
        )
        self._writer.start(library="hadanet-uav")
        for name, entries in metadata.items():
            self._writer.add_metadata(name, dict(entries))
        self._chunk = self._messages = 0  # bytes and messages in the chunk that is being filled
        self._output.sync()
        durable.sync_folder(path.parent)

    @property
    def size(self) -> int:
        """Bytes of the file so far, less the chunk that is being filled."""
        return self._output.tell()

    def add(self, topic: str, message: ProtobufMessage | Message | Flown, t_ns: int) -> None:
        """Add a message. Raises ValueError or LinkError, and writes nothing, where it is no sound message."""
        if not 0 <= t_ns <= _MAX_T_NS:
            raise ValueError(f"a time of {t_ns} ns is outside 1970 .. 2262")
        if isinstance(message, ProtobufMessage):
            name, data = str(message.DESCRIPTOR.full_name), message.SerializeToString()
        elif isinstance(message, Flown):
            name, data = f"hadanet.{type(message).__name__}", msgspec.msgpack.encode(message)
        else:
            name, data = f"hadanet.{type(message).__name__}", codec.encode(message)
        channel = self._channels.get((topic, name)) or self._channel(topic, name, message)
        if self._chunk + len(data) + _MESSAGE_BYTES > CHUNK_BYTES:
            self._end_chunk()
        self._sequence[channel] += 1
        self._writer.add_message(channel, t_ns, data, t_ns, self._sequence[channel])
        self._chunk += len(data) + _MESSAGE_BYTES
        self._messages += 1
        if self._chunk > CHUNK_BYTES:
            self._end_chunk()
        if self._output.collected > CHUNK_BYTES:
            self._output.push()

    def attach(self, name: str, media_type: str, data: bytes) -> None:
        """Add a file, under a name."""
        self._writer.add_attachment(0, 0, name, media_type, data)

    def flush(self) -> None:
        """Close the chunk and write everything collected: a kill takes none of it any more."""
        self._end_chunk()
        self._output.push()

    def sync(self) -> None:
        """Flush, and wait until the disk has it: a power cut takes none of it any more."""
        self._end_chunk()
        self._output.sync()

    def _end_chunk(self) -> None:
        if self._messages:
            self._writer.flush()  # into our own output, which collects
            self._chunk = self._messages = 0

    def finish(self) -> None:
        """Write the index and close the file."""
        self._writer.finish()
        self._output.sync(pad=False)
        self._output.close()

    def abandon(self) -> None:
        """Close a file on a disk that refuses: no index, but a proper end if a few bytes still fit. Raises nothing."""
        end: Any = RecordBuilder()
        DataEnd(0).write(end)
        Footer(summary_start=0, summary_offset_start=0, summary_crc=0).write(end)
        self._output.abandon(end.end() + MCAP0_MAGIC)

    def _channel(self, topic: str, name: str, message: ProtobufMessage | Message | Flown) -> int:
        if isinstance(message, ProtobufMessage):
            encoding, schema_encoding = "protobuf", "protobuf"
            schema = _file_descriptors(message)
        else:
            encoding, schema_encoding = "msgpack", "jsonschema"
            schema = _json_schema(type(message))
        if name not in self._schemas:
            self._schemas[name] = self._writer.register_schema(name, schema_encoding, schema)
            self._chunk += len(name) + len(schema) + 2 * _MESSAGE_BYTES
        channel = int(self._writer.register_channel(topic, encoding, self._schemas[name]))
        self._channels[topic, name] = channel
        self._sequence[channel] = 0
        self._chunk += len(topic) + 2 * _MESSAGE_BYTES
        return channel


def _file_descriptors(message: ProtobufMessage) -> bytes:
    """The FileDescriptorSet of a message's type and of all that it imports, imported files first."""
    out: dict[str, FileDescriptor] = {}

    def visit(file: FileDescriptor) -> None:
        if file.name not in out:
            for dependency in file.dependencies:
                visit(dependency)
            out[file.name] = file

    visit(message.DESCRIPTOR.file)
    files = FileDescriptorSet()
    for file in out.values():
        file.CopyToProto(files.file.add())
    return bytes(files.SerializeToString())


def _json_schema(kind: type[Message] | type[Flown]) -> bytes:
    """The schema of one of our messages: an array that begins with the tag; each place carries its field's name."""
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
    for place, field in zip(schema["prefixItems"], ["tag", *kind.__struct_fields__], strict=True):
        place["title"] = field
        if place.pop("contentEncoding", None):
            place["description"] = "bytes (MessagePack bin)"
    return msgspec.json.encode(schema)


class _Output:
    """The stream that `Writer` writes to. It collects; `push` writes all of it, or cuts the file back and raises."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._pending = bytearray()
        self._written = 0

    @property
    def collected(self) -> int:
        return len(self._pending)

    def write(self, data: bytes) -> int:
        self._pending += data
        return len(data)

    def tell(self) -> int:
        return self._written + len(self._pending)

    def flush(self) -> None:
        """The writer calls this after each chunk; what counts is `push`."""

    def push(self) -> None:
        done = 0
        try:
            with memoryview(self._pending) as pending:
                while done < len(pending):
                    done += os.write(self._file, pending[done:])
        except OSError:
            os.ftruncate(self._file, self._written)
            os.lseek(self._file, self._written, os.SEEK_SET)
            raise
        self._written += done
        self._pending.clear()

    def sync(self, pad: bool = True) -> None:
        if pad and (short := -self.tell() % BLOCK_BYTES):
            zeros = short - _RECORD_BYTES if short >= _RECORD_BYTES else short - _RECORD_BYTES + BLOCK_BYTES
            self._pending += struct.pack("<BQ", PADDING, zeros) + bytes(zeros)
        self.push()
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def abandon(self, end: bytes) -> None:
        self._pending = bytearray(end)
        for step in (self.push, self.close):
            with contextlib.suppress(OSError):  # without an end the file stays readable up to here
                step()
        self._pending.clear()
