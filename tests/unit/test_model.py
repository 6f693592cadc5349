"""The network's formula, the immutable model and its hash, the artifact on disk, and `hadanet info`."""

import hashlib
import json
import os
import struct

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save as to_safetensors

from models import artifact, cli
from models.errors import ArtifactError
from models.model import MAX_CLASSES, Model
from models.network import Block, NetworkSpec, Stem, forward
from tests import reference
from tests.small_model import small_model, small_spec

# --- network ----------------------------------------------------------------------------------------------------------


def test_forward_equals_the_slow_twin():
    """Kernels of 1 and 5, strides, blocks that do not divide the channels, one scale for all, channels cut off."""
    spec = NetworkSpec(
        name="odd",
        input_size=12,
        mean=(100, 110, 120),
        stem=Stem(channels=6, kernel=5, stride=1),
        blocks=(
            Block(channels=10, kernel=5, stride=2, beta_w=7, beta_a=4),
            Block(channels=4, kernel=1, beta_w=1, beta_a=1),
            Block(channels=9, kernel=3, beta_w=0, beta_a=0),
        ),
        taps=(0, 2),
    )
    random = np.random.default_rng(0)
    model = Model(spec, reference.random_tensors(random, spec, 2), ("a", "b"))
    tiles = random.integers(0, 256, (2, 12, 12, 3), np.uint8)
    before = tiles.copy()
    got = forward(spec, model.tensors, tiles)
    assert got.dtype == np.float32
    assert got.shape == (2, spec.feature_count) == (2, 38)
    np.testing.assert_allclose(got, reference.forward(model, tiles), rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(tiles, before)


def decode(spec: NetworkSpec, **changed) -> NetworkSpec:
    fields = msgspec.to_builtins(spec) | changed
    return msgspec.json.decode(msgspec.json.encode(fields), type=NetworkSpec)


@pytest.mark.parametrize(
    "changed",
    [
        {"input_size": 0},
        {"input_size": 10**9},
        {"std": [1.0, 0.0, 1.0]},
        {"mean": [1.0, 1.0]},
        {"taps": []},
        {"taps": [2]},
        {"taps": [-1]},
        {"taps": [1, 0]},
        {"taps": [0, 0]},
        {"blocks": []},
        {"blocks": [{"channels": 0}, {"channels": 8}]},
        {"blocks": [{"channels": 8, "kernel": 0}, {"channels": 8}]},
        {"blocks": [{"channels": 8, "stride": 0}, {"channels": 8}]},
        {"blocks": [{"channels": 8, "beta_w": -1}, {"channels": 8}]},
        {"stem": {"channels": 10**9}},
        {"stem": {"channels": 8, "kernal": 3}},
        {"beta_f": -1},
        {"extra": 1},
    ],
)
def test_a_network_that_cannot_be(changed):
    assert decode(small_spec()) == small_spec()
    with pytest.raises(msgspec.ValidationError):
        decode(small_spec(), **changed)


# --- model ------------------------------------------------------------------------------------------------------------


def test_the_hash_is_what_the_architecture_says():
    """SHA-256 over spec, classes and each tensor's name, dtype, shape and bytes, in the order of the names."""
    model = small_model()
    digest = hashlib.sha256(msgspec.json.encode([msgspec.to_builtins(model.spec), list(model.classes)]))
    for name in sorted(model.tensors):
        array = model.tensors[name]
        shape = "(" + "".join(f"{n}, " for n in array.shape)
        shape = shape.rstrip(" ") + ")" if array.ndim == 1 else shape.rstrip(", ") + ")"
        digest.update(f"\n{name} {array.dtype.name} {shape}\n".encode())
        digest.update(b"".join(struct.pack("<" + array.dtype.char, value) for value in array.reshape(-1).tolist()))
    assert model.hash == digest.hexdigest()


def test_the_hash_sees_every_value():
    model = small_model()
    seen = {model.hash}
    for name, array in model.tensors.items():
        changed = array.copy()
        changed.reshape(-1)[-1] = 1 if changed.reshape(-1)[-1] != 1 else 2
        seen.add(model.with_tensors({name: changed}).hash)
    seen.add(Model(model.spec, model.tensors, ("c", "b", "a")).hash)
    seen.add(Model(msgspec.structs.replace(model.spec, name="other"), model.tensors, model.classes).hash)
    assert len(seen) == len(model.tensors) + 3


def test_equal_models_have_equal_hashes_whatever_their_arrays_look_like():
    model = small_model()
    other = {}
    for name, array in reversed(model.tensors.items()):
        swapped = array.astype(array.dtype.newbyteorder(">"))
        other[name] = np.asfortranarray(swapped)
    twin = Model(model.spec, other, list(model.classes))
    assert twin.hash == model.hash
    assert all(a.dtype.isnative and a.flags.c_contiguous for a in twin.tensors.values())


def test_a_model_cannot_be_changed():
    raw = {name: array.copy() for name, array in small_model().tensors.items()}
    raw["head.bias"] = raw["head.bias"].view()
    raw["head.bias"].flags.writeable = False  # read-only, but its base is not
    base = raw["head.bias"].base
    model = Model(small_spec(), raw, ("a", "b", "c"))
    kept = model.hash
    base[:] = 77
    for name, array in raw.items():
        if name != "head.bias":
            array[:] = 1
        assert not model.tensors[name].flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        model.tensors["stem.scale"][0] = 3
    with pytest.raises(TypeError):
        model.tensors["stem.scale"] = raw["stem.scale"]
    assert Model(model.spec, model.tensors, model.classes).hash == kept == small_model().hash


def test_what_did_not_change_is_shared():
    model = small_model()
    bias = np.zeros(3, np.int16)
    changed = model.with_tensors({"head.bias": bias})
    assert changed.tensors["head.bias"] is not bias
    assert all(changed.tensors[n] is model.tensors[n] for n in model.tensors if n != "head.bias")
    assert model.tensors["head.bias"].any()


def test_new_classes_begin_with_a_head_of_zeros():
    model = small_model().with_classes(["x", "y"])
    assert model.classes == ("x", "y")
    assert model.tensors["head.weight"].shape == (2, model.spec.feature_count)
    assert not model.tensors["head.weight"].any()
    assert not model.tensors["head.bias"].any()


def spoil(name, value):
    def change(tensors):
        tensors[name] = value(tensors[name].copy())

    return change


def put(value):
    def change(array):
        array.reshape(-1)[3] = value
        return array

    return change


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.pop("stem.scale"), "missing or not of this network: stem.scale"),
        (lambda t: t.update(extra=np.zeros(1)), "missing or not of this network: extra"),
        (spoil("stem.weight", lambda a: a.astype(np.float64)), "stem.weight is float64"),
        (spoil("head.weight", lambda a: a[:2]), "head.weight is int16 (2, 64), the network needs int16 (3, 64)"),
        (spoil("block0.bits", lambda a: a.astype(np.int8)), "block0.bits is int8"),
        (spoil("block1.scale", put(np.nan)), "block1.scale holds values that are not finite"),
        (spoil("features.shift", put(-np.inf)), "features.shift holds values that are not finite"),
        (spoil("block0.q", put(0)), "block0.q holds block scales outside 1..127"),
        (spoil("block0.q", put(128)), "block0.q holds block scales outside 1..127"),
    ],
)
def test_tensors_that_do_not_fit(change, word):
    model = small_model()
    tensors = dict(model.tensors)
    change(tensors)
    with pytest.raises(ArtifactError) as caught:
        Model(model.spec, tensors, model.classes)
    assert word in str(caught.value)


