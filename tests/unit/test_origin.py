"""Training that begins with a model of this project: what it has learned is there before the first step."""

import re

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra train")

from models import artifact, cli  # noqa: E402
from models.engine import Engine  # noqa: E402
from models.errors import ArtifactError, RecipeError  # noqa: E402
from models.network import convolve  # noqa: E402
from models.training import datasets, trainer  # noqa: E402
from models.training.canonical import canonical, restored  # noqa: E402
from models.training.layers import SPREAD  # noqa: E402
from models.training.recipe import Origin, read  # noqa: E402
from tests.training_data import arrays, recipe_text, write  # noqa: E402
from tests.training_runs import model_at  # noqa: E402
from tests.unit.test_training import SPECS  # noqa: E402


@pytest.fixture
def folder(photos):
    (photos / "recipe.toml").write_text(recipe_text(epochs=4))
    return photos


def network_of(folder):
    return read(folder / "recipe.toml")[0].network


def tiles_of(size, count=40):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def as_input(tiles):
    return torch.from_numpy(np.ascontiguousarray(tiles[..., ::-1])).permute(0, 3, 1, 2)


def starts(folder, network=None, **origin):
    """The run of the recipe with this origin, before its first step."""
    recipe, _ = read(folder / "recipe.toml")
    changed = msgspec.structs.replace(recipe, origin=Origin(**origin), network=network or recipe.network)
    return trainer.Run(changed, datasets.load("ucmerced"), folder)


