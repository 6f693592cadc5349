"""MAVLink telemetry logs (.tlog) of ground stations, through pymavlink (the extra `mavlink`).

A log is a row of eight bytes of time (microseconds of the station's clock, big-endian) and one message each. Messages
that carry the vehicle's own time since boot are placed by it, which the radio does not delay: the station's clock says
once for each boot, by the median, where that time begins.
"""

import math
import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import SourceError
from onboard.telemetry.table import Captures, Series, Telemetry, series

STAMP_BYTES = 8
MAGIC = {0xFE: 6 + 2, 0xFD: 10 + 2}
"""First byte of MAVLink 1 and 2, and the bytes around the payload, without signature."""
SIGNED, SIGNATURE_BYTES = 1, 13
LATEST_US = 4_102_444_800_000_000
"""The year 2100: a later stamp is damage."""
FIX_3D = 3
MAX_PROBLEMS = 20
AUTOPILOT_COMPONENT = 1
NO_AUTOPILOT = 8
REBOOT_MS = 5000
"""A vehicle's time that falls by more than this began anew; by less, messages came out of order."""

NO_VEHICLES = (6, 18, 26, 27, 30)
"""MAV_TYPE of stations, onboard computers, gimbals, ADS-B receivers and cameras."""

YAW_LOCKED, YAW_FROM_NOSE, YAW_FROM_NORTH = 16, 32, 64
"""GIMBAL_DEVICE_FLAGS: what the yaw of a gimbal counts from; where neither is told, from north if it is locked."""

Check = Callable[[bytes, int, int], bool | None]
"""Whether a packet's checksum is right, from the packet, its kind and its payload's end; None for an unknown kind."""
Rows = dict[str, tuple[list[tuple[int, int]], list[Any]]]
"""Name -> times and values. A time is the number of a boot and what passed since it, or -1 and the station's time."""


def read_tlog(path: Path) -> Telemetry:
    """The telemetry of the first vehicle in a log. t_ns are UTC by the ground station's clock.

    Raises SourceError where pymavlink is not installed, the file cannot be read, or no message of a vehicle is in it.
    """
    try:
        from pymavlink.dialects.v20 import ardupilotmega as dialect
    except ImportError as error:
        raise SourceError(
            f"{path}: reading a .tlog needs pymavlink; install it with: pip install 'hadanet-uav[mavlink]'"
        ) from error
    rows = _Rows()
    problems: list[str] = []
    parser = dialect.MAVLink(None)
    parser.robust_parsing = True
    for stamp_us, packet in _packets(path, problems, _known(dialect)):
        try:
            message = parser.decode(bytearray(packet))
        except (dialect.MAVError, ValueError, LookupError, ArithmeticError, TypeError, UnicodeDecodeError) as error:
            problems.append(f"damaged: a message at byte {rows.count}: {error}")
            continue
        rows.add(stamp_us, message)
    table, alternatives, captures, residual_ms = rows.columns()
    if not rows.count or not (table or captures):
        raise SourceError(f"{path}: no message of a vehicle is in this log; is it a MAVLink .tlog?")
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS - 1 :] = [f"damaged: {len(problems) - MAX_PROBLEMS + 1} more places"]
    return Telemetry(
        uri=str(path),
        kind="tlog",
        series=table,
        alternatives=alternatives,
        utc_ns=0,
        captures=captures,
        residual_ms=residual_ms,
        problems=tuple(problems),
    )


def _known(dialect: Any) -> Check:
    """MAVLink's check: CRC-16/MCRF4XX over the packet and an extra byte of its kind of message."""
    extras = {number: kind.crc_extra for number, kind in dialect.mavlink_map.items()}

    def check(packet: bytes, number: int, payload_end: int) -> bool | None:
        extra = extras.get(number)
        if extra is None:
            return None
        crc = dialect.x25crc(packet[1:payload_end])
        crc.accumulate(bytes([extra]))
        return bool(crc.crc == int.from_bytes(packet[payload_end : payload_end + 2], "little"))

    return check


