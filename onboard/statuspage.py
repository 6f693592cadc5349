"""The drone's own status page: what `onboard status` says, for a browser. It reads one file and changes nothing.

A process of its own that stands back behind everything else: no frame waits for it, and it may die. It listens on this
computer only, unless the configuration says otherwise; what it says is no secret, but where the drone is.
"""

import argparse
import html
import ipaddress
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec

from models.errors import HadanetError
from onboard import status

_log = logging.getLogger(__name__)

FILES = Path(__file__).parent / "page"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MAX_CLIENTS = 8
"""Requests at a time; more are closed at once."""
CLIENT_S = 5.0
"""How long a client may take to ask."""
AGAIN_S = 5.0
"""After so long an address that is taken is tried again."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Fact(msgspec.Struct, frozen=True):
    """One line of the page. level: "", good, warn or bad; more: what is too long for the line."""

    name: str
    value: str
    level: str = ""
    more: str = ""


def facts(fields: Mapping[str, Any]) -> dict[str, list[Fact]]:
    """What a status says, in the groups and words of the page; what it does not say is left out."""
    wrong = fields.get("problems") or {}
    sensors = fields.get("sensors") or {}

    def level(*topics: str) -> str:
        return "bad" if any(topic in wrong for topic in topics) else ""

    def number(name: str, form: str, where: Mapping[str, Any] = fields) -> str:
        value = where.get(name)
        return form.format(value) if isinstance(value, int | float) else ""

    hot = "warn" if "learning rests" in str(wrong.get("governor", "")) else ""
    link = str(fields.get("link", ""))
    on = "good" if link == "connected" else ""
    model, mirror = str(fields.get("model_hash", "")), str(fields.get("mirror_hash", ""))
    resting = fields.get("learner") in ("resting", "away")
    groups = {
        "Flight": [
            Fact(
                "Camera", "no frames" if "camera" in wrong else str(fields.get("camera", "")), level("camera") or "good"
            ),
            Fact("Frame", "none yet" if fields.get("frame") == -1 else number("frame", "{:,}")),
            Fact("Rate", number("fps", "{:.1f} fps")),
            Fact("Latency", number("latency_ms", "{:.0f} ms")),
            Fact("Dropped", number("dropped", "{:,}"), "warn" if fields.get("dropped") else ""),
        ],
        "Learning": [
            Fact("Learner", str(fields.get("learner", "")), "warn" if resting else "good"),
            Fact("Labels", number("labels", "{:,}")),
            Fact("Updates", number("updates", "{:,}")),
            Fact("Rolled back", number("rollbacks", "{:,}"), "warn" if fields.get("rollbacks") else ""),
            Fact("Model", model[:12], level("model"), model),
        ],
        "Link": [
            Fact("Station", "not connected" if "link" in wrong else link, level("link", "keys") or on),
            Fact("Mirror", ("equal" if mirror == model else "behind") if mirror else "", ""),
            Fact("Recording", str(fields.get("recorder", "")), level("recording")),
            Fact("Time (UTC)", str(fields.get("utc", "")), level("clock")),
        ],
        "Computer": [
            Fact("Temperature", number("temperature_c", "{:.0f} °C", sensors), hot),
            Fact("Throttling", str(sensors.get("throttling", "")), hot),
            Fact("Memory free", number("free_memory_mb", "{:,.0f} MB", sensors)),
            Fact("Disk free", number("free_disk_mb", "{:,.0f} MB", sensors)),
            Fact("Battery", number("battery_percent", "{:.0f} %", sensors)),
        ],
    }
    return {name: shown for name, group in groups.items() if (shown := [fact for fact in group if fact.value])}


def render(fields: Mapping[str, Any] | None, problem: str = "") -> str:
    """The whole page for a status, or for the reason why there is none."""
    fields = fields or {}
    wrong = dict(fields.get("problems") or {})
    age = float(fields.get("age_s", 0.0))
    if problem:
        wrong = {"daemon": problem}
    elif age > status.SILENT_S:
        wrong = {"daemon": f"it has said nothing for {age:.0f} s: it hangs, or is just being started again"} | wrong
    if problem or "safe mode" in wrong or "flight" in wrong:
        title, mood = "Nothing flies", "bad"
    elif wrong:
        title, mood = f"Flies, with {len(wrong)} problem{'s' if len(wrong) > 1 else ''}", "warn"
    else:
        title, mood = "All is well", "good"
    name = html.escape(socket.gethostname())
    parts = [*_problems(wrong), *_groups({} if problem else facts(fields))]
    told = time.strftime("%H:%M:%S", time.gmtime(time.time() - age))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="/icon.svg">'
        f'<link rel="stylesheet" href="/page.css"><script src="/page.js" defer></script><title>{title} · {name}</title>'
        f'</head><body><header class="{mood}"><i></i><h1>{title}</h1><p>{name}</p></header>'
        f"<main>{''.join(parts)}</main>"
        f"<footer>as of {told} by this computer's clock"
        '<noscript> · reload for news</noscript><span id="lost" hidden> · this page has lost the drone</span>'
        "</footer></body></html>\n"
    )


def _problems(wrong: Mapping[str, str]) -> Iterator[str]:
    if wrong:
        yield '<section id="problems" aria-label="Problems"><ul>'
        for topic, text in wrong.items():
            yield f"<li><b>{html.escape(str(topic))}</b> {html.escape(str(text))}</li>"
        yield "</ul></section>"


def _groups(groups: Mapping[str, list[Fact]]) -> Iterator[str]:
    for name, group in groups.items():
        yield f"<section><h2>{name}</h2><dl>"
        for fact in group:
            title = f' title="{html.escape(fact.more)}"' if fact.more else ""
            yield f'<div class="{fact.level}"><dt>{fact.name}</dt><dd{title}>{html.escape(fact.value)}</dd></div>'
        yield "</dl></section>"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], path: Path) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.path = path
        self._room = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a client went away", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "hadanet"
    sys_version = ""
    timeout = CLIENT_S

    def do_GET(self) -> None:
        if not _is_ours(self.headers.get("Host", "")):
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"call this computer by its name or address\n")
            return
        path = self.path.split("?")[0]
        file = FILES / path[1:]
        if path in ("/", "/status.json"):
            try:
                fields, problem = status.read(self.server.path), ""
            except HadanetError as error:
                fields, problem = {}, str(error)
            if path == "/":
                self._answer(HTTPStatus.OK, "text/html", render(fields, problem).encode())
            else:
                self._answer(HTTPStatus.OK, "application/json", msgspec.json.encode(fields or {"problem": problem}))
        elif "/" not in path[1:] and file.suffix in TYPES and file.is_file():
            self._answer(HTTPStatus.OK, TYPES[file.suffix], file.read_bytes())
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page\n")

    do_HEAD = do_GET

    def _answer(self, code: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(code)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind if kind.startswith("image/") else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def _is_ours(host: str) -> bool:
    """Whether a browser asked for this computer: a foreign page must not reach it by a name of its own."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        own = socket.gethostname().lower()
        return name in ("localhost", own, f"{own}.local", own.removesuffix(".local"))
    return True


