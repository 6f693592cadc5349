"""A video file, frame by frame, with the times that its container gives.

Frames are decoded when they are asked for. Where a file is damaged, all frames before and those from the next key
frame on are yielded, and the ones between are put down in `skipped`.
"""

import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from models.errors import SourceError
from onboard.frame import Frame, Pose, Skipped
from onboard.sources import media
from onboard.sources.pictures import DAMAGE, decode, reason

SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
REORDER_S = 1.0
"""A key frame is shown by so much later than it is decoded, at most."""
END_TOLERANCE_S = 0.5
"""A file whose last frame ends earlier than its header says, by more than this, is taken for cut off."""


class _Key(NamedTuple):
    """A key frame: its number, where to seek for it and when it is shown, in the stream's own units."""

    number: int
    seek: int
    pts: int


class _Item(NamedTuple):
    """An image with its time in seconds, and the bytes of it alone where it has such; or the reason why it is lost."""

    image: NDArray[np.uint8] | None
    time_s: float | None = None
    reason: str = ""
    encoded: bytes | None = None


class VideoSource:
    """The first video stream of a file; a frame's name is its number, its time counts from the recording's start.

    `first_ns` is the first frame's time; `utc_ns` when the recording began, by the container, None where it does not
    say. `length` is the container's own count and may be None. A frame that cannot be decoded takes a number too, as
    far as the decoder tells.

    Raises
    ------
    SourceError
        The file cannot be read, is no video, has no video stream, or not one frame can be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.uri = str(path)
        self.live = False
        self.skipped: list[Skipped] = []
        self._closed = threading.Event()
        try:
            with media.opened(self.uri) as container:
                if not container.streams.video:
                    raise SourceError(f"{path}: there is no video in this file, only {_kinds(container)}")
                stream = container.streams.video[0]
                rate = stream.average_rate or stream.guessed_rate
                self.length: int | None = stream.frames or None
                self.fps: float | None = float(rate) if rate else None
                self._duration_s = _duration_s(container, stream)
                self.utc_ns: int | None = _created_ns(container)
                self._is_pictures = _is_pictures(container, stream)
        except av.FFmpegError as error:
            raise SourceError(f"{path}: cannot be read as a video: {_words(error)}; does it play elsewhere?") from error
        first = next(self.frames(), None)
        if first is None:
            raise SourceError(f"{path}: not one frame of this video can be decoded; does it play elsewhere?")
        self.first_ns = first.t_ns
        self.skipped.clear()

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield the frames until the file's end or `close`, from the key frame on that is before `start_s`."""
        key = self._key_before(self.first_ns * 1e-9 + start_s - REORDER_S) if start_s > REORDER_S else None
        index, t_ns = key.number if key else 0, 0
        for item in self._items(key):
            if self._closed.is_set():
                return
            if item.image is None:
                self.skipped.append(Skipped(name=str(index), reason=item.reason))
            else:
                # Damage can put frames out of order; a frame without a time shares that of the one before.
                t_ns = t_ns if item.time_s is None else max(t_ns, round(item.time_s * 1e9))
                image, encoded = item.image, item.encoded
                yield Frame(index=index, t_ns=t_ns, name=str(index), image=image, pose=Pose(), encoded=encoded)
            index += 1
        end_s = t_ns / 1e9 + (1 / self.fps if self.fps else 0.0)  # the last frame is shown, too
        if self._duration_s is not None and end_s + END_TOLERANCE_S < self._duration_s:
            reason = f"the file ends after {end_s:.1f} of {self._duration_s:.1f} s"
            self.skipped.append(Skipped(name=str(index), reason=reason))

    def close(self) -> None:
        """End iterating at the next frame; the file is closed with it."""
        self._closed.set()

    def _key_before(self, time_s: float) -> _Key | None:
        """The last key frame that is decoded by a time and can be found again; None where that is the first, or none.

        Nothing is decoded: frames are counted by the container's index, or by its packets where it has none.
        """
        try:
            with media.opened(self.uri) as container:
                stream = container.streams.video[0]
                decoded, shown = dict[int, int](), dict[int, int]()  # number of each key frame, by both of its times
                for number, (dts, pts, is_key) in enumerate(_packets(container, stream)):
                    if stream.time_base is None or dts * stream.time_base > time_s:
                        break
                    if is_key:
                        decoded[dts] = number
                        shown |= {pts: number} if pts is not None else {}
                if len(decoded) < 2:
                    return None
                place = int(time_s / stream.time_base) if stream.time_base else 0
                container.seek(place, stream=stream)
                packets = media.packets(container, stream)
                first = next(packets)
                if first.pts is None or not first.is_keyframe:
                    return None
                # behind a seek some containers do not know when a frame is decoded
                number = decoded.get(first.dts, -1) if first.dts is not None else shown.get(first.pts, -1)
                if number < 0:
                    return None
                # of an open group, frames that are shown before the key frame come behind it
                ahead = 0
                for packet in packets:
                    if packet.is_keyframe or packet.pts is None:
                        break
                    ahead += packet.pts < first.pts
                return _Key(number + ahead, place, first.pts)
        except (av.FFmpegError, StopIteration):
            return None

    def _items(self, key: _Key | None) -> Iterator[_Item]:
        """What becomes of each frame, from a key frame on if one is given."""
        lost: list[str] = []
        try:
            with media.opened(self.uri) as container:
                stream = container.streams.video[0]
                if key:
                    container.seek(key.seek, stream=stream)
                yield from (_pictures if self._is_pictures else _frames)(container, stream, key, lost)
        except av.FFmpegError as error:
            lost.append(f"the file cannot be read any further: {_words(error)}")
        yield from (_Item(None, reason=reason) for reason in lost)


