"""`python -m benchmarks ablations`: what each part of learning in flight is worth, one left out or changed at a time.

A row is a mean over seeds with its spread, and its paired difference to the learner as it flies with a 95% interval;
where fewer questions are asked, also to as many as usual at random. Last comes a flight ten times as long, with labels
at once and 100 frames late: how much of the gain over a head that was frozen early is left.
The flights are those of `benchmarks.streams`, in this process.
"""

from collections.abc import Callable

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from benchmarks.learning import SEEDS, gain
from benchmarks.streams import WINDOWS, Backbone, Conditions, Flown, Recorded, Stream, fly, record, streams, wrong
from models.engine import Engine, Features
from models.model import Model
from onboard.learner import Floats32, Ints, Learner
from onboard.queries import Asker
from onboard.replay import Options
from onboard.scores import macro_f1
from onboard.turned import Turned

LIKENESS = 0.3
LONG = Stream("sim-long", Options(source="sim://?seed=4&frames=1200"), ())
LATE = 100
FEWER, RANDOM = "2% labels", "questions at random"


class AtRandom(Asker):
    """Questions drawn at random from fresh ground."""

    RANDOM_SHARE = 1.0


class Likened(Learner):
    """Labels that look like the last frames count more (importance-weighted memory, after Csaba et al. 2024)."""

    def _fit(
        self,
        rows: Floats32,
        gram: NDArray[np.float64],
        numbers: Ints,
        denied: NDArray[np.bool_],
        weights: NDArray[np.float64],
        judges: int,
        classes: tuple[str, ...],
    ) -> tuple[Model, Ints]:
        values = self._last_values()
        recent = np.concatenate(values)
        if len(recent):
            mean = recent.mean(axis=0)
            mine, theirs = (x - mean for x in (rows, recent))
            mine /= np.linalg.norm(mine, axis=1, keepdims=True) + 1e-9
            theirs /= np.linalg.norm(theirs, axis=1, keepdims=True) + 1e-9
            like = np.sort(np.exp((mine @ theirs.T - 1) / LIKENESS), axis=1)[:, -20:].mean(axis=1)
            for number in np.unique(numbers):
                own = numbers == number
                like[own] /= like[own].mean()
            weights = weights * like
        return super()._fit(rows, gram, numbers, denied, weights, judges, classes)


class Floats(Backbone):
    """Features that are not binarized: 1.6 kB a sample instead of 0.5."""

    def __init__(self, seen: Recorded, seed: int) -> None:
        super().__init__(seen, seed)
        spec = replace(self.model.spec, beta_f=1)
        self.model = Model(spec, self.model.tensors, self.model.classes)
        self._turned, self._engine = Turned(self.model), Engine(self.model)

    def features(self, index: int) -> Features:
        """A scale for each feature, which is its size."""
        return self._engine.features(self.lit(index))


class Ungated(Learner):
    """Every candidate flies."""

    def _gate(self, candidate: Model, honest: dict[int, str], recent: Floats32) -> str:
        return ""


def right_or_wrong(truth: int, said: int, classes: int, random: np.random.Generator) -> tuple[int, bool]:
    """An operator who only says whether the drone's guess is right."""
    return said, said != truth


