"""Logs of the formats that flights come with, written byte by byte, and what happens to files."""

import math
import struct

import numpy as np

SHARES = (0.3, 0.7, 0.95)
"""Where files are cut off."""


def flipped(data: bytes, seed: int, share: float = 0.01) -> bytes:
    """The file with a random bit turned in this share of its bytes."""
    rng = np.random.default_rng(seed)
    out = np.frombuffer(data, np.uint8).copy()
    places = rng.choice(len(out), max(1, int(share * len(out))), replace=False)
    out[places] ^= np.uint8(1) << rng.integers(0, 8, len(places)).astype(np.uint8)
    return out.tobytes()


def track(count: int, seed: int = 0):
    """A walk: seconds, latitude, longitude, altitude, float64 (count,)."""
    rng = np.random.default_rng(seed)
    t = np.arange(count) * 0.2
    return t, 47 + np.cumsum(rng.normal(0, 1e-5, count)), 8 + np.cumsum(rng.normal(0, 1e-5, count)), 500 + t


def dataflash(count: int = 400) -> bytes:
    """An ArduPilot log with FMT, GPS (two instances), ATT, CAM and a text, as a copter of today writes it."""
    kinds = {
        128: ("FMT", "BBnNZ", "Type,Length,Name,Format,Columns", "<BB4s16s64s"),
        1: ("GPS", "QBBIHBcLLeffffB", "TimeUS,I,Status,GMS,GWk,NSats,HDop,Lat,Lng,Alt,Spd,GCrs,VZ,Yaw,U", None),
        2: ("ATT", "QccccCC", "TimeUS,DesRoll,Roll,DesPitch,Pitch,DesYaw,Yaw", "<QhhhhHH"),
        3: ("CAM", "QIH", "TimeUS,GPSTime,GPSWeek", "<QIH"),
        4: ("MSG", "QZ", "TimeUS,Message", "<Q64s"),
        5: ("ODD", "QB", "TimeUS,Value", "<QB"),
    }
    layouts = {n: k[3] or "<QBBIHBhiiiffffB" for n, k in kinds.items()}
    out = b""
    for number, (name, letters, labels, _) in kinds.items():
        length = 3 + struct.calcsize(layouts[number])
        body = struct.pack("<BB4s16s64s", number, length, name.encode(), letters.encode(), labels.encode())
        out += b"\xa3\x95\x80" + body

    def record(number, *fields):
        return bytes((0xA3, 0x95, number)) + struct.pack(layouts[number], *fields)

    out += record(4, 10, b"ArduCopter V4.5")
    for i, (t, lat, lon, alt) in enumerate(zip(*track(count), strict=True)):
        us, place = int(t * 1e6) + 1_000_000, (round(lat * 1e7), round(lon * 1e7), round(alt * 100))
        fixed = 1 if i < 5 else 3
        out += record(1, us, 0, fixed, 500_000 + int(t * 1000), 2300, 12, 90, *place, 3.5, 0, 0, 0, 1)
        out += record(1, us, 1, 3, 0, 0, 12, 90, 0, 0, 0, 0, 0, 0, 0, 1)
        out += record(2, us, 0, 250, 0, -100, 0, 9000) + record(5, us, i % 256)
        if i % 10 == 0:
            out += record(3, us + 5000, 0, 0)
    return out


CODES = {
    "Q": "Q",
    "Z": "64s",
    "M": "B",
    "B": "B",
    "f": "f",
    "L": "i",
    "e": "i",
    "C": "H",
    "c": "h",
    "I": "I",
    "H": "H",
}


class DataFlash:
    """Writes records of formats that are given by letters and labels."""

    def __init__(self, kinds: dict[str, tuple[str, str]]) -> None:
        self._layouts: dict[str, tuple[int, str]] = {}
        self.formats = b""
        for name, (letters, labels) in kinds.items():
            self.add_format(name, letters, labels)

    def add_format(self, name: str, letters: str, labels: str) -> None:
        number, layout = len(self._layouts) + 1, "<" + "".join(CODES[letter] for letter in letters)
        self._layouts[name] = number, layout
        body = (number, 3 + struct.calcsize(layout), name.encode(), letters.encode(), labels.encode())
        self.formats += b"\xa3\x95\x80" + struct.pack("<BB4s16s64s", *body)

    def record(self, name: str, *fields) -> bytes:
        number, layout = self._layouts[name]
        return bytes((0xA3, 0x95, number)) + struct.pack(layout, *fields)