def _frames(
    container: av.container.InputContainer, stream: av.VideoStream, key: _Key | None, lost: list[str]
) -> Iterator[_Item]:
    """The frames of a video; `lost` takes the packets that gave none, to be told in the order of time."""
    # Time stamp of the damage: decoders fill in what is missing, so nothing from there on can be trusted until a key
    # frame, while frames from before may still be in the decoder.
    damage: int | None = None
    converter = VideoReformatter()
    for packet in media.packets(container, stream):
        if packet.is_corrupt and damage is None:
            damage = _stamp(packet)
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            damage = _stamp(packet) if damage is None else damage
            lost.append(f"damaged: {_words(error)}")
            continue
        for frame in frames:
            stamp = frame.pts or 0
            if key and stamp < key.pts:
                continue
            if damage is not None and stamp >= damage:
                yield from (_Item(None, reason=reason) for reason in lost)
                lost.clear()
            if damage is not None and frame.key_frame and stamp > damage:
                damage = None
            if frame.is_corrupt:
                damage = stamp if damage is None else damage
                yield _Item(None, reason="damaged: only a part of the frame could be decoded")
            elif damage is not None and stamp >= damage:
                yield _Item(None, reason="damaged: it builds on a frame that is damaged")
            else:
                yield _Item(_image(frame, converter), frame.time)


def _pictures(
    container: av.container.InputContainer, stream: av.VideoStream, key: _Key | None, lost: list[str]
) -> Iterator[_Item]:
    """The frames of a video of JPEG files (MJPEG), each with its own bytes, which a recording then keeps."""
    for packet in media.packets(container, stream):
        if not packet.size or (key and packet.pts is not None and packet.pts < key.pts):
            continue
        data, time_base = bytes(packet), packet.time_base
        try:
            image = decode(data)
        except DAMAGE as error:
            yield _Item(None, reason=f"damaged: {reason(error)}")
        else:
            time_s = None if packet.pts is None or time_base is None else float(packet.pts * time_base)
            yield _Item(image, time_s, encoded=data)


def _is_pictures(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Whether each packet of a video is a whole, upright JPEG file of its size (half pictures are none)."""
    if stream.codec_context.name != "mjpeg":
        return False
    try:
        packet = next(media.packets(container, stream))
        upright = all(frame.rotation == 0 for frame in packet.decode())
        return upright and decode(bytes(packet)).shape[:2] == (stream.height, stream.width)
    except (*DAMAGE, av.FFmpegError, StopIteration):
        return False


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[int, int | None, bool]]:
    """When each frame is decoded and shown (None: not told), and whether it is a key frame, as they lie in the file."""
    entries = stream.index_entries
    if stream.frames and len(entries) == stream.frames:
        yield from ((entry.timestamp, None, entry.is_keyframe) for entry in entries if not entry.is_discard)
        return
    for packet in media.packets(container, stream):
        if packet.size and not packet.is_discard:
            yield _stamp(packet, packet.dts), packet.pts, packet.is_keyframe


def _stamp(packet: "av.Packet[av.VideoStream]", best: int | None = None) -> int:
    """The best of its times that it has."""
    return next((stamp for stamp in (best, packet.pts, packet.dts) if stamp is not None), 0)


def _image(frame: av.VideoFrame, converter: VideoReformatter) -> NDArray[np.uint8]:
    # By itself PyAV makes a converter for each frame, and each of them a team of threads.
    plane = converter.reformat(frame, format="bgr24", threads=1).planes[0]
    # the picture itself; it is copied only where its lines are padded, or turned
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    image = lines[:, : 3 * plane.width].reshape(plane.height, plane.width, 3)
    quarters = round(frame.rotation / 90) % 4  # the display matrix turns counter-clockwise, as np.rot90 does
    return np.ascontiguousarray(np.rot90(image, quarters))


def _duration_s(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def _created_ns(container: av.container.InputContainer) -> int | None:
    """The time of creation in the header, in nanoseconds of UTC; cameras that were never set write 1904 or 1970."""
    try:
        created = datetime.fromisoformat(container.metadata.get("creation_time", ""))
    except ValueError:
        return None
    return int(created.timestamp() * 1e6) * 1000 if created.year > 1990 else None


def _kinds(container: av.container.InputContainer) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing that can be played"


def _words(error: av.FFmpegError) -> str:
    return (error.strerror or type(error).__name__).removesuffix(":").lower()
