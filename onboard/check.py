"""`onboard check`: is everything there that a flight needs? One line each, and what to do where it is not."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from link.keys import DroneKeys
from models.engine import Engine
from models.errors import HadanetError, SourceError
from onboard import clock
from onboard import config as config_file
from onboard.config import Config
from onboard.grid import cut
from onboard.slots import Slots, trusted
from onboard.sources import open_source
from onboard.sources.uri import shown

MIN_STATE_MB = 64
EARLIEST_CLOCK_S = clock.EARLIEST_S


def check(path: Path) -> Iterator[tuple[str, bool, str]]:
    """Yield (what, whether it is good, what was found or what to do) for everything that a flight needs."""
    try:
        config = config_file.load(path)
    except HadanetError as error:
        yield "config", False, str(error)
        return
    yield "config", True, str(path)
    parts: dict[str, Callable[[Config], str]] = {
        "model": _model,
        "learned": _learned,
        "camera": _camera,
        "keys": _keys,
        "state": _state,
        "recording": _recording,
        "clock": _clock,
    }
    for name, part in parts.items():
        try:
            yield name, True, part(config)
        except HadanetError as error:
            yield name, False, str(error)


def _model(config: Config) -> str:
    model = trusted(config.model.artifact, config.model.hash)
    model = model if model.classes == config.model.classes else model.with_classes(config.model.classes)
    Engine(model)  # raises where this network cannot be computed on board
    return f"{model.spec.name}, {len(model.classes)} classes, {model.hash[:16]}"


def _learned(config: Config) -> str:
    """What the slots hold, and whether it is whole."""
    slots = Slots(Path(config.state))
    if slots.problems:
        raise HadanetError(f"{'; '.join(slots.problems)}; the one before it flies, or else the base model")
    newest = slots.newest()
    return f"model {newest[0].model[:16]}, number {newest[0].number}" if newest else "nothing yet"


def _camera(config: Config) -> str:
    source = open_source(config.camera.source)
    try:
        frame = next(iter(source.frames()), None)
        if frame is None:
            raise SourceError(f"{shown(config.camera.source)}: gives no frame")
        rows, cols = config.camera.rows, config.camera.cols
        cut(frame.image, rows, cols, 1, np.zeros((rows * cols, 1, 1, 3), np.uint8))  # raises where the grid is too fine
        height, width = frame.image.shape[:2]
        return f"{shown(config.camera.source)}, {width} x {height}"
    finally:
        source.close()


def _keys(config: Config) -> str:
    if not config.link.keys:
        return "none: flies without a ground station"
    keys = DroneKeys.load(Path(config.link.keys))
    return f"{keys.name}, station at {keys.address}"


def _free(folder: Path, megabytes: int) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free >> 20
    except OSError as error:
        raise HadanetError(f"{folder}: cannot be written: {error.strerror}; check its owner") from error
    if free < megabytes:
        raise HadanetError(f"{folder}: only {free} MB free, {megabytes} MB are needed; make room")
    return f"{folder}, {free} MB free"


def _state(config: Config) -> str:
    return _free(Path(config.state), MIN_STATE_MB)


def _recording(config: Config) -> str:
    if not config.record.folder:
        return "off"
    return _free(Path(config.record.folder), config.record.min_free_mb)


def _clock(config: Config) -> str:
    now = time.time()
    if now < EARLIEST_CLOCK_S:
        raise HadanetError(f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}: set it, by NTP or by hand")
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
