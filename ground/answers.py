"""What an operator may answer: a class that the drone knows, a new one, "don't know", or that a class is wrong."""

from collections.abc import Sequence

import msgspec

from ground.rows import Given
from link.messages import MAX_ANSWERS, MAX_CLASS_CHARS
from models.errors import StationError


def check_answer(given: Given, classes: Sequence[str], pending: Sequence[str]) -> Given:
    """`given` as it is stored and sent.

    A class that the drone does not know is taken where `given` says that it is new, or where it waits for the drone
    already. The same name in other letters ("Road") is the class that is there.

    Parameters
    ----------
    classes
        What the drone knows.
    pending
        New classes that it was told of and has not confirmed.

    Raises
    ------
    StationError
        Where the class is unknown, or is new and cannot be added.
    """
    drone, answer = given.drone, given.answer
    if given.wrong and given.new:
        raise StationError(f"{answer!r} cannot be wrong and a new class at once: answer one of them")
    if given.wrong and answer not in classes:
        raise StationError(f"drone {drone!r} does not know the class {answer!r}, so that it cannot be wrong")
    if given.new and answer not in (*classes, *pending):
        alike = {name.casefold(): name for name in (*pending, *classes)}
        if answer.casefold() in alike:
            answer = alike[answer.casefold()]
        else:
            _check_new(answer, drone, [*classes, *pending])
            return given
    if answer and answer not in (*classes, *pending):
        raise StationError(
            f"drone {drone!r} does not know the class {answer!r}: answer one of {', '.join((*classes, *pending))}, "
            'or "" for "don\'t know", or say that it is new'
        )
    # also the later answers with a class that waits are marked: the first one may be taken back
    return msgspec.structs.replace(given, answer=answer, new=answer in pending and answer not in classes)


def _check_new(name: str, drone: str, there: Sequence[str]) -> None:
    if not (1 <= len(name) <= MAX_CLASS_CHARS and name.isprintable() and name == name.strip()):
        raise StationError(
            f"{name[: 2 * MAX_CLASS_CHARS]!r} cannot name a class: 1 to {MAX_CLASS_CHARS} printable characters, "
            "no space at the ends"
        )
    if len(there) >= MAX_ANSWERS:
        raise StationError(
            f"drone {drone!r} has {len(there)} classes and no more than {MAX_ANSWERS} can be told apart: "
            f"{name!r} was not added"
        )