def variants(delay: int) -> dict[str, Conditions]:
    """The table of ablations."""
    base = Conditions(delay=delay)

    def how(**changed: object) -> Conditions:
        return replace(base, **changed)

    def learning(**changed: float) -> Conditions:
        return how(settings=replace(base.settings, **changed))

    return {
        "as it flies": how(),
        "without smoothing": how(smoothed=False),
        "without even light": how(even_light=False),
        "without turned tiles": how(turned=False),
        "without the same ground": learning(propagate=0.0),
        "with pseudo-labels": learning(pseudo=0.6),
        "without gate": how(learner=Ungated),
        "features in floats": how(backbone=Floats),
        "newest 64 labels": learning(memory=64),
        "likeness to the last frames": how(learner=Likened),
        RANDOM: how(asker=AtRandom),
        "10% wrong labels": how(answers=wrong(0.1)),
        "30% wrong labels": how(answers=wrong(0.3)),
        "right or wrong only": how(answers=right_or_wrong),
        **{f"delay {frames}": how(delay=frames) for frames in (0, 10, 50, 100)},
        "0.3% labels": how(share=0.003),
        "1% labels": how(share=0.01),
        FEWER: how(share=0.02),
    }


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """A row for each stream and ablation; `quick` flies two seeds of the simulated streams alone."""
    table: list[dict[str, object]] = []
    with streams() as found:
        for stream in found[: 2 if quick else None]:
            table += _of_stream(stream, 2 if quick else SEEDS, progress)
    return table if quick else [*table, *late(progress)]


def late(progress: Callable[[str], None]) -> list[dict[str, object]]:
    """Two rows: labels at once, and late; scored on the same tiles, those behind the first tenth and the delay."""
    seen = record(LONG)
    tenth = -(-len(seen.truth) // WINDOWS)
    scored = seen.scored
    scored[: tenth + LATE] = False
    table: list[dict[str, object]] = []
    gains = []
    for delay in (0, LATE):
        pairs = []
        for seed in range(SEEDS):
            progress(f"{LONG.name}, delay {delay}, seed {seed}")
            flown = fly(seen, seed, Conditions(delay=delay, frozen_at=tenth + delay))
            ours, frozen = (
                macro_f1(seen.truth[scored], said[scored], len(seen.classes)) for said in (flown.said, flown.frozen)
            )
            pairs.append((ours, frozen))
        more, half = gain(pairs)
        gains.append(more)
        table.append(
            {
                "stream": LONG.name,
                "ablation": f"delay {delay}",
                "macro_f1": round(float(np.mean([ours for ours, _ in pairs])), 4),
                "over_frozen": f"{more:+.3f} +- {half:.3f}",
                "gain_kept": round(gains[-1] / gains[0], 3),
            }
        )
    return table


def _of_stream(stream: Stream, seeds: int, progress: Callable[[str], None]) -> list[dict[str, object]]:
    seen: dict[bool, Recorded] = {}
    flown: dict[str, list[Flown]] = {}
    for name, how in variants(stream.options.label_delay).items():
        if how.even_light not in seen:
            seen[how.even_light] = record(stream, how.even_light)
        frames = len(seen[how.even_light].truth)
        if how.delay + -(-frames // WINDOWS) >= frames:
            continue  # no label would come in time
        for seed in range(seeds):
            progress(f"{stream.name}, {name}, seed {seed}")
            flown.setdefault(name, []).append(fly(seen[how.even_light], seed, how))
    reference = [flight.macro_f1 for flight in flown["as it flies"]]
    at_random = [flight.macro_f1 for flight in flown[RANDOM]]
    table = []
    for name, flights in flown.items():
        own = [flight.macro_f1 for flight in flights]
        more, half = gain(list(zip(own, reference, strict=True)))
        against, width = gain(list(zip(own, at_random, strict=True)))
        table.append(
            {
                "stream": stream.name,
                "ablation": name,
                "macro_f1": round(float(np.mean(own)), 4),
                "spread": round(float(np.std(own, ddof=1)), 4) if len(own) > 1 else None,
                "difference": "-" if name == "as it flies" else f"{more:+.3f} +- {half:.3f}",
                "to_random": f"{against:+.3f} +- {width:.3f}" if name == FEWER else None,
                "worst_window": round(min(min(flight.windows) for flight in flights), 3),
                "labels_used": round(float(np.mean([flight.labels for flight in flights])), 1),
                "refused": sum(flight.learner.rollbacks for flight in flights),
                "tick_ms": round(float(np.median([ms for flight in flights for ms in flight.ticks_ms])), 2),
            }
        )
    return table
