"""Streams that are made to do harm: learning must not make worse what was learned before them.

A simulated flight teaches a head first. Then come its tiles again, up to 10^5 of them: in random order, so that no two
frames and no two tiles belong together; or of one class alone, and then all again, so that it shows what was forgotten;
or in random order with an operator who is wrong in 30% of the answers. What flies is compared with the head that the
flight had taught, window by window.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.streams import WINDOWS, Conditions, Flown, Recorded, fly, wrong
from models.engine import Features
from onboard.truth import UNKNOWN

TILES = 100_000
SHARE = 0.01
DELAY = 20
KINDS = ("shuffled", "one class, then all", "30% wrong labels")


def stressed(seen: Recorded, kind: str, tiles: int, seed: int) -> tuple[Recorded, Conditions]:
    """The flight and behind it so many of its tiles again, and the conditions to fly it under."""
    random = np.random.default_rng((seed, KINDS.index(kind)))
    known = np.argwhere(seen.truth != UNKNOWN)
    per_frame = seen.truth.shape[1]
    frames = tiles // per_frame
    if kind == "one class, then all":
        most = np.bincount(seen.truth[seen.truth != UNKNOWN]).argmax()
        alone = np.argwhere(seen.truth == most)
        half = frames // 2
        places = np.concatenate(
            [_draw(alone, half * per_frame, random), _draw(known, (frames - half) * per_frame, random)]
        )
    else:
        places = _draw(known, frames * per_frame, random)
    first = seen.features[0]
    out = seen._replace(
        tiles=list(seen.tiles), light=list(seen.light), features=list(seen.features), motion=list(seen.motion)
    )
    truth = [seen.truth]
    for start in range(0, len(places), per_frame):
        own = places[start : start + per_frame]
        out.tiles.append(np.stack([seen.tiles[f][t] for f, t in own]))
        out.light.append(seen.light[own[0][0]])
        bits, scales = (np.stack([getattr(seen.features[f], name)[t] for f, t in own]) for name in ("bits", "scales"))
        out.features.append(Features(bits, scales, first.count, first.beta))
        out.motion.append(None)
        truth.append(seen.truth[tuple(own.T)][None])
    answers = wrong(0.3) if kind == "30% wrong labels" else Conditions().answers
    how = Conditions(delay=DELAY, share=SHARE, turned=False, answers=answers, frozen_at=len(seen.features) - 1)
    return out._replace(truth=np.concatenate(truth)), how


def _draw(places: NDArray[np.intp], count: int, random: np.random.Generator) -> NDArray[np.intp]:
    """So many of the places (n, 2), each as often as the others but for one time."""
    rounds = -(-count // len(places))
    return np.concatenate([random.permutation(places) for _ in range(rounds)])[:count]


def windows(flown: Flown, seen: Recorded, behind: int) -> list[tuple[float, float]]:
    """Accuracy of what flew and of the frozen head in each tenth of the frames behind `behind`."""
    out = []
    for part in np.array_split(np.arange(behind, len(seen.truth)), WINDOWS):
        truth = seen.truth[part]
        ours, frozen = (float((said[part] == truth)[truth != UNKNOWN].mean()) for said in (flown.said, flown.frozen))
        out.append((ours, frozen))
    return out


def rows(seen: Recorded, progress: Callable[[str], None], tiles: int = TILES, seed: int = 0) -> list[dict[str, object]]:
    """A row for each kind of harm: the window in which learning lost most against the frozen head."""
    table: list[dict[str, object]] = []
    for kind in KINDS:
        progress(f"harm: {kind}")
        stream, how = stressed(seen, kind, tiles, seed)
        flown = fly(stream, seed, how)
        both = windows(flown, stream, len(seen.truth))
        worst = min(both, key=lambda pair: pair[0] - pair[1])
        table.append(
            {
                "stream": f"sim, {kind}",
                "variant": "adapted",
                "seed": seed,
                "accuracy": round(float(np.mean([ours for ours, _ in both])), 4),
                "labels_used": flown.labels,
                "tick_ms": round(float(np.median(flown.ticks_ms)), 2),
                "frozen_accuracy": round(float(np.mean([frozen for _, frozen in both])), 4),
                "worst_window_gain": round(worst[0] - worst[1], 4),
            }
        )
    return table
