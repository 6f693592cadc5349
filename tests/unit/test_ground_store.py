"""The station's database: what was committed stays, what came twice counts once, answers are append only."""

import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import msgspec
import pytest

from ground.rows import Given, Unsent
from ground.store import ConflictError, StorageError, Store, UnknownError
from link.messages import Delta, Detections, Query, Status
from tests.ground_flight import hello, small_model

BIG = 2**64 - 1


def query(number, **fields):
    defaults = {"frame": 4, "frame_name": "f4.jpg", "t_ns": 9, "row": 1, "col": 2, "track": 3, "guess": 0}
    return Query(**{"id": number, "confidence": 0.5, "jpeg": b"\xff\xd8", **defaults, **fields})


@pytest.fixture
def store(tmp_path):
    store = Store.in_folder(tmp_path / "data")
    yield store
    store.close()


def rows(tmp_path, sql):
    """Read the file with the standard library: independent of the store's own code."""
    with sqlite3.connect(tmp_path / "data" / "station.db") as db:
        found = db.execute(sql).fetchall()
    db.close()
    return found


def test_a_question_that_comes_twice_is_there_once(store, tmp_path):
    assert store.add_query("kestrel", query(BIG), "object")
    assert not store.add_query("kestrel", query(BIG, frame=5), "road")
    assert store.add_query("owl", query(BIG), "object")
    assert rows(tmp_path, "SELECT drone, id, frame FROM queries ORDER BY n") == [
        ("kestrel", str(BIG), 4),
        ("owl", str(BIG), 4),
    ]
    assert store.query("kestrel", BIG).guess == "object"
    assert store.jpeg("owl", BIG) == b"\xff\xd8"


def test_open_questions_come_in_the_order_of_arrival(store):
    numbers = [5, 2, BIG, 1]
    for number in numbers:
        store.add_query("kestrel", query(number), "object")
    store.add_label("kestrel", 2, "road")
    assert [q.id for q in store.open_queries("kestrel", 10)] == [5, BIG, 1]
    assert [q.id for q in store.open_queries("kestrel", 2)] == [5, BIG]
    assert store.count_open("kestrel") == 3
    assert [(q.id, q.answer) for q in store.latest_queries("kestrel", 3)] == [(2, "road"), (BIG, None), (1, None)]


def test_an_answer_is_unique_grows_and_is_on_disk_before_it_is_sent(store, tmp_path, monkeypatch):
    for number in (1, 2):
        store.add_query("kestrel", query(number), "object")
    first = store.add_label("kestrel", 1, "road")
    monkeypatch.setattr("ground.store.time.time_ns", lambda: 1_000)  # the clock was set back
    second = store.add_label("kestrel", 2, "")
    assert first < second < 2**63
    assert rows(tmp_path, "SELECT query, answer, sent FROM labels ORDER BY id") == [("1", "road", 0), ("2", "", 0)]
    assert store.unsent("kestrel") == [Unsent("kestrel", first, 1, "road"), Unsent("kestrel", second, 2, "")]
    store.mark_sent(store.unsent("kestrel")[0])
    assert store.unsent("kestrel") == [Unsent("kestrel", second, 2, "")]
    assert store.unsent("owl") == []


def test_undo_opens_the_question_again_and_keeps_the_answer(store, tmp_path):
    store.add_query("kestrel", query(1), "object")
    label = store.add_label("kestrel", 1, "road")
    with pytest.raises(ConflictError, match="already has the answer 'road'"):
        store.add_label("kestrel", 1, "trees")
    store.mark_sent(store.unsent("kestrel")[0])
    assert store.undo_label(label) == ("kestrel", 1)
    assert store.undo_label(label) == ("kestrel", 1)
    assert store.unsent("kestrel") == [Unsent("kestrel", label)]
    assert store.query("kestrel", 1).answer is None
    second = store.add_label("kestrel", 1, "trees")
    assert [(q.label, q.answer) for q in store.answered()] == [(second, "trees")]
    assert rows(tmp_path, "SELECT answer FROM labels ORDER BY id") == [("road",), ("trees",)]
    assert store.count_labels("kestrel") == 1


def test_an_undo_is_not_sent_before_its_answer(store):
    store.add_query("kestrel", query(1), "object")
    label = store.add_label("kestrel", 1, "road")
    store.undo_label(label)
    (answer,) = store.unsent("kestrel")
    assert answer.answer == "road"
    store.mark_sent(answer)
    assert store.unsent("kestrel") == [Unsent("kestrel", label)]


