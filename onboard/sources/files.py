"""What a path names: a folder of photos, a video, a recording of ours, a bag; photos and videos with the flight's log.

Apart from the cameras, because readers of files bring libraries that no live flight needs.
"""

import math
from pathlib import Path

import numpy as np

from models.errors import SourceError
from onboard.frame import Source
from onboard.sources.bags import BagSource, is_bag
from onboard.sources.photos import SUFFIXES as PHOTO_SUFFIXES
from onboard.sources.photos import PhotoSource
from onboard.sources.recording import RecordingSource, is_recording
from onboard.sources.uri import KINDS, texts
from onboard.sources.video import SUFFIXES as VIDEO_SUFFIXES
from onboard.sources.video import VideoSource

LOG_PARAMETERS = {"log": "the file with positions", "offset": "seconds to add to the log's time for the pictures'"}
TOPIC_PARAMETERS = {"topic": "the pictures'"}


def open_path(text: str) -> Source:
    """Open the file or folder that `text` names, which may end in ?parameters. Raises SourceError."""
    path, query = Path(text).expanduser(), ""
    try:
        if "?" in text and not path.exists():  # a path that really contains a question mark goes first
            name, _, query = text.rpartition("?")
            path = Path(name).expanduser()
        if is_recording(path) and not _has_photos(path):
            texts(text, query, {})
            return RecordingSource(path)
        if path.exists() and is_bag(path):
            return BagSource(path, texts(text, query, TOPIC_PARAMETERS)["topic"])
        if path.is_dir():
            return _with_log(text, path, query, PhotoSource(path))
        if not path.exists():
            raise SourceError(f"{path}: there is no such file or folder; give {KINDS}")
    except OSError as error:
        raise SourceError(f"{path}: cannot be opened: {error.strerror or error}") from error
    if path.is_char_device():
        raise SourceError(f"{path} is a device; write v4l2://{path} to use it as a camera")
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return _with_log(text, path, query, VideoSource(path))
    if suffix in PHOTO_SUFFIXES:
        raise SourceError(f"{path} is one photo; give the folder that holds the flight's photos: {path.parent}")
    raise SourceError(
        f"{path} is neither a folder nor a video by its name; videos end in {' '.join(sorted(VIDEO_SUFFIXES))}"
    )


def _with_log(uri: str, path: Path, query: str, source: PhotoSource | VideoSource) -> Source:
    """The source with its log, where it has one."""
    from onboard.sources.logged import LoggedSource, log_of  # readers of logs are needed for nothing else

    given = texts(uri, query, LOG_PARAMETERS)
    try:
        offset_s = float(given["offset"]) if given["offset"] else None
    except ValueError:
        offset_s = math.nan
    if offset_s is not None and not math.isfinite(offset_s):
        raise SourceError(f"{uri}: offset={given['offset']} must be a number of seconds")
    log = log_of(path, given["log"])
    if log is None:
        if offset_s is not None:
            raise SourceError(f"{uri}: an offset belongs to a log, and there is none; name it with log=FILE")
        return source
    # of a video's frames only the first one's time is known before they are decoded
    times = [photo.t_ns for photo in source.photos] if isinstance(source, PhotoSource) else [source.first_ns]
    return LoggedSource(
        source, log[0], np.array(times, np.int64), utc_ns=source.utc_ns, inside=log[1], offset_s=offset_s
    )


def _has_photos(path: Path) -> bool:
    """Whether a folder holds photos, which then are the flight even if recordings were put beside them."""
    return path.is_dir() and any(file.suffix.lower() in PHOTO_SUFFIXES for file in path.iterdir())
