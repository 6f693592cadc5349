"""Model slots: what is on the disk after every way of being cut off or damaged still gives a good model."""

import os

import numpy as np
import pytest

from models import artifact, delta
from models.errors import ArtifactError
from onboard import boot, durable, slots
from onboard.config import Config, ModelChoice
from onboard.slots import Slots, trusted
from onboard.worker import initial_model
from tests.small_model import small_model

BASE = small_model()
SHAPE = BASE.tensors["head.weight"].shape


def learned(value, base=BASE):
    return base.with_tensors({"head.weight": np.full(SHAPE, value, np.int16)})


def fly(state, *values):
    kept = Slots(state)
    for value in values:
        kept.keep(BASE, learned(value))
    return kept


def last(state, base=BASE):
    found = Slots(state)
    model = found.last(base)
    return (model.hash if model else None), found.problems


def test_the_newest_model_comes_back_and_the_one_before_it_stays(tmp_path):
    assert last(tmp_path) == (None, [])
    for count in range(1, 6):
        fly(tmp_path, count)
        assert last(tmp_path) == (learned(count).hash, [])
        assert [slot.number for slot in Slots(tmp_path).newest()] == [count, count - 1][: min(count, 2)]
    before = {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()}
    assert sorted(before) == ["0.slot", "1.slot"]
    fly(tmp_path, 5)  # the same model is not written again: a card wears out by writing
    assert {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()} == before


def test_a_slot_that_is_cut_anywhere_or_has_a_wrong_bit_gives_the_model_before_it(tmp_path):
    fly(tmp_path, 1, 2)
    newest = max((tmp_path / "models").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    whole = newest.read_bytes()
    places = sorted({*range(0, len(whole), 7), 1, len(slots.MAGIC), len(whole) - 1})
    for at in places:
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]):
            newest.write_bytes(data)
            found, problems = last(tmp_path)
            assert found == learned(1).hash, at
            assert problems == [f"{newest}: cannot be used: it is damaged or cut off"]
    fly(tmp_path, 3)  # and the next one takes the damaged one's place
    assert last(tmp_path) == (learned(3).hash, [])


def test_a_cut_between_any_two_steps_of_writing(tmp_path, monkeypatch):
    """Each step of the disk's is the last one: what is there then is the old model or the new one."""
    for step in ("write", "fsync", "replace", "sync_folder"):
        state = tmp_path / step
        state.mkdir()
        fly(state, 1, 2)

        def cut(*_, **__):
            raise KeyboardInterrupt  # what no handler of an error cleans up after, as a power cut

        with monkeypatch.context() as broken:
            if step == "write":
                broken.setattr("models.delta.encode", cut)
            elif step == "fsync":
                broken.setattr(durable.os, "fsync", cut)
            elif step == "replace":
                broken.setattr("pathlib.Path.replace", cut)
            else:
                broken.setattr(durable, "sync_folder", cut)
            with pytest.raises(KeyboardInterrupt):
                fly(state, 3)
        found, problems = last(state)
        assert found == learned(3 if step == "sync_folder" else 2).hash
        assert problems == []
        fly(state, 4)
        assert last(state)[0] == learned(4).hash


