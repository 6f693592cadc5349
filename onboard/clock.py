"""The flight's clock, which never jumps, and how far it is from UTC, once somebody tells.

A Raspberry Pi has no clock of its own: it starts in 1970, or where it was switched off, and the system's time jumps
when NTP or GPS is there. So all stamps of a flight are the system's time at the start of the process plus the monotonic
time since, and `Utc` keeps the offset to the real time beside them: from the system's clock where that was set, else
from the station's, which comes with its Welcome.
"""

import time
from pathlib import Path
from typing import Literal

import msgspec

EARLIEST_S = 1_735_689_600
"""2025-01-01: a clock before this was never set."""
STEP_NS = 500_000_000
"""A system's clock that went ahead of the monotonic one by more than this was set; NTP slews less in a minute."""
SYNCHRONIZED = Path("/run/systemd/timesync/synchronized")
"""systemd-timesyncd touches this file when it has the time; adjtimex would tell, but a unit may not call it."""

_ZERO_NS = time.time_ns() - time.monotonic_ns()

UtcSource = Literal["", "system", "ground", "ntp"]
_RANK: dict[UtcSource, int] = {"": 0, "system": 1, "ground": 2, "ntp": 3}


def now_ns() -> int:
    """The flight's time: nanoseconds since 1970 by the system's clock as it was when this process started."""
    return _ZERO_NS + time.monotonic_ns()


class Known(msgspec.Struct, frozen=True):
    """UTC is `now_ns() + offset_ns`. source: ntp: the system's clock, which was set; ground: the station's; system: the
    system's clock, which has a likely time and nothing more to say for it; "": nothing is known, the offset is 0.
    """

    offset_ns: int = 0
    source: UtcSource = ""


class Utc:
    """Follows what is known of UTC. `look` is cheap, and to be called about twice a second; `hear` from any thread."""

    def __init__(self, synchronized: Path = SYNCHRONIZED) -> None:
        self.known = Known()
        self._synchronized = synchronized
        self._ground: int | None = None
        self._set = False
        self._drift_ns = self._system_ns()

    @staticmethod
    def _system_ns() -> int:
        """How far the system's clock is ahead of the flight's."""
        return time.time_ns() - now_ns()

    def hear(self, utc_ns: int) -> None:
        """The station says that it is so late now."""
        if utc_ns >= EARLIEST_S * 10**9:
            self._ground = utc_ns - now_ns()

    def look(self) -> bool:
        """Look at the clocks; whether what is known became better, or changed by more than STEP_NS."""
        system_ns = self._system_ns()
        likely = time.time() >= EARLIEST_S
        self._set = likely and (self._set or abs(system_ns - self._drift_ns) > STEP_NS or self._synchronized.exists())
        self._drift_ns = system_ns
        best = Known()
        if likely:
            best = Known(system_ns, "ntp" if self._set else "system")
        if self._ground is not None and _RANK["ground"] > _RANK[best.source]:
            best = Known(self._ground, "ground")
        old = self.known
        changed = best.source != old.source or abs(best.offset_ns - old.offset_ns) > STEP_NS
        if changed:
            self.known = best
        return changed

    def problem(self) -> str:
        """What a person should know, "" once the time is known."""
        if self.known.source:
            return ""
        return (
            f"the clock says {time.strftime('%Y-%m-%d', time.gmtime())}, and neither NTP nor the ground station told "
            "the time yet: recordings count from there until one does"
        )

    def describe(self) -> str:
        """UTC now and who says so, for the status."""
        if not self.known.source:
            return "unknown"
        now_s = (now_ns() + self.known.offset_ns) / 1e9
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now_s))} by {self.known.source}"
