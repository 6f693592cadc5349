"""The frame of a picture: two panels, one above the other, and a file that they are written to."""

from pathlib import Path
from typing import Any

from models.errors import HadanetError


def panels(width: float, height: float, sharex: bool = False) -> tuple[Any, Any, Any]:
    """A figure in inches, its upper panel, three times as high, and its lower one. Raises HadanetError."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise HadanetError("the picture needs matplotlib: pip install 'hadanet-uav[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=sharex)
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, top, bottom


def save(figure: Any, path: Path) -> None:
    """Write the picture; its folder is made. Raises HadanetError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise HadanetError(f"{path}: the picture cannot be written: {error.strerror}") from error
    except ValueError as error:
        raise HadanetError(f"{path}: the picture cannot be written: {error}; let its name end in .png") from error
