"""The station's rules: mirrors that follow, resynchronise and survive; messages that make no sense; answers."""

import math

import msgspec
import pytest

from ground.rows import Given
from ground.serve import base_finder, parse_http
from ground.station import Station
from ground.store import StorageError, Store, UnknownError
from link.messages import Control, Label, Mirror, Query, Status, Undo, Welcome
from models import artifact
from models.errors import ArtifactError, LinkError, StationError
from tests.ground_flight import CLASSES, flight, hello, learned, small_model, step


class Wire:
    """Notes what the station hands to the link; the system tests use the real one."""

    def __init__(self):
        self.posted = []
        self.up = True
        self.fails = False

    def post(self, drone, message):
        if self.fails:
            raise LinkError("the outbox is full")
        self.posted.append((drone, message))

    def connected(self, drone):
        return self.up

    def stats(self, drone):
        raise LinkError(f"no drone '{drone}' is enrolled")

    def take(self, kind):
        found = [m for _, m in self.posted if isinstance(m, kind)]
        self.posted = [(d, m) for d, m in self.posted if not isinstance(m, kind)]
        return found


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Bench:
    """A station with its database, which can be started again."""

    def __init__(self, folder):
        self.folder = folder
        self.base = small_model()
        self.bases = {self.base.hash: self.base}
        self.clock = Clock()
        self.start()

    def find(self, base_hash, classes):
        try:
            return self.bases[base_hash.hex()]
        except KeyError:
            raise ArtifactError("no such base model") from None

    def start(self):
        self.store = Store.in_folder(self.folder)
        self.station = Station(self.store, self.find, self.clock)
        self.wire = Wire()
        self.station.attach(self.wire)

    def restart(self):
        self.store.close()
        self.start()

    def receive(self, message):
        self.station.receive("kestrel", message)

    @property
    def state(self):
        return self.station.describe("kestrel")


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


@pytest.fixture
def query():
    return next(m for messages in flight(1) for m in messages if isinstance(m, Query))


def test_a_mirror_follows_and_survives(bench):
    models = [bench.base]
    bench.receive(hello(bench.base, bench.base))
    assert bench.wire.take(Welcome)[0].mirror_hash.hex() == bench.base.hash
    for i in range(1, 4):
        models.append(learned(models[-1], i))
        bench.receive(step(models[-2], models[-1], i))
        (answer,) = bench.wire.take(Mirror)
        assert (answer.model_hash.hex(), answer.deltas) == (models[-1].hash, i)
    assert bench.state["mirror"] == "equal"
    bench.restart()
    assert bench.state["mirror_hash"] == models[-1].hash
    bench.receive(hello(bench.base, models[-1]))
    assert bench.wire.take(Welcome)[0].mirror_hash.hex() == models[-1].hash
    bench.station.tick()
    assert bench.wire.posted == []


def test_a_delta_delivered_again_changes_nothing(bench):
    one, two = learned(bench.base, 1), learned(learned(bench.base, 1), 2)
    bench.receive(hello(bench.base, bench.base))
    deltas = [step(bench.base, one, 1), step(one, two, 2)]
    for delta in [*deltas, deltas[1]]:
        bench.receive(delta)
    assert [m.model_hash.hex() for m in bench.wire.take(Mirror)] == [one.hash, two.hash, two.hash]
    assert bench.state["mirror_hash"] == two.hash
    assert bench.wire.take(Control) == []
    bench.restart()
    assert bench.state["mirror_hash"] == two.hash


def test_a_delta_that_does_not_fit_asks_for_everything_at_most_every_5_s(bench):
    lost, now = learned(bench.base, 1), learned(learned(bench.base, 1), 2)
    bench.receive(hello(bench.base, lost))
    for seconds in (0.0, 1.0, 3.9, 0.2):
        bench.clock.now += seconds
        bench.receive(step(lost, now, 9))
    assert [m.action for m in bench.wire.take(Control)] == ["resync", "resync"]  # at 0 s and at 5.1 s
    assert "does not fit" in bench.state["notices"][-1]["text"]
    assert bench.state["mirror"] == "differs"
    bench.receive(step(bench.base, now, 10, reason="resync"))
    assert bench.state["mirror_hash"] == now.hash
    bench.restart()
    assert bench.state["mirror_hash"] == now.hash