def serve(path: Path, address: str, parent: int) -> None:
    """Serve the page for the status file at `path` until the parent process is gone."""
    host, _, port = address.rpartition(":")
    told = ""
    while os.getppid() == parent:
        try:
            server = _Server((host.strip("[]"), int(port)), path)
        except (OSError, OverflowError) as error:
            problem = (
                f"no status page at {address}: {getattr(error, 'strerror', None) or error}; set  address  in [page]"
            )
            if problem != told:
                _log.warning("%s (trying again every %g s)", problem, AGAIN_S)
            told = problem
            time.sleep(AGAIN_S)
            continue
        with server:
            threading.Thread(target=server.serve_forever, name="page", daemon=True).start()
            while os.getppid() == parent:
                time.sleep(1.0)
            return


def main(argv: list[str] | None = None) -> int:
    """Start the page's process; only the supervisor calls this."""
    parser = argparse.ArgumentParser(prog="onboard-page", description=__doc__)
    parser.add_argument("status", type=Path, help="the status file")
    parser.add_argument("--address", required=True, help="HOST:PORT")
    args = parser.parse_args(argv)
    logging.basicConfig(format="page: %(levelname)s: %(message)s", level=logging.WARNING)
    serve(args.status, args.address, os.getppid())
    return 0


if __name__ == "__main__":
    sys.exit(main())
