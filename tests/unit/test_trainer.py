"""Runs that stop and go on, two stages, running means, early stops, teachers; data sets as arrays and folders."""

import itertools
import json
import math
from pathlib import Path

import cv2
import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from rich.progress import Progress

torch = pytest.importorskip("torch", reason="training needs the extra train")

from models import artifact, cli  # noqa: E402
from models.engine import Engine  # noqa: E402
from models.errors import ArtifactError, RecipeError  # noqa: E402
from models.network import Block, NetworkSpec, Stem, block_weight, forward  # noqa: E402
from models.training import checkpoint, datasets, trainer  # noqa: E402
from models.training.recipe import NO_CHANGE, Decay, Recipe, Teacher, read  # noqa: E402
from models.training.teacher import distilled  # noqa: E402
from tests.training_data import CLASS_NAMES, arrays, recipe_text, texture, write  # noqa: E402
from tests.unit.test_training import lively_net, model_at  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HADANET_DATA", str(tmp_path))
    write(tmp_path, arrays(count=60))
    return tmp_path


def recipe(folder, **changes):
    path = folder / "recipe.toml"
    path.write_text(recipe_text(epochs=4))
    return msgspec.structs.replace(read(path)[0], **changes)


def quiet():
    return Progress(disable=True)


def run_of(recipe, folder=Path()):
    return trainer.Run(recipe, datasets.load("ucmerced"), folder)


# --- stopping and going on -----------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_comes_to_the_same_model(folder):
    whole = recipe(folder, real_weights=0.5, ema=0.8, validation=0.2, patience=3, epochs=6)
    straight = run_of(whole)
    for _ in range(6):
        straight.run_epoch(quiet())
    path = folder / "x.checkpoint"
    for stops in ((1,), (3,), (2, 5)):
        run = run_of(whole)
        for epoch in range(6):
            if epoch in stops:
                tensors, about = run.state()
                checkpoint.save(path, tensors, about)
                run = run_of(whole)
                run.restore(*checkpoint.load(path, {}))
            run.run_epoch(quiet())
        assert run.model().hash == straight.model().hash
        assert run.history == straight.history


def test_resume_on_the_command_line(folder, capsys, monkeypatch):
    path, out = folder / "recipe.toml", folder / "m.safetensors"
    path.write_text(recipe_text(epochs=4))
    assert cli.main(["train", str(path), "--out", str(out)]) == 0
    want = artifact.load(out).hash
    out.unlink()

    run_epoch = trainer.Run.run_epoch

    def stopping(self, progress):
        if self.epoch == 2:
            raise KeyboardInterrupt
        run_epoch(self, progress)

    monkeypatch.setattr(trainer.Run, "run_epoch", stopping)
    assert cli.main(["train", str(path), "--out", str(out)]) == 130
    monkeypatch.setattr(trainer.Run, "run_epoch", run_epoch)
    kept = checkpoint.path_of(out)
    assert kept.exists()
    assert not out.exists()
    capsys.readouterr()
    assert cli.main(["train", str(path), "--out", str(out), "--resume", "--seed", "7"]) == 1
    assert "made with another recipe" in capsys.readouterr().err
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    assert cli.main(["train", str(path), "--out", str(out), "--resume"]) == 1
    assert "remove it and train without --resume" in capsys.readouterr().err
    kept.write_bytes(whole.replace(b"net.blocks.1.norm.slope", b"net.blocks.1.once.slope"))
    assert cli.main(["train", str(path), "--out", str(out), "--resume"]) == 1
    assert "was made by another version of this program" in capsys.readouterr().err
    kept.write_bytes(whole)
    assert cli.main(["train", str(path), "--out", str(out), "--resume"]) == 0
    assert artifact.load(out).hash == want
    assert not kept.exists()
    about = artifact.describe(out)
    assert json.loads(about["scores"])["epochs"] == 4
    assert len(json.loads(about["history"])) == 4


