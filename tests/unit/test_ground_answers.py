"""What an operator may answer: names of new classes and their bounds."""

import pytest

from ground.answers import check_answer
from ground.rows import Given
from models.errors import StationError

CLASSES, PENDING = ("road", "träd"), ("rock",)


def check(answer, wrong=False, new=False, classes=CLASSES, pending=PENDING):
    given = check_answer(Given("kestrel", 7, answer, wrong, new), classes, pending)
    assert (given.drone, given.query) == ("kestrel", 7)
    return given.answer, given.wrong, given.new


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (("",), ("", False, False)),
        (("road",), ("road", False, False)),
        (("road", True), ("road", True, False)),
        (("rock",), ("rock", False, True)),
        (("rock", False, True), ("rock", False, True)),
        (("mud", False, True), ("mud", False, True)),
        (("road", False, True), ("road", False, False)),
        (("Road", False, True), ("road", False, False)),
        (("TRÄD", False, True), ("träd", False, False)),
        (("Rock", False, True), ("rock", False, True)),
        (("dry stone wall 2", False, True), ("dry stone wall 2", False, True)),
        (("x" * 40, False, True), ("x" * 40, False, True)),
        (("岩" * 40, False, True), ("岩" * 40, False, True)),
    ],
)
def test_what_is_taken(given, stored):
    assert check(*given) == stored


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("mud",), "does not know the class 'mud': answer one of road, träd, rock,"),
        (("Road",), "does not know the class 'Road'"),
        (("mud", True), "does not know the class 'mud', so that it cannot be wrong"),
        (("rock", True), "does not know the class 'rock', so that it cannot be wrong"),
        (("road", True, True), "'road' cannot be wrong and a new class at once"),
        (("", False, True), "'' cannot name a class: 1 to 40 printable characters"),
        ((" mud", False, True), "' mud' cannot name a class"),
        (("mud\u00a0", False, True), "cannot name a class"),
        (("mu\nd", False, True), r"'mu\\nd' cannot name a class"),
        (("mu\0d", False, True), "cannot name a class"),
        (("mu\u202ed", False, True), "cannot name a class"),
        (("\ud800", False, True), "cannot name a class"),
        (("x" * 41, False, True), "cannot name a class"),
    ],
)
def test_what_is_refused(given, reason):
    with pytest.raises(StationError, match=reason) as error:
        check(*given)
    assert str(error.value).isprintable()  # one line


def test_at_most_32_classes_with_those_that_wait():
    many = tuple(f"c{i}" for i in range(20))
    waiting = tuple(f"w{i}" for i in range(11))
    assert check("mud", new=True, classes=many, pending=waiting) == ("mud", False, True)
    waiting += ("mud",)
    assert check("mud", new=True, classes=many, pending=waiting) == ("mud", False, True)
    with pytest.raises(StationError, match=r"has 32 classes and no more than 32 .*'ice' was not added"):
        check("ice", new=True, classes=many, pending=waiting)
