"""Sheds learning before anything of the flight, where the computer is hot, short of power or of memory.

`Governor` decides and touches nothing; `Sensors` reads what Linux and the Pi's firmware say; `Watch` is the thread
between them.
"""

import logging
import threading
from pathlib import Path

import msgspec

from onboard.config import Governing

_log = logging.getLogger(__name__)

EVERY_S = 0.5
POWER_QUIET_S = 10.0
"""Undervoltage comes with the motors' load and goes: learning waits until it has been away for so long."""
MEMORY_MARGIN = 1.5
THROTTLED_NOW = {0: "undervoltage", 1: "frequency capped", 2: "throttled", 3: "temperature limit"}
"""Bits of the Pi firmware's get_throttled that are about now; the upper ones are about the past."""
HOTTEST_C = 150.0
"""Sensors that say more, or less than -50, are broken or absent."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What the sensors say; None where there is none. throttled: bits, see THROTTLED_NOW."""

    temperature_c: float | None = None
    throttled: int | None = None
    free_memory_mb: float | None = None


class Governor:
    """Whether learning may run, with hysteresis; `reason` is empty while it may."""

    def __init__(self, limits: Governing) -> None:
        self.reason = ""
        self._limits = limits
        self._hot = self._weak = self._full = False
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
        if (mb := reading.free_memory_mb) is not None:
            limit = limits.min_memory_mb
            self._full = mb < limit or (self._full and mb < MEMORY_MARGIN * limit)
        if self._full:
            parts.append("memory is short" if mb is None else f"{mb:.0f} MB of memory free")
        self.reason = "; ".join(parts)
        return self.reason


class Sensors:
    """Reads /sys and /proc below a root. A file that is absent or odd is no reading, never an error."""

    def __init__(self, root: Path) -> None:
        self._zones = sorted(root.glob("sys/class/thermal/thermal_zone*/temp"))
        self._throttled = root / "sys/devices/platform/soc/soc:firmware/get_throttled"
        self._memory = root / "proc/meminfo"

    def read(self) -> Reading:
        """All of them, now: the hottest zone, the firmware's bits, the memory that is available."""
        found = [c for zone in self._zones if (c := _number(zone, 10, 1e-3)) is not None and -50 < c < HOTTEST_C]
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
        )


def _number(path: Path, base: int, unit: float) -> float | None:
    try:
        return int(path.read_text().strip(), base) * unit
    except (OSError, ValueError):
        return None


class Watch:
    """A thread that reads the sensors every EVERY_S: sysfs may be slow, and no frame waits for it."""

    def __init__(self, limits: Governing) -> None:
        self._governor, self._sensors = Governor(limits), Sensors(Path(limits.sensors))
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
        c, bits, mb = self.reading.temperature_c, self.reading.throttled, self.reading.free_memory_mb
        parts = [] if c is None else [f"{c:.0f} C"]
        parts += [] if bits is None else [f"throttled 0x{bits:x}"]
        parts += [] if mb is None else [f"{mb:.0f} MB free"]
        return ", ".join(parts) + (f"; learning rests: {self.reason}" if self.reason else "")

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
