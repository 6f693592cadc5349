"""Answers out as CSV and COCO with their crops, and in again from CSV."""

import csv
import json

import cv2
import pytest

from ground.store import Store
from ground.transfer import export, read_csv
from link.messages import Query
from models.errors import StationError
from tests.ground_flight import CLASSES, flight


@pytest.fixture
def store(tmp_path):
    """A station's database with eleven questions of which three have answers."""
    store = Store.in_folder(tmp_path)
    questions = [m for messages in flight(41) for m in messages if isinstance(m, Query)]
    for question in questions:
        store.add_query("kestrel", question, CLASSES[question.guess])
    for question, answer in zip(questions, ("road", "", "trees"), strict=False):
        store.add_label("kestrel", question.id, answer)
    yield store
    store.close()


def allow(given):
    if not given.new and given.answer not in ("", *CLASSES):
        raise StationError(f"no class {given.answer}")
    return given


def test_csv_and_crops(store, tmp_path):
    assert export(store, tmp_path / "out" / "flight.csv") == (3, 0)
    with (tmp_path / "out" / "flight.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["answer"] for row in table] == ["road", "", "trees"]
    assert table[0]["query"] == str(7 << 32)
    for row in table:
        crop = cv2.imread(str(tmp_path / "out" / "flight_crops" / f"kestrel_{row['query']}.jpg"))
        assert crop.shape[2] == 3


def test_coco_leaves_out_what_nobody_knew(store, tmp_path):
    assert export(store, tmp_path / "flight.json") == (2, 1)
    data = json.loads((tmp_path / "flight.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    images = {i["id"]: i for i in data["images"]}
    assert sorted(names[a["category_id"]] for a in data["annotations"]) == ["road", "trees"]
    for annotation in data["annotations"]:
        image = images[annotation["image_id"]]
        height, width = cv2.imread(str(tmp_path / image["file_name"])).shape[:2]
        assert annotation["bbox"] == [0, 0, width, height]
        assert (image["width"], image["height"], annotation["area"]) == (width, height, width * height)


@pytest.fixture
def richer(store):
    """The same with an answer that a class is wrong, and with a new class."""
    for question, given in zip(
        store.open_queries("kestrel", 2), (("road", True, False), ("rock", False, True)), strict=True
    ):
        store.add_label("kestrel", question.id, *given)
    return store


def test_what_is_wrong_is_no_label_in_csv_and_coco(richer, tmp_path):
    assert export(richer, tmp_path / "flight.csv") == (5, 0)
    with (tmp_path / "flight.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["answer"], row["wrong"], row["new"]) for row in table] == [
        ("road", "", "0"),
        ("", "", "0"),
        ("trees", "", "0"),
        ("", "road", "0"),
        ("rock", "", "1"),
    ]
    assert export(richer, tmp_path / "flight.json") == (3, 2)
    data = json.loads((tmp_path / "flight.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    assert [names[a["category_id"]] for a in data["annotations"]] == ["road", "trees", "rock"]
    assert len(data["images"]) == 3
    assert "name a class" in data["info"]["description"]


def test_wrong_and_new_come_back_from_csv(richer, tmp_path):
    export(richer, tmp_path / "flight.csv")
    other = Store.in_folder(tmp_path / "other")
    for question in (m for messages in flight(41) for m in messages if isinstance(m, Query)):
        other.add_query("kestrel", question, "")
    assert read_csv(other, tmp_path / "flight.csv", allow) == (5, 0)
    assert read_csv(other, tmp_path / "flight.csv", allow) == (0, 5)
    kept = [[(q.id, q.answer, q.wrong, q.new) for q in s.answered()] for s in (other, richer)]
    assert kept[0] == kept[1]
    other.close()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("road,trees,", "the answer is 'road' and 'trees' is wrong: leave one of them empty"),
        (",volcano,", "no class volcano"),
        ("rock,,yes", "new is 'yes': write 1"),
        ("rock,,0", "no class rock"),
        (",road", "not as many fields"),
        (",road,", "the question has another answer, 'road'"),
    ],
)
def test_a_line_with_a_wrong_wrong_or_new(store, tmp_path, line, reason):
    file = tmp_path / "in.csv"
    file.write_text(f"drone,query,answer,wrong,new\nkestrel,{7 << 32},{line}\n")
    with pytest.raises(StationError, match=reason) as error:
        read_csv(store, file, allow)
    assert "in.csv:2:" in str(error.value)


def test_what_was_exported_can_be_read_into_another_station(store, tmp_path):
    export(store, tmp_path / "flight.csv")
    other = Store.in_folder(tmp_path / "other")
    for question in (m for messages in flight(41) for m in messages if isinstance(m, Query)):
        other.add_query("kestrel", question, "")
    assert read_csv(other, tmp_path / "flight.csv", allow) == (3, 0)
    assert read_csv(other, tmp_path / "flight.csv", allow) == (0, 3)
    assert [(q.id, q.answer) for q in other.answered()] == [(q.id, q.answer) for q in store.answered()]
    other.close()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"kestrel,{(7 << 32) + 12},volcano", "no class volcano"),
        ("kestrel,5,road", "has not asked question 5"),
        ("kestrel,five,road", "'five' is not the number"),
        ("kestrel,5", "not as many fields"),
        ("kestrel,5,road,more", "not as many fields"),
        (f"kestrel,{7 << 32},trees", "another answer, 'road'"),
        (f"kestrel,{(7 << 32) + 16},trees", "another answer, 'road'"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_stored(store, tmp_path, line, reason):
    file = tmp_path / "in.csv"
    file.write_text(f"drone,query,answer\nkestrel,{(7 << 32) + 16},road\n{line}\n")
    with pytest.raises(StationError, match=reason) as error:
        read_csv(store, file, allow)
    assert "in.csv:3:" in str(error.value)
    assert store.count_labels("kestrel") == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no answer, drone, query"),
        (b"drone,query\n", "no answer"),
        (b"drone,query,answer\n\xff\xfe\n", "UTF-8"),
        (b'drone,query,answer\n"open', "CSV"),
    ],
)
def test_a_file_that_is_no_table_is_told(store, tmp_path, content, reason):
    file = tmp_path / "in.csv"
    file.write_bytes(content)
    with pytest.raises(StationError, match=reason):
        read_csv(store, file, allow)


def test_places_that_cannot_be(store, tmp_path):
    with pytest.raises(StationError, match=r"\.csv, or with \.json"):
        export(store, tmp_path / "flight.xml")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StationError, match="cannot be written"):
        export(store, tmp_path / "file" / "flight.csv")
    with pytest.raises(StationError, match="cannot be read"):
        read_csv(store, tmp_path / "nothing.csv", allow)


def test_a_damaged_picture_does_not_stop_an_export(store, tmp_path):
    broken = Query(
        id=1, frame=1, frame_name="", t_ns=0, row=0, col=0, track=0, guess=0, confidence=0.0, jpeg=b"\xff\xd8nothing"
    )
    store.add_query("kestrel", broken, "object")
    store.add_label("kestrel", 1, "object")
    assert export(store, tmp_path / "flight.json") == (3, 1)
    data = json.loads((tmp_path / "flight.json").read_text())
    assert data["images"][-1]["width"] == 0
