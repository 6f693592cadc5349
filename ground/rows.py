"""What the station's database gives and takes: drones, questions, answers."""

import msgspec


class DroneRow(msgspec.Struct, frozen=True):
    """A drone as it last introduced itself; `seen_ns` is the station's clock, Unix nanoseconds."""

    name: str
    boot: int
    base_hash: bytes
    model_hash: bytes
    classes: tuple[str, ...]
    rows: int
    cols: int
    seen_ns: int


class QueryRow(msgspec.Struct, frozen=True):
    """A question without its picture.

    `answer` is None while it is open, "" for "don't know"; where `wrong`, the class that the tile is not of. `new`: the
    drone did not know the class yet.
    """

    drone: str
    id: int
    frame: int
    frame_name: str
    t_ns: int
    row: int
    col: int
    track: int
    guess: str
    confidence: float
    lat_deg: float | None
    lon_deg: float | None
    label: int | None
    answer: str | None
    wrong: bool = False
    new: bool = False


class Given(msgspec.Struct, frozen=True):
    """An answer to a question of `drone`; `answer`, `wrong` and `new` as in `link.messages.Label`."""

    drone: str
    query: int
    answer: str
    wrong: bool = False
    new: bool = False


class Unsent(msgspec.Struct, frozen=True):
    """An answer (`query`, `answer` set) or an undo (both None) that was stored but not handed to the link."""

    drone: str
    label: int
    query: int | None = None
    answer: str | None = None
    wrong: bool = False
    new: bool = False


def spoken(answer: Given | QueryRow) -> str:
    """An answer as a message names it."""
    return f"not {answer.answer!r}" if answer.wrong else repr(answer.answer)
