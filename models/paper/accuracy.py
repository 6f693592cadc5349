"""Tables 2 and 3: the networks of the zoo trained at the paper's block lengths, beside what it reports."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from models.artifact import ZOO
from models.binarize import Layout
from models.errors import RecipeError
from models.paper.report import Row
from models.training import checkpoint, datasets, device, trainer
from models.training.recipe import Recipe, begun_with, read


class Entry(NamedTuple):
    """A network of a table at a pair of block lengths: 1 is full precision, 0 the whole filter, line or vector."""

    name: str
    beta_w: int
    beta_a: int
    paper: float


_TABLE_2 = (
    ("float", 1, 1),
    ("XNOR", 0, 0),
    ("HBWN(4,1)", 4, 1),
    ("HBWN(8,1)", 8, 1),
    ("HadaNet(16,2)", 16, 2),
    ("HadaNet(4,4)", 4, 4),
)
_TABLE_3 = (
    ("float", 1, 1),
    ("BWN", 0, 1),
    ("HBWN(4,1)", 4, 1),
    ("XNOR", 0, 0),
    ("HadaNet(16,2)", 16, 2),
    ("HadaNet(4,4)", 4, 4),
)


def _entries(rows: tuple[tuple[str, int, int], ...], *paper: float) -> tuple[Entry, ...]:
    return tuple(Entry(*row, accuracy) for row, accuracy in zip(rows, paper, strict=True))


_LENET = _entries(_TABLE_2, 99.39, 99.23, 99.41, 99.41, 99.40, 99.43)
_NIN = _entries(_TABLE_2, 89.59, 86.28, 89.33, 89.11, 88.74, 87.33)
TABLES: dict[str, tuple[Entry, ...]] = {
    "lenet": _LENET,
    "lenet-today": _LENET,
    "nin": _NIN,
    "nin-today": _NIN,
    "alexnet-cifar": _entries(_TABLE_2, 89.36, 88.60, 89.24, 89.04, 89.02, 88.64),
    "resnet18": _entries(_TABLE_3, 69.3, 60.8, 62.3, 51.2, 53.8, 52.1),
    "alexnet": _entries(_TABLE_3, 56.6, 56.8, 56.7, 44.2, 47.3, 46.3),
}
"""By recipe; top-1 in percent: MNIST for LeNet, CIFAR-10 for nin and alexnet-cifar, ImageNet for the last two."""


class Schedule(NamedTuple):
    """What replaces a recipe's own; None leaves it. The steps of a decay shrink with the epochs.

    device: PyTorch's name of what computes.
    """

    epochs: int | None
    seeds: int
    layout: Layout
    dataset: str | None
    device: str


def scheduled(recipe: Recipe, schedule: Schedule) -> Recipe:
    """The recipe with the schedule's epochs and data set."""
    decay, epochs = recipe.decay, schedule.epochs or recipe.epochs
    if decay:
        decay = msgspec.structs.replace(decay, every=max(1, round(decay.every * epochs / recipe.epochs)))
    network = msgspec.structs.replace(recipe.network, layout=schedule.layout)
    dataset = schedule.dataset or recipe.dataset
    return msgspec.structs.replace(recipe, epochs=epochs, decay=decay, network=network, dataset=dataset)


def chosen(network: str, rows: Iterable[str]) -> list[Entry]:
    """The entries of these names, or all. Raises RecipeError that names those that there are."""
    entries = TABLES[network]
    names = [entry.name for entry in entries]
    if unknown := [name for name in rows if name not in names]:
        raise RecipeError(f"row {unknown[0]!r} is not in the table of {network}: {', '.join(names)}")
    return [entry for entry in entries if not list(rows) or entry.name in rows]


def table(network: str, rows: list[str], schedule: Schedule, out: Path) -> list[Row]:
    """Train every chosen entry with every seed; what was trained before, into the same folder, is not trained again.

    Raises RecipeError where data or rows are not there.
    """
    entries, recipe = chosen(network, rows), scheduled(read(ZOO / f"{network}.toml")[0], schedule)
    data = datasets.load(recipe.dataset, recipe.network.input_size)
    done: list[Row] = []
    for entry in entries:
        own = msgspec.structs.replace(recipe, network=recipe.network.with_betas(entry.beta_w, entry.beta_a))
        seeds = train_seeds(own, data, schedule, out)
        best, last, packed = ([100 * run[f"{key}test_accuracy"] for run in seeds] for key in ("best_", "last_", ""))
        done.append(
            {
                "network": network,
                "row": entry.name,
                "layout": schedule.layout,
                "paper": entry.paper,
                "best_epoch": statistics.mean(best),
                "last_epoch": statistics.mean(last),
                "packed": statistics.mean(packed) if schedule.layout == "channel" else None,
                "spread": spread(last),
                "seeds": len(seeds),
                "epochs": own.epochs,
                "seconds": round(sum(run["train_seconds"] for run in seeds)),
            }
        )
    return done


def train_seeds(recipe: Recipe, data: datasets.Dataset, schedule: Schedule, out: Path) -> list[trainer.Scores]:
    """The scores of a recipe with seeds 0, 1, ...; what was trained before, into the same folder, is not again."""
    computing = device.named(schedule.device)
    recipes = [msgspec.structs.replace(recipe, seed=seed) for seed in range(schedule.seeds)]
    return [_train_once(own, data, out / "runs", computing) for own in recipes]


def spread(values: list[float]) -> float | None:
    """Deviation over seeds, where there are several."""
    return statistics.stdev(values) if len(values) > 1 else None


def _train_once(recipe: Recipe, data: datasets.Dataset, folder: Path, computing: torch.device) -> trainer.Scores:
    """One training, kept in a file by all that decides its result, and on the way as a checkpoint.

    `test_accuracy` is of the packed network, where it flies; the epochs' are of the net with float scales.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "recipe": msgspec.json.encode(recipe).decode(),
        "data": data.sha256,
        "torch": device.described(computing),
        **begun_with(recipe, ZOO),
    }
    betas = "-".join(str(beta) for beta in (recipe.network.blocks[0].beta_w, recipe.network.blocks[0].beta_a))
    spec = recipe.network
    done = folder / f"{spec.name}-{betas}-{spec.layout}-{data.name}-{recipe.epochs}-seed{recipe.seed}.json"
    if done.is_file():
        found = msgspec.json.decode(done.read_bytes())
        if all(found.get(name) == value for name, value in about.items()):
            return trainer.Scores(found["scores"])
    run, kept = trainer.Run(recipe, data, ZOO, computing), checkpoint.path_of(done)
    seconds = trainer.complete(run, kept, about, resume=True)
    _, scores = trainer.result(run, seconds)
    done.write_bytes(msgspec.json.encode({**about, "scores": scores, "history": run.history}))
    kept.unlink(missing_ok=True)
    return scores
