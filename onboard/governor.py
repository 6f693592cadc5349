"""Sheds learning before anything of the flight, where the computer is hot, short of power, of memory or of disk.

`Governor` decides and touches nothing; `Sensors` reads what Linux and the Pi's firmware say; `Watch` is the thread
between them.
"""

import logging
import shutil
import threading
from pathlib import Path

import msgspec

from onboard.config import Governing

_log = logging.getLogger(__name__)

EVERY_S = 0.5
POWER_QUIET_S = 10.0
"""Undervoltage comes with the motors' load and goes: learning waits until it has been away for so long."""
MARGIN = 1.5
"""Where something was short, learning waits until there is so many times as much of it as the limit says."""
FIXED_ZONES = ("PMIC-Die",)
"""Thermal zones, by type, that are no sensors: this one of a Jetson Nano always says 100 C."""
THROTTLED_NOW = {0: "undervoltage", 1: "frequency capped", 2: "throttled", 3: "temperature limit"}
"""Bits of the Pi firmware's get_throttled that are about now; the upper ones are about the past."""
HOTTEST_C = 150.0
"""Sensors that say more, or less than -50, are broken or absent."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What the sensors say; None where there is none. throttled: bits, see THROTTLED_NOW.

    battery_percent: of a battery that the computer runs from at present.
    """

    temperature_c: float | None = None
    throttled: int | None = None
    free_memory_mb: float | None = None
    free_disk_mb: float | None = None
    battery_percent: float | None = None


class Governor:
    """Whether learning may run, with hysteresis; `reason` is empty while it may."""

    def __init__(self, limits: Governing) -> None:
        self.reason = ""
        self._limits = limits
        self._hot = False
        self._short: set[str] = set()
        self._power_bad_s = float("-inf")

    def update(self, now_s: float, reading: Reading) -> str:
        """Take a reading at a time of any monotonic clock; the reason why learning rests, or "". A sensor that falls
        silent leaves things as they are.
        """
        limits, parts = self._limits, []
        if (c := reading.temperature_c) is not None:
            self._hot = c >= limits.off_c or (self._hot and c > limits.off_c - limits.hysteresis_c)
            if self._hot:
                parts.append(f"{c:.0f} C, learns again at {limits.off_c - limits.hysteresis_c:g} C")
        elif self._hot:
            parts.append("hot, and its sensor is silent")
        if reading.throttled is not None and (
            now := [t for b, t in THROTTLED_NOW.items() if reading.throttled >> b & 1]
        ):
            self._power_bad_s = now_s
            parts.append(", ".join(now))
        elif now_s - self._power_bad_s < POWER_QUIET_S:
            parts.append(f"undervoltage or throttling less than {POWER_QUIET_S:g} s ago")
        parts += self._left("memory", reading.free_memory_mb, limits.min_memory_mb, "MB of memory free")
        parts += self._left("disk", reading.free_disk_mb, limits.min_disk_mb, "MB of disk free")
        parts += self._left("battery", reading.battery_percent, limits.min_battery_percent, "% of battery left")
        self.reason = "; ".join(parts)
        return self.reason

    def _left(self, what: str, value: float | None, limit: float, words: str) -> list[str]:
        """The reason, if there is too little of something; [] otherwise."""
        if value is not None:
            short = value < limit or (what in self._short and value < MARGIN * limit)
            self._short = self._short | {what} if short else self._short - {what}
        if what not in self._short:
            return []
        return [f"{what} was short, and nothing tells of it" if value is None else f"{value:.0f} {words}"]


class Sensors:
    """Reads /sys and /proc below a root, and the disk of a folder. A file that is absent or odd is no reading, never an
    error.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        zones = sorted(root.glob("sys/class/thermal/thermal_zone*"))
        self._zones = [zone / "temp" for zone in zones if _text(zone / "type") not in FIXED_ZONES]
        self._batteries = sorted(root.glob("sys/class/power_supply/*"))
        self._folder = folder
        self._throttled = root / "sys/devices/platform/soc/soc:firmware/get_throttled"
        self._memory = root / "proc/meminfo"

    def read(self) -> Reading:
        """All of them, now: the hottest zone, the firmware's bits, what is left of memory, disk and battery."""
        found = [c for zone in self._zones if (c := _number(zone, 10, 1e-3)) is not None and -50 < c < HOTTEST_C]
        batteries = [left for folder in self._batteries if (left := self._battery(folder)) is not None]
        bits = _number(self._throttled, 16, 1)
        memory = None
        try:
            lines = self._memory.read_text().splitlines()
            (line,) = [line.split() for line in lines if line.startswith("MemAvailable:")]
            memory = int(line[1]) / 1024
        except (OSError, ValueError, IndexError):
            pass
        return Reading(
            temperature_c=max(found, default=None),
            throttled=None if bits is None else int(bits),
            free_memory_mb=memory,
            free_disk_mb=self._free_disk_mb(),
            battery_percent=min(batteries, default=None),
        )

    def _free_disk_mb(self) -> float | None:
        try:
            return shutil.disk_usage(self._folder).free / 2**20
        except OSError:
            return None

    def _battery(self, folder: Path) -> float | None:
        """What is left of this power supply in percent, if it is a battery that is being emptied."""
        if (_text(folder / "type"), _text(folder / "status")) != ("Battery", "Discharging"):
            return None
        left = _number(folder / "capacity", 10, 1)
        return left if left is not None and 0 <= left <= 100 else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path, base: int, unit: float) -> float | None:
    try:
        return int(path.read_text().strip(), base) * unit
    except (OSError, ValueError):
        return None


class Watch:
    """A thread that reads the sensors every EVERY_S: sysfs may be slow, and no frame waits for it."""

    def __init__(self, limits: Governing, folder: Path) -> None:
        self._governor, self._sensors = Governor(limits), Sensors(Path(limits.sensors), folder)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="governor", daemon=True)
        self.reading = Reading()
        self._thread.start()

    @property
    def reason(self) -> str:
        """Why learning rests; empty while it may run."""
        return self._governor.reason

    def describe(self) -> str:
        """The sensors in a line, for the status."""
        now = self.reading
        parts = [] if now.temperature_c is None else [f"{now.temperature_c:.0f} C"]
        parts += [] if now.throttled is None else [f"throttled 0x{now.throttled:x}"]
        parts += [] if now.free_memory_mb is None else [f"{now.free_memory_mb:.0f} MB free"]
        parts += [] if now.free_disk_mb is None else [f"{now.free_disk_mb:.0f} MB of disk"]
        parts += [] if now.battery_percent is None else [f"battery {now.battery_percent:.0f} %"]
        return ", ".join(parts) + (f"; learning rests: {self.reason}" if self.reason else "")

    def sensors(self) -> dict[str, float | int | str | None]:
        """The sensors as numbers, for the status, and the throttling in words."""
        bits, words = self.reading.throttled, ""
        if bits is not None:
            words = ", ".join(text for bit, text in THROTTLED_NOW.items() if bits >> bit & 1)
            words = words or ("earlier, not now" if bits else "none")
        return msgspec.structs.asdict(self.reading) | {"throttling": words}

    def _run(self) -> None:
        now_s = 0.0
        while not self._stop.is_set():
            before = self.reason
            self.reading = self._sensors.read()
            reason = self._governor.update(now_s, self.reading)
            if bool(reason) != bool(before):
                _log.warning("learning rests: %s", reason) if reason else _log.info("learning goes on")
            self._stop.wait(EVERY_S)
            now_s += EVERY_S

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(2 * EVERY_S)
