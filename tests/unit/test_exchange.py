"""Models out as ONNX and float ONNX networks in, against ONNX Runtime and against files written by PyTorch's layers."""

import json
import os
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import artifact, cli
from models.engine import Engine
from models.errors import ArtifactError
from models.exchange import convert, export, reader
from models.network import Block, NetworkSpec, Stem, forward
from models.training.recipe import read
from tests import reference
from tests.unit.test_engine import ALL, random_model, random_tiles

MEAN, DEVIATION = (120.0, 110.0, 100.5), (60.0, 55.0, 70.0)


def runtime(model, feed, name=None):
    content = model if isinstance(model, str | Path) else model.SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {name or session.get_inputs()[0].name: feed})[0]


def rgb(tiles):
    return np.ascontiguousarray(tiles[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32))


# --- out -----------------------------------------------------------------------------------------------------------


@ALL
def test_an_exported_model_gives_the_engines_logits(spec):
    model, tiles = random_model(spec), random_tiles(spec, 6)
    engine = Engine(model)
    want = engine.logits(engine.features(tiles))
    np.testing.assert_allclose(runtime(export.to_onnx(model), rgb(tiles)), want, rtol=1e-3, atol=1e-3)


def test_the_papers_layout_is_exported_too():
    spec = NetworkSpec(
        name="row",
        input_size=12,
        mean=(100, 110, 120),
        stem=Stem(channels=6, stride=1, valid=True),
        blocks=(Block(channels=8, beta_w=4, beta_a=3), Block(channels=9, kernel=10, valid=True, shortcut=0, beta_a=4)),
        taps=(1,),
        deviation=False,
        beta_f=1,
        layout="row",
    )
    model, tiles = random_model(spec), random_tiles(spec, 5)
    want = reference.logits(model, forward(spec, model.tensors, tiles))
    np.testing.assert_allclose(runtime(export.to_onnx(model), rgb(tiles)), want, rtol=1e-3, atol=1e-3)


def test_the_command_exports_the_model_that_is_shipped(tmp_path, capsys):
    out = tmp_path / "m.onnx"
    assert cli.main(["export", "--out", str(out)]) == 0
    assert "ONNX Runtime against the packed kernels: logits differ by at most" in capsys.readouterr().out
    model = onnx.load(out)
    props = {p.key: p.value for p in model.metadata_props}
    shipped = artifact.load(artifact.DEFAULT)
    assert props == {"classes": "\n".join(shipped.classes), "hash": shipped.hash}
    assert {node.domain for node in model.graph.node} == {""}
    assert cli.main(["export", "--out", str(tmp_path / "none" / "m.onnx")]) == 1
    assert "cannot be written" in capsys.readouterr().err


# --- in ------------------------------------------------------------------------------------------------------------


class Net:
    """A float network, node by node, with random weights."""

    def __init__(self, size=16, seed=0):
        self.rng, self.size = np.random.default_rng(seed), size
        self.nodes, self.constants, self.x, self.channels = [], [], "image", 3

    def constant(self, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"w{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, kind, *inputs, **attributes):
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        self.x = f"{name}_out"
        return self.x

    def conv(self, channels, kernel=3, stride=1, pad=1, bias=False, x=None, **more):
        inputs = self.channels // more.get("group", 1)
        weight = self.rng.normal(0, (2 / (inputs * kernel**2)) ** 0.5, (channels, inputs, kernel, kernel))
        ends = [self.constant(self.rng.normal(0, 0.2, channels).astype(np.float32))] if bias else []
        name = x or self.x
        self.channels = channels
        w = self.constant(weight.astype(np.float32))
        return self.node(
            "Conv", name, w, *ends, strides=[stride] * 2, pads=[pad] * 4, kernel_shape=[kernel] * 2, **more
        )

    def norm(self):
        c = self.channels
        parts = [self.rng.uniform(0.5, 1.5, c), self.rng.normal(0, 0.2, c), self.rng.normal(0, 0.2, c)]
        parts.append(self.rng.uniform(0.5, 1.5, c))
        return self.node("BatchNormalization", self.x, *(self.constant(p.astype(np.float32)) for p in parts))

    def gemm(self, out, inputs):
        weight = self.rng.normal(0, inputs**-0.5, (out, inputs)).astype(np.float32)
        bias = self.rng.normal(0, 0.2, out).astype(np.float32)
        return self.node("Gemm", self.x, self.constant(weight), self.constant(bias), transB=1)

    def model(self, size="fixed"):
        side = self.size if size == "fixed" else "s"
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, side, side])],
            [helper.make_tensor_value_info(self.x, TensorProto.FLOAT, ["n", "m"])],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def plain_net():
    """Everything that is imported exactly: biases, BatchNorm, PReLU, both pools, a dense layer."""
    net = Net()
    net.conv(12, bias=True)
    net.node("Relu", net.norm())
    net.conv(16)
    net.node("PRelu", net.norm(), net.constant(net.rng.uniform(0, 0.5, (16, 1, 1)).astype(np.float32)))
    net.node("MaxPool", net.x, kernel_shape=[2, 2], strides=[2, 2])
    net.conv(20, kernel=1, pad=0, bias=True)
    net.node("LeakyRelu", net.x, alpha=0.2)
    net.node("AveragePool", net.x, kernel_shape=[2, 2], strides=[2, 2])
    net.node("Flatten", net.x)
    net.node("Relu", net.gemm(24, 20 * 16))
    net.gemm(5, 24)
    return net


