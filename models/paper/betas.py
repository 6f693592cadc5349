"""Beyond the paper: what a network's accuracy and its time are at each length beta_a of activation blocks."""

import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from models.artifact import ZOO
from models.engine import Engine
from models.paper.accuracy import Schedule, scheduled, spread, train_seeds
from models.paper.report import Row
from models.paper.timing import race
from models.training import datasets, trainer
from models.training.layers import Net
from models.training.recipe import Recipe, read

BETAS = (0, 64, 32, 16, 8, 2)
"""Channels that share an activation scale; 0: all of a pixel."""
TILES = 48
TURNS = 15


def curve(schedule: Schedule, out: Path) -> list[Row]:
    """The default backbone from first weights, trained alike at each beta_a; accuracy of the packed network in percent.

    chance: what a share of so few test images may be off by, one standard error; spread: deviation over seeds. ms: of
    TILES tiles on one thread, the contenders in turns. front: no other is both faster and more accurate.
    """
    plain, _ = read(ZOO / "default-plain.toml")
    recipe = scheduled(msgspec.structs.replace(plain, origin=None), schedule)
    recipes = [_with_beta_a(recipe, beta) for beta in BETAS]
    seconds = _times(recipes)
    data = datasets.load(recipe.dataset, recipe.network.input_size)
    runs = [train_seeds(own, data, schedule, out) for own in recipes]
    points = [
        (seconds[beta], statistics.mean(run["test_accuracy"] for run in seeds))
        for beta, seeds in zip(BETAS, runs, strict=True)
    ]
    return [
        {
            "beta_a": beta or "pixel",
            "accuracy": 100 * share,
            "chance": 100 * math.sqrt(share * (1 - share) / data.test.sum()),
            "spread": spread([100 * run["test_accuracy"] for run in seeds]),
            "ms": 1e3 * own_s,
            "times_slower": own_s / seconds[0],
            "seeds": len(seeds),
            "epochs": recipe.epochs,
            "seconds": round(sum(run["train_seconds"] for run in seeds)),
            "front": not any(other_s < own_s and other > share for other_s, other in points),
        }
        for beta, seeds, (own_s, share) in zip(BETAS, runs, points, strict=True)
    ]


def _with_beta_a(recipe: Recipe, beta: int) -> Recipe:
    network = recipe.network.with_betas(recipe.network.blocks[0].beta_w, beta)
    return msgspec.structs.replace(recipe, network=network)


def _times(recipes: Sequence[Recipe]) -> dict[int, float]:
    """Seconds for TILES tiles by beta_a; what the weights are does not matter."""
    size = recipes[0].network.input_size
    tiles = np.random.default_rng(0).integers(0, 256, (TILES, size, size, 3), np.uint8)
    engines = [Engine(trainer.finished(Net(recipe.network, 2), ("a", "b"))) for recipe in recipes]
    calls = {str(beta): partial(engine.features, tiles) for beta, engine in zip(BETAS, engines, strict=True)}
    return {int(beta): seconds for beta, seconds in race(calls, TURNS).items()}