@pytest.mark.parametrize("classes", [(), ("a", "a"), tuple(f"c{i}" for i in range(MAX_CLASSES + 1))])
def test_classes_that_cannot_be(classes):
    with pytest.raises(ArtifactError, match="1 to 100 classes"):
        small_model().with_classes(classes)


# --- artifact ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    artifact.save(small_model(), path, recipe="epochs = 1\n", scores='{"accuracy": 0.5}')
    return path


def test_an_artifact_comes_back_whole(saved):
    model = artifact.load(saved)
    assert model.hash == small_model().hash
    assert model.spec == small_spec()
    about = artifact.describe(saved)
    assert about["recipe"] == "epochs = 1\n"
    assert about["hash"] == model.hash
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_texts_about_a_model_cannot_stand_for_it(tmp_path):
    path = tmp_path / "m.safetensors"
    artifact.save(small_model(), path, hash="0" * 64, format="else", spec="{}")
    assert artifact.load(path).hash == small_model().hash


def test_the_shipped_model():
    model = artifact.load(artifact.DEFAULT)
    assert artifact.describe(artifact.DEFAULT)["hash"] == model.hash


def flip_is_seen(path) -> bool:
    """Whether loading is refused; else it must give the very model that was saved."""
    try:
        model = artifact.load(path)
    except ArtifactError as error:
        return str(error).startswith(f"{path}: ") or pytest.fail(f"the message does not name the file: {error}")
    assert model.hash == small_model().hash
    return False


