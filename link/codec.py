"""Messages to bytes and back: MessagePack arrays that begin with the message's tag.

Whatever is wrong with received bytes comes out as one `LinkError`, so that a reader has one thing to catch.
"""

from typing import NoReturn

import msgspec

from link.messages import MAX_MESSAGE_BYTES, Message
from models.errors import LinkError

ENVELOPE_BYTES = 32
"""Room that the channel's numbering needs around a message, at most."""
MAX_BODY_BYTES = MAX_MESSAGE_BYTES - ENVELOPE_BYTES
"""Bound on one encoded message, so that the numbered frame stays within `MAX_MESSAGE_BYTES`."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The bytes of a message.

    Raises LinkError where `decode` would refuse them: larger than `MAX_BODY_BYTES`, a field of the wrong type (structs
    do not check theirs), a number beyond 64 bits.

    >>> from link.messages import Undo
    >>> encode(Undo(label=7)).hex()
    '921207'
    """
    try:
        data = _encoder.encode(message)
        decode(data)
    except (TypeError, ValueError, OverflowError, LinkError) as error:
        raise LinkError(f"a {type(message).__name__} cannot be sent: {error}") from error
    return data


def decode(data: bytes) -> Message:
    """The message in `data`. Raises LinkError for everything else."""
    if len(data) > MAX_BODY_BYTES:
        refuse(data, f"larger than {MAX_BODY_BYTES} bytes")
    try:
        return _decoder.decode(data)
    except (ValueError, RecursionError) as error:
        refuse(data, str(error), error)


def refuse(data: bytes, reason: str, cause: BaseException | None = None) -> NoReturn:
    """Raise the LinkError for bytes that are no message; it shows their size and first bytes."""
    raise LinkError(f"not a message of this protocol ({len(data)} bytes, 0x{data[:8].hex()}): {reason}") from cause
