"""What sign flips cost on the link: a whole delta against their entropy and against general compressors.

A network of a million binary weights, of which a share flips at random. `vs_zstd` and `vs_brotli` say how many times
larger the same flips are as a bitmap compressed at the highest level (zstd 22, brotli 11); null where not installed.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import numpy as np
import zstandard

from models.delta import apply, encode
from models.model import Model, head_shapes
from models.network import Block, NetworkSpec, Stem

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def rows(quick: bool, progress: Callable[[str], None]) -> list[dict[str, object]]:
    """One row per flip rate; `quick` takes every other rate."""
    rng = np.random.default_rng(0)
    old = _model(rng, blocks=7)
    brotli = _brotli()
    table: list[dict[str, object]] = []
    for rate in RATES[:: 2 if quick else 1]:
        progress(f"flip rate {rate:g}")
        flips = {n: rng.random((*a.shape, 8)) < rate for n, a in old.tensors.items() if n.endswith(".bits")}
        bitmaps = {n: np.packbits(f, axis=-1, bitorder="little")[..., 0] for n, f in flips.items()}
        new = old.with_tensors({n: old.tensors[n].astype(np.uint8) ^ bitmap for n, bitmap in bitmaps.items()})
        payload = encode(old, new)
        if apply(old, payload).hash != new.hash:
            raise AssertionError("the delta is not exact")
        weights = sum(f.size for f in flips.values())
        share = sum(int(f.sum()) for f in flips.values()) / weights
        bitmap = b"".join(b.tobytes() for b in bitmaps.values())
        table.append(
            {
                "flip_rate": rate,
                "bits_per_weight": 8 * len(payload) / weights,
                "entropy_bits_per_weight": _entropy(share),
                "vs_zstd": len(zstandard.compress(bitmap, 22)) / len(payload),
                "vs_brotli": None if brotli is None else len(brotli.compress(bitmap, quality=11)) / len(payload),
                "weights": weights,
                "delta_bytes": len(payload),
            }
        )
    return table


def _entropy(share: float) -> float:
    """Bits per flag of which this share is set."""
    if share in (0.0, 1.0):
        return 0.0
    return float(-share * np.log2(share) - (1 - share) * np.log2(1 - share))


def _brotli() -> ModuleType | None:
    try:
        return import_module("brotli")
    except ImportError:
        return None


def _model(rng: np.random.Generator, blocks: int) -> Model:
    """Random signs in blocks of 128 channels, 147,456 weights each."""
    spec = NetworkSpec(
        name="benchmark",
        input_size=64,
        mean=(0, 0, 0),
        stem=Stem(channels=128),
        blocks=tuple(Block(channels=128) for _ in range(blocks)),
        taps=(blocks - 1,),
    )
    tensors = {}
    for name, (dtype, shape) in (spec.shapes() | head_shapes(spec, 4)).items():
        tensors[name] = rng.integers(1, 127, shape).astype(dtype)
    return Model(spec, tensors, ("object", "road", "trees", "ground"))
