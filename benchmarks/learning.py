"""`python -m benchmarks learning`: what learning in flight is worth, on every stream that is at hand.

Each row is one variant of one replay, by the definitions of `onboard.scores`; all variants of a seed see the same
questions and are scored on the same tiles.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich.progress import Progress

from onboard import replay
from onboard.config import Asking, Config, ModelChoice
from onboard.report import Report

SEEDS = 5
CALITERRA_CLASSES = ("object", "road", "trees", "ground")


def streams() -> dict[str, tuple[replay.Options, tuple[str, ...]]]:
    """Name -> how to replay it, and its classes. Caliterra only where the data is."""
    found: dict[str, tuple[replay.Options, tuple[str, ...]]] = {
        "sim": (replay.Options(source="sim://?seed=4", label_delay=5), ("", "-"))
    }
    flights = Path(os.environ.get("HADANET_DATA", "../shared/data")) / "flights"
    if (flights / "caliterra_labels.csv").exists():
        options = replay.Options(
            source=str(flights / "caliterra"),
            truth=flights / "caliterra_labels.csv",
            letters=replay.default_letters(CALITERRA_CLASSES),
            label_delay=5,
        )
        found["caliterra"] = (options, CALITERRA_CLASSES)
    return found


def fly(options: replay.Options, classes: tuple[str, ...], seed: int, share: float = 0.03) -> Report:
    """One replay with `share` of the tiles asked about."""
    config = Config(seed=seed, model=ModelChoice(classes=classes), ask=Asking(share=share))
    with tempfile.TemporaryDirectory() as state, Progress(disable=True) as silent:
        return replay.run(config, msgspec.structs.replace(options, state=Path(state)), silent)


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """A row for each stream, variant and seed; `quick` flies one seed."""
    table: list[dict[str, object]] = []
    for name, (options, classes) in streams().items():
        for seed in range(1 if quick else SEEDS):
            progress(f"{name}, seed {seed}")
            report = fly(options, classes, seed)
            assert report.accuracy is not None
            assert report.macro_f1 is not None
            for variant, accuracy in report.accuracy.items():
                table.append(
                    {
                        "stream": name,
                        "variant": variant,
                        "seed": seed,
                        "accuracy": round(accuracy, 4),
                        "macro_f1": round(report.macro_f1[variant], 4),
                        "labels_used": report.labels_used,
                        "mirror_equal": report.mirror_hash == report.model_hash,
                        "tick_ms": None,
                        "learner_bytes": None,
                    }
                )
    return table
