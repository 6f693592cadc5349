"""A camera on the ribbon cable of a Raspberry Pi or a Jetson: ``csi://0?width=1280&height=720&fps=30``.

On a Pi through picamera2 where Python can import it. Else through GStreamer, in a process of its own: pip's OpenCV has
no GStreamer. `nvarguscamerasrc` is the element of a Jetson, `libcamerasrc` that of a Pi or any other board.
"""

import importlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from models.errors import SourceError
from onboard import clock
from onboard.frame import Frame, Pose, Skipped, Source
from onboard.sources.pipe import FIRST_S, STALL_S, PipeSource
from onboard.sources.uri import Parameter, parse, split

PARAMETERS = {
    "width": Parameter(1280, 64, 8192, "pixels, a multiple of 8"),
    "height": Parameter(720, 64, 8192, "pixels, even"),
    "fps": Parameter(30, 1, 240, "frames per second"),
}
MAX_CAMERAS = 8
INSPECT_S = 20.0
"""The first question to GStreamer makes its list of plugins, which takes seconds on a card."""


def open_csi(uri: str) -> Source:
    """The camera that `uri` names. Raises SourceError, also where nothing is installed that could read one."""
    place, query = split(uri)
    if not (place.isascii() and place.isdecimal() and int(place) < MAX_CAMERAS):
        raise SourceError(f"{uri}: give the camera's number, as in csi://0")
    values = parse(uri, query, PARAMETERS)
    number, width, height, fps = int(place), int(values["width"]), int(values["height"]), int(values["fps"])
    if width % 8 or height % 2:
        raise SourceError(f"{uri}: width must be a multiple of 8 and height even, not {width} x {height}")
    try:
        library = importlib.import_module("picamera2")
    except ImportError:
        pass
    else:
        return PiCameraSource(uri, library, number, width, height, fps)
    for element, pipeline in PIPELINES.items():
        if _has(element):
            if number and element != "nvarguscamerasrc":
                raise SourceError(f"{uri}: {element} finds the first camera only: write csi://0")
            elements = pipeline(number, width, height, fps)
            return PipeSource(uri, uri, partial(launch, elements), width, height, fps)
    raise SourceError(
        f"{uri}: nothing here can read such a camera: on a Raspberry Pi install python3-picamera2 (for the system's "
        "Python) or gstreamer1.0-libcamera, and on both Pi and Jetson gstreamer1.0-tools; see docs/drone.md"
    )


def _jetson(number: int, width: int, height: int, fps: int) -> list[str]:
    size = f"width={width},height={height},framerate={fps}/1"
    source = ["nvarguscamerasrc", f"sensor-id={number}", "!", f"video/x-raw(memory:NVMM),{size}"]
    return [*source, "!", "nvvidconv", "!", "video/x-raw,format=I420"]


def _libcamera(number: int, width: int, height: int, fps: int) -> list[str]:
    size = f"width={width},height={height},framerate={fps}/1"
    return ["libcamerasrc", "!", f"video/x-raw,{size}", "!", "videoconvert", "!", "video/x-raw,format=I420"]


PIPELINES: dict[str, Callable[[int, int, int, int], list[str]]] = {
    "nvarguscamerasrc": _jetson,
    "libcamerasrc": _libcamera,
}
"""By the element that has to be there: (camera, width, height, fps) -> what goes before the sink."""


def launch(elements: Sequence[str], fd: int) -> list[str]:
    """The command that writes the pictures of a pipeline to file number `fd`; old ones are dropped, not queued."""
    sink = ["queue", "leaky=downstream", "max-size-buffers=1", "!", "fdsink", f"fd={fd}", "sync=false"]
    return ["gst-launch-1.0", "-q", *elements, "!", *sink]


def _has(element: str) -> bool:
    """Whether GStreamer is installed with this element."""
    if shutil.which("gst-launch-1.0") is None or shutil.which("gst-inspect-1.0") is None:
        return False
    try:
        done = subprocess.run(
            ["gst-inspect-1.0", "--exists", element], stdin=subprocess.DEVNULL, capture_output=True, timeout=INSPECT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class PiCameraSource:
    """A camera of a Raspberry Pi through picamera2, the module `library`.

    Raises
    ------
    SourceError
        There is no such camera, another program uses it, or it gives no picture. While iterating: it went silent.
    """

    def __init__(self, uri: str, library: Any, number: int, width: int, height: int, fps: int) -> None:
        self.uri = uri
        self.fps: float | None = float(fps)
        self.length: int | None = None
        self.live = True
        self.first_ns = 0
        self.skipped: list[Skipped] = []
        self._closed = threading.Event()
        try:
            self._camera = library.Picamera2(number)
            # picamera2 names formats by the order of bits in a word: in memory its RGB888 is blue, green, red
            main, controls = {"size": (width, height), "format": "RGB888"}, {"FrameRate": float(fps)}
            self._camera.configure(self._camera.create_video_configuration(main=main, controls=controls))
            self._camera.start()
        except (RuntimeError, IndexError, OSError) as error:
            raise SourceError(f"{uri}: the camera cannot be used: {error}; see rpicam-hello --list-cameras") from error
        self._wait_s = FIRST_S

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield frames until `close`."""
        index = 0
        while not self._closed.is_set():
            try:
                job = self._camera.capture_array("main", wait=False)
                image = np.ascontiguousarray(job.get_result(timeout=self._wait_s), np.uint8)
            except (
                Exception
            ) as error:  # of libcamera, or a timeout: the boundary to a library without errors of its own
                self.close()
                raise SourceError(f"{self.uri}: the camera stopped giving pictures: {error!r}") from error
            self._wait_s = STALL_S
            yield Frame(index=index, t_ns=clock.now_ns(), name=str(index), image=image, pose=Pose())
            index += 1

    def close(self) -> None:
        """Release the camera."""
        if not self._closed.is_set():
            self._closed.set()
            self._camera.stop()
            self._camera.close()