def test_epochs_and_seed_of_the_command_line_stand_in_the_artifact(folder, capsys):
    path, out = folder / "recipe.toml", folder / "m.safetensors"
    path.write_text(recipe_text(epochs=400))
    assert cli.main(["train", str(path), "--out", str(out), "--epochs", "1", "--seed", "3"]) == 0
    about = artifact.describe(out)
    assert about["recipe"].endswith("# epochs = 1 by the command line\n# seed = 3 by the command line\n")
    assert json.loads(about["scores"])["epochs"] == 1
    for bad in (["--epochs", "0"], ["--seed", "-1"]):
        assert cli.main(["train", str(path), "--out", str(out), *bad]) == 1
        assert bad[0].strip("-") in capsys.readouterr().err


# --- what a recipe says --------------------------------------------------------------------------------------------


def test_the_learning_rate_of_every_step(folder):
    plain = recipe(folder, epochs=10, learning_rate=0.1, warm_up=0.0)
    rates = [plain.rate(step, 4) for step in range(40)]
    assert rates[0] == 0.1
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[20] == pytest.approx(0.05)
    assert rates[-1] < 0.001
    steps = msgspec.structs.replace(plain, decay=Decay(every=4, factor=0.1))
    assert [steps.rate(4 * epoch, 4) for epoch in range(10)] == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.001] * 2)
    warm = msgspec.structs.replace(plain, warm_up=0.1)
    assert [warm.rate(step, 4) for step in range(5)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    staged = msgspec.structs.replace(plain, real_weights=0.5)
    assert [staged.rate(step, 4) for step in (0, 10, 20, 30)] == pytest.approx([0.1, 0.05, 0.1, 0.05])


def test_the_first_stage_has_real_weights(folder):
    run = run_of(recipe(folder, epochs=4, real_weights=0.5))
    x = torch.randn(2, 3, 32, 32)
    seen = []
    for _ in range(4):
        run.run_epoch(quiet())
        seen.append([block.real_weight for block in run.net.blocks])
    assert seen == [[True] * 2] * 2 + [[False] * 2] * 2
    first = run_of(recipe(folder, epochs=4, real_weights=0.5))
    first._enter_stage()
    first.net.eval()
    with torch.no_grad():
        real = first.net(x)
        for block in first.net.blocks:
            block.real_weight = False
        assert not torch.allclose(real, first.net(x))


def test_the_running_mean_is_what_is_kept(folder):
    run = run_of(recipe(folder, epochs=4, ema=0.5))
    run.run_epoch(quiet())
    assert not run.mean_net
    run.run_epoch(quiet())
    run.run_epoch(quiet())
    state = {name: tensor.clone() for name, tensor in run.mean_net.items()}
    steps = []
    net, follow = run.net, run._follow

    def following(step):
        follow(step)
        steps.append(net.head.weight.detach().clone())

    run._follow = following
    run.run_epoch(quiet())
    want = state["head.weight"]
    for weight in steps:
        want = (want + weight) / 2
    torch.testing.assert_close(run.mean_net["head.weight"], want)
    assert run.model().hash != trainer.finished(net, CLASS_NAMES).hash


def test_training_stops_when_nothing_gets_better_and_keeps_the_best(folder):
    run = run_of(recipe(folder, epochs=400, validation=0.3, patience=3, learning_rate=0.02))
    hashes = []
    while not run.done:
        run.run_epoch(quiet())
        hashes.append(trainer.finished(run.net, CLASS_NAMES).hash)
    judged = [score["validation_accuracy"] for score in run.history]
    assert len(judged) < 400
    best = int(np.argmax(judged))
    assert len(judged) == best + 1 + 3
    assert run.model().hash == hashes[best]
    assert len(run.held[1]) == round(0.3 * 48)


def test_patience_needs_something_to_judge_by(folder):
    path = folder / "recipe.toml"
    path.write_text("patience = 3\n" + recipe_text())
    with pytest.raises(RecipeError, match="patience needs a validation share"):
        read(path)


def test_bfloat16_trains_as_well(folder):
    _, scores = trainer.train(recipe(folder, precision="bfloat16", epochs=8), datasets.load("ucmerced"), quiet())
    assert scores["best_test_accuracy"] > 0.6


ROW = NetworkSpec(
    name="row",
    input_size=12,
    mean=(100, 110, 120),
    stem=Stem(channels=6, stride=1, valid=True),
    blocks=(
        Block(channels=10, beta_w=4, beta_a=3, shortcut=0),
        Block(channels=10, beta_w=16, beta_a=4, shortcut=2),
        Block(channels=20, kernel=10, valid=True, beta_w=8, beta_a=2, shortcut=0),
        Block(channels=9, kernel=1, beta_w=8, beta_a=4, shortcut=0),
    ),
    taps=(3,),
    deviation=False,
    beta_f=1,
    layout="row",
)


def test_the_papers_layout_computes_the_formula_and_does_not_fly():
    net = lively_net(ROW)
    model = trainer.finished(net, ("a", "b", "c"))
    with torch.no_grad():
        for i, block in enumerate(net.blocks):
            block.weight.copy_(torch.from_numpy(block_weight(ROW, model.tensors, i).copy()))
    tiles = np.random.default_rng(2).integers(0, 256, (4, 12, 12, 3), dtype=np.uint8)
    rgb = torch.from_numpy(tiles[..., ::-1].astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = net.features(rgb).numpy()
    np.testing.assert_allclose(features, forward(ROW, model.tensors, tiles), rtol=1e-3, atol=1e-4)
    with pytest.raises(ArtifactError, match="layout 'row', which does not fly"):
        Engine(model)


def test_rows_of_the_paper_run_along_the_lines():
    """By eq. 1 and 3 written out: a weight row is (c, kh, kw), an activation row is a line of one channel."""
    net = lively_net(ROW)
    block = net.blocks[0]
    x = torch.randn(1, 6, 10, 10)
    a, w = block.binary_input(x).detach(), block.binary_weight().detach()
    shifted = x + block.in_shift[:, None, None]
    for c, y in ((0, 3), (5, 9)):
        for first in (0, 3, 6, 9):
            part = shifted[0, c, y, first : first + 3]
            torch.testing.assert_close(a[0, c, y, first : first + 3].abs(), part.abs().mean().expand(len(part)))
    flat = block.weight.permute(0, 3, 1, 2).reshape(10, 54)
    torch.testing.assert_close(w.reshape(10, 54)[3, 4:8].abs(), flat[3, 4:8].abs().mean().expand(4))


# --- teachers ------------------------------------------------------------------------------------------------------


def exported(folder):
    """A teacher trained a little and written as ONNX, and its file."""
    path, out = folder / "teacher.toml", folder / "teacher.safetensors"
    path.write_text(recipe_text(epochs=6))
    assert cli.main(["train", str(path), "--out", str(out)]) == 0
    assert cli.main(["export", str(out), "--out", str(folder / "teacher.onnx")]) == 0
    return folder / "teacher.onnx"


TEACHER = '[teacher]\nonnx = "teacher.onnx"\nshare = 1.0\ntemperature = 1.0\n\n[network]'


def test_answers_of_a_teacher_are_learned(folder):
    """Alone, without a label: the pupil's classes are the teacher's, turned round as its file turns them."""
    write(folder, arrays(count=300))
    model = onnx.load(exported(folder))
    (last,) = [node for node in model.graph.node if node.output[0] == "logits"]
    last.output[0] = "straight"
    turned = onnx.numpy_helper.from_array(np.array([1, 2, 0], np.int64), "turned")
    model.graph.initializer.append(turned)
    model.graph.node.append(onnx.helper.make_node("Gather", ["straight", "turned"], ["logits"], axis=1))
    onnx.save(model, folder / "teacher.onnx")
    path = folder / "recipe.toml"
    path.write_text(recipe_text(epochs=12).replace("[network]", TEACHER))
    run = run_of(read(path)[0], folder)
    while not run.done:
        run.run_epoch(quiet())
    session = ort.InferenceSession(folder / "teacher.onnx")
    tiles, _ = run.scored
    images = np.ascontiguousarray(tiles[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32))
    wanted = session.run(None, {"image": images})[0].argmax(1)
    engine = Engine(run.model())
    assert (engine.logits(engine.features(tiles)).argmax(1) == wanted).mean() > 0.8
    assert run.history[-1]["test_accuracy"] < 0.4  # of the labels that nobody told


def test_the_distance_to_a_teacher_is_the_divergence_of_the_softened_answers(folder):
    exported(folder)
    path = folder / "recipe.toml"
    milder = TEACHER.replace("share = 1.0", "share = 0.25").replace("temperature = 1.0", "temperature = 3.0")
    path.write_text(recipe_text().replace("[network]", milder))
    run = run_of(read(path)[0], folder)
    images, logits = torch.rand(3, 3, 32, 32) * 255, torch.randn(3, 3)
    answers = run.answers(images)
    p = np.exp(answers.numpy().astype(np.float64) / 3)
    q = np.exp(logits.numpy().astype(np.float64) / 3)
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    want = 0.75 * 2.0 + 0.25 * 9 * (p * np.log(p / q)).sum(1).mean()
    assert distilled(run.recipe.teacher, torch.tensor(2.0), logits, answers).item() == pytest.approx(want, rel=1e-4)


def test_a_model_as_teacher_answers_as_it_flies_in_the_order_of_the_data(folder):
    model = model_at(folder / "m.safetensors", recipe(folder).network, ("grainy", "water", *CLASS_NAMES[:2]))
    run = run_of(recipe(folder, teacher=Teacher(model="m.safetensors")), folder)
    tiles, engine = run.scored[0], Engine(model)
    rgb = torch.from_numpy(np.ascontiguousarray(tiles[..., ::-1])).permute(0, 3, 1, 2).float()
    expected = engine.logits(engine.features(tiles))[:, [2, 3, 0]]  # smooth, striped, grainy
    np.testing.assert_allclose(run.answers(rgb).numpy(), expected, rtol=1e-3, atol=1e-3)
    before = [tensor.clone() for tensor in run.net.state_dict().values()]
    run.run_epoch(quiet())
    assert any(not torch.equal(a, b) for a, b in zip(before, run.net.state_dict().values(), strict=True))
    np.testing.assert_allclose(run.answers(rgb).numpy(), expected, rtol=1e-3, atol=1e-3)  # a teacher does not learn


def test_a_model_that_is_no_teacher_is_refused(folder):
    network = recipe(folder).network
    model_at(folder / "m.safetensors", network, ("grainy", "smooth", "water"))
    with pytest.raises(RecipeError, match=r"m.safetensors: does not know 'striped'; its classes are grainy, smooth"):
        run_of(recipe(folder, teacher=Teacher(model="m.safetensors")), folder)
    model_at(folder / "m.safetensors", msgspec.structs.replace(network, input_size=64))
    with pytest.raises(RecipeError, match="takes images of 64 pixels, the recipe's have 32"):
        run_of(recipe(folder, teacher=Teacher(model="m.safetensors")), folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "teacher .*teacher.onnx: does not take images of 32 x 32"), (b"nothing", "does not take images")],
)
def test_a_teacher_that_is_none_is_refused(folder, content, message):
    if content is not None:
        (folder / "teacher.onnx").write_bytes(content)
    path = folder / "recipe.toml"
    path.write_text(recipe_text().replace("[network]", TEACHER))
    with pytest.raises(RecipeError, match=message) as caught:
        run_of(read(path)[0], folder)
    assert "\n" not in str(caught.value)


