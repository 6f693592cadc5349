"""`python -m benchmarks NAME [--json FILE] [--quick]`: measure, print a table, write rows for programs to read."""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.errors import HadanetError

BENCHMARKS = ("kernels", "network", "training", "delta", "learning", "ablations", "replay")
ON_REQUEST = ("arm", "offline", "ports", "scopes")
"""Not part of `all`: Arm by a model, which needs what `python -m deploy.arm_tree` makes; training offline, which needs
PyTorch; instructions by themselves; what was tried and does not fly."""
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Read by the libraries when NumPy is imported: every comparison is on one thread."""

FILE_WIDTH = 200
"""Characters of a line where the output is not a terminal."""

Row = Mapping[str, object]


def machine() -> str:
    """Processor, cores, system and Python, in one line."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: platform's name has to do
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, {platform.python_version()}"


def commit() -> str | None:
    """The checkout's commit, with `-dirty` where files differ from it; None outside of a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match=-"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def table(name: str, rows: Sequence[Row]) -> Table:
    """The rows of one benchmark; a column for each key, in order of appearance."""
    out = Table(title=name)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for key in keys:
        numeric = all(isinstance(row.get(key), int | float | None) for row in rows)
        out.add_column(key, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        out.add_row(*(shown(row.get(key)) for key in keys))
    return out


def shown(value: object) -> str:
    """A cell: four significant digits, `-` for what was not measured."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark, or all; 0 when each gave its rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names: Sequence[str] = (*BENCHMARKS, *ON_REQUEST, "all")
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, commit and rows here")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    chosen = parser.parse_args(arguments)
    if chosen.json and not chosen.json.parent.is_dir():
        parser.error(f"--json {chosen.json}: the folder {chosen.json.parent} does not exist")
    for variable in ONE_THREAD:
        os.environ[variable] = "1"

    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    names = BENCHMARKS if chosen.name == "all" else (chosen.name,)
    results: list[Row] = []
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(names) if len(names) > 1 else None)
        for name in names:

            def tell(what: str, name: str = name) -> None:
                progress.update(task, description=f"{name}: {what}")

            tell("starting")
            rows: list[Row] = importlib.import_module(f"benchmarks.{name}").rows(chosen.quick, tell)
            console.print(table(name, rows))
            results += [{"benchmark": name, **row} for row in rows]
            progress.advance(task)
    if chosen.json:
        about = {"machine": machine(), "commit": commit(), "rows": results}
        chosen.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HadanetError as error:
        sys.exit(f"benchmarks: {error}")
