"""Training on another device than the CPU. Needs PyTorch.

PyTorch's `meta` stands for it where there is no GPU: it computes shapes only, and refuses, as a GPU does, an operator
that takes tensors of two devices.
"""

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra train")

from models import cli  # noqa: E402
from models.training import datasets, device, elementwise, trainer  # noqa: E402
from models.training.recipe import Augment, Teacher  # noqa: E402
from tests.training_runs import lively_net, model_at, quiet, recipe, run_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = Augment(min_scale=0.7, shift=0.1)
"""Of views: nothing is left out."""


def changed(photos, **changes):
    """A recipe in which all takes part that computes: views, both stages, a running mean, a teacher."""
    own = recipe(photos, augment=ALL, real_weights=0.5, ema=0.8, **changes)
    model_at(photos / "teacher.safetensors", own.network)
    return msgspec.structs.replace(own, teacher=Teacher(model="teacher.safetensors"))


@pytest.mark.parametrize(("layout", "mirror"), [("channel", True), ("row", False)])
def test_nothing_of_a_step_stays_on_another_device(photos, layout, mirror):
    own = changed(photos)
    own = msgspec.structs.replace(own, augment=msgspec.structs.replace(own.augment, mirror=mirror))
    own = msgspec.structs.replace(own, network=msgspec.structs.replace(own.network, layout=layout))
    run = trainer.Run(own, datasets.load("ucmerced"), photos, torch.device("meta"))
    for block in run.net.blocks:
        block.real_weight = False
    loss = run.loss(torch.arange(own.batch))
    loss.backward()
    run.optimizer.step()
    run.net.clip()
    assert loss.device.type == "meta"
    assert {parameter.grad.device.type for parameter in run.net.parameters()} == {"meta"}


def test_the_operators_that_a_gpu_takes_train_as_the_kernels_do(photos, monkeypatch):
    """The same run with the kernels' door shut, as it is for every device but a CPU."""
    own = changed(photos, epochs=2)
    ran = []
    for taken in (elementwise.taken, lambda _: False):
        monkeypatch.setattr(elementwise, "taken", taken)
        run = run_of(own, photos)
        run.run_epoch(quiet())
        ran.append(run)
    kernels, operators = ran
    assert operators.history[0]["loss"] == pytest.approx(kernels.history[0]["loss"], rel=1e-3)
    for (name, one), other in zip(kernels.net.state_dict().items(), operators.net.state_dict().values(), strict=True):
        assert (one - other).abs().double().mean() < 1e-3, name  # Adam turns a last bit into a step, now and then


def test_gradients_by_operators_are_those_of_the_kernels(photos, monkeypatch):
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    gradients = []
    for taken in (elementwise.taken, lambda _: False):
        monkeypatch.setattr(elementwise, "taken", taken)
        net = lively_net(recipe(photos).network).train()
        net(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


@pytest.mark.parametrize("name", ["cuda:77", "telephone", "meta", ""])
def test_a_device_that_is_not_there_is_named(photos, capsys, name):
    recipe(photos)
    command = ["train", str(photos / "recipe.toml"), "--out", str(photos / "m.safetensors"), "--device", name]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert f"--device {name}: PyTorch cannot compute there" in error
    assert "--device cpu always can" in error
    assert error.count("\n") == 1
    assert not (photos / "m.safetensors").exists()


def test_what_a_run_was_made_with_says_what_computed():
    assert device.described(device.CPU) == f"{torch.__version__}, threads: 1"
    assert device.described(torch.device("meta")) == f"{torch.__version__}, meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch knows")
def test_a_gpu_comes_to_a_model_that_flies(photos):
    own = msgspec.structs.replace(changed(photos), precision="bfloat16", epochs=8)
    run = trainer.Run(own, datasets.load("ucmerced"), photos, device.named("cuda"))
    while not run.done:
        run.run_epoch(quiet())
        state = run.state()
        run.restore(*state)
    _, scores = trainer.result(run, 1.0)
    assert scores["test_accuracy"] > 0.5
