"""The simulated operator: true, late, and by both ways to the drone."""

import http.server
import json
import socket
import threading

import numpy as np
import pytest

from link.messages import Label, Query
from models.errors import LinkError
from onboard import operator as module
from onboard.frame import Frame, Pose
from onboard.operator import Operator, straight, through_station
from onboard.truth import UNKNOWN, Truth

CLASSES = ("object", "road")
GRID = np.array([[0, 1], [UNKNOWN, 0]], np.int16)
TRUTH = Truth(CLASSES, 2, 2, {"f": GRID}, {"f": GRID}.get)


def frame(index: int, name: str = "f") -> Frame:
    return Frame(index=index, t_ns=0, name=name, image=np.zeros((4, 4, 3), np.uint8), pose=Pose())


def query(number: int, at: int, row: int = 0, col: int = 0) -> Query:
    return Query(
        id=number,
        frame=at,
        frame_name="f",
        t_ns=0,
        row=row,
        col=col,
        track=0,
        guess=0,
        confidence=0.0,
        jpeg=b"",
    )


@pytest.mark.parametrize("delay", [0, 1, 5])
def test_answers_come_late_and_are_true(delay):
    given = []
    operator = Operator(TRUTH, delay, lambda asked, answer: given.append((asked.id, answer)))
    truth = [("object", 0, 0), ("road", 0, 1), ("", 1, 0), ("object", 1, 1)]
    for at in range(10):
        operator.answer(at)
        assert given == [(i, truth[i % 4][0]) for i in range(min(at, at - delay + 1))]
        operator.ask((query(at, at, *truth[at % 4][1:]),), frame(at))


def test_a_frame_without_truth_is_not_known():
    given = []
    operator = Operator(TRUTH, 0, lambda asked, answer: given.append(answer))
    operator.ask((query(1, 0), query(2, 0, row=7)), frame(0, "unknown"))
    operator.answer(0)
    assert given == ["", ""]


def test_straight_to_the_flight():
    labels = []
    straight(labels.append)(query(9, 0), "road")
    assert labels == [Label(id=9, query=9, answer="road")]


# --- through a station's page, here an HTTP server of the test --------------------------------------------------------


class Page(http.server.BaseHTTPRequestHandler):
    statuses: list[int]
    heard: list[tuple[str, dict[str, str]]]

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.heard.append((self.path, body))
        status = self.statuses.pop(0) if self.statuses else 200
        answer = b'{"error": "the answer is known already"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def page():
    Page.statuses, Page.heard = [], []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_answer_goes_to_the_page(page):
    through_station(page + "/", "kite-7")(query(2**62, 0), "road")
    assert Page.heard == [("/api/labels", {"drone": "kite-7", "query": str(2**62), "answer": "road"})]


def test_a_question_that_is_still_under_way_is_asked_for_again(page):
    Page.statuses = [404, 404]
    through_station(page, "kite-7")(query(1, 0), "road")
    assert len(Page.heard) == 3


def test_a_refusal_says_why(page, monkeypatch):
    Page.statuses = [409]
    with pytest.raises(LinkError, match=r"/api/labels: the station refused an answer: .*known already"):
        through_station(page, "kite-7")(query(1, 0), "road")
    monkeypatch.setattr(module, "HTTP_TIMEOUT_S", 0.1)
    Page.statuses = [404] * 1000
    with pytest.raises(LinkError, match="refused"):
        through_station(page, "kite-7")(query(1, 0), "road")


def test_pages_that_are_none():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for address, word in (
        (f"http://127.0.0.1:{port}", "is `ground serve` running"),
        ("localhost:8080", "no answer"),
        ("nonsense", "not an address of a page"),
        ("http://127.0.0.1:port", "no answer"),
        ("", "not an address of a page"),
    ):
        with pytest.raises(LinkError, match=word):
            through_station(address, "kite-7")(query(1, 0), "road")


def test_a_server_that_does_not_speak_http():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk():
            with server.accept()[0] as connection:
                connection.recv(10_000)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(LinkError, match="no answer"):
            through_station(f"http://127.0.0.1:{server.getsockname()[1]}", "kite-7")(query(1, 0), "road")
        thread.join()