def test_a_teacher_of_other_classes_is_refused(folder):
    exported(folder)
    data = datasets.load("ucmerced")
    data = msgspec.structs.replace(data, class_names=(*CLASS_NAMES, "fourth"))
    path = folder / "recipe.toml"
    path.write_text(recipe_text().replace("[network]", TEACHER))
    with pytest.raises(RecipeError, match=r"gives \(3,\) per image; the data set has 4 classes"):
        trainer.Run(read(path)[0], data, folder)


# --- data sets -----------------------------------------------------------------------------------------------------


def plain(**changes):
    rng = np.random.default_rng(0)
    content = {
        "train_images": rng.integers(0, 256, (6, 8, 8), np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "test_images": rng.integers(0, 256, (3, 8, 8), np.uint8),
        "test_labels": np.array([2, 1, 0], np.uint8),
    }
    return content | changes


def test_plain_arrays_are_a_data_set(tmp_path):
    content = plain()
    np.savez(tmp_path / "a.npz", **content)
    data = datasets.load("a.npz", base=tmp_path)
    assert data.images.shape == (9, 8, 8, 3)
    assert data.class_names == ("0", "1", "2")
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2, 2, 1, 0]
    assert data.test.tolist() == [False] * 6 + [True] * 3
    for colour in range(3):
        np.testing.assert_array_equal(data.images[:6, ..., colour], content["train_images"])
    rgb = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "b.npz", **plain(train_images=rgb, test_images=rgb[:3], class_names=np.array(["x", "y", "z"])))
    coloured = datasets.load("b.npz", base=tmp_path)
    np.testing.assert_array_equal(coloured.images[:6], rgb[..., ::-1])
    assert coloured.class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": np.array([1, 2], np.uint8)}, r"'test_labels' is uint8 \(2,\) for 3 images"),
        ({"test_labels": np.array([1, 2, 0.5])}, "'test_labels' is float64"),
        ({"train_images": np.zeros((6, 8, 8), np.float32)}, "'train_images' is float32"),
        ({"test_images": np.zeros((3, 9, 8), np.uint8)}, "differ in size"),
        ({"test_images": np.zeros((0, 8, 8), np.uint8), "test_labels": np.zeros(0, np.uint8)}, "not empty"),
        ({"class_names": np.array(["a", "b"])}, "labels 0..2 for 2 classes"),
    ],
)
def test_plain_arrays_that_do_not_fit_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "a.npz", **plain(**changes))
    with pytest.raises(RecipeError, match=message):
        datasets.load("a.npz", base=tmp_path)