def test_a_full_disk_leaves_both_slots_as_they_were(tmp_path, monkeypatch):
    kept = fly(tmp_path, 1, 2)

    def full(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as broken:
        broken.setattr(durable.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            kept.keep(BASE, learned(3))
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["0.slot", "1.slot"]
    assert last(tmp_path) == (learned(2).hash, [])
    kept.keep(BASE, learned(3))
    assert last(tmp_path)[0] == learned(3).hash


def test_a_slot_of_another_base_is_no_model_of_this_one(tmp_path):
    other = BASE.with_tensors({"features.scale": BASE.tensors["features.scale"] * 2})
    fly(tmp_path, 1)
    assert last(tmp_path, other) == (None, [])
    Slots(tmp_path).keep(other, learned(7, other))
    assert last(tmp_path, other)[0] == learned(7, other).hash
    assert last(tmp_path)[0] == learned(1).hash  # the older slot still holds what flew on the old base


def test_a_slot_whose_content_is_not_what_it_says(tmp_path, monkeypatch):
    fly(tmp_path, 1)
    kept = Slots(tmp_path)
    real = delta.encode  # a fault of ours, or somebody's work: its digest is right
    monkeypatch.setattr(delta, "encode", lambda old, new: real(old, learned(9)))
    kept.keep(BASE, learned(2))
    found, problems = last(tmp_path)
    assert found == learned(1).hash
    assert "another model than it says" in problems[0]


# --- base models ---------------------------------------------------------------------------------------------------


def test_a_base_model_flies_only_by_its_name(tmp_path):
    path = tmp_path / "a.safetensors"
    artifact.save(BASE, path)
    assert trusted(str(path), BASE.hash).hash == BASE.hash
    with pytest.raises(ArtifactError, match=f'set  hash = "{BASE.hash}"'):
        trusted(str(path), "")
    artifact.save(learned(1), path)  # whole and well-made, but not the one that was named
    with pytest.raises(ArtifactError, match="it is another model"):
        trusted(str(path), BASE.hash)
    assert trusted("", "").hash == artifact.load(artifact.DEFAULT).hash


def prepared(state, path, model_hash=""):
    choice = ModelChoice(artifact=str(path), hash=model_hash, classes=BASE.classes)
    return boot.prepare(Config(state=str(state), model=choice), strict=False)


def flies(found):
    """The hash of the base that a boot comes to."""
    return initial_model(found.config.model.artifact, BASE.classes).hash


def test_a_base_that_is_damaged_later_flies_from_its_copy(tmp_path):
    """A new model is copied onto the drone, half of it: the last good one flies, with what it had learned."""
    path, state = tmp_path / "a.safetensors", tmp_path / "state"
    artifact.save(BASE, path)
    found = prepared(state, path, BASE.hash)
    assert (found.problems, flies(found)) == ({}, BASE.hash)
    assert found.config.model.artifact != str(path)
    Slots(state).keep(BASE, learned(4))
    whole = path.read_bytes()
    other = BASE.with_tensors({"features.scale": BASE.tensors["features.scale"] * 2})
    for damage in ("cut", "missing", "unnamed", "another"):
        pin = BASE.hash
        if damage == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        elif damage == "missing":
            path.unlink()
        elif damage == "unnamed":
            artifact.save(other, path)
            pin = ""
        else:
            artifact.save(other, path)
        found = prepared(state, path, pin)
        assert flies(found) == BASE.hash, damage
        assert found.problems["model"].startswith(f"{path}: "), damage
        assert found.problems["model"].endswith("; the base model of the last flight flies")
        assert last(state)[0] == learned(4).hash
    # named properly the new one flies, and the way back stays open
    found = prepared(state, path, other.hash)
    assert (found.problems, flies(found)) == ({}, other.hash)
    Slots(state).keep(other, other)
    path.unlink()
    assert flies(prepared(state, path, other.hash)) == other.hash
    assert len(list((state / "models").glob("base-*"))) == 2


def test_without_any_good_copy_the_shipped_model_flies(tmp_path):
    path, state = tmp_path / "a.safetensors", tmp_path / "state"
    artifact.save(BASE, path)
    prepared(state, path, BASE.hash)
    Slots(state).keep(BASE, learned(4))
    path.write_bytes(b"rubbish")
    (copy,) = (state / "models").glob("base-*")
    copy.write_bytes(copy.read_bytes()[:-1])
    found = prepared(state, path, BASE.hash)
    assert found.config.model.artifact == ""
    assert found.problems["model"].endswith("; the shipped model flies")


def test_a_shipped_model_that_is_damaged_flies_from_its_copy(tmp_path, monkeypatch):
    state = tmp_path / "state"
    shipped = flies(prepared(state, ""))
    anchor = initial_model("", BASE.classes)
    Slots(state).keep(anchor, anchor)
    damaged = tmp_path / "default.safetensors"
    damaged.write_bytes(artifact.DEFAULT.read_bytes()[:-4])
    monkeypatch.setattr(artifact, "DEFAULT", damaged)
    found = prepared(state, "")
    assert flies(found) == shipped
    assert "the base model of the last flight flies" in found.problems["model"]


def test_nothing_at_all_to_fly_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "DEFAULT", tmp_path / "no.safetensors")
    with pytest.raises(ArtifactError, match=r"no\.safetensors: cannot be read"):
        prepared(tmp_path / "state", "")
