"""The HTTP API: what it gives, what it takes, and whom it refuses."""

import asyncio
import csv
import io

import httpx
import pytest

from ground.station import Station
from ground.store import Store
from ground.web import MAX_EVENTS, Events, make_app
from link.messages import Query
from tests.ground_flight import CLASSES, flight, hello, learned, small_model, step
from tests.unit.test_ground_station import Wire

FIRST = str(7 << 32)


@pytest.fixture(scope="module")
def station(tmp_path_factory):
    """A station after eight frames with two questions; a test that answers one takes the answer back."""
    store = Store.in_folder(tmp_path_factory.mktemp("station"))
    base = small_model()
    station = Station(store, lambda base_hash, classes: base)
    station.attach(Wire())
    station.receive("kestrel", hello(base, base))
    station.receive("kestrel", step(base, learned(base, 1), 0))
    for messages in flight(8):
        for message in messages:
            station.receive("kestrel", message)
    station.store = store
    yield station
    store.close()


class Client:
    """Asks the application itself, without a socket; the system tests go through one."""

    def __init__(self, station, bound="127.0.0.1"):
        self.app = make_app(station, station.store, Events(), bound)

    def request(self, method, path, **kwargs):
        async def ask():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(ask())

    def get(self, path, **kwargs):
        return self.request("GET", path, **kwargs)

    def post(self, path, **kwargs):
        return self.request("POST", path, **kwargs)

    def delete(self, path, **kwargs):
        return self.request("DELETE", path, **kwargs)


@pytest.fixture
def client(station):
    return Client(station)


def post(client, **body):
    return client.post("/api/labels", json={"drone": "kestrel", "query": FIRST, "answer": "road", **body})


def test_state(client):
    (drone,) = client.get("/api/state").json()["drones"]
    assert (drone["name"], drone["connected"], drone["classes"]) == ("kestrel", True, list(CLASSES))
    assert drone["mirror_equal"]
    assert drone["mirror_hash"] == drone["model_hash"] == learned(small_model(), 1).hash
    assert len(drone["track"]) == 8
    assert drone["asked"] == [[*drone["track"][0], None, FIRST], [*drone["track"][4], None, str((7 << 32) + 4)]]
    assert (drone["seen"]["frame"], len(drone["seen"]["classes"])) == (7, 24)
    assert drone["link"]["problem"] == "no drone 'kestrel' is enrolled"


def test_questions_and_their_pictures(client):
    data = client.get("/api/queries?drone=kestrel").json()
    assert data["open"] == 2
    assert [q["id"] for q in data["queries"]] == [FIRST, str((7 << 32) + 4)]
    picture = client.get(data["queries"][0]["url"])
    question = next(m for messages in flight(1) for m in messages if isinstance(m, Query))
    assert (picture.headers["content-type"], picture.content) == ("image/jpeg", question.jpeg)


def test_an_answer_and_its_undo(client, station):
    response = post(client)
    assert response.status_code == 201
    label = response.json()["label"]
    assert client.get("/api/queries?drone=kestrel").json()["open"] == 1
    rows = list(csv.DictReader(io.StringIO(client.get("/api/labels.csv").text)))
    assert [(r["drone"], r["query"], r["answer"], r["label"]) for r in rows] == [("kestrel", FIRST, "road", label)]
    assert post(client, answer="trees").status_code == 409
    assert client.delete(f"/api/labels/{label}").json() == {"label": label}
    assert client.get("/api/queries?drone=kestrel").json()["open"] == 2
    response = post(client, answer="")
    assert response.status_code == 201
    client.delete(f"/api/labels/{response.json()['label']}")


