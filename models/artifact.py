"""A model on disk: one safetensors file with the spec, the classes, the recipe, the scores and the hash inside."""

import contextlib
import os
from pathlib import Path

import msgspec
import numpy as np
import safetensors
from safetensors.numpy import save as to_bytes

from models.errors import ArtifactError
from models.model import Model
from models.network import NetworkSpec

FORMAT = "hadanet-3"
ZOO = Path(__file__).parent / "zoo"
DEFAULT = ZOO / "default.safetensors"
MAX_ARTIFACT_BYTES = 512 * 2**20


def save(model: Model, path: Path, **about: str) -> None:
    """Write `model` with texts about it (recipe, scores, data hash). The file appears whole or not at all."""
    metadata = {
        **about,
        "format": FORMAT,
        "spec": msgspec.json.encode(model.spec).decode(),
        "classes": msgspec.json.encode(model.classes).decode(),
        "hash": model.hash,
    }
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(to_bytes({name: np.ascontiguousarray(array) for name, array in model.tensors.items()}, metadata))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}; choose another folder") from error
    finally:
        with contextlib.suppress(OSError):  # there is nothing to remove, unless the disk is full or Ctrl-C came
            partial.unlink()


def describe(path: Path) -> dict[str, str]:
    """The texts inside an artifact: format, spec, classes, hash, and what `save` was told."""
    try:
        if not path.is_file() and path.exists():
            raise ArtifactError(f"{path}: not a file")  # opening a pipe would wait for ever
        if path.stat().st_size > MAX_ARTIFACT_BYTES:
            raise ArtifactError(f"{path}: larger than {MAX_ARTIFACT_BYTES >> 20} MiB, this is not a HadaNet artifact")
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{path}: not a safetensors file, or a damaged one: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ArtifactError(f"{path}: format {metadata.get('format')!r}, this program reads {FORMAT!r}")
    return metadata


def load(path: Path) -> Model:
    """Read a model and prove it by its hash. Raises ArtifactError for every file that is not one."""
    metadata = describe(path)
    try:
        spec = msgspec.json.decode(metadata["spec"], type=NetworkSpec)
        classes = msgspec.json.decode(metadata["classes"], type=tuple[str, ...])
        with safetensors.safe_open(path, framework="numpy") as file:
            model = Model(spec, {name: file.get_tensor(name) for name in file.keys()}, classes)  # noqa: SIM118
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError, ArtifactError) as error:
        # TypeError: a dtype that NumPy does not know; ValueError: also all of msgspec's
        raise ArtifactError(f"{path}: damaged: {error}") from error
    if model.hash != metadata.get("hash"):
        raise ArtifactError(f"{path}: the content does not match the hash inside; fetch or train it again")
    return model