def test_cuts_and_flips_are_artifact_errors(saved):
    """Cut at, and flip a bit of, every byte of the beginning and many of the rest."""
    data = saved.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for at in (*range(40), *range(40, header + 8, 5), *range(header + 8, len(data), 101), len(data) - 1):
        saved.write_bytes(data[:at])
        with pytest.raises(ArtifactError, match=str(saved)):
            artifact.load(saved)
    seen = 0
    about = data[:header].decode("latin-1").index
    harmless = range(about("__metadata__"), header)  # texts about the model, and the padding of the header
    for at in (*range(40), *range(40, header, 5), *range(header, len(data), 61)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        saved.write_bytes(flipped)
        if flip_is_seen(saved):
            seen += 1
        else:
            assert at in harmless
    print(f"{seen} flips refused")
    assert seen > 150
    saved.write_bytes(data + b"\0")
    with pytest.raises(ArtifactError):
        artifact.load(saved)


def rewrite(path, metadata=None, tensors=None):
    """The artifact with other texts or tensors inside, written by the library itself."""
    about = artifact.describe(path)
    old = dict(artifact.load(path).tensors)
    changed = {k: v for k, v in {**about, **(metadata or {})}.items() if v is not None}
    path.write_bytes(to_safetensors({k: v for k, v in {**old, **(tensors or {})}.items() if v is not None}, changed))


@pytest.mark.parametrize(
    ("metadata", "word"),
    [
        ({"format": "hadanet-9"}, "format 'hadanet-9'"),
        ({"format": None}, "format None"),
        ({"hash": "0" * 64}, "does not match the hash inside"),
        ({"hash": None}, "does not match the hash inside"),
        ({"spec": None}, "damaged"),
        ({"spec": "{"}, "damaged"),
        ({"spec": "{}"}, "damaged"),
        ({"spec": "[" * 100_000}, "damaged"),
        ({"classes": '["a", "b"]'}, "head.weight is int16 (3, 64), the network needs int16 (2, 64)"),
        ({"classes": '["a", "a", "b"]'}, "classes"),
        ({"classes": "3"}, "damaged"),
        ({"classes": '["a", "b", "d"]'}, "does not match the hash inside"),
    ],
)
def test_texts_that_do_not_fit(saved, metadata, word):
    rewrite(saved, metadata)
    with pytest.raises(ArtifactError) as caught:
        artifact.load(saved)
    assert str(caught.value).startswith(f"{saved}: ")
    assert word in str(caught.value)


@pytest.mark.parametrize("taps", [[7], [1, 0], [], [-1]])
def test_a_spec_that_cannot_be(saved, taps):
    spec = msgspec.to_builtins(small_spec()) | {"taps": taps}
    rewrite(saved, {"spec": json.dumps(spec)})
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.load(saved)


@pytest.mark.parametrize(
    "tensors",
    [
        {"stem.scale": None},
        {"more": np.zeros(3)},
        {"stem.scale": np.zeros(8, np.float16)},
        {"stem.scale": np.full(8, np.nan, np.float32)},
        {"stem.scale": np.zeros(8, np.float32)},
        {"block0.q": np.zeros((16, 9), np.uint8)},
    ],
)
def test_tensors_of_another_model(saved, tensors):
    rewrite(saved, tensors=tensors)
    with pytest.raises(ArtifactError) as caught:
        artifact.load(saved)
    assert str(caught.value).startswith(f"{saved}: ")


def test_a_dtype_that_numpy_does_not_know(saved):
    """bfloat16 is common in safetensors; the header says it of 16-bit integers here."""
    data = saved.read_bytes()
    assert data.count(b'"I16"') == 2
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length].replace(b'"I16"', b'"BF16"').rstrip(b" ")
    saved.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    with pytest.raises(ArtifactError, match="bfloat16"):
        artifact.load(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        b"PK\x03\x04",
        b"version https://git-lfs.github.com/spec/v1\n",
        struct.pack("<Q", 2) + b"{}",
    ],
)
def test_files_that_are_something_else(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=str(path)):
        artifact.load(path)


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(to_safetensors({"a": np.zeros(3)}))
    with pytest.raises(ArtifactError, match=r"format None, this program reads 'hadanet-3'"):
        artifact.load(path)


