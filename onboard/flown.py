"""What a recording says of each frame besides its picture: enough to fly the same flight again.

`onboard.recorder` writes it, `onboard.sources.recording` reads it.
"""

from typing import Literal

import msgspec

from onboard.frame import Pose

FORMAT = "1"
"""Version of our recordings, in their metadata `hadanet`; a reader refuses what it does not know."""
METADATA = "hadanet"
FRAME_TOPIC = "/hadanet/frame"
CAMERA_TOPIC = "/camera"
DETECTIONS_TOPIC = "/hadanet/detections"
UTC_TOPIC = "/utc"
ARTIFACT = "artifact.safetensors"
"""Attachment: the model file that the flight was started with, where that is not the shipped one."""
HEAD_SUFFIX = ".delta"
"""Attachment HASH.delta: from the base to a model that flew, to which no change in the same file leads."""

Picture = Literal["original", "lossless", "jpeg"]
"""The bytes that came from the camera; the same pixels, compressed; pixels that JPEG changed."""


class FlownFrame(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag=64):
    """One frame as it flew. It is written behind the frame's picture, so a frame without it is not whole.

    picture: what became of the pixels. model: hash of the model in force (32 bytes, b"" unknown). position: entries
    of the label log when the frame was handed to the learner; the labels up to there are those it had. The others are
    those of `Frame` and `Pose`. New fields go at the end and have defaults.
    """

    index: int
    t_ns: int
    name: str
    picture: Picture
    model: bytes = b""
    position: int = 0
    lat_deg: float | None = None
    lon_deg: float | None = None
    alt_m: float | None = None
    agl_m: float | None = None
    yaw_deg: float | None = None
    pitch_deg: float | None = None
    roll_deg: float | None = None

    def pose(self) -> Pose:
        """Where the camera was."""
        return Pose(**{name: getattr(self, name) for name in Pose.__struct_fields__})


class FlownUtc(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag=65):
    """What the flight's clock is in UTC, at the beginning of a file and whenever it became known, or better known.

    The stamps of a recording never jump; the time `t_ns` of this clock is `utc_ns` in UTC. source: as
    `onboard.clock.Known` has it.
    """

    t_ns: int
    utc_ns: int
    source: str


Flown = FlownFrame | FlownUtc