def _packets(path: Path, problems: list[str], is_whole: Check) -> Iterator[tuple[int, bytes]]:
    """Time and bytes of each whole message; where there is damage, on from the next place that makes sense."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at, size, damaged_from = 0, len(data), -1
            while at + STAMP_BYTES + 8 <= size:
                stamp = int.from_bytes(data[at : at + STAMP_BYTES], "big")
                found = _message(data, at + STAMP_BYTES, size, is_whole) if stamp < LATEST_US else None
                if found is None:
                    damaged_from = at if damaged_from < 0 else damaged_from
                    at += 1
                    continue
                if damaged_from >= 0:
                    problems.append(f"damaged: {at - damaged_from} bytes at {damaged_from} are no message")
                    damaged_from = -1
                packet, known = found
                at += STAMP_BYTES + len(packet)
                if known:
                    yield stamp, packet
            rest = size - (damaged_from if damaged_from >= 0 else at)
            if rest:
                problems.append(f"truncated: the last {rest} bytes are no whole message")
    except (OSError, ValueError) as error:
        reason = "it is empty" if isinstance(error, ValueError) else error.strerror or error
        raise SourceError(f"{path}: cannot be read: {reason}") from error


def _message(data: mmap.mmap, at: int, size: int, is_whole: Check) -> tuple[bytes, bool] | None:
    """The message that begins at `at`, and whether its kind is known; None where nothing there makes sense."""
    magic = data[at]
    if magic not in MAGIC:
        return None
    payload = data[at + 1]
    signature = SIGNATURE_BYTES if magic == 0xFD and at + 2 < size and data[at + 2] & SIGNED else 0
    length = payload + MAGIC[magic] + signature
    if at + length > size:
        return None
    packet = data[at : at + length]
    number = packet[5] if magic == 0xFE else int.from_bytes(packet[7:10], "little")
    whole = is_whole(packet, number, length - signature - 2)
    if whole is None:  # cannot be checked: believe it where the next message follows
        after = at + length + STAMP_BYTES
        return (packet, False) if after >= size or data[after] in MAGIC else None
    return (packet, True) if whole else None


def _unit(x: float) -> float:
    return max(-1.0, min(1.0, x))


class _Rows:
    """What the messages of one vehicle say, by field."""

    def __init__(self) -> None:
        self.count = 0
        self._vehicle: int | None = None
        self._rows: Rows = {}
        self._boots: list[list[tuple[int, int]]] = [[]]  # station's stamp and vehicle's time since boot, nanoseconds
        self._latest_ms = 0

    def add(self, stamp_us: int, message: Any) -> None:
        """Take a decoded message."""
        kind = message.get_type()
        if kind == "HEARTBEAT" and message.autopilot != NO_AUTOPILOT and message.type not in NO_VEHICLES:
            self._vehicle = self._vehicle or message.get_srcSystem()
        self.count += 1
        if self._vehicle is not None and message.get_srcSystem() != self._vehicle:
            return
        t_ns = stamp_us * 1000
        # a camera or a computer beside it counts from a start of its own
        boot_ms = getattr(message, "time_boot_ms", 0) if message.get_srcComponent() == AUTOPILOT_COMPONENT else 0
        if boot_ms:
            if boot_ms < self._latest_ms - REBOOT_MS:
                self._boots.append([])
                self._latest_ms = 0
            self._latest_ms = max(self._latest_ms, boot_ms)
            self._boots[-1].append((t_ns, boot_ms * 10**6))
        handler = getattr(self, f"_{kind.lower()}", None)
        if handler is not None:
            for name, value in handler(message):
                times, values = self._rows.setdefault(name, ([], []))
                times.append((len(self._boots) - 1, boot_ms * 10**6) if boot_ms else (-1, t_ns))
                values.append(value)

    # --- one method for each kind of message: (source.quantity, value) ------------------------------------------------

    def _global_position_int(self, m: Any) -> Iterator[tuple[str, float]]:
        if m.lat or m.lon:
            yield "GLOBAL_POSITION_INT.lat_deg", m.lat * 1e-7
            yield "GLOBAL_POSITION_INT.lon_deg", m.lon * 1e-7
            yield "GLOBAL_POSITION_INT.alt_m", m.alt * 1e-3
            yield "GLOBAL_POSITION_INT.agl_m", m.relative_alt * 1e-3
            yield "GLOBAL_POSITION_INT.speed_ms", math.hypot(m.vx, m.vy) * 1e-2

    def _gps_raw_int(self, m: Any) -> Iterator[tuple[str, float]]:
        if m.fix_type >= FIX_3D and (m.lat or m.lon):
            yield "GPS_RAW_INT.lat_deg", m.lat * 1e-7
            yield "GPS_RAW_INT.lon_deg", m.lon * 1e-7
            yield "GPS_RAW_INT.alt_m", m.alt * 1e-3
            if m.vel != 0xFFFF:
                yield "GPS_RAW_INT.speed_ms", m.vel * 1e-2

    def _attitude(self, m: Any) -> Iterator[tuple[str, float]]:
        yield "ATTITUDE.roll_deg", math.degrees(m.roll)
        yield "ATTITUDE.pitch_deg", math.degrees(m.pitch)
        yield "ATTITUDE.yaw_deg", math.degrees(m.yaw) % 360.0

    def _vfr_hud(self, m: Any) -> Iterator[tuple[str, float]]:
        yield "VFR_HUD.speed_ms", m.groundspeed

    def _sys_status(self, m: Any) -> Iterator[tuple[str, float]]:
        if 0 < m.voltage_battery < 0xFFFF:
            yield "SYS_STATUS.battery_v", m.voltage_battery * 1e-3
        if 0 <= m.battery_remaining <= 100:
            yield "SYS_STATUS.battery_share", m.battery_remaining / 100

    def _heartbeat(self, m: Any) -> Iterator[tuple[str, str]]:
        if m.get_srcComponent() == AUTOPILOT_COMPONENT and m.autopilot != NO_AUTOPILOT:
            from pymavlink import mavutil

            yield "HEARTBEAT.mode", str(mavutil.mode_string_v10(m))

    def _mount_orientation(self, m: Any) -> Iterator[tuple[str, float]]:
        yield "MOUNT_ORIENTATION.camera_roll_deg", m.roll
        yield "MOUNT_ORIENTATION.camera_pitch_deg", m.pitch
        absolute = getattr(m, "yaw_absolute", 0.0)
        if absolute:
            yield "MOUNT_ORIENTATION.camera_yaw_deg", absolute % 360.0

    def _gimbal_device_attitude_status(self, m: Any) -> Iterator[tuple[str, float]]:
        w, x, y, z = m.q
        if not 0.9 < w * w + x * x + y * y + z * z < 1.1:
            return
        roll, pitch = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)), math.asin(_unit(2 * (w * y - z * x)))
        yield "GIMBAL_DEVICE_ATTITUDE_STATUS.camera_roll_deg", math.degrees(roll)
        yield "GIMBAL_DEVICE_ATTITUDE_STATUS.camera_pitch_deg", math.degrees(pitch)
        if m.flags & YAW_FROM_NORTH or (m.flags & YAW_LOCKED and not m.flags & YAW_FROM_NOSE):
            yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
            yield "GIMBAL_DEVICE_ATTITUDE_STATUS.camera_yaw_deg", math.degrees(yaw) % 360.0

    def _camera_feedback(self, m: Any) -> Iterator[tuple[str, float]]:
        yield "CAMERA_FEEDBACK", m.img_idx

    def _camera_trigger(self, m: Any) -> Iterator[tuple[str, float]]:
        yield "CAMERA_TRIGGER", m.seq

    def _camera_image_captured(self, m: Any) -> Iterator[tuple[str, float]]:
        yield "CAMERA_IMAGE_CAPTURED", m.image_index

    # --- the table ----------------------------------------------------------------------------------------------------

    def columns(self) -> tuple[dict[str, Series], dict[str, dict[str, Series]], Captures | None, float | None]:
        """Series, alternatives, captures, and how far stamps lie from the vehicle's own time."""
        apart = [np.array([stamp - own for stamp, own in boot], np.int64) for boot in self._boots]
        begins = {number: int(np.median(stamps)) for number, stamps in enumerate(apart) if len(stamps)} | {-1: 0}
        off = np.concatenate(
            [np.abs(stamps - begins[n]) for n, stamps in enumerate(apart) if n in begins] or [np.zeros(0)]
        )
        residual_ms = float(np.median(off)) * 1e-6 if len(off) else None
        own: dict[str, Series] = {}
        for name, (times, values) in self._rows.items():
            column = series(name, [begins[boot] + since for boot, since in times], values)
            if column is not None:
                own[name] = column
        table: dict[str, Series] = {}
        alternatives: dict[str, dict[str, Series]] = {}
        for name, column in own.items():
            source, _, quantity = name.partition(".")
            if source == "GPS_RAW_INT" and "GLOBAL_POSITION_INT.lat_deg" in own:
                alternatives.setdefault(source, {})[quantity] = column
            elif quantity and quantity not in table:
                table[quantity] = column
        kinds = Counter({n: len(own[n].t_ns) for n in own if "." not in n})
        best = kinds.most_common(1)
        captures = Captures(source=best[0][0], t_ns=own[best[0][0]].t_ns) if best else None
        return table, alternatives, captures, residual_ms
