"""Many recorded flights at once: each replayed in a process of its own, here or on a Dask cluster; one summary of all.

    onboard replay a.mp4 b.mp4 --jobs 2            fly() in a thread for each of two processes
    onboard replay a.mp4 b.mp4 --scheduler tcp://  fly() on the cluster's workers; they must see the same files

Either way it is the same process, `python -m onboard.fleet TASK`, so the reports are the same. It gets its task as JSON
and answers with lines of JSON: how far it is, and at last its report or what went wrong.
"""

import contextlib
import importlib
import logging
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.errors import HadanetError
from onboard import replay
from onboard.config import Config
from onboard.report import Report

TICK_S = 0.2
STOP_EVERY_S = 1.0
"""How often a worker of a cluster asks whether it is to stop."""
END_S = 10.0
"""How long a replay may take to end when it is asked to; then it is killed."""
CONNECT_S = 10.0
WORDS = 20
"""The last lines of a process's own words that are kept, to explain its end."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One flight. name: unique, fit for a file; folder: where relative paths lead from."""

    name: str
    config: Config
    options: replay.Options
    folder: str


class Tick(msgspec.Struct, frozen=True, tag="tick"):
    """How far a replay is; total None: not known."""

    frames: float
    total: float | None
    text: str


class Outcome(msgspec.Struct, frozen=True, tag="outcome"):
    """How a replay ended: its report, or the error in words."""

    report: Report | None = None
    error: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One flight in summary.json; accuracy and macro_f1 are the adapted model's. None: it failed, or had no truth."""

    name: str
    source: str
    error: str
    frames: int | None = None
    labels_used: int | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    updates: int | None = None
    model_hash: str | None = None
    mirror_equal: bool | None = None
    fps: float | None = None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of summary.json, flights in the order in which they were given."""

    flights: list[Row]
    failed: int
    frames: int
    labels_used: int


_LINE = msgspec.json.Decoder(Tick | Outcome)
_TASK = msgspec.json.Decoder(Task, dec_hook=lambda kind, text: kind(text))  # msgspec knows no Path


def names(sources: Sequence[str]) -> list[str]:
    """A name for each source that can be a file's, all different.

    >>> names(["monday/a.mp4", "tuesday/a.mp4", "sim://?seed=4"])
    ['a.mp4', 'a.mp4-2', 'sim_seed_4']
    """
    given: list[str] = []
    for source in sources:
        text = source if "://" in source else Path(source.partition("?")[0]).name
        plain = re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.")[:60] or "flight"
        number, name = 1, plain
        while name in given:
            number += 1
            name = f"{plain}-{number}"
        given.append(name)
    return given


def run(tasks: Sequence[Task], jobs: int, scheduler: str, done: Callable[[Task, Report], None]) -> Summary:
    """Fly all tasks, `jobs` at a time, or on the Dask cluster at `scheduler`; `done` takes each report as it comes.

    A flight that fails is told in the summary. Raises HadanetError where the cluster cannot be used, and what `done`
    raises. However this ends, no process is left behind.
    """
    rows: dict[str, Row] = {}
    flown = _on_cluster(tasks, scheduler) if scheduler else _here(tasks, jobs)
    with closing(flown) as outcomes:
        for task, outcome in outcomes:
            rows[task.name] = _row(task, outcome)
            if outcome.report is not None:
                done(task, outcome.report)
    flights = [rows[task.name] for task in tasks]
    return Summary(
        flights=flights,
        failed=sum(bool(row.error) for row in flights),
        frames=sum(row.frames or 0 for row in flights),
        labels_used=sum(row.labels_used or 0 for row in flights),
    )


def show(summary: Summary, console: Console) -> None:
    """Print the summary as a table."""
    table = Table(title=f"{len(summary.flights)} flights, {summary.failed} failed")
    for column in ("flight", "frames", "labels", "accuracy", "macro F1", "updates", "model", "fps"):
        text = column in ("flight", "model")
        table.add_column(column, justify="left" if text else "right", no_wrap=column != "flight", overflow="fold")
    for row in summary.flights:
        if row.error:
            table.add_row(escape(row.name), "[red]failed")
            continue
        scores = ("-" if value is None else f"{value:.3f}" for value in (row.accuracy, row.macro_f1))
        model = (row.model_hash or "")[:8] + ("" if row.mirror_equal else " [red]mirror differs")
        counts = (str(row.frames), str(row.labels_used), *scores, str(row.updates))
        table.add_row(escape(row.name), *counts, model, f"{row.fps:.1f}")
    console.print(table)
    for row in summary.flights:
        if row.error:
            console.print(f"{row.name}: {row.error}", style="red", markup=False, highlight=False, soft_wrap=True)


def _row(task: Task, outcome: Outcome) -> Row:
    report, source = outcome.report, task.options.source
    if report is None:
        return Row(name=task.name, source=source, error=outcome.error)
    return Row(
        name=task.name,
        source=source,
        error="",
        frames=report.frames,
        labels_used=report.labels_used,
        accuracy=report.accuracy["adapted"] if report.accuracy else None,
        macro_f1=report.macro_f1["adapted"] if report.macro_f1 else None,
        updates=report.updates,
        model_hash=report.model_hash,
        mirror_equal=report.mirror_hash == report.model_hash,
        fps=round(report.fps, 2),
    )


# --- one flight in a process of its own -------------------------------------------------------------------------------


def fly(task: bytes, tell: Callable[[Tick], None], stop: Callable[[], bool]) -> Outcome:
    """Replay the flight of a Task in JSON in a new process; it ends early once `stop` says so.

    Its temporary files lie in a folder of ours, so that none is left where it is killed.
    """
    command = (sys.executable, "-m", "onboard.fleet", task.decode())
    last: Outcome | None = None
    words: list[str] = []
    if stop():
        return Outcome(error="interrupted")
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        tempfile.TemporaryDirectory(prefix="hadanet-", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(command, **streams, env=os.environ | {"TMPDIR": folder}) as process,
    ):
        try:
            for line in _lines(process, stop):
                try:
                    told = _LINE.decode(line)
                except msgspec.MsgspecError:  # a warning, or a traceback
                    words = [*words, line.decode(errors="replace")][-WORDS:]
                    continue
                if isinstance(told, Outcome):
                    last = told
                else:
                    tell(told)
        finally:
            _end(process)
    if last is not None:
        return last
    if stop():
        return Outcome(error="interrupted")
    return Outcome(error="; ".join([f"its process ended with status {process.returncode}", *words[-3:]]))


def _lines(process: "subprocess.Popen[bytes]", stop: Callable[[], bool]) -> Iterator[bytes]:
    """What the process writes, line by line, until it ends or `stop` says so."""
    assert process.stdout is not None
    parts: list[bytes] = []
    while not stop():
        if not select.select([process.stdout], [], [], TICK_S)[0]:
            continue
        data = os.read(process.stdout.fileno(), 1 << 16)
        if not data:
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            yield b"".join([*parts, line])
            parts.clear()
        parts.append(rest)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()


# --- here -------------------------------------------------------------------------------------------------------------


class _Display:
    """One bar for each flight, from any thread."""

    def __init__(self, tasks: Sequence[Task], progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {
            task.name: progress.add_task(escape(task.name), total=None, start=False, text="waits") for task in tasks
        }

    def tick(self, task: Task, tick: Tick) -> None:
        bar = self._bars[task.name]
        self._progress.start_task(bar)
        self._progress.update(bar, completed=tick.frames, total=tick.total, text=escape(tick.text))

    def end(self, task: Task, outcome: Outcome) -> None:
        frames = outcome.report.frames if outcome.report else 0
        text = escape(outcome.error.partition("\n")[0][:60]) or "done"
        self._progress.update(self._bars[task.name], completed=frames, total=frames, text=text)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[text]}"))


def _here(tasks: Sequence[Task], jobs: int) -> Generator[tuple[Task, Outcome], None, None]:
    stop = threading.Event()
    with _progress() as progress, ThreadPoolExecutor(jobs, "replay") as pool:
        display = _Display(tasks, progress)

        def one(task: Task) -> Outcome:
            return fly(_encode(task), lambda tick: display.tick(task, tick), stop.is_set)

        try:
            flying: dict[Future[Outcome], Task] = {pool.submit(one, task): task for task in tasks}
            while flying:
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    task, outcome = flying.pop(future), future.result()
                    display.end(task, outcome)
                    yield task, outcome
        finally:
            stop.set()  # leaving the pool waits for the processes, which see it


# --- on a cluster -----------------------------------------------------------------------------------------------------


def _on_cluster(tasks: Sequence[Task], address: str) -> Generator[tuple[Task, Outcome], None, None]:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ModuleNotFoundError as error:
        raise HadanetError("--scheduler needs Dask: pip install 'hadanet-uav[fleet]'") from error
    try:
        client = distributed.Client(address, timeout=CONNECT_S)
    except (OSError, ValueError, TypeError) as error:
        raise HadanetError(f"--scheduler {address}: no Dask scheduler answers there ({error})") from error
    with client, _progress() as progress:
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
        except OSError as error:
            raise HadanetError(f"--scheduler {address}: the cluster has no worker; start one: dask worker") from error
        number = uuid.uuid4().hex  # what another run left on this cluster must not be taken for ours
        stop, display = distributed.Event(f"stop-{number}", client=client), _Display(tasks, progress)
        flying = {
            client.submit(_on_worker, _encode(task), stop.name, key=f"{task.name}-{number}", pure=False): task
            for task in tasks
        }
        try:
            while flying:
                if client.status != "running":
                    raise HadanetError(f"--scheduler {address}: the scheduler is gone; fly the flights again")
                try:
                    finished = distributed.wait(list(flying), timeout=STOP_EVERY_S, return_when="FIRST_COMPLETED").done
                except distributed.TimeoutError:
                    continue
                for future in finished:
                    task = flying.pop(future)
                    outcome = _of_worker(future)
                    display.end(task, outcome)
                    yield task, outcome
        finally:
            if flying and client.status == "running":
                stop.set()  # those that wait for a worker end as soon as they have one
                with contextlib.suppress(distributed.TimeoutError):
                    distributed.wait(list(flying), timeout=END_S)


def _of_worker(future: Any) -> Outcome:
    """The outcome that a worker gave back, or why there is none."""
    if future.status == "finished":
        return msgspec.json.decode(future.result(), type=Outcome)
    reason = future.exception() if future.status == "error" else None
    return Outcome(error=f"the cluster gave no report: {future.status}{f', {reason}' if reason else ''}")


def _on_worker(task: bytes, stop: str) -> bytes:
    """What a worker of the cluster does: `fly`, until the Dask event `stop` is set."""
    distributed: Any = importlib.import_module("distributed")
    event, asked_s = distributed.Event(stop, client=distributed.get_client()), time.monotonic()
    stopped: bool = event.is_set()

    def is_stopped() -> bool:
        nonlocal asked_s, stopped
        if not stopped and time.monotonic() - asked_s >= STOP_EVERY_S:
            asked_s, stopped = time.monotonic(), event.is_set()
        return stopped

    return msgspec.json.encode(fly(task, lambda tick: None, is_stopped))


# --- the process of one flight ----------------------------------------------------------------------------------------


class _Ticks(Progress):
    """Shows nothing, and tells how far its only task is in lines of JSON."""

    def __init__(self) -> None:
        super().__init__(disable=True)
        self._told_s = 0.0

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """As in rich."""
        super().update(task_id, **fields)
        if time.monotonic() - self._told_s >= TICK_S:
            self._told_s = time.monotonic()
            task = self.tasks[0]
            _tell(Tick(task.completed, task.total, task.description))


def _tell(line: Tick | Outcome) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line, enc_hook=str) + b"\n")
    sys.stdout.buffer.flush()


def _encode(task: Task) -> bytes:
    return msgspec.json.encode(task, enc_hook=str)


def _interrupted(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the learner and temporary files are cleared away
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    """Replay the flight of a Task in JSON; only `fly` calls this."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us decides when to end
    signal.signal(signal.SIGTERM, _interrupted)
    task = _TASK.decode(argv[1])
    try:
        os.chdir(task.folder)
        outcome = Outcome(report=replay.run(task.config, task.options, _Ticks()))
    except (HadanetError, OSError) as error:
        outcome = Outcome(error=str(error))
    except KeyboardInterrupt:
        return 130
    _tell(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
