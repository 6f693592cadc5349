"""`onboard check` on real files, folders, keys and sources: each part says what is wrong, and how to mend it."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from link.keys import enroll
from models import artifact
from onboard import check as module
from onboard import cli
from onboard.check import check
from tests.small_model import small_model

PARTS = ["config", "model", "learned", "camera", "keys", "state", "recording", "clock"]


class Place:
    """A folder with a good configuration, whose lines a test replaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "onboard.toml"
        keys = enroll(folder / "station", "kite-7", "tcp://127.0.0.1:5555", folder / "kite-7.toml")
        self.lines = {
            "state": f'state = "{folder / "state"}"',
            "camera": '[camera]\nsource = "sim://?frames=3"',
            "model": "[model]",
            "record": f'[record]\nfolder = "{folder / "flights"}"\nmin_free_mb = 0',
            "link": f'[link]\nkeys = "{keys}"',
        }

    def check(self, capsys, **changed: str) -> tuple[int, dict[str, str], dict[str, str]]:
        """Exit status, and what was said of the parts that are good and of those that are not."""
        self.path.write_text("\n".join((self.lines | changed).values()) + "\n")
        status = cli.main(["check", "--config", str(self.path)])
        out, err = capsys.readouterr()
        assert err == ""
        good, bad = {}, {}
        for line in out.splitlines():
            word, name, text = line.split(maxsplit=2)
            assert word in ("ok", "FAIL")
            (good if word == "ok" else bad)[name.rstrip(":")] = text
        return status, good, bad


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def only(place, capsys, part: str, **changed: str) -> str:
    """What is said of the only part that fails; all others are still looked at."""
    status, good, bad = place.check(capsys, **changed)
    assert status == 1
    assert list(bad) == [part]
    assert sorted([*good, *bad]) == sorted(PARTS)
    return bad[part]


def test_a_good_configuration(place, capsys):
    status, good, bad = place.check(capsys)
    assert (status, bad) == (0, {})
    assert list(good) == PARTS
    assert good["config"] == str(place.path)
    assert good["model"].startswith("default, 4 classes, ")
    assert good["camera"].startswith("sim://?frames=3, ")
    assert good["keys"] == "kite-7, station at tcp://127.0.0.1:5555"
    assert good["state"].startswith(f"{place.folder / 'state'}, ")
    assert " MB free" in good["recording"]
    assert (place.folder / "state").is_dir()
    assert list((place.folder / "state").iterdir()) == []


def test_without_station_and_recording(place, capsys):
    status, good, bad = place.check(capsys, link="", record="")
    assert (status, bad) == (0, {})
    assert good["keys"] == "none: flies without a ground station"
    assert good["recording"] == "off"


def test_a_configuration_that_cannot_be_read_ends_the_check(place, capsys):
    status, good, bad = place.check(capsys, model="[model]\nthread = 1")
    assert (status, good) == (1, {})
    assert list(bad) == ["config"]
    assert f"{place.path}, line 5: " in bad["config"]
    assert cli.main(["check", "--config", str(place.folder / "no.toml")]) == 1
    assert "no.toml: cannot be read" in capsys.readouterr().out


def test_a_model_that_is_not_there(place, capsys):
    path = place.folder / "no.safetensors"
    said = only(place, capsys, "model", model=f'[model]\nartifact = "{path}"')
    assert said == f"{path}: cannot be read: No such file or directory"


def test_a_model_that_cannot_be_computed(place, capsys):
    """Its file is whole, but the network shrinks an odd picture by half."""
    path = place.folder / "odd.safetensors"
    artifact.save(small_model(), path)
    whole = path.read_bytes()
    assert whole.count(b'input_size\\":16') == 1
    path.write_bytes(whole.replace(b'input_size\\":16', b'input_size\\":18'))
    said = only(place, capsys, "model", model=f'[model]\nartifact = "{path}"')
    assert "network.blocks[0]: a shortcut from 9 x 9 to 5 x 5 pixels" in said


