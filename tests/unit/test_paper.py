"""The tables and figures of the paper, against numbers counted by hand and by other programs."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from models import artifact, cli
from models.binarize import binarize
from models.model import Model
from models.paper import angles, sizes
from models.training.recipe import read
from tests import reference


def run(capsys, tmp_path, *arguments):
    code = cli.main(["paper", *arguments, "--out", str(tmp_path / "paper")])
    said = capsys.readouterr()
    return code, said.out, said.err


def rows(tmp_path, name):
    return json.loads((tmp_path / "paper" / f"{name}.json").read_text())["rows"]


def test_table_1_is_within_a_percent_of_the_paper(capsys, tmp_path):
    code, out, _ = run(capsys, tmp_path, "table1")
    assert code == 0
    assert "Table 1" in out
    for row in rows(tmp_path, "table1"):
        assert row["float_scales_and_ends"] == pytest.approx(row["paper"], rel=0.01)
    assert (tmp_path / "paper" / "table1.png").read_bytes()[:4] == b"\x89PNG"
    # parameters as others count them: torchvision prints these for its models
    counted = {(row["network"], row["counted"]): row["parameters"] for row in rows(tmp_path, "table1")}
    assert counted["ResNet-18", "the same, with BatchNorm"] == 11_689_512
    assert counted["AlexNet", "64-192-384-256-256, weights and biases"] == 61_100_840


def test_int8_scales_and_ends_reach_17_on_resnet(capsys, tmp_path):
    run(capsys, tmp_path, "table1")
    found = [r["int8_scales_and_ends"] for r in rows(tmp_path, "table1") if r["network"] == "ResNet-18"]
    assert min(found) > 17


def test_flown_bits_are_those_of_a_real_artifact():
    """The tensors of a model of this project, byte by byte, against the formula of the table."""
    spec = read(artifact.ZOO / "nin.toml")[0].network
    model = Model(spec, reference.random_tensors(np.random.default_rng(0), spec, 10), [str(i) for i in range(10)])
    inner = sum(8 * model.tensors[name].nbytes for name in model.tensors if name.endswith((".bits", ".q")))
    layers = [
        sizes.Layer(block.kernel**2 * c_in * block.channels, block.channels, 0)
        for block, c_in in zip(spec.blocks, spec.block_inputs(), strict=True)
    ]
    floats = 32 * sum(layer.channels for layer in layers)
    assert sizes.flown_bits(layers) - floats == pytest.approx(inner, rel=1e-3)


def test_figure_3_is_the_papers_and_the_theorys(capsys, tmp_path):
    assert run(capsys, tmp_path, "fig3")[0] == 0
    for row in rows(tmp_path, "fig3"):
        assert row["degrees"] == pytest.approx(row["expected"], abs=0.05)
        if row["paper_degrees"] is not None:
            assert row["degrees"] == pytest.approx(row["paper_degrees"], abs=0.3)
    assert math.cos(math.radians(angles.expected_angle(10**9))) == pytest.approx(math.sqrt(2 / math.pi))


def test_figure_2_falls_with_both_block_lengths(capsys, tmp_path):
    assert run(capsys, tmp_path, "fig2")[0] == 0
    found = {(r["layout"], r["beta_w"], r["beta_a"]): r["correlation"] for r in rows(tmp_path, "fig2")}
    for layout in ("row", "channel"):
        assert found[layout, 1, 1] == pytest.approx(1)
        for beta in (1, 2, 4, 8):
            falling = [found[layout, beta, other] for other in (1, 2, 4, 8)]
            assert falling == sorted(falling, reverse=True)
            falling = [found[layout, other, beta] for other in (1, 2, 4, 8)]
            assert falling == sorted(falling, reverse=True)


def test_a_dot_product_correlates_as_the_angle_says():
    """Fig. 2 by Fig. 3: of random rows, cos(angle of w) is the correlation when only weights are binarized."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=4096), rng.normal(size=(4000, 4096))
    correlation = np.corrcoef(x @ binarize(w, 8), x @ w)[0, 1]
    assert correlation == pytest.approx(math.cos(math.radians(angles.expected_angle(8))), abs=0.03)


def test_figure_5_multiplies(capsys, tmp_path):
    assert run(capsys, tmp_path, "fig5", "--most", "128")[0] == 0
    assert [row["m"] for row in rows(tmp_path, "fig5")] == [64, 128]
    assert all(row["times_faster_than_twin"] > 1 for row in rows(tmp_path, "fig5"))
    code, _, err = run(capsys, tmp_path, "fig5", "--most", "8")
    assert code == 1
    assert "--most 8" in err


def test_energy_by_hand(capsys, tmp_path):
    spec = read(artifact.ZOO / "lenet.toml")[0].network
    # 28 -> 24 (20 channels) -> 12 -> 8 (50 channels) -> 4 -> dense 800 x 500 -> 500 x 10; the stem reads 3 colours
    ends = 3 * 25 * 20 * 24 * 24 + 500 * 10
    inner = 20 * 25 * 50 * 64 + 800 * 500
    weights, end_weights = 20 * 25 * 50 + 800 * 500, 3 * 25 * 20 + 500 * 10
    values = 24 * 24 * 20 + 64 * 50 + 500
    want = (ends + inner) * 4.6 + (weights + end_weights) * 640 + 2 * values * 5
    assert sizes.energy(spec, 10)["float_uJ"] == pytest.approx(want * 1e-6)
    assert run(capsys, tmp_path, "energy")[0] == 0
    assert all(3 < row["ratio"] < 32 for row in rows(tmp_path, "energy"))