def test_a_verdict_and_a_new_class(client, station):
    def give(**body):
        response = client.post("/api/labels", json={"drone": "kestrel", "query": FIRST, **body})
        assert response.status_code == 201
        (drone,) = client.get("/api/state").json()["drones"]
        (row,) = csv.DictReader(io.StringIO(client.get("/api/labels.csv").text))
        label = response.json()["label"]
        assert client.delete(f"/api/labels/{label}").status_code == 200
        recent = drone["recent"][0]
        return (recent["answer"], recent["wrong"], recent["new"]), drone["pending"], (row["answer"], row["wrong"])

    guess = client.get("/api/queries?drone=kestrel").json()["queries"][0]["guess"]
    assert guess in CLASSES
    assert give(verdict="right") == ((guess, False, False), [], (guess, ""))
    assert give(verdict="wrong") == ((guess, True, False), [], ("", guess))
    assert give(answer="rock", new=True) == (("rock", False, True), ["rock"], ("rock", ""))
    assert give(answer="Trees", new=True) == (("trees", False, False), [], ("trees", ""))
    assert client.get("/api/state").json()["drones"][0]["pending"] == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "either an answer, which may be new, or a verdict"),
        ({"answer": "road", "verdict": "right"}, "either an answer"),
        ({"verdict": "right", "new": True}, "either an answer"),
        ({"verdict": "maybe"}, "'maybe'"),
        ({"answer": "rock", "new": "yes"}, "bool"),
        ({"answer": "", "new": True}, "'' cannot name a class"),
        ({"answer": "rock "}, "does not know the class 'rock '"),
        ({"answer": "rock ", "new": True}, "'rock ' cannot name a class"),
    ],
)
def test_labels_that_make_no_sense(client, body, reason):
    response = client.post("/api/labels", json={"drone": "kestrel", "query": FIRST, **body})
    assert (response.status_code, reason in response.json()["error"]) == (400, True), response.text


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"answer": "volcano"}, 400, "does not know the class"),
        ({"query": "5"}, 404, "has not asked question 5"),
        ({"query": "five"}, 400, "not the number of a question"),
        ({"query": str(2**64)}, 400, "not the number of a question"),
        ({"query": 5}, 400, "drone, query, answer"),
        ({"drone": "owl"}, 404, "no drone 'owl'"),
        ({"more": 1}, 400, "unknown field"),
        ({"answer": "x" * 5000}, 413, "larger than"),
    ],
)
def test_answers_that_are_refused(client, body, status, reason):
    response = post(client, **body)
    assert response.status_code == status
    assert reason in response.json()["error"]
    assert client.get("/api/queries?drone=kestrel").json()["open"] == 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("GET", "/api/queries", 404),
        ("GET", "/api/queries?drone=owl", 404),
        ("GET", "/api/queries/kestrel/5.jpg", 404),
        ("GET", "/api/queries/kestrel/x.jpg", 400),
        ("GET", "/static/../web.py", 404),
        ("GET", "/static/%2e%2e/web.py", 404),
        ("DELETE", "/api/labels/5", 404),
        ("DELETE", f"/api/labels/{2**63}", 400),
        ("PUT", "/api/labels", 405),
        ("POST", "/api/labels", 400),
        ("POST", "/api/control", 400),
    ],
)
def test_other_requests_that_are_refused(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]


def test_commands(client, station):
    assert client.post("/api/control", json={"drone": "kestrel", "action": "freeze"}).status_code == 200
    response = client.post("/api/control", json={"drone": "kestrel", "action": "explode"})
    assert (response.status_code, "freeze, resume" in response.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("bound", "host", "good"),
    [
        ("127.0.0.1", "127.0.0.1:8080", True),
        ("127.0.0.1", "localhost:8080", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "[::1]:8080", True),
        ("::1", "[::1]:8080", True),
        ("127.0.0.1", "evil.example:8080", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "192.168.1.10:8080", False),
        ("127.0.0.1", "", False),
        ("0.0.0.0", "192.168.1.10:8080", True),
        ("0.0.0.0", "[fe80::1]:8080", True),
        ("0.0.0.0", "evil.example", False),
        ("station.local", "station.local:8080", True),
        ("station.local", "other.local:8080", False),
    ],
)
def test_only_its_own_names(station, bound, host, good):
    response = Client(station, bound).get("/api/state", headers={"host": host})
    assert response.status_code == (200 if good else 403)
    assert good or "does not answer to the name" in response.json()["error"]


@pytest.mark.parametrize(
    ("origin", "good"),
    [
        (None, True),
        ("http://127.0.0.1:8080", True),
        ("http://localhost:8080", False),
        ("http://127.0.0.1:9999", False),
        ("https://evil.example", False),
        ("null", False),
    ],
)
def test_changes_only_from_its_own_page(client, origin, good):
    headers = {} if origin is None else {"origin": origin}
    body = {"drone": "kestrel", "query": FIRST, "answer": "road"}
    response = client.post("/api/labels", json=body, headers=headers)
    assert response.status_code == (201 if good else 403)
    label = response.json().get("label", "1")
    assert client.delete(f"/api/labels/{label}", headers=headers).status_code == (200 if good else 403)


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/static/style.css", "/api/state", "/api/nothing"])
def test_security_headers(client, path):
    headers = client.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in headers["content-security-policy"]


async def collect(stream, count):
    return [await asyncio.wait_for(anext(stream), 5) for _ in range(count)]


def test_events_are_bounded_and_say_when_some_were_lost():
    async def scenario():
        events = Events()
        stream = events.stream(lambda kind, drone: {"name": drone})
        assert b"event: reload" in (await collect(stream, 1))[0]
        events.publish("drone", "kestrel")
        events.publish("drone", "kestrel")
        events.publish("query", "kestrel")
        got = await collect(stream, 2)
        assert got == [b'event: drone\ndata: {"name":"kestrel"}\n\n', b'event: query\ndata: {"name":"kestrel"}\n\n']
        for i in range(MAX_EVENTS + 3):
            events.publish("drone", f"d{i}")
        assert b"event: reload" in (await collect(stream, 1))[0]
        assert events.dropped == 3
        events.close()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(stream), 5)
        assert not events._clients

    asyncio.run(scenario())