def test_a_model_that_no_delta_explains_is_asked_for_with_patience(bench):
    now = learned(bench.base, 1)
    bench.receive(hello(bench.base, now))
    bench.receive(Status(frame=1, t_ns=1, model_hash=bytes.fromhex(now.hash)))
    asked = []
    for second in range(40):
        bench.clock.now += 1
        bench.station.tick()
        asked += [second for _ in bench.wire.take(Control)]
        assert bench.state["mirror"] == ("behind" if second < 10 else "differs")
    assert asked == [10, 30]
    bench.receive(step(bench.base, now, 1, reason="resync"))
    assert bench.state["mirror"] == "equal"


def test_without_the_base_model_deltas_wait_for_it(bench):
    one, two = learned(bench.base, 1), learned(learned(bench.base, 1), 2)
    bases, bench.bases = bench.bases, {}
    bench.receive(hello(bench.base, bench.base))
    assert bench.wire.take(Welcome)[0].mirror_hash == b""
    bench.receive(step(bench.base, one, 1))
    bench.receive(step(one, two, 2))
    assert (bench.state["mirror"], bench.state["no_mirror"]) == ("none", "no such base model")
    bench.bases = bases
    bench.receive(hello(bench.base, two))
    assert bench.wire.take(Welcome)[0].mirror_hash.hex() == two.hash


