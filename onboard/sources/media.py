"""PyAV as it is safe on any file: what damage, or a camera's own alphabet, puts into one ends nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import av

S = TypeVar("S", bound="av.stream.Stream")


def opened(path: Path | str) -> av.container.InputContainer:
    """A container to read from; letters of its metadata that are no UTF-8 are replaced. Raises av.FFmpegError."""
    return av.open(str(path), metadata_errors="replace")


def packets(container: av.container.InputContainer, stream: S) -> Iterator["av.Packet[S]"]:
    """The packets of one stream, and an empty one at the end. Raises av.FFmpegError."""
    while True:
        try:
            yield from container.demux(stream)  # type: ignore[misc]  # it knows the kind of no stream that is given
        except IndexError:  # a packet of a stream that was found behind the header: it is passed over
            continue
        return
