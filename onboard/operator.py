"""A simulated operator for replays: answers the daemon's own questions from the truth, late."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable

from link.messages import Label, Query
from models.errors import LinkError
from onboard.frame import Frame
from onboard.truth import Truth

HTTP_TIMEOUT_S = 10.0
NOT_FOUND = 404
RETRY_S = 0.05


Deliver = Callable[[Query, str], None]
"""How an answer reaches the drone."""


class Operator:
    """Answers each question `delay` frames after it was asked: its class, or "" where the truth is ambiguous."""

    def __init__(self, truth: Truth, delay: int, deliver: Deliver) -> None:
        self._truth = truth
        self._delay = delay
        self._deliver = deliver
        self._open: deque[tuple[int, Query, str]] = deque()

    def ask(self, queries: tuple[Query, ...], frame: Frame) -> None:
        """Take the questions of a frame."""
        for query in queries:
            number = self._truth.label(frame, query.row, query.col)
            answer = "" if number is None else self._truth.classes[number]
            self._open.append((query.frame + self._delay, query, answer))

    def answer(self, frame: int) -> None:
        """Give the answers that are due at this frame."""
        while self._open and self._open[0][0] <= frame:
            _, query, answer = self._open.popleft()
            self._deliver(query, answer)


def straight(receive: Callable[[Label], None]) -> Deliver:
    """Answers go to the flight at once, as if a station had sent them."""

    def deliver(query: Query, answer: str) -> None:
        receive(Label(id=query.id, query=query.id, answer=answer))

    return deliver


def through_station(page: str, drone: str) -> Deliver:
    """Answers go to a ground station's page address, as a person's do; the station sends them up the link.

    A question may still be under way when its answer is due; the station is then asked again. Raises LinkError.
    """
    url = f"{page.rstrip('/')}/api/labels"

    def deliver(query: Query, answer: str) -> None:
        body = json.dumps({"drone": drone, "query": str(query.id), "answer": answer}).encode()
        deadline = time.monotonic() + HTTP_TIMEOUT_S
        while True:
            try:
                request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
                with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S):
                    return
            except urllib.error.HTTPError as error:
                if error.code != NOT_FOUND or time.monotonic() > deadline:
                    text = error.read(500).decode(errors="replace")
                    raise LinkError(f"{url}: the station refused an answer: {text}") from error
            except ValueError as error:
                raise LinkError(f"{url}: not an address of a page ({error}); give one like http://host:8080") from error
            except (OSError, http.client.HTTPException) as error:
                raise LinkError(f"{url}: no answer ({error}); is `ground serve` running?") from error
            time.sleep(RETRY_S)

    return deliver
