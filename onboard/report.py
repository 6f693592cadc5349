"""What a replay has to say: `report.json`, a table, and a picture."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.errors import HadanetError
from onboard.asflown import AsFlownReport
from onboard.figure import panels, save

SMOOTH_FRAMES = 5
"""Frames over which the picture averages accuracy."""
COLOURS = {"adapted": "#0b7a3b", "smoothed": "#c56a00", "frozen": "#8a8f98", "all_labels": "#b9c6de"}


class Timeline(msgspec.Struct, frozen=True):
    """The flight frame by frame, for the picture; every second, fourth, ... frame and label of a long one.

    labels: the frame at which each label arrived; bytes_up: sent up to each frame; hits: per variant the number of
    right tiles and of tiles with truth in each frame.
    """

    frames: list[int]
    labels: list[int]
    bytes_up: list[int]
    hits: dict[str, list[tuple[int, int]]] = {}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of report.json. None: no truth was given; `as_flown`: no recording, or not flown as it flew.

    latency_ms: `p50`, `p99` of a whole frame and `inference_p50`, `inference_p99` of its inference alone.
    """

    source: str
    frames: int
    frames_dropped: int
    frames_skipped: list[str]
    tiles: int
    classes: list[str]
    labels_used: int
    label_rate: float
    questions: int
    accuracy: dict[str, float] | None
    macro_f1: dict[str, float] | None
    windows: dict[str, list[float | None]] | None
    updates: int
    rollbacks: int
    learner_restarts: int
    latency_ms: dict[str, float]
    fps: float
    bytes_up: int
    bytes_down: int
    delta_bytes: list[int]
    model_hash: str
    base_hash: str
    mirror_hash: str
    seed: int
    timeline: Timeline
    as_flown: AsFlownReport | None = None


def percentiles(values: Iterable[float], prefix: str = "") -> dict[str, float]:
    """Median and 99th percentile, in the unit of the values, as `p50` and `p99`; zeros where there are none."""
    array = np.fromiter(values, np.float64)
    p50, p99 = np.percentile(array, [50, 99]) if array.size else (0.0, 0.0)
    return {f"{prefix}p50": round(float(p50), 3), f"{prefix}p99": round(float(p99), 3)}


def write(report: msgspec.Struct, path: Path) -> None:
    """Write a report, or what else is a struct, as JSON that people can read. Raises HadanetError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    except OSError as error:
        raise HadanetError(f"{path}: the report cannot be written: {error.strerror}") from error


def show(report: Report, console: Console) -> None:
    """Print the report as tables."""
    if report.accuracy and report.macro_f1 and report.windows:
        table = Table(title=f"{escape(report.source)}: {report.labels_used} labels for {report.tiles} tiles")
        table.add_column("variant")
        for name in ("accuracy", "macro F1", "worst tenth"):
            table.add_column(name, justify="right")
        for variant, accuracy in report.accuracy.items():
            worst = min((w for w in report.windows[variant][1:] if w is not None), default=0.0)
            bold = "bold green" if variant == "adapted" else ""
            table.add_row(variant, f"{accuracy:.3f}", f"{report.macro_f1[variant]:.3f}", f"{worst:.3f}", style=bold)
        console.print(table)
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    deltas = sorted(report.delta_bytes)
    latency = report.latency_ms
    for name, value in {
        "frames": f"{report.frames}, dropped {report.frames_dropped}, unreadable {len(report.frames_skipped)}",
        "questions, labels": f"{report.questions}, {report.labels_used} ({report.label_rate:.1%} of tiles)",
        "updates, refused": f"{report.updates}, {report.rollbacks}",
        "a frame": f"{latency['p50']:.1f} ms (p99 {latency['p99']:.1f}), inference {latency['inference_p50']:.1f} ms",
        "frames per second": f"{report.fps:.1f}",
        "bytes up, down": f"{report.bytes_up:,}, {report.bytes_down:,}",
        "a delta": f"{deltas[len(deltas) // 2]} bytes (median), {deltas[-1]} (largest)" if deltas else "none",
        "model": report.model_hash[:16],
        "mirror": "equal" if report.mirror_hash == report.model_hash else f"DIFFERS: {report.mirror_hash[:16]}",
    }.items():
        facts.add_row(name, value)
    if report.as_flown:
        facts.add_row("as recorded", _as_flown(report.as_flown, report.model_hash))
    console.print(facts)
    for line in report.frames_skipped[:10]:
        console.print(f"unreadable: {line}", style="yellow", markup=False)


def _as_flown(told: AsFlownReport, model_hash: str) -> str:
    same = "the same model" if told.model_hash == model_hash else f"ANOTHER MODEL than {told.model_hash[:16]}"
    return (
        f"{same}, {told.tiles_differ} tiles differ in {told.frames} frames; {told.labels} labels, "
        f"{told.learned} updates learned again, {told.taken} taken from the recording"
        + (f", {told.missing} frames lack their model" if told.missing else "")
        + ("; the recorded pixels were compressed again by JPEG" if told.recompressed else "")
    )


def draw(report: Report, path: Path) -> None:
    """A picture of the flight: accuracy of the variants, labels as ticks, bytes sent. Raises HadanetError."""
    line = report.timeline
    figure, top, bottom = panels(10, 6, sharex=True)
    for variant in ("all_labels", "frozen", "smoothed", "adapted"):
        if pairs := line.hits.get(variant):
            right, known = np.array(pairs, np.float64).T
            window = np.ones(min(SMOOTH_FRAMES, len(pairs)))
            right, known = np.convolve(right, window, "same"), np.convolve(known, window, "same")
            share = np.where(known > 0, right / np.maximum(1, known), np.nan)
            width = 2.4 if variant == "adapted" else 1.4
            label = f"{variant.replace('_', ' ')}  F1 {report.macro_f1[variant]:.2f}" if report.macro_f1 else variant
            top.plot(line.frames, share, color=COLOURS[variant], lw=width, label=label)
    top.plot(line.labels, np.full(len(line.labels), -0.05), "|", color="#333333", ms=9, label="a label arrives")
    top.set(ylim=(-0.1, 1.02), ylabel="tiles right")
    top.yaxis.set_major_formatter("{x:.0%}")
    top.set_yticks(np.linspace(0, 1, 6))
    top.set_title(
        f"{report.labels_used} labels for {report.tiles} tiles; "
        f"model {report.model_hash[:8]}, mirror {'equal' if report.mirror_hash == report.model_hash else 'DIFFERS'}",
        loc="left",
    )
    bottom.fill_between(line.frames, np.array(line.bytes_up) / 1000, color="#4a78c2", alpha=0.35, lw=0)
    bottom.plot(line.frames, np.array(line.bytes_up) / 1000, color="#4a78c2", lw=1.4)
    bottom.set(xlabel="frame", ylabel="kB sent up", ylim=(0, None))
    figure.legend(*top.get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=9, frameon=False)
    save(figure, path)