def test_new_classes_come_with_the_model(bench):
    more = bench.base.with_classes((*CLASSES, "water"))
    bench.receive(hello(bench.base, bench.base))
    bench.receive(step(bench.base, more, 1, reason="classes"))
    assert bench.state["classes"] == (*CLASSES, "water")
    bench.receive(hello(bench.base, bench.base))  # which names the classes of the base
    assert bench.state["classes"] == (*CLASSES, "water")
    bench.restart()
    assert bench.state["classes"] == (*CLASSES, "water")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": -1}, "not a question's number"),
        ({"id": 2**64}, "not a question's number"),
        ({"row": 4}, "outside the grid"),
        ({"col": -1}, "outside the grid"),
        ({"jpeg": b"<svg>"}, "not a JPEG"),
        ({"jpeg": b"\xff\xd8" + bytes(200 * 1024)}, "not a JPEG"),
        ({"confidence": math.nan}, "confidence"),
        ({"track": 2**63}, "does not fit 64 bits"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_and_told(bench, query, fields, reason):
    bench.receive(hello(bench.base, bench.base))
    bench.receive(msgspec.structs.replace(query, **fields))
    assert bench.store.count_open("kestrel") == 0
    assert bench.state["refused"] == 1
    assert reason in bench.state["notices"][-1]["text"]


def test_a_question_with_odd_values_is_kept(bench, query):
    bench.receive(hello(bench.base, bench.base))
    bench.receive(
        msgspec.structs.replace(query, id=2**64 - 1, guess=99, lat_deg=math.nan, frame_name="\0" + "x" * 1000)
    )
    kept = bench.store.query("kestrel", 2**64 - 1)
    assert (kept.guess, kept.lat_deg, kept.lon_deg, kept.frame_name) == ("", None, None, "x" * 255)


def test_other_messages_that_make_no_sense(bench):
    greeting = hello(bench.base, bench.base)
    bench.receive(greeting)
    for bad in (
        {"base_hash": b"short"},
        {"classes": ()},
        {"classes": ("",)},
        {"classes": ("a\0",)},
        {"rows": 0},
        {"boot": 2**64},
    ):
        bench.receive(msgspec.structs.replace(greeting, **bad))
    _, seen, *_ = next(flight(1))
    bench.receive(msgspec.structs.replace(seen, rows=3))
    bench.receive(Undo(label=1))
    bench.receive(Status(frame=2**63, t_ns=0))
    assert bench.state["refused"] == 9
    bench.receive(Status(frame=1, t_ns=1, lat_deg=91.0, lon_deg=0.0, fps=math.inf, alt_m=math.nan, learner="x" * 999))
    assert msgspec.json.decode(msgspec.json.encode(bench.state))["status"]["fps"] == 0.0
    assert bench.station.describe_map("kestrel")["track"] == []
    assert bench.state["classes"] == CLASSES


def test_what_cannot_be_stored_stays_with_the_link(bench, query):
    bench.receive(hello(bench.base, bench.base))
    one = learned(bench.base, 1)
    with bench.store._begin() as db:
        db.exec_driver_sql("CREATE TRIGGER full BEFORE INSERT ON queries BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        db.exec_driver_sql("CREATE TRIGGER full2 BEFORE INSERT ON deltas BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    for message in (query, step(bench.base, one, 1)):
        with pytest.raises(StorageError, match="disk full"):
            bench.receive(message)
    assert bench.state["mirror_hash"] == bench.base.hash
    with bench.store._begin() as db:
        db.exec_driver_sql("DROP TRIGGER full")
        db.exec_driver_sql("DROP TRIGGER full2")
    for message in (query, step(bench.base, one, 1)):
        bench.receive(message)
    assert bench.state["mirror_hash"] == one.hash
    assert bench.store.count_open("kestrel") == 1


def test_an_answer_is_sent_and_an_undo_too(bench, query):
    bench.receive(hello(bench.base, bench.base))
    bench.receive(query)
    label = bench.station.answer(Given("kestrel", query.id, "road"))
    bench.station.undo(label)
    second = bench.station.answer(Given("kestrel", query.id, ""))
    wanted = [
        Label(id=label, query=query.id, answer="road"),
        Undo(label=label),
        Label(id=second, query=query.id, answer=""),
    ]
    assert [m for _, m in bench.wire.posted if not isinstance(m, Welcome)] == wanted


def test_an_answer_must_be_a_class_of_the_drone(bench, query):
    bench.receive(hello(bench.base, bench.base))
    bench.receive(query)
    with pytest.raises(StationError, match="does not know the class 'volcano'"):
        bench.station.answer(Given("kestrel", query.id, "volcano"))
    with pytest.raises(UnknownError, match="no drone 'owl'"):
        bench.station.answer(Given("owl", query.id, "road"))
    with pytest.raises(StationError, match="no action 'explode'"):
        bench.station.control("kestrel", "explode")
    assert bench.store.count_labels("kestrel") == 0


def test_right_and_wrong_are_about_the_guess(bench, query):
    bench.receive(hello(bench.base, bench.base))
    for number, guess in ((1, 1), (2, 2), (3, -1)):
        bench.receive(msgspec.structs.replace(query, id=number, guess=guess))
    right = bench.station.judge("kestrel", 1, right=True)
    wrong = bench.station.judge("kestrel", 2, right=False)
    with pytest.raises(StationError, match=r"question 3 .* no guess to be right or wrong: answer a class"):
        bench.station.judge("kestrel", 3, right=True)
    with pytest.raises(UnknownError, match="has not asked question 4"):
        bench.station.judge("kestrel", 4, right=True)
    bench.station.undo(wrong)
    sent = [m for _, m in bench.wire.posted if isinstance(m, Label | Undo)]
    assert sent == [
        Label(id=right, query=1, answer="road"),
        Label(id=wrong, query=2, answer="trees", wrong=True),
        Undo(label=wrong),
    ]
    again = bench.station.judge("kestrel", 2, right=False)
    place = bench.station.describe_map("kestrel")["asked"]
    assert [asked[2:] for asked in place] == [["road", "1"], ["", "2"], [None, "3"]]
    assert bench.store.answered()[-1].label == again


def test_a_new_class_waits_until_a_delta_confirms_it(bench, query):
    bench.receive(hello(bench.base, bench.base))
    for number in range(1, 6):
        bench.receive(msgspec.structs.replace(query, id=number))
    first = bench.station.answer(Given("kestrel", 1, "rock", new=True))
    assert (bench.state["classes"], bench.state["pending"]) == (CLASSES, ["rock"])
    second = bench.station.answer(Given("kestrel", 2, "rock"))  # no need to say it again
    bench.station.undo(first)
    assert bench.state["pending"] == ["rock"]
    assert bench.wire.take(Label) == [
        Label(id=first, query=1, answer="rock", new=True),
        Label(id=second, query=2, answer="rock", new=True),  # the drone may hear of it here for the first time
    ]
    bench.restart()
    assert bench.state["pending"] == ["rock"]
    more = bench.base.with_classes((*CLASSES, "rock"))
    bench.receive(step(bench.base, more, 1, reason="classes"))
    assert (bench.state["classes"], bench.state["pending"]) == ((*CLASSES, "rock"), [])
    third = bench.station.answer(Given("kestrel", 3, "rock"))
    road = bench.station.answer(Given("kestrel", 4, "road", new=True))  # it is there: just this class
    assert bench.wire.take(Label) == [
        Label(id=third, query=3, answer="rock"),
        Label(id=road, query=4, answer="road"),
    ]
    bench.receive(step(more, bench.base, 2, reason="anchor"))  # it forgot: an answer adds it again
    assert (bench.state["classes"], bench.state["pending"]) == (CLASSES, ["rock"])


def test_a_new_class_that_was_taken_back_is_gone(bench, query):
    bench.receive(hello(bench.base, bench.base))
    bench.receive(query)
    bench.station.undo(bench.station.answer(Given("kestrel", query.id, "rock", new=True)))
    assert bench.state["pending"] == []
    with pytest.raises(StationError, match="does not know the class 'rock'"):
        bench.station.answer(Given("kestrel", query.id, "rock"))


def test_an_answer_waits_where_the_link_does_not_take_it(bench, query):
    bench.receive(hello(bench.base, bench.base))
    bench.receive(query)
    bench.wire.fails = True
    label = bench.station.answer(Given("kestrel", query.id, "road"))
    bench.station.tick()
    bench.wire.fails = False
    bench.station.tick()
    bench.station.tick()
    assert bench.wire.take(Label) == [Label(id=label, query=query.id, answer="road")]


def test_an_answer_that_was_stored_but_not_sent_goes_out_at_the_next_start(bench, query):
    bench.receive(hello(bench.base, bench.base))
    bench.receive(query)
    label = bench.store.add_label("kestrel", query.id, "road")  # and here the process died
    bench.restart()
    assert bench.wire.posted == [("kestrel", Label(id=label, query=query.id, answer="road"))]
    bench.restart()
    assert bench.wire.posted == []


def test_base_models_are_found_by_hash_also_with_the_drones_classes(tmp_path):
    shipped = small_model(("anything",))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "broken.safetensors").write_bytes(b"no artifact")
    artifact.save(shipped, tmp_path / "more" / "shipped.safetensors")
    find = base_finder(tmp_path / "own", tmp_path / "more")
    flown = shipped.with_classes(CLASSES)
    assert find(bytes.fromhex(shipped.hash), CLASSES).hash == shipped.hash
    assert find(bytes.fromhex(flown.hash), CLASSES).hash == flown.hash
    assert find(bytes.fromhex(flown.hash), (*CLASSES, "water")).hash == flown.hash  # kept from before
    with pytest.raises(ArtifactError, match="000000 is not here"):
        find(bytes(32), CLASSES)


@pytest.mark.parametrize("http", ["", "8080", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", "http://x:1"])
def test_an_address_of_the_page_that_is_none(http):
    with pytest.raises(StationError, match="not HOST:PORT"):
        parse_http(http)


def test_an_address_of_the_page():
    assert parse_http("[::1]:0") == ("::1", 0)
