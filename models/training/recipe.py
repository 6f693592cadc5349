"""A training recipe: one TOML file that says everything that decides the result."""

import hashlib
import math
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from models import artifact
from models.errors import RecipeError
from models.model import Model
from models.network import NetworkSpec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Level = Annotated[float, msgspec.Meta(ge=0, le=255)]


class Augment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Random views of a training image: any rotation, mirror, a crop of `min_scale`..1 of its side, light and noise.

    turn: largest rotation either way, in degrees; shift: largest move either way, as a share of the side, on top of
    where a crop may lie; gain, contrast: half-width of the log-uniform factor; tint: the same per colour; noise: its
    largest deviation in grey levels of 255. All at their least (min_scale 1, mirror false, the others 0): no change.
    """

    min_scale: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.35
    turn: Annotated[float, msgspec.Meta(ge=0, le=180)] = 180.0
    mirror: bool = True
    shift: Share = 0.0
    gain: Share = 0.24
    contrast: Share = 0.24
    tint: Share = 0.09
    noise: Annotated[float, msgspec.Meta(ge=0, le=64)] = 8.0


NO_CHANGE = Augment(min_scale=1.0, turn=0.0, mirror=False, gain=0.0, contrast=0.0, tint=0.0, noise=0.0)


class Decay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The learning rate falls to `factor` of itself after every `every` epochs, as in the paper."""

    every: Annotated[int, msgspec.Meta(ge=1)] = 15
    factor: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1


class Trained(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network that there is: a model of this project, or an ONNX network; paths are relative to the recipe's folder.

    model: an artifact. onnx: a file that takes float32 (n, 3, S, S) RGB, (x - mean) / deviation of 0..255, and gives a
    logit for each class of the data set, in its order.
    """

    model: str = ""
    onnx: str = ""
    mean: tuple[Level, Level, Level] = (0.0, 0.0, 0.0)
    deviation: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if bool(self.model) == bool(self.onnx):
            raise ValueError("needs a model or an onnx network, and not both")


class Teacher(Trained, frozen=True, kw_only=True):
    """What gives softened answers that are learned, too (distillation).

    share: of the loss; temperature: softens both.
    """

    share: Share = 0.7
    temperature: Positive = 2.0


class Origin(Trained, frozen=True, kw_only=True):
    """What training begins with, of the same layers as the recipe's network; without one, that is the model's.

    Classes of the same name keep their part of the model's head.
    """


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to train, on what, and how. `dataset` is a name, a file or a folder that `models.training.datasets` reads.

    batch: images a step, 2 or more, because BatchNorm compares them; learning_rate: the highest, reached after the
    share `warm_up` of all steps, then along a cosine to 0, or in steps where `decay` is given. real_weights: the share
    of the epochs, at first, in which only activations are binary (two-stage training); each stage has its own warm-up.
    ema: of the weights, a step's weight in their running mean is 1 - ema; it begins half-way through the last stage
    and is what is kept; 0 for none. validation: share of the training images on which each epoch is judged;
    patience: epochs without a better one after which training stops, and the best is kept; 0 for all epochs.
    precision: of the convolutions.
    """

    dataset: str
    network: NetworkSpec
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    batch: Annotated[int, msgspec.Meta(ge=2, le=65_536)]
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)]
    warm_up: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    decay: Decay | None = None
    label_smoothing: Share = 0.1
    real_weights: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    ema: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    validation: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.0
    patience: Annotated[int, msgspec.Meta(ge=0)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    augment: Augment = Augment()
    teacher: Teacher | None = None
    origin: Origin | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0

    def __post_init__(self) -> None:
        if self.patience and not self.validation:
            raise ValueError("patience needs a validation share: without one, no epoch is better than another")

    @property
    def real_epochs(self) -> int:
        """Epochs of the first stage; at least one is left for the second."""
        return min(round(self.real_weights * self.epochs), self.epochs - 1)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0; steps: of an epoch."""
        turn = self.real_epochs * steps
        first, last = (0, turn) if step < turn else (turn, self.epochs * steps)
        rise = self.warm_up * (last - first)
        if step - first < rise:
            return self.learning_rate * (step - first + 1) / (rise + 1)
        if self.decay:
            return self.learning_rate * float(self.decay.factor ** ((step - first) // steps // self.decay.every))
        return self.learning_rate * _cosine((step - first - rise) / (last - first - rise))


def _cosine(part: float) -> float:
    return (1 + math.cos(math.pi * part)) / 2


def model_at(path: Path) -> Model:
    """A model that a recipe names. Raises RecipeError where it is not there, ArtifactError where it is none."""
    if not path.exists():
        raise RecipeError(f"{path}: is not there; train it first, or name another file in the recipe")
    return artifact.load(path)


def begun_with(recipe: Recipe, folder: Path) -> dict[str, str]:
    """What to keep beside a run: the sha256 of the teacher and the origin that its recipe names, where it does.

    Raises RecipeError where one cannot be read; one that is not there is left to who needs it.
    """
    trained = [folder / (one.model or one.onnx) for one in (recipe.teacher, recipe.origin) if one]
    try:
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in trained if path.is_file()]
    except OSError as error:
        raise RecipeError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return {"teacher or origin": " ".join(hashes)} if hashes else {}


def read(path: Path) -> tuple[Recipe, str]:
    """The recipe in `path` and its text. Raises RecipeError that names file and field."""
    try:
        text = path.read_text(encoding="utf-8")
        fields = tomllib.loads(text)
        origin = fields.get("origin")
        if "network" not in fields and isinstance(origin, dict) and isinstance(origin.get("model"), str):
            fields["network"] = msgspec.to_builtins(model_at(path.parent / origin["model"]).spec)
        recipe = msgspec.convert(fields, Recipe)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise RecipeError(f"{path}: {error}") from error
    return recipe, text
