"""The torch layers against the NumPy formula, their gradients, and training in one process. Needs PyTorch."""

import json
import math
import re
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from rich.progress import Progress

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'hadanet-uav[train]'")

from models import artifact, cli  # noqa: E402
from models import binarize as formula  # noqa: E402
from models.engine import Engine  # noqa: E402
from models.errors import ArtifactError, RecipeError  # noqa: E402
from models.model import head_shapes  # noqa: E402
from models.network import HEAD_STEP, Block, NetworkSpec, Stem, block_weight, forward  # noqa: E402
from models.training import datasets, trainer  # noqa: E402
from models.training.autograd import binarize  # noqa: E402
from models.training.canonical import canonical  # noqa: E402
from models.training.layers import BinaryBlock  # noqa: E402
from models.training.recipe import read  # noqa: E402
from tests.training_data import arrays, recipe_text, write  # noqa: E402
from tests.training_runs import lively_net  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


# --- layers --------------------------------------------------------------------------------------------------------

SHAPES = [(1,), (2,), (7,), (5, 16), (3, 17), (2, 3, 31), (4, 1, 32), (2, 2, 3, 33), (2, 65), (1, 300)]
BETAS = [0, 1, 2, 3, 5, 8, 16, 17, 64, 1000]


def values(rng, shape, dtype):
    """Numbers on both sides of the points where the formula changes, and on them: 0, -0, 1, -1."""
    x = rng.normal(0, 1.2, shape)
    special = rng.choice([0.0, -0.0, 1.0, -1.0], shape)
    return np.where(rng.random(shape) < 0.3, special, x).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta", BETAS)
def test_binarize_equals_the_formula_both_ways(beta, dtype):
    rng = np.random.default_rng(beta)
    tolerance = 8 * np.finfo(dtype).eps
    for shape in SHAPES:
        x, grad = values(rng, shape, dtype), rng.normal(size=shape).astype(dtype)
        tensor = torch.from_numpy(x.copy()).requires_grad_()
        out = binarize(tensor, beta)
        out.backward(torch.from_numpy(grad))
        assert out.dtype == tensor.dtype
        np.testing.assert_allclose(out.detach().numpy(), formula.binarize(x, beta), rtol=tolerance, atol=tolerance)
        expected = formula.binarize_backward(x, beta, grad)
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=tolerance, atol=10 * tolerance)
        np.testing.assert_array_equal(tensor.detach().numpy(), x)


def test_binarize_takes_tensors_in_any_memory_order():
    x = torch.randn(2, 12, 5, 6, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    expected = formula.binarize(np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy()), 5)
    np.testing.assert_allclose(binarize(x.permute(0, 2, 3, 1), 5).numpy(), expected, rtol=1e-6)


def surrogate(at, beta):
    """A smooth function whose value and gradient at `at` are those of the straight-through binarization.

    Signs count as constants in the scale, the scale counts as a constant in front of the signs, and a sign moves
    like clip(x, -1, 1): the sum of the two is what eq. 5 and 6 are the derivative of. A layer at beta = 1 is exact.
    """
    if beta == 1:
        return lambda x: x
    width = at.shape[-1]
    length = min(beta, width) or width
    starts = range(0, width, length)

    def scales(x):
        parts = [np.abs(x[..., i : i + length]) for i in starts]
        return np.concatenate([np.broadcast_to(p.mean(-1, keepdims=True), p.shape) for p in parts], axis=-1)

    signs, frozen = np.where(at < 0, -1.0, 1.0), scales(at)
    return lambda x: scales(x) * signs + frozen * (np.clip(x, -1, 1) - np.clip(at, -1, 1))


