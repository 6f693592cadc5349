"""The model in force: one immutable object of a network, its tensors and its classes, known by its hash."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.errors import ArtifactError
from models.network import NetworkSpec

Array = NDArray[Any]

MAX_CLASSES = 100


class Model:
    """A network with its weights: `spec`, `classes` and read-only `tensors`; equal hash means equal model.

    Raises ArtifactError where a tensor is missing, of another dtype or shape, or not finite.
    """

    def __init__(self, spec: NetworkSpec, tensors: Mapping[str, Array], classes: Iterable[str]) -> None:
        self._fill(spec, tensors, tuple(classes), tensors.keys())

    def _fill(
        self, spec: NetworkSpec, tensors: Mapping[str, Array], classes: tuple[str, ...], fresh: Iterable[str]
    ) -> None:
        """Check and take over everything; the contents of `fresh` tensors alone, the others' were checked before."""
        self.spec = spec
        self.classes = classes
        if not 1 <= len(self.classes) <= MAX_CLASSES or len(set(self.classes)) != len(self.classes):
            raise ArtifactError(f"a model needs 1 to {MAX_CLASSES} classes, all different, not {self.classes}")
        frozen = {name: _frozen(array) for name, array in tensors.items()}
        _check(frozen, head_shapes(spec, len(self.classes)) | spec.shapes(), fresh)
        self.tensors: Mapping[str, Array] = MappingProxyType(dict(sorted(frozen.items())))

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over spec, classes and every tensor's name, dtype, shape and little-endian bytes."""
        digest = hashlib.sha256(msgspec.json.encode([self.spec, self.classes]))
        for name, array in self.tensors.items():
            digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()

    def with_tensors(self, changed: Mapping[str, Array], classes: Iterable[str] | None = None) -> "Model":
        """A new model in which the named tensors (and the classes, where given) are replaced."""
        model = Model.__new__(Model)
        classes = self.classes if classes is None else tuple(classes)
        model._fill(self.spec, {**self.tensors, **changed}, classes, changed.keys())  # a learner makes many
        return model

    def with_classes(self, classes: Iterable[str]) -> "Model":
        """A new model with these classes and a head of zeros: it knows nothing and says so."""
        classes = tuple(classes)
        shapes = head_shapes(self.spec, len(classes))
        return self.with_tensors({n: np.zeros(shape, dtype) for n, (dtype, shape) in shapes.items()}, classes)


def head_shapes(spec: NetworkSpec, classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of the classifier's tensors."""
    return {"head.weight": ("int16", (classes, spec.feature_count)), "head.bias": ("int16", (classes,))}


def _frozen(array: Array) -> Array:
    """The array if nobody can write to it, else a copy; in the byte order of this machine."""
    view = isinstance(array.base, np.ndarray) and array.base.flags.writeable
    if view or array.flags.writeable or not array.flags.c_contiguous or not array.dtype.isnative:
        array = np.array(array, array.dtype.newbyteorder("="), order="C")
        array.flags.writeable = False
    return array


def _check(
    tensors: Mapping[str, Array], shapes: Mapping[str, tuple[str, tuple[int, ...]]], fresh: Iterable[str]
) -> None:
    if unknown := sorted(tensors.keys() ^ shapes.keys()):
        raise ArtifactError(f"tensors missing or not of this network: {', '.join(unknown)}")
    for name, (dtype, shape) in shapes.items():
        array = tensors[name]
        if array.dtype != np.dtype(dtype) or array.shape != shape:
            raise ArtifactError(f"tensor {name} is {array.dtype} {array.shape}, the network needs {dtype} {shape}")
    for name in fresh:
        array, (dtype, _) = tensors[name], shapes[name]
        if dtype == "float32" and not np.isfinite(array).all():
            raise ArtifactError(f"tensor {name} holds values that are not finite")
        if name.endswith(".q") and array.size and not 1 <= int(array.min()) <= int(array.max()) <= 127:
            raise ArtifactError(f"tensor {name} holds block scales outside 1..127")
