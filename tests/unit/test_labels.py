"""The label log: durable, in order, each answer once."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from link.messages import Label, Query, Undo
from models.errors import LinkError
from onboard.labels import LabelLog
from onboard.learner import GivenLabel


def query(log: LabelLog, number: int, frame: int = 3, row: int = 2, col: int = 5) -> Query:
    return Query(
        id=log.boot << 32 | number,
        frame=frame,
        frame_name="f",
        t_ns=0,
        row=row,
        col=col,
        track=0,
        guess=0,
        confidence=0.5,
        jpeg=b"",
    )


@pytest.fixture
def log(tmp_path):
    made = LabelLog(tmp_path / "labels.sqlite")
    yield made
    made.close()


def test_an_answer_comes_back_with_its_tile(log):
    asked = query(log, 1)
    log.asked(asked, 8, b"bits", b"scales")
    assert log.since(0) == []
    assert log.answered(Label(id=77, query=asked.id, answer="road"))
    (given,) = log.since(0)
    assert given == GivenLabel(given.position, 77, 3, 2 * 8 + 5, "road", b"bits", b"scales")
    assert given.position > 0
    assert log.last() == (given.position, 1)


def test_answers_are_in_order_and_undo_is_one_of_them(log):
    for number in range(5):
        asked = query(log, number)
        log.asked(asked, 8, bytes([number]), b"")
        log.answered(Label(id=100 - number, query=asked.id, answer=f"a{number}"))
    log.answered(Undo(label=98))
    given = log.since(0)
    assert [g.answer for g in given] == ["a0", "a1", "a2", "a3", "a4", ""]
    assert [g.id for g in given[:5]] == [100, 99, 98, 97, 96]
    assert given[5].undo == 98
    assert [g.undo for g in given[:5]] == [0] * 5
    positions = [g.position for g in given]
    assert positions == sorted(set(positions))
    for i, position in enumerate(positions):
        assert log.since(position) == given[i + 1 :]


def test_each_answer_counts_once(log):
    asked = query(log, 1)
    log.asked(asked, 8, b"bits", b"")
    label = Label(id=5, query=asked.id, answer="road")
    assert [log.answered(label), log.answered(label), log.answered(Undo(label=5)), log.answered(Undo(label=5))] == [
        True,
        False,
        True,
        False,
    ]
    assert not log.answered(Label(id=5, query=asked.id, answer="trees"))
    assert [g.answer for g in log.since(0)] == ["road", ""]
    log.asked(query(log, 1, frame=9), 8, b"other", b"")  # a question that was asked stays as it was
    assert log.since(0)[0].bits == b"bits"


def test_an_answer_to_what_was_never_asked_teaches_nothing(log):
    assert log.answered(Label(id=1, query=12345, answer="road"))
    (given,) = log.since(0)
    assert (given.answer, given.bits, given.frame) == ("", b"", -1)


def test_labels_of_an_earlier_flight_have_no_frame(tmp_path):
    """Frames count from 0 at every start: an old frame 3 is not the new frame 3."""
    path = tmp_path / "labels.sqlite"
    log = LabelLog(path)
    asked = query(log, 1)
    log.asked(asked, 8, b"bits", b"scales")
    log.answered(Label(id=1, query=asked.id, answer="road"))
    assert log.since(0)[0].frame == 3
    first = log.boot
    log.close()
    log = LabelLog(path)
    assert log.boot != first
    log.asked(query(log, 1), 8, b"new", b"")  # the same number, another boot
    log.answered(Label(id=2, query=asked.id, answer="road"))
    given = log.since(0)
    assert [(g.frame, g.bits, g.answer) for g in given] == [(-1, b"bits", "road"), (-1, b"bits", "road")]
    log.close()


def test_features_of_another_backbone_are_not_given(tmp_path):
    path = tmp_path / "labels.sqlite"
    for backbone, number in (("old", 1), ("new", 2)):
        log = LabelLog(path, backbone)
        asked = query(log, number)
        log.asked(asked, 8, backbone.encode(), b"")
        log.answered(Label(id=number, query=asked.id, answer="road"))
        assert [(g.answer, g.bits) for g in log.since(0)][-1] == ("road", backbone.encode())
        log.close()
    log = LabelLog(path, "new")
    assert [(g.answer, g.bits) for g in log.since(0)] == [("", b""), ("road", b"new")]
    log.close()
    log = LabelLog(path, "old")  # and back again
    assert [(g.answer, g.bits) for g in log.since(0)] == [("road", b"old"), ("", b"")]
    log.close()


@pytest.mark.parametrize(
    "message",
    [Label(id=2**63, query=1, answer="a"), Label(id=1, query=2**64 - 1, answer="a"), Undo(label=2**63), Undo(label=-1)],
)
def test_numbers_beyond_sqlite_are_refused(log, message):
    with pytest.raises(LinkError, match="63 bits"):
        log.answered(message)
    assert log.answered(Label(id=2**63 - 1, query=1, answer=""))
    assert log.last()[1] == 1


def test_ids_of_queries_fit(tmp_path):
    for i in range(20):
        log = LabelLog(tmp_path / f"{i}.sqlite")
        assert 0 <= log.boot < 2**31
        log.close()


def test_answers_from_many_threads(log):
    asked = query(log, 1)
    log.asked(asked, 8, b"bits", b"")
    start = threading.Barrier(4)
    new = []

    def answer():
        start.wait(10)
        new.extend(log.answered(Label(id=i, query=asked.id, answer="a")) for i in range(1, 26))

    threads = [threading.Thread(target=answer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert new.count(True) == 25
    assert new.count(False) == 75
    assert len(log.since(0)) == 25


CHILD = """
import sys
from pathlib import Path
from link.messages import Label
from onboard.labels import LabelLog
log = LabelLog(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    log.answered(Label(id=number, query=1, answer="a"))
    print(number, flush=True)
"""


def test_what_was_taken_survives_sigkill(tmp_path):
    path = tmp_path / "labels.sqlite"
    root = Path(__file__).parent.parent.parent
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True, cwd=root)
    assert child.stdout is not None
    said = [int(child.stdout.readline()) for _ in range(20)]
    child.kill()
    rest = child.stdout.read().split()
    child.wait()
    child.stdout.close()
    last = int(rest[-1]) if rest else said[-1]
    log = LabelLog(path)
    count = len(log.since(0))
    assert last <= count <= last + 1
    log.close()


def test_a_damaged_log_is_moved_aside(tmp_path, caplog):
    path = tmp_path / "labels.sqlite"
    path.write_bytes(b"not a database, but long enough to look like one" * 50)
    log = LabelLog(path)
    assert log.last() == (0, 0)
    assert "moved to" in caplog.text
    log.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM asked").fetchone() == (0,)
    db.close()


def test_one_process_at_a_time(tmp_path):
    log = LabelLog(tmp_path / "labels.sqlite")
    with pytest.raises(LinkError, match="in use by another process"):
        LabelLog(tmp_path / "labels.sqlite")
    log.close()


@pytest.mark.parametrize("before", [0, 3])
def test_a_log_that_replaced_a_damaged_one_counts_on_from_the_learner(log, before):
    for number in range(before):
        log.answered(Label(id=number + 1, query=1, answer="road"))
    log.start_after(500)
    log.answered(Label(id=50, query=1, answer="trees"))
    assert [(g.position, g.id) for g in log.since(500)] == [(501 + i, i + 1) for i in range(before)] + [
        (501 + before, 50)
    ]
    assert log.last() == (501 + before, before + 1)
