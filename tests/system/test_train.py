"""`hadanet train` as a process: it learns, says what it did, repeats itself, and stops without leaving a mess."""

import hashlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest

from models import artifact
from models.binarize import binarize
from models.network import HEAD_STEP, forward
from models.training import datasets
from tests.training_data import CLASS_NAMES, arrays, recipe_text, write

# the handler is what a shell gives; a runner in the background may hand down an ignored one
TRAIN = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from models.cli import main; "
TRAIN += "sys.exit(main(['train', *sys.argv[1:]]))"
WAIT_S = 60.0

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: pip install 'hadanet-uav[train]'"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    write(folder, arrays(count=300))
    return folder


def environment(folder):
    return os.environ | {"HADANET_DATA": str(folder), "OMP_NUM_THREADS": "1"}


def run(folder, *arguments, program=TRAIN):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def train(folder, name, seed):
    recipe, out = folder / f"{name}.toml", folder / f"{name}.safetensors"
    recipe.write_text(recipe_text(seed=seed))
    result = run(folder, recipe, "--out", out)
    assert result.returncode == 0, result.stderr
    return result, out


@pytest.fixture(scope="module")
def first(folder):
    return train(folder, "first", seed=0)


@needs_torch
def test_it_learns_and_the_artifact_says_how(folder, first, monkeypatch):
    result, out = first
    about, model = artifact.describe(out), artifact.load(out)
    scores = json.loads(about["scores"])
    assert scores["test_accuracy"] > 0.8  # chance is 0.33
    assert result.stdout == f"{out}: {json.dumps(scores)}\n"
    assert "tiny epoch 6/6 loss" in result.stderr
    assert about["recipe"] == (folder / "first.toml").read_text()
    assert tomllib.loads(about["recipe"])["network"]["name"] == model.spec.name
    assert about["data"] == f"ucmerced sha256 {hashlib.sha256((folder / 'ucmerced.npz').read_bytes()).hexdigest()}"
    assert model.classes == CLASS_NAMES
    monkeypatch.setenv("HADANET_DATA", str(folder))
    data = datasets.load("ucmerced")
    z = binarize(forward(model.spec, model.tensors, data.images[data.test]), model.spec.beta_f)
    logits = HEAD_STEP * (z @ model.tensors["head.weight"].T.astype(np.float32) + model.tensors["head.bias"])
    right = logits.argmax(1) == data.labels[data.test]
    assert abs(right.mean() - scores["test_accuracy"]) <= 1 / len(right)  # the formula, within one near tie


@needs_torch
def test_a_seed_decides_the_model(folder, first):
    _, again = train(folder, "again", seed=0)
    _, other = train(folder, "other", seed=1)
    hashes = [artifact.load(path).hash for path in (first[1], again, other)]
    assert hashes[0] == hashes[1] != hashes[2]


@needs_torch
def test_ctrl_c_ends_it_with_130_and_no_artifact(tmp_path, folder):
    recipe = tmp_path / "long.toml"
    recipe.write_text(recipe_text(epochs=100_000))
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(recipe), "--out", str(tmp_path / "m.safetensors")],
        env=environment(folder) | {"FORCE_COLOR": "1"},  # so that the progress is shown before the end
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        seen, deadline = b"", time.monotonic() + WAIT_S
        while b"epoch 1/100000" not in seen and time.monotonic() < deadline:
            if select.select([process.stderr], [], [], 1)[0]:
                chunk = os.read(process.stderr.fileno(), 65536)
                assert chunk, f"ended too early: {seen!r}"
                seen += chunk
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
        process.wait()
    assert b"epoch 1/100000" in seen
    assert process.returncode == 130
    assert out == b""
    assert rest.endswith(b"hadanet: interrupted\n")
    assert b"Traceback" not in rest
    # no artifact, nothing half written; the last whole epoch, from where --resume goes on
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.toml", "m.safetensors.checkpoint"]


def test_without_torch_it_says_what_to_install(tmp_path, folder):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text())
    without = "import sys; sys.modules['torch'] = None; " + TRAIN
    result = run(folder, recipe, "--out", tmp_path / "m.safetensors", program=without)
    assert result.returncode == 1
    assert result.stderr == "hadanet: training needs PyTorch: pip install 'hadanet-uav[train]'\n"
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]
