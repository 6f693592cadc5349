"""The running station: one process with the link to the drones, the page, and a tick once a second."""

import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from ground.station import FindBase, Station
from ground.store import Store
from ground.web import Events, make_app
from link.keys import StationKeys
from link.station import StationLink
from models import artifact
from models.errors import ArtifactError, HadanetError, StationError
from models.model import Model

TICK_S = 1.0
STOP_S = 3.0
"""How long open pages and connections get at the end."""

log = logging.getLogger("ground")


def serve(data: Path, bind: str, http: str, url: str | None, models: Path | None) -> None:
    """Run the station until SIGINT or SIGTERM. Prints one line when page and link are ready.

    Parameters
    ----------
    data
        Folder of the database, the keys and the link's outbox; one station at a time.
    bind
        Where drones call, such as ``tcp://0.0.0.0:5750``.
    http
        HOST:PORT of the page; port 0 takes a free one.
    url
        SQLAlchemy URL of another database than the one in `data`.
    models
        A folder with base models beside those that are shipped.

    Raises
    ------
    HadanetError
        Addresses that are taken or wrong, a folder in use, a database or keys that cannot be used.
    """
    host, port = parse_http(http)
    if models is not None and not models.is_dir():
        raise StationError(f"{models}: no such folder: give --models the folder with the drones' base models")
    with _alone(data), contextlib.closing(Store.in_folder(data) if url is None else Store(url)) as store:
        listener = _listen(host, port)
        with listener:
            asyncio.run(_run(data, bind, host, listener, store, models))


async def _run(data: Path, bind: str, host: str, listener: socket.socket, store: Store, models: Path | None) -> None:
    station = Station(store, base_finder(data / "models", models))
    link = StationLink(
        StationKeys.load_or_create(data), data, bind, on_message=station.receive, on_change=station.changed
    )
    events = Events()
    server = _Server(
        uvicorn.Config(
            make_app(station, store, events, host),
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=int(STOP_S),
            server_header=False,
        )
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    station.attach(link)
    tasks = [
        asyncio.create_task(link.run(), name="link"),
        asyncio.create_task(server.serve([listener]), name="page"),
        asyncio.create_task(_tick(station), name="tick"),
    ]
    stopped = asyncio.create_task(stop.wait())
    try:
        address = listener.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        sys.stdout.write(f"ground: page http://{shown}:{address[1]}/ drones {link.address} data {data}\n")
        sys.stdout.flush()
        if not ipaddress.ip_address(address[0]).is_loopback:
            log.warning("the page has no password and everyone in the network can open it: --http 127.0.0.1:PORT")
        await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        events.close()
        server.should_exit = True
        await link.close()
        tasks[2].cancel()
        stopped.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _tick(station: Station) -> None:
    while True:
        try:
            station.tick()
        except HadanetError as error:  # a full disk or a lost database may come back
            log.error("%s", error)
        await asyncio.sleep(TICK_S)


class _Server(uvicorn.Server):
    """Leaves the signals to us: the link has to end too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def base_finder(own: Path, more: Path | None) -> FindBase:
    """Find base models by hash in the folders `own` and `more` and among the shipped ones.

    A drone gives a shipped model its own classes before it first flies. Such a model is made here in the same way, and
    kept in `own`, because the drone may get more classes later.
    """

    def find(base_hash: bytes, classes: tuple[str, ...]) -> Model:
        wanted = base_hash.hex()
        paths = [p for f in (own, more, artifact.ZOO) if f is not None for p in sorted(f.glob("*.safetensors"))]
        readable = []
        for path in paths:
            try:
                if artifact.describe(path).get("hash") == wanted:
                    return artifact.load(path)
                readable.append(path)
            except ArtifactError as error:
                log.warning("passed over: %s", error)
        for path in readable:
            model = artifact.load(path).with_classes(classes)
            if model.hash == wanted:
                own.mkdir(exist_ok=True)
                artifact.save(model, own / f"{wanted[:16]}.safetensors")
                return model
        raise ArtifactError(f"the base model {wanted[:16]} is not here: copy its file into {more or own}")

    return find


def parse_http(http: str) -> tuple[str, int]:
    """HOST and PORT of ``HOST:PORT``, an IPv6 address in brackets; StationError for anything else."""
    host, _, port = http.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535 or "/" in host:
        raise StationError(f"--http {http!r} is not HOST:PORT, such as 127.0.0.1:8080")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise StationError(
            f"the page cannot listen on {host}:{port} ({error.strerror}): give another --http HOST:PORT"
        ) from error


@contextlib.contextmanager
def _alone(data: Path) -> Iterator[None]:
    """Hold the data folder: two stations would send every answer twice."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(data / "serve.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StationError(f"{error.filename or data}: cannot be used for data: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StationError(
                f"{data}: another ground serve uses this folder: stop it, or give another --data"
            ) from None
        yield
    finally:
        os.close(lock)
