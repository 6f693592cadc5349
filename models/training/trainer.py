"""The training loop: from a recipe to a model with its scores."""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

import contextlib
import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from torch import Tensor

from models import artifact
from models.engine import Engine
from models.errors import ArtifactError, RecipeError
from models.model import Model
from models.network import HEAD_STEP
from models.training import checkpoint
from models.training.canonical import canonical
from models.training.datasets import Dataset, load
from models.training.device import CPU, described, named
from models.training.layers import Net
from models.training.origin import ORIGIN_IMAGES, begin
from models.training.recipe import Recipe, begun_with, read
from models.training.teacher import distilled, teacher_of
from models.training.views import as_rgb, as_tiles, scored_tiles, views

Scores = dict[str, float]
Tiles = NDArray[np.uint8]
SCORED = 250
"""Test images that are looked at at once."""


def accuracy(model: Model, tiles: Tiles, labels: NDArray[np.int64]) -> float:
    """Share of tiles that the packed model, as it flies, gets right; minutes for a large network in full precision."""
    engine = Engine(model)
    pieces = track(range(0, len(tiles), SCORED), "packed", console=Console(stderr=True), transient=True)
    return _share_right(lambda piece: engine.logits(engine.features(piece)), tiles, labels, pieces)


def _share_right(
    logits: Callable[[Tiles], NDArray[np.float32]], tiles: Tiles, labels: NDArray[np.int64], pieces: Iterable[int]
) -> float:
    """Share of tiles whose largest logit is their label's; pieces: where each lot of `SCORED` begins."""
    right = 0
    for first in pieces:
        lot = slice(first, first + SCORED)
        right += int((logits(tiles[lot]).argmax(1) == labels[lot]).sum())
    return right / max(1, len(labels))


def finished(net: Net, class_names: tuple[str, ...]) -> Model:
    """The trained network as a model: everything on the grids that fly. Raises RecipeError where it diverged."""
    if not all(torch.isfinite(tensor).all() for tensor in net.state_dict().values()):
        raise RecipeError("the trained weights are not finite; lower learning_rate")
    limits = np.iinfo(np.int16)
    head = {
        f"head.{name}": (weight / HEAD_STEP).round().clamp(limits.min, limits.max).detach().numpy().astype(np.int16)
        for name, weight in (("weight", net.head.weight), ("bias", net.head.bias))
    }
    return Model(net.spec, canonical(net) | head, class_names)


