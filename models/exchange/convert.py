"""A float ONNX network as a HadaNet that begins with its weights: the starting point that the paper leaves open.

Weights are binarized as they are. Some images go through the float network and the binary one side by side: each
block's input is shifted so that half of its signs are negative (behind a ReLU none were), and each output is scaled so
that every channel has the float network's mean and deviation. `hadanet train` goes on from there.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.binarize import binarize
from models.errors import ArtifactError
from models.exchange import reader
from models.exchange.reader import FloatNetwork, Layer
from models.model import MAX_CLASSES, Model, head_shapes
from models.network import (
    HEAD_STEP,
    STEM_MAX,
    Block,
    NetworkSpec,
    Pool,
    Stem,
    block_weight,
    convolve,
    packed_weight,
    pooled,
    prelu,
    shortcut,
)

Floats = NDArray[np.float32]
Triple = tuple[float, float, float]

HEAD_REACH = 8.0
"""The classifier's largest weight after features are scaled for it: its grid reaches to 64 in steps of 0.002."""
IMAGES = 64


@dataclass
class Start:
    """A float network, binarized.

    tensors: canonical, without a head; head, bias: of the float network, for features times `features.scale`.
    """

    spec: NetworkSpec
    tensors: dict[str, NDArray[np.generic]]
    head: Floats
    bias: Floats
    report: list[dict[str, object]]

    def model(self, classes: tuple[str, ...]) -> Model:
        """As a model that flies. Classes: of the head, or others, and then the head knows nothing."""
        limits = np.iinfo(np.int16)
        head: dict[str, NDArray[np.generic]] = {
            name: np.zeros(shape, dtype) for name, (dtype, shape) in head_shapes(self.spec, len(classes)).items()
        }
        if len(classes) == len(self.head):
            for name, values in (("weight", self.head), ("bias", self.bias)):
                rounded = np.clip(np.round(values / HEAD_STEP), limits.min, limits.max)
                head[f"head.{name}"] = rounded.astype(np.int16)
        return Model(self.spec, self.tensors | head, classes)


