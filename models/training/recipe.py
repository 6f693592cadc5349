"""A training recipe: one TOML file that says everything that decides the result."""

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from models.errors import RecipeError
from models.network import NetworkSpec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Augment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Random views of a training image: any rotation, mirror, a crop of `min_scale`..1 of its side, light and noise.

    gain, contrast: half-width of the log-uniform factor; tint: the same per colour; noise: its largest deviation in
    grey levels of 255.
    """

    min_scale: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.35
    gain: Share = 0.24
    contrast: Share = 0.24
    tint: Share = 0.09
    noise: Annotated[float, msgspec.Meta(ge=0, le=64)] = 8.0


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to train, on what, and how. `dataset` is a name that `models.training.datasets` knows.

    batch: images a step, 2 or more, because BatchNorm compares them; learning_rate: the highest, reached after the
    share `warm_up` of all steps.
    """

    dataset: str
    network: NetworkSpec
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    batch: Annotated[int, msgspec.Meta(ge=2, le=65_536)]
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)]
    warm_up: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    label_smoothing: Share = 0.1
    augment: Augment = Augment()
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0


def read(path: Path) -> tuple[Recipe, str]:
    """The recipe in `path` and its text. Raises RecipeError that names file and field."""
    try:
        text = path.read_text(encoding="utf-8")
        recipe = msgspec.convert(tomllib.loads(text), Recipe)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise RecipeError(f"{path}: {error}") from error
    return recipe, text