def test_places_without_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "no.safetensors", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ArtifactError, match=str(path)):
            artifact.load(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(artifact.MAX_ARTIFACT_BYTES + 1)  # a hole: it takes no room on the disk
    with pytest.raises(ArtifactError, match="larger than 512 MiB"):
        artifact.load(path)


def test_saving_is_all_or_nothing(saved, monkeypatch):
    """Whatever happens before the last moment, the old file stays as it was and nothing else is left."""
    old = saved.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifact.os, "fsync", full)
        with pytest.raises(ArtifactError, match=f"{saved}: cannot be written: No space left"):
            artifact.save(small_model(seed=1), saved)
    assert saved.read_bytes() == old
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]
    artifact.save(small_model(seed=1), saved)
    assert artifact.load(saved).hash == small_model(seed=1).hash


def test_places_that_cannot_be_written(saved, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (tmp_path / "no" / "m.safetensors", saved / "m.safetensors", folder):
        with pytest.raises(ArtifactError, match=f"{path}: cannot be written"):
            artifact.save(small_model(), path)
    assert not list(tmp_path.glob("**/*.partial"))


# --- hadanet info -----------------------------------------------------------------------------------------------------


def test_info_says_what_is_in_an_artifact(saved, capsys):
    assert cli.main(["info", str(saved), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    model = small_model()
    assert facts["hash"] == model.hash
    assert facts["classes"] == ["a", "b", "c"]
    assert facts["features"] == 64
    assert facts["blocks"] == 2
    assert facts["bytes"] == saved.stat().st_size
    assert facts["binary weights"] == 16 * 9 * 8 + 16 * 9 * 16
    assert facts["block scales"] == 16 * 9 + 16
    assert facts["stem weights"] == 8 * 27
    floats = 3 * 8 + (8 + 4 * 16) + (16 + 4 * 16) + 2 * 64
    assert facts["float parameters"] == floats
    assert cli.main(["info", str(saved)]) == 0
    text = capsys.readouterr().out
    assert f"hash:             {model.hash}\n" in text
    assert "classes:          a, b, c\n" in text
    assert "epochs = 1" in text


def test_info_of_the_shipped_model(capsys):
    assert cli.main(["info"]) == 0
    assert "network:" in capsys.readouterr().out


def test_info_of_something_else(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    assert cli.main(["info", str(path)]) == 1
    assert capsys.readouterr().err == f"hadanet: {path}: cannot be read: No such file or directory\n"