def tlog(count: int = 400) -> bytes:
    """A ground station's log, by pymavlink's own packer: heartbeats, positions, attitude, a camera's feedback."""
    from pymavlink.dialects.v20 import ardupilotmega as dialect

    mav = dialect.MAVLink(None, srcSystem=1, srcComponent=1)
    out = b""
    for i, (t, lat, lon, alt) in enumerate(zip(*track(count), strict=True)):
        boot = 5000 + int(t * 1000)
        place = round(lat * 1e7), round(lon * 1e7), round(alt * 1000)
        messages = [
            mav.global_position_int_encode(boot, *place, 10_000, 300, 400, 0, 9000),
            mav.attitude_encode(boot, 0.1, -0.2, 1.5, 0, 0, 0),
        ]
        half = math.radians(-60) / 2  # the camera looks down by 60 degrees
        q = [math.cos(half), 0.0, math.sin(half), 0.0]
        messages.append(mav.gimbal_device_attitude_status_encode(0, 0, boot, 64, q, 0, 0, 0, 0))
        if i % 10 == 0:
            messages += [
                mav.heartbeat_encode(2, 3, 81, 4, 4, 3),
                mav.sys_status_encode(0, 0, 0, 0, 12_000, 0, 80, *[0] * 6),
            ]
            messages.append(mav.camera_feedback_encode(boot * 1000, 0, 0, i, *place[:2], *[0] * 7))
        for message in messages:
            out += struct.pack(">Q", 1_700_000_000_000_000 + boot * 1000 + i % 7 * 3000) + message.pack(mav)
    return out


def ulog(count: int = 400) -> bytes:
    """A PX4 log with GPS, attitude and a camera's captures."""

    def message(kind: bytes, body: bytes) -> bytes:
        return struct.pack("<HB", len(body), kind[0]) + body

    formats = (
        b"vehicle_gps_position:uint64_t timestamp;uint64_t time_utc_usec;int32_t lat;int32_t lon;int32_t alt;"
        b"float vel_m_s;uint8_t fix_type;uint8_t[7] _padding0;",
        b"vehicle_attitude:uint64_t timestamp;float[4] q;",
        b"camera_capture:uint64_t timestamp;uint64_t timestamp_utc;uint32_t seq;uint8_t[4] _padding0;",
    )
    out = b"ULog\x01\x12\x35\x01" + struct.pack("<Q", 0)
    out += message(b"B", bytes(40)) + b"".join(message(b"F", text) for text in formats)
    for number, name in enumerate((b"vehicle_gps_position", b"vehicle_attitude", b"camera_capture")):
        out += message(b"A", struct.pack("<BH", 0, number) + name)
    for i, (t, lat, lon, alt) in enumerate(zip(*track(count), strict=True)):
        us, place = 1_000_000 + int(t * 1e6), (round(lat * 1e7), round(lon * 1e7), round(alt * 1e3))
        fields = struct.pack("<QQiiifB", us, 1_700_000_000_000_000 + us, *place, 3.5, 3 if i >= 5 else 1)
        out += message(b"D", struct.pack("<H", 0) + fields)
        half = np.radians(45.0) / 2
        turn = struct.pack("<Qffff", us, np.cos(half), 0, 0, np.sin(half))
        out += message(b"D", struct.pack("<H", 1) + turn)
        if i % 10 == 0:
            out += message(b"D", struct.pack("<H", 2) + struct.pack("<QQI", us + 5000, 0, i))
    return out


def klv(key: bytes, kind: bytes, size: int, repeat: int, data: bytes) -> bytes:
    """A GPMF record."""
    return key + kind + struct.pack(">BH", size, repeat) + data + bytes(-len(data) % 4)


def nested(key: bytes, data: bytes) -> bytes:
    """A GPMF record of records."""
    return klv(key, b"\0", 1, len(data), data)


def gps5(lat, lon, alt, fix: int = 3, utc: bytes = b"231115120000.500") -> bytes:
    """A payload with a GPS5 stream, as a Hero writes it."""
    rows = b"".join(
        struct.pack(">5i", round(a * 1e7), round(o * 1e7), round(h * 1000), 3500, 350)
        for a, o, h in zip(lat, lon, alt, strict=True)
    )
    scale = struct.pack(">5i", 10**7, 10**7, 1000, 1000, 100)
    about = klv(b"STNM", b"c", 1, 4, b"GPS ") + klv(b"GPSF", b"L", 4, 1, struct.pack(">I", fix))
    about += klv(b"GPSU", b"U", 16, 1, utc) + klv(b"SCAL", b"l", 4, 5, scale)
    return nested(
        b"DEVC", klv(b"DVNM", b"c", 1, 6, b"Camera") + nested(b"STRM", about + klv(b"GPS5", b"l", 20, len(lat), rows))
    )


def stream(*records: bytes) -> bytes:
    """A payload with one stream of these records."""
    return nested(b"DEVC", klv(b"DVNM", b"c", 1, 6, b"Camera") + nested(b"STRM", b"".join(records)))
