"""What is in a recording: frames and their times, telemetry by quantity, how both were aligned, gaps, jumps, damage.

`inspect` reads the whole recording once; `show` prints it, `draw` makes a picture of the track. A log without
pictures is inspected by itself.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.errors import HadanetError, SourceError
from onboard.figure import panels, save
from onboard.frame import Frame, Skipped, Source
from onboard.sources import media, open_source
from onboard.sources.bags import BagSource, is_bag, survey
from onboard.sources.video import SUFFIXES as VIDEO_SUFFIXES
from onboard.telemetry.read import read
from onboard.telemetry.summary import TOLD, Gap, Summary, Track, gaps, iso_time, summarise
from onboard.telemetry.table import Telemetry, series

LOG_SUFFIXES = frozenset({".bin", ".log", ".srt", ".tlog", ".ulg"})
"""Logs without pictures, as `onboard.telemetry.read` knows them."""
KINDS = {
    "BagSource": "bag",
    "PhotoSource": "photos",
    "RecordingSource": "recording",
    "SimSource": "simulated flight",
    "VideoSource": "video",
}
EPOCH_NS = 10**9 * 86_400 * 365
"""Times of frames beyond this count from 1970 and are told as dates; others count from the recording's start."""
SLOW_S = 2.0
"""From here on there is a progress bar."""
DRAWN = 5000
"""Points of a track that are drawn at most."""


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """A topic or a stream of the file: what it carries, and how many messages or frames (None: not told)."""

    name: str
    kind: str
    count: int | None


