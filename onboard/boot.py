"""What a start finds, and a way on for each thing that is wrong: a drone flies with what it has, and says so.

The supervisor calls `prepare` once before it starts its processes. What comes out is a configuration whose state folder
can be written, whose model loads and whose keys are whole, and in words all that is not as it was configured.
"""

import errno
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec
import zmq

from link.keys import DroneKeys
from models.errors import ArtifactError, HadanetError
from onboard import status
from onboard.config import Config
from onboard.labels import LABELS_FILE
from onboard.slots import CONTROL_FILE, Slots, trusted
from onboard.slots import FOLDER as SLOTS_FOLDER
from onboard.supervisor import Process
from onboard.worker import Setup, learner_address

_log = logging.getLogger(__name__)

LEARNER_NICE = 10
ROOM_BYTES = 256 * 1024
"""A folder without room for so much is full: a label log and an outbox begin with about a third of it."""


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """What the flight is started with, as JSON on its standard input: a camera's password may be in it, and everybody
    can read a command line.

    config: as it can be flown. state: the folder that was configured, which config.state is not where it cannot be
    used. problems: what is not as it was configured, by topic.
    """

    config: Config
    state: str
    problems: dict[str, str]


def prepare(config: Config, strict: bool) -> Boot:
    """Look at everything that a flight needs, and go round what is wrong.

    Raises HadanetError for what nothing can be done about: a state folder with too long a name, no model at all; with
    `strict` for everything that is not as it is configured.
    """
    if strict:
        make_folder(Path(config.state))
        trusted(config.model.artifact, config.model.hash)
        if config.link.keys:
            DroneKeys.load(Path(config.link.keys))
    replace, problems = msgspec.structs.replace, {}
    state, problems["state"] = _state(Path(config.state))
    model, problems["model"] = _model(config, state)
    keys, problems["keys"] = _keys(config.link.keys)
    problems = {topic: text for topic, text in problems.items() if text}
    for topic, text in problems.items():
        _log.error("%s: %s", topic, text)
    flown = replace(
        config,
        state=str(state),
        model=replace(config.model, artifact=model, hash=""),
        link=replace(config.link, keys=keys),
    )
    return Boot(config=flown, state=config.state, problems=problems)


def flight_process(boot: Boot) -> Process:
    """The row of the process table for the flight."""
    command = (sys.executable, "-m", "onboard.daemon")
    return Process(name="flight", command=command, stdin=msgspec.json.encode(boot), needed=True)


def learner_process(config: Config, state: Path) -> Process:
    """The row of the process table for the learner of a flight with this configuration and state folder."""
    setup = Setup(
        address=learner_address(state),
        state=str(state / "learner.msgpack"),
        artifact=config.model.artifact,
        classes=config.model.classes,
        rows=config.camera.rows,
        cols=config.camera.cols,
        settings=config.learn,
    )
    text = msgspec.json.encode(setup).decode()
    command = (sys.executable, "-m", "onboard.worker", text, "--parent", str(os.getpid()))
    return Process(name="learner", command=command, nice=LEARNER_NICE)


def make_folder(state: Path) -> Path:
    """The state folder, made if missing. Raises HadanetError where it cannot be written to, or has too long a name."""
    if len(os.fsencode(learner_address(state).removeprefix("ipc://"))) > zmq.IPC_PATH_MAX_LEN:
        raise HadanetError(
            f"{state}: the path is too long for a socket in this folder ({zmq.IPC_PATH_MAX_LEN} bytes with its name); "
            "set a shorter `state`"
        )
    try:
        state.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=state):
            pass
    except OSError as error:
        raise HadanetError(f"{state}: no state can be kept there: {error.strerror}; set `state`") from error
    return state


def _state(wanted: Path) -> tuple[Path, str]:
    """The folder for the state and why it is not the wanted one, "" if it is."""
    problem = _no_room(wanted)
    if not problem:
        return make_folder(wanted), ""
    if problem == os.strerror(errno.ENOSPC) and (wanted / LABELS_FILE).exists():
        # what is there can be opened on a full disk, and new labels wait at the station until there is room
        return wanted, f"{wanted}: the disk is full: nothing new can be kept until there is room"
    folder = status.volatile_folder(wanted)
    make_folder(folder)
    folder.chmod(0o700)
    if folder.stat().st_uid != os.getuid():
        raise HadanetError(f"{folder}: belongs to somebody else; remove it, or mend `state`")
    _bring(wanted, folder)
    return folder, (
        f"{wanted}: no state can be kept there: {problem}; this flight keeps it in {folder}, until the computer is "
        "switched off"
    )


def _no_room(folder: Path) -> str:
    """Why nothing can be kept in this folder, "" if something can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _bring(wanted: Path, folder: Path) -> None:
    """What a folder that can be read, but not written, knows: the models that flew and the operator's last command."""
    for name in (SLOTS_FOLDER, CONTROL_FILE):
        source, target = wanted / name, folder / name
        if target.exists():  # of an earlier start of this flight, and newer
            continue
        try:
            if source.is_dir():
                shutil.copytree(source, target)
            elif source.exists():
                shutil.copy(source, target)
        except OSError as error:  # shutil.Error is one
            _log.error("%s: cannot be read: %s", source, error.strerror or error)


def _model(config: Config, state: Path) -> tuple[str, str]:
    """The base model's file ("" is the shipped one) and why it is not the configured one, "" if it is."""
    wanted, slots = config.model, Slots(state)
    problem = ""
    for path, pin in dict.fromkeys(((wanted.artifact, wanted.hash), ("", ""))):
        try:
            base = trusted(path, pin)
        except ArtifactError as error:
            problem = problem or str(error)
            if (kept := slots.last_base()) is not None:
                return str(kept), f"{problem}; the base model of the last flight flies"
            continue
        base = base if base.classes == wanted.classes else base.with_classes(wanted.classes)
        if problem:
            return path, f"{problem}; the shipped model flies"
        try:
            copy = slots.keep_base(base)
        except ArtifactError as error:
            _log.warning("a copy of the base model is not kept: %s", error)
            return path, ""
        return (str(copy) if path else ""), ""
    raise ArtifactError(problem)


def _keys(path: str) -> tuple[str, str]:
    """The drone's key file and why the flight is without a link, "" if it is not, or should not have one."""
    try:
        if path:
            DroneKeys.load(Path(path))
    except HadanetError as error:
        return "", f"{error}; then restart. It flies without a link"
    return path, ""