class Run:
    """A training run: a network, what it learns from, and how far it is.

    On a CPU, the same recipe, data, PyTorch and number of threads give the same model, also after a stop. Raises
    RecipeError where the batch is larger than the training split, or the teacher does not fit.
    """

    def __init__(self, recipe: Recipe, data: Dataset, folder: Path = Path(), device: torch.device = CPU) -> None:
        """folder: of the recipe, where a teacher's file lies; device: that computes, images and results stay here."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.data, self.device, self.epoch, self.best = recipe, data, device, 0, -1.0
        self.history: list[Scores] = []
        self.spec = recipe.network
        self.random = torch.Generator().manual_seed(recipe.seed)
        net = Net(self.spec, len(data.class_names))
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        finished(self.net, data.class_names)  # what flies must take this network: better to know it now
        self.flies = self.spec.layout == "channel"
        if self.flies:
            Engine(finished(self.net, data.class_names))
        held = np.zeros(len(data.labels), np.bool_)
        candidates = np.flatnonzero(~data.test)
        shuffled = np.random.default_rng(recipe.seed).permutation(candidates)
        held[shuffled[: round(recipe.validation * len(candidates))]] = True
        trained = ~data.test & ~held
        self.images = as_rgb(data.images[trained])
        self.labels = torch.from_numpy(data.labels[trained])
        self.held = as_tiles(data.images[held], self.spec.input_size), data.labels[held]
        self.scored = scored_tiles(data, self.spec.input_size)
        self.steps = len(self.images) // recipe.batch
        if not self.steps:
            raise RecipeError(
                f"batch = {recipe.batch} is more than the {len(self.images)} training images of {data.name}"
            )
        teacher, size = recipe.teacher, self.spec.input_size
        self.answers = teacher_of(teacher, folder, size, data.class_names, device) if teacher else None
        if recipe.origin:
            self._enter_stage()
            begin(self.net, recipe.origin, folder, data.images[trained][:ORIGIN_IMAGES], data.class_names)
        self.net.to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=recipe.learning_rate)
        self.mean_net: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}

    @property
    def done(self) -> bool:
        """Whether the last epoch is over, or no more are worth it."""
        first = self.recipe.real_epochs  # before, no weights are binary, and no epoch is the best
        since = self.epoch - max((i for i, s in enumerate(self.history, 1) if s.get("best")), default=first)
        return self.epoch >= self.recipe.epochs or 0 < self.recipe.patience <= since

    def run_epoch(self, progress: Progress) -> None:
        """One more epoch, and its scores at the end of `history`. Raises RecipeError where the loss diverges."""
        recipe, net, total = self.recipe, self.net.train(), 0.0
        self._enter_stage()
        task = progress.tasks[0].id if progress.tasks else progress.add_task("", total=recipe.epochs * self.steps)
        progress.update(task, completed=self.epoch * self.steps)
        order = torch.randperm(len(self.images), generator=self.random)
        for step in range(self.steps):
            self.optimizer.param_groups[0]["lr"] = recipe.rate(self.epoch * self.steps + step, self.steps)
            picked = order[step * recipe.batch : (step + 1) * recipe.batch]
            loss = self.loss(picked)
            if not math.isfinite(loss.item()):
                raise RecipeError(
                    f"epoch {self.epoch + 1} of {recipe.epochs}: the loss is {loss.item()}; "
                    f"lower learning_rate ({recipe.learning_rate})"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            net.clip()
            self._follow(step)
            total += loss.item()
            progress.advance(task)
        self.epoch += 1
        self._score(total / self.steps)
        last = self.history[-1]
        progress.update(
            task,
            description=f"{self.spec.name} epoch {self.epoch}/{recipe.epochs} loss {last['loss']:.3f} "
            f"test {last['test_accuracy']:.2%}",
        )

    def loss(self, picked: Tensor) -> Tensor:
        """Of random views of these training images, int64 (N,), for the optimizer; a teacher's answers take part."""
        recipe = self.recipe
        images, labels = self.images[picked].to(self.device), self.labels[picked].to(self.device)
        x = views(images, self.spec.input_size, recipe.augment, self.random)
        with self._precision():
            logits = self.net(x).float()
            answers = self.answers(x) if self.answers else None
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        if recipe.teacher and answers is not None:
            loss = distilled(recipe.teacher, loss, logits, answers)
        return loss

    def model(self) -> Model:
        """What the run has come to: the best epoch on the validation images, or the last one, or the running mean."""
        net = copy.deepcopy(self.net).cpu()
        net.load_state_dict(self.kept or self.mean_net or self.net.state_dict())
        return finished(net, self.data.class_names)

    def scores(self) -> Scores:
        """Of the test split: of the model, and the best epoch's of the last stage, which the model need not be."""
        best = max(range(self.recipe.real_epochs, self.epoch), key=lambda i: self.history[i]["test_accuracy"])
        return {
            "test_accuracy": self._accuracy(*self.scored, self.kept or self.mean_net),
            "best_test_accuracy": self.history[best]["test_accuracy"],
            "best_epoch": best + 1,
            "last_test_accuracy": self.history[-1]["test_accuracy"],
            "epochs": self.epoch,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """All that `restore` needs."""
        tensors = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        tensors |= {f"mean.{name}": tensor for name, tensor in self.mean_net.items()}
        tensors |= {f"kept.{name}": tensor for name, tensor in self.kept.items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in moments.items()}
        tensors["random"] = self.random.get_state()
        about = {
            "epoch": str(self.epoch),
            "best": repr(self.best),
            "history": msgspec.json.encode(self.history).decode(),
        }
        return tensors, about

    def restore(self, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
        """Go on from a state."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.net.load_state_dict(part("net."))
        self.mean_net = {name: tensor.to(self.device) for name, tensor in part("mean.").items()}
        self.kept = part("kept.")
        self.random.set_state(tensors["random"])
        self.epoch, self.best = int(about["epoch"]), float(about["best"])
        self.history = msgspec.json.decode(about["history"], type=list[Scores])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("adam.").items():
            number, _, moment = name.partition(".")
            moments.setdefault(int(number), {})[moment] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self.recipe.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _enter_stage(self) -> None:
        for block in self.net.blocks:
            block.real_weight = self.epoch < self.recipe.real_epochs  # type: ignore[assignment]
        if self.epoch == self.recipe.real_epochs:
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.recipe.learning_rate)

    def _follow(self, step: int) -> None:
        """The running mean of all weights and statistics, in the last half of the last stage."""
        recipe = self.recipe
        begin = (recipe.epochs + recipe.real_epochs) * self.steps // 2
        if not recipe.ema or self.epoch * self.steps + step < begin:
            return
        with torch.no_grad():
            for name, tensor in self.net.state_dict().items():
                if name not in self.mean_net or not tensor.is_floating_point():
                    self.mean_net[name] = tensor.clone()
                else:
                    self.mean_net[name].lerp_(tensor, 1 - recipe.ema)

    def _score(self, loss: float) -> None:
        now = {"loss": loss, "test_accuracy": self._accuracy(*self.scored, self.mean_net)}
        if len(self.held[1]):
            now["validation_accuracy"] = self._accuracy(*self.held, self.mean_net)
            if now["validation_accuracy"] > self.best and self.epoch > self.recipe.real_epochs:
                self.best, now["best"] = now["validation_accuracy"], 1.0
                state = self.mean_net or self.net.state_dict()
                self.kept = {name: tensor.clone() for name, tensor in state.items()}
        self.history.append(now)

    @torch.no_grad()
    def _accuracy(self, tiles: Tiles, labels: NDArray[np.int64], state: Mapping[str, Tensor]) -> float:
        """Of the net with another state where there is one, in float: the packed model is scored once, at the end."""
        current = {name: tensor.clone() for name, tensor in self.net.state_dict().items()} if state else {}
        if state:
            self.net.load_state_dict(state)
        self.net.eval()

        def logits(piece: Tiles) -> NDArray[np.float32]:
            with self._precision():
                return self.net(as_rgb(piece).to(self.device)).float().cpu().numpy()  # type: ignore[no-any-return]

        share = _share_right(logits, tiles, labels, range(0, len(tiles), SCORED))
        if state:
            self.net.load_state_dict(current)
        return share


def train(recipe: Recipe, data: Dataset, progress: Progress, folder: Path = Path()) -> tuple[Model, Scores]:
    """Follow the recipe, show how far it is; returns the model and its scores on the data set's test split."""
    run, start = Run(recipe, data, folder), time.monotonic()
    with progress:
        while not run.done:
            run.run_epoch(progress)
    return result(run, time.monotonic() - start)


def result(run: Run, seconds: float) -> tuple[Model, Scores]:
    """The model and its scores: of the packed network where it flies."""
    model, scores = run.model(), run.scores()
    if run.flies:
        scores["test_accuracy"] = accuracy(model, *run.scored)
    return model, {**scores, "train_seconds": round(seconds, 1)}


def complete(training: Run, kept: Path, about: Mapping[str, str], resume: bool) -> float:
    """Run all epochs that are left, each kept in the file `kept`; the seconds that it took in all.

    resume: go on from `kept` where it is there and `about` is what it was made with. Progress goes to stderr.
    """
    before = 0.0
    if resume and kept.exists():
        tensors, found = checkpoint.load(kept, about)
        try:
            training.restore(tensors, found)
        except (RuntimeError, KeyError, ValueError) as error:  # layers have changed their names or shapes
            raise RecipeError(
                f"{kept}: was made by another version of this program; remove it and train without --resume"
            ) from error
        before = float(found["seconds"])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = time.monotonic() - before
    with Progress(*columns, console=Console(stderr=True)) as progress:
        while not training.done:
            training.run_epoch(progress)
            tensors, how_far = training.state()
            checkpoint.save(kept, tensors, {**about, **how_far, "seconds": repr(time.monotonic() - start)})
    return time.monotonic() - start


def run(
    recipe_path: Path,
    out: Path,
    *,
    resume: bool = False,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
) -> Scores:
    """Train what `recipe_path` says and write the artifact `out`, with recipe, data hash and scores inside.

    epochs, seed: in place of the recipe's; device: PyTorch's name of what computes. Each epoch is kept beside `out`,
    from where `resume` goes on. Raises RecipeError for a recipe or data that cannot be used, and ArtifactError where
    `out` cannot be written; all but a diverging loss are found before the training begins. Progress goes to stderr.
    """
    recipe, text = read(recipe_path)
    changed = {name: value for name, value in (("epochs", epochs), ("seed", seed)) if value is not None}
    try:
        recipe = msgspec.convert({**msgspec.to_builtins(recipe), **changed}, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{recipe_path}, with the command line's {', '.join(changed)}: {error}") from error
    check_writable(out)
    computing = named(device)
    data = load(recipe.dataset, recipe.network.input_size, recipe_path.parent)
    about = {
        "recipe": text + "".join(f"# {name} = {value} by the command line\n" for name, value in changed.items()),
        "data": f"{data.name} sha256 {data.sha256}",
        "torch": described(computing),
        **begun_with(recipe, recipe_path.parent),
    }
    training, kept = Run(recipe, data, recipe_path.parent, computing), checkpoint.path_of(out)
    seconds = complete(training, kept, about, resume)
    model, scores = result(training, seconds)
    history = msgspec.json.encode(training.history).decode()
    artifact.save(model, out, **about, scores=msgspec.json.encode(scores).decode(), history=history)
    kept.unlink(missing_ok=True)
    return scores


def check_writable(out: Path) -> None:
    """Raise ArtifactError where `artifact.save` could not write `out`; nothing is left behind."""
    try:
        if out.is_dir():
            raise ArtifactError(f"{out}: is a folder; name the file to write in it")
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written: {error.strerror}; choose another folder") from error