def textures(count: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images with the spectrum of photos, (count, size, size, 3), for want of photos."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
    x = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(count, 3, size, size))) / frequency, (size, size))
    x = x + 0.7 * x.mean(1, keepdims=True) * np.sqrt(3)  # colours of photos go together
    x = 118 + 55 * x / x.std((1, 2, 3), keepdims=True)
    out: NDArray[np.uint8] = np.clip(x, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return out


def class_names(network: FloatNetwork, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the model's classes: as given, or numbers. More than a model can have are left to flight.

    Raises ArtifactError where there are not as many as the network has.
    """
    count = len(network.head)
    if names and len(names) != count:
        raise ArtifactError(f"{len(names)} class names for a network of {count} classes")
    if count > MAX_CLASSES:
        return ("unknown",)
    return names or tuple(str(i) for i in range(count))


def spec_of(network: FloatNetwork, name: str, mean: Triple, beta_w: int, beta_a: int) -> NetworkSpec:
    """The network as a HadaNet. Raises ArtifactError where it is none."""
    stem, *rest = network.layers
    if not rest:
        raise ArtifactError("a network of one convolution has nothing to binarize")
    r, g, b = (round(x) for x in mean)

    def common(layer: Layer) -> dict[str, int | bool | Pool | None]:
        channels, kernel = layer.weight.shape[:2]
        return {
            "channels": channels,
            "kernel": kernel,
            "stride": layer.stride,
            "valid": layer.valid,
            "pool": layer.pool,
        }

    try:
        return NetworkSpec(
            name=name,
            input_size=network.size,
            mean=(r, g, b),
            stem=Stem(**common(stem)),  # type: ignore[arg-type]
            blocks=tuple(
                Block(**common(layer), shortcut=layer.around, beta_w=beta_w, beta_a=beta_a)  # type: ignore[arg-type]
                for layer in rest
            ),
            taps=(len(rest) - 1,),
            deviation=False,
            beta_f=1,
        )
    except ValueError as error:
        raise ArtifactError(f"the network cannot be laid out: {error}") from error


def start(
    network: FloatNetwork, spec: NetworkSpec, mean: Triple, deviation: Triple, images: NDArray[np.uint8]
) -> Start:
    """Binarize the network; mean, deviation: of its input, RGB; images: some BGR (n, S, S, 3) to measure with."""
    tensors: dict[str, NDArray[np.generic]] = {}
    rgb = images[..., ::-1].astype(np.float32) - np.array(spec.mean, np.float32)
    stem = network.layers[0]
    raw, shift = stem_of(stem, spec.mean, mean, deviation)
    step = np.maximum(np.abs(raw).max((1, 2, 3)), np.float32(1e-12)) / np.float32(STEM_MAX)
    integers = np.round(raw / step[:, None, None, None]).astype(np.int8)
    tensors |= {"stem.weight": integers, "stem.scale": (stem.scale * step).astype(np.float32)}
    tensors |= {"stem.shift": shift, "stem.slope": stem.slope}
    sums = convolve(rgb, raw, stem.stride, stem.padding)
    exact = binary = pooled(prelu(sums * stem.scale + shift, stem.slope), stem.pool)
    inputs: list[tuple[Floats, Floats]] = []
    for i, (layer, block) in enumerate(zip(network.layers[1:], spec.blocks, strict=True)):
        inputs.append((exact, binary))
        whole = block.beta_a == 1
        in_shift = np.zeros(exact.shape[-1], np.float32) if whole else -binary.mean((0, 1, 2), dtype=np.float32)
        own = packed_weight(layer.weight.reshape(len(layer.weight), -1), block.beta_w)
        tensors |= {f"block{i}.{name}": value for name, value in own.items()} | {f"block{i}.in_shift": in_shift}
        a = binary + in_shift if whole else binarize(binary + in_shift, block.beta_a)
        wanted = convolve(exact, layer.weight, layer.stride, layer.padding) * layer.scale + layer.shift
        sums = convolve(a, block_weight(spec, tensors, i), layer.stride, layer.padding)
        mean_, variance = sums.mean((0, 1, 2)), sums.var((0, 1, 2))
        scale = np.sign(layer.scale) * wanted.std((0, 1, 2)) / np.sqrt(variance + np.float32(1e-12))
        scale = np.where(variance > 0, scale, layer.scale).astype(np.float32)
        shift = (wanted.mean((0, 1, 2)) - scale * mean_).astype(np.float32)
        tensors |= {f"block{i}.scale": scale, f"block{i}.shift": shift, f"block{i}.slope": layer.slope}
        outputs = [wanted, sums * scale + shift]
        if block.shortcut:
            near = inputs[-block.shortcut]
            outputs = [y + shortcut(x, y.shape[1], block.channels) for y, x in zip(outputs, near, strict=True)]
        exact, binary = (pooled(prelu(y, layer.slope), block.pool) for y in outputs)
    scale_of_head = reach(network)
    tensors["features.scale"] = np.full(spec.feature_count, scale_of_head, np.float32)
    tensors["features.shift"] = np.zeros(spec.feature_count, np.float32)
    head = (network.head / np.float32(scale_of_head)).astype(np.float32)
    return Start(spec, tensors, head, network.bias, network.report)


def stem_of(layer: Layer, ours: Triple, mean: Triple, deviation: Triple) -> tuple[Floats, Floats]:
    """The stem for RGB less `ours`, of one for (RGB - mean) / deviation: its weight, and what its shift becomes."""
    weight = (layer.weight / np.array(deviation, np.float32)).astype(np.float32)
    offset = (weight * (np.array(ours, np.float32) - np.array(mean, np.float32))).sum((1, 2, 3))
    return weight, (layer.shift + layer.scale * offset).astype(np.float32)


def reach(network: FloatNetwork) -> float:
    """What features are multiplied with, so that the classifier divided by it fits its grid."""
    return max(float(np.abs(network.head).max(initial=0)) / HEAD_REACH, 1e-6)


def convert(
    path: Path,
    *,
    betas: tuple[int, int] = (16, 2),
    size: int = 0,
    mean: Triple = (0.0, 0.0, 0.0),
    deviation: Triple = (1.0, 1.0, 1.0),
    images: NDArray[np.uint8] | None = None,
) -> tuple[FloatNetwork, Start]:
    """Read an ONNX file and binarize it with betas (beta_w, beta_a); images: see `start`, `textures` by default."""
    network = reader.read(path, size)
    spec = spec_of(network, path.stem, mean, *betas)
    images = textures(IMAGES, network.size) if images is None else images
    return network, start(network, spec, mean, deviation, images)