def test_what_is_wrong_and_what_is_new_is_kept_and_sent(store, tmp_path):
    for number in (1, 2, 3):
        store.add_query("kestrel", query(number), "road")
    assert not store.query("kestrel", 1).wrong
    wrong = store.add_label("kestrel", 1, "road", wrong=True)
    rock = store.add_label("kestrel", 2, "rock", new=True)
    assert store.unsent("kestrel") == [
        Unsent("kestrel", wrong, 1, "road", wrong=True),
        Unsent("kestrel", rock, 2, "rock", new=True),
    ]
    assert rows(tmp_path, 'SELECT answer, wrong, "new" FROM labels ORDER BY id') == [("road", 1, 0), ("rock", 0, 1)]
    assert [(q.answer, q.wrong, q.new) for q in store.answered()] == [("road", True, False), ("rock", False, True)]
    with pytest.raises(ConflictError, match="already has the answer not 'road'"):
        store.add_label("kestrel", 1, "trees")


def test_new_classes_are_those_of_answers_in_force(store):
    for number in (1, 2, 3, 4):
        store.add_query("kestrel", query(number), "road")
    first = store.add_label("kestrel", 1, "rock", new=True)
    store.add_label("kestrel", 2, "mud", new=True)
    second = store.add_label("kestrel", 3, "rock", new=True)
    store.add_label("kestrel", 4, "road")
    assert store.new_classes("kestrel") == ["rock", "mud"]
    assert store.new_classes("owl") == []
    store.undo_label(first)
    assert store.new_classes("kestrel") == ["mud", "rock"]
    store.undo_label(second)
    assert store.new_classes("kestrel") == ["mud"]


def test_answers_are_stored_all_or_none(store):
    store.add_query("kestrel", query(1), "object")
    with pytest.raises(UnknownError, match="has not asked question 7"):
        store.add_labels([Given("kestrel", 1, "road"), Given("kestrel", 7, "road")])
    assert store.count_labels("kestrel") == 0
    with pytest.raises(UnknownError, match="no answer 12"):
        store.undo_label(12)


def test_drones_and_deltas_survive_a_restart(store, tmp_path):
    base = small_model()
    greeting = msgspec.structs.replace(hello(base, base), boot=BIG)
    store.save_drone("kestrel", greeting)
    store.save_drone("kestrel", greeting)
    a, b, c = (bytes([i]) * 32 for i in (1, 2, 3))

    def change(parent, result, frame, reason="learned"):
        return Delta(parent=parent, result=result, frame=frame, payload=b"x", reason=reason)

    steps = [change(a, b, 1), change(b, c, 2), change(a, c, 3, "resync"), change(c, b, 4)]
    for step in steps:
        store.add_delta("kestrel", a, step)
    store.close()
    again = Store.in_folder(tmp_path / "data")
    (row,) = again.drones()
    assert (row.boot, row.classes, row.base_hash.hex()) == (BIG, base.classes, base.hash)
    assert again.deltas("kestrel", a) == steps[2:]  # a resync starts over at the base
    assert again.deltas("kestrel", b) == []
    assert again.has_delta("kestrel", steps[1])
    assert not again.has_delta("kestrel", change(b, c, 9))
    again.close()


