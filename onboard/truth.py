"""What there really is in each tile of each frame: from a CSV file, or from a simulated flight.

The CSV has the header ``frame,row,labels``; `frame` is a frame's name or its number, `labels` one letter per column.
A ``?``, a row and a frame that are left out are all unknown.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import TruthError
from onboard.frame import Frame

UNKNOWN = -1
"""Stands in a grid of truth where the tile is ambiguous or was not labelled."""
AMBIGUOUS_LETTER = "?"
HEADER = ["frame", "row", "labels"]
MAX_SIDE = 1000
"""Bound on rows and columns, so that a typing error does not ask for terabytes."""
MAX_CSV_BYTES = 256 * 2**20

Key = str | int
Grid = NDArray[np.int16]


class Truth:
    """The class of each tile.

    Parameters
    ----------
    classes : tuple of str
        Class names; a class number is a place in it.
    rows, cols : int
        The grid of tiles.
    keys : iterable of str or int
        The frames that have truth, by name or number.
    lookup : callable
        Gives for a name or number the int16 grid (rows, cols) of class numbers and `UNKNOWN`, or None.
    """

    def __init__(
        self, classes: tuple[str, ...], rows: int, cols: int, keys: Iterable[Key], lookup: Callable[[Key], Grid | None]
    ) -> None:
        self.classes = classes
        self.rows = rows
        self.cols = cols
        self._keys = keys
        self._lookup = lookup

    def grid(self, frame: Frame | tuple[int, str]) -> Grid | None:
        """Return the int16 grid (rows, cols) of `frame`, given as such or as (index, name); the name goes first."""
        index, name = (frame.index, frame.name) if isinstance(frame, Frame) else frame
        found = self._lookup(name)
        return self._lookup(index) if found is None else found

    def label(self, frame: Frame | tuple[int, str], row: int, col: int) -> int | None:
        """Return the class number of one tile, None where it is ambiguous or unknown."""
        grid = self.grid(frame)
        if grid is None or not (0 <= row < self.rows and 0 <= col < self.cols) or grid[row, col] == UNKNOWN:
            return None
        return int(grid[row, col])

    def counts(self) -> dict[str, int]:
        """Return how many tiles of the whole flight belong to each class."""
        total = np.zeros(len(self.classes), np.int64)
        for key in self._keys:
            grid = self._lookup(key)
            if grid is not None:
                total += np.bincount(grid[grid != UNKNOWN], minlength=len(self.classes))
        return dict(zip(self.classes, total.tolist(), strict=True))

    def by(self, original: Callable[[Key], Key]) -> "Truth":
        """The same truth for frames that go by other names and numbers; `original` leads back from those."""
        return Truth(self.classes, self.rows, self.cols, self._keys, lambda key: self._lookup(original(key)))

    @classmethod
    def from_csv(cls, path: str | Path, letters: Mapping[str, str], classes: tuple[str, ...]) -> "Truth":
        """Read a truth file.

        Parameters
        ----------
        path : str or Path
            CSV in UTF-8.
        letters : mapping of str to str
            Letter to class name, for example ``{"O": "object"}``.
        classes : tuple of str
            All class names.

        Raises
        ------
        TruthError
            The file or the letters cannot be used; the message names file and line.
        """
        numbers = _letter_numbers(letters, classes)
        tiles = _read(Path(path), numbers)
        rows = 1 + max(row for row, _ in tiles)
        cols = len(next(iter(tiles.values())))
        grids: dict[Key, Grid] = {}
        for (row, frame), labels in tiles.items():
            grids.setdefault(frame, np.full((rows, cols), UNKNOWN, np.int16))[row] = labels
        return cls(classes, rows, cols, grids, grids.get)


def _letter_numbers(letters: Mapping[str, str], classes: tuple[str, ...]) -> dict[str, int]:
    numbers = {AMBIGUOUS_LETTER: UNKNOWN}
    for letter, name in letters.items():
        if len(letter) != 1 or letter == AMBIGUOUS_LETTER:
            raise TruthError(f"letters: {letter!r} cannot stand for a class; take one letter, not '?'")
        if name not in classes:
            raise TruthError(f"letters: {letter}={name}, but the classes are {', '.join(classes)}")
        numbers[letter] = classes.index(name)
    return numbers


def _read(path: Path, numbers: Mapping[str, int]) -> dict[tuple[int, Key], list[int]]:
    """Return (row, frame) -> class numbers, every line checked."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    tiles: dict[tuple[int, Key], list[int]] = {}
    lines: dict[tuple[int, Key], int] = {}
    width = 0
    try:
        if [field.strip() for field in next(reader, [])] != HEADER:
            raise TruthError(f"{path}, line 1: the header must be {','.join(HEADER)}")
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(HEADER):
                raise TruthError(f"{where}: {len(fields)} fields, but there must be three: {','.join(HEADER)}")
            frame, row, labels = (field.strip() for field in fields)
            key = (_row(where, row), _frame(where, frame))
            if key in tiles:
                raise TruthError(f"{where}: frame {frame}, row {row} stands in line {lines[key]} already; keep one")
            width = width or len(labels)
            if len(labels) != width or not 1 <= width <= MAX_SIDE:
                raise TruthError(f"{where}: {len(labels)} labels, but the first row has {width} (1 to {MAX_SIDE})")
            for col, letter in enumerate(labels):
                if letter not in numbers:
                    known = " ".join(numbers)
                    raise TruthError(f"{where}: no class is known for {letter!r} in column {col}; there are {known}")
            tiles[key] = [numbers[letter] for letter in labels]
            lines[key] = reader.line_num
    except csv.Error as error:
        raise TruthError(f"{path}, line {reader.line_num}: this is not CSV: {error}") from error
    if not tiles:
        raise TruthError(f"{path}: there is not one label below the header")
    return tiles


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_CSV_BYTES:
            raise TruthError(f"{path}: larger than {MAX_CSV_BYTES} bytes; is this a truth file?")
        data = path.read_bytes()
    except OSError as error:
        raise TruthError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TruthError(f"{path}, line {line}: not UTF-8 text; save the file as CSV in UTF-8") from error


def _row(where: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < MAX_SIDE):
        raise TruthError(f"{where}: row {text!r} must be a whole number from 0 to {MAX_SIDE - 1}")
    return int(text)


def _frame(where: str, text: str) -> Key:
    """Names that are whole numbers are numbers, so that 007 and 7 are the same frame."""
    if not text:
        raise TruthError(f"{where}: the name or number of the frame is missing")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text