def residual_net():
    """Shortcuts around one and two convolutions, pool before activation, means at the end."""
    net = Net(seed=1)
    net.conv(16, stride=2)
    net.norm()
    net.node("MaxPool", net.x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    first = net.node("Relu", net.x)
    net.conv(16)
    net.node("Relu", net.norm())
    net.conv(16)
    second = net.node("Relu", net.node("Add", net.norm(), first))
    net.conv(16)
    net.node("Relu", net.node("Add", second, net.norm()))
    net.node("GlobalAveragePool", net.x)
    net.node("Flatten", net.x)
    net.node("Softmax", net.gemm(7, 16))
    return net


def saved(tmp_path, net, **more):
    path = tmp_path / "net.onnx"
    onnx.save(net.model(**more), path)
    return path


def images(size=16, count=40):
    return convert.textures(count, size, seed=3)


@pytest.mark.parametrize("net", [plain_net, residual_net])
def test_a_network_in_full_precision_gives_the_float_ones_logits(tmp_path, net):
    """beta = 1 is the float network itself, up to 8-bit weights: proof that nothing is lost on the way."""
    made = net()
    if made.nodes[-1].op_type == "Softmax":
        made.nodes.pop()
        made.x = made.nodes[-1].output[0]
    path, tiles = saved(tmp_path, made), images()
    _, start = convert.convert(path, betas=(1, 1), mean=MEAN, deviation=DEVIATION, images=tiles)
    model = start.model(tuple(f"c{i}" for i in range(len(start.head))))
    feed = (rgb(tiles) - np.array(MEAN, np.float32)[:, None, None]) / np.array(DEVIATION, np.float32)[:, None, None]
    want = runtime(path, feed.astype(np.float32))
    engine = Engine(model)
    got = engine.logits(engine.features(tiles))
    spread = want.std()
    assert np.abs(got - want).max() < 0.06 * spread
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.9995


def test_binarizing_less_loses_less(tmp_path):
    path, tiles = saved(tmp_path, residual_net()), images()
    tail = onnx.load(path)
    del tail.graph.node[-1]
    tail.graph.output[0].name = tail.graph.node[-1].output[0]
    want = runtime(tail, (rgb(tiles) - 120) / 60)
    agreement = []
    for betas in ((1, 1), (4, 1), (16, 2), (16, 0)):
        _, start = convert.convert(path, betas=betas, mean=(120.0,) * 3, deviation=(60.0,) * 3, images=tiles)
        engine = Engine(start.model(tuple("abcdefg")))
        got = engine.logits(engine.features(tiles))
        agreement.append(np.corrcoef((got - got.mean(0)).ravel(), (want - want.mean(0)).ravel())[0, 1])
    assert agreement[0] > 0.99
    assert agreement[0] > agreement[1] > agreement[3]
    assert agreement[1] > 0.6


def test_what_became_of_each_node_is_told(tmp_path):
    network = reader.read(saved(tmp_path, residual_net()))
    said = {row["node"]: (row["became"], row["precision"]) for row in network.report}
    assert said["conv0"] == ("stem", "kept: 8-bit weights")
    assert said["conv4"] == ("block 0", "binary")
    assert [value for value in said.values() if value[0].startswith("shortcut")] == [
        ("shortcut of block 1", "float"),
        ("shortcut of block 2", "float"),
    ]
    assert next(said[name] for name in said if name.startswith("gemm")) == ("head", "kept: 16-bit weights")
    assert [layer.around for layer in network.layers] == [0, 0, 2, 1]


def odd(change):
    net = Net()
    net.conv(8)
    net.node("Relu", net.x)
    change(net)
    if net.nodes[-1].op_type != "Gemm":
        net.node("GlobalAveragePool", net.x)
        net.node("Flatten", net.x)
        net.gemm(3, net.channels)
    return net


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n.node("Sigmoid", n.x), r"node sigmoid2 \(Sigmoid\) cannot be imported: operator Sigmoid"),
        (lambda n: n.conv(8, group=8), r"node conv2 \(Conv\) cannot be imported: groups"),
        (lambda n: n.conv(8, kernel=5, pad=1), "conv2 .* padding 1 of a kernel of 5"),
        (lambda n: n.conv(8, dilations=[2, 2]), "dilations"),
        (lambda n: n.norm(), "batchnormalization2 .* after the activation"),
        (lambda n: n.node("Relu", n.x), "relu2 .* after the activation"),
        (
            lambda n: n.node(
                "MaxPool", n.node("MaxPool", n.x, kernel_shape=[2, 2], strides=[2, 2]), kernel_shape=[2, 2]
            ),
            "only one",
        ),
        (lambda n: n.node("Add", n.conv(8), n.conv(8, x="relu1_out")), "second branch"),
        (lambda n: (n.node("Flatten", n.x), n.gemm(3, 8 * 256)), "the classifier reads 16 x 16 pixels"),
        (lambda n: n.node("Transpose", n.x, perm=[0, 1, 3, 2]), "operator Transpose"),
    ],
)
def test_what_cannot_be_imported_is_named_with_its_node(tmp_path, change, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        reader.read(saved(tmp_path, odd(change)))
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_projection_is_replaced_and_said(tmp_path):
    net = Net()
    net.conv(8)
    first = net.node("Relu", net.x)
    net.conv(16, stride=2)
    net.node("Relu", net.norm())
    net.conv(16)
    main = net.norm()
    net.channels = 8
    net.conv(16, kernel=1, stride=2, pad=0, x=first)
    net.node("Relu", net.node("Add", main, net.norm()))
    net.node("GlobalAveragePool", net.x)
    net.node("Flatten", net.x)
    net.gemm(3, 16)
    network = reader.read(saved(tmp_path, net))
    assert [row["precision"] for row in network.report if "shortcut" in row["became"]] == [
        "replaced: 2 x 2 mean, channels repeated"
    ] * 2
    assert len(network.layers) == 3
    assert convert.spec_of(network, "x", MEAN, 16, 0).blocks[1].shortcut == 2


def test_files_that_are_none_are_refused(tmp_path):
    path = saved(tmp_path, plain_net())
    whole = path.read_bytes()
    (tmp_path / "text.onnx").write_text("no network")
    for bad in (tmp_path / "none.onnx", tmp_path, tmp_path / "text.onnx"):
        with pytest.raises(ArtifactError, match=r"cannot be read|not an ONNX network"):
            reader.read(bad)
    for part in (0.3, 0.7, 0.95):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ArtifactError, match="not an ONNX network"):
            reader.read(path)
    with pytest.raises(ArtifactError, match="give the size of a square with --size"):
        reader.read(saved(tmp_path, plain_net(), size="open"))
    assert reader.read(saved(tmp_path, plain_net(), size="open"), 16).size == 16


