"""`python -m benchmarks learning`: what learning in flight is worth, on every stream that is at hand.

Each row is one variant of one replay, by the definitions of `onboard.scores`; all variants of a seed see the same
questions and are scored on the same tiles. Behind the seeds of a stream stand their means, and the gain of `adapted`
over each other variant with a paired 95% interval. tick_ms: the median tick that had labels, of the same flight in this
process; learner_bytes: the most that the learner's process held, libraries and all.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
from rich.progress import Progress

from benchmarks import beside, harm
from benchmarks.streams import Conditions, Stream, fly, record, streams
from onboard import replay
from onboard.config import Asking, Config, ModelChoice
from onboard.report import Report

SEEDS = 5
MORE_SEEDS = {"caliterra": 20}
"""Where `frozen` depends on luck, fewer tell nothing."""
SHARE = 0.03
WATCH_S = 0.2
BLOCKS = 6
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 19: 2.09}
"""Student's t for a two-sided 95% interval, by degrees of freedom."""


def fly_replay(stream: Stream, seed: int) -> Report:
    """One replay, with processes and sockets."""
    model = ModelChoice(classes=stream.classes) if stream.classes else ModelChoice()
    config = Config(seed=seed, model=model, ask=Asking(share=SHARE))
    with tempfile.TemporaryDirectory() as state, Progress(disable=True) as silent:
        return replay.run(config, msgspec.structs.replace(stream.options, state=Path(state)), silent)


def gain(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Mean of first less second, and half the width of its 95% interval; the width is infinite for a single pair."""
    differences = np.array([a - b for a, b in pairs])
    n = len(differences)
    half = float(T_95[n - 1] * differences.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")
    return float(differences.mean()), half


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """A row for each stream, variant and seed, and one for each stream and variant; `quick` flies one seed."""
    table: list[dict[str, object]] = []
    with streams() as found:
        for stream in found:
            seen = record(stream)
            scores: dict[str, list[float]] = {}
            for seed in range(1 if quick else MORE_SEEDS.get(stream.name, SEEDS)):
                progress(f"{stream.name}, seed {seed}")
                with watched() as most:
                    report = fly_replay(stream, seed)
                here = fly(seen, seed, Conditions(delay=stream.options.label_delay))
                assert report.accuracy is not None
                assert report.macro_f1 is not None
                for variant, accuracy in report.accuracy.items():
                    adapted = variant == "adapted"
                    scores.setdefault(variant, []).append(report.macro_f1[variant])
                    table.append(
                        {
                            "stream": stream.name,
                            "variant": variant,
                            "seed": seed,
                            "accuracy": round(accuracy, 4),
                            "macro_f1": round(report.macro_f1[variant], 4),
                            "labels_used": report.labels_used,
                            "mirror_equal": report.mirror_hash == report.model_hash,
                            "same_in_process": here.learner.model.hash == report.model_hash if adapted else None,
                            "tick_ms": round(float(np.median(here.ticks_ms)), 2) if adapted else None,
                            "learner_bytes": most[0] if adapted else None,
                        }
                    )
            if stream.name == "sim":
                table += [beside.new_place(seen), beside.frames_beside(1 if quick else BLOCKS, progress)]
            if stream.name == "sim" and not quick:
                table += harm.rows(seen, progress)
            for variant, own in scores.items():
                more, half = gain(list(zip(scores["adapted"], own, strict=True)))
                table.append(
                    {
                        "stream": stream.name,
                        "variant": variant,
                        "seed": "mean",
                        "macro_f1": round(float(np.mean(own)), 4),
                        "adapted_gains": None if variant == "adapted" else f"{more:+.3f} +- {half:.3f}",
                    }
                )
    return table


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most memory in bytes that a learner process of ours holds meanwhile, as the one entry of a list."""
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_S):
            for folder in beside.learners():
                with suppress(OSError, KeyError):  # it ended meanwhile
                    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                    most[0] = max(most[0], int(fields["VmHWM"].split()[0]) * 1024)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()
