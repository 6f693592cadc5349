"""The network that a HadaNet learns from: a model of this project, or any ONNX classifier."""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import RecipeError
from models.training.canonical import restored
from models.training.device import CPU
from models.training.recipe import Teacher, model_at

Answers = Callable[[Tensor], Tensor]
"""float (n, 3, S, S) RGB, 0..255 -> logits (n, classes)."""


def teacher_of(spec: Teacher, folder: Path, size: int, classes: tuple[str, ...], device: torch.device = CPU) -> Answers:
    """What the teacher answers for images of this size on this device, where ONNX Runtime's answers are brought.

    Raises RecipeError where it is no teacher of these classes.
    """
    return _model(spec, folder, size, classes, device) if spec.model else _network(spec, folder, size, len(classes))


def distilled(spec: Teacher, loss: Tensor, logits: Tensor, answers: Tensor) -> Tensor:
    """`loss` on the labels, mixed with how far `logits` are from a teacher's answers, both softened."""
    t = spec.temperature
    distance = F.kl_div(F.log_softmax(logits / t, 1), F.softmax(answers / t, 1), reduction="batchmean") * t * t
    return (1 - spec.share) * loss + spec.share * distance


def _model(spec: Teacher, folder: Path, size: int, classes: tuple[str, ...], device: torch.device) -> Answers:
    path = folder / spec.model
    model = model_at(path)
    if missing := [name for name in classes if name not in model.classes]:
        raise RecipeError(f"teacher {path}: does not know {missing[0]!r}; its classes are {', '.join(model.classes)}")
    if model.spec.input_size != size:
        raise RecipeError(f"teacher {path}: takes images of {model.spec.input_size} pixels, the recipe's have {size}")
    net = restored(model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = [model.classes.index(name) for name in classes]

    @torch.no_grad()
    def answers(images: Tensor) -> Tensor:
        logits: Tensor = net(images)
        return logits[:, own].float()

    return answers


def _network(spec: Teacher, folder: Path, size: int, classes: int) -> Answers:
    path = folder / spec.onnx
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (spec.mean, spec.deviation))

    def answers(images: Tensor) -> Tensor:
        x = ((images.cpu() - mean) / deviation).numpy().astype(np.float32)
        return torch.from_numpy(session.run(None, {name: np.ascontiguousarray(x)})[0]).to(images.device)

    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = answers(torch.zeros(2, 3, size, size))
    except Exception as error:  # ONNX Runtime's own have no base in common
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"teacher {path}: does not take images of {size} x {size} pixels: {first}") from error
    if found.shape != (2, classes):
        raise RecipeError(
            f"teacher {path}: gives {tuple(found.shape[1:])} per image; the data set has {classes} classes"
        )
    return answers
