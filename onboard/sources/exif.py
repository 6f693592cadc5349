"""Capture time and pose from a photo's EXIF and XMP blocks.

Follows Exif 2.32 (CIPA DC-008) and the XMP names of DJI, which others took over, Parrot and Pix4D. Cameras write
nonsense into these fields; whatever is out of range or cannot be read is taken as unknown, never as an error.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from PIL import Image

from onboard.frame import Pose

EXIF_IFD, GPS_IFD = 0x8769, 0x8825
DATE_TIME_ORIGINAL, SUBSEC_ORIGINAL, OFFSET_ORIGINAL = 0x9003, 0x9291, 0x9011
GPS_LAT_REF, GPS_LAT, GPS_LON_REF, GPS_LON, GPS_ALT_REF, GPS_ALT, GPS_TIME = range(1, 8)
GPS_STATUS, GPS_DIRECTION_REF, GPS_DIRECTION, GPS_DATE = 9, 16, 17, 29
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAKE = 0x010F
# Both ways to write a property: name="value" and <name>value</name>.
_XMP = re.compile(rb"""\b(drone[\w-]*|Camera):(\w+)\s*(?:=\s*["']|>)\s*([-+]?\d+(?:\.\d*)?)\s*["'<]""")


class Clock(msgspec.Struct, frozen=True):
    """When a photo was taken: by the camera's clock, and by GPS; nanoseconds since the epoch, None if unknown.

    `camera_ns` is in UTC when `zoned`, otherwise in the camera's own zone taken as UTC.
    """

    camera_ns: int | None = None
    zoned: bool = False
    gps_ns: int | None = None


def read(image: Image.Image) -> tuple[Clock, Pose]:
    """Return the capture time and pose that the header of `image` tells; the pixels are not decoded."""
    exif = image.getexif()
    xmp = image.info.get("xmp", b"")
    gps = exif.get_ifd(GPS_IFD)
    pose = _pose(gps, xmp if isinstance(xmp, bytes) else b"", _text(exif.get(MAKE)))
    return _clock(exif.get_ifd(EXIF_IFD), gps), pose


def _clock(exif: Mapping[int, Any], gps: Mapping[int, Any]) -> Clock:
    camera_ns = _date_ns(_text(exif.get(DATE_TIME_ORIGINAL)), "%Y:%m:%d %H:%M:%S")
    offset = re.fullmatch(r"([-+])(\d\d):(\d\d)", _text(exif.get(OFFSET_ORIGINAL)))
    if camera_ns is not None:
        subsec = _text(exif.get(SUBSEC_ORIGINAL))
        if subsec.isascii() and subsec.isdigit():
            camera_ns += int(subsec[:9].ljust(9, "0"))
        if offset:
            seconds = int(offset[2]) * 3600 + int(offset[3]) * 60
            camera_ns -= (seconds if offset[1] == "+" else -seconds) * 10**9
    gps_ns = _date_ns(_text(gps.get(GPS_DATE)), "%Y:%m:%d")
    time = _triple(gps.get(GPS_TIME))
    if gps_ns is not None and time is not None and 0 <= time[0] < 24 and 0 <= time[1] < 60 and 0 <= time[2] < 61:
        gps_ns += round((time[0] * 3600 + time[1] * 60 + time[2]) * 1e3) * 10**6
    else:
        gps_ns = None
    return Clock(camera_ns=camera_ns, zoned=offset is not None, gps_ns=gps_ns)


def _pose(gps: Mapping[int, Any], xmp: bytes, make: str) -> Pose:
    found = [(space, name.decode(), float(value)) for space, name, value in _XMP.findall(xmp)]
    dji = {name: value for space, name, value in found if space != b"Camera"}
    yaw, pitch, roll = _turns(dji, {name: value for space, name, value in found if space == b"Camera"}, make)
    lat = _angle(gps.get(GPS_LAT), gps.get(GPS_LAT_REF), "S")
    lon = _angle(gps.get(GPS_LON), gps.get(GPS_LON_REF), "W")
    if lat is None or lon is None:
        # DJI really writes Longtitude in some models.
        lat, lon = dji.get("GpsLatitude"), dji.get("GpsLongitude", dji.get("GpsLongtitude"))
    fix = lat is not None and lon is not None and abs(lat) <= 90 and abs(lon) <= 180 and (lat, lon) != (0.0, 0.0)
    fix = fix and _text(gps.get(GPS_STATUS)) != "V"
    alt = _number(gps.get(GPS_ALT))
    if alt is None:
        alt = dji.get("AbsoluteAltitude")
    elif gps.get(GPS_ALT_REF) in (1, b"\x01"):
        alt = -alt
    if yaw is None and _text(gps.get(GPS_DIRECTION_REF)) == "T":
        yaw = _number(gps.get(GPS_DIRECTION))
    return Pose(
        lat_deg=lat if fix else None,
        lon_deg=lon if fix else None,
        alt_m=alt,
        agl_m=dji.get("RelativeAltitude"),
        yaw_deg=None if yaw is None else yaw % 360.0,
        pitch_deg=pitch,
        roll_deg=roll,
    )


def _turns(
    drone: Mapping[str, float], camera: Mapping[str, float], make: str
) -> tuple[float | None, float | None, float | None]:
    """The camera's yaw, pitch and roll: DJI's gimbal, Parrot's camera, or Pix4D's names.

    Pix4D's pitch is 0 straight down; Autel takes the names but counts from the horizon.
    """
    for kind in ("Gimbal", "Camera"):
        if f"{kind}PitchDegree" in drone:
            yaw = drone.get(f"{kind}YawDegree", drone.get("FlightYawDegree"))
            return yaw, drone[f"{kind}PitchDegree"], drone.get(f"{kind}RollDegree")
    pitch = camera.get("Pitch")
    if pitch is not None and not make.lower().startswith("autel"):
        pitch -= 90.0
    yaw = drone.get("GimbalYawDegree", drone.get("FlightYawDegree", camera.get("Yaw")))
    return yaw, pitch, drone.get("GimbalRollDegree", camera.get("Roll"))


def _text(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return value.strip(" \0") if isinstance(value, str) else ""


def _date_ns(text: str, form: str) -> int | None:
    try:
        date = datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:  # empty, or a camera that was never set: 0000:00:00
        return None
    return (date - _EPOCH) // timedelta(microseconds=1) * 1000


def _number(value: Any) -> float | None:
    convert: Callable[[Any], float] = float
    try:
        number = convert(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if abs(number) < 1e9 else None  # False for NaN, which is 0/0 in EXIF


def _triple(value: Any) -> tuple[float, float, float] | None:
    if not isinstance(value, tuple) or len(value) != 3:
        return None
    a, b, c = (_number(part) for part in value)
    return None if a is None or b is None or c is None else (a, b, c)


def _angle(value: Any, reference: object, negative: str) -> float | None:
    parts = _triple(value)
    if parts is None:
        return None
    degrees = parts[0] + parts[1] / 60 + parts[2] / 3600
    return -degrees if _text(reference) == negative else degrees
