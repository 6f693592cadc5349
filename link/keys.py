"""CURVE keys: who may talk to whom.

The station has one key pair, `station.toml` in its folder, and beside it `drones/NAME.toml` with the public key of each
drone that it lets in. A drone has one file with its own pair, the station's public key and address. Files with a secret
have mode 0600, are written whole or not at all, and no secret is ever part of a repr, a log line or an error.
"""

import contextlib
import fcntl
import logging
import os
import re
import shlex
import stat
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import zmq

from models.errors import LinkError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
"""A drone's name: also its file name and what logs and pages show."""
LOCK_S = 5.0
"""How long to wait for another process that makes keys in the same folder."""

_logger = logging.getLogger(__name__)
_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")  # Z85; it has neither quotes nor backslashes


@dataclass(frozen=True)
class DroneKeys:
    """What a drone needs to call its station. Keys are Z85 text of 40 characters."""

    name: str
    address: str
    public: bytes
    secret: bytes = field(repr=False)
    station: bytes

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a drone file. Raises LinkError where it is missing, readable by others, or not whole."""
        table = _read(path, secret=True)
        public, secret = _pair(path, table)
        name, address = _text(path, table, "name"), _text(path, table, "address")
        _check_name(name, f"{path}: ")
        _check_address(address, f"{path}: ")
        return cls(name, address, public, secret, _key(path, table, "station_key"))


@dataclass(frozen=True)
class StationKeys:
    """The station's key pair and the folder with its list of drones."""

    folder: Path
    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def load_or_create(cls, folder: Path) -> Self:
        """Read the station's keys; in a folder without, make new ones.

        Raises LinkError where the folder cannot be written, or the file is readable by others or not whole.
        """
        path = folder / "station.toml"
        with _locked(folder):
            if not path.exists():
                public, secret = zmq.curve_keypair()
                _write(path, "The ground station's keys: keep this file secret.", public_key=public, secret_key=secret)
        return cls(folder, *_pair(path, _read(path, secret=True)))


def enroll(folder: Path, name: str, address: str, out: Path, *, force: bool = False) -> Path:
    """Make keys for a drone: write the file to copy onto it, and let the station in `folder` accept it from now on.

    Parameters
    ----------
    folder
        The station's folder; its keys are made if there are none.
    name
        Lower-case letters, digits and hyphens, at most 32.
    address
        Where the drone finds the station, such as ``tcp://192.168.1.10:5555``.
    out
        The drone's file. It holds the only copy of the drone's secret key.
    force
        Overwrite `out`, and replace the key of a drone that is enrolled already (its old file stops working).

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    LinkError
        A bad name or address, a drone or file that exists already (without `force`), a folder that cannot be written.
    """
    _check_name(name)
    _check_address(address)
    station = StationKeys.load_or_create(folder)
    entry = folder / "drones" / f"{name}.toml"
    with _locked(folder / "drones"):
        for path, what in ((entry, f"a drone '{name}' is enrolled already"), (out, "the drone's file exists already")):
            if path.exists() and not force:
                raise LinkError(f"{path}: {what}: choose another, or force it to replace the old key")
        public, secret = zmq.curve_keypair()
        _write(
            out,
            f"The keys of drone {name}: copy this file onto it, keep it secret, and delete it here.",
            name=name.encode(),
            address=address.encode(),
            public_key=public,
            secret_key=secret,
            station_key=station.public,
        )
        # last: if the drone's file could not be written, its key must not be let in
        _write(entry, "A drone that may connect.", name=name.encode(), public_key=public)
    return out


