"""The page and its HTTP API: JSON in and out, pictures, and a stream of events.

The station has no passwords. It listens on this machine only unless told otherwise, answers only to its own names
(a foreign page cannot reach it through a name of its own), and takes changes only from its own page or from programs
that are no browser. Every error is JSON with the key ``error``.
"""

import asyncio
import io
import ipaddress
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ground.rows import Given, QueryRow
from ground.station import Station
from ground.store import ConflictError, StorageError, Store, UnknownError
from ground.transfer import write_csv
from models.errors import HadanetError, StationError

PAGE = Path(__file__).parent / "page"
MAX_BODY_BYTES = 4096
MAX_OPEN = 100
"""Open questions in one answer of the API; the page asks again when it runs low."""
MAX_RECENT = 12
MAX_CLIENTS = 32
MAX_EVENTS = 64
"""Events that wait for a slow page; beyond, the oldest go and the page is told to load everything again."""
KEEPALIVE_S = 5.0
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class LabelIn(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /api/labels``; the question's number is text because it has 64 bits.

    Either `answer`: a class, or "" for "don't know"; with `new` a class that the drone may not know yet. Or `verdict`:
    whether the drone's guess is right or wrong.
    """

    drone: str
    query: str
    answer: str | None = None
    verdict: Literal["right", "wrong"] | None = None
    new: bool = False


class ControlIn(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /api/control``."""

    drone: str
    action: str


class Events:
    """Fans changes out to the pages that listen; each has a bounded queue that drops its oldest."""

    def __init__(self) -> None:
        self._clients: set[_Client] = set()
        self._closed = False
        self.dropped = 0

    def publish(self, kind: str, drone: str) -> None:
        """Tell every page; an event that still waits is not queued twice."""
        for client in self._clients:
            if (kind, drone) not in client.waiting:
                if len(client.waiting) == MAX_EVENTS:
                    client.waiting.popleft()
                    client.lost = True
                    self.dropped += 1
                client.waiting.append((kind, drone))
            client.wake.set()

    def close(self) -> None:
        """End all streams, so that the server can stop."""
        self._closed = True
        for client in self._clients:
            client.wake.set()

    async def stream(self, render: Callable[[str, str], Any]) -> AsyncIterator[bytes]:
        """Server-sent events for one page; `render(kind, drone)` gives the data when it is sent."""
        client = _Client()
        self._clients.add(client)
        try:
            yield b"retry: 1000\nevent: reload\ndata: {}\n\n"
            while not self._closed:
                if client.lost:
                    client.lost = False
                    client.waiting.clear()
                    yield b"event: reload\ndata: {}\n\n"
                elif client.waiting:
                    kind, drone = client.waiting.popleft()
                    yield f"event: {kind}\ndata: ".encode() + msgspec.json.encode(render(kind, drone)) + b"\n\n"
                else:
                    client.wake.clear()
                    try:
                        await asyncio.wait_for(client.wake.wait(), KEEPALIVE_S)
                    except TimeoutError:
                        yield b"event: alive\ndata: {}\n\n"  # its absence tells the page that the station is dead
        finally:
            self._clients.discard(client)

    @property
    def full(self) -> bool:
        """Whether `MAX_CLIENTS` pages listen."""
        return len(self._clients) >= MAX_CLIENTS


class _Client:
    def __init__(self) -> None:
        self.waiting: deque[tuple[str, str]] = deque()
        self.wake = asyncio.Event()
        self.lost = False


def make_app(station: Station, store: Store, events: Events, bound_host: str) -> Starlette:
    """The web application for a station that listens on `bound_host`."""
    api = _Api(station, store, events)
    routes = [
        Route("/", api.page),
        Mount("/static", StaticFiles(directory=PAGE)),
        Route("/api/state", api.state),
        Route("/api/events", api.events),
        Route("/api/queries", api.queries),
        Route("/api/queries/{drone}/{query}.jpg", api.jpeg),
        Route("/api/labels", api.add_label, methods=["POST"]),
        Route("/api/labels.csv", api.labels_csv),
        Route("/api/labels/{label}", api.undo, methods=["DELETE"]),
        Route("/api/control", api.control, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HadanetError: _refuse, HTTPException: _refuse_http})
    app.add_middleware(Guard, bound_host=bound_host)
    return app


class _Api:
    def __init__(self, station: Station, store: Store, events: Events) -> None:
        self._station = station
        self._store = store
        self._events = events
        station.listen(events.publish)

    async def page(self, request: Request) -> Response:
        return Response((PAGE / "index.html").read_bytes(), media_type="text/html")

    async def state(self, request: Request) -> Response:
        """Everything a page needs to draw itself the first time."""
        return _json({"drones": [self._whole(name) for name in self._station.drones()]})

    async def events(self, request: Request) -> Response:
        if self._events.full:
            raise HTTPException(503, f"{MAX_CLIENTS} pages listen already: close one")
        return StreamingResponse(self._events.stream(self._render), media_type="text/event-stream")

    async def queries(self, request: Request) -> Response:
        drone = request.query_params.get("drone", "")
        if drone not in self._station.drones():
            raise UnknownError(f"no drone {drone!r} has called this station: ask with ?drone=NAME")
        found = self._store.open_queries(drone, MAX_OPEN)
        return _json({"open": self._store.count_open(drone), "queries": [describe_query(q) for q in found]})

    async def jpeg(self, request: Request) -> Response:
        params = request.path_params
        picture = self._store.jpeg(params["drone"], _number(params["query"], "question"))
        # a question never changes its picture, so that the browser may show it again without asking
        return Response(
            picture, media_type="image/jpeg", headers={"cache-control": "private, max-age=86400, immutable"}
        )

    async def add_label(self, request: Request) -> Response:
        body = await _body(request, LabelIn)
        query = _number(body.query, "question")
        if body.answer is not None and body.verdict is None:
            label = self._station.answer(Given(body.drone, query, body.answer, new=body.new))
        elif body.answer is None and body.verdict is not None and not body.new:
            label = self._station.judge(body.drone, query, body.verdict == "right")
        else:
            raise StationError("a label has either an answer, which may be new, or a verdict: right or wrong")
        return _json({"label": str(label)}, 201)

    async def undo(self, request: Request) -> Response:
        label = _number(request.path_params["label"], "label", bits=63)
        self._station.undo(label)
        return _json({"label": str(label)})

    async def control(self, request: Request) -> Response:
        body = await _body(request, ControlIn)
        self._station.control(body.drone, body.action)
        return _json({"drone": body.drone, "action": body.action})

    async def labels_csv(self, request: Request) -> Response:
        text = io.StringIO()
        write_csv(text, self._store.answered(request.query_params.get("drone")))
        headers = {"content-disposition": 'attachment; filename="labels.csv"'}
        return Response(text.getvalue(), media_type="text/csv", headers=headers)

    def _whole(self, drone: str) -> dict[str, Any]:
        recent = [describe_query(q) for q in self._store.recent_answers(drone, MAX_RECENT)]
        return {
            **self._station.describe(drone),
            **self._station.describe_map(drone),
            "seen": self._station.describe_seen(drone),
            "recent": recent,
        }

    def _render(self, kind: str, drone: str) -> Any:
        if kind == "seen":
            return {"name": drone, "seen": self._station.describe_seen(drone)}
        return self._station.describe(drone)


class Guard:
    """Refuses requests under a foreign name, and changes asked for by foreign pages; adds the security headers.

    On a loopback address only loopback names are taken. Elsewhere, also the bound name and plain IP addresses: the
    attack through a name that is pointed here afterwards needs a name.
    """

    def __init__(self, app: ASGIApp, bound_host: str) -> None:
        self._app = app
        self._names = LOOPBACK | {bound_host.lower(), f"[{bound_host.lower()}]"}
        self._any_address = f"[{bound_host}]" not in LOOPBACK and bound_host not in LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                extra = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in present]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        request = Request(scope)
        problem = self._problem(request)
        app = self._app if problem is None else _json({"error": problem}, 403)
        await app(scope, receive, with_headers)

    def _problem(self, request: Request) -> str | None:
        host = request.headers.get("host", "").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name not in self._names and not (self._any_address and _is_address(name)):
            return f"this station does not answer to the name {name!r}: use the address that `ground serve` printed"
        origin = request.headers.get("origin")
        if request.method not in ("GET", "HEAD") and origin is not None and origin.lower() != f"http://{host}":
            return f"changes from pages of {origin!r} are not taken: use this station's own page"
        return None


def describe_query(query: QueryRow) -> dict[str, Any]:
    """A question, ready for JSON; its number is text because it has 64 bits."""
    return {
        **msgspec.structs.asdict(query),
        "id": str(query.id),
        "t_ns": str(query.t_ns),
        "label": None if query.label is None else str(query.label),
        "url": f"/api/queries/{query.drone}/{query.id}.jpg",
    }


async def _body(request: Request, wanted: type[Any]) -> Any:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(body, type=wanted)
    except msgspec.DecodeError as error:
        fields = ", ".join(wanted.__struct_fields__)
        raise StationError(f"the body must be JSON with {fields}: {error}") from None


def _number(text: str, what: str, bits: int = 64) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 2**bits):
        raise StationError(f"{text!r} is not the number of a {what}")
    return int(text)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _json(data: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status, media_type="application/json")


def _refuse(request: Request, error: Exception) -> Response:
    codes: list[tuple[type[HadanetError], int]] = [(UnknownError, 404), (ConflictError, 409), (StorageError, 503)]
    return _json({"error": str(error)}, next((code for kind, code in codes if isinstance(error, kind)), 400))


def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = {404: f"there is no {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
    return _json({"error": detail.get(error.status_code, error.detail)}, error.status_code)