def block_loss(p, spec, binarize_activation, binarize_weight, grad):
    """sum(grad * block(x)) in NumPy, NHWC, float64, BatchNorm with the batch's own statistics."""
    k, x = spec.kernel, p["x"]
    a = binarize_activation(x + p["in_shift"])
    a = np.pad(a, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    w = binarize_weight(p["weight"].reshape(spec.channels, -1)).reshape(p["weight"].shape)
    n, height, width, _ = x.shape
    y = np.zeros((n, height // spec.stride, width // spec.stride, spec.channels))
    for i in range(k):
        for j in range(k):
            window = a[:, i : i + height : spec.stride, j : j + width : spec.stride]
            y += np.einsum("nhwc,oc->nhwo", window, w[:, i, j])
    y = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5) * p["norm.weight"] + p["norm.bias"]
    if spec.stride == 2:
        x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    y = y + np.concatenate([x] * -(-spec.channels // x.shape[-1]), axis=-1)[..., : spec.channels]
    return float((grad * np.where(y >= 0, y, y * p["norm.slope"])).sum())


@pytest.mark.parametrize(
    ("spec", "c_in"),
    [
        (Block(channels=5, beta_w=4, beta_a=3), 4),
        (Block(channels=7, stride=2, beta_w=0, beta_a=0), 3),
        (Block(channels=3, kernel=1, beta_w=1, beta_a=2), 5),
    ],
)
def test_a_blocks_gradient_is_that_of_its_smooth_surrogate(spec, c_in):
    rng = np.random.default_rng(1)
    block = BinaryBlock(spec, c_in).double()
    p = {name: rng.normal(0.2, 0.7, tuple(tensor.shape)) for name, tensor in block.named_parameters()}
    p["x"] = rng.normal(0, 0.8, (2, 4, 4, c_in))
    with torch.no_grad():
        for name, tensor in block.named_parameters():
            tensor.copy_(torch.from_numpy(p[name]))
    x = torch.from_numpy(p["x"].copy()).permute(0, 3, 1, 2).requires_grad_()
    out = block(x)
    grad = rng.normal(size=tuple(out.permute(0, 2, 3, 1).shape))
    loss = (out.permute(0, 2, 3, 1) * torch.from_numpy(grad)).sum()
    loss.backward()
    gradients = {name: tensor.grad.numpy() for name, tensor in block.named_parameters()}
    gradients["x"] = x.grad.permute(0, 2, 3, 1).numpy()

    weights = surrogate(p["weight"].reshape(spec.channels, -1), spec.beta_w)
    activations = surrogate(p["x"] + p["in_shift"], spec.beta_a)

    def loss_with(name, index, step):
        moved = p[name].copy()
        moved[index] += step
        return block_loss(p | {name: moved}, spec, activations, weights, grad)

    assert loss.item() == pytest.approx(loss_with("x", (0, 0, 0, 0), 0.0), rel=1e-9)
    assert gradients.keys() == p.keys()
    h = 1e-6
    for name, gradient in gradients.items():
        places = list(np.ndindex(gradient.shape))
        for place in (places[i] for i in rng.permutation(len(places))[:40]):
            slope = (loss_with(name, place, h) - loss_with(name, place, -h)) / (2 * h)
            assert gradient[place] == pytest.approx(slope, rel=1e-5, abs=1e-6), (name, place)


SPECS = [
    NetworkSpec(
        name="mixed",
        input_size=16,
        mean=(100, 110, 120),
        stem=Stem(channels=12),
        blocks=(
            Block(channels=20, beta_w=16, beta_a=0),
            Block(channels=33, stride=2, beta_w=7, beta_a=5),
            Block(channels=24, kernel=1, beta_w=0, beta_a=8),
        ),
        taps=(0, 2),
        beta_f=4,
    ),
    NetworkSpec(
        name="wide",
        input_size=15,
        mean=(0, 0, 0),
        stem=Stem(channels=8, kernel=5, stride=1),
        blocks=(Block(channels=40, kernel=5, beta_w=32, beta_a=64), Block(channels=16, beta_w=1000, beta_a=1)),
        taps=(1,),
        beta_f=0,
    ),
]


def on_the_grids(net):
    """The network itself with block scales and head rounded as they fly: binarizing s * q * sign gives it back."""
    model = trainer.finished(net, ("a", "b", "c"))
    with torch.no_grad():
        for i, block in enumerate(net.blocks):
            block.weight.copy_(torch.from_numpy(block_weight(net.spec, model.tensors, i)))
        net.head.weight.copy_(torch.from_numpy(model.tensors["head.weight"] * np.float32(HEAD_STEP)))
        net.head.bias.copy_(torch.from_numpy(model.tensors["head.bias"] * np.float32(HEAD_STEP)))
    return model


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_the_canonical_tensors_compute_what_the_network_computes(spec):
    net = lively_net(spec)
    model = on_the_grids(net)
    tiles = np.random.default_rng(2).integers(0, 256, (5, spec.input_size, spec.input_size, 3), dtype=np.uint8)
    rgb = torch.from_numpy(tiles[..., ::-1].astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        features, logits = net.features(rgb).numpy(), net(rgb).numpy()
    expected = forward(spec, model.tensors, tiles)
    assert np.abs(expected).std() > 0.1
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    engine = Engine(model)
    np.testing.assert_allclose(engine.logits(engine.features(tiles)), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_block_scales_lose_at_most_half_a_step(spec):
    net = lively_net(spec)
    with torch.no_grad():
        net.blocks[0].weight[:, 0] *= 1e-5  # blocks much smaller than others of their channel keep the smallest scale
    tensors = canonical(net)
    for i, block in enumerate(net.blocks):
        latent = block.weight.detach().flatten(1).numpy()
        step = tensors[f"block{i}.s"][:, None]
        exact = formula.binarize(latent, block.spec.beta_w)
        flown = block_weight(spec, tensors, i).reshape(latent.shape)
        np.testing.assert_array_equal(np.sign(flown), np.sign(exact))
        assert (np.abs(flown - exact) <= np.maximum(step / 2, step - np.abs(exact)) * 1.0001).all()
        assert tensors[f"block{i}.q"].max(axis=1).tolist() == [127] * block.spec.channels


def test_a_channel_of_zeros_stays_zero():
    net = lively_net(SPECS[0])
    with torch.no_grad():
        net.blocks[1].weight[4] = 0
    model = trainer.finished(net, ("a", "b", "c"))
    weight = block_weight(SPECS[0], model.tensors, 1)
    assert not weight[4].any()
    assert weight[5].all()


def test_clip_keeps_latent_weights_where_the_gradient_lives():
    net = lively_net(SPECS[0])
    with torch.no_grad():
        net.blocks[0].weight.mul_(30)
    stem = net.stem.weight.clone()
    net.clip()
    assert net.blocks[0].weight.abs().max() == 1
    assert torch.equal(net.stem.weight, stem)


def test_the_head_stays_within_its_integers():
    net = lively_net(SPECS[0])
    with torch.no_grad():
        net.head.weight[0, 0], net.head.weight[1, 0], net.head.weight[2, 0] = 1e6, -1e6, 63.998046875
    head = trainer.finished(net, ("a", "b", "c")).tensors["head.weight"]
    assert head[:, 0].tolist() == [32767, -32768, 32767]


def test_a_network_that_is_not_finite_becomes_no_model():
    net = lively_net(SPECS[0])
    net.feature_norm.running_mean[3] = math.nan
    with pytest.raises(RecipeError, match="not finite; lower learning_rate"):
        trainer.finished(net, ("a", "b", "c"))


# --- the loop and the command --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HADANET_DATA", str(tmp_path))
    write(tmp_path, arrays(count=40))
    return tmp_path


def recipe_in(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def trained(recipe):
    return trainer.train(recipe, datasets.load("ucmerced"), Progress(disable=True))


def test_the_loss_that_stops_being_finite_is_reported_with_its_epoch(folder):
    recipe, _ = read(recipe_in(folder, recipe_text(epochs=5)))
    recipe = msgspec.structs.replace(recipe, batch=32, learning_rate=1e36, warm_up=0.0)  # one step an epoch
    with pytest.raises(RecipeError, match=r"epoch 2 of 5: the loss is (nan|inf); lower learning_rate"):
        trained(recipe)


def test_more_classes_than_a_model_can_have_are_found_before_training(folder):
    recipe, _ = read(recipe_in(folder, recipe_text(epochs=1)))
    data = datasets.load("ucmerced")
    data = msgspec.structs.replace(data, class_names=tuple(map(str, range(101))))
    progress = Progress(disable=True)
    with pytest.raises(ArtifactError, match="1 to 100 classes"):
        trainer.train(recipe, data, progress)
    assert not progress.tasks


@pytest.mark.parametrize(
    ("epochs", "warm_up"),
    [(1, 0.0), (1, 0.5), (5, 0.1), (10, 0.05), (2, 0.999)],  # of 2 steps an epoch: a warm-up of exactly one step too
)
def test_every_warm_up_can_be_followed(folder, epochs, warm_up):
    recipe, _ = read(recipe_in(folder, recipe_text(epochs=epochs)))
    model, scores = trained(msgspec.structs.replace(recipe, warm_up=warm_up))
    assert 0 <= scores["test_accuracy"] <= 1
    shapes = recipe.network.shapes() | head_shapes(recipe.network, 3)
    assert {name: (a.dtype.name, a.shape) for name, a in model.tensors.items()} == shapes


def test_colours_are_seen_in_flight_as_in_training(folder):
    """Red and blue are told apart by the packed network, which reads BGR, as by the trained one, which reads RGB."""
    recipe, _ = read(recipe_in(folder, recipe_text(epochs=4)))
    data = datasets.load("ucmerced")
    labels = np.arange(len(data.labels)) % 2
    images = data.images // 2
    images[labels == 0, ..., 0] += 100
    images[labels == 1, ..., 2] += 100
    coloured = msgspec.structs.replace(data, images=images, labels=labels, class_names=("blue", "red"))
    _, scores = trainer.train(recipe, coloured, Progress(disable=True))
    assert scores["test_accuracy"] == 1


def test_latent_weights_are_clipped_while_training(folder):
    recipe, _ = read(recipe_in(folder, recipe_text(epochs=3, learning_rate=1.0)))
    model, _ = trained(recipe)
    largest = max(float(model.tensors[f"block{i}.s"].max()) * 127 for i in range(2))
    assert 0.9 < largest < 1.000001


def command(capsys, *arguments):
    code = cli.main(["train", *map(str, arguments)])
    said = capsys.readouterr()
    return SimpleNamespace(code=code, out=said.out, err=said.err)


def refused(capsys, *arguments):
    """The one line with which the command refuses."""
    result = command(capsys, *arguments)
    assert result.code == 1
    assert result.out == ""
    assert re.fullmatch(r"hadanet: [^\n]+\n", result.err)
    return result.err


def test_a_model_is_written_with_what_it_was_made_of(folder, capsys):
    out = folder / "m.safetensors"
    recipe = recipe_in(folder, recipe_text(epochs=1))
    result = command(capsys, recipe, "--out", out)
    assert result.code == 0
    assert result.out.startswith(f"{out}: {{")
    about = artifact.describe(out)
    assert about["recipe"] == recipe.read_text()
    assert json.loads(about["scores"]) == json.loads(result.out.removeprefix(f"{out}: "))
    assert about["torch"] == f"{torch.__version__}, threads: 1"
    assert sorted(p.name for p in folder.iterdir()) == ["m.safetensors", "recipe.toml", "ucmerced.npz"]


def test_a_batch_larger_than_the_data_is_refused(folder, capsys):
    path = recipe_in(folder, recipe_text().replace("batch = 16", "batch = 33"))
    said = refused(capsys, path, "--out", folder / "m.safetensors")
    assert "batch = 33 is more than the 32 training images of ucmerced" in said


def test_bad_input_is_refused_in_one_line(folder, capsys):
    good, out = recipe_in(folder, recipe_text()), folder / "m.safetensors"
    assert "cannot be read" in refused(capsys, folder / "none.toml", "--out", out)
    other = folder / "other.toml"
    other.write_text(recipe_text().replace('"ucmerced"', '"imagenet"'))
    assert "'imagenet' is not known" in refused(capsys, other, "--out", out)
    other.write_text(recipe_text().replace("min_scale", "blur"))
    assert "unknown field `blur` - at `$.augment`" in refused(capsys, other, "--out", out)
    (folder / "ucmerced.npz").write_bytes((folder / "ucmerced.npz").read_bytes()[:-100])
    assert "damaged" in refused(capsys, good, "--out", out)
    (folder / "ucmerced.npz").unlink()
    assert "put the data set there or set HADANET_DATA" in refused(capsys, good, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("place", ["none/m.safetensors", "recipe.toml/m.safetensors", ".", "x" * 300 + "/m"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_else(folder, capsys, place):
    path = recipe_in(folder, recipe_text())
    (folder / "ucmerced.npz").unlink()  # would be the next complaint
    said = refused(capsys, path, "--out", folder / place)
    assert "cannot be written" in said or "is a folder" in said
    assert [p.name for p in folder.iterdir()] == ["recipe.toml"]


def test_saving_leaves_nothing_half_written(folder, monkeypatch):
    model = trainer.finished(lively_net(SPECS[0]), ("a", "b", "c"))

    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact.os, "fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        artifact.save(model, folder / "m.safetensors")
    assert sorted(p.name for p in folder.iterdir()) == ["ucmerced.npz"]
    with pytest.raises(ArtifactError, match="cannot be written: Not a directory"):
        artifact.save(model, folder / "ucmerced.npz" / "m.safetensors")
