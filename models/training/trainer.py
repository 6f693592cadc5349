"""The training loop: from a recipe to a model with its scores."""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

import math
import tempfile
import time
from pathlib import Path

import cv2
import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from models import artifact
from models.engine import Engine
from models.errors import ArtifactError, RecipeError
from models.model import Model
from models.network import HEAD_STEP
from models.training.datasets import Dataset, load
from models.training.layers import SPREAD, Net, canonical
from models.training.recipe import Augment, Recipe, read


def views(images: Tensor, size: int, augment: Augment, random: torch.Generator) -> Tensor:
    """Random views of uint8 (N, 3, H, W) as float (N, 3, size, size) in 0..255."""
    n = images.shape[0]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random)

    def factor(width: float, channels: int = 1) -> Tensor:
        return torch.exp((uniform(n, channels, 1, 1) * 2 - 1) * width)

    angle = uniform(n) * 2 * math.pi
    scale = torch.exp(uniform(n) * -math.log(augment.min_scale) + math.log(augment.min_scale))
    mirror = (uniform(n) < 0.5).float() * 2 - 1
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    dx, dy = ((uniform(2, n) * 2 - 1) * (1 - scale)).unbind(0)
    affine = torch.stack([torch.stack([cos * mirror, -sin, dx], 1), torch.stack([sin * mirror, cos, dy], 1)], 1)
    grid = F.affine_grid(affine, [n, 3, 2 * size, 2 * size], align_corners=False)
    x = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    x = F.avg_pool2d(x, 2)  # sampled twice as fine first, so that a shrunk view is not aliased
    mean = x.mean((1, 2, 3), keepdim=True)
    x = ((x - mean) * factor(augment.contrast) + mean) * factor(augment.gain) * factor(augment.tint, 3)
    x = x + torch.randn(x.shape, generator=random) * uniform(n, 1, 1, 1) * augment.noise
    return x.clamp(0, 255)


def accuracy(model: Model, tiles: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Share of tiles that the packed model, as it flies, gets right."""
    engine = Engine(model)
    return float((engine.logits(engine.features(tiles)).argmax(1) == labels).mean())


def scored_tiles(data: Dataset, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The test split as tiles of a network, uint8 (n, size, size, 3) BGR, and their labels."""
    images = data.images[data.test]
    tiles = np.stack([cv2.resize(i, (size, size), interpolation=cv2.INTER_AREA) for i in images])
    return tiles.astype(np.uint8, copy=False), data.labels[data.test]


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


def train(recipe: Recipe, data: Dataset, progress: Progress) -> tuple[Model, dict[str, float]]:
    """Follow the recipe, show how far it is; returns the model and its scores on the data set's test split.

    The same recipe, data, PyTorch and number of threads give the same model. Raises RecipeError where the batch is
    larger than the training split, or the loss does not stay finite.
    """
    torch.manual_seed(recipe.seed)
    random = torch.Generator().manual_seed(recipe.seed)
    spec = recipe.network
    net = Net(spec, len(data.class_names)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Engine(finished(net, data.class_names))  # what flies must take this network: better to know it now than at the end
    images = torch.from_numpy(np.ascontiguousarray(data.images[~data.test][..., ::-1])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(data.labels[~data.test])
    mean = torch.tensor(spec.mean).view(1, 3, 1, 1)
    steps = len(images) // recipe.batch
    if not steps:
        raise RecipeError(f"batch = {recipe.batch} is more than the {len(images)} training images of {data.name}")
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.learning_rate)
    total_steps = recipe.epochs * steps
    # OneCycleLR counts the steps between the ends of the warm-up, so a warm-up of one step divides by zero
    warm_up = recipe.warm_up if recipe.warm_up * total_steps > 1 else 0.0
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=total_steps, pct_start=warm_up
    )
    start = time.monotonic()
    with progress:
        task = progress.add_task(f"training {spec.name}", total=total_steps)
        for epoch in range(1, recipe.epochs + 1):
            order, total = torch.randperm(len(images), generator=random), 0.0
            for step in range(steps):
                picked = order[step * recipe.batch : (step + 1) * recipe.batch]
                x = (views(images[picked], spec.input_size, recipe.augment, random) - mean) / SPREAD
                loss = F.cross_entropy(net(x), labels[picked], label_smoothing=recipe.label_smoothing)
                if not math.isfinite(loss.item()):
                    raise RecipeError(
                        f"epoch {epoch} of {recipe.epochs}: the loss is {loss.item()}; "
                        f"lower learning_rate ({recipe.learning_rate})"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                net.clip()
                total += loss.item()
                progress.advance(task)
            progress.update(task, description=f"{spec.name} epoch {epoch}/{recipe.epochs} loss {total / steps:.3f}")
    model = finished(net, data.class_names)
    return model, {
        "test_accuracy": accuracy(model, *scored_tiles(data, spec.input_size)),
        "train_seconds": round(time.monotonic() - start, 1),
    }


def run(recipe_path: Path, out: Path) -> dict[str, float]:
    """Train what `recipe_path` says and write the artifact `out`, with recipe, data hash and scores inside.

    Raises RecipeError for a recipe or data that cannot be used, and ArtifactError where `out` cannot be written; all
    but a diverging loss are found before the training begins. Progress goes to stderr.
    """
    recipe, text = read(recipe_path)
    check_writable(out)
    data = load(recipe.dataset)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    model, scores = train(recipe, data, Progress(*columns, console=Console(stderr=True)))
    about = {
        "recipe": text,
        "data": f"{data.name} sha256 {data.sha256}",
        "torch": f"{torch.__version__}, threads: {torch.get_num_threads()}",
    }
    artifact.save(model, out, **about, scores=msgspec.json.encode(scores).decode())
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