def pictures(root, counts):
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(root / name / f"{i:03}.png"), texture(CLASS_NAMES.index(name.split("/")[-1]), rng))


def test_a_folder_of_images_is_a_data_set(tmp_path):
    pictures(tmp_path / "flat", {"smooth": 10, "striped": 6})
    data = datasets.load("flat", 32, tmp_path)
    assert data.class_names == ("smooth", "striped")
    assert np.bincount(data.labels).tolist() == [10, 6]
    assert data.images.shape == (16, 64, 64, 3)
    assert [int(data.test[data.labels == c].sum()) for c in (0, 1)] == [2, 2]
    assert datasets.load("flat", 32, tmp_path).sha256 == data.sha256
    (tmp_path / "flat" / "smooth" / "000.png").unlink()
    assert datasets.load("flat", 32, tmp_path).sha256 != data.sha256


def test_a_folder_with_a_split_and_oblong_images(tmp_path):
    pictures(tmp_path / "d" / "train", {"smooth": 3, "grainy": 3})
    pictures(tmp_path / "d" / "val", {"smooth": 1, "grainy": 2})
    oblong = np.zeros((40, 80, 3), np.uint8)
    oblong[:, 20:60] = 200
    cv2.imwrite(str(tmp_path / "d" / "val" / "smooth" / "000.png"), oblong)
    data = datasets.load("d", 16, tmp_path)
    assert int(data.test.sum()) == 3
    place = np.flatnonzero(data.test & (data.labels == data.class_names.index("smooth")))[0]
    assert data.images[place].min() == 200  # its middle


