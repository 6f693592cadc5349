"""Runs that stop and go on, two stages, running means, early stops, and the paper's layout. Needs PyTorch."""

import itertools
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra train")

from models import artifact, cli  # noqa: E402
from models.engine import Engine  # noqa: E402
from models.errors import ArtifactError, RecipeError  # noqa: E402
from models.network import Block, NetworkSpec, Stem, block_weight, forward  # noqa: E402
from models.training import checkpoint, datasets, trainer  # noqa: E402
from models.training.recipe import NO_CHANGE, Decay, Recipe, read  # noqa: E402
from tests.training_data import CLASS_NAMES, recipe_text  # noqa: E402
from tests.training_runs import lively_net, quiet, recipe, run_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


# --- stopping and going on -----------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_comes_to_the_same_model(photos):
    whole = recipe(photos, real_weights=0.5, ema=0.8, validation=0.2, patience=3, epochs=6)
    straight = run_of(whole)
    for _ in range(6):
        straight.run_epoch(quiet())
    path = photos / "x.checkpoint"
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


def test_resume_on_the_command_line(photos, capsys, monkeypatch):
    path, out = photos / "recipe.toml", photos / "m.safetensors"
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


def test_epochs_and_seed_of_the_command_line_stand_in_the_artifact(photos, capsys):
    path, out = photos / "recipe.toml", photos / "m.safetensors"
    path.write_text(recipe_text(epochs=400))
    assert cli.main(["train", str(path), "--out", str(out), "--epochs", "1", "--seed", "3"]) == 0
    about = artifact.describe(out)
    assert about["recipe"].endswith("# epochs = 1 by the command line\n# seed = 3 by the command line\n")
    assert json.loads(about["scores"])["epochs"] == 1
    for bad in (["--epochs", "0"], ["--seed", "-1"]):
        assert cli.main(["train", str(path), "--out", str(out), *bad]) == 1
        assert bad[0].strip("-") in capsys.readouterr().err


# --- what a recipe says --------------------------------------------------------------------------------------------


def test_the_learning_rate_of_every_step(photos):
    plain = recipe(photos, epochs=10, learning_rate=0.1, warm_up=0.0)
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


def test_the_first_stage_has_real_weights(photos):
    run = run_of(recipe(photos, epochs=4, real_weights=0.5))
    x = torch.randn(2, 3, 32, 32)
    seen = []
    for _ in range(4):
        run.run_epoch(quiet())
        seen.append([block.real_weight for block in run.net.blocks])
    assert seen == [[True] * 2] * 2 + [[False] * 2] * 2
    first = run_of(recipe(photos, epochs=4, real_weights=0.5))
    first._enter_stage()
    first.net.eval()
    with torch.no_grad():
        real = first.net(x)
        for block in first.net.blocks:
            block.real_weight = False
        assert not torch.allclose(real, first.net(x))


def test_the_running_mean_is_what_is_kept(photos):
    run = run_of(recipe(photos, epochs=4, ema=0.5))
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


def test_training_stops_when_nothing_gets_better_and_keeps_the_best(photos):
    run = run_of(recipe(photos, epochs=400, validation=0.3, patience=3, learning_rate=0.02))
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


def test_neither_patience_nor_the_best_epoch_looks_at_the_stage_of_real_weights(photos):
    run = run_of(recipe(photos, epochs=10, real_weights=0.7, validation=0.3, patience=1))
    while not run.done:
        run.run_epoch(quiet())
    assert run.epoch > 7
    run.history[2]["test_accuracy"] = 2.0  # as good as no other
    scores = run.scores()
    assert scores["best_epoch"] > 7
    assert scores["best_test_accuracy"] == run.history[scores["best_epoch"] - 1]["test_accuracy"] <= 1


def test_patience_needs_something_to_judge_by(photos):
    path = photos / "recipe.toml"
    path.write_text("patience = 3\n" + recipe_text())
    with pytest.raises(RecipeError, match="patience needs a validation share"):
        read(path)


def test_bfloat16_trains_as_well(photos):
    _, scores = trainer.train(recipe(photos, precision="bfloat16", epochs=8), datasets.load("ucmerced"), quiet())
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


def test_every_recipe_of_the_zoo_can_be_read():
    found = sorted((Path(trainer.__file__).parents[1] / "zoo").glob("*.toml"))
    assert len(found) > 2
    for path in found:
        made, _ = read(path)
        assert isinstance(made, Recipe)
        assert math.isfinite(made.rate(0, 10))
    assert read(found[0].parent / "lenet.toml")[0].augment == NO_CHANGE