def test_the_history_is_thinned_and_the_track_kept(store, tmp_path):
    for i in range(50):
        store.add_status("kestrel", Status(frame=i, t_ns=i, lat_deg=47.0 + (i // 10) * 1e-4, lon_deg=8.0))
    store.add_status("kestrel", Status(frame=50, t_ns=50))
    assert store.track("kestrel", 100) == [(pytest.approx(47.0 + i * 1e-4), 8.0) for i in range(5)]
    store.add_query("kestrel", query(1, t_ns=51, lat_deg=47.1, lon_deg=8.0), "road")  # where the tile is, not the drone
    assert store.track("kestrel", 1) == [(pytest.approx(47.0004), 8.0)]
    assert rows(tmp_path, "SELECT count(*) FROM statuses") == [(1,)]
    assert store.last_status("kestrel").frame == 0
    for frame in (1, 2):
        store.save_detections(
            "kestrel", Detections(frame=frame, t_ns=0, rows=1, cols=1, classes=b"\1", confidence=b"\2")
        )
    assert store.detections("kestrel").frame == 2


@pytest.mark.parametrize("url", ["station.db", "nosuch://host/name", "sqlite:////no/such/folder/station.db"])
def test_a_database_that_cannot_be_opened_is_told(url):
    with pytest.raises(StorageError):
        Store(url)


def test_a_database_that_is_none_or_of_another_version_is_told(tmp_path):
    (tmp_path / "station.db").write_bytes(b"no database at all, but long enough to look like one" * 20)
    with pytest.raises(StorageError, match="not a database"):
        Store.in_folder(tmp_path)
    Store.in_folder(tmp_path / "data").close()
    with sqlite3.connect(tmp_path / "data" / "station.db") as db:
        db.execute("UPDATE schema SET version = 99")
    db.close()
    with pytest.raises(StorageError, match="version 99"):
        Store.in_folder(tmp_path / "data")


# The table as version 1 made it, written down from its file.
LABELS_OF_VERSION_1 = """
    DROP TABLE labels;
    CREATE TABLE labels (id BIGINT NOT NULL, drone VARCHAR(64) NOT NULL, query VARCHAR(20) NOT NULL,
        answer VARCHAR NOT NULL, t_ns BIGINT NOT NULL, sent BOOLEAN NOT NULL, PRIMARY KEY (id));
    CREATE INDEX ix_labels_query ON labels (query);
    CREATE INDEX ix_labels_sent ON labels (sent);
    INSERT INTO labels VALUES (7, 'kestrel', '1', 'road', 9, {true}), (8, 'kestrel', '2', '', 9, {false});
    UPDATE schema SET version = 1;
"""


def check_a_store_of_version_1(open_store):
    for _ in range(2):  # the second time it is of today's version
        store = open_store()
        assert [(q.label, q.answer, q.wrong, q.new) for q in store.answered()][:2] == [
            (7, "road", False, False),
            (8, "", False, False),
        ]
        assert store.unsent("kestrel")[0] == Unsent("kestrel", 8, 2, "")
        store.close()
    store = open_store()
    store.add_label("kestrel", 3, "road", wrong=True)
    store.add_label("kestrel", 4, "rock", new=True)
    assert [(q.answer, q.wrong) for q in store.answered()][2:] == [("road", True), ("rock", False)]
    assert store.new_classes("kestrel") == ["rock"]
    assert store.undo_label(7) == ("kestrel", 1)
    store.close()


def test_a_file_of_version_1_is_brought_up_to_date(tmp_path):
    store = Store.in_folder(tmp_path / "data")
    for number in (1, 2, 3, 4):
        store.add_query("kestrel", query(number), "road")
    store.close()
    with sqlite3.connect(tmp_path / "data" / "station.db") as db:
        db.executescript(LABELS_OF_VERSION_1.format(true=1, false=0))
    db.close()
    check_a_store_of_version_1(lambda: Store.in_folder(tmp_path / "data"))
    assert rows(tmp_path, "SELECT version FROM schema") == [(2,)]


@pytest.fixture
def postgres(tmp_path):
    """The URL of a PostgreSQL server of this test; it listens on a socket in a folder only."""
    pytest.importorskip("psycopg", reason="the extra fleet is not installed")
    tool = shutil.which("pg_ctl") or next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))), None)
    if tool is None:
        pytest.skip("no PostgreSQL server on this machine")
    # the server refuses to run as root
    other = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        if other is not None:
            os.chown(folder, other.pw_uid, other.pw_gid)

        def run(*arguments):
            uid, gid = (other.pw_uid, other.pw_gid) if other is not None else (None, None)
            subprocess.run(
                [tool, "-D", f"{folder}/data", *arguments],
                check=True, timeout=60, cwd=folder, user=uid, group=gid, extra_groups=None if uid is None else [],
                stdout=subprocess.DEVNULL, env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            )  # fmt: skip

        run("init", "-s", "-o", "-A trust -U kestrel --no-sync")
        run("start", "-w", "-s", "-l", f"{folder}/log", "-o", f"-k {folder} -c listen_addresses='' -c fsync=off")
        try:
            yield f"postgresql+psycopg://kestrel@/postgres?host={folder}"
        finally:
            run("stop", "-m", "immediate", "-s")


def test_a_postgresql_database_of_version_1_is_brought_up_to_date(postgres):
    store = Store(postgres)
    for number in (1, 2, 3, 4):
        store.add_query("kestrel", query(number), "road")
    with store._begin() as db:
        for statement in LABELS_OF_VERSION_1.format(true="true", false="false").split(";")[:-1]:
            db.exec_driver_sql(statement)
    store.close()
    check_a_store_of_version_1(lambda: Store(postgres))


def test_a_password_stays_out_of_messages():
    with pytest.raises(StorageError) as error:
        Store("postgresql+nosuchdriver://me:hunter2@host/name")
    assert "hunter2" not in str(error.value)
