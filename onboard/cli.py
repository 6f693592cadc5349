"""The command `onboard`: run the daemon, replay a flight, check the set-up, ask how it goes."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.commands import exit_status
from models.errors import ConfigError, HadanetError
from onboard import config as config_file
from onboard import status as statuses
from onboard.config import Config

if TYPE_CHECKING:
    from onboard.replay import Options

DEFAULT_CONFIG = Path("/etc/hadanet/onboard.toml")
LABEL_RATE = 0.03
"""Share of tiles that a replay asks about."""
GOES_BEFORE_A_RECORDING = ("seed", "classes", "label_rate", "no_learning", "config")
"""Options of a replay that a recorded flight has settings for."""


def _run(args: argparse.Namespace) -> int:
    from onboard.service import run

    return run(args.config, args.service)


def _replay(args: argparse.Namespace) -> int:
    from onboard import replay
    from onboard import report as reports

    replace = msgspec.structs.replace
    config = config_file.load(args.config) if args.config else Config()
    classes = tuple(args.classes.split(",")) if args.classes else config.model.classes
    if args.letters and not args.truth:
        raise ConfigError(f"--letters {args.letters}: letters belong to a truth file; give it with --truth")
    if len(classes) < 2 or len(set(classes)) != len(classes) or not all(classes):
        raise ConfigError(f"--classes {args.classes}: give at least two names, all different, with commas between them")
    config = replace(
        config,
        seed=args.seed or 0,
        model=replace(config.model, classes=classes),
        ask=replace(config.ask, share=LABEL_RATE if args.label_rate is None else args.label_rate),
        link=replace(config.link, keys=args.keys),
        record=replace(config.record, folder=args.record, images=args.record_images),
        learn=replace(config.learn, enabled=not args.no_learning),
    )
    letters = {}
    if args.truth:
        letters = replay.letters(args.letters) if args.letters else {}
    options = replay.Options(
        source=args.source[0],
        classes=classes if args.classes else (),
        truth=args.truth,
        letters=letters,
        given=frozenset(n for n in GOES_BEFORE_A_RECORDING if getattr(args, n) not in (None, "", False)),
        label_delay=args.label_delay,
        speed=args.speed,
        state=args.state,
        page=args.page,
        start_s=args.start_s,
        end_s=args.end_s,
        loops=args.loops,
    )
    if len(args.source) > 1 or args.scheduler:
        return _fleet(args, config, options)
    for path in filter(None, (args.report, args.picture)):
        _writable(path)
    report = replay.run(config, options)
    if args.report:
        reports.write(report, args.report)
    if args.picture:
        reports.draw(report, args.picture)
    reports.show(report, Console())
    return 0


def _fleet(args: argparse.Namespace, config: Config, options: "Options") -> int:
    """Replay several flights; what one flight keeps in a file or folder, each keeps below that folder by its name."""
    from onboard import fleet
    from onboard import report as reports

    if args.keys or args.page:
        raise ConfigError("--keys and --page belong to one drone, which flies one flight at a time: give one source")
    if args.scheduler and args.jobs is not None:
        raise ConfigError("--jobs counts processes of this machine; with --scheduler leave it out")
    replace, tasks = msgspec.structs.replace, []
    for name, source in zip(fleet.names(args.source), args.source, strict=True):
        record = replace(config.record, folder=str(Path(args.record) / name) if args.record else "")
        own = replace(options, source=source, state=args.state and args.state / name)
        tasks.append(fleet.Task(name=name, config=replace(config, record=record), options=own, folder=os.getcwd()))
    summary_path = args.report and args.report / "summary.json"
    for path in filter(None, (summary_path, args.picture and args.picture / "a.png")):
        _writable(path)

    def keep(task: fleet.Task, report: reports.Report) -> None:
        if args.report:
            reports.write(report, args.report / task.name / "report.json")
        if args.picture:
            reports.draw(report, args.picture / f"{task.name}.png")

    summary = fleet.run(tasks, args.jobs or 1, args.scheduler, keep)
    if summary_path:
        reports.write(summary, summary_path)
    fleet.show(summary, Console())
    return 1 if summary.failed else 0


def _writable(path: Path) -> None:
    """Say before a flight, not after it, that its report cannot be kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HadanetError(f"{path}: cannot be written: {error.strerror}; choose another place") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise HadanetError(f"{path}: cannot be written: it is a folder or write-protected; choose another place")


def _inspect(args: argparse.Namespace) -> int:
    from onboard import inspect

    if args.picture:
        _writable(args.picture)
    with inspect.slowly(args.source) as tick:
        found, telemetry = inspect.inspect(args.source, tick)
    if args.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        inspect.show(found, Console())
    if args.picture:
        inspect.draw(telemetry, args.source, args.picture)
    return 0


def _check(args: argparse.Namespace) -> int:
    from onboard.check import check

    good = True
    for name, fine, text in check(args.config):
        good = good and fine
        sys.stdout.write(f"{'ok  ' if fine else 'FAIL'} {name + ':':11}{text}\n")
    return 0 if good else 1