def tiny(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (160, 28, 28), np.uint8)
    labels = np.arange(160) % 2
    images[labels == 1, 8:20, 8:20] += 150
    path = tmp_path / "two.npz"
    np.savez(
        path, train_images=images[:140], train_labels=labels[:140], test_images=images[140:], test_labels=labels[140:]
    )
    return path


@pytest.mark.parametrize("network", ["lenet", "lenet-today"])
def test_table_2_trains_each_row_once_and_goes_on_where_it_was(capsys, tmp_path, network):
    pytest.importorskip("torch", reason="training needs the extra train")
    data = str(tiny(tmp_path))
    some = ("table2", "--network", network, "--data", data, "--epochs", "2", "--rows", "HadaNet(4,4)", "float")
    code, out, err = run(capsys, tmp_path, *some, "--seeds", "2")
    assert code == 0, err
    assert "HadaNet(4,4)" in out
    found = rows(tmp_path, f"table2-{network}-channel")
    assert [row["row"] for row in found] == ["float", "HadaNet(4,4)"]
    assert [row["paper"] for row in found] == [99.39, 99.43]
    assert all(row["seeds"] == 2 and row["epochs"] == 2 for row in found)
    assert all(abs(row["packed"] - row["last_epoch"]) <= 5 for row in found)  # an image of the 20 more or less
    files = sorted((tmp_path / "paper" / "runs").iterdir())
    assert [file.name for file in files] == [
        f"{network}-{betas}-channel-{data}-2-seed{seed}.json".replace(data, "two.npz")
        for betas in ("1-1", "4-4")
        for seed in (0, 1)
    ]
    before = [file.stat().st_mtime_ns for file in files]
    assert run(capsys, tmp_path, *some, "--seeds", "2")[0] == 0
    assert [file.stat().st_mtime_ns for file in files] == before
    assert rows(tmp_path, f"table2-{network}-channel") == found


def test_rows_begin_with_the_float_network_beside_their_recipe(capsys, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="training needs the extra train")
    from models.paper import accuracy
    from models.training import trainer

    text = (artifact.ZOO / "lenet.toml").read_text().replace("batch = 128", "batch = 32")
    text = text.replace('"mnist"', f'"{tiny(tmp_path)}"').replace("beta_w = 16, beta_a = 2", "beta_w = 1, beta_a = 1")
    (tmp_path / "float.toml").write_text(text)
    still = text.replace("learning_rate = 5e-3", 'learning_rate = 1e-9\norigin = { model = "float.safetensors" }')
    assert still.count("1e-9") == 1
    (tmp_path / "nin-today.toml").write_text(still)
    monkeypatch.setattr(accuracy, "ZOO", tmp_path)
    some = "table2", "--network", "nin-today", "--epochs", "1", "--rows", "float"
    code, _, err = run(capsys, tmp_path, *some)
    assert code == 1
    assert "float.safetensors: is not there; train it first" in err
    assert trainer.run(tmp_path / "float.toml", tmp_path / "float.safetensors", epochs=3)["test_accuracy"] == 1
    code, _, err = run(capsys, tmp_path, *some)
    assert code == 0, err
    assert rows(tmp_path, "table2-nin-today-channel")[0]["packed"] == 100  # it cannot have learned that by itself
    trainer.run(tmp_path / "float.toml", tmp_path / "float.safetensors", epochs=1, seed=1)
    (done,) = (tmp_path / "paper" / "runs").iterdir()
    before = done.read_bytes()
    assert run(capsys, tmp_path, *some)[0] == 0
    assert done.read_bytes() != before  # another float network, another row


def test_the_curve_over_beta_a_has_accuracy_and_time(capsys, tmp_path):
    pytest.importorskip("torch", reason="training needs the extra train")
    code, out, err = run(capsys, tmp_path, "betas", "--data", str(tiny(tmp_path)), "--epochs", "1")
    assert code == 0, err
    assert "pixel" in out
    found = rows(tmp_path, "betas")
    assert [row["beta_a"] for row in found] == ["pixel", 64, 32, 16, 8, 2]
    assert all(0 <= row["accuracy"] <= 100 and row["ms"] > 0 for row in found)
    for row in found:  # what is on the front, counted once more
        better = [o for o in found if o["ms"] < row["ms"] and o["accuracy"] > row["accuracy"]]
        assert row["front"] == (not better)
    assert found[-1]["ms"] > found[0]["ms"]  # a scale for every second channel is slower than one for each pixel


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table2", "--rows", "HadaNet(3,3)"), r"'HadaNet\(3,3\)' is not in the table of lenet: float, XNOR"),
        (("table2", "--epochs", "0"), "--epochs 0: at least 1"),
        (("table2", "--seeds", "0"), "--seeds 0: at least 1"),
        (("table3",), "needs ImageNet, or a folder like it"),
        (("table3", "--data", "/nowhere"), "dataset '/nowhere' is not known"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(capsys, tmp_path, arguments, message):
    pytest.importorskip("torch", reason="training needs the extra train")
    code, out, err = run(capsys, tmp_path, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("hadanet: ")
    assert err.count("\n") == 1
    assert re.search(message, err)


def test_a_reader_that_leaves_is_no_fault():
    for command in (("models.cli", "info"), ("models.cli", "paper", "--help")):
        shell = f"{sys.executable} -m {' '.join(command)} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
        assert done.stderr == ""
        assert done.returncode in (0, 141)  # 0 where all was written before the reader left


def test_a_folder_that_cannot_be_written_is_said(capsys, tmp_path):
    (tmp_path / "paper").write_text("in the way")
    code, _, err = run(capsys, tmp_path, "table1")
    assert code == 1
    assert "cannot be written" in err