def test_another_model_that_can(place, capsys):
    path = place.folder / "small.safetensors"
    artifact.save(small_model(), path)
    lines = f'[model]\nartifact = "{path}"\nclasses = ["x", "y"]'
    said = only(place, capsys, "model", model=lines)
    assert f'nothing says that this model may fly; if you trust it, set  hash = "{small_model().hash}"' in said
    said = only(place, capsys, "model", model=f'{lines}\nhash = "{64 * "a"}"')
    assert (
        f"its hash is {small_model().hash[:16]}..., [model] hash names aaaaaaaaaaaaaaaa...: it is another model" in said
    )
    status, good, _ = place.check(capsys, model=f'{lines}\nhash = "{small_model().hash}"')
    assert status == 0
    assert good["model"].startswith("small, 2 classes, ")


def test_cameras_that_give_nothing(place, capsys):
    empty = place.folder / "empty"
    empty.mkdir()
    for source in ("/dev/nowhere", str(empty), "v4l2:///dev/video99", "smi://", ""):
        said = only(place, capsys, "camera", camera=f'[camera]\nsource = "{source}"')
        assert said
        assert "\n" not in said


def test_a_grid_that_is_finer_than_the_camera(place, capsys):
    photos = place.folder / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "a.png"), np.zeros((20, 400, 3), np.uint8))
    camera = f'[camera]\nsource = "{photos}"\nrows = 32'
    assert "400 x 20 pixels are too small for 8 x 32 tiles" in only(place, capsys, "camera", camera=camera)


def test_keys_that_cannot_be_used(place, capsys):
    assert "no.toml" in only(place, capsys, "keys", link=f'[link]\nkeys = "{place.folder / "no.toml"}"')
    (place.folder / "kite-7.toml").write_text("not keys")
    assert "kite-7.toml" in only(place, capsys, "keys")


def test_folders_that_cannot_be_written(place, capsys):
    (place.folder / "file").write_text("")
    path = place.folder / "file" / "state"
    assert only(place, capsys, "state", state=f'state = "{path}"').startswith(f"{path}: cannot be written: ")
    said = only(place, capsys, "recording", record=f'[record]\nfolder = "{path}"')
    assert said.startswith(f"{path}: cannot be written: ")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(place, capsys):
    locked = place.folder / "locked"
    locked.mkdir(mode=0o500)
    assert "Permission denied; check its owner" in only(place, capsys, "state", state=f'state = "{locked}"')


def test_a_disk_without_room(place, capsys):
    """More is asked for than any disk has; the state folder needs little, and is not concerned."""
    record = f'[record]\nfolder = "{place.folder}"\nmin_free_mb = 1000000'
    if module.shutil.disk_usage(place.folder).free >> 20 > 1_000_000:
        pytest.skip("this disk has more than a terabyte free")
    assert "1000000 MB are needed; make room" in only(place, capsys, "recording", record=record)


def test_a_clock_that_was_never_set(place, capsys, monkeypatch):
    monkeypatch.setattr(module, "EARLIEST_CLOCK_S", 2**40)  # setting the clock of this machine would be rude
    assert "set it, by NTP or by hand" in only(place, capsys, "clock")


def test_everything_at_once(place, capsys, monkeypatch):
    monkeypatch.setattr(module, "EARLIEST_CLOCK_S", 2**40)
    (place.folder / "file").write_text("")
    bad_path = place.folder / "file" / "x"
    status, good, bad = place.check(
        capsys,
        state=f'state = "{bad_path}"',
        camera='[camera]\nsource = "/dev/nowhere"',
        model=f'[model]\nartifact = "{bad_path}"',
        record=f'[record]\nfolder = "{bad_path}"',
        link=f'[link]\nkeys = "{bad_path}"',
    )
    assert status == 1
    assert list(good) == ["config", "learned"]  # there is no slot, and so no damaged one
    assert [*list(good)[:1], *list(bad)[:1], "learned", *list(bad)[1:]] == PARTS


def test_a_bug_is_not_hidden(place, monkeypatch):
    """Only what a user can mend becomes a line; anything else keeps its traceback."""
    place.path.write_text("\n".join(place.lines.values()))
    monkeypatch.setattr(module, "trusted", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(check(place.path))
