"""A training run on disk, so that it goes on where it was stopped: one safetensors file beside the artifact."""

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from models.errors import ArtifactError, RecipeError


def path_of(out: Path) -> Path:
    """Where the run that will write `out` keeps itself."""
    return out.with_name(out.name + ".checkpoint")


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a run. The file appears whole or not at all. Raises ArtifactError where it cannot."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            file.write(safetensors.torch.save(whole, dict(about)))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be written: {error.strerror}; free the disk and go on with --resume"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, about: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a run and all that was written about it, whose entries must include `about`.

    Raises RecipeError where the file is damaged, or of another recipe, data set, teacher, origin or PyTorch.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}; remove it and train without --resume") from error
    for name, value in about.items():
        if found.get(name) != value:
            raise RecipeError(
                f"{path}: made with another {name}; train without --resume, or with what it was made with"
            )
    return tensors, found
