"""What a table or figure of the paper comes out as: rows in the terminal, in a JSON file, and as a picture."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from models.errors import HadanetError

Row = Mapping[str, object]


def show(title: str, rows: Sequence[Row], note: str = "") -> None:
    """Print rows that have the same keys."""
    table = Table(title=title, caption=note or None, title_justify="left", caption_justify="left")
    for key in rows[0]:
        table.add_column(key.replace("_", " "), justify="right" if _is_number(rows, key) else "left")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console(width=None if os.isatty(1) else 120).print(table)


def save(folder: Path, name: str, rows: Sequence[Row], draw: Callable[[Any], None] | None) -> None:
    """Write NAME.json and, where matplotlib is there, NAME.png, which `draw(axes)` fills.

    Raises HadanetError where the folder cannot be written to.
    """
    content = {"machine": f"{platform.machine()} {platform.python_version()}", "rows": [dict(row) for row in rows]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if draw:
            _picture(folder / f"{name}.png", draw)
    except OSError as error:
        raise HadanetError(f"{folder}: cannot be written: {error.strerror}; name another folder with --out") from error


def _picture(path: Path, draw: Callable[[Any], None]) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        Console(stderr=True).print(f"{path.name} is left out: pip install 'hadanet-uav\\[plot]' draws it")
        return
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    draw(figure.subplots())
    figure.savefig(path, dpi=120)


def _is_number(rows: Sequence[Row], key: str) -> bool:
    return all(row[key] is None or isinstance(row[key], int | float) for row in rows)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3g}"
    return str(value)
