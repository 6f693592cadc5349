"""The float network that a HadaNet learns from: an ONNX file, run by ONNX Runtime."""

# Whether torch is installed decides which ignores below are needed, so none is reported as unused.
# mypy: no-warn-unused-ignores

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import RecipeError
from models.training.recipe import Teacher


class OnnxTeacher:
    """Answers of a teacher for views of images. Raises RecipeError where the file is no such network."""

    def __init__(self, spec: Teacher, folder: Path, size: int, classes: int) -> None:
        self.spec, self.path = spec, folder / spec.onnx
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = ort.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
            answers = self(torch.zeros(2, 3, size, size))
        except Exception as error:  # ONNX Runtime's own have no base in common
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise RecipeError(
                f"teacher {self.path}: does not take images of {size} x {size} pixels: {first}"
            ) from error
        if answers.shape != (2, classes):
            raise RecipeError(
                f"teacher {self.path}: gives {tuple(answers.shape[1:])} per image; the data set has {classes} classes"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """float (n, 3, S, S) RGB, 0..255 -> logits (n, classes)."""
        mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (self.spec.mean, self.spec.deviation))
        x = ((images - mean) / deviation).numpy().astype(np.float32)
        return torch.from_numpy(self._session.run(None, {self._input: np.ascontiguousarray(x)})[0])

    def loss(self, logits: Tensor, images: Tensor, loss: Tensor) -> Tensor:
        """`loss` on the labels, mixed with how far `logits` are from the teacher's, both softened."""
        t = self.spec.temperature
        soft = F.softmax(self(images) / t, dim=1)
        distance = F.kl_div(F.log_softmax(logits / t, dim=1), soft, reduction="batchmean") * t * t
        return (1 - self.spec.share) * loss + self.spec.share * distance