class Frames(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures: how many, their size in pixels (of the first), their times, and those that cannot be read.

    begins: ISO 8601, None where times count from the recording's start. gaps and skipped: the first TOLD of all.
    """

    count: int
    width: int
    height: int
    begins: str | None
    duration_s: float
    rate_hz: float | None
    with_position: int
    gap_count: int
    gaps: list[Gap]
    skipped_count: int
    skipped: list[str]


class Aligned(msgspec.Struct, frozen=True, kw_only=True):
    """How the frames' clock was matched to the log's: the method, the offset, what is left over, how many agree, and
    what error the residual does not show."""

    method: str
    offset_s: float
    residual_ms: float | None
    matched: int
    unseen: str


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. frames: None for a log alone; telemetry: the log's, or the frames' own positions, or None.

    truncated: the recording ends earlier than it should, as one of the `problems` says.
    """

    source: str
    kind: str
    streams: list[Stream]
    frames: Frames | None
    telemetry: Summary | None
    alignment: Aligned | None
    truncated: bool
    problems: list[str]


def inspect(uri: str, tick: Callable[[int, int | None], None] = lambda done, total: None) -> tuple[Inspection, Any]:
    """Look through a recording; returns what is in it, and its Telemetry (None if it has none) for `draw`.

    `tick` is called with the number of frames that were read, and how many there are (None: not known).
    Raises SourceError where it cannot be read at all, or is a camera.
    """
    path = Path(uri).expanduser()
    if path.suffix.lower() in LOG_SUFFIXES and "://" not in uri:
        return _of_log(uri, read(path))
    try:
        source = open_source(uri)
    except SourceError:
        if not is_bag(path):
            raise
        contents = survey(path)  # a bag without pictures
        if not contents.telemetry.series:
            raise
        whole, _ = _of_log(uri, contents.telemetry)
        return msgspec.structs.replace(whole, streams=_listed(contents.topics)), contents.telemetry
    try:
        if source.live:
            raise SourceError(f"{uri}: a camera has no end; record a flight and inspect the recording")
        frames, own = _frames(source, tick)
        found: object = getattr(source, "telemetry", None)
        log = found if isinstance(found, Telemetry) else own
        problems = list(dict.fromkeys([*map(str, getattr(source, "problems", ())), *(log.problems if log else ())]))
        told = [line for line in frames.skipped if line not in problems] if frames else []
        return Inspection(
            source=uri,
            kind=KINDS.get(type(getattr(source, "pictures", source)).__name__, "recording"),
            streams=_listed(source.topics) if isinstance(source, BagSource) else _streams(path),
            frames=frames,
            telemetry=summarise(log) if log else None,
            alignment=_aligned(getattr(source, "alignment", None)),
            truncated=_truncated(problems + told),
            problems=problems,
        ), log
    finally:
        source.close()


def _of_log(uri: str, telemetry: Telemetry) -> tuple[Inspection, Telemetry]:
    """A log without pictures."""
    problems = list(telemetry.problems)
    return Inspection(
        source=uri,
        kind=telemetry.kind,
        streams=_streams_of(telemetry),
        frames=None,
        telemetry=summarise(telemetry),
        alignment=None,
        truncated=_truncated(problems),
        problems=problems,
    ), telemetry


def _frames(source: Source, tick: Callable[[int, int | None], None]) -> tuple[Frames | None, Telemetry | None]:
    """The frames, and where they themselves say that they were taken."""
    times: list[int] = []
    size = (0, 0)
    poses: dict[str, list[tuple[int, float]]] = {}
    for frame in source.frames():
        times.append(frame.t_ns)
        size = size if len(times) > 1 else frame.image.shape[:2]
        for name, value in _columns(frame):
            poses.setdefault(name, []).append((frame.t_ns, value))
        tick(len(times), source.length)
    if not times and not source.skipped:
        return None, None
    t_ns = np.array(times, np.int64)
    span_s = (times[-1] - times[0]) * 1e-9 if times else 0.0
    holes = gaps(t_ns)
    offset_ns: int = getattr(source, "utc_offset_ns", 0)  # a recording's, whose drone may have had no clock
    frames = Frames(
        count=len(times),
        width=size[1],
        height=size[0],
        begins=iso_time(times[0] + offset_ns) if times and times[0] + offset_ns > EPOCH_NS else None,
        duration_s=round(span_s, 3),
        rate_hz=round((len(times) - 1) / span_s, 3) if span_s > 0 else None,
        with_position=len(poses.get("lat_deg", ())),
        gap_count=len(holes),
        gaps=holes[:TOLD],
        skipped_count=len(source.skipped),
        skipped=[_line(skipped) for skipped in source.skipped[:TOLD]],
    )
    table = {name: series("frames", [t for t, _ in pairs], [v for _, v in pairs]) for name, pairs in poses.items()}
    columns = {name: column for name, column in table.items() if column is not None}
    utc_ns = 0 if frames.begins else None
    own = Telemetry(uri=source.uri, kind="positions of the frames", series=columns, utc_ns=utc_ns) if columns else None
    return frames, own


def _columns(frame: Frame) -> Iterator[tuple[str, float]]:
    """The pose's values by the names of the telemetry's quantities."""
    for name in frame.pose.__struct_fields__:
        value: float | None = getattr(frame.pose, name)
        if value is not None:
            yield (f"camera_{name}" if name in ("yaw_deg", "pitch_deg", "roll_deg") else name), value


def _line(skipped: Skipped) -> str:
    return f"{skipped.name}: {skipped.reason}"


def _truncated(problems: list[str]) -> bool:
    return any("truncated" in line or "ends after" in line or "cut off" in line for line in problems)


def _aligned(found: Any) -> Aligned | None:
    if found is None:
        return None
    residual: float | None = found.residual_ms
    return Aligned(
        method=str(found.method),
        offset_s=round(found.offset_ns * 1e-9, 6),
        residual_ms=None if residual is None else round(residual, 3),
        matched=int(found.matched),
        unseen=str(found.unseen),
    )


# --- topics and streams -----------------------------------------------------------------------------------------------


def _streams_of(telemetry: Telemetry) -> list[Stream]:
    """The messages that the telemetry was read from."""
    columns = [*telemetry.series.values(), *(c for other in telemetry.alternatives.values() for c in other.values())]
    counts: dict[str, int] = {}
    for column in columns:
        name = column.source.partition(".")[0]
        counts[name] = max(counts.get(name, 0), len(column.t_ns))
    if telemetry.captures:
        counts[telemetry.captures.source] = len(telemetry.captures.t_ns)
    return [Stream(name=name, kind="messages", count=count) for name, count in sorted(counts.items())]


def _listed(topics: Mapping[str, tuple[str, int]]) -> list[Stream]:
    return [Stream(name=name, kind=kind, count=count) for name, (kind, count) in sorted(topics.items())]


def _streams(path: Path) -> list[Stream]:
    """Topics of our own recording, streams of a video; none where there is nothing of the kind."""
    try:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return list(_video_streams(path))
        files = sorted(path.glob("*.mcap")) if path.is_dir() else [path] if path.suffix.lower() == ".mcap" else []
        return _topics(files)
    except (OSError, HadanetError):
        return []  # the source has said what it could


def _video_streams(path: Path) -> Iterator[Stream]:
    import av

    try:
        with media.opened(path) as container:
            for stream in container.streams:
                codec = getattr(stream.codec_context, "name", "") if stream.codec_context else ""
                handler = stream.metadata.get("handler_name", "").strip()
                name = " ".join(filter(None, (f"{stream.index}", stream.type, handler)))
                yield Stream(name=name, kind=codec or "data", count=stream.frames or None)
    except av.FFmpegError:
        return


def _topics(files: list[Path]) -> list[Stream]:
    from mcap.exceptions import McapError
    from mcap.reader import make_reader

    counts: dict[tuple[str, str], int] = {}
    for file in files:
        with file.open("rb") as stream:
            try:
                summary = make_reader(stream).get_summary()
            except (McapError, ValueError, EOFError):  # it was cut off: its own index stands at the end
                continue
        if summary is None or summary.statistics is None:
            continue
        for number, channel in summary.channels.items():
            schema = summary.schemas.get(channel.schema_id)
            key = channel.topic, schema.name if schema else channel.message_encoding
            counts[key] = counts.get(key, 0) + summary.statistics.channel_message_counts.get(number, 0)
    return [Stream(name=topic, kind=kind, count=count) for (topic, kind), count in sorted(counts.items())]


# --- for people -------------------------------------------------------------------------------------------------------


@contextmanager
def slowly(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr for what takes longer than SLOW_S; yields `inspect`'s `tick`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(escape(text), total=None)
    timer = threading.Timer(SLOW_S, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda done, total: progress.update(task, completed=done, total=total)
    finally:
        timer.cancel()
        timer.join()
        progress.stop()


def show(found: Inspection, console: Console) -> None:
    """Print an inspection as tables."""
    facts = Table(title=f"{escape(found.source)}: {found.kind}", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _facts(found):
        facts.add_row(name, escape(value))
    console.print(facts)
    if found.streams:
        table = Table(title="topics and streams")
        for column in ("name", "type", "count"):
            table.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
        for stream in found.streams:
            table.add_row(escape(stream.name), escape(stream.kind), "-" if stream.count is None else f"{stream.count}")
        console.print(table)
    if found.telemetry and found.telemetry.quantities:
        _show_telemetry(found.telemetry, console)
    for line in found.problems:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    for line in found.frames.skipped if found.frames else ():
        console.print(f"unreadable: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    if frames := found.frames:
        begins = f", from {frames.begins}" if frames.begins else ""
        yield "frames", f"{frames.count} of {frames.width} x {frames.height} pixels, {frames.skipped_count} unreadable"
        yield "frames' times", f"{frames.duration_s:.3f} s at {_number(frames.rate_hz)} a second{begins}"
        yield "frames' positions", f"{frames.with_position}"
        yield "frames' gaps", _gaps(frames.gap_count, frames.gaps)
    if (telemetry := found.telemetry) and telemetry.begins:
        yield "telemetry begins", telemetry.begins
    if telemetry and telemetry.captures:
        yield "camera triggers", f"{telemetry.captures.points}, {telemetry.captures.source}"
    if found.alignment:
        left = found.alignment.residual_ms
        residual = "unknown residual" if left is None else f"residual {left:.1f} ms"
        agree = f"{residual}, {found.alignment.matched} matched, offset {found.alignment.offset_s:.3f} s"
        yield "alignment", f"{found.alignment.method}: {agree}"
        if found.alignment.unseen:
            yield "not in it", found.alignment.unseen
    if telemetry and telemetry.position:
        yield "gaps", _gaps(telemetry.position.gap_count, telemetry.position.gaps)
        steps = telemetry.position.jumps
        first = f", the first to {steps[0].at_s:.1f} s: {steps[0].distance_m:.0f} m" if steps else ""
        yield "jumps", f"{telemetry.position.jump_count}{first}"
    yield "truncated", "yes" if found.truncated else "no"


def _show_telemetry(telemetry: Summary, console: Console) -> None:
    table = Table(title=f"telemetry: {escape(telemetry.kind)}")
    for column in ("quantity", "source", "points", "a second", "from s", "to s"):
        table.add_column(column, justify="left" if column in ("quantity", "source") else "right", overflow="fold")
    zero_s = min(quantity.first_s for quantity in telemetry.quantities.values())
    for name, quantity in telemetry.quantities.items():
        times = f"{quantity.first_s - zero_s:.1f}", f"{quantity.last_s - zero_s:.1f}"
        table.add_row(name, escape(quantity.source), f"{quantity.points}", _number(quantity.rate_hz), *times)
    console.print(table)
    tracks = [*([telemetry.position] if telemetry.position else []), *telemetry.alternatives.values()]
    if tracks:
        _show_tracks(tracks, console)


def _show_tracks(tracks: list[Track], console: Console) -> None:
    table = Table(title="positions, the best one first")
    for column in ("source", "points", "seconds", "metres", "low m", "high m", "span", "gaps", "jumps"):
        table.add_column(column, justify="left" if column == "source" else "right", overflow="fold")
    for track in tracks:
        heights = (_number(value) for value in (track.low_m, track.high_m, track.span_m))
        counts = f"{track.gap_count}", f"{track.jump_count}"
        extent = f"{track.points}", f"{track.duration_s:.1f}", f"{track.distance_m:.1f}"
        table.add_row(escape(track.source), *extent, *heights, *counts)
    console.print(table)


def _gaps(count: int, first: list[Gap]) -> str:
    return f"{count}" + (f", the first at {first[0].at_s:.1f} s: {first[0].length_s:.1f} s" if first else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def draw(telemetry: Telemetry | None, source: str, path: Path) -> None:
    """A picture: the track over ground, coloured by time, with the altitude below. Raises HadanetError."""
    figure, top, bottom = panels(8, 8)
    columns = telemetry.series if telemetry else {}
    if "lat_deg" not in columns or "lon_deg" not in columns:
        raise HadanetError(f"{source}: there is no position in it that could be drawn; leave out --picture")
    lat, lon = columns["lat_deg"], columns["lon_deg"]
    t_ns, here, there = np.intersect1d(lat.t_ns, lon.t_ns, return_indices=True)
    every = slice(None, None, -(-len(t_ns) // DRAWN) or 1)
    t_ns, y_deg, x_deg = t_ns[every], lat.values[here][every], lon.values[there][every]
    zero_ns = int(t_ns[0]) if len(t_ns) else 0
    metres = 111_195.0
    x = (x_deg - x_deg.mean()) * metres * np.cos(np.radians(y_deg.mean())) if len(t_ns) else x_deg
    y = (y_deg - y_deg.mean()) * metres if len(t_ns) else y_deg
    top.plot(x, y, color="#b9c6de", lw=1, zorder=1)
    dots = top.scatter(x, y, c=(t_ns - zero_ns) * 1e-9, s=9, cmap="viridis", zorder=2)
    figure.colorbar(dots, ax=top, label="seconds")
    top.set(xlabel="metres east", ylabel="metres north", aspect="equal")
    name = source if "://" in source else Path(source).name
    top.set_title(f"{name}: {lat.source}", loc="left")
    top.set_adjustable("datalim")
    for name, label in (("alt_m", "m above sea level"), ("agl_m", "m above take-off")):
        if name in columns:
            column = columns[name]
            every = slice(None, None, -(-len(column.t_ns) // DRAWN) or 1)
            bottom.plot((column.t_ns[every] - zero_ns) * 1e-9, column.values[every], color="#0b7a3b", lw=1.4)
            bottom.set_ylabel(label)
            break
    else:
        bottom.set_ylabel("no altitude")
    bottom.set_xlabel("seconds")
    save(figure, path)
