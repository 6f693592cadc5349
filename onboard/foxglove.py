"""What the recorder shows in Foxglove: the picture, its tiles by class, the position, the log."""

import colorsys
import math

import cv2
from foxglove_schemas_protobuf.Color_pb2 import Color
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.ImageAnnotations_pb2 import ImageAnnotations
from foxglove_schemas_protobuf.LocationFix_pb2 import LocationFix
from foxglove_schemas_protobuf.Log_pb2 import Log
from foxglove_schemas_protobuf.Point2_pb2 import Point2
from foxglove_schemas_protobuf.PointsAnnotation_pb2 import PointsAnnotation
from foxglove_schemas_protobuf.TextAnnotation_pb2 import TextAnnotation
from google.protobuf.timestamp_pb2 import Timestamp

from onboard.detections import FrameResult
from onboard.flown import Picture
from onboard.frame import Frame, Pose
from onboard.grid import edges

JPEG_QUALITY = 85
NAMED_FROM = 0.8
"""Confidence from which a tile's class is written out."""
_INSET_PX = 2.0  # so that the frames of neighbours do not cover each other
_LEVELS = {"debug": Log.DEBUG, "info": Log.INFO, "warning": Log.WARNING, "error": Log.ERROR}


def timestamp(t_ns: int) -> Timestamp:
    """A protobuf time from nanoseconds."""
    return Timestamp(seconds=t_ns // 10**9, nanos=t_ns % 10**9)


def camera(frame: Frame, exact: bool = False) -> tuple[CompressedImage, Picture]:
    """The picture, and what became of its pixels. Raises cv2.error or ValueError where the image is none.

    The bytes that the frame came with, if Foxglove knows their format. Else PNG with `exact`: on photos it takes a
    third of the time of PNG's usual level for a tenth more bytes, and lossless WebP half the bytes for eight times the
    time. Else JPEG, which changes pixels.
    """
    if form := _format(frame.encoded or b""):
        return _compressed(frame, frame.encoded or b"", form), "original"
    if exact:
        return _compressed(frame, _encode(frame, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]), "png"), "lossless"
    return _compressed(frame, _encode(frame, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]), "jpeg"), "jpeg"


def _format(data: bytes) -> str:
    """The name of a picture's format for Foxglove, "" for one that it does not show."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return {b"\xff\xd8": "jpeg", b"\x89P": "png"}.get(data[:2], "")


def _encode(frame: Frame, suffix: str, parameters: list[int]) -> bytes:
    ok, data = cv2.imencode(suffix, frame.image, parameters)
    if not ok:
        raise ValueError(f"frame {frame.name} cannot be compressed")
    return bytes(data)


def _compressed(frame: Frame, data: bytes, form: str) -> CompressedImage:
    return CompressedImage(timestamp=timestamp(frame.t_ns), frame_id="camera", data=data, format=form)


def annotations(result: FrameResult) -> ImageAnnotations:
    """Each tile framed in the colour of its class, filled the more the surer it is.

    Of tiles side by side with the same class only the first sure one is named, so that the picture stays readable.
    """
    out = ImageAnnotations(timestamp=timestamp(result.frame.t_ns))
    height, width = result.frame.image.shape[:2]
    ys, xs = edges(height, result.rows).tolist(), edges(width, result.cols).tolist()
    font = max(8.0, height / result.rows / 8)
    for row in range(result.rows):
        named = -1
        for col in range(result.cols):
            tile = row * result.cols + col
            number, sure = int(result.classes[tile]), float(result.confidence[tile])
            top, bottom = ys[row] + _INSET_PX, ys[row + 1] - _INSET_PX
            left, right = xs[col] + _INSET_PX, xs[col + 1] - _INSET_PX
            out.points.append(
                PointsAnnotation(
                    type=PointsAnnotation.LINE_LOOP,
                    points=[Point2(x=x, y=y) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))],
                    outline_color=class_colour(number, 1.0),
                    fill_color=class_colour(number, 0.25 * sure),
                    thickness=2,
                )
            )
            if sure >= NAMED_FROM and number != named:
                out.texts.append(
                    TextAnnotation(
                        position=Point2(x=left + 2, y=bottom - 2),
                        text=result.class_names[number],
                        font_size=font,
                        text_color=Color(r=1, g=1, b=1, a=1),
                        background_color=Color(r=0, g=0, b=0, a=0.5),
                    )
                )
                named = number
            elif number != named:
                named = -1
    return out


def class_colour(number: int, alpha: float) -> Color:
    """A colour per class number, neighbours far apart in hue (steps of the golden ratio)."""
    r, g, b = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 1.0)
    return Color(r=r, g=g, b=b, a=alpha)


def location(pose: Pose, t_ns: int) -> LocationFix | None:
    """The position, None where the source does not know it; an unknown altitude is NaN."""
    if pose.lat_deg is None or pose.lon_deg is None:
        return None
    return LocationFix(
        timestamp=timestamp(t_ns),
        frame_id="gps",
        latitude=pose.lat_deg,
        longitude=pose.lon_deg,
        altitude=math.nan if pose.alt_m is None else pose.alt_m,
        heading=None if pose.yaw_deg is None else math.radians(pose.yaw_deg),
    )


def log(level: str, text: str, t_ns: int) -> Log:
    """A log line; level is debug, info, warning or error, anything else is unknown."""
    return Log(timestamp=timestamp(t_ns), level=_LEVELS.get(level, Log.UNKNOWN), message=text, name="onboard")