@torch.no_grad()
def logits(net, tiles):
    return net.eval()(as_input(tiles)).numpy()


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_a_model_comes_back_as_the_network_that_flies(spec, tmp_path):
    model = model_at(tmp_path / "m.safetensors", spec)
    net, tiles, engine = restored(model), tiles_of(spec.input_size), Engine(model)
    np.testing.assert_allclose(logits(net, tiles), engine.logits(engine.features(tiles)), rtol=1e-3, atol=1e-3)
    again = canonical(net)
    for name, tensor in model.tensors.items():
        if name.startswith("head."):
            continue
        if tensor.dtype.kind == "f":
            np.testing.assert_allclose(again[name], tensor, rtol=1e-5, atol=1e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(again[name], tensor, err_msg=name)


def test_training_begins_as_the_model(folder):
    model = model_at(folder / "m.safetensors", network_of(folder))
    run, tiles, engine = starts(folder, model="m.safetensors"), tiles_of(32), Engine(model)
    expected = engine.logits(engine.features(tiles))
    assert expected.std() > 0.3
    np.testing.assert_allclose(logits(run.net, tiles), expected, rtol=1e-3, atol=5e-3)


def test_classes_of_the_same_name_keep_their_part_of_the_head(folder):
    model = model_at(folder / "m.safetensors", network_of(folder), ("grainy", "water", "smooth"))
    run, tiles, engine = starts(folder, model="m.safetensors"), tiles_of(32), Engine(model)
    found, expected = logits(run.net, tiles), engine.logits(engine.features(tiles))
    np.testing.assert_allclose(found[:, [2, 0]], expected[:, [0, 2]], rtol=1e-3, atol=5e-3)  # smooth, striped, grainy
    assert np.abs(found[:, 1] - expected[:, 1]).mean() > 0.1


def test_a_float_model_lends_each_channel_its_mean_and_deviation(folder):
    """Measured again here, layer by layer, with NumPy's convolution."""
    whole = network_of(folder).with_betas(1, 1)
    source = restored(model_at(folder / "f.safetensors", whole))
    run = starts(folder, model="f.safetensors")
    x = as_input(trainer.as_tiles(run.data.images[~run.data.test][:64], 32))

    def behind_norms(net):
        found = []
        for block in net.eval().blocks:
            block.norm.register_forward_pre_hook(
                lambda norm, args: found.append(torch.nn.BatchNorm2d.forward(norm, args[0]).numpy())
            )
        with torch.no_grad():
            net(x)
        return found

    mine, theirs = behind_norms(run.net), behind_norms(source)
    assert len(mine) == len(theirs) == 2
    for got, wanted in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(got.mean((0, 2, 3)), wanted.mean((0, 2, 3)), atol=1e-4)
        np.testing.assert_allclose(got.std((0, 2, 3)), wanted.std((0, 2, 3)), rtol=1e-3)
        assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.5
    block, other = run.net.blocks[0], source.blocks[0]
    torch.testing.assert_close(block.weight, other.weight)
    with torch.no_grad():
        seen = run.net.stem_norm(run.net.stem((x - run.net.mean) / SPREAD)).permute(0, 2, 3, 1)
    torch.testing.assert_close(block.in_shift, -seen.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    signs, weight = block.binary_input(seen.permute(0, 3, 1, 2)), block.binary_weight()
    rows = (tensor.detach().permute(0, 2, 3, 1).numpy() for tensor in (signs, weight))
    sums = convolve(*rows, block.spec.stride, block.spec.padding)
    np.testing.assert_allclose(block.norm.running_mean.numpy(), sums.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(block.norm.running_var.numpy(), sums.var((0, 1, 2)), rtol=1e-3)


def test_what_was_learned_is_worth_something(folder, capsys):
    """Trained by the command line, then again for one epoch by a recipe that names no network, as a user would."""
    write(folder, arrays(count=300))
    (folder / "recipe.toml").write_text(recipe_text(epochs=8))
    assert cli.main(["train", str(folder / "recipe.toml"), "--out", str(folder / "m.safetensors")]) == 0
    short = "dataset = 'ucmerced'\nepochs = 1\nbatch = 16\nlearning_rate = 1e-3\n"
    short += "augment = { min_scale = 0.7 }\norigin = { model = 'm.safetensors' }\n"
    (folder / "short.toml").write_text(short)
    assert cli.main(["train", str(folder / "short.toml"), "--out", str(folder / "n.safetensors")]) == 0
    once = ["--out", str(folder / "l.safetensors"), "--epochs", "1"]
    assert cli.main(["train", str(folder / "recipe.toml"), *once]) == 0
    anew, before, after = (artifact.load(folder / f"{name}.safetensors") for name in "lmn")
    assert after.spec == before.spec
    data = datasets.load("ucmerced")
    tiles = trainer.as_tiles(data.images[data.test], 32)
    scores = [trainer.accuracy(model, tiles, data.labels[data.test]) for model in (anew, before, after)]
    assert scores[0] + 0.2 < min(scores[1:]), scores


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({}, "needs a model or an onnx network, and not both"),
        ({"model": "m.safetensors", "onnx": "m.onnx"}, "and not both"),
        ({"model": "gone.safetensors"}, "gone.safetensors: is not there; train it first"),
    ],
)
def test_an_origin_that_is_none_is_refused(folder, origin, message, capsys):
    values = ", ".join(f"{name} = '{value}'" for name, value in origin.items())
    text = (folder / "recipe.toml").read_text().replace("[augment]", f"origin = {{ {values} }}\n[augment]")
    (folder / "recipe.toml").write_text(text)
    assert cli.main(["train", str(folder / "recipe.toml"), "--out", str(folder / "o.safetensors")]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_network_of_other_layers_is_refused_with_what_differs(folder):
    network = network_of(folder)
    first, second = network.blocks
    other = msgspec.structs.replace(second, channels=64)
    model_at(folder / "m.safetensors", msgspec.structs.replace(network, blocks=(first, other)))
    with pytest.raises(RecipeError, match=re.escape("m.safetensors: its network is another: block 1 is")):
        starts(folder, model="m.safetensors")
    model_at(folder / "m.safetensors", msgspec.structs.replace(network, blocks=(first,), taps=(0,)))
    with pytest.raises(RecipeError, match="1 blocks, in the recipe 2"):
        starts(folder, model="m.safetensors")
    model_at(folder / "m.safetensors", msgspec.structs.replace(network, taps=(1,)))
    with pytest.raises(RecipeError, match="taps is"):
        starts(folder, model="m.safetensors")


def test_a_recipe_without_a_network_needs_a_whole_model(folder):
    (folder / "m.safetensors").write_bytes(b"no model")
    (folder / "r.toml").write_text("dataset = 'ucmerced'\nepochs = 1\nbatch = 16\nlearning_rate = 1e-3\n")
    with pytest.raises(RecipeError, match="network"):
        read(folder / "r.toml")
    with (folder / "r.toml").open("a") as file:
        file.write("origin = { model = 'm.safetensors' }\n")
    with pytest.raises(ArtifactError, match=r"m\.safetensors"):
        read(folder / "r.toml")