def test_the_command_converts_and_training_goes_on(tmp_path, capsys):
    pytest.importorskip("torch", reason="training needs the extra train")
    rng = np.random.default_rng(0)
    photos = np.concatenate([convert.textures(60, 16, seed=1) // 3, 80 + convert.textures(60, 16, seed=2) // 2])
    labels = np.repeat([0, 1], 60)
    order = rng.permutation(120)
    photos, labels = photos[order][..., ::-1], labels[order]
    np.savez(
        tmp_path / "d.npz",
        train_images=photos[:90],
        train_labels=labels[:90],
        test_images=photos[90:],
        test_labels=labels[90:],
    )
    net = plain_net()
    net.nodes.pop()
    net.x = net.nodes[-1].output[0]
    net.gemm(2, 24)
    path, out = saved(tmp_path, net), tmp_path / "made" / "m.safetensors"
    out.parent.mkdir()
    more = ["--mean", "120", "110", "100.5", "--deviation", "60", "55", "70", "--dataset", str(tmp_path / "d.npz")]
    assert cli.main(["convert", str(path), "--out", str(out), *more]) == 0
    said = capsys.readouterr().out
    assert "before any training" in said
    assert "binary" in said
    recipe = read(out.with_suffix(".toml"))[0]
    assert recipe.origin.onnx == "../net.onnx"
    assert recipe.network == artifact.load(out).spec
    assert tomllib.loads(out.with_suffix(".toml").read_text())["teacher"]["onnx"] == "../net.onnx"
    trained = tmp_path / "t.safetensors"
    assert cli.main(["train", str(out.with_suffix(".toml")), "--out", str(trained), "--epochs", "4"]) == 0
    assert json.loads(artifact.describe(trained)["scores"])["epochs"] == 4
    for bad, message in (
        (["--classes", "a,b,c"], "3 class names for a network of 2 classes"),
        (["--beta-w", "-1"], "--beta-w -1"),
        (["--deviation", "0", "1", "1"], "--deviation"),
        (["--dataset", "nothing"], "'nothing' is not known"),
    ):
        capsys.readouterr()
        assert cli.main(["convert", str(path), "--out", str(out), *bad]) == 1
        assert message in capsys.readouterr().err


def test_training_begins_as_the_float_network(tmp_path):
    """At beta = 1, the network that training begins with is the float one, in evaluation."""
    torch = pytest.importorskip("torch", reason="training needs the extra train")
    from models.training.layers import Net as TrainingNet
    from models.training.origin import begin
    from models.training.recipe import Origin

    net = residual_net()
    net.nodes.pop()
    net.x = net.nodes[-1].output[0]
    path, tiles = saved(tmp_path, net), images()
    spec = convert.spec_of(reader.read(path), "x", MEAN, 1, 1)
    torch.manual_seed(0)
    training = TrainingNet(spec, 7).eval()
    begin(training, Origin(onnx="net.onnx", mean=MEAN, deviation=DEVIATION), tmp_path, tiles, tuple("abcdefg"))
    feed = (rgb(tiles) - np.array(MEAN, np.float32)[:, None, None]) / np.array(DEVIATION, np.float32)[:, None, None]
    want = runtime(path, feed.astype(np.float32))
    with torch.no_grad():
        got = training(torch.from_numpy(rgb(tiles))).numpy()
    assert np.abs(got - want).max() < 0.03 * want.std()


def test_resnet_20_goes_both_ways(tmp_path, capsys):
    folder = Path(os.environ.get("HADANET_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = folder / "onnx" / "resnet20_cifar10.onnx"
    if not path.is_file():
        pytest.skip(f"the network is not at {folder}; set HADANET_DATA")
    out = tmp_path / "r20.safetensors"
    assert cli.main(["convert", str(path), "--out", str(out), "--mean", "123.7", "116.8", "103.9"]) == 0
    model = artifact.load(out)
    assert len(model.spec.blocks) == 18
    assert [block.shortcut for block in model.spec.blocks] == [0, 2] * 9
    assert cli.main(["export", str(out), "--out", str(tmp_path / "back.onnx")]) == 0
    tiles = images(32, 16)
    engine = Engine(model)
    want = engine.logits(engine.features(tiles))
    got = runtime(tmp_path / "back.onnx", rgb(tiles))
    assert np.abs(got - want).max() < 1e-3


def test_what_was_exported_is_not_converted_again(tmp_path, capsys):
    out = tmp_path / "back.onnx"
    assert cli.main(["export", str(artifact.DEFAULT), "--out", str(out)]) == 0
    assert cli.main(["convert", str(out), "--out", str(tmp_path / "m.safetensors")]) == 1
    assert "back.onnx: was exported from a model of this project" in capsys.readouterr().err
