"""`onboard run`: from a configuration file to running processes, and what to do while that file is wrong.

Typed by a person, a mistake ends it with one line. As a service it would be started again and again; so it flies with
what it has (`onboard.boot`), and where a wrong configuration leaves nothing to fly by it stays, says on the status page
what is wrong, and looks at the file until it is mended.
"""

import contextlib
import logging
import signal
import sys
import threading
import tomllib
from pathlib import Path

import msgspec

from models.errors import HadanetError
from onboard import boot as boots
from onboard import config as config_file
from onboard import status
from onboard.config import Config, Page
from onboard.notify import Notifier
from onboard.supervisor import Process, Supervisor

_log = logging.getLogger(__name__)

LOOK_S = 1.0
"""So often a wrong configuration is looked at again."""
AGAIN_S = 10.0
"""After so long a flight that ended by a mistake is tried again."""
PAGE_NICE = 15


def run(path: Path, service: bool) -> int:
    """Fly by the configuration at `path` until SIGTERM, or the end of the source; the exit status.

    service: never end by a mistake; go round it, or stay until it is mended.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    while True:
        config = Config()
        try:
            config = config_file.load(path)
            boot = boots.prepare(config, strict=not service)
            code = _fly(boot, stop)
            problem = status.last_words(status.status_path(Path(boot.config.state))) or "the flight ended by a mistake"
        except HadanetError as error:
            if not service:
                raise
            code, problem = 1, str(error)
        if stop.is_set() or code != 1 or not service:
            return code
        _stay(path, config, problem, stop)
        if stop.is_set():
            return 0


def _fly(boot: boots.Boot, stop: threading.Event) -> int:
    config, state = boot.config, Path(boot.config.state)
    table = [boots.flight_process(boot)]
    if config.learn.enabled:
        table.append(boots.learner_process(config, state))
    table += page_process(status.status_path(state), config.page)
    supervisor = Supervisor(table)
    supervisor.start()
    try:
        return supervisor.wait(stop.is_set)
    finally:
        supervisor.close()


def page_process(path: Path, page: Page) -> list[Process]:
    """The row of the process table for the status page, if one is wanted."""
    if not page.address:
        return []
    command = (sys.executable, "-m", "onboard.statuspage", str(path), "--address", page.address)
    return [Process(name="page", command=command, nice=PAGE_NICE)]


def _stay(path: Path, config: Config, problem: str, stop: threading.Event) -> None:
    """Safe mode: nothing flies, the page and `onboard status` say why, until the file changes or AGAIN_S are over.

    A file that cannot be flown by is waited for without an end.
    """
    _log.error("safe mode, nothing flies: %s", problem)
    folder = status.runtime_folder() or status.volatile_folder(Path(config.state))
    told = folder / status.STATUS_FILE
    before = _stamp(path)
    supervisor = Supervisor(page_process(told, _page(path)))
    supervisor.start()
    waited_s = 0.0
    try:
        with Notifier() as notifier:
            notifier.ready()
            while not stop.wait(LOOK_S):
                waited_s += LOOK_S
                with contextlib.suppress(OSError):
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    status.write(told, {"state": "", "problems": {"safe mode": f"nothing flies: {problem}"}})
                notifier.alive(f"safe mode, nothing flies: {problem}")
                if _stamp(path) != before or (waited_s >= AGAIN_S and _is_good(path)):
                    return
    finally:
        supervisor.close()


def _is_good(path: Path) -> bool:
    try:
        config_file.load(path)
    except HadanetError:
        return False
    return True


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        about = path.stat()
    except OSError:
        return (0, 0, 0)
    return (about.st_mtime_ns, about.st_size, about.st_ino)


def _page(path: Path) -> Page:
    """Where the page should be, by a file that is wrong elsewhere."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8-sig")).get("page", {}), Page)
    except (
        OSError,
        ValueError,
        RecursionError,
    ):  # ValueError: also msgspec's, TOML's and that of bytes that are no text
        return Page()
