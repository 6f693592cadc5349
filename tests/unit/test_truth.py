"""Ground truth from CSV against a naive reading, and every way in which a file can be wrong."""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import TruthError
from onboard.frame import Frame, Pose
from onboard.truth import UNKNOWN, Truth

DATA = Path(os.environ.get("HADANET_DATA", Path(__file__).parents[2] / "../shared/data"))
LETTERS = {"O": "object", "R": "road", "T": "trees", "G": "ground"}
CLASSES = ("object", "road", "trees", "ground")


def write(tmp_path, text: str | bytes) -> Path:
    path = tmp_path / "truth.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_labels_by_name_and_by_number(tmp_path):
    truth = Truth.from_csv(write(tmp_path, "frame,row,labels\na.jpg,0,OR?\na.jpg,1,TGG\n7,1,GGG\n"), LETTERS, CLASSES)
    assert (truth.rows, truth.cols, truth.classes) == (2, 3, CLASSES)
    assert [truth.label((0, "a.jpg"), 0, col) for col in range(3)] == [0, 1, None]
    assert truth.label((7, "7"), 1, 2) == 3
    assert truth.label((7, "other.jpg"), 1, 2) == 3
    assert truth.label((7, "a.jpg"), 1, 0) == 2, "the name goes before the number"
    assert truth.label((7, "7"), 0, 0) is None, "a row that is left out is unknown"
    assert truth.label((8, "8"), 0, 0) is None
    assert truth.label((0, "a.jpg"), 2, 0) is None
    assert truth.label((0, "a.jpg"), -1, 0) is None
    frame = Frame(index=0, t_ns=0, name="a.jpg", image=np.zeros((1, 1, 3), np.uint8), pose=Pose())
    assert truth.label(frame, 0, 1) == 1
    assert truth.counts() == {"object": 1, "road": 1, "trees": 1, "ground": 5}
    grid = truth.grid(frame)
    assert grid is not None
    assert grid.dtype == np.int16
    assert grid.tolist() == [[0, 1, UNKNOWN], [2, 3, 3]]


def test_excel_writes_a_mark_and_other_line_ends(tmp_path):
    truth = Truth.from_csv(write(tmp_path, b'\xef\xbb\xbfframe,row,labels\r\n"a,b",0,OO\r\n\r\n'), LETTERS, CLASSES)
    assert truth.label((0, "a,b"), 0, 1) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the header must be frame,row,labels"),
        ("a.jpg,0,OO\n", "line 1: the header"),
        ("frame,row,labels\n", "not one label"),
        ("frame,row,labels\na,0,OX\n", "line 2: no class is known for 'X' in column 1"),
        ("frame,row,labels\na,0,OO\na,1,O\n", "line 3: 1 labels, but the first row has 2"),
        ("frame,row,labels\na,0,OO\na,0,OO\n", "line 3: frame a, row 0 stands in line 2 already"),
        ("frame,row,labels\n7,0,OO\n007,0,OO\n", "line 3: frame 007, row 0 stands in line 2 already"),
        ("frame,row,labels\na,0\n", "line 2: 2 fields"),
        ("frame,row,labels\na,0,O,O\n", "line 2: 4 fields"),
        ("frame,row,labels\na,-1,OO\n", "line 2: row '-1'"),
        ("frame,row,labels\na,1.5,OO\n", "line 2: row '1.5'"),
        ("frame,row,labels\na,99999999999,OO\n", "line 2: row '99999999999'"),
        ("frame,row,labels\na,²,OO\n", "line 2: row '²'"),
        ("frame,row,labels\n,0,OO\n", "line 2: the name or number of the frame is missing"),
        ("frame,row,labels\na,0,\n", "line 2: 0 labels"),
        ('frame,row,labels\n"a,0,OO\n', "this is not CSV"),
        ("frame,row,labels\na,0,OO\nb,0,O\xe4".encode("latin-1"), "line 3: not UTF-8"),
        ("frame,row,labels\na,0,OO\n".encode("utf-16"), "line 1: not UTF-8"),
        (b"frame,row,labels\na,0,O\x00\n", "line 2"),
    ],
)
def test_wrong_files_are_named_with_their_line(tmp_path, text, says):
    path = write(tmp_path, text)
    with pytest.raises(TruthError) as error:
        Truth.from_csv(path, LETTERS, CLASSES)
    assert says in str(error.value)
    assert str(path) in str(error.value)


def test_wrong_paths_and_letters(tmp_path):
    with pytest.raises(TruthError, match=r"nothing\.csv: cannot be read"):
        Truth.from_csv(tmp_path / "nothing.csv", LETTERS, CLASSES)
    with pytest.raises(TruthError, match="cannot be read"):
        Truth.from_csv(tmp_path, LETTERS, CLASSES)
    path = write(tmp_path, "frame,row,labels\na,0,OO\n")
    with pytest.raises(TruthError, match="O=house, but the classes are object, road"):
        Truth.from_csv(path, {"O": "house"}, CLASSES)
    with pytest.raises(TruthError, match="'OO'"):
        Truth.from_csv(path, {"OO": "object"}, CLASSES)
    with pytest.raises(TruthError, match=r"'\?'"):
        Truth.from_csv(path, {"?": "object"}, CLASSES)


names = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0", exclude_categories=("Cs",)), min_size=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(names, unique_by=lambda name: name.strip().lstrip("0"), min_size=1, max_size=5), st.data())
def test_what_is_written_comes_back(tmp_path_factory, frames, data):
    """Any names (numbers, quotes, commas) and labels, written by the csv module, are found again."""
    frames = [name.strip() for name in frames if name.strip()]
    if not frames:
        return
    rows, cols = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    labels = {
        (frame, row): data.draw(st.text("ORTG?", min_size=cols, max_size=cols))
        for frame in frames
        for row in range(rows)
    }
    path = tmp_path_factory.mktemp("truth") / "t.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "row", "labels"])
        writer.writerows([frame, row, text] for (frame, row), text in labels.items())
    truth = Truth.from_csv(path, LETTERS, CLASSES)
    for (frame, row), text in labels.items():
        index = int(frame) if frame.isascii() and frame.isdigit() else -5
        want = [CLASSES.index(LETTERS[letter]) if letter != "?" else None for letter in text]
        assert [truth.label((index, frame), row, col) for col in range(cols)] == want


def test_caliterra():
    path = DATA / "flights/caliterra_labels.csv"
    if not path.exists():
        pytest.skip("no shared data: set HADANET_DATA")
    truth = Truth.from_csv(path, LETTERS, CLASSES)
    lines = path.read_text().splitlines()[1:]
    counted = Counter("".join(line.split(",")[2] for line in lines))
    assert truth.counts() == {name: counted[letter] for letter, name in LETTERS.items()}
    assert (truth.rows, truth.cols) == (6, 8)
    for line in lines[::7]:
        name, row, labels = line.split(",")
        for col, letter in enumerate(labels):
            got = truth.label((0, name), int(row), col)
            assert got == (None if letter == "?" else CLASSES.index(LETTERS[letter]))
