"""The daemon's configuration: one TOML file, every field described and bounded, unknown keys refused."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from models.errors import ConfigError
from onboard.footprint import FOV_DEG

Share = Annotated[float, Meta(ge=0, le=1)]
Cells = Annotated[int, Meta(ge=1, le=32)]
PAGE_ADDRESS = "127.0.0.1:8081"
ClassName = Annotated[str, Meta(min_length=1, max_length=40)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Camera(_Section, frozen=True, kw_only=True):
    """source: v4l2:///dev/video0, a folder of photos, a video file, or sim://. rows, cols: the grid of tiles.

    fov_deg: horizontal field of view, for the coordinates of tiles.
    """

    source: str = "v4l2:///dev/video0"
    rows: Cells = 6
    cols: Cells = 8
    fov_deg: Annotated[float, Meta(ge=1, le=170)] = FOV_DEG


class ModelChoice(_Section, frozen=True, kw_only=True):
    """artifact: a .safetensors file, "" for the one that is shipped. hash: that file's, as `hadanet info` says it; the
    daemon flies no other. classes: what the operator can answer.
    """

    artifact: str = ""
    hash: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""
    classes: Annotated[tuple[ClassName, ...], Meta(min_length=2, max_length=32)] = ("object", "road", "trees", "ground")
    threads: Annotated[int, Meta(ge=1, le=64)] = 1


class Learning(_Section, frozen=True, kw_only=True):
    """How the head learns.

    ridge: penalty of the closed-form head. propagate: how much the same ground in other frames counts at most, beside
    a labelled tile of 1; 0 for not at all. reach_frames: how far it is looked for. memory: labels that are fitted at
    most. judges: so many of the newest labels judge each candidate; 0 for no gate. pseudo: how much the surest tiles of
    the last frames count for what they seem to be, as a share of what the labels count; 0 for none. cpu_share: of one
    core, over some seconds.
    """

    enabled: bool = True
    ridge: Annotated[float, Meta(gt=0, le=1000)] = 0.03
    propagate: Share = 1.0
    reach_frames: Annotated[int, Meta(ge=0, le=64)] = 6
    memory: Annotated[int, Meta(ge=16, le=768)] = 256
    judges: Annotated[int, Meta(ge=0, le=256)] = 32
    pseudo: Annotated[float, Meta(ge=0, le=10)] = 0.0
    cpu_share: Annotated[float, Meta(ge=0.01, le=1)] = 0.1


class Asking(_Section, frozen=True, kw_only=True):
    """share: questions per tile seen, at most. bytes_per_s: what they may cost, 0 for no bound. crop_px: side of the
    picture that the operator sees.
    """

    share: Share = 0.01
    bytes_per_s: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    crop_px: Annotated[int, Meta(ge=32, le=512)] = 160
    jpeg_quality: Annotated[int, Meta(ge=10, le=95)] = 70


class Recording(_Section, frozen=True, kw_only=True):
    """folder: where MCAP files go, "" for no recording. images: pictures that the camera gives without compression are
    kept as "jpeg", or "exact", which takes ten times the room. max_mb: then the next file is begun. keep_mb: of all
    recordings in the folder, the oldest are deleted beyond it; 0 for no bound. min_free_mb: the oldest are also deleted
    when less than this or a tenth of the disk is free, and recording stops when there are none left.
    """

    folder: str = ""
    images: Literal["jpeg", "exact"] = "jpeg"
    max_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = 512
    keep_mb: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    min_free_mb: Annotated[int, Meta(ge=0, le=1_000_000)] = 1024


class Governing(_Section, frozen=True, kw_only=True):
    """When learning rests, for the flight's sake: at off_c degrees Celsius, until it is hysteresis_c cooler; below
    min_memory_mb of free memory, min_disk_mb of disk for `state`, min_battery_percent of a battery that is being
    emptied; at undervoltage. sensors: the folder that sys and proc lie in.
    """

    off_c: Annotated[float, Meta(ge=30, le=110)] = 80.0
    hysteresis_c: Annotated[float, Meta(ge=0.5, le=40)] = 5.0
    min_memory_mb: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    min_disk_mb: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    min_battery_percent: Annotated[int, Meta(ge=0, le=100)] = 15
    sensors: str = "/"


class Link(_Section, frozen=True, kw_only=True):
    """keys: the file that `ground enroll` wrote, "" to fly without a station."""

    keys: str = ""


class Page(_Section, frozen=True, kw_only=True):
    """address: where the drone's own status page is, HOST:PORT; for others than this computer give 0.0.0.0:PORT, which
    shows everybody in that network what the page says. "" for no page.
    """

    address: Annotated[str, Meta(pattern=r"^(|.+:\d{1,5})$")] = PAGE_ADDRESS


class Config(_Section, frozen=True, kw_only=True):
    """The whole file. state: a folder for the outbox, the label log and the model in force."""

    state: str = "/var/lib/hadanet"
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    camera: Camera = Camera()
    model: ModelChoice = ModelChoice()
    learn: Learning = Learning()
    ask: Asking = Asking()
    record: Recording = Recording()
    governor: Governing = Governing()
    link: Link = Link()
    page: Page = Page()


def load(path: Path) -> Config:
    """Read and check a configuration. Raises ConfigError that names file, line and field."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; see deploy/onboard.toml for an example"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a UTF-8 text file (byte {error.start})") from error
    try:
        config = msgspec.convert(tomllib.loads(text), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}{_place(text, str(error))}: {error}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError; numbers too long, brackets too deep for Python
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    if len(set(config.model.classes)) != len(config.model.classes):
        line = _line(text, ["model", "classes"])
        raise ConfigError(f"{path}{line}: the same class stands twice in model.classes")
    return config


def _place(text: str, message: str) -> str:
    """The line that msgspec's message is about, from its field path `$.section.key` or its unknown key."""
    where = re.search(r"at `\$\.([\w.]+)", message)
    keys = where.group(1).split(".") if where else []
    if unknown := re.search(r"unknown field `([^`]*)`", message):
        keys.append(unknown.group(1))
    return _line(text, keys)


def _line(text: str, keys: list[str]) -> str:
    """The first line that sets these keys, or as many of the first of them as any line does."""
    section: list[str] = []
    best, found = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+([^\]]+)\]", line):
            here = section = _split(header.group(1))
        elif pair := re.match(r"([^=#]+)=", line):
            here = section + _split(pair.group(1))
        else:
            continue
        if best < len(here) <= len(keys) and here == keys[: len(here)]:
            best, found = len(here), f", line {number}"
    return found


def _split(dotted: str) -> list[str]:
    return [part.strip(" \t\"'") for part in dotted.split(".")]
