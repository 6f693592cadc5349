"""A camera of this machine through Video4Linux: ``v4l2:///dev/video0?width=1280&height=720&fps=30``.

OpenCV waits at most about ten seconds for a picture. A read that fails goes to `skipped`; after `MAX_FAILURES` in a
row the camera counts as gone and iterating ends in a `SourceError`, so that the supervisor can start flight anew.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import SourceError
from onboard import clock
from onboard.frame import Frame, Pose, Skipped
from onboard.sources.uri import Parameter, parse, split

MAX_FAILURES = 3
"""Failed reads in a row after which the camera counts as gone."""
PARAMETERS = {
    "width": Parameter(0, 0, 8192, "pixels, 0 leaves the camera's choice"),
    "height": Parameter(0, 0, 8192, "pixels, 0 leaves the camera's choice"),
    "fps": Parameter(0.0, 0.0, 1000.0, "frames per second, 0 leaves the camera's choice"),
}


class V4L2Source:
    """Frames of a camera, as they come; times are the flight clock's.

    Raises
    ------
    SourceError
        There is no such device, it may not be used, is busy, or gives no picture. While iterating: it went silent.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.length: int | None = None
        self.live = True
        self.first_ns = 0
        self.skipped: list[Skipped] = []
        device, query = split(uri)
        values = parse(uri, query, PARAMETERS)
        self._device = _usable(uri, device)
        self._camera = cv2.VideoCapture(device, cv2.CAP_V4L2)
        if not self._camera.isOpened():
            raise SourceError(f"{device} is no camera or another program uses it; see v4l2-ctl --list-devices")
        for property_id, name in (
            (cv2.CAP_PROP_FRAME_WIDTH, "width"),
            (cv2.CAP_PROP_FRAME_HEIGHT, "height"),
            (cv2.CAP_PROP_FPS, "fps"),
        ):
            if values[name]:
                self._camera.set(property_id, values[name])
        if self._read() is None:
            self.close()
            raise SourceError(f"{device} gives no picture; is it the camera's capture device? see ls /dev/video*")
        self.fps: float | None = self._camera.get(cv2.CAP_PROP_FPS) or None

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield frames until `close`; the index counts failed reads too."""
        index = failures = 0
        while self._camera.isOpened():
            image = self._read()
            if image is not None:
                yield Frame(index=index, t_ns=clock.now_ns(), name=str(index), image=image, pose=Pose())
                failures = 0
            else:
                failures += 1
                self.skipped.append(Skipped(name=str(index), reason="the camera gave no picture"))
                if failures == MAX_FAILURES:
                    self.close()
                    raise SourceError(f"{self._device} stopped giving pictures; check its cable and power")
            index += 1

    def close(self) -> None:
        """Release the camera."""
        self._camera.release()

    def _read(self) -> NDArray[np.uint8] | None:
        ok, image = self._camera.read()
        return np.asarray(image, np.uint8) if ok and image is not None and image.ndim == 3 else None


def _usable(uri: str, device: str) -> str:
    """Say in words what OpenCV would only log."""
    path = Path(device)
    if not path.is_absolute():
        raise SourceError(f"{uri}: give the device's full path, as in v4l2:///dev/video0")
    if not path.exists():
        raise SourceError(f"{device}: there is no such camera; see ls /dev/video*")
    if not path.is_char_device():
        raise SourceError(f"{device} is not a device; for a video file or a folder give the path without v4l2://")
    if not os.access(path, os.R_OK | os.W_OK):
        raise SourceError(f"{device}: no permission; add the user to the group: sudo usermod -aG video $USER")
    return device
