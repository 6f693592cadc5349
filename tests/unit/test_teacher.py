"""Distillation: the answers of an ONNX network, and of a model, are learned. Needs PyTorch."""

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra train")

from models import cli  # noqa: E402
from models.engine import Engine  # noqa: E402
from models.errors import RecipeError  # noqa: E402
from models.training import datasets, trainer  # noqa: E402
from models.training.recipe import Teacher, read  # noqa: E402
from models.training.teacher import distilled  # noqa: E402
from tests.training_data import CLASS_NAMES, arrays, recipe_text, write  # noqa: E402
from tests.training_runs import model_at, quiet, recipe, run_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def exported(photos):
    """A teacher trained a little and written as ONNX, and its file."""
    path, out = photos / "teacher.toml", photos / "teacher.safetensors"
    path.write_text(recipe_text(epochs=6))
    assert cli.main(["train", str(path), "--out", str(out)]) == 0
    assert cli.main(["export", str(out), "--out", str(photos / "teacher.onnx")]) == 0
    return photos / "teacher.onnx"


TEACHER = '[teacher]\nonnx = "teacher.onnx"\nshare = 1.0\ntemperature = 1.0\n\n[network]'


def test_answers_of_a_teacher_are_learned(photos):
    """Alone, without a label: the pupil's classes are the teacher's, turned round as its file turns them."""
    write(photos, arrays(count=300))
    model = onnx.load(exported(photos))
    (last,) = [node for node in model.graph.node if node.output[0] == "logits"]
    last.output[0] = "straight"
    turned = onnx.numpy_helper.from_array(np.array([1, 2, 0], np.int64), "turned")
    model.graph.initializer.append(turned)
    model.graph.node.append(onnx.helper.make_node("Gather", ["straight", "turned"], ["logits"], axis=1))
    onnx.save(model, photos / "teacher.onnx")
    path = photos / "recipe.toml"
    path.write_text(recipe_text(epochs=12).replace("[network]", TEACHER))
    run = run_of(read(path)[0], photos)
    while not run.done:
        run.run_epoch(quiet())
    session = ort.InferenceSession(photos / "teacher.onnx")
    tiles, _ = run.scored
    images = np.ascontiguousarray(tiles[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32))
    wanted = session.run(None, {"image": images})[0].argmax(1)
    engine = Engine(run.model())
    assert (engine.logits(engine.features(tiles)).argmax(1) == wanted).mean() > 0.8
    assert run.history[-1]["test_accuracy"] < 0.4  # of the labels that nobody told


def test_the_distance_to_a_teacher_is_the_divergence_of_the_softened_answers(photos):
    exported(photos)
    path = photos / "recipe.toml"
    milder = TEACHER.replace("share = 1.0", "share = 0.25").replace("temperature = 1.0", "temperature = 3.0")
    path.write_text(recipe_text().replace("[network]", milder))
    run = run_of(read(path)[0], photos)
    images, logits = torch.rand(3, 3, 32, 32) * 255, torch.randn(3, 3)
    answers = run.answers(images)
    p = np.exp(answers.numpy().astype(np.float64) / 3)
    q = np.exp(logits.numpy().astype(np.float64) / 3)
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    want = 0.75 * 2.0 + 0.25 * 9 * (p * np.log(p / q)).sum(1).mean()
    assert distilled(run.recipe.teacher, torch.tensor(2.0), logits, answers).item() == pytest.approx(want, rel=1e-4)


def test_a_model_as_teacher_answers_as_it_flies_in_the_order_of_the_data(photos):
    model = model_at(photos / "m.safetensors", recipe(photos).network, ("grainy", "water", *CLASS_NAMES[:2]))
    run = run_of(recipe(photos, teacher=Teacher(model="m.safetensors")), photos)
    tiles, engine = run.scored[0], Engine(model)
    rgb = torch.from_numpy(np.ascontiguousarray(tiles[..., ::-1])).permute(0, 3, 1, 2).float()
    expected = engine.logits(engine.features(tiles))[:, [2, 3, 0]]  # smooth, striped, grainy
    np.testing.assert_allclose(run.answers(rgb).numpy(), expected, rtol=1e-3, atol=1e-3)
    before = [tensor.clone() for tensor in run.net.state_dict().values()]
    run.run_epoch(quiet())
    assert any(not torch.equal(a, b) for a, b in zip(before, run.net.state_dict().values(), strict=True))
    np.testing.assert_allclose(run.answers(rgb).numpy(), expected, rtol=1e-3, atol=1e-3)  # a teacher does not learn


def test_a_model_that_is_no_teacher_is_refused(photos):
    network = recipe(photos).network
    with pytest.raises(RecipeError, match=r"m\.safetensors: is not there; train it first"):
        run_of(recipe(photos, teacher=Teacher(model="m.safetensors")), photos)
    model_at(photos / "m.safetensors", network, ("grainy", "smooth", "water"))
    with pytest.raises(RecipeError, match=r"m.safetensors: does not know 'striped'; its classes are grainy, smooth"):
        run_of(recipe(photos, teacher=Teacher(model="m.safetensors")), photos)
    model_at(photos / "m.safetensors", msgspec.structs.replace(network, input_size=64))
    with pytest.raises(RecipeError, match="takes images of 64 pixels, the recipe's have 32"):
        run_of(recipe(photos, teacher=Teacher(model="m.safetensors")), photos)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "teacher .*teacher.onnx: does not take images of 32 x 32"), (b"nothing", "does not take images")],
)
def test_a_teacher_that_is_none_is_refused(photos, content, message):
    if content is not None:
        (photos / "teacher.onnx").write_bytes(content)
    path = photos / "recipe.toml"
    path.write_text(recipe_text().replace("[network]", TEACHER))
    with pytest.raises(RecipeError, match=message) as caught:
        run_of(read(path)[0], photos)
    assert "\n" not in str(caught.value)


def test_a_teacher_of_other_classes_is_refused(photos):
    exported(photos)
    data = datasets.load("ucmerced")
    data = msgspec.structs.replace(data, class_names=(*CLASS_NAMES, "fourth"))
    path = photos / "recipe.toml"
    path.write_text(recipe_text().replace("[network]", TEACHER))
    with pytest.raises(RecipeError, match=r"gives \(3,\) per image; the data set has 4 classes"):
        trainer.Run(read(path)[0], data, photos)
