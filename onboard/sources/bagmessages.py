"""What the messages in bags mean: pictures, positions, attitudes and batteries of ROS 1, ROS 2 and Foxglove.

Axes follow REP 103: x forward or east, y left or north, z up; so a yaw of 0 looks east and grows counter-clockwise.
"""

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import msgspec
import numpy as np
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.LocationFix_pb2 import LocationFix
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore

from onboard.sources.bagrecords import BagMessage, Topic
from onboard.sources.pictures import DAMAGE, decode

IMAGES = frozenset(
    {
        "sensor_msgs/msg/Image",
        "sensor_msgs/msg/CompressedImage",
        "foxglove.RawImage",
        "foxglove.CompressedImage",
        "foxglove_msgs/msg/RawImage",
        "foxglove_msgs/msg/CompressedImage",
    }
)
FIXES = frozenset({"sensor_msgs/msg/NavSatFix", "foxglove.LocationFix", "foxglove_msgs/msg/LocationFix"})
ATTITUDES = (
    "geometry_msgs/msg/QuaternionStamped",
    "sensor_msgs/msg/Imu",
    "geometry_msgs/msg/PoseStamped",
    "nav_msgs/msg/Odometry",
)
"""Best first: the later ones may turn with a map of their own and not with north."""
BATTERIES = frozenset({"sensor_msgs/msg/BatteryState"})
HEIGHTS = frozenset({"std_msgs/msg/Float64"})
HEIGHT_TOPIC = "rel_alt"
"""Such a topic's last name, where it is the height above take-off: MAVROS's /mavros/global_position/rel_alt."""
WANTED = IMAGES | FIXES | BATTERIES | frozenset(ATTITUDES)
STAMP_TOLERANCE_NS = 10 * 10**9
"""A message's own time counts if it lies so near to when it was recorded; else its clock is another."""
MAX_PIXELS = 1 << 28
BAD = (
    *(*DAMAGE, SerdeError, TypesysError, DecodeError, msgspec.MsgspecError, cv2.error),
    *(AssertionError, AttributeError, RecursionError),
)
"""What reading a damaged message raises."""

_PROTOBUF: Mapping[str, Callable[[], Any]] = {
    "foxglove.CompressedImage": CompressedImage,
    "foxglove.RawImage": RawImage,
    "foxglove.LocationFix": LocationFix,
}
# name of an encoding -> channels, bytes per channel, conversion to BGR (None: it is BGR)
_RAW: Mapping[str, tuple[int, int, int | None]] = {
    "bgr8": (3, 1, None),
    "8UC3": (3, 1, None),
    "rgb8": (3, 1, cv2.COLOR_RGB2BGR),
    "bgra8": (4, 1, cv2.COLOR_BGRA2BGR),
    "8UC4": (4, 1, cv2.COLOR_BGRA2BGR),
    "rgba8": (4, 1, cv2.COLOR_RGBA2BGR),
    "mono8": (1, 1, cv2.COLOR_GRAY2BGR),
    "8UC1": (1, 1, cv2.COLOR_GRAY2BGR),
    "mono16": (1, 2, cv2.COLOR_GRAY2BGR),
    "bgr16": (3, 2, None),
    "rgb16": (3, 2, cv2.COLOR_RGB2BGR),
    # OpenCV names a Bayer pattern by its second row and column
    "bayer_rggb8": (1, 1, cv2.COLOR_BayerBG2BGR),
    "bayer_bggr8": (1, 1, cv2.COLOR_BayerRG2BGR),
    "bayer_gbrg8": (1, 1, cv2.COLOR_BayerGR2BGR),
    "bayer_grbg8": (1, 1, cv2.COLOR_BayerGB2BGR),
    "yuv422": (2, 1, cv2.COLOR_YUV2BGR_UYVY),
    "uyvy": (2, 1, cv2.COLOR_YUV2BGR_UYVY),
    "yuv422_yuy2": (2, 1, cv2.COLOR_YUV2BGR_YUY2),
    "yuyv": (2, 1, cv2.COLOR_YUV2BGR_YUY2),
}


class Decoder:
    """Messages as objects with the fields of their types; one decoder for one bag."""

    def __init__(self) -> None:
        self._ros1: Any = get_typestore(Stores.ROS1_NOETIC)
        self._ros2: Any = get_typestore(Stores.LATEST)

    def decode(self, message: BagMessage) -> Any:
        """The message. Raises one of `BAD`."""
        topic = message.topic
        if topic.encoding == "ros1":
            return self._ros1.deserialize_ros1(message.data, topic.kind)
        if topic.encoding == "cdr":
            if topic.kind not in self._ros2.types:
                self._ros2.register(get_types_from_msg(topic.schema, topic.kind))
            return self._ros2.deserialize_cdr(message.data, topic.kind)
        if topic.encoding == "protobuf":
            out = _PROTOBUF[topic.kind]()
            out.ParseFromString(message.data)
            return out
        if topic.encoding == "json":
            return _Json(msgspec.json.decode(message.data, type=dict[str, Any]))
        raise ValueError(f"messages encoded as '{topic.encoding}' cannot be read here")


