"""How a log's clock meets the clock of the pictures, best evidence first, and how far the two are apart afterwards."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from onboard.telemetry.table import Telemetry

BIN_S = 0.02
"""Offsets that differ by less than this agree."""
NEAR_S = 0.1
"""A picture and a trigger further apart than this do not belong together."""
FEWEST = 3
"""Triggers that have to agree before they are believed."""
SHARE = 0.8
"""And what share of the pictures, or of the triggers where there are fewer of them."""
CLOCK_ERROR_S = 300.0
"""Two clocks that both claim UTC are not further apart than this."""
MOST = 2000
"""Pictures and triggers that are compared, from the beginning of each."""

Times = NDArray[np.int64]


class Alignment(msgspec.Struct, frozen=True, kw_only=True):
    """method: the evidence, in words; offset_ns: add it to a time of the log for the pictures' time.

    residual_ms: what is left between both clocks, by the evidence itself: the median distance of pictures from their
    triggers, of a log's own stamps from the clock of the video around it, or the resolution of the coarser clock. A
    constant error that none of them sees is not in it. None: no evidence. matched: pictures that have a trigger.
    unseen: in words, what error the residual cannot show; "" where there is none.
    """

    method: str
    offset_ns: int
    residual_ms: float | None
    matched: int = 0
    unseen: str = ""


UNSEEN_UTC = "a constant error of either clock; where a turn or a landmark shows one, give offset=SECONDS"
UNSEEN_NONE = "all of it: nothing says when the log began; where a landmark shows it, give offset=SECONDS"


def align(
    t_ns: Times, telemetry: Telemetry, *, utc_ns: int | None, inside: bool = False, offset_s: float | None = None
) -> Alignment:
    """Match the times of pictures (int64 (N,), rising) with a log.

    utc_ns: what to add to the pictures' times for UTC, None where that is unknown; inside: they count by the clock that
    the log counts by, because it lies in the same file or was written with it; offset_s: what the user says.
    Never raises.
    """
    frames = np.asarray(t_ns, np.int64)
    triggers = telemetry.captures.t_ns if telemetry.captures else np.zeros(0, np.int64)
    if offset_s is not None:
        offset = round(offset_s * 1e9)
        apart = _apart(frames, triggers + offset)
        return Alignment(method="the given offset", offset_ns=offset, residual_ms=_median_ms(apart), matched=len(apart))
    known: int | None = None
    if inside:
        known = 0
    elif utc_ns is not None and telemetry.utc_ns is not None:
        known = telemetry.utc_ns - utc_ns
    found = _by_triggers(frames, triggers, known)
    if found is not None and telemetry.captures:
        apart = _apart(frames, triggers + found)
        return Alignment(
            method=f"triggers ({telemetry.captures.source})",
            offset_ns=found,
            residual_ms=_median_ms(apart),
            matched=len(apart),
        )
    if inside:
        return Alignment(method="one clock", offset_ns=0, residual_ms=telemetry.residual_ms)
    if known is not None:
        clock = frames if utc_ns == 0 else np.array([utc_ns], np.int64)
        resolution = _resolution_ms(clock)
        return Alignment(
            method="UTC on both sides",
            offset_ns=known,
            residual_ms=max(resolution, telemetry.residual_ms or 0.0),
            unseen=UNSEEN_UTC,
        )
    begins = [int(series.t_ns[0]) for series in telemetry.series.values()]
    offset = int(frames[0]) - min(begins) if len(frames) and begins else 0
    return Alignment(
        method="none: both are taken to begin together", offset_ns=offset, residual_ms=None, unseen=UNSEEN_NONE
    )


def _by_triggers(frames: Times, triggers: Times, known: int | None) -> int | None:
    """The offset at which most pictures have a trigger; near the known one where several do as well."""
    frames, triggers = frames[:MOST], triggers[:MOST]
    fewest = max(FEWEST, int(np.ceil(SHARE * min(len(frames), len(triggers)))))
    if min(len(frames), len(triggers)) < FEWEST:
        return None
    apart = (frames[:, None] - triggers[None, :]).reshape(-1)
    if known is not None:
        apart = apart[np.abs(apart - known) < CLOCK_ERROR_S * 1e9]
    if not len(apart):
        return None
    apart = np.sort(apart)
    width = round(2 * BIN_S * 1e9)
    last = np.searchsorted(apart, apart + width, side="right")
    counts = last - np.arange(len(apart))  # how many offsets lie in the window that begins at each
    best = int(counts.max())
    if best < fewest:
        return None
    centres = [int(np.median(apart[i : last[i]])) for i in np.flatnonzero(counts >= best)]
    return min(centres, key=lambda centre: abs(centre - (known if known is not None else int(np.median(centres)))))


def _apart(frames: Times, triggers: Times) -> NDArray[np.float64]:
    """Nanoseconds from each picture that has a trigger nearby to the nearest one."""
    if not len(frames) or not len(triggers):
        return np.zeros(0)
    triggers = np.sort(triggers)
    after = np.clip(np.searchsorted(triggers, frames), 1, len(triggers) - 1) if len(triggers) > 1 else None
    if after is None:
        distance = np.abs(frames - triggers[0])
    else:
        distance = np.minimum(np.abs(frames - triggers[after - 1]), np.abs(frames - triggers[after]))
    near: NDArray[np.float64] = distance[distance <= NEAR_S * 1e9].astype(np.float64)
    return near


def _median_ms(apart: NDArray[np.float64]) -> float | None:
    return float(np.median(apart)) * 1e-6 if len(apart) else None


def _resolution_ms(frames: Times) -> float:
    """Half of the coarsest step of 1 s, 100 ms, 10 ms or 1 ms on whose grid all times lie; 0 where they lie on none."""
    for step in (1000, 100, 10, 1):
        if len(frames) and not np.any(frames % (step * 10**6)):
            return step / 2
    return 0.0
