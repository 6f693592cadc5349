"""The daemon's status file: where it lies, how it is written, and how it is read, by `onboard status` and the page.

It is replaced every two seconds, so it lies in memory where there is such a folder: below /run for a service. Ages are
counted on the monotonic clock, which all processes of one boot share: the other one may jump by years.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from models.errors import HadanetError
from onboard import durable

STATUS_FILE = "status.json"
RUNTIME = Path("/run/hadanet")
"""The folder in memory that the unit's RuntimeDirectory makes; systemd names it to the daemon in RUNTIME_DIRECTORY."""
SILENT_S = 10.0
"""A status that is older is not news: its writer hangs, or starts anew."""


def runtime_folder() -> Path | None:
    """The folder in memory that systemd made for this daemon, None outside of a unit."""
    named = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(named) if named else None


def volatile_folder(state: Path) -> Path:
    """Where a daemon keeps its state that cannot write to `state`: it lasts until the computer is switched off."""
    if (folder := runtime_folder()) is not None:
        return folder / "state"
    mark = hashlib.sha256(os.fsencode(state)).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"hadanet-{os.getuid()}-{mark}"


def status_path(state: Path) -> Path:
    """Where this daemon, whose state is in `state`, puts its status."""
    return (runtime_folder() or state) / STATUS_FILE


def boot_id() -> str:
    """What tells this start of the computer from all others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def encode(fields: Mapping[str, object]) -> bytes:
    """A status as it stands in the file, with who wrote it, and when, added."""
    about = {"pid": os.getpid(), "boot_id": boot_id(), "written_s": time.monotonic()}
    return msgspec.json.encode({**fields, **about})


def write(path: Path, fields: Mapping[str, object]) -> None:
    """Replace the status by hand, for those who have no desk. Raises OSError."""
    durable.write(path, encode(fields), sync=False)


def last_words(path: Path) -> str:
    """The mistake by which a flight ended that wrote this status, "" if none is told."""
    try:
        return str(msgspec.json.decode(path.read_bytes(), type=dict[str, object])["problems"]["flight"])  # type: ignore[index]
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return ""


def find(state: Path) -> dict[str, object]:
    """The status of the daemon that is configured with this state folder. Raises HadanetError where none is running."""
    places = dict.fromkeys(
        (state / STATUS_FILE, volatile_folder(state) / STATUS_FILE, (runtime_folder() or RUNTIME) / STATUS_FILE)
    )
    problems = []
    for path in places:
        try:
            fields = read(path)
        except HadanetError as error:
            problems.append(error)
            continue
        if fields.get("state", "") in ("", str(state)):  # "": a daemon that has no configuration
            return fields
    raise problems[0]


def read(path: Path) -> dict[str, object]:
    """A status file's fields and `age_s`. Raises HadanetError where its daemon is not running any more."""
    try:
        fields: dict[str, object] = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
        pid, age = int(str(fields["pid"])), time.monotonic() - float(str(fields["written_s"]))
    except FileNotFoundError as error:
        raise HadanetError(f"{path}: there is no such file; is the daemon running with this state folder?") from error
    except PermissionError as error:
        raise HadanetError(f"{path}: this user may not read it: ask with sudo") from error
    except (OSError, msgspec.MsgspecError, KeyError, ValueError) as error:
        raise HadanetError(f"{path}: cannot be read: {error}") from error
    if fields.get("boot_id") != boot_id():
        raise HadanetError("the daemon is not running; it has not, since this computer was started")
    if not Path(f"/proc/{pid}").exists():
        raise HadanetError(f"the daemon is not running; it ended {age:.0f} s ago or a little later")
    return fields | {"age_s": round(age, 1)}
