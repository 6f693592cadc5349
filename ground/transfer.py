"""Answers out of the station and into it: CSV, and COCO for the tools that train on pictures."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import cv2
import msgspec
import numpy as np

from ground.rows import Given, QueryRow, spoken
from ground.store import Store
from models.errors import StationError

COLUMNS: tuple[str, ...] = ("drone", "query", "answer", "label", "frame", "frame_name", "row", "col", "track", "guess")
COLUMNS += ("confidence", "lat_deg", "lon_deg", "t_ns", "wrong", "new")
MAX_IMPORT = 1_000_000
"""Lines of a CSV file of answers."""


def write_csv(file: TextIO, answered: Iterable[QueryRow]) -> int:
    """Write questions and their answers under a header of `COLUMNS`; returns how many.

    `answer` is the class; empty where nobody knew it. `wrong` is then the class that the tile is known not to be of.
    `new` is 1 where the drone did not know the class yet. `read_csv` reads the same file back.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    for query in answered:
        answer = {"answer": "", "wrong": query.answer} if query.wrong else {"answer": query.answer, "wrong": ""}
        fields = {**msgspec.structs.asdict(query), **answer, "query": query.id, "new": int(query.new)}
        writer.writerow(["" if fields[name] is None else fields[name] for name in COLUMNS])
        count += 1
    return count


def export(store: Store, path: Path) -> tuple[int, int]:
    """Write all answers to `path` (.csv, or .json for COCO) and the crops to a folder beside it.

    The crops are `STEM_crops/DRONE_QUERY.jpg`. In COCO each crop is an image with one annotation over all of it;
    answers that name no class ("don't know", and "wrong") are left out. Returns (written, left out).

    Raises
    ------
    StationError
        Another suffix, or a place that cannot be written.
    """
    if path.suffix not in (".csv", ".json"):
        raise StationError(f"{path}: the name must end with .csv, or with .json for COCO")
    every = store.answered()
    answered = [q for q in every if path.suffix == ".csv" or (q.answer and not q.wrong)]
    folder = path.with_name(f"{path.stem}_crops")
    partial = path.with_name(path.name + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sizes = []
        for query in answered:
            picture = store.jpeg(query.drone, query.id)
            (folder / _crop_name(query)).write_bytes(picture)
            sizes.append(_size(picture))
        if path.suffix == ".csv":
            with partial.open("w", encoding="utf-8", newline="") as file:
                write_csv(file, answered)
        else:
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(_coco(answered, sizes, folder.name))))
        partial.replace(path)
    except OSError as error:
        raise StationError(f"{error.filename or path}: cannot be written: {error.strerror}") from error
    return len(answered), len(every) - len(answered)


def read_csv(store: Store, path: Path, check: Callable[[Given], Given]) -> tuple[int, int]:
    """Store the answers of a CSV file, all or none.

    It has the columns drone, query and answer and may have wrong and new, as `write_csv` writes them; others are
    ignored. `check` gives an answer as it is stored and raises StationError where it cannot be. Lines whose answer is
    stored already are passed over. Returns (stored, passed over).

    Raises
    ------
    StationError
        A file that cannot be read, or its first wrong line with its number; nothing is stored then.
    """
    wanted: dict[tuple[str, int], Given] = {}
    known = 0
    problems = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if missing := {"drone", "query", "answer"} - set(reader.fieldnames or ()):
                raise StationError(
                    f"{path}:1: the header has no {', '.join(sorted(missing))}: it needs drone,query,answer"
                )
            for row in reader:
                try:
                    given = _read_row(row)
                    key = given.drone, given.query
                    held = store.query(*key)
                    given = check(given)
                    before = wanted.get(key, held)
                    if before.answer is not None and (before.answer, before.wrong) != (given.answer, given.wrong):
                        raise StationError(f"the question has another answer, {spoken(before)}: undo it first")
                    if held.answer is None:
                        wanted[key] = given
                    else:
                        known += 1
                except StationError as error:
                    problems.append(f"{path}:{reader.line_num}: {error}")
                if reader.line_num > MAX_IMPORT:
                    raise StationError(f"{path}: more than {MAX_IMPORT} lines: split the file")
    except OSError as error:
        raise StationError(f"{path}: cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise StationError(f"{path}: not a CSV file in UTF-8: {error}") from error
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise StationError(f"{problems[0]}{more}; nothing was stored")
    store.add_labels(list(wanted.values()))
    return len(wanted), known


def _read_row(row: dict[str | Any, Any]) -> Given:
    drone, query, answer = row["drone"], row["query"], row["answer"]
    wrong, new = row.get("wrong", ""), row.get("new", "")
    if None in (drone, query, answer, wrong, new) or None in row:
        raise StationError("the line has not as many fields as the header")
    if not (query.isascii() and query.isdigit() and len(query) <= 20):
        raise StationError(f"{query!r} is not the number of a question")
    if answer and wrong:
        raise StationError(f"the answer is {answer!r} and {wrong!r} is wrong: leave one of them empty")
    if new not in ("", "0", "1"):
        raise StationError(f"new is {new!r}: write 1 where the class is new, 0 where it is not")
    return Given(drone, int(query), wrong or answer, wrong=bool(wrong), new=new == "1")


def _coco(answered: list[QueryRow], sizes: list[tuple[int, int]], folder: str) -> dict[str, Any]:
    names = sorted({q.answer for q in answered if q.answer})
    return {
        "info": {"description": "answers of the operators that name a class"},
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "images": [
            {
                "id": i,
                "file_name": f"{folder}/{_crop_name(q)}",
                "width": width,
                "height": height,
                "frame_name": q.frame_name,
                "drone": q.drone,
                "query": str(q.id),
            }
            for i, (q, (height, width)) in enumerate(zip(answered, sizes, strict=True), 1)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": names.index(q.answer or "") + 1,
                "bbox": [0, 0, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
            for i, (q, (height, width)) in enumerate(zip(answered, sizes, strict=True), 1)
        ],
    }


def _crop_name(query: QueryRow) -> str:
    return f"{query.drone}_{query.id}.jpg"


def _size(picture: bytes) -> tuple[int, int]:
    """Height and width in pixels; (0, 0) for a picture that came damaged."""
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_GRAYSCALE)
    return (0, 0) if image is None else (image.shape[0], image.shape[1])