def _status(args: argparse.Namespace) -> int:
    try:
        state = Path(config_file.load(args.config).state)
    except ConfigError:
        state = Path(Config().state)  # a daemon without a configuration says so in its status
    status = statuses.find(state)
    if args.json:
        sys.stdout.write(json.dumps(status) + "\n")
    else:
        table = Table(show_header=False, box=None)
        for topic, problem in dict(status.pop("problems", {}) or {}).items():  # type: ignore[call-overload]
            table.add_row("[bold red]PROBLEM[/]", escape(f"{topic}: {problem}"))
        for name, value in status.items():
            table.add_row(name, escape(str(value)))
        Console().print(table)
    return 0


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _at_least_0(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{text} is not a count")
    return value


def _positive(text: str) -> int:
    value = _count(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line of `onboard`."""
    top = argparse.ArgumentParser(prog="onboard", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)

    run = verbs.add_parser("run", help="the daemon", epilog="example: onboard run --config onboard.toml")
    run.add_argument(
        "--service",
        action="store_true",
        help="never end by a mistake: fly with what there is, or wait until it is mended, and say so",
    )
    run.set_defaults(run=_run)

    replay = verbs.add_parser(
        "replay",
        help="a recorded flight through the same code",
        epilog="example: onboard replay photos/ --truth labels.csv --classes object,road,trees,ground --report r.json",
    )
    replay.add_argument(
        "source", nargs="+", help="a folder of photos, a video file, or sim://; several: one report each"
    )
    replay.add_argument("--jobs", type=_positive, metavar="N", help="of several flights, replay N at a time (1)")
    replay.add_argument(
        "--scheduler", default="", metavar="ADDRESS", help="replay on this Dask cluster, tcp://host:port"
    )
    replay.add_argument("--truth", type=Path, help="CSV frame,row,labels; a simulated operator answers from it")
    replay.add_argument("--classes", default="", help="names of the classes, with commas")
    replay.add_argument("--letters", default="", help="the truth file's letters, as O=object,R=road (initials)")
    replay.add_argument("--label-rate", type=_share, help=f"share of tiles asked about ({LABEL_RATE})")
    replay.add_argument("--label-delay", type=_count, default=5, help="frames until an answer comes (%(default)s)")
    replay.add_argument("--seed", type=_count, help="of what is asked (0)")
    replay.add_argument("--speed", type=_at_least_0, default=0.0, help="1 is real time, 0 as fast as possible (0)")
    replay.add_argument("--from", type=_at_least_0, default=0.0, dest="start_s", metavar="S", help="seconds in (0)")
    replay.add_argument("--to", type=_at_least_0, dest="end_s", metavar="S", help="up to so many seconds in (its end)")
    replay.add_argument("--loop", type=_positive, default=1, dest="loops", metavar="N", help="fly it N times over (1)")
    replay.add_argument("--report", type=Path, help="write report.json here; several flights: into this folder")
    replay.add_argument("--picture", type=Path, help="draw the flight here (PNG)")
    replay.add_argument("--config", type=Path, help="onboard.toml; the options here go before it")
    replay.add_argument("--state", type=Path, help="keep outbox and label log here (default: a temporary folder)")
    replay.add_argument("--keys", default="", help="the drone's key file: fly with the ground station it names")
    replay.add_argument("--page", default="", help="that station's page, for the operator's answers")
    replay.add_argument("--record", default="", metavar="FOLDER", help="record MCAP here")
    replay.add_argument(
        "--record-images",
        choices=("exact", "jpeg"),
        default="exact",
        help="pixels without loss, or small (%(default)s)",
    )
    replay.add_argument("--no-learning", action="store_true", help="fly the model as it is")
    replay.set_defaults(run=_replay)

    inspect = verbs.add_parser(
        "inspect",
        help="what is in a recording, or in a flight's log",
        epilog="example: onboard inspect flight.mp4 --picture track.png",
    )
    inspect.add_argument("source", help="photos, a video, a bag, a recording, sim://, or a log: .bin .ulg .tlog .srt")
    inspect.add_argument("--json", action="store_true", help="one object in JSON")
    inspect.add_argument("--picture", type=Path, metavar="FILE", help="draw track and altitude here (PNG)")
    inspect.set_defaults(run=_inspect)

    verify = verbs.add_parser("check", help="config, model, camera, keys, disk, clock", epilog="example: onboard check")
    verify.set_defaults(run=_check)

    status = verbs.add_parser("status", help="of the running daemon", epilog="example: onboard status --json")
    status.add_argument("--json", action="store_true", help="one line of JSON")
    status.set_defaults(run=_status)

    for verb in (run, verify, status):
        verb.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="(%(default)s)")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run `onboard`; see `exit_status` for what it returns."""
    args = parser().parse_args(argv)
    logging.basicConfig(format="onboard: %(levelname)s: %(message)s", level=logging.WARNING)
    return exit_status("onboard", lambda: int(args.run(args)))


if __name__ == "__main__":
    sys.exit(main())
