"""A camera in the network: ``rtsp://192.168.1.64:554/stream``; where it asks for them, name:password@ before the host.

Over TCP, because a lost packet costs a picture otherwise. Frames are stamped as they arrive.
"""

import contextlib
import threading
from collections.abc import Iterator

import av
import numpy as np

from models.errors import SourceError
from onboard import clock
from onboard.frame import Frame, Pose, Skipped
from onboard.sources.uri import shown

OPEN_S = 8.0
STALL_S = 5.0
OPTIONS = {"rtsp_transport": "tcp", "fflags": "nobuffer"}
MAX_FAILURES = 50
"""Damaged packets in a row after which the stream counts as lost; until a key frame comes there are many."""


class RtspSource:
    """Frames of a stream, as they come.

    Raises
    ------
    SourceError
        Nobody answers there, or there is no video. While iterating: it ended, or nothing came in STALL_S.
    """

    def __init__(self, uri: str) -> None:
        self.uri = shown(uri)
        self.length: int | None = None
        self.live = True
        self.first_ns = 0
        self.skipped: list[Skipped] = []
        self._closed = threading.Event()
        try:
            self._container = av.open(uri, options=OPTIONS, timeout=(OPEN_S, STALL_S))
        except (av.FFmpegError, ValueError) as error:
            raise SourceError(f"{self.uri}: cannot be opened: {_words(error)}; is the camera there?") from error
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"{self.uri}: there is no video in this stream")
        self._stream = self._container.streams.video[0]
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps: float | None = float(rate) if rate else None

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield frames until `close`."""
        index = failures = 0
        try:
            for packet in self._container.demux(self._stream):
                if self._closed.is_set():
                    return
                try:
                    decoded = packet.decode()
                except av.FFmpegError as error:  # usual until the first key frame, so it is not told each time
                    failures += 1
                    if failures == MAX_FAILURES:
                        raise SourceError(f"{self.uri}: nothing of this stream can be decoded any more") from error
                    continue
                failures = 0
                for frame in decoded:
                    image = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
                    yield Frame(index=index, t_ns=clock.now_ns(), name=str(index), image=image, pose=Pose())
                    index += 1
        except av.FFmpegError as error:
            raise SourceError(f"{self.uri}: the stream broke off: {_words(error)}") from error
        if not self._closed.is_set():
            raise SourceError(f"{self.uri}: the camera ended the stream")

    def close(self) -> None:
        """End iterating at the next packet, and hang up."""
        if not self._closed.is_set():
            self._closed.set()
            with contextlib.suppress(av.FFmpegError):
                self._container.close()


def _words(error: av.FFmpegError | ValueError) -> str:
    return (getattr(error, "strerror", None) or type(error).__name__).lower()
