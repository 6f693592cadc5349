"""A labelled tile turned by quarters: seen from above the ground has no up, so one answer is worth four samples."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.engine import Engine
from models.model import Model
from onboard.exposure import apply

QUARTERS = (1, 2, 3)

Image = NDArray[np.uint8]


def turns(tile: Image, light: Image, quarters: Sequence[int]) -> Image:
    """A tile (S, S, 3) as it was cut, turned by each of these quarters, in the light (1, 256, 3) of its frame."""
    turned = np.stack([np.rot90(tile, number) for number in quarters])
    apply(light, turned)
    return turned


class Turned:
    """Packs the features of tiles turned; for the desk's thread, with an engine of its own."""

    def __init__(self, base: Model) -> None:
        self._engine = Engine(base)
        self._engine.warm_up()

    def samples(self, bits: bytes, scales: bytes, tile: Image, light: Image) -> tuple[bytes, bytes]:
        """`bits` and `scales` of a tile as it was seen, and behind them those of its turns.

        tile: uint8 (S, S, 3) as it was cut; light: the table (1, 256, 3) that its frame went through.
        """
        own_bits, own_scales = self._engine.features(turns(tile, light, QUARTERS)).packed()
        return bits + own_bits, scales + own_scales
