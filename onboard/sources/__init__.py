"""Where frames come from: `open_source` turns a URI into a `Source`.

::

    flights/monday/               a folder of photos            photos.py
    flights/monday.mp4            a video file                  video.py
    monday.mp4?log=a.ulg&offset=2 either with another log than  logged.py
                                  the one inside or beside it
    flights/monday.mcap           a recording of ours, or a     recording.py
                                  folder with its files
    monday.bag?topic=/camera      a ROS bag, a folder with a    bags.py
                                  ROS 2 bag, or another's MCAP
    v4l2:///dev/video0            a camera of this machine      v4l2.py
    csi://0?width=1280&height=720 one on a Pi's or Jetson's     csi.py, pipe.py
                                  ribbon cable
    rtsp://192.168.1.64/stream    one in the network            rtsp.py
    sim://?seed=0&frames=120      a simulated flight            onboard.sim
"""

from collections.abc import Callable

from models.errors import SourceError
from onboard.frame import Source
from onboard.sources.uri import KINDS, shown

__all__ = ["open_source"]


def open_source(uri: str) -> Source:
    """Open the camera, folder, video or simulated flight that `uri` names.

    Parameters
    ----------
    uri : str
        A path (folder or file), or one of the kinds above.

    Raises
    ------
    SourceError
        Nothing is there, it cannot be read, or the URI is not understood; the message says what to do.
    """
    if not uri.strip() or "\0" in uri:
        raise SourceError(f"{uri!r} names no source; give {KINDS}")
    scheme, separator, _ = uri.partition("://")
    if not separator:
        from onboard.sources.files import open_path

        return open_path(uri)
    if scheme not in _OPENERS:
        raise SourceError(f"{shown(uri)}: there is no source of the kind '{scheme}://'; give {KINDS}")
    return _OPENERS[scheme](uri)


# Each brings its own libraries, which the others have no use for: a flight has one camera.


def _v4l2(uri: str) -> Source:
    from onboard.sources.v4l2 import V4L2Source

    return V4L2Source(uri)


def _csi(uri: str) -> Source:
    from onboard.sources.csi import open_csi

    return open_csi(uri)


def _rtsp(uri: str) -> Source:
    from onboard.sources.rtsp import RtspSource

    return RtspSource(uri)


def _sim(uri: str) -> Source:
    from onboard.sim import SimSource

    return SimSource(uri)


_OPENERS: dict[str, Callable[[str], Source]] = {"v4l2": _v4l2, "csi": _csi, "rtsp": _rtsp, "rtsps": _rtsp, "sim": _sim}