def test_folders_that_are_none_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="0 class names"):
        datasets.load("empty", 16, tmp_path)
    pictures(tmp_path / "half" / "train", {"smooth": 3, "grainy": 3})
    with pytest.raises(RecipeError, match="'train' needs one named 'val' or 'test'"):
        datasets.load("half", 16, tmp_path)
    pictures(tmp_path / "bad", {"smooth": 6, "grainy": 6})
    (tmp_path / "bad" / "grainy" / "002.png").write_bytes(b"no picture")
    with pytest.raises(RecipeError, match=r"grainy/002\.png is not an image"):
        datasets.load("bad", 16, tmp_path)


def test_a_network_learns_from_a_folder(tmp_path, capsys):
    pictures(tmp_path / "photos", {"smooth": 30, "grainy": 30})
    (tmp_path / "r.toml").write_text(recipe_text(epochs=8).replace('"ucmerced"', '"photos"'))
    assert cli.main(["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "m.safetensors")]) == 0
    assert artifact.load(tmp_path / "m.safetensors").classes == ("grainy", "smooth")
    assert json.loads(artifact.describe(tmp_path / "m.safetensors")["scores"])["test_accuracy"] >= 0.8


def test_every_recipe_of_the_zoo_can_be_read():
    found = sorted((Path(trainer.__file__).parents[1] / "zoo").glob("*.toml"))
    assert len(found) > 2
    for path in found:
        made, _ = read(path)
        assert isinstance(made, Recipe)
        assert math.isfinite(made.rate(0, 10))
    assert read(found[0].parent / "lenet.toml")[0].augment == NO_CHANGE
