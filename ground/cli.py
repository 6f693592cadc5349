"""The command line of the ground station: serve, enroll, export, labels."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ground.answers import check_answer
from ground.rows import Given
from ground.store import Store
from ground.transfer import export, read_csv
from models.commands import exit_status
from models.errors import StationError

BIND = "tcp://0.0.0.0:5750"
HTTP = "127.0.0.1:8080"
ADDRESS = "tcp://127.0.0.1:5750"


def default_data() -> Path:
    """The folder hadanet-ground in $XDG_DATA_HOME, which is ~/.local/share unless set."""
    home = os.environ.get("XDG_DATA_HOME", "")
    # the base directory specification has relative paths ignored
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "share") / "hadanet-ground"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 2 is a wrong command line, else see `exit_status`."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)

    def call() -> int:
        args.run(args)
        return 0

    return exit_status(f"ground {args.command}", call)


def _serve(args: argparse.Namespace) -> None:
    from ground.serve import serve  # compiled kernels come with it, the other commands start without

    serve(args.data, args.bind, args.http, args.db, args.models)


def _enroll(args: argparse.Namespace) -> None:
    from link.keys import enroll

    out = args.out or Path(f"{args.name}.toml")
    enroll(args.data, args.name, args.address, out, force=args.force)
    sys.stdout.write(f"{out}: copy this file onto {args.name}, keep it secret; it calls {args.address}\n")


def _export(args: argparse.Namespace) -> None:
    with _open(args) as store:
        count, left_out = export(store, args.file)
    less = f" ({left_out} that name no class are left out)" if left_out else ""
    sys.stdout.write(f"{args.file}: {count} answers{less}, pictures in {args.file.stem}_crops\n")


def _labels(args: argparse.Namespace) -> None:
    def check(given: Given) -> Given:
        known, new = classes[given.drone], pending[given.drone]
        given = check_answer(given, known, [name for name in new if name not in known])
        if given.new and given.answer not in new:
            new.append(given.answer)  # later lines may name it
        return given

    with _open(args) as store:
        classes = {row.name: row.classes for row in store.drones()}
        pending = {name: store.new_classes(name) for name in classes}
        stored, known = read_csv(store, args.file, check)
    sys.stdout.write(f"{args.file}: {stored} answers stored, {known} were there; ground serve sends them\n")


def _open(args: argparse.Namespace) -> contextlib.closing[Store]:
    if args.db is None and not (args.data / "station.db").exists():
        raise StationError(f"{args.data}: no station has run with this folder: give its --data or --db")
    return contextlib.closing(Store.in_folder(args.data) if args.db is None else Store(args.db))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ground",
        description="The ground station: drones call it, an operator answers their questions on its page.",
        epilog="example: ground serve",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}")
        command.add_argument(
            "--data", type=Path, default=default_data(), metavar="DIR", help="the station's folder (%(default)s)"
        )
        return command

    def add_db(command: argparse.ArgumentParser) -> None:
        command.add_argument("--db", metavar="URL", help="SQLAlchemy URL (default: station.db in the data folder)")

    command = add("serve", "Run the station and its page.", "ground serve --http 127.0.0.1:8080")
    command.set_defaults(run=_serve)
    command.add_argument("--bind", default=BIND, metavar="ADDRESS", help="where drones call (%(default)s)")
    command.add_argument("--http", default=HTTP, metavar="HOST:PORT", help="the page (%(default)s); port 0: any")
    command.add_argument("--models", type=Path, metavar="DIR", help="base models beside the shipped ones")
    add_db(command)

    command = add("enroll", "Make keys for a drone.", "ground enroll kestrel --address tcp://192.168.1.10:5750")
    command.set_defaults(run=_enroll)
    command.add_argument("name", metavar="NAME", help="lower-case letters, digits and hyphens")
    command.add_argument("--address", default=ADDRESS, help="where the drone finds this station (%(default)s)")
    command.add_argument("--out", type=Path, metavar="FILE", help="the drone's file (default: NAME.toml here)")
    command.add_argument("--force", action="store_true", help="replace the keys of a drone that has some")

    command = add("export", "Save all answers with their pictures.", "ground export flight.json")
    command.set_defaults(run=_export)
    command.add_argument("file", type=Path, metavar="FILE", help="NAME.csv, or NAME.json for COCO")
    add_db(command)

    command = add("labels", "Read answers from a CSV file.", "ground labels answers.csv")
    command.set_defaults(run=_labels)
    command.add_argument(
        "file", type=Path, metavar="FILE", help="CSV with the columns drone,query,answer, and wrong,new if any"
    )
    add_db(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