class AllowList:
    """The drones of a station's folder by public key, read anew whenever the folder changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "drones"
        self._stamp: list[tuple[Path, int, int, int]] | None = None
        self._names: dict[bytes, str] = {}
        self.problems: list[str] = []
        """Files that were left out when the folder was last read, and why."""

    def name_of(self, public: bytes) -> str | None:
        """The drone with this public key (Z85), None where no such drone is enrolled."""
        return self.read().get(public)

    def read(self) -> dict[bytes, str]:
        """Public key (Z85) -> name. Files that are not whole are left out and told in `problems`."""
        try:
            files = sorted(self._folder.glob("*.toml"))
            # not the folder's own time: that stays where a file is edited in place
            stamp = [(path, s.st_mtime_ns, s.st_size, s.st_ino) for path in files for s in [path.stat()]]
        except OSError:
            return self._names  # a file vanished between listing and reading: the next call sees it
        if stamp != self._stamp:
            self._names, self.problems = {}, []
            for path in files:
                try:
                    table = _read(path, secret=False)
                    name = _text(path, table, "name")
                    _check_name(name, f"{path}: ")
                    if name != path.stem:
                        raise LinkError(
                            f"{path}: holds the key of '{name}': rename the file, or enroll the drone again"
                        )
                    self._names[_key(path, table, "public_key")] = name
                except LinkError as error:
                    _logger.warning("a drone is left out: %s", error)
                    self.problems.append(str(error))
            self._stamp = stamp
        return self._names


def _check_name(name: str, where: str = "") -> None:
    if not NAME.fullmatch(name):
        raise LinkError(
            f"{where}'{name[:40]}' is no name for a drone: use 1 to 32 lower-case letters, digits and hyphens, "
            "and begin with a letter or digit"
        )


def _check_address(address: str, where: str = "") -> None:
    tcp = re.fullmatch(r"tcp://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", address)
    if not (re.fullmatch(r"ipc://[^\x00-\x1f\"\\]+", address) or (tcp and 1 <= int(tcp[2]) <= 65535)):
        raise LinkError(
            f"{where}'{address[:80]}' is no address of a station: write tcp://HOST:PORT, such as tcp://192.168.1.10:5555"
        )


def _read(path: Path, *, secret: bool) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            if secret and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise LinkError(f"{path}: others can read this secret: run  chmod 600 {shlex.quote(str(path))}")
            return tomllib.load(file)
    except FileNotFoundError as error:
        raise LinkError(f"{path}: no such file: make one with  ground enroll NAME") from error
    except OSError as error:
        raise LinkError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError:
        # without the parser's words and context: they may quote the line, and with it the secret
        raise LinkError(f"{path}: not a key file (no TOML): copy it again, or enroll the drone again") from None


def _text(path: Path, table: dict[str, object], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str):
        raise LinkError(f"{path}: '{key}' is missing or no text: copy the file again, or enroll the drone again")
    return value


def _key(path: Path, table: dict[str, object], key: str) -> bytes:
    value = _text(path, table, key)
    if not _KEY.fullmatch(value):
        raise LinkError(f"{path}: '{key}' is no key of 40 characters: copy the file again, or enroll the drone again")
    return value.encode()


def _pair(path: Path, table: dict[str, object]) -> tuple[bytes, bytes]:
    public, secret = _key(path, table, "public_key"), _key(path, table, "secret_key")
    try:
        belongs = zmq.curve_public(secret) == public
    except zmq.ZMQError:
        belongs = False  # 40 characters of Z85 that are no number of 256 bits
    if not belongs:
        raise LinkError(f"{path}: 'public_key' and 'secret_key' do not belong together: copy the file again")
    return public, secret


def _write(path: Path, comment: str, **fields: bytes) -> None:
    """Write a TOML file of text fields with mode 0600, whole or not at all."""
    text = "".join(f'{key} = "{value.decode()}"\n' for key, value in fields.items())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(f"# {comment}\n{text}")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise LinkError(f"{path}: cannot be written ({error.strerror}): choose another folder") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder (made if missing) against another process that makes keys in it; that takes milliseconds."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LinkError(f"{folder}: cannot be used for keys ({error.strerror}): choose another folder") from error
    try:
        deadline_s = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline_s:
                    raise LinkError(f"{folder}: another process has been making keys for {LOCK_S} s: end it") from error
                time.sleep(0.01)
        yield
    finally:
        os.close(handle)
