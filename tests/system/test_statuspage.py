"""The drone's status page: a real daemon's, over HTTP and in a real Chromium."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import threading
import time

import pytest

from onboard import status, statuspage
from onboard.boot import LEARNER_NICE
from onboard.service import PAGE_NICE
from tests.system.onboard_process import WAIT_S, child, until
from tests.system.test_boot import Drone

chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOURCE = "sim://?seed=3&frames=4000&fps=8&live=1"
FIELDS = {"state": "x", "frame": 5, "camera": "frames come", "problems": {}}


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder))


@pytest.fixture
def drone(tmp_path):
    made = Drone(tmp_path / "drone", SOURCE, learn={"enabled": True})
    yield made
    made.kill()


@pytest.fixture
def server(tmp_path):
    """A server over a status file of the test's own, and that file."""
    path = tmp_path / "status.json"
    made = statuspage._Server(("127.0.0.1", 0), path)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made.server_address[1], path
    made.shutdown()
    made.server_close()
    thread.join()


def ask(port, path="/", method="GET", host=None):
    """(status, headers, body) of an answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)) as call:
        call.putrequest(method, path, skip_host=True)
        call.putheader("Host", host or f"127.0.0.1:{port}")
        call.endheaders()
        answer = call.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()


def test_it_answers_and_changes_nothing(server):
    port, path = server
    code, _, body = ask(port)
    assert (code, "Nothing flies" in body, "is the daemon running" in body) == (200, True, True)
    status.write(path, FIELDS)
    code, headers, body = ask(port)
    assert (code, "All is well" in body, "frames come" in body) == (200, True, True)
    assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert json.loads(ask(port, "/status.json")[2])["frame"] == 5
    assert ask(port, method="HEAD")[2] == ""
    for file in ("page.css", "page.js", "icon.svg"):
        assert ask(port, f"/{file}")[0] == 200
    for wrong in ("/../statuspage.py", "/statuspage.py", "/page", "//etc/passwd", "/%2e%2e/slots.py", "/.css"):
        assert ask(port, wrong)[0] == 404, wrong
    for method in ("POST", "PUT", "DELETE"):
        assert ask(port, method=method)[0] == 501


def test_a_foreign_page_reaches_nothing_by_a_name_of_its_own(server):
    port, path = server
    status.write(path, FIELDS)
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        if host:
            code, _, body = ask(port, host=host)
            assert (code, "frames come" in body) == (421, False), host
    for host in ("localhost:1", "127.0.0.1", "[::1]:8081", "192.168.1.7:8081", socket.gethostname()):
        assert ask(port, host=host)[0] == 200, host


def test_what_others_say_is_text(server):
    port, path = server
    status.write(path, FIELDS | {"problems": {"<b>": "<script>alert(1)</script>"}, "link": '"><img src=x>'})
    body = ask(port)[2]
    assert "<script>alert" not in body
    assert "<img src=x" not in body
    assert "&lt;script&gt;" in body


def test_a_status_that_is_old_is_no_news(server, monkeypatch):
    port, path = server
    status.write(path, FIELDS)
    monkeypatch.setattr(statuspage.status, "SILENT_S", -1.0)
    body = ask(port)[2]
    assert "it has said nothing for" in body
    path.write_text(json.dumps({"pid": 2**22 + 1, "written_s": 1.0, "boot_id": status.boot_id()}))
    assert "the daemon is not running; it ended" in ask(port)[2]


def test_clients_that_are_slow_or_many_shut_nobody_out_for_long(server, monkeypatch):
    port, path = server
    status.write(path, FIELDS)
    monkeypatch.setattr(statuspage._Handler, "timeout", 0.5)
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    assert ask(port)[0] == 200
    slow += [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * statuspage.MAX_CLIENTS)]

    def answered():
        with contextlib.suppress(OSError, http.client.HTTPException):
            return ask(port)[0] == 200

    until(answered, "the page does not come back")
    for sock in slow:
        sock.close()


def test_an_address_that_is_taken_is_told_and_tried_again(tmp_path, drone):
    host, port = drone.address.split(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        drone.start()
        status_ = drone.until(lambda s: s["frame"] > 0)
        until(lambda: "no status page at" in drone.err.read_text(), drone.err.read_text)
        drone.flies_on(status_)
    until(drone.page, drone.err.read_text)
    assert drone.err.read_text().count("no status page at") == 1
    assert drone.stop() == 0


def test_the_page_stands_back_and_may_be_asked_without_end(drone):
    """Asked as fast as it answers, by four at a time: the flight loses no frame to it."""
    drone.start()
    before = drone.until(lambda s: s["frame"] > 16)
    page = child(drone.process.pid, "onboard.statuspage")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for name, nice in ("onboard.statuspage", PAGE_NICE), ("onboard.worker", LEARNER_NICE), ("onboard.daemon", 0):
        assert os.getpriority(os.PRIO_PROCESS, child(drone.process.pid, name)) == min(19, own + nice)
    end, asked = time.monotonic() + 5, [0] * 4

    def hammer(number):
        while time.monotonic() < end:
            asked[number] += bool(drone.page())

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = drone.until(lambda s: s["frame"] > before["frame"] + 32)
    print(
        f"{sum(asked)} answers; latency {before['latency_ms']} ms before, {after['latency_ms']} ms with them; "
        f"dropped {before['dropped']} and {after['dropped']}"
    )
    assert sum(asked) > 20
    os.kill(page, 9)  # and without it everything goes on
    until(lambda: child(drone.process.pid, "onboard.statuspage") not in (None, page), drone.err.read_text)
    assert drone.status()["pid"] == after["pid"]
    assert drone.stop() == 0


@pytest.mark.skipif(chromium is None, reason="no Chromium on this machine")
def test_in_a_browser(drone):
    """The content comes without a reload: frames, a learner that is gone, and a drone that is."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    expect = sync_api.expect
    drone.start()
    drone.until(lambda s: s["frame"] > 8)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 390, "height": 844})
        context.set_default_timeout(WAIT_S * 1000)
        expect.set_options(timeout=WAIT_S * 1000)
        page = context.new_page()
        problems, hosts = [], set()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.goto(f"http://{drone.address}/")
        expect(page.locator("h1")).to_have_text("All is well")
        frame = page.locator("dt:text-is('Frame') + dd")
        first = int(frame.inner_text().replace(",", ""))
        page.wait_for_function(
            "first => Number(document.evaluate(\"//dt[.='Frame']/following-sibling::dd\", document, null, 2)"
            ".stringValue.replace(',', '')) > first",
            arg=first,
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # on a phone, without scrolling
        assert page.title().startswith("All is well")
        os.kill(child(drone.process.pid, "onboard.worker"), 19)
        expect(page.locator("dt:text-is('Learner') + dd")).to_have_text("away")
        os.kill(child(drone.process.pid, "onboard.worker"), 18)
        expect(page.locator("dt:text-is('Learner') + dd")).to_have_text("learning")
        assert (problems, hosts) == ([], {drone.address})
        assert drone.stop() == 0
        expect(page.locator("#lost")).to_be_visible()
        browser.close()
