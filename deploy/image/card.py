"""What the card's FAT partition says: `hadanet.toml`, and beside it the key file that `ground enroll` wrote.

`hadanet.toml` is the daemon's configuration with one table more, `[board]`. Nothing in there can stop a start: what is
wrong becomes a problem in words, and the last good configuration, or the one that is shipped, takes its place.
"""

import hashlib
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from link.keys import DroneKeys
from models.errors import ConfigError, HadanetError
from onboard import config as config_file

FILE = "hadanet.toml"
KEYS = "/etc/hadanet/keys.toml"
"""Where the daemon finds its keys; on the FAT partition the file has the drone's name."""
UNNAMED = "hadanet"
"""The host name where no key file names the drone."""
NO_KEYS = f"{FILE}: leave out link.keys: the key file that lies beside {FILE} is used"
SSH_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-\S+|sk-\S+) [A-Za-z0-9+/=]+( [^\x00-\x1f]*)?")


class Board(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[board]`. wifi: the network's name, "" for none. wifi_country: two letters, where 5 GHz is used.
    ssh_key: the public key that may log in as root; nobody can without one.
    """

    wifi: str = ""
    wifi_password: Annotated[str, Meta(max_length=64)] = ""
    wifi_country: Annotated[str, Meta(pattern="^([A-Z]{2})?$")] = ""
    ssh_key: Annotated[str, Meta(max_length=4096)] = ""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What is used. config: the text of the daemon's file. keys: the key file on the card, and what it holds."""

    config: str
    board: Board = Board()
    keys: Path | None = None
    drone: DroneKeys | None = None
    problems: tuple[str, ...] = ()
    taken: bool = False
    """Whether `config` is what the card says now."""

    @property
    def name(self) -> str:
        """The drone's name, which is the host's too."""
        return self.drone.name if self.drone else UNNAMED


def read(folder: Path, fallback: str, whose: str) -> Card:
    """What the FAT partition at `folder` says. fallback: the daemon's configuration if that is wrong, `whose` it is."""
    problems: list[str] = []
    board, config, taken = Board(), "", False
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = tomllib.loads(text)
    except FileNotFoundError:
        problems.append(f"{FILE}: missing; an editor may have named it {FILE}.txt")
    except UnicodeDecodeError:
        problems.append(f"{FILE}: not a UTF-8 text file; save it as UTF-8")
    except (ValueError, RecursionError) as error:
        problems.append(f"{FILE}: not valid TOML: {error}")
    except OSError as error:
        problems.append(f"{FILE}: cannot be read: {error.strerror}")
    else:
        try:
            board = _board(table.get("board", {}))
        except ConfigError as error:
            problems.append(str(error))
        try:
            config = without_board(text, table)
            _check(config)
            taken = True
        except ConfigError as error:
            problems.append(str(error))
    if not taken:
        problems.append(f"flies with the configuration {whose}")
        config = fallback
    keys, drone = None, None
    try:
        keys, drone = _keys(folder)
        with_keys(config)  # raises where it cannot be told
    except HadanetError as error:
        keys, drone = None, None
        problems.append(str(error).replace(f"{folder}/", "") + "; flies without a station")
    return Card(config=config, board=board, keys=keys, drone=drone, problems=tuple(problems), taken=taken)


def without_board(text: str, table: dict[str, Any]) -> str:
    """The daemon's part of the text, each line where it was; ConfigError where the parts cannot be told apart."""
    lines, ours = [], False
    for line in text.splitlines():
        if re.match(r"\s*\[", line):
            ours = re.match(r"\s*\[\s*board\s*\]", line) is not None
        lines.append("" if ours else line)
    rest = "\n".join(lines) + "\n"
    try:
        same = tomllib.loads(rest) == {name: value for name, value in table.items() if name != "board"}
    except ValueError:
        same = False
    if not same:
        raise ConfigError(f"{FILE}: write [board] as a table of its own, with each key on one line")
    return rest


def with_keys(config: str) -> str:
    """The daemon's configuration, told where its keys are. Raises ConfigError where [link] is no table of its own."""
    line = f'keys = "{KEYS}"'
    if "link" not in tomllib.loads(config):
        return f"{config}\n[link]\n{line}\n"
    text = re.sub(r"(?m)^\s*\[\s*link\s*\].*$", lambda found: f"{found[0]}\n{line}", config, count=1)
    try:
        told = tomllib.loads(text)["link"].get("keys") == KEYS
    except ValueError:
        raise ConfigError(NO_KEYS) from None  # it stands there twice now
    if not told:
        raise ConfigError(f"{FILE}: write [link] as a table of its own")
    return text


def supplicant(board: Board) -> str:
    """wpa_supplicant's configuration, with the key that it would compute from name and password."""
    name = board.wifi.encode()
    lines = [f"country={board.wifi_country}"] if board.wifi_country else []
    lines += ["network={", f"\tssid={name.hex()}", "\tscan_ssid=1"]
    if board.wifi_password:
        key = hashlib.pbkdf2_hmac("sha1", board.wifi_password.encode(), name, 4096, 32).hex()
        lines += ["\tkey_mgmt=WPA-PSK WPA-PSK-SHA256", "\tieee80211w=1", f"\tpsk={key}"]
    else:
        lines += ["\tkey_mgmt=NONE"]
    return "\n".join([*lines, "}", ""])


def _board(table: object) -> Board:
    try:
        board = msgspec.convert(table, Board)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{FILE}, [board]: {str(error).replace('$', 'board')}") from error
    if len(board.wifi.encode()) > 32:
        raise ConfigError(f"{FILE}, [board]: wifi: a network's name has at most 32 bytes")
    if board.wifi_password and not re.fullmatch(r"[ -~]{8,63}", board.wifi_password):
        raise ConfigError(f"{FILE}, [board]: wifi_password: 8 to 63 letters, digits and signs of ASCII")
    if board.ssh_key and not SSH_KEY.fullmatch(board.ssh_key.strip()):
        raise ConfigError(f"{FILE}, [board]: ssh_key: not a public key; it is the one line of a file NAME.pub")
    return board


def _check(config: str) -> None:
    """The daemon's own rules, with our file's name in what they say."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / FILE
        path.write_text(config)
        try:
            found = config_file.load(path)
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{name}/", "")) from error
    if found.link.keys:
        raise ConfigError(NO_KEYS)


def _keys(folder: Path) -> tuple[Path | None, DroneKeys | None]:
    """The one TOML file beside ours."""
    found = sorted(path for path in folder.glob("*.toml") if path.name != FILE and not path.name.startswith("."))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"{names}: more than one key file; leave the one of this drone")
    return (found[0], DroneKeys.load(found[0])) if found else (None, None)