class _Json:
    """A JSON object whose keys are read like fields."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        try:
            value = self._fields[name]
        except KeyError as error:
            raise AttributeError(name) from error
        if name == "data":
            return base64.b64decode(value, validate=True)
        return _Json(value) if isinstance(value, dict) else value


def stamp_ns(decoded: Any, recorded_ns: int) -> int:
    """When a message was made: its own stamp, or when it was recorded where that is of another clock."""
    header = getattr(decoded, "header", None)
    stamp = getattr(header, "stamp", None) or getattr(decoded, "timestamp", None)
    if stamp is None:
        return recorded_ns
    second, part = _first(stamp, "sec", "seconds"), _first(stamp, "nanosec", "nanos", "nsec")
    own = int(second) * 10**9 + int(part)
    return own if abs(own - recorded_ns) <= STAMP_TOLERANCE_NS else recorded_ns


def _first(stamp: Any, *names: str) -> Any:
    """The first field there is: ROS 1, ROS 2, protobuf and JSON name them differently."""
    return next((value for name in names if (value := getattr(stamp, name, None)) is not None), 0)


def picture(topic: Topic, decoded: Any) -> tuple[NDArray[np.uint8], bytes | None]:
    """The picture as BGR (height, width, 3), and the compressed bytes that it was in. Raises one of `BAD`."""
    if not topic.kind.endswith("CompressedImage"):
        return _raw(decoded), None
    if "compressedDepth" in str(decoded.format):
        raise ValueError("a depth image, not a picture")
    data = bytes(decoded.data)
    return decode(data), data


def _raw(decoded: Any) -> NDArray[np.uint8]:
    height, width, step, encoding = int(decoded.height), int(decoded.width), int(decoded.step), str(decoded.encoding)
    if encoding not in _RAW:
        raise ValueError(f"pixels of the kind '{encoding[:30]}' cannot be read here")
    channels, size, convert = _RAW[encoding]
    row = width * channels * size
    step = step or row
    if not 0 < height * width <= MAX_PIXELS or step < row or len(decoded.data) < step * (height - 1) + row:
        raise ValueError(f"an image of {width} x {height} pixels, {step} bytes a row, in {len(decoded.data)} bytes")
    data = np.frombuffer(bytes(decoded.data), np.uint8)
    if len(data) < step * height:  # nothing behind the last row's pixels
        data = np.concatenate([data, np.zeros(step * height - len(data), np.uint8)])
    rows = data[: step * height].reshape(height, step)[:, :row]
    if size == 2:
        high = 0 if getattr(decoded, "is_bigendian", 0) else 1
        rows = rows[:, high::2]
    image = np.ascontiguousarray(rows).reshape(height, width, channels)
    if convert is None:
        return image
    return np.asarray(cv2.cvtColor(image, convert), np.uint8)


def fix(decoded: Any) -> dict[str, float]:
    """Latitude, longitude, altitude of a position; nothing where it is none."""
    status = getattr(getattr(decoded, "status", None), "status", 0)
    lat, lon, alt = float(decoded.latitude), float(decoded.longitude), float(decoded.altitude)
    if status < 0 or not (abs(lat) <= 90 and abs(lon) <= 180) or (lat, lon) == (0.0, 0.0):
        return {}
    return {"lat_deg": lat, "lon_deg": lon} | ({"alt_m": alt} if math.isfinite(alt) else {})


def attitude(decoded: Any) -> dict[str, float]:
    """Yaw clockwise from north, pitch and roll in degrees; nothing where the message has none."""
    if getattr(decoded, "orientation_covariance", (0,))[0] == -1:  # an Imu that knows only rates
        return {}
    while (inner := getattr(decoded, "pose", None)) is not None:  # one of PoseStamped, two of Odometry
        decoded = inner
    q = decoded.orientation if hasattr(decoded, "orientation") else decoded.quaternion
    x, y, z, w = (float(getattr(q, name)) for name in "xyzw")
    length = math.sqrt(x * x + y * y + z * z + w * w)
    if not 0.9 < length < 1.1:
        return {}
    x, y, z, w = x / length, y / length, z / length, w / length
    yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    down = math.asin(max(-1.0, min(1.0, 2 * (w * y - z * x))))
    roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    return {
        "yaw_deg": (90.0 - math.degrees(yaw)) % 360.0,
        "pitch_deg": -math.degrees(down),
        "roll_deg": math.degrees(roll),
    }


def height(decoded: Any) -> dict[str, float]:
    """The height above take-off."""
    metres = float(decoded.data)
    return {"agl_m": metres} if math.isfinite(metres) else {}


def battery(decoded: Any) -> dict[str, float]:
    """Voltage and what is left."""
    volts, share = float(decoded.voltage), float(decoded.percentage)
    out = {"battery_v": volts} if math.isfinite(volts) else {}
    return out | ({"battery_share": share} if 0 <= share <= 1 else {})
