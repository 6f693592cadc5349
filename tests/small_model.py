"""A network of a few thousand weights, for tests that need a model and no accuracy."""

import numpy as np

from models.model import Model, head_shapes
from models.network import Block, NetworkSpec, Stem


def small_spec(channels: int = 16, beta_f: int = 4) -> NetworkSpec:
    """Two binary blocks on 16 x 16 pixels; 2 * (16 + channels) features."""
    return NetworkSpec(
        name="small",
        input_size=16,
        mean=(110, 105, 100),
        stem=Stem(channels=8),
        blocks=(Block(channels=16, stride=2, beta_w=8), Block(channels=channels, beta_w=0, beta_a=8)),
        taps=(0, 1),
        beta_f=beta_f,
    )


def small_model(classes: tuple[str, ...] = ("a", "b", "c"), seed: int = 0, **spec: int) -> Model:
    """A model with random weights and a random head."""
    network = small_spec(**spec)
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (dtype, shape) in (network.shapes() | head_shapes(network, len(classes))).items():
        if name == "stem.scale":
            tensors[name] = random.normal(0, 1e-3, shape).astype(np.float32)
        elif dtype == "int8":
            tensors[name] = random.integers(-127, 128, shape).astype(np.int8)
        elif dtype == "float32":
            tensors[name] = random.normal(0, 0.5, shape).astype(np.float32)
        elif dtype == "int16":
            tensors[name] = random.integers(-300, 300, shape).astype(np.int16)
        else:
            tensors[name] = random.integers(1 if name.endswith(".q") else 0, 128, shape).astype(np.uint8)
    return Model(network, tensors, classes)
